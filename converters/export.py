"""Conversion: sources in, a checked and measured bundle out, in stages that are skipped when up to date."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

import agent
from agent import bundle as bundles
from agent.bundle import MANIFEST, Manifest, Measured, ModelBundle, ModelName, Target, file_entry, write_manifest
from agent.errors import ConfigError, ConversionError, EngineError
from converters import native
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph
from converters.passes import rewrite
from converters.recipe import Recipe, Section, load_recipe
from converters.signature import Signature, check_characters, check_output, signature
from converters.sources import SourceModel, Sources, collect, digest_of
from converters.stages import Stages, locked, tool_versions
from converters.targets import PLANS, Plan

BUILD = Path("models/build")
CHARACTERS = "characters.txt"
_LITE_HOST, _LITE_ARM = "1", "4"  # paddle::lite_api::TargetType


class Request(msgspec.Struct, frozen=True):
    """What the user asked for.

    Attributes:
        recipe: the recipe file.
        target: the machines the bundle is for.
        precision: of the weights.
        source: a directory with models of the user's own.
        characters: the dictionary of the user's recogniser.
        output: the bundle's directory; default below `models/build`.
        measured: time the models and print the table.
        force: do every stage again.
    """

    recipe: Path
    target: Target
    precision: Literal["fp32", "int8"] = "fp32"
    source: Path | None = None
    characters: Path | None = None
    output: Path | None = None
    measured: bool = True
    force: bool = False


class Model(msgspec.Struct, frozen=True):
    """One model on its way through the stages.

    Attributes:
        name: det, rec or cls.
        source: where it came from.
        sha256: of its two source files.
        section: its part of the recipe.
        signature: its declared inputs and outputs.
        work: a directory of its own.
    """

    name: ModelName
    source: SourceModel
    sha256: str
    section: Section
    signature: Signature
    work: Path

    def shapes(self) -> list[list[int]]:
        """Return the input shapes to check, the measured one last; what the graph fixes is kept."""
        return [self._fitted(shape) for shape in (*self.section.check_shapes, self.section.measure_shape)]

    def _fitted(self, shape: Sequence[int]) -> list[int]:
        height, width = self.signature.height, self.signature.width
        return [shape[0], shape[1], height if height > 0 else shape[2], width if width > 0 else shape[3]]


def convert(request: Request, say: Callable[[str], None] = print) -> ModelBundle:
    """Make a bundle, replace an older one at the same place, and return it as loaded.

    Args:
        request: what to make.
        say: takes the lines of progress and of the table.

    Raises:
        ConfigError: the recipe or an option is wrong.
        InputError: a path is missing.
        EngineError: a package is not installed.
        ConversionError: a model is not understood, or the result differs from its source.
    """
    recipe, plan = load_recipe(request.recipe), PLANS[request.target]
    _check_request(request, plan)
    label = f"{recipe.name}-{request.target}-{request.precision}"
    output = request.output or BUILD / label
    _check_output_place(output)
    work = BUILD / ".work" / label
    with locked(work):
        return _Conversion(request, recipe, plan, work, say).run(output)


def _check_request(request: Request, plan: Plan) -> None:
    if request.precision != "fp32":
        raise ConfigError(f"--precision {request.precision}: not yet; only fp32 bundles are made")
    missing = [name for name in plan.needs if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join("paddlepaddle" if name == "paddle" else name for name in missing)
        raise EngineError(f"--target {request.target} needs {names}, which is not installed here: pip install {names}")


def _check_output_place(output: Path) -> None:
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not (output / MANIFEST).is_file()):
        raise ConfigError(f"--output {output}: exists and is not a bundle; it is not replaced")


class _Conversion:
    """The stages of one request, in order."""

    def __init__(
        self, request: Request, recipe: Recipe, plan: Plan, work: Path, say: Callable[[str], None]
    ) -> None:
        self.request = request
        self.recipe = recipe
        self.plan = plan
        self.work = work
        self.say = say
        self.stages = Stages(work, say, force=request.force)

    def run(self, output: Path) -> ModelBundle:
        """Return the bundle written at `output`."""
        sources = collect(self.recipe, self.work / "source", self.request.source, self.request.characters)
        models = [self._model(name, source) for name, source in sources.models.items()]
        _check_dictionary(models, sources.characters)
        for model in models:
            self._fold(model)
            self._build(model)
        differences = {model.name: self._check(model) for model in models}
        rows = [row for model in models for row in self._measure(model, differences[model.name])]
        written = self._write(output, models, sources, rows)
        for line in table(rows):
            self.say(line)
        return written

    def _model(self, name: ModelName, source: SourceModel) -> Model:
        sha256 = digest_of([source.directory / MODEL_FILE, source.directory / PARAMS_FILE])
        told = signature(Graph.load(source.directory), str(source.directory))
        return Model(name, source, sha256, self.recipe.sections()[name], told, self.work / name)

    def _fold(self, model: Model) -> None:
        """Write the rewritten graph to `work/<model>/folded`."""
        folded = model.work / "folded"

        def action() -> dict[str, int]:
            graph = Graph.load(model.source.directory)
            counts = rewrite(graph, self.plan.passes)
            self._check_operators(graph, model)
            graph.save(folded)
            return counts

        files = [folded / MODEL_FILE, folded / PARAMS_FILE]
        inputs = [model.sha256, self.request.target]
        self.stages.run(f"fold {model.name}", inputs, files, action, lambda counts: f"{sum(counts.values())} rewrites")

    def _check_operators(self, graph: Graph, model: Model) -> None:
        if self.plan.engine != "paddlelite":
            return
        target = self.request.target
        known = set(native.run("supported_operators", target=target))
        unknown = sorted({op.type for op in graph.ops} - known)
        if unknown:
            raise ConversionError(
                f"{model.source.directory}: Paddle Lite has no operator {', '.join(unknown)} on {target}; try --target portable"
            )

    def _build(self, model: Model) -> None:
        """Write the target's files to `work/<model>`."""
        folded = model.work / "folded"
        files = self._files(model)
        inputs = digest_of([folded / MODEL_FILE, folded / PARAMS_FILE])
        self.stages.run(
            f"build {model.name}", inputs, files, lambda: self._build_files(folded, files), lambda size: f"{size / 1e6:.1f} MB"
        )

    def _build_files(self, folded: Path, files: Sequence[Path]) -> int:
        if self.plan.engine == "paddlelite":
            native.run("build_lite", source=folded, out=files[0].with_suffix(""), target=self.request.target, plan=True)
        elif self.plan.engine == "onnxruntime":
            native.run("build_onnx", source=folded, out=files[0])
        else:
            shutil.copyfile(folded / MODEL_FILE, files[0])
            shutil.copyfile(folded / PARAMS_FILE, files[1])
        return sum(file.stat().st_size for file in files)

    def _files(self, model: Model) -> list[Path]:
        return [model.work / f"{model.name}{suffix}" for suffix in self.plan.suffixes]

    def _runnable(self, model: Model) -> tuple[str, list[Path]]:
        """Return what this machine runs in place of the result: itself, or for another processor its graph."""
        if self.request.target == "aarch64":
            return "paddle", [model.work / "folded" / MODEL_FILE, model.work / "folded" / PARAMS_FILE]
        return self.plan.engine, self._files(model)

    def _check(self, model: Model) -> float:
        """Return the largest difference from the source model."""
        reference = model.work / "reference.npz"
        source = [model.source.directory / MODEL_FILE, model.source.directory / PARAMS_FILE]
        shapes = model.shapes()

        def refer() -> None:
            native.run("infer", engine="paddle", files=source, shapes=shapes, out=reference)

        def compare() -> float:
            engine, files = self._runnable(model)
            if self.request.target == "aarch64":
                check_arm(model.work / "folded", self._files(model)[0], model.work / "arm")
            return self._difference(model, engine, files)

        self.stages.run(f"source {model.name}", [model.sha256, shapes], [reference], refer, lambda _: f"{len(shapes)} shapes")
        inputs = [digest_of(self._files(model)), digest_of([reference]), self.recipe.max_difference]
        told: Callable[[float], str] = lambda difference: f"largest difference {difference:.1e}"
        return float(self.stages.run(f"check {model.name}", inputs, [], compare, told))

    def _difference(self, model: Model, engine: str, files: Sequence[Path]) -> float:
        """Return the largest difference of a model's outputs from the source's; refuse one that is too large."""
        out = model.work / "outputs.npz"
        native.run("infer", engine=engine, files=files, shapes=model.shapes(), out=out)
        largest = 0.0
        for shape, wanted, found in zip(model.shapes(), _arrays(model.work / "reference.npz"), _arrays(out), strict=True):
            check_output(model.name, shape, wanted.shape, str(model.source.directory))
            difference = float(np.abs(wanted - found).max()) if wanted.shape == found.shape else float("nan")
            if not difference <= self.recipe.max_difference:
                raise ConversionError(
                    f"{model.name}: output at input {tuple(shape)} differs from the source model's by {difference:.1e}, more "
                    f"than max_difference = {self.recipe.max_difference:g}: no bundle is written"
                )
            largest = max(largest, difference)
        return largest

    def _measure(self, model: Model, difference: float) -> list[Measured]:
        """Return the rows of the table: as today's tools make it, and as it is in the bundle."""
        files = self._files(model)
        shape = model.shapes()[-1]
        bundle = Measured(model.name, "bundle", self.plan.engine, tuple(shape), _size(files), None, None, difference)
        if not self.request.measured:
            return [bundle]
        engine, source = self._source_variant(model)
        inputs = [digest_of(files), model.sha256, shape]
        here = self.request.target != "aarch64"

        def action() -> list[dict[str, float]]:
            runs = [native.run("measure", engine=e, files=f, shape=shape) for e, f in ((engine, source), (self.plan.engine, files))]
            return [*runs, {"difference": self._plain_difference(model, engine, source)}]

        before, after, plain = self.stages.run(f"measure {model.name}", inputs, [], action, _told_times) if here else ({}, {}, {})
        return [
            Measured(model.name, "source", engine, tuple(shape), _size(source), before.get("ms"), before.get("resident_mb"), plain.get("difference")),
            msgspec.structs.replace(bundle, ms=after.get("ms"), resident_mb=after.get("resident_mb")),
        ]

    def _plain_difference(self, model: Model, engine: str, files: Sequence[Path]) -> float:
        """Return how far today's way is from the source model, at the measured shape."""
        out = model.work / "plain.npz"
        native.run("infer", engine=engine, files=files, shapes=model.shapes()[-1:], out=out)
        return float(np.abs(_arrays(out)[0] - _arrays(model.work / "reference.npz")[-1]).max())

    def _source_variant(self, model: Model) -> tuple[str, list[Path]]:
        """Return what a user has without this converter: `paddle_lite_opt` alone, or the source on Paddle Inference."""
        if self.plan.engine != "paddlelite":
            return "paddle", [model.source.directory / MODEL_FILE, model.source.directory / PARAMS_FILE]
        file = model.work / "source.nb"

        def action() -> None:
            native.run(
                "build_lite", source=model.source.directory, out=file.with_suffix(""), target=self.request.target, plan=False
            )

        self.stages.run(f"plain {model.name}", model.sha256, [file], action, lambda _: "straight from paddle_lite_opt")
        return "paddlelite", [file]

    def _write(self, output: Path, models: Sequence[Model], sources: Sources, rows: Sequence[Measured]) -> ModelBundle:
        """Write the bundle beside its place, check it there, then swap it in."""
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for model in models:
            for file in self._files(model):
                shutil.copyfile(file, partial / file.name)
        shutil.copyfile(sources.characters, partial / CHARACTERS)
        write_manifest(partial, self._manifest(partial, models, rows))
        machine = self.request.target if self.request.target in ("x86_64", "aarch64") else None
        ModelBundle.load(partial, machine=machine)
        swap(partial, output)
        self.say(f"{'write':<14} {output}")
        return ModelBundle.load(output, machine=machine)

    def _manifest(self, directory: Path, models: Sequence[Model], rows: Sequence[Measured]) -> Manifest:
        tools = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
        return Manifest(
            schema=bundles.SCHEMA,
            name=self.recipe.name,
            version=self.recipe.version,
            target=self.request.target,
            precision=self.request.precision,
            made_by=f"edge-ocr {agent.__version__} ({tools})",
            files={file.name: file_entry(file) for file in sorted(directory.iterdir())},
            measured=tuple(row for row in rows if row.ms is not None),
            **{model.name: self._entry(model) for model in models},
        )

    def _entry(self, model: Model) -> bundles.Detector | bundles.Recognizer | bundles.Classifier:
        kinds = {"det": bundles.Detector, "rec": bundles.Recognizer, "cls": bundles.Classifier}
        kind = kinds[model.name]
        values = {f: getattr(model.section, f) for f in kind.__struct_fields__ if hasattr(model.section, f)}
        values |= {"files": {self.plan.engine: tuple(file.name for file in self._files(model))}}
        values |= {"source": bundles.Source(model.source.name, model.sha256)}
        values |= {"characters": CHARACTERS, "classes": model.signature.classes} if model.name == "rec" else {}
        if model.name != "det" and model.signature.height > 0:
            values["height"] = model.signature.height
        return kind(**values)


