"""Conversion: sources in, a checked and measured bundle out, in stages that are skipped when up to date."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from agent.bundle import Measured, ModelBundle, Target
from agent.errors import ConfigError, ConversionError, EngineError
from converters import native
from converters.compress import Compressed, Compressor
from converters.graph import Graph
from converters.meter import Meter, usual_times
from converters.model import Model, digest_of, graph_files, open_model, size_of
from converters.params import Array
from converters.passes import rewrite
from converters.pictures import Own, OwnFolder
from converters.recipe import Compression, Recipe, load_recipe
from converters.report import describe, told, write_report
from converters.scores import load_labels
from converters.signature import check_characters, check_output
from converters.sources import Sources, collect
from converters.stages import Stages, locked, room
from converters.tables import aligned, said
from converters.targets import INT8, PLANS
from converters.verdict import Candidate, judge
from converters.writing import Content, Precision, check_place, write_bundle

BUILD = Path("models/build")
INT8_TARGETS = ("aarch64", "x86_64")
_LITE_HOST, _LITE_ARM = "1", "4"  # paddle::lite_api::TargetType


class Request(msgspec.Struct, frozen=True):
    """What the user asked for.

    Attributes:
        recipe: the recipe file.
        target: the machines the bundle is for.
        precision: of the weights; by default int8 for ARM where the recipe says how, else fp32.
        source: a directory with models of the user's own.
        characters: the dictionary of the user's recogniser.
        output: the bundle's directory; default below `models/build`.
        measured: time the models and print the table.
        force: do every stage again.
        labels: labelled pictures of the user's own that an int8 bundle is judged on besides drawn ones.
        images: a folder of the user's own pictures that an int8 bundle is made with besides drawn ones.
    """

    recipe: Path
    target: Target
    precision: Precision | None = None
    source: Path | None = None
    characters: Path | None = None
    output: Path | None = None
    measured: bool = True
    force: bool = False
    labels: tuple[Path, ...] = ()
    images: Path | None = None


def convert(request: Request, say: Callable[[str], None] = print, meter: Meter | None = None) -> ModelBundle:
    """Make a bundle, replace an older one at the same place, and return it as loaded.

    Args:
        request: what to make.
        say: takes a line for each stage, and those of the table.
        meter: shows how far a long stage is.

    Raises:
        ConfigError: the recipe or an option is wrong, or the disk is full.
        InputError: a path is missing.
        EngineError: a package is not installed.
        ConversionError: a model is not understood, or the result differs from its source.
    """
    with room(BUILD):
        return _convert(request, say, meter or Meter())


def _convert(request: Request, say: Callable[[str], None], meter: Meter) -> ModelBundle:
    recipe, plan = load_recipe(request.recipe), PLANS[request.target]
    precision = _precision(request, recipe)
    _check_options(request, precision)
    _check_needs(request.target, (*plan.needs, "paddleslim") if precision == "int8" else plan.needs)
    label = _label(recipe.name, request.target, precision)
    for file in request.labels:
        load_labels(file)  # before the work of minutes, not after it
    output = request.output or BUILD / label
    check_place(output)
    work = BUILD / ".work" / label
    with locked(work):
        usual_s = usual_times(recipe.compress) if recipe.compress is not None and precision == "int8" else {}
        stages = Stages(work, say, force=request.force, meter=meter, usual=usual_s)
        folder = _open_folder(request.images, work, stages, say)
        reference = _make_reference(request, say, meter) if precision == "int8" else None
        own = folder.find_lines(reference) if folder is not None and reference is not None else Own()
        sources = collect(recipe, work / "source", request.source, request.characters)
        for name, model in sources.models.items():
            say(f"{'source ' + name:<14} {model.name}")
        conversion = _Conversion(request, recipe, precision, stages, own)
        content = conversion.run(sources, work)
        if recipe.compress is not None and reference is not None:
            _judge(request, recipe.compress, content, conversion, reference, say)
        written = write_bundle(content, output)
    say(f"{'write':<14} {output}")
    for line in table(content.measured) if request.measured else ():
        say(line)
    return written


def _label(name: str, target: str, precision: str) -> str:
    """Return what a bundle, and all that is kept of its making, is called below `BUILD`."""
    return f"{name}-{target}-{precision}"


def _precision(request: Request, recipe: Recipe) -> Precision:
    """Return the precision to make: int8 pays on ARM only, so that it is the default there alone."""
    able = recipe.compress is not None and request.target in INT8_TARGETS
    if request.precision != "int8":
        return request.precision or ("int8" if able and request.target == "aarch64" else "fp32")
    if recipe.compress is None:
        raise ConfigError(f"--precision int8: {request.recipe} has no [compress]; models/ppocr-v4-int8.toml has")
    if not able:
        raise ConfigError(f"--precision int8: for {' and '.join(INT8_TARGETS)} only, not {request.target}")
    return "int8"


def _check_options(request: Request, precision: Precision) -> None:
    """Check that no option is given that would change nothing."""
    options = {"--images": request.images, "--labels": request.labels}
    given = [option for option, value in options.items() if value]
    if given and precision != "int8":
        raise ConfigError(
            f"{' and '.join(given)}: only a conversion to int8 looks at pictures, and this one makes {precision}; "
            "models/ppocr-v4-int8.toml for aarch64 makes int8"
        )


def _open_folder(images: Path | None, work: Path, stages: Stages, say: Callable[[str], None]) -> OwnFolder | None:
    """Return the user's folder, if there is one, after a look at every picture in it."""
    if images is None:
        return None
    folder = OwnFolder(images, work, stages)
    folder.check(say)
    return folder


