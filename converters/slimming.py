"""The stages that take channels from a model: pruning it, and building what is left in float for x86."""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters import native
from converters.graph import Graph
from converters.model import Model, graph_files
from converters.passes import rewrite
from converters.pictures import teaching
from converters.recipe import Pruning
from converters.stages import Stages
from converters.targets import X86

TIMEOUT_S = 3600.0


class Slimmed(msgspec.Struct, frozen=True):
    """What became of one model.

    Attributes:
        channels: of convolutions that lost some, before and after, by the name of their filters.
        multiply_adds: of one run at the measured shape, of the source model and of the pruned one.
        file: the pruned model in float, built for x86.
    """

    channels: dict[str, tuple[int, int]]
    multiply_adds: tuple[int, int]
    file: str


def slim(model: Model, settings: Pruning, stages: Stages) -> tuple[Model, Slimmed]:
    """Prune a model; returns it as its next stages find it, and what was done.

    Raises:
        ConversionError: Paddle cannot run it, or PaddleSlim cannot cut it.
    """
    whole = _count(model, stages)
    pruned = msgspec.structs.replace(model, stage="slim")
    pictures, shape = teaching(model), model.section.measure_shape
    arguments = {"source": model.current, "pictures": pictures, "whole": whole, "shape": shape, "out": pruned.current}
    arguments |= {**model.numbers, "count": settings.crops}
    arguments |= {"size": settings.crop_px, "share": settings.multiply_adds, "most": settings.most}
    found = stages.run(
        f"prune {model.name}",
        [model.digest(pictures), msgspec.to_builtins(settings), whole],
        graph_files(pruned.current),
        lambda: native.run("pruning.prune", model.name, timeout_s=TIMEOUT_S, progress=stages.progress, **arguments),
        lambda result: f"{result['multiply_adds'] / whole:.2f} of the multiply-adds stay",
    )
    file = _build(pruned, stages)
    channels = {name: (before, after) for name, (before, after) in found["channels"].items()}
    return pruned, Slimmed(channels, (whole, found["multiply_adds"]), str(file))


def _count(model: Model, stages: Stages) -> int:
    """Return the source model's multiply-adds at the measured shape."""
    shape = model.section.measure_shape

    def action() -> int:
        source = model.source.directory
        return int(native.run("pruning.count_multiply_adds", model.name, source=source, shape=shape))

    counted = stages.run(
        f"count {model.name}", [model.sha256, shape], [], action, lambda count: f"{count / 1e6:.0f} M multiply-adds"
    )
    return int(counted)


def _build(model: Model, stages: Stages) -> Path:
    """Build the pruned model in float for x86."""
    ready, out = model.work / "slim-x86", model.work / "pruned" / f"{model.name}.nb"

    def action() -> int:
        graph = Graph.load(model.current)
        rewrite(graph, X86)
        graph.save(ready)
        out.parent.mkdir(parents=True, exist_ok=True)
        native.run("build_lite", model.name, source=ready, out=out.with_suffix(""), target="x86_64", plan=True)
        return out.stat().st_size

    inputs = model.digest()
    stages.run(f"pruned {model.name}", inputs, [out], action, lambda size: f"{size / 1e6:.1f} MB in float")
    return out
