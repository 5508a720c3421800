"""The gate: pages read in float and in int8 side by side, what int8 has lost, and the report of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from agent.bundle import ModelBundle
from converters import native
from converters.compress import Compressed
from converters.evaluate import Figures, figures_of
from converters.model import digest_of, size_of
from converters.recipe import Compression
from converters.scores import load_labels
from converters.stages import Stages, tool_versions
from converters.tables import aligned, said
from converters.writing import Content, write_bundle

DRAWN = "drawn"
"""Name of the set of pages that are drawn."""

_EVALUATION_SEED = 2
THREADS = 2


class Candidate(msgspec.Struct, frozen=True):
    """What is judged.

    Attributes:
        content: of the bundle to be written.
        twins: its int8 models built for x86, by name.
        reference: the float bundle for x86.
        work: a directory.
    """

    content: Content
    twins: Mapping[str, Path]
    reference: Path
    work: Path


class Pair(msgspec.Struct, frozen=True):
    """Figures of one set of pages in float and in int8."""

    name: str
    before: Figures
    after: Figures

    @property
    def char_f1_drop(self) -> float:
        """What int8 loses of char_f1; negative when it gains."""
        return self.before.scores.char_f1 - self.after.scores.char_f1

    @property
    def car_drop(self) -> float | None:
        """What int8 loses of the lines' character accuracy; None without labelled boxes."""
        before, after = self.before.scores.car, self.after.scores.car
        return None if before is None or after is None else before - after


class Verdict(msgspec.Struct, frozen=True):
    """What was found, and what the gate does not let through.

    Attributes:
        pairs: figures by set.
        bytes: of the models in the bundle.
        failures: each with the figure and the limit.
    """

    pairs: tuple[Pair, ...]
    bytes: int
    failures: tuple[str, ...]


def judge(candidate: Candidate, settings: Compression, labels: Sequence[Path], stages: Stages) -> Verdict:
    """Read drawn pages and the user's with both bundles and hold the difference against the gate.

    Raises:
        InputError: a file of labels is missing.
        ConfigError: a file of labels is none.
        AgentError: a reader failed.
    """
    twin = _write_twin(candidate)
    sets = {DRAWN: _draw(candidate.work / "pages", settings, stages)}
    sets |= {f"{number}: {file.parent.name}": file for number, file in enumerate(labels, 1)}
    pairs = tuple(_read(name, file, candidate.reference, twin, stages) for name, file in sets.items())
    total = sum(size_of(model.built) for model in candidate.content.models)
    return Verdict(pairs, total, failures(pairs, total, settings))


def failures(pairs: Sequence[Pair], total: int, settings: Compression) -> tuple[str, ...]:
    """Return what the gate does not let through."""
    gate, drops = settings.gate, [pair.char_f1_drop for pair in pairs]
    cars = [pair.car_drop for pair in pairs if pair.car_drop is not None]
    worst = max(pairs, key=lambda pair: pair.char_f1_drop)
    rows = [
        ("char_f1 falls by {:.4f} in the mean, more than {:g}", statistics.fmean(drops), gate.char_f1),
        (f"char_f1 falls by {{:.4f}} on {worst.name}, more than {{:g}}", worst.char_f1_drop, gate.worst_char_f1),
        ("CAR falls by {:.4f} in the mean, more than {:g}", statistics.fmean(cars) if cars else 0.0, gate.car),
        ("the models have {:d} bytes, more than {:d}", total, gate.bytes),
    ]
    return tuple(text.format(found, limit) for text, found, limit in rows if found > limit)


def _write_twin(candidate: Candidate) -> Path:
    """Write the bundle that runs here, with the same integers as the one to be judged."""
    models = tuple(
        msgspec.structs.replace(model, work=candidate.twins.get(model.name, candidate.reference / "any").parent)
        for model in candidate.content.models
    )
    content = msgspec.structs.replace(candidate.content, target="x86_64", models=models, measured=())
    return write_bundle(content, candidate.work / "twin").path


