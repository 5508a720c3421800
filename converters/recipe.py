"""Recipe: what a bundle is made from and the numbers that go into it, read strictly from `models/*.toml`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from agent.errors import ConfigError

_Positive = Annotated[int, msgspec.Meta(ge=1)]
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
_Std = Annotated[float, msgspec.Meta(gt=0.0)]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

_SPARSE = 0.9
"""Layers that were given zeros have at least the share that was asked for; others have next to none."""

Shape = tuple[_Positive, _Positive, _Positive, _Positive]
"""Of an input: (N, 3, H, W)."""


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published package that carries model files, pinned by hash. None of its code is run."""

    requirement: str
    wheel: _Word
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every model says.

    Attributes:
        folder: the folder inside the package that holds the model's two files.
        mean: of pixel / 255, per plane in the order the model takes them.
        std: likewise.
        check_shapes: the shapes at which the result must equal the source.
        measure_shape: the shape that is timed.
    """

    folder: str
    mean: tuple[float, float, float]
    std: tuple[_Std, _Std, _Std]
    check_shapes: Annotated[tuple[Shape, ...], msgspec.Meta(min_length=1)]
    measure_shape: Shape


class DetectorSection(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The detector's numbers; see `agent.bundle.Detector`."""

    multiple: _Positive
    threshold: _Share
    box_threshold: _Share
    unclip_ratio: Annotated[float, msgspec.Meta(gt=0.0, le=5.0)]


class RecognizerSection(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The recogniser's numbers; see `agent.bundle.Recognizer`. `characters` is a file inside the package."""

    characters: str
    height: _Positive
    squeeze: Annotated[float, msgspec.Meta(gt=0.3, le=1.0)]
    width_step: _Positive
    max_width: _Positive


class ClassifierSection(_Section, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The line direction classifier's numbers; see `agent.bundle.Classifier`."""

    height: _Positive
    width: _Positive
    threshold: _Share


Section = DetectorSection | RecognizerSection | ClassifierSection


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an int8 bundle may lose against the float one; else it is not written.

    Attributes:
        char_f1: mean drop over the sets of labelled pages.
        worst_char_f1: drop on any one of them.
        car: mean drop of the character accuracy of labelled lines.
        hmean: mean drop of the detector's hmean on labelled boxes.
        bytes: of all models together.
    """

    char_f1: _Share
    worst_char_f1: _Share
    car: _Share
    hmean: _Share
    bytes: _Positive


class Pruning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How channels are taken from models (`converters.pruning`).

    Attributes:
        models: that lose channels.
        multiply_adds: share of the source model's that stays.
        most: share of its channels that a group of convolutions may lose.
        crops: parts of drawn pictures that this looks at.
        crop_px: their sides.
    """

    models: Annotated[tuple[Literal["det", "rec", "cls"], ...], msgspec.Meta(min_length=1)]
    multiply_adds: _Share
    most: _Share
    crops: _Positive
    crop_px: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]


class Thinning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How single values of filters of one pixel are made zero (`converters.sparsity`).

    Attributes:
        models: that get zeros.
        zeros: share of those values.
    """

    models: Annotated[tuple[Literal["det", "rec"], ...], msgspec.Meta(min_length=1)]
    zeros: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How int8 filters are trained against the float model (`converters.training`).

    Attributes:
        models: whose filters are trained.
        steps: of the optimiser.
        batch: pictures in each.
        crop_px: sides of the parts of pages that the detector is trained on; the recogniser sees whole lines.
        rate: by which parameters change in a step at most, as a share of their usual size.
    """

    models: Annotated[tuple[Literal["det", "rec"], ...], msgspec.Meta(min_length=1)]
    steps: _Positive
    batch: _Positive
    crop_px: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]
    rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]


