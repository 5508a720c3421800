"""ModelBundle: one directory with models, dictionary and manifest, verified before any native code sees it."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from agent.errors import BundleError

SCHEMA = 1
MANIFEST = "bundle.toml"
MAX_MANIFEST_BYTES = 1 << 20
MAX_CHARACTERS_BYTES = 8 << 20

ModelName = Literal["det", "rec", "cls"]
MODELS: tuple[ModelName, ...] = ("det", "rec", "cls")
Target = Literal["x86_64", "aarch64", "portable", "paddle"]

_Deviation = Annotated[float, msgspec.Meta(gt=0.0)]
_Triple = tuple[float, float, float]
_Deviations = tuple[_Deviation, _Deviation, _Deviation]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]  # pixels
_Files = dict[str, Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]]  # engine name -> its files
_Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must be."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, msgspec.Meta(ge=0)]


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a model came from."""

    name: str
    sha256: str  # of inference.pdmodel followed by inference.pdiparams


class Detector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text detector: float32 (N, 3, H, W) -> text probability float32 (N, 1, H, W); H and W multiples of `multiple`.

    Thresholds are those of DB post-processing (Liao et al. 2020), in PP-OCR's names.
    """

    files: _Files
    source: Source
    mean: _Triple = (0.485, 0.456, 0.406)  # of pixel / 255, in BGR order as PP-OCR feeds it
    std: _Deviations = (0.229, 0.224, 0.225)
    multiple: Annotated[int, msgspec.Meta(ge=1, le=128)] = 32
    threshold: _Share = 0.3
    box_threshold: _Share = 0.5
    unclip_ratio: Annotated[float, msgspec.Meta(gt=0.0, le=5.0)] = 1.6


class Recognizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Text recogniser: float32 (N, 3, height, W) -> class probabilities float32 (N, T, classes), CTC blank first."""

    files: _Files
    source: Source
    characters: str
    classes: _Positive
    height: _Side = 48
    mean: _Triple = (0.5, 0.5, 0.5)
    std: _Deviations = (0.5, 0.5, 0.5)
    squeeze: Annotated[float, msgspec.Meta(gt=0.3, le=1.0)] = 0.85  # share of a line's natural width it is fed with
    width_step: _Side = 32
    max_width: Annotated[int, msgspec.Meta(ge=1, le=65_536)] = 3200


class Classifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Line direction classifier: float32 (N, 3, height, width) -> probabilities float32 (N, 2) of 0 and 180 degrees."""

    files: _Files
    source: Source
    height: _Side = 48
    width: _Side = 192
    mean: _Triple = (0.5, 0.5, 0.5)
    std: _Deviations = (0.5, 0.5, 0.5)
    threshold: _Share = 0.5  # a badly read line is read again the other way round above this


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of the conversion's table. Milliseconds and megabytes are of the machine that converted."""

    model: ModelName
    variant: str  # "source" or "bundle"
    engine: str
    shape: tuple[int, int, int, int]
    bytes: int
    ms: float | None = None
    resident_mb: float | None = None
    max_difference: float | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `bundle.toml`."""

    schema: int
    name: str
    version: str
    target: Target
    precision: Literal["fp32", "int8"]
    made_by: str
    files: dict[str, FileEntry]
    det: Detector
    rec: Recognizer
    cls: Classifier | None = None
    measured: tuple[Measured, ...] = ()


class ModelBundle:
    """A verified model directory.

    Attributes:
        path: the directory.
        manifest: what `bundle.toml` says.
        characters: the text of each class of the recogniser; index 0 is the CTC blank "".
        digest: sha256 of `bundle.toml`, which names the hash of every other file.
    """

    def __init__(self, path: Path, manifest: Manifest, characters: tuple[str, ...], digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.characters = characters
        self.digest = digest

    @property
    def label(self) -> str:
        """Name, version, target and precision in one word, as results carry it."""
        m = self.manifest
        return f"{m.name}-{m.version}-{m.target}-{m.precision}"

    def spec(self, model: ModelName) -> Detector | Recognizer | Classifier:
        """Return the manifest's section of a model.

        Raises:
            BundleError: the bundle has no such model.
        """
        found: Detector | Recognizer | Classifier | None = getattr(self.manifest, model)
        if found is None:
            raise BundleError(f"{self.path}: the bundle holds no {model} model")
        return found

    def model_files(self, model: ModelName, engine: str) -> tuple[Path, ...]:
        """Return the paths of a model's files for an engine; empty when the bundle has none for it."""
        return tuple(self.path / name for name in self.spec(model).files.get(engine, ()))

    @classmethod
    def load(cls, path: Path, *, machine: str | None = None) -> ModelBundle:
        """Read and verify a bundle: format, target, presence, size and sha256 of every file, dictionary.

        Args:
            path: the directory.
            machine: processor the models will run on, as `platform.machine()` names it; default this one.

        Raises:
            BundleError: anything is not as the manifest says; no native code has run.
        """
        raw = _read(path / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = _parse(raw, path / MANIFEST)
        _check_target(manifest, path, machine or platform.machine())
        for name, entry in manifest.files.items():
            _check_file(path, name, entry)
        for model in MODELS:
            _check_listed(manifest, model, path)
        characters = _read_characters(path, manifest.rec)
        return cls(path, manifest, characters, hashlib.sha256(raw).hexdigest())


def file_entry(path: Path) -> FileEntry:
    """Return the manifest entry of a file."""
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as handle:
        return sha256_of_open(handle)


def sha256_of_open(handle: BinaryIO, progress: Callable[[], None] = lambda: None) -> str:
    """Return the sha256 of an open file from its beginning, read in pieces; `progress` is called after each."""
    handle.seek(0)
    digest = hashlib.sha256()
    while piece := handle.read(1 << 20):
        digest.update(piece)
        progress()
    return digest.hexdigest()


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `bundle.toml` into a directory, atomically."""
    temporary = path / (MANIFEST + ".partial")
    temporary.write_bytes(msgspec.toml.encode(_without_none(msgspec.to_builtins(manifest))))
    os.replace(temporary, path / MANIFEST)


def _without_none(value: object) -> object:
    """Return builtins without the None values, which TOML cannot say."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(item) for item in value]
    return value


def _read(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise BundleError(f"{path} is missing: make a bundle with `edge-ocr convert`, or name one with --bundle")
        if path.stat().st_size > limit:
            raise BundleError(f"{path}: larger than {limit} bytes; not a file of a model bundle")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error


def _parse(raw: bytes, path: Path) -> Manifest:
    class Head(msgspec.Struct):
        schema: int

    try:
        head = msgspec.toml.decode(raw, type=Head)
        if head.schema > SCHEMA:
            raise BundleError(
                f"{path}: bundle format {head.schema} is newer than this version reads ({SCHEMA}): update"
            )
        return msgspec.toml.decode(raw, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not a bundle manifest: {error}") from error


def _check_target(manifest: Manifest, path: Path, machine: str) -> None:
    aliases = {"amd64": "x86_64", "AMD64": "x86_64", "arm64": "aarch64"}
    here = aliases.get(machine, machine)
    if manifest.target in ("x86_64", "aarch64") and manifest.target != here:
        raise BundleError(
            f"{path}: made for {manifest.target}, this machine is {here}: convert with --target {here} or portable"
        )


def _check_file(path: Path, name: str, entry: FileEntry) -> None:
    file = path / name
    if os.path.basename(name) != name or name in ("", ".", "..", MANIFEST):
        raise BundleError(f"{path / MANIFEST}: file name {name!r} leaves the bundle")
    try:
        if not file.is_file():
            raise BundleError(f"{file}: missing from the bundle; copy or convert the bundle again")
        size = file.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{file}: {size} bytes, the manifest says {entry.bytes}; copy or convert it again")
        if sha256_of(file) != entry.sha256:
            raise BundleError(f"{file}: damaged (sha256 differs from the manifest); copy or convert it again")
    except OSError as error:
        raise BundleError(f"{file}: {error.strerror}") from error


def _check_listed(manifest: Manifest, model: str, path: Path) -> None:
    spec = getattr(manifest, model)
    if spec is None:
        return
    if spec.files.keys() != manifest.det.files.keys():
        raise BundleError(f"{path / MANIFEST}: {model} has files for other engines than det")
    wanted = [name for files in spec.files.values() for name in files]
    wanted += [spec.characters] if isinstance(spec, Recognizer) else []
    for name in wanted:
        if name not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: {model} names {name}, which has no sha256 under [files]")


def _read_characters(path: Path, rec: Recognizer) -> tuple[str, ...]:
    """Return class texts: CTC blank, the dictionary's lines, and a space where the model has one class more."""
    try:
        text = _read(path / rec.characters, MAX_CHARACTERS_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path / rec.characters}: not UTF-8") from error
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    characters = ("", *lines)
    if len(characters) == rec.classes - 1:
        characters = (*characters, " ")
    if len(characters) != rec.classes:
        raise BundleError(
            f"{path / rec.characters}: {len(lines)} characters do not fit a model of {rec.classes} classes"
        )
    return characters