def _draw(directory: Path, settings: Compression, stages: Stages) -> Path:
    labels = directory / "labels.jsonl"

    def action() -> int:
        native.run("verdict.draw_pages", out=directory, seed=_EVALUATION_SEED, pages=settings.pages)
        return settings.pages

    stages.run("draw pages", settings.pages, [labels], action, lambda count: f"{count} pages")
    return labels


def draw_pages(out: str, seed: int, pages: int) -> None:
    """Draw labelled pages into a directory."""
    from converters.dataset import write_evaluation

    write_evaluation(Path(out), seed, pages)


def _read(name: str, labels: Path, reference: Path, twin: Path, stages: Stages) -> Pair:
    pages = load_labels(labels)

    def action() -> object:
        rows = [figures_of(bundle, labels, pages, THREADS) for bundle in (reference, twin)]
        return msgspec.to_builtins(rows)

    def told(rows: object) -> str:
        before, after = msgspec.convert(rows, tuple[Figures, Figures])
        return f"char_f1 {before.scores.char_f1:.4f} -> {after.scores.char_f1:.4f}"

    bundles = [ModelBundle.load(path, machine=None).digest for path in (reference, twin)]
    rows = stages.run(f"read {name}", [bundles, digest_of([labels])], [], action, told)
    return Pair(name, *msgspec.convert(rows, tuple[Figures, Figures]))


# --------------------------------------------------------------------------------------------------- report


def told_verdict(verdict: Verdict) -> list[str]:
    """Return the figures of every set as aligned lines."""
    head = ("pages", "images", "char_f1 float", "int8", "drop", "CAR float", "int8", "drop")
    return aligned([head, *map(_cells, verdict.pairs)])


def _cells(pair: Pair) -> tuple[str, ...]:
    before, after = pair.before.scores, pair.after.scores
    f1 = (said(before.char_f1, ".4f"), said(after.char_f1, ".4f"), said(pair.char_f1_drop, "+.4f"))
    car = (said(before.car, ".4f"), said(after.car, ".4f"), said(pair.car_drop, "+.4f"))
    return (pair.name, str(before.images), *f1, *car)


def write_report(directory: Path, settings: Compression, compressed: Sequence[Compressed], verdict: Verdict) -> None:
    """Write `report.json` and `report.md`: what was done to each layer, and what it cost."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = {
        "settings": msgspec.to_builtins(settings),
        "versions": tool_versions(),
        "models": [msgspec.to_builtins(model) for model in compressed],
        "bytes": verdict.bytes,
        "pages": [msgspec.to_builtins(pair) for pair in verdict.pairs],
        "failures": list(verdict.failures),
    }
    (directory / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(whole)) + b"\n")
    (directory / "report.md").write_text("\n".join(_markdown(compressed, verdict)) + "\n", encoding="utf-8")


def _markdown(compressed: Sequence[Compressed], verdict: Verdict) -> list[str]:
    lines = ["# int8 against float", ""]
    lines += [f"- refused: {failure}" for failure in verdict.failures] or ["- the gate lets it through"]
    lines += ["", f"Models: {verdict.bytes} bytes. Pages read by the int8 models' twin for x86:", ""]
    lines += _table(("pages", "images", "char_f1", "int8", "drop", "CAR", "int8", "drop"), map(_cells, verdict.pairs))
    for model in compressed:
        lines += ["", f"## {model.model}", ""]
        lines += [
            f"- {model.layers} convolutions in int8: {model.int8_weights} weights of one byte, "
            f"{model.float_weights} numbers of four (biases, scales and what stays in float)",
            f"- int8 moves the output by {model.error:.3g}; the kernels that run here differ from the simulation by "
            f"{model.mismatch:.3g}",
            f"- operators on ARM: {', '.join(f'{count} {name}' for name, count in model.kernels.items())}",
        ]
        kept = [f"{name} ({share:.0%} of all layers' errors)" for name, share in model.kept.items()]
        lines.append(f"- left in float: {', '.join(kept) or 'no layer that could be in int8'}")
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
