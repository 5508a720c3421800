"""The report of a compression: what was done to each layer, what it cost, and which layers to look at."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from converters import native
from converters.anatomy import Changes, Part, parts
from converters.bench import machine_name
from converters.compress import Compressed
from converters.graph import Graph
from converters.model import Model, digest_of, graph_files
from converters.recipe import Compression
from converters.stages import Stages, tool_versions
from converters.tables import aligned, said
from converters.verdict import Candidate, Cost, Figure, Pair, Variant, Verdict

SUSPECTS = 3
"""So many layers of each model are named when a bundle is refused."""

FIGURES: dict[Figure, str] = {"char_f1": "char_f1", "car": "CAR", "hmean": "det hmean"}


class Report(msgspec.Struct, frozen=True):
    """The content of `report.json`.

    Attributes:
        bundle: its name, version and target.
        target: the machines it is for.
        machine: the processor that read the pages and took the times, and its cores.
        written: when, UTC.
        versions: of the tools.
        settings: of the recipe.
        models: what became of each.
        layers: operators with weights of each model.
        changes: to int8 on ARM in each model.
        pages: figures by set.
        costs: of each model, in each variant.
        bytes: of the models in the bundle.
        failures: what the gate does not let through.
        look_at: layers to look at first, when it does not.
    """

    bundle: str
    target: str
    machine: str
    written: str
    versions: dict[str, str]
    settings: Compression
    models: tuple[Compressed, ...]
    layers: dict[str, tuple[Part, ...]]
    changes: dict[str, Changes]
    pages: tuple[Pair, ...]
    costs: tuple[Cost, ...]
    bytes: int
    failures: tuple[str, ...]
    look_at: tuple[str, ...]


def describe(candidate: Candidate, verdict: Verdict, settings: Compression, stages: Stages) -> Report:
    """Return the report of a candidate that was judged.

    Raises:
        ConversionError: a graph cannot be read.
    """
    content, compressed = candidate.content, candidate.compressed
    models: dict[str, Model] = {model.name: model for model in content.models}
    graphs = {model.model: Graph.load(models[model.model].ready("aarch64")) for model in compressed}
    layers = {model.model: parts(model, graphs[model.model], settings.float_share) for model in compressed}
    return Report(
        bundle=f"{content.name} {content.version} for {content.target}",
        target=content.target,
        machine=f"{machine_name()}, {os.cpu_count()} cores",
        written=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        versions=tool_versions(),
        settings=settings,
        models=compressed,
        layers=layers,
        changes={model.model: _changes(models[model.model], settings, stages) for model in compressed},
        pages=verdict.pairs,
        costs=verdict.costs,
        bytes=verdict.bytes,
        failures=verdict.failures,
        look_at=suspects(layers, verdict, settings) if verdict.failures else (),
    )


def _changes(model: Model, settings: Compression, stages: Stages) -> Changes:
    source, out = model.ready("aarch64"), model.work / "changes"
    sparse_from = settings.sparse_from(model.name)
    code = Path(__file__).with_name("anatomy.py")  # that of all stages (`stages.CODE`) leaves it out
    found = stages.run(
        f"changes {model.name}",
        [digest_of([*graph_files(source), code]), sparse_from],
        [],
        lambda: native.run("anatomy.changes", model.name, source=source, out=out, sparse_from=sparse_from),
        lambda changes: f"{sum(changes['made'].values())} changes to int8",
    )
    return msgspec.convert(found, Changes)


def suspects(layers: dict[str, tuple[Part, ...]], verdict: Verdict, settings: Compression) -> tuple[str, ...]:
    """Return each model's layers that lose most when too much is lost, and its largest in float when the size is."""
    large = verdict.bytes > settings.gate.bytes
    found = []
    for model, rows in layers.items():
        losing = sorted((row for row in rows if row.int8 and row.share), key=lambda row: -(row.share or 0.0))[:SUSPECTS]
        heavy = sorted((row for row in rows if not row.int8), key=lambda row: -row.weights)[:SUSPECTS]
        if losing and len(verdict.failures) > large:
            found.append(f"{model}: {', '.join(f'{row.name} makes {row.share:.0%} of the error' for row in losing)}")
        if heavy and large:
            found.append(f"{model}: {', '.join(f'{row.name} has {row.weights} weights in float' for row in heavy)}")
    return tuple(found)


