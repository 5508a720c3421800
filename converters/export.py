"""Conversion: sources in, a checked and measured bundle out, in stages that are skipped when up to date."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.bundle import Measured, ModelBundle, Target
from agent.errors import ConfigError, ConversionError, EngineError
from converters.conversion import Aim, Conversion
from converters.meter import Meter, usual_times
from converters.pictures import Own, OwnFolder
from converters.recipe import Compression, Recipe, load_recipe
from converters.report import describe, told, write_report
from converters.scores import load_labels
from converters.sources import collect
from converters.stages import Stages, locked, room
from converters.tables import aligned, said
from converters.targets import PLANS
from converters.verdict import Candidate, judge
from converters.writing import Content, Precision, check_place, write_bundle

BUILD = Path("models/build")
INT8_TARGETS = ("aarch64", "x86_64")


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
        aim = Aim(recipe, request.target, precision, request.measured)
        conversion = Conversion(aim, stages, own)
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
    conversion: Conversion,
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


def table(rows: Sequence[Measured]) -> list[str]:
    """Return the measured rows as aligned lines."""
    head = ("model", "variant", "engine", "input", "size MB", "ms", "resident MB", "largest difference")
    return aligned([head, *(_cells(row) for row in rows)])


def _cells(row: Measured) -> tuple[str, ...]:
    numbers = (said(row.ms, ".1f"), said(row.resident_mb, ".0f"), said(row.max_difference, ".1e"))
    return (row.model, row.variant, row.engine, "x".join(map(str, row.shape)), f"{row.bytes / 1e6:.1f}", *numbers)
