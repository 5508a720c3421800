"""Compression: one model from its rewritten graph in float to int8 files, in stages, with the proof of what was done.

The same int8 graph is built for ARM and for x86. The one for x86 runs here, so that what is measured on it holds for
both; it is compared with Paddle's simulation, because kernels can be wrong without a word.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.errors import ConversionError
from converters import native
from converters.graph import Graph, bias_of
from converters.model import Model, digest_of, graph_files
from converters.passes import rewrite
from converters.quantize import Filters, Layer, layers_of, quantize
from converters.recipe import ClassifierSection, Compression
from converters.stages import Stages
from converters.targets import INT8_X86

TIMEOUT_S = 3600.0
CHECKED = 6
"""Pictures on which layers, and the built model, are looked at."""

_FIRST_CHECKED = 500_000_000
"""Index of the first of them, beyond those that calibrate."""
_MOST_WEIGHTS = 0.05
"""A layer with more than this share of all weights is not left in float: the size would show it."""
_INT8 = "2"  # paddle::lite_api::PrecisionType


class Compressed(msgspec.Struct, frozen=True):
    """What became of one model.

    Attributes:
        model: its name.
        layers: convolutions in int8.
        kept: those left in float, with the share of all layers' errors that each would make.
        error: how far the int8 outputs are from the float ones (`agreement.distance`).
        mismatch: how far the built model's outputs are from the simulation's.
        kernels: operators by the precision that Paddle Lite runs them in on ARM, such as "conv2d int8".
        int8_weights: values stored in one byte.
        float_weights: values stored in four.
        twin: the file built for x86.
        errors: how far the output moves when a layer alone is in int8, by layer (`agreement.distance`).
        left: variance of a rounded layer's error, as a share of its output's, by layer; empty where none was rounded
            by its effect.
        channels: of convolutions that were pruned, before and after, by layer.
        multiply_adds: of one run at the measured shape, before and after pruning.
        slim: the pruned model in float, built for x86; empty when nothing was pruned.
    """

    model: str
    layers: int
    kept: dict[str, float]
    error: float
    mismatch: float
    kernels: dict[str, int]
    int8_weights: int
    float_weights: int
    twin: str
    errors: dict[str, float]
    left: dict[str, float]
    channels: dict[str, tuple[int, int]] = {}
    multiply_adds: tuple[int, int] | None = None
    slim: str = ""


class Compressor:
    """Takes models through the stages of int8."""

    def __init__(self, settings: Compression, stages: Stages) -> None:
        """Remember settings and where stages are kept."""
        self._settings = settings
        self._stages = stages

    def run(self, model: Model) -> Compressed:
        """Leave int8 graphs in `model.ready("aarch64")` and `model.ready("x86_64")`, and say what was done.

        Raises:
            ConversionError: Paddle Lite runs a layer in float, or its kernels do not do what the simulation does.
        """
        self._draw(model)
        self._scale(model)
        errors = self._weigh(model)
        kept = self._choose(model, errors)
        left = self._round(model, kept) if model.name in self._settings.rounded else {}
        counts = self._quantize(model, kept)
        self._build_twin(model)
        agreed = self._agree(model)
        return Compressed(
            model=model.name,
            layers=counts["layers"],
            kept=kept,
            error=agreed["error"],
            mismatch=agreed["mismatch"],
            kernels=self._list_kernels(model, counts["layers"]),
            int8_weights=counts["int8_weights"],
            float_weights=counts["float_weights"],
            twin=str(_twin(model)),
            errors=errors,
            left=left,
        )

    # ------------------------------------------------------------------------------------------------ stages

    def _draw(self, model: Model) -> None:
        """Draw pictures to calibrate on, and a few others to look at the result on."""
        count, size = self._count_and_size(model)
        self._draw_some(f"draw {model.name}", model, _pictures(model), count=count, size=size, first=0)
        more = CHECKED * _times(model)
        self._draw_some(f"draw more {model.name}", model, _checked(model), count=more, size=size, first=_FIRST_CHECKED)

    def _draw_some(self, stage: str, model: Model, out: Path, **which: int) -> None:
        arguments = {"kind": model.name, "seed": self._settings.seed, **which}
        self._stages.run(
            stage,
            [arguments, _drawing_code()],
            [out],
            lambda: native.run("calibrate.draw", model.name, timeout_s=TIMEOUT_S, out=out, **arguments),
            lambda drawn: f"{drawn} pictures",
        )

    def _count_and_size(self, model: Model) -> tuple[int, int]:
        settings = self._settings
        if model.name == "det":
            return settings.windows, settings.window_px
        width = model.section.width if isinstance(model.section, ClassifierSection) else settings.line_px
        return settings.lines, width

    def _scale(self, model: Model) -> None:
        """Find what each activation's steps stand for."""
        out, percentile = _scales(model), self._settings.percentile
        arguments = {"source": model.current, "pictures": _pictures(model), "percentile": percentile, **_numbers(model)}
        self._stages.run(
            f"calibrate {model.name}",
            [_digest(model), digest_of([_pictures(model)]), percentile],
            [out],
            lambda: native.run("calibrate.calibrate", model.name, timeout_s=TIMEOUT_S, out=out, **arguments),
            lambda count: f"{count} activations",
        )

    def _weigh(self, model: Model) -> dict[str, float]:
        """Return how far the output moves when a layer alone is in int8, by layer."""
        arguments = {"source": model.current, "scales": _scales(model), "pictures": _checked(model)}
        arguments |= {"count": CHECKED * _times(model), **_numbers(model)}
        inputs = [_digest(model), digest_of([_scales(model), _checked(model)])]
        found = self._stages.run(
            f"weigh {model.name}",
            inputs,
            [],
            lambda: native.run("agreement.layer_errors", model.name, timeout_s=TIMEOUT_S, **arguments),
            lambda errors: f"{len(errors)} layers, each in int8 alone",
        )
        return dict(found)

    def _choose(self, model: Model, errors: dict[str, float]) -> dict[str, float]:
        """Return the layers that stay in float, with their share of the error: small ones that make much of it."""
        layers, total = layers_of(Graph.load(model.current)), sum(errors.values()) or 1.0
        large = _MOST_WEIGHTS * sum(layer.weights for layer in layers)
        shares = {layer.name: errors.get(layer.name, 0.0) / total for layer in layers if layer.weights <= large}
        return {name: round(share, 4) for name, share in shares.items() if share > self._settings.float_share}

    def _round(self, model: Model, kept: dict[str, float]) -> dict[str, float]:
        """Round filters by their effect on each layer's output; returns what is left of error in each."""
        arguments = {"source": model.current, "scales": _scales(model), "pictures": _pictures(model), "kept": [*kept]}
        arguments |= {"count": self._settings.rounded_on, "out": _filters(model), **_numbers(model)}
        found = self._stages.run(
            f"round {model.name}",
            [_digest(model), digest_of([_scales(model), _pictures(model)]), kept, self._settings.rounded_on],
            [_filters(model)],
            lambda: native.run("rounding.round_layers", model.name, timeout_s=TIMEOUT_S, **arguments),
            lambda left: f"{max(left.values(), default=0.0):.1%} of a layer's output lost at most",
        )
        return dict(found)

    def _quantize(self, model: Model, kept: dict[str, float]) -> dict[str, int]:
        """Write the int8 graphs."""
        rounded = model.name in self._settings.rounded
        outputs = [file for target in ("aarch64", "x86_64") for file in graph_files(model.ready(target))]

        def action() -> dict[str, int]:
            scales = json.loads(_scales(model).read_text(encoding="utf-8"))
            graph = Graph.load(model.current)
            wanted = [layer for layer in layers_of(graph) if layer.name not in kept]
            filters = _use_rounded(graph, wanted, _filters(model)) if rounded else {}
            count = quantize(graph, scales, wanted, filters)
            graph.save(model.ready("aarch64"))
            small, large = _weights(graph)
            rewrite(graph, INT8_X86)
            graph.save(model.ready("x86_64"))
            return {"layers": count, "int8_weights": small, "float_weights": large}

        inputs = [_digest(model), digest_of([_scales(model), *([_filters(model)] if rounded else [])]), kept]
        stage = f"quantise {model.name}"
        return dict(self._stages.run(stage, inputs, outputs, action, lambda counts: f"{counts['layers']} layers"))

    def _build_twin(self, model: Model) -> None:
        """Build the model for x86; its file runs here."""
        source, out = model.ready("x86_64"), _twin(model)

        def action() -> int:
            out.parent.mkdir(parents=True, exist_ok=True)
            # Without the memory plan of `native.build_lite`: int8 kernels give wrong numbers with it.
            native.run("build_lite", model.name, source=source, out=out.with_suffix(""), target="x86_64", plan=False)
            return out.stat().st_size

        inputs = digest_of(graph_files(source))
        self._stages.run(f"twin {model.name}", inputs, [out], action, lambda size: f"{size / 1e6:.1f} MB")

    def _agree(self, model: Model) -> dict[str, float]:
        """Compare float, simulation and built model; refuse one whose kernels do something else."""

        def action() -> dict[str, float]:
            agreed = native.run(
                "agreement.agreement",
                model.name,
                timeout_s=TIMEOUT_S,
                source=model.current,
                simulated=model.ready("aarch64"),
                twin=_twin(model),
                pictures=_checked(model),
                count=CHECKED * _times(model),
                **_numbers(model),
            )
            bound = self._settings.max_mismatch * agreed["error"] + _NOISE
            if not agreed["mismatch"] <= bound:
                raise ConversionError(
                    f"{model.name}: the built int8 model differs from its simulation by {agreed['mismatch']:.2g}, more "
                    f"than {bound:.2g} (max_mismatch = {self._settings.max_mismatch:g}): no bundle is written"
                )
            return dict(agreed)

        def told(agreed: Any) -> str:
            return f"int8 moves the output by {agreed['error']:.2g}, the kernels by {agreed['mismatch']:.2g} more"

        inputs = [digest_of([_twin(model), _checked(model)]), self._settings.max_mismatch]
        return dict(self._stages.run(f"agree {model.name}", inputs, [], action, told))

    def _list_kernels(self, model: Model, layers: int) -> dict[str, int]:
        """Count the kernels Paddle Lite picks on ARM; refuse a model whose layers do not run in int8."""

        def action() -> dict[str, int]:
            source, out = model.ready("aarch64"), model.work / "kernels"
            counts = kernel_counts(native.run("list_kernels", model.name, source=source, out=out, target="aarch64"))
            found = sum(counts.get(f"{kind} int8", 0) for kind in ("conv2d", "depthwise_conv2d"))
            if found < layers:
                raise ConversionError(f"{model.name}: Paddle Lite runs {found} of {layers} int8 layers in int8 on ARM")
            return counts

        def told(counts: Any) -> str:
            return f"{layers} int8 convolutions, {counts.get('calib', 0)} changes of type"

        inputs = digest_of(graph_files(model.ready("aarch64")))
        return dict(self._stages.run(f"kernels {model.name}", inputs, [], action, told))