def _make_reference(request: Request, say: Callable[[str], None], meter: Meter) -> ModelBundle:
    """Return the float bundle that runs here: int8 is held against it, and it finds lines on the user's pictures."""
    plain: dict[str, Any] = {"target": "x86_64", "precision": "fp32", "output": None, "labels": (), "images": None}
    return convert(msgspec.structs.replace(request, measured=False, force=False, **plain), say, meter)


def _judge(
    request: Request,
    settings: Compression,
    content: Content,
    conversion: _Conversion,
    reference: ModelBundle,
    say: Callable[[str], None],
) -> None:
    """Read labelled pages with the float models and with the int8 ones; refuse a bundle that has lost too much."""
    label = _label(content.name, content.target, content.precision)
    work, directory = BUILD / ".work" / label, BUILD / f"{label}-report"
    candidate = Candidate(content, tuple(conversion.compressed), reference.path, work, request.measured)
    verdict = judge(candidate, settings, request.labels, conversion.stages)
    report = describe(candidate, verdict, settings, conversion.stages)
    write_report(directory, report)
    for line in told(report):
        say(line)
    say(f"{'report':<14} {directory / 'report.md'}")
    if report.failures:
        look_at = "".join(f"; look at {row}" for row in report.look_at)
        raise ConversionError(
            f"{'; '.join(report.failures)}: no bundle is written{look_at}; see {directory / 'report.md'}"
        )


def _check_needs(target: str, needs: Sequence[str]) -> None:
    missing = [name for name in needs if importlib.util.find_spec(name) is None]
    if missing:
        names = " ".join("paddlepaddle" if name == "paddle" else name for name in missing)
        advice = "scripts/setup.sh agent convert,compress" if missing == ["paddleslim"] else f"pip install {names}"
        raise EngineError(f"--target {target} needs {names}, which is not installed here: {advice}")


