"""The stages of a conversion: rewrite, build, run beside the source, check and measure; one model after the other."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.bundle import Measured, Target
from agent.errors import ConversionError
from converters import native
from converters.compress import Compressed, Compressor
from converters.graph import Graph
from converters.model import Model, digest_of, graph_files, open_model, size_of
from converters.params import Array
from converters.passes import rewrite
from converters.pictures import Own
from converters.recipe import Recipe
from converters.signature import check_characters, check_output
from converters.sources import Sources
from converters.stages import Stages
from converters.targets import INT8, PLANS
from converters.writing import Content, Precision

_LITE_HOST, _LITE_ARM = "1", "4"  # paddle::lite_api::TargetType


class Aim(msgspec.Struct, frozen=True):
    """What a conversion is to make.

    Attributes:
        recipe: of the models.
        target: the machines the bundle is for.
        precision: of the weights.
        measured: time the models.
    """

    recipe: Recipe
    target: Target
    precision: Precision
    measured: bool


class Conversion:
    """The stages of one aim, each on one model.

    Attributes:
        stages: where they are kept.
        compressed: what became of the models that are in int8, once `run` is done.
    """

    def __init__(self, aim: Aim, stages: Stages, own: Own) -> None:
        """Remember what to make, where stages are kept, and the user's own pictures."""
        self.stages = stages
        self.compressed: list[Compressed] = []
        self._aim = aim
        self._plan = PLANS[aim.target]
        self._own = own

    def run(self, sources: Sources, work: Path) -> Content:
        """Return what goes into the bundle, checked and measured."""
        sections, suffixes = self._aim.recipe.sections(), self._plan.suffixes
        models = tuple(
            open_model(name, source, sections[name], work / name, suffixes) for name, source in sources.models.items()
        )
        for model in models:
            if model.name == "rec":
                check_characters(sources.characters, model.signature.classes)
        rows = [row for model in models for row in self._convert(model)]
        aim, recipe = self._aim, self._aim.recipe
        head = (recipe.name, recipe.version, aim.target, aim.precision, self._plan.engine)
        return Content(*head, models, sources.characters, tuple(rows))

    def _convert(self, model: Model) -> list[Measured]:
        """Take one model through its stages and return its rows of the table."""
        self._fold(model)
        difference = None
        if self._is_int8(model):
            assert self._aim.recipe.compress is not None  # `_precision` has seen to it
            self.compressed.append(Compressor(self._aim.recipe.compress, self.stages, self._own).run(model))
            self._build(model)
        else:
            self._build(model)
            self._refer(model)
            difference = self._check(model)
        return self._measure(model, difference) if self._aim.measured else []

    def _is_int8(self, model: Model) -> bool:
        """Say whether a model goes through the `Compressor`, be it for its weights' storage alone."""
        compress = self._aim.recipe.compress
        return self._aim.precision == "int8" and compress is not None and model.name in compress.changed

    def _fold(self, model: Model) -> None:
        """Write the rewritten graph."""

        def action() -> dict[str, int]:
            graph = Graph.load(model.source.directory)
            counts = rewrite(graph, INT8 if self._is_int8(model) else self._plan.passes)
            self._check_operators(graph, model)
            graph.save(model.folded)
            return {name: count for name, count in counts.items() if count}

        def told(counts: dict[str, int]) -> str:
            return f"{sum(counts.values())} rewrites"

        inputs = [model.sha256, self._aim.target, self._is_int8(model)]
        self.stages.run(f"fold {model.name}", inputs, graph_files(model.folded), action, told)

    def _check_operators(self, graph: Graph, model: Model) -> None:
        target = self._aim.target
        if self._plan.engine != "paddlelite":
            return
        unknown = sorted({op.type for op in graph.ops} - set(native.run("supported_operators", target=target)))
        if unknown:
            raise ConversionError(
                f"{model.source.directory}: Paddle Lite has no operator {', '.join(unknown)} on {target}; "
                "try --target portable"
            )

    def _build(self, model: Model) -> None:
        """Write the files of the target's runtime."""
        int8, settings = self._is_int8(model), self._aim.recipe.compress
        source = model.ready(self._aim.target) if int8 else model.folded
        sparse_from = settings.sparse_from(model.name) if settings is not None and int8 else 0.0

        def action() -> int:
            if self._plan.engine == "paddlelite":
                # The memory plan gives wrong numbers in int8.
                how: dict[str, Any] = {"plan": not int8, "compacted": int8, "sparse_from": sparse_from}
                self._build_lite(model.name, source, model.built[0], **how)
            elif self._plan.engine == "onnxruntime":
                native.run("build_onnx", model.name, source=model.folded, out=model.built[0])
            else:
                for folded, file in zip(graph_files(model.folded), model.built, strict=True):
                    shutil.copyfile(folded, file)
            return size_of(model.built)

        inputs = [digest_of(graph_files(source)), self._aim.target, sparse_from]
        self.stages.run(f"build {model.name}", inputs, model.built, action, lambda size: f"{size / 1e6:.1f} MB")

    def _build_lite(self, name: str, source: Path, file: Path, **how: object) -> None:
        native.run("build_lite", name, source=source, out=file.with_suffix(""), target=self._aim.target, **how)

    def _refer(self, model: Model) -> None:
        """Run the source model on every shape, for the others to be compared with."""
        out, shapes = _reference(model), model.shapes()

        def action() -> None:
            native.run("refer", model.name, source=model.source.directory, shapes=shapes, out=out)
            for shape, output in zip(shapes, _arrays(out), strict=True):
                check_output(model.name, shape, output.shape, str(model.source.directory))

        self.stages.run(f"run {model.name}", [model.sha256, shapes], [out], action, lambda _: f"{len(shapes)} shapes")

    def _check(self, model: Model) -> float:
        """Return the largest difference from the source model; refuse one that is too large."""
        emulated = self._aim.target == "aarch64"  # this machine cannot run it: its graph is run, its file looked at

        def action() -> float:
            if emulated:
                check_arm(model.folded, model.built[0], model.work / "arm")
                return self._difference(model, "refer", source=model.folded)
            return self._difference(model, "infer", engine=self._plan.engine, files=model.built)

        inputs = [
            digest_of([*model.built, *graph_files(model.folded), _reference(model)]),
            self._aim.recipe.max_difference,
        ]
        result = self.stages.run(f"check {model.name}", inputs, [], action, lambda d: f"largest difference {d:.1e}")
        return float(result)

    def _difference(self, model: Model, job: str, **what: object) -> float:
        out, shapes = model.work / "outputs.npz", model.shapes()
        native.run(job, model.name, shapes=shapes, out=out, **what)
        differences = map(difference, _arrays(_reference(model)), _arrays(out))
        largest, shape = max(zip(differences, shapes, strict=True))
        if largest > self._aim.recipe.max_difference:
            raise ConversionError(
                f"{model.name}: output at input {shape} differs from the source model's by {largest:.1e}, more than "
                f"max_difference = {self._aim.recipe.max_difference:g}: no bundle is written"
            )
        return largest

    def _measure(self, model: Model, largest: float | None) -> list[Measured]:
        """Return two rows: what a user has without this converter, and the bundle."""
        engine, source = self._plain(model)
        shape, inputs = model.shapes()[-1], [digest_of([*source, *model.built]), model.shapes()[-1]]

        def action() -> list[Any]:
            before = native.run("measure", model.name, engine=engine, files=source, shape=shape)
            after = native.run("measure", model.name, engine=self._plan.engine, files=model.built, shape=shape)
            return [before, after, self._plain_difference(model, engine, source)]

        before, after, plain = _NOT_MEASURED
        if self._aim.target != "aarch64" and not self._is_int8(model):
            before, after, plain = self.stages.run(f"measure {model.name}", inputs, [], action, _told_times)
        return [
            Measured(model.name, "source", engine, shape, size_of(source), **before, max_difference=plain),
            Measured(
                model.name, "bundle", self._plan.engine, shape, size_of(model.built), **after, max_difference=largest
            ),
        ]

    def _plain(self, model: Model) -> tuple[str, list[Path]]:
        """Return what a user has today: `paddle_lite_opt` alone, or the source on Paddle Inference."""
        if self._plan.engine != "paddlelite":
            return "paddle", model.source_files
        file = model.work / "plain.nb"

        def action() -> None:
            self._build_lite(model.name, model.source.directory, file, plan=False)

        self.stages.run(f"plain {model.name}", model.sha256, [file], action, lambda _: "straight from paddle_lite_opt")
        return "paddlelite", [file]

    def _plain_difference(self, model: Model, engine: str, files: Sequence[Path]) -> float:
        """Return how far today's way is from the source model, at the measured shape."""
        out = model.work / "plain.npz"
        native.run("infer", model.name, engine=engine, files=files, shapes=model.shapes()[-1:], out=out)
        return difference(_arrays(_reference(model))[-1], _arrays(out)[0])