_NOISE = 1e-5
"""Difference of the runtimes on a model in float."""


def kernel_counts(kernels: list[str]) -> dict[str, int]:
    """Return how many kernels there are by operator and, for those with weights, precision."""
    counts: dict[str, int] = {}
    for kernel in kernels:
        operator, _, _, precision, *_ = [*kernel.split("/"), "", "", "", ""]
        weighted = re.search("conv|fc|mul", operator) and operator != "elementwise_mul"
        name = f"{operator} {'int8' if precision == _INT8 else 'float'}" if weighted else operator
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _use_rounded(graph: Graph, layers: list[Layer], file: Path) -> dict[str, Filters]:
    """Return the filters that `rounding` has left in a file, and add to the biases what it asks for."""
    found = {}
    with np.load(file) as archive:
        for layer in layers:
            if f"{layer.name}.steps" in archive:
                found[layer.name] = Filters(archive[f"{layer.name}.steps"], archive[f"{layer.name}.scales"])
                bias = bias_of(graph, layer.name, layer.shape[0])
                if bias:
                    value = graph.params[bias]
                    shift = archive[f"{layer.name}.shift"].reshape(value.shape)
                    graph.params[bias] = (value + shift).astype(np.float32)
    return found


def _drawing_code() -> str:
    here = Path(__file__).parent
    return digest_of([here / "dataset.py", *sorted((here / "drawing").glob("*.*"))])


def _weights(graph: Graph) -> tuple[int, int]:
    """Return how many values are stored in one byte, and in four."""
    sizes = [(value.itemsize, value.size) for value in graph.params.values()]
    return sum(size for item, size in sizes if item == 1), sum(size for item, size in sizes if item == 4)


def _numbers(model: Model) -> dict[str, Any]:
    return {"mean": model.section.mean, "std": model.section.std}


def _times(model: Model) -> int:
    """Return how many lines count as much as one window."""
    return 1 if model.name == "det" else 4


def _digest(model: Model) -> str:
    return digest_of(graph_files(model.current))


def _pictures(model: Model) -> Path:
    return model.work / "pictures.npy"


def _checked(model: Model) -> Path:
    return model.work / "checked.npy"


def _scales(model: Model) -> Path:
    return model.work / "scales.json"


def _filters(model: Model) -> Path:
    return model.work / "filters.npz"


def _twin(model: Model) -> Path:
    return model.work / "twin" / f"{model.name}.nb"