class Compression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a recipe's models become int8.

    Attributes:
        method: "ptq": filters are rounded (post-training quantisation); "qat": and then trained (`Training`).
        models: those that become int8; the others stay in float.
        stored: those of the others whose weights are stored in one byte, though they are computed with in float
            (`converters.storage`).
        smoothed: those of them whose channels are brought to similar ranges first (`converters.smoothing`).
        rounded: those of them whose filters are rounded by their effect (`converters.rounding`), not to the nearest.
        rounded_on: pictures that these two, and `thin`, look at.
        seed: of the pictures that are drawn.
        windows: pictures that calibrate the detector.
        window_px: their sides.
        lines: pictures that calibrate the recogniser and the direction classifier.
        line_px: width of the recogniser's.
        percentile: share of an activation's values that its scale covers.
        float_share: a layer stays in float when it alone makes more than this share of all layers' errors.
        max_mismatch: largest difference between the built model and its simulation, as a share of what int8 changes.
        pages: labelled pages that are drawn for the gate.
        gate: what may be lost.
        prune: which channels go before that; None for none.
        thin: which single values become zero after that; None for none.
        train: how filters are trained, with the method "qat".
    """

    method: Literal["ptq", "qat"]
    models: Annotated[tuple[Literal["det", "rec", "cls"], ...], msgspec.Meta(min_length=1)]
    smoothed: tuple[Literal["det", "rec", "cls"], ...]
    rounded: tuple[Literal["det", "rec", "cls"], ...]
    rounded_on: _Positive
    seed: Annotated[int, msgspec.Meta(ge=0)]
    windows: _Positive
    window_px: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]
    lines: _Positive
    line_px: Annotated[int, msgspec.Meta(ge=32, multiple_of=32)]
    percentile: Annotated[float, msgspec.Meta(gt=0.9, le=1.0)]
    float_share: _Share
    max_mismatch: _Share
    pages: _Positive
    gate: Gate
    prune: Pruning | None = None
    thin: Thinning | None = None
    train: Training | None = None
    stored: tuple[Literal["det", "rec", "cls"], ...] = ()

    @property
    def changed(self) -> frozenset[str]:
        """Models whose weights are no longer those of the float bundle."""
        return frozenset((*self.models, *self.stored))

    def sparse_from(self, model: str) -> float:
        """Return the share of zeros from which Paddle Lite is to skip them in a layer's filters; 0 for never."""
        return self.thin.zeros * _SPARSE if self.thin is not None and model in self.thin.models else 0.0

    def __post_init__(self) -> None:
        """Refuse a method without its settings, and a model that is to be in float and in int8."""
        if both := set(self.models) & set(self.stored):
            raise ValueError(f"{' and '.join(sorted(both))} in models and in stored")
        if self.method == "qat" and self.train is None:
            raise ValueError('method = "qat" needs [compress.train]')


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `models/<name>.toml`."""

    name: _Word
    version: _Word
    max_difference: Annotated[float, msgspec.Meta(gt=0.0, le=0.01)]
    package: Package
    det: DetectorSection
    rec: RecognizerSection
    cls: ClassifierSection | None = None
    compress: Compression | None = None

    def sections(self) -> dict[str, Section]:
        """Return the models this recipe makes, by name."""
        return {name: section for name in ("det", "rec", "cls") if (section := getattr(self, name)) is not None}


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe; `base` names another whose settings it takes where it has none of its own.

    Raises:
        ConfigError: missing, not TOML, or a key is unknown, absent or out of range; the message names it.
    """
    raw = _decode(path)
    if isinstance(base := raw.pop("base", None), str):
        raw = {**_decode(path.parent / base), **raw}
    try:
        return msgspec.convert(raw, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), raw)}") from error


def _decode(path: Path) -> dict[str, Any]:
    try:
        raw: dict[str, Any] = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a recipe is a file such as models/ppocr-v4.toml") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return raw


def _explain(message: str, raw: object) -> str:
    """Return msgspec's message with the key first and the value that was found."""
    told, _, place = message.partition(" - at `$")
    keys = re.findall(r"[^.\[\]`]+", place)
    value = raw
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value.get(key) if isinstance(value, dict) else None
    name = ".".join(keys) or "recipe"
    return f"{name}: {told}" if isinstance(value, dict) or not keys else f"{name} = {value!r}: {told}"