_NOT_MEASURED: tuple[dict[str, Any], dict[str, Any], float | None] = (
    {"ms": None, "resident_mb": None},
    {"ms": None, "resident_mb": None},
    None,
)


def check_arm(folded: Path, built: Path, work: Path) -> None:
    """Check an ARM model as far as a machine that cannot run it can: kernels and weights.

    Args:
        folded: directory of the graph it was built from.
        built: the `.nb` file.
        work: a directory to be made.

    Raises:
        ConversionError: an operator is left to another processor, or weights are missing.
    """
    shutil.rmtree(work, ignore_errors=True)
    kernels = native.run("list_kernels", built.stem, source=folded, out=work, target="aarch64")
    foreign = [kernel for kernel in kernels if kernel.split("/")[2:3] not in ([_LITE_HOST], [_LITE_ARM])]
    if foreign or not kernels:
        raise ConversionError(f"{built.name}: operator {foreign[0] if foreign else '?'} has no kernel for ARM")
    weights = (work / "params").stat().st_size
    if built.stat().st_size < weights:
        raise ConversionError(f"{built.name}: {built.stat().st_size} bytes cannot hold {weights} bytes of weights")


def difference(wanted: Array, found: Array) -> float:
    """Return the largest difference of two outputs; infinite when they are not comparable."""
    if wanted.shape != found.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(wanted.astype(np.float64) - found).max())


def _reference(model: Model) -> Path:
    return model.work / "reference.npz"


def _arrays(file: Path) -> list[Array]:
    with np.load(file) as archive:
        return [archive[name] for name in archive.files]


def _told_times(rows: Sequence[Any]) -> str:
    before, after, _ = rows
    return f"{before['ms']:.1f} -> {after['ms']:.1f} ms, {before['resident_mb']:.0f} -> {after['resident_mb']:.0f} MB"
