"""The gate: pages read in float and in int8 side by side, what each costs, and what int8 may not lose."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from agent.bundle import ModelBundle
from converters import native
from converters.compress import Compressed
from converters.evaluate import Figures, figures_of
from converters.model import Model, digest_of, size_of
from converters.pictures import drawing_code
from converters.recipe import Compression
from converters.scores import load_labels
from converters.stages import Stages
from converters.writing import Content, Precision, write_bundle

DRAWN = "drawn"
"""Name of the set of pages that are drawn."""

Variant = Literal["float", "pruned", "int8"]
Figure = Literal["char_f1", "car", "hmean"]

_EVALUATION_SEED = 2
THREADS = 2
_ROOT = Path(__file__).resolve().parents[1]
_READING = ("agent/*.py", "converters/boxes.py", "converters/evaluate.py", "converters/scores.py")


class Candidate(msgspec.Struct, frozen=True):
    """What is judged.

    Attributes:
        content: of the bundle to be written.
        compressed: what became of its models; each `twin` and `slim` is a file called after its model.
        reference: the float bundle for x86.
        work: a directory.
        measured: time the models here.
    """

    content: Content
    compressed: tuple[Compressed, ...]
    reference: Path
    work: Path
    measured: bool = True

    def files(self) -> dict[Variant, dict[str, Path]]:
        """Return the files for x86 of each variant, by model; a model that a variant leaves alone is not there."""
        found: dict[Variant, dict[str, Path]] = {
            "float": {model.name: self.reference / f"{model.name}.nb" for model in self.content.models},
            "pruned": {model.model: Path(model.slim) for model in self.compressed if model.slim},
            "int8": {model.model: Path(model.twin) for model in self.compressed},
        }
        return {variant: files for variant, files in found.items() if files}


class Pair(msgspec.Struct, frozen=True):
    """Figures of one set of pages in float and in int8, and of the pruned float models where some were pruned."""

    name: str
    before: Figures
    after: Figures
    slim: Figures | None = None

    def drop(self, figure: Figure) -> float | None:
        """Return what int8 loses of a figure; negative when it gains, None where the set does not give it."""
        before, after = getattr(self.before.scores, figure), getattr(self.after.scores, figure)
        return None if before is None or after is None else before - after


class Cost(msgspec.Struct, frozen=True):
    """What one model costs.

    Attributes:
        model: its name.
        variant: of it.
        bytes: in int8 of the file in the bundle, else of that for x86.
        ms: of one run on this machine, one thread, at the shape that the recipe measures; None when not measured.
        peak_mb: peak resident memory of the process that ran it.
    """

    model: str
    variant: Variant
    bytes: int
    ms: float | None = None
    peak_mb: float | None = None


class Verdict(msgspec.Struct, frozen=True):
    """What was found, and what the gate does not let through.

    Attributes:
        pairs: figures by set.
        costs: of each model, in each variant that there is.
        bytes: of the models in the bundle.
        failures: each with the figure and the limit.
    """

    pairs: tuple[Pair, ...]
    costs: tuple[Cost, ...]
    bytes: int
    failures: tuple[str, ...]


def judge(candidate: Candidate, settings: Compression, labels: Sequence[Path], stages: Stages) -> Verdict:
    """Read drawn pages and the user's with all variants and hold the difference against the gate.

    Raises:
        InputError: a file of labels is missing.
        ConfigError: a file of labels is none.
        AgentError: a reader failed.
    """
    bundles = _write_bundles(candidate)
    sets = {DRAWN: _draw(candidate.work / "pages", settings, stages)}
    sets |= {f"{number}: {file.parent.name}": file for number, file in enumerate(labels, 1)}
    pairs = tuple(_read(name, file, bundles, stages) for name, file in sets.items())
    costs = tuple(cost for model in candidate.content.models for cost in _costs(candidate, model, stages))
    total = sum(size_of(model.built) for model in candidate.content.models)
    return Verdict(pairs, costs, total, failures(pairs, total, settings))


def failures(pairs: Sequence[Pair], total: int, settings: Compression) -> tuple[str, ...]:
    """Return what the gate does not let through."""
    gate, worst = settings.gate, max(pairs, key=lambda pair: pair.drop("char_f1") or 0.0)
    rows = [
        ("char_f1 falls by {:.4f} in the mean, more than {:g}", _mean_drop(pairs, "char_f1"), gate.char_f1),
        (f"char_f1 falls by {{:.4f}} on {worst.name}, more than {{:g}}", worst.drop("char_f1"), gate.worst_char_f1),
        ("CAR falls by {:.4f} in the mean, more than {:g}", _mean_drop(pairs, "car"), gate.car),
        ("hmean falls by {:.4f} in the mean, more than {:g}", _mean_drop(pairs, "hmean"), gate.hmean),
        ("the models have {:d} bytes, more than {:d}", total, gate.bytes),
    ]
    return tuple(text.format(found, limit) for text, found, limit in rows if found is not None and found > limit)


def _mean_drop(pairs: Sequence[Pair], figure: Figure) -> float | None:
    drops = [drop for pair in pairs if (drop := pair.drop(figure)) is not None]
    return statistics.fmean(drops) if drops else None


# ------------------------------------------------------------------------------------------------ bundles


def _write_bundles(candidate: Candidate) -> dict[Variant, Path]:
    """Write the bundles that run here, that in int8 with the same integers as the one to be judged."""
    found: dict[Variant, Path] = {"float": candidate.reference}
    for variant, files in candidate.files().items():
        if variant == "pruned":
            found[variant] = _write(candidate, files, candidate.work / "pruned", "fp32")
        elif variant == "int8":
            found[variant] = _write(candidate, files, candidate.work / "twin", "int8")
    return found


def _write(candidate: Candidate, files: Mapping[str, Path], place: Path, precision: Precision) -> Path:
    models = tuple(
        msgspec.structs.replace(model, work=files.get(model.name, candidate.reference / "any").parent)
        for model in candidate.content.models
    )
    changes = {"target": "x86_64", "precision": precision, "models": models, "measured": ()}
    return write_bundle(msgspec.structs.replace(candidate.content, **changes), place).path


def _costs(candidate: Candidate, model: Model, stages: Stages) -> list[Cost]:
    """Return what each variant of a model costs; times are taken one after the other, on a machine alike busy."""
    files = {variant: known[model.name] for variant, known in candidate.files().items() if model.name in known}
    sizes = {variant: size_of(model.built if variant == "int8" else [file]) for variant, file in files.items()}
    if not candidate.measured:
        return [Cost(model.name, variant, size) for variant, size in sizes.items()]
    shape = model.shapes()[-1]

    def action() -> list[dict[str, float]]:
        return [
            native.run("measure", model.name, engine="paddlelite", files=[file], shape=shape) for file in files.values()
        ]

    inputs = [digest_of([*files.values()]), shape]
    found = stages.run(f"time {model.name}", inputs, [], action, lambda rows: _told_times([*files], rows))
    rows = zip(sizes.items(), found, strict=True)
    return [Cost(model.name, variant, size, row["ms"], row["resident_mb"]) for (variant, size), row in rows]


def _told_times(variants: Sequence[Variant], rows: Sequence[Mapping[str, float]]) -> str:
    return ", ".join(f"{variant} {row['ms']:.1f} ms" for variant, row in zip(variants, rows, strict=True))


# ------------------------------------------------------------------------------------------------ pages


def _draw(directory: Path, settings: Compression, stages: Stages) -> Path:
    labels = directory / "labels.jsonl"

    def action() -> int:
        native.run(
            "verdict.draw_pages",
            progress=stages.progress,
            out=directory,
            seed=_EVALUATION_SEED,
            pages=settings.pages,
        )
        return settings.pages

    inputs = [settings.pages, drawing_code()]
    stages.run("draw pages", inputs, [labels], action, lambda count: f"{count} pages")
    return labels


def draw_pages(out: str, seed: int, pages: int) -> None:
    """Draw labelled pages into a directory."""
    from converters.dataset import write_evaluation

    write_evaluation(Path(out), seed, pages)


def _read(name: str, labels: Path, bundles: Mapping[Variant, Path], stages: Stages) -> Pair:
    pages = load_labels(labels)

    def action() -> object:
        rows, total = {}, len(bundles) * len(pages)
        for before, (variant, bundle) in zip(range(0, total, len(pages)), bundles.items(), strict=True):
            on_page = functools.partial(_show_page, stages, before, total)
            rows[variant] = figures_of(bundle, labels, pages, THREADS, on_page)
        return msgspec.to_builtins(rows)

    def told(rows: object) -> str:
        found = msgspec.convert(rows, dict[str, Figures])
        return f"char_f1 {' -> '.join(f'{found[variant].scores.char_f1:.4f}' for variant in bundles)}"

    digests = [ModelBundle.load(path, machine=None).digest for path in bundles.values()]
    inputs = [digests, digest_of([labels]), _reading_code()]
    rows = msgspec.convert(stages.run(f"read {name}", inputs, [], action, told), dict[str, Figures])
    return Pair(name, rows["float"], rows["int8"], rows.get("pruned"))


def _show_page(stages: Stages, before: int, total: int, count: int) -> None:
    stages.progress(before + count, total)


def _reading_code() -> str:
    """Return a digest of the code that reads and scores, which that of all stages (`stages.CODE`) leaves out."""
    return digest_of(sorted(file for pattern in _READING for file in _ROOT.glob(pattern)))