class _Conversion:
    """The stages of one request, each on one model."""

    def __init__(self, request: Request, recipe: Recipe, precision: Precision, stages: Stages, own: Own) -> None:
        self.request = request
        self.recipe = recipe
        self.precision = precision
        self.plan = PLANS[request.target]
        self.stages = stages
        self.own = own
        self.compressed: list[Compressed] = []

    def run(self, sources: Sources, work: Path) -> Content:
        """Return what goes into the bundle, checked and measured."""
        sections, suffixes = self.recipe.sections(), self.plan.suffixes
        models = tuple(
            open_model(name, source, sections[name], work / name, suffixes) for name, source in sources.models.items()
        )
        for model in models:
            if model.name == "rec":
                check_characters(sources.characters, model.signature.classes)
        rows = [row for model in models for row in self._convert(model)]
        request, recipe = self.request, self.recipe
        head = (recipe.name, recipe.version, request.target, self.precision, self.plan.engine)
        return Content(*head, models, sources.characters, tuple(rows))

    def _convert(self, model: Model) -> list[Measured]:
        """Take one model through its stages and return its rows of the table."""
        self._fold(model)
        difference = None
        if self._is_int8(model):
            assert self.recipe.compress is not None  # `_precision` has seen to it
            self.compressed.append(Compressor(self.recipe.compress, self.stages, self.own).run(model))
            self._build(model)
        else:
            self._build(model)
            self._refer(model)
            difference = self._check(model)
        return self._measure(model, difference) if self.request.measured else []

    def _is_int8(self, model: Model) -> bool:
        """Say whether a model goes through the `Compressor`, be it for its weights' storage alone."""
        compress = self.recipe.compress
        return self.precision == "int8" and compress is not None and model.name in compress.changed

    def _fold(self, model: Model) -> None:
        """Write the rewritten graph."""

        def action() -> dict[str, int]:
            graph = Graph.load(model.source.directory)
            counts = rewrite(graph, INT8 if self._is_int8(model) else self.plan.passes)
            self._check_operators(graph, model)
            graph.save(model.folded)
            return {name: count for name, count in counts.items() if count}

        def told(counts: dict[str, int]) -> str:
            return f"{sum(counts.values())} rewrites"

        inputs = [model.sha256, self.request.target, self._is_int8(model)]
        self.stages.run(f"fold {model.name}", inputs, graph_files(model.folded), action, told)

    def _check_operators(self, graph: Graph, model: Model) -> None:
        target = self.request.target
        if self.plan.engine != "paddlelite":
            return
        unknown = sorted({op.type for op in graph.ops} - set(native.run("supported_operators", target=target)))
        if unknown:
            raise ConversionError(
                f"{model.source.directory}: Paddle Lite has no operator {', '.join(unknown)} on {target}; "
                "try --target portable"
            )

    def _build(self, model: Model) -> None:
        """Write the files of the target's runtime."""
        source = model.ready(self.request.target) if self._is_int8(model) else model.folded

        def action() -> int:
            if self.plan.engine == "paddlelite":
                # The memory plan gives wrong numbers in int8.
                int8 = self._is_int8(model)
                self._build_lite(model.name, source, model.built[0], plan=not int8, compacted=int8)
            elif self.plan.engine == "onnxruntime":
                native.run("build_onnx", model.name, source=model.folded, out=model.built[0])
            else:
                for folded, file in zip(graph_files(model.folded), model.built, strict=True):
                    shutil.copyfile(folded, file)
            return size_of(model.built)

        inputs = [digest_of(graph_files(source)), self.request.target]
        self.stages.run(f"build {model.name}", inputs, model.built, action, lambda size: f"{size / 1e6:.1f} MB")

    def _build_lite(self, name: str, source: Path, file: Path, *, plan: bool, compacted: bool = False) -> None:
        how = {"target": self.request.target, "plan": plan, "compacted": compacted}
        native.run("build_lite", name, source=source, out=file.with_suffix(""), **how)

    def _refer(self, model: Model) -> None:
        """Run the source model on every shape, for the others to be compared with."""
        out, shapes = _reference(model), model.shapes()

        def action() -> None:
            native.run("infer", model.name, engine="paddle", files=model.source_files, shapes=shapes, out=out)
            for shape, output in zip(shapes, _arrays(out), strict=True):
                check_output(model.name, shape, output.shape, str(model.source.directory))

        self.stages.run(f"run {model.name}", [model.sha256, shapes], [out], action, lambda _: f"{len(shapes)} shapes")

    def _check(self, model: Model) -> float:
        """Return the largest difference from the source model; refuse one that is too large."""
        emulated = self.request.target == "aarch64"  # this machine cannot run it: its graph is run, its file looked at

        def action() -> float:
            if emulated:
                check_arm(model.folded, model.built[0], model.work / "arm")
                return self._difference(model, "paddle", graph_files(model.folded))
            return self._difference(model, self.plan.engine, model.built)

        inputs = [digest_of([*model.built, *graph_files(model.folded), _reference(model)]), self.recipe.max_difference]
        result = self.stages.run(f"check {model.name}", inputs, [], action, lambda d: f"largest difference {d:.1e}")
        return float(result)

    def _difference(self, model: Model, engine: str, files: Sequence[Path]) -> float:
        out, shapes = model.work / "outputs.npz", model.shapes()
        native.run("infer", model.name, engine=engine, files=files, shapes=shapes, out=out)
        differences = map(difference, _arrays(_reference(model)), _arrays(out))
        largest, shape = max(zip(differences, shapes, strict=True))
        if largest > self.recipe.max_difference:
            raise ConversionError(
                f"{model.name}: output at input {shape} differs from the source model's by {largest:.1e}, more than "
                f"max_difference = {self.recipe.max_difference:g}: no bundle is written"
            )
        return largest

    def _measure(self, model: Model, largest: float | None) -> list[Measured]:
        """Return two rows: what a user has without this converter, and the bundle."""
        engine, source = self._plain(model)
        shape, inputs = model.shapes()[-1], [digest_of([*source, *model.built]), model.shapes()[-1]]

        def action() -> list[Any]:
            before = native.run("measure", model.name, engine=engine, files=source, shape=shape)
            after = native.run("measure", model.name, engine=self.plan.engine, files=model.built, shape=shape)
            return [before, after, self._plain_difference(model, engine, source)]

        before, after, plain = _NOT_MEASURED
        if self.request.target != "aarch64" and not self._is_int8(model):
            before, after, plain = self.stages.run(f"measure {model.name}", inputs, [], action, _told_times)
        return [
            Measured(model.name, "source", engine, shape, size_of(source), **before, max_difference=plain),
            Measured(
                model.name, "bundle", self.plan.engine, shape, size_of(model.built), **after, max_difference=largest
            ),
        ]

    def _plain(self, model: Model) -> tuple[str, list[Path]]:
        """Return what a user has today: `paddle_lite_opt` alone, or the source on Paddle Inference."""
        if self.plan.engine != "paddlelite":
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


def table(rows: Sequence[Measured]) -> list[str]:
    """Return the measured rows as aligned lines."""
    head = ("model", "variant", "engine", "input", "size MB", "ms", "resident MB", "largest difference")
    return aligned([head, *(_cells(row) for row in rows)])


def _cells(row: Measured) -> tuple[str, ...]:
    numbers = (said(row.ms, ".1f"), said(row.resident_mb, ".0f"), said(row.max_difference, ".1e"))
    return (row.model, row.variant, row.engine, "x".join(map(str, row.shape)), f"{row.bytes / 1e6:.1f}", *numbers)