def _check_dictionary(models: Sequence[Model], characters: Path) -> None:
    for model in models:
        if model.name == "rec":
            check_characters(characters, model.signature.classes)


def check_arm(folded: Path, built: Path, work: Path) -> None:
    """Check an ARM model as far as a machine that cannot run it can: kernels and weights.

    Raises:
        ConversionError: an operator is left to another processor, or weights are missing.
    """
    kernels = native.run("list_kernels", source=folded, out=work, target="aarch64")
    foreign = [kernel for kernel in kernels if kernel.split("/")[2:3] not in ([_LITE_HOST], [_LITE_ARM])]
    if foreign:
        raise ConversionError(f"{built.name}: operator {foreign[0]} has no kernel for ARM")
    weights = (work / "params").stat().st_size
    if built.stat().st_size < weights:
        raise ConversionError(f"{built.name}: {built.stat().st_size} bytes cannot hold {weights} bytes of weights")


def swap(new: Path, place: Path) -> None:
    """Move a directory to its place; what was there stays until the new one can take it."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _arrays(file: Path) -> list[np.ndarray]:
    with np.load(file) as archive:
        return [archive[name] for name in archive.files]


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _told_times(rows: Sequence[dict[str, float]]) -> str:
    before, after, _ = rows
    return f"{before['ms']:.1f} -> {after['ms']:.1f} ms, {before['resident_mb']:.0f} -> {after['resident_mb']:.0f} MB"


def table(rows: Sequence[Measured]) -> list[str]:
    """Return the measured rows as aligned lines."""
    head = ("model", "variant", "engine", "input", "size MB", "ms", "resident MB", "largest difference")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells]


def _cells(row: Measured) -> tuple[str, ...]:
    def said(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    shape = "x".join(map(str, row.shape))
    numbers = (said(row.ms, ".1f"), said(row.resident_mb, ".0f"), said(row.max_difference, ".1e"))
    return (row.model, row.variant, row.engine, shape, f"{row.bytes / 1e6:.1f}", *numbers)