def write_report(directory: Path, report: Report) -> None:
    """Write `report.json`, `report.md` and the plots that it shows.

    Raises:
        ConversionError: the plots cannot be drawn.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "report.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    (directory / "report.md").write_text("\n".join(markdown(report)) + "\n", encoding="utf-8")
    native.run("plots.draw", report=file, out=directory)


# ------------------------------------------------------------------------------------------------ text


def told(report: Report) -> list[str]:
    """Return the figures of every set as aligned lines."""
    return aligned(_pages(report.pages))


def markdown(report: Report) -> list[str]:
    """Return the lines of `report.md`."""
    lines = [f"# {report.bundle}: int8 against float", ""]
    lines += [f"- refused: {failure}" for failure in report.failures] or ["- the gate lets it through"]
    lines += [f"- look at {row}" for row in report.look_at]
    lines += [f"- allowed: {_allowed(report.settings)}"]
    lines += [f"- {report.machine}; written {report.written}; {', '.join(map(' '.join, report.versions.items()))}"]
    lines += ["", "## Pages", "", _PAGES_NOTE, "", *_table(_pages(report.pages)), "", "![char_f1](pages.png)"]
    lines += ["", "## Size, time and memory", "", *_table(_costs(report)), "", *_costs_note(report)]
    lines += ["", "![bytes](sizes.png)"]
    for model in report.models:
        lines += ["", f"## {model.model}", "", *_model(model), "", *_changes_told(report.changes[model.model])]
        lines += [*_channels(model), "", "### Layers", "", _LAYERS_NOTE, "", f"![errors](errors-{model.model}.png)", ""]
        lines += _table(_layers(report.layers[model.model]))
    return lines


_PAGES_NOTE = (
    "Pruned is the pruned model in float, where one was pruned. int8 was read by models for x86 with the same integers "
    "as the bundle's. A drop is float less int8: below 0 int8 is better. det hmean is of the boxes of lines, by ICDAR "
    "2015's rule: it compares these columns, as sets differ in what they call a line."
)
_LAYERS_NOTE = (
    "Share: of the errors that all layers make, each in int8 alone with the others in float. Left: what rounding by "
    "effect leaves of a layer's error, as a share of its output's variance."
)


def _allowed(settings: Compression) -> str:
    gate = settings.gate
    return (
        f"char_f1 {gate.char_f1:g} less in the mean, {gate.worst_char_f1:g} on any set; CAR {gate.car:g} and det hmean "
        f"{gate.hmean:g} less in the mean; {gate.bytes} bytes"
    )


def _pages(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    slim = any(pair.slim for pair in pairs)
    columns = ("pruned", "int8", "drop") if slim else ("int8", "drop")
    head = [cell for name in FIGURES.values() for cell in (f"{name} float", *columns)]
    return [("pages", "images", *head), *(_page(pair, slim=slim) for pair in pairs)]


def _page(pair: Pair, *, slim: bool) -> tuple[str, ...]:
    cells = [pair.name, str(pair.before.scores.images)]
    for figure in FIGURES:
        variants = (pair.before, pair.slim, pair.after) if slim else (pair.before, pair.after)
        cells += [said(getattr(row.scores, figure) if row else None, ".4f") for row in variants]
        cells.append(said(pair.drop(figure), "+.4f"))
    return tuple(cells)


def _costs(report: Report) -> list[tuple[str, ...]]:
    rows = [
        (cost.model, cost.variant, str(cost.bytes), said(cost.ms, ".1f"), said(cost.peak_mb, ".0f"))
        for cost in report.costs
    ]
    sums = [("together", variant, str(sum(known.values())), "", "") for variant, known in sizes(report.costs).items()]
    return [("model", "variant", "bytes", "ms", "peak MB"), *rows, *sums]


def sizes(costs: Sequence[Cost]) -> dict[Variant, dict[str, int]]:
    """Return the bytes of all models in each variant; a model that a variant leaves alone is as in the one before."""
    found: dict[Variant, dict[str, int]] = {}
    known: dict[str, int] = {}
    variants: tuple[Variant, ...] = ("float", "pruned", "int8")
    for variant in variants:
        changed = {cost.model: cost.bytes for cost in costs if cost.variant == variant}
        known = {**known, **changed}
        if changed:
            found[variant] = known
    return found


def _costs_note(report: Report) -> list[str]:
    """Return what the table is of, and what it says of x86 and cannot say of ARM."""
    lines = [
        "Bytes: int8 as in the bundle, the others as built for x86. Time and memory: x86, one thread, one run at the "
        "recipe's measured shape; the memory is the highest of the process."
    ]
    ms = {(cost.model, cost.variant): cost.ms for cost in report.costs if cost.ms}
    slower = {name: time / ms[name, "float"] for (name, variant), time in ms.items() if variant == "int8"}
    if slower:
        times = ", ".join(f"{name} takes {ratio:.2f} times as long as in float" for name, ratio in slower.items())
        ending = "; float stays the default there" if max(slower.values()) > 1 else ""
        lines += ["", f"On x86, int8 is there to prove the integers, not to be fast: {times}{ending}."]
    if report.target == "aarch64":
        lines += ["", _ARM_NOTE]
    return lines


_ARM_NOTE = (
    "ARM: not measured, this machine cannot run it. On a board with the native binding (`edge-ocr lite build`), "
    "`edge-ocr lite bench --threads 1,2,4 --bundle BUNDLE` times the models and tells their memory, and "
    "`edge-ocr bench --no-peers --data DIR --bundle BUNDLE` tells pages per second, seconds to the first page and peak "
    "memory on labelled sets, with this bundle and then with the one in float."
)


def _model(model: Compressed) -> list[str]:
    operators = ", ".join(f"{count} {name}" for name, count in model.kernels.items())
    kept = [f"{name} ({share:.0%} of all layers' errors)" for name, share in model.kept.items()]
    before, after = (model.trained.get(when, 0.0) for when in ("before", "after"))
    what = f"{model.layers} convolutions in int8" if model.layers else "computed in float, stored in int8"
    trained = [f"- training: from {before:.3g} to {after:.3g} in the simulation"]
    return [
        f"- {what}: {model.int8_weights} weights of one byte, {model.float_weights} numbers of four (biases, scales "
        "and what stays in float)",
        f"- int8 moves the output by {model.error:.3g} in the simulation and by {model.built:.3g} as built; the two "
        f"differ by {model.mismatch:.3g}",
        *(trained if model.trained else []),
        f"- operators on ARM: {operators}",
        f"- left in float for their error: {', '.join(kept) or 'none'}; why others are, the table of layers says",
    ]


def _channels(model: Compressed) -> list[str]:
    """Return what was pruned; nothing where nothing was."""
    lines = []
    if model.multiply_adds:
        before, after = model.multiply_adds
        lines += ["", f"Pruning: {before / 1e6:.1f} -> {after / 1e6:.1f} million multiply-adds ({after / before:.0%})."]
    if model.zeros:
        zeros = [f"{name} {share:.0%}" for name, share in model.zeros.items()]
        lines += ["", f"Zeros in filters of one pixel: {', '.join(zeros)}."]
    if model.channels:
        rows = [(name, str(before), str(after)) for name, (before, after) in model.channels.items()]
        lines += ["", *_table([("filters", "channels before", "after"), *rows])]
    return lines


def _changes_told(changes: Changes) -> list[str]:
    total = sum(changes.made.values())
    rows = [(str(count), wrote, _explained(wrote)) for wrote, count in changes.made.items()]
    return [
        f"Changes to int8 on ARM (`calib`): {total}, one for each layer that reads a value; the way back to float is "
        "part of the layer's kernel. Results that go from one int8 layer to the next as they are: "
        f"{changes.handed}.",
        "",
        *_table([("changes", "of values written by", "why"), *rows]),
    ]


def _explained(wrote: str) -> str:
    """Return why a value is in float where an int8 layer reads it."""
    first, *after = wrote.split(", ")
    if after:
        return f"Paddle Lite runs {', '.join(after)} in float"
    reasons = {
        "the input": "pictures come in float",
        "int8 layer": "an operator in float reads it too",
        "float layer": "the layer before was left in float",
    }
    return reasons.get(first, f"Paddle Lite runs {first} in float")


def _layers(rows: Sequence[Part]) -> list[tuple[str, ...]]:
    head = ("", "layer", "operator", "filters", "in", "share", "left", "why")
    return [head, *(_layer(number, row) for number, row in enumerate(rows, 1))]


def _layer(number: int, row: Part) -> tuple[str, ...]:
    kind = "int8" if row.int8 else "float"
    figures = (said(row.share, ".1%"), said(row.left, ".2%"))
    return (str(number), row.name, row.kind, "x".join(map(str, row.shape)), kind, *figures, row.why)


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in body)]
