"""The stages that find the filters of int8 layers: rounded by their effect, then trained where the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from converters import native
from converters.graph import Graph, bias_of
from converters.model import Model
from converters.pictures import checked, teaching
from converters.quantize import Filters, Layer
from converters.recipe import Compression
from converters.stages import Stages

TIMEOUT_S = 4 * 3600.0


class Found(msgspec.Struct, frozen=True):
    """Filters of one model.

    Attributes:
        file: with filters, scales and what biases grow by; None where each value is simply the nearest step.
        left: variance of a rounded layer's error, as a share of its output's, by layer.
        trained: how far the output was from the float one's "before" and "after" training; empty without.
    """

    file: Path | None
    left: dict[str, float]
    trained: dict[str, float]


NONE = Found(None, {}, {})
"""Of a model without layers in int8."""


def find(model: Model, kept: Mapping[str, float], settings: Compression, stages: Stages) -> Found:
    """Find a model's filters in int8.

    Args:
        model: which.
        kept: the layers that stay in float.
        settings: of the recipe.
        stages: where stages are kept.
    """
    file, left, trained = None, {}, {}
    if model.name in settings.rounded:
        file = model.work / "filters.npz"
        left = _round(model, list(kept), settings, stages, file)
    if settings.method == "qat" and settings.train is not None and model.name in settings.train.models:
        file, trained = _train(model, list(kept), settings, stages, file)
    return Found(file, left, trained)


def take(graph: Graph, layers: Sequence[Layer], file: Path | None) -> dict[str, Filters]:
    """Return the filters that a file holds, and add to the graph's biases what it asks for."""
    found: dict[str, Filters] = {}
    if file is None:
        return found
    with np.load(file) as archive:
        for layer in layers:
            if f"{layer.name}.steps" in archive:
                found[layer.name] = Filters(archive[f"{layer.name}.steps"], archive[f"{layer.name}.scales"])
                shift_bias(graph, layer, archive[f"{layer.name}.shift"])
    return found


def shift_bias(graph: Graph, layer: Layer, shift: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """Let a layer's bias grow, where it has one of its own."""
    bias = bias_of(graph, layer.name, layer.shape[0])
    if bias:
        value = graph.params[bias]
        graph.params[bias] = (value + shift.reshape(value.shape)).astype(np.float32)


def _round(model: Model, kept: list[str], settings: Compression, stages: Stages, out: Path) -> dict[str, float]:
    """Round filters by their effect on each layer's output; returns what is left of error in each."""
    files = {"source": model.current, "scales": model.scales, "pictures": teaching(model), "out": out}
    found = stages.run(
        f"round {model.name}",
        [model.digest(model.scales, teaching(model)), kept, settings.rounded_on],
        [out],
        lambda: native.run(
            "rounding.round_layers",
            model.name,
            timeout_s=TIMEOUT_S,
            progress=stages.progress,
            count=settings.rounded_on,
            kept=kept,
            **files,
            **model.numbers,
        ),
        lambda left: f"{max(left.values(), default=0.0):.1%} of a layer's output lost at most",
    )
    return dict(found)


def _train(
    model: Model, kept: list[str], settings: Compression, stages: Stages, start: Path | None
) -> tuple[Path, dict[str, float]]:
    """Train filters and biases; returns the file they are in, and how far the output was before and after."""
    assert settings.train is not None  # `find` has seen to it
    out, lesson = model.work / "trained.npz", settings.train
    files = {"source": model.current, "scales": model.scales, "filters": start or "", "out": out}
    files |= {"pictures": teaching(model), "checked": checked(model)}
    numbers = {"steps": lesson.steps, "batch": lesson.batch, "rate": lesson.rate, **model.numbers}
    numbers["size"] = lesson.crop_px if model.name == "det" else 0
    given = [file for file in files.values() if isinstance(file, Path) and file.is_file() and file != out]
    found = stages.run(
        f"train {model.name}",
        [model.digest(*given), kept, numbers],
        [out],
        lambda: native.run(
            "training.train",
            model.name,
            timeout_s=TIMEOUT_S,
            progress=stages.progress,
            kept=kept,
            **files,
            **numbers,
        ),
        lambda moved: f"int8 moves the output by {moved['after']:.3g}, {moved['before']:.3g} before training",
    )
    return out, dict(found)
