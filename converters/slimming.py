"""The stages that take channels and single values from a model, and build what is left in float for x86."""

from __future__ import annotations

from pathlib import Path

import msgspec

from converters import native
from converters.graph import Graph
from converters.model import Model, graph_files
from converters.passes import rewrite
from converters.pictures import teaching
from converters.recipe import Compression, Pruning, Thinning
from converters.stages import Stages
from converters.targets import X86

TIMEOUT_S = 3600.0


class Slimmed(msgspec.Struct, frozen=True):
    """What became of one model.

    Attributes:
        channels: of convolutions that lost some, before and after, by the name of their filters.
        multiply_adds: of one run at the measured shape, of the source model and of the pruned one; None where no
            channels were to go.
        zeros: share of zeros in the filters that got some, by layer.
        slim: the pruned model in float, built for x86; empty when nothing was pruned.
    """

    channels: dict[str, tuple[int, int]] = {}
    multiply_adds: tuple[int, int] | None = None
    zeros: dict[str, float] = {}
    slim: str = ""


def slim(model: Model, settings: Compression, stages: Stages) -> tuple[Model, Slimmed]:
    """Prune a model as far as the recipe wants that; returns it as its next stages find it, and what was done.

    Raises:
        ConversionError: Paddle cannot run it, or PaddleSlim cannot cut it.
    """
    done = Slimmed()
    if settings.prune is not None and model.name in settings.prune.models:
        model, done = _prune(model, settings.prune, stages)
    if settings.thin is not None and model.name in settings.thin.models:
        model, zeros = _thin(model, settings.thin, settings.rounded_on, stages)
        done = msgspec.structs.replace(done, zeros=zeros)
    if done != Slimmed():
        done = msgspec.structs.replace(done, slim=str(_build(model, stages)))
    return model, done


def _prune(model: Model, settings: Pruning, stages: Stages) -> tuple[Model, Slimmed]:
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
    channels = {name: (before, after) for name, (before, after) in found["channels"].items()}
    return pruned, Slimmed(channels, (whole, found["multiply_adds"]))


def _thin(model: Model, settings: Thinning, count: int, stages: Stages) -> tuple[Model, dict[str, float]]:
    """Return a model with zeros, and their share by layer."""
    thin, looked = msgspec.structs.replace(model, stage="thin"), {"count": count, "zeros": settings.zeros}
    arguments = {"source": model.current, "pictures": teaching(model), "out": thin.current, **looked, **model.numbers}
    found = stages.run(
        f"thin {model.name}",
        [model.digest(teaching(model)), looked],
        graph_files(thin.current),
        lambda: native.run("sparsity.sparsify", model.name, timeout_s=TIMEOUT_S, progress=stages.progress, **arguments),
        lambda zeros: f"{len(zeros)} layers with {min(zeros.values(), default=0.0):.0%} of zeros or more",
    )
    return thin, dict(found)


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
