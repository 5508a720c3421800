"""Compression: one model from its rewritten graph in float to int8 files, in stages, with the proof of what was done.

The same int8 graph is built for ARM and for x86. The one for x86 runs here, so that what is measured on it holds for
both; it is compared with Paddle's simulation, because kernels can be wrong without a word. Weights that stay in float
are rounded to what a file holds in one byte (`storage`); in a model that the recipe only wants `stored`, all do.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import ConversionError
from converters import filters, native
from converters.graph import Graph
from converters.model import Model, digest_of, graph_files
from converters.passes import rewrite
from converters.pictures import Own, Pictures, checked, checked_count, teaching
from converters.quantize import QUANTIZED, layers_of, quantize
from converters.recipe import Compression
from converters.slimming import slim
from converters.stages import Stages
from converters.storage import round_stored
from converters.targets import INT8_X86

TIMEOUT_S = 3600.0
_MOST_WEIGHTS = 0.05
"""A layer with more than this share of all weights is not left in float: the size would show it."""
_INT8 = "2"  # paddle::lite_api::PrecisionType


class Compressed(msgspec.Struct, frozen=True):
    """What became of one model.

    Attributes:
        model: its name.
        layers: convolutions in int8.
        kept: those left in float, with the share of all layers' errors that each would make.
        error: how far the simulated int8 outputs are from the float ones (`agreement.distance`).
        built: how far the built model's are from the float ones.
        mismatch: how far the built model's are from the simulated ones.
        kernels: operators by the precision that Paddle Lite runs them in on ARM, such as "conv2d int8".
        int8_weights: values stored in one byte on ARM.
        float_weights: values stored in four there.
        twin: the file built for x86.
        errors: how far the output moves when a layer alone is in int8, by layer (`agreement.distance`).
        left: variance of a rounded layer's error, as a share of its output's, by layer; empty where none was rounded
            by its effect.
        channels: of convolutions that were pruned, before and after, by layer.
        multiply_adds: of one run at the measured shape, before and after pruning.
        zeros: share of zeros in the filters that got some, by layer.
        slim: the pruned model in float, built for x86; empty when nothing was pruned.
        trained: how far the output was from the float one's "before" and "after" training; empty without.
    """

    model: str
    layers: int
    kept: dict[str, float]
    error: float
    built: float
    mismatch: float
    kernels: dict[str, int]
    int8_weights: int
    float_weights: int
    twin: str
    errors: dict[str, float]
    left: dict[str, float]
    channels: dict[str, tuple[int, int]] = {}
    multiply_adds: tuple[int, int] | None = None
    zeros: dict[str, float] = {}
    slim: str = ""
    trained: dict[str, float] = {}


class Compressor:
    """Takes models through the stages of int8."""

    def __init__(self, settings: Compression, stages: Stages, own: Own) -> None:
        """Remember settings, where stages are kept, and the user's own pictures."""
        self._settings = settings
        self._stages = stages
        self._pictures = Pictures(settings, stages, own)

    def run(self, model: Model) -> Compressed:
        """Leave int8 graphs in `model.ready("aarch64")` and `model.ready("x86_64")`, and say what was done.

        Raises:
            ConversionError: Paddle Lite runs a layer in float, or its kernels do not do what the simulation does.
        """
        self._pictures.draw(model)
        model, slimmed = slim(model, self._settings, self._stages)
        errors: dict[str, float] = {}
        kept: dict[str, float] = {}
        found = filters.NONE
        if model.name in self._settings.models:
            model = self._smooth(model)
            self._scale(model)
            errors = self._weigh(model)
            kept = self._choose(model, errors)
            found = filters.find(model, kept, self._settings, self._stages)
        counts = self._quantize(model, kept, found.file)
        self._build_twin(model)
        agreed = self._agree(model)
        return Compressed(
            model=model.name,
            layers=counts["layers"],
            kept=kept,
            error=agreed["error"],
            built=agreed["built"],
            mismatch=agreed["mismatch"],
            kernels=self._list_kernels(model, counts["layers"]),
            int8_weights=counts["int8_weights"],
            float_weights=counts["float_weights"],
            twin=str(_twin(model)),
            errors=errors,
            left=found.left,
            trained=found.trained,
            **msgspec.structs.asdict(slimmed),
        )

    # ------------------------------------------------------------------------------------------------ stages

    def _run(self, job: str, model: Model, **arguments: object) -> Any:
        """Run a job on a model in a process of its own, and show how far it is."""
        return native.run(job, model.name, timeout_s=TIMEOUT_S, progress=self._stages.progress, **arguments)

    def _smooth(self, model: Model) -> Model:
        """Return the model with channels of similar ranges, where the recipe wants that."""
        smoothed, settings = msgspec.structs.replace(model, stage="smooth"), self._settings
        if model.name not in settings.smoothed:
            return model
        looked = {"count": settings.rounded_on, "percentile": settings.percentile, **model.numbers}
        files = {"source": model.current, "pictures": teaching(model), "out": smoothed.current}
        self._stages.run(
            f"smooth {model.name}",
            [model.digest(), digest_of([teaching(model)]), looked],
            graph_files(smoothed.current),
            lambda: self._run("smoothing.smooth", model, **files, **looked),
            lambda counts: f"{sum(counts.values())} layers, {counts.get('added', 0)} operators added",
        )
        return smoothed

    def _scale(self, model: Model) -> None:
        """Find what each activation's steps stand for."""
        out, percentile = model.scales, self._settings.percentile
        arguments = {"source": model.current, "pictures": teaching(model), "percentile": percentile, **model.numbers}
        self._stages.run(
            f"calibrate {model.name}",
            [model.digest(), digest_of([teaching(model)]), percentile],
            [out],
            lambda: self._run("calibrate.calibrate", model, out=out, **arguments),
            lambda count: f"{count} activations",
        )

    def _weigh(self, model: Model) -> dict[str, float]:
        """Return how far the output moves when a layer alone is in int8, by layer."""
        arguments = {"source": model.current, "scales": model.scales, "pictures": checked(model)}
        arguments |= {"count": checked_count(model), **model.numbers}
        inputs = [model.digest(), digest_of([model.scales, checked(model)])]
        found = self._stages.run(
            f"weigh {model.name}",
            inputs,
            [],
            lambda: self._run("agreement.layer_errors", model, **arguments),
            lambda errors: f"{len(errors)} layers, each in int8 alone",
        )
        return dict(found)

    def _choose(self, model: Model, errors: dict[str, float]) -> dict[str, float]:
        """Return the layers that stay in float, with their share of the error: small ones that make much of it."""
        layers, total = layers_of(Graph.load(model.current)), sum(errors.values()) or 1.0
        large = _MOST_WEIGHTS * sum(layer.weights for layer in layers)
        shares = {layer.name: errors.get(layer.name, 0.0) / total for layer in layers if layer.weights <= large}
        return {name: round(share, 4) for name, share in shares.items() if share > self._settings.float_share}

    def _quantize(self, model: Model, kept: dict[str, float], file: Path | None) -> dict[str, int]:
        """Write the int8 graphs."""
        outputs = [file for target in ("aarch64", "x86_64") for file in graph_files(model.ready(target))]
        known = [model.scales] if model.name in self._settings.models else []

        def action() -> dict[str, int]:
            scales = json.loads(known[0].read_text(encoding="utf-8")) if known else {}
            graph = Graph.load(model.current)
            wanted = [layer for layer in layers_of(graph) if layer.name not in kept]
            count = quantize(graph, scales, wanted, filters.take(graph, wanted, file))
            stored = round_stored(graph)
            graph.save(model.ready("aarch64"))
            small, large = _weights(graph)
            rewrite(graph, INT8_X86)
            graph.save(model.ready("x86_64"))
            return {"layers": count, "int8_weights": small + stored, "float_weights": large - stored, "stored": stored}

        def told(counts: Any) -> str:
            return f"{counts['layers']} layers; {counts['stored']} weights of float in one byte"

        inputs = [model.digest(), digest_of([*known, *([file] if file else [])]), kept]
        return dict(self._stages.run(f"quantise {model.name}", inputs, outputs, action, told))

    def _build_twin(self, model: Model) -> None:
        """Build the model for x86; its file runs here."""
        source, out = model.ready("x86_64"), _twin(model)

        def action() -> int:
            out.parent.mkdir(parents=True, exist_ok=True)
            # Without the memory plan of `native.build_lite`: int8 kernels give wrong numbers with it.
            how = {"target": "x86_64", "plan": False, "compacted": True}
            native.run("build_lite", model.name, source=source, out=out.with_suffix(""), **how)
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
                pictures=checked(model),
                count=checked_count(model),
                **model.numbers,
            )
            error, share = agreed["error"], self._settings.max_mismatch
            for what, found, bound in (
                ("its simulation", agreed["mismatch"], share * error + _NOISE),
                ("the float one", agreed["built"], _FARTHER * error + _NOISE),
            ):
                if not found <= bound:
                    raise ConversionError(
                        f"{model.name}: the built int8 model differs from {what} by {found:.2g}, more than {bound:.2g} "
                        f"(its simulation differs by {error:.2g}; max_mismatch = {share:g}): no bundle is written"
                    )
            return dict(agreed)

        def told(agreed: Any) -> str:
            return (
                f"int8 moves the output by {agreed['error']:.2g} in the simulation, by {agreed['built']:.2g} as built"
            )

        inputs = [digest_of([_twin(model), checked(model)]), self._settings.max_mismatch]
        return dict(self._stages.run(f"agree {model.name}", inputs, [], action, told))

    def _list_kernels(self, model: Model, layers: int) -> dict[str, int]:
        """Count the kernels Paddle Lite picks on ARM; refuse a model whose layers do not run in int8."""
        how = {"target": "aarch64", "sparse_from": self._settings.sparse_from(model.name)}

        def action() -> dict[str, int]:
            source, out = model.ready("aarch64"), model.work / "kernels"
            counts = kernel_counts(native.run("list_kernels", model.name, source=source, out=out, **how))
            found = sum(counts.get(f"{kind} int8", 0) for kind in (*QUANTIZED, "sparse_conv2d"))
            if found < layers:
                raise ConversionError(f"{model.name}: Paddle Lite runs {found} of {layers} int8 layers in int8 on ARM")
            return counts

        def told(counts: Any) -> str:
            return f"{layers} int8 convolutions, {counts.get('calib', 0)} changes of type"

        inputs = digest_of(graph_files(model.ready("aarch64")))
        return dict(self._stages.run(f"kernels {model.name}", inputs, [], action, told))


_NOISE = 1e-5
"""Difference of the runtimes on a model in float."""
_FARTHER = 1.25
"""So many times its simulation's distance from float the built model's may be: roundings that only fall the other way
lead no farther away (0.98 in the recogniser, 1.05 in the detector), a wrong kernel does."""


def kernel_counts(kernels: list[str]) -> dict[str, int]:
    """Return how many kernels there are by operator and, for those with weights, precision."""
    counts: dict[str, int] = {}
    for kernel in kernels:
        operator, _, _, precision, *_ = [*kernel.split("/"), "", "", "", ""]
        weighted = re.search("conv|fc|mul", operator) and operator != "elementwise_mul"
        name = f"{operator} {'int8' if precision == _INT8 else 'float'}" if weighted else operator
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _weights(graph: Graph) -> tuple[int, int]:
    """Return how many values are stored in one byte, and in four."""
    sizes = [(value.itemsize, value.size) for value in graph.params.values()]
    return sum(size for item, size in sizes if item == 1), sum(size for item, size in sizes if item == 4)


def _twin(model: Model) -> Path:
    return model.work / "twin" / f"{model.name}.nb"
