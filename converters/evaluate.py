"""`edge-ocr evaluate`: accuracy, speed and memory of bundles side by side, on labelled pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from agent.bundle import ModelBundle
from agent.errors import AgentError, ExitCode
from converters.child import killed_unless_done
from converters.scores import Page, Scores, load_labels, score
from converters.tables import aligned, said

_ROOT = Path(__file__).resolve().parents[1]


class Run(msgspec.Struct, frozen=True):
    """What a reading process did.

    Attributes:
        pages: what it read, in its order.
        first_s: seconds from its start to its first page.
        peak_mb: peak resident memory of the process, in MB.
    """

    pages: tuple[Page, ...]
    first_s: float
    peak_mb: float


class Figures(msgspec.Struct, frozen=True):
    """One row of the table: a reader on one set of pictures. Sizes in bytes, None for readers without a bundle."""

    name: str
    scores: Scores
    pages_per_s: float
    peak_mb: float
    det_bytes: int | None = None
    rec_bytes: int | None = None


def _unseen(done: int) -> None:
    """Take how many pages are read where nobody looks."""


def run_reader(
    command: Sequence[str], env: Mapping[str, str] | None = None, on_page: Callable[[int], None] = _unseen
) -> Run:
    """Run a program that writes one JSON row per page, and watch it.

    Its peak memory is the kernel's figure for the process, which starts at the size of this one: keep this one small.

    Args:
        command: the program and its arguments.
        env: its environment.
        on_page: takes how many rows have come, after each.

    Raises:
        AgentError: it failed; with its last line and its exit status.
    """
    with tempfile.TemporaryFile() as complaints:
        began = time.monotonic()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=env)
        assert child.stdout is not None  # it was asked for
        rows, first_s = [], 0.0
        with killed_unless_done(child), child.stdout:
            for row in child.stdout:
                first_s = first_s or time.monotonic() - began
                rows.append(msgspec.json.decode(row, type=Page))
                on_page(len(rows))
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in (ExitCode.OK, ExitCode.SOME_FAILED):
            complaints.seek(0)
            raise _failed(command, child.returncode, complaints.read().decode(errors="replace"))
    return Run(tuple(rows), first_s, usage.ru_maxrss / 1024)


def _failed(command: Sequence[str], status: int, complaints: str) -> AgentError:
    last = (complaints.strip().splitlines() or ["no message"])[-1]
    error = AgentError(f"{' '.join(command[:4])} ...: {last} (status {status})")
    error.code = ExitCode(status) if status in ExitCode._value2member_map_ else ExitCode.SOFTWARE
    return error


def read_command(images: Sequence[Path], bundle: Path, threads: int) -> list[str]:
    """Return the command line that reads pictures with a bundle."""
    options = ["--json", "--bundle", str(bundle), "--threads", str(threads)]
    return [sys.executable, "-m", "agent", "read", *options, "--", *map(str, images)]


def own_environment() -> dict[str, str]:
    """Return the environment in which a child finds this project's packages."""
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def figures_of(
    bundle: Path, labels: Path, pages: Sequence[Page], threads: int, on_page: Callable[[int], None] = _unseen
) -> Figures:
    """Read labelled pictures with a bundle and return its row.

    Raises:
        BundleError: it cannot be trusted.
        AgentError: the reader failed.
    """
    loaded = ModelBundle.load(bundle)
    images = [labels.parent / page.image for page in pages]
    run = run_reader(read_command(images, bundle, threads), own_environment(), on_page)
    return figures(str(bundle), labels, pages, run, model_bytes(loaded))


def model_bytes(bundle: ModelBundle) -> tuple[int, int]:
    """Return the sizes of a bundle's detector and recogniser, in bytes."""
    listed, manifest = bundle.manifest.files, bundle.manifest
    det, rec = (
        sum(listed[name].bytes for files in spec.files.values() for name in files)
        for spec in (manifest.det, manifest.rec)
    )
    return det, rec


def figures(
    name: str, labels: Path, pages: Sequence[Page], run: Run, sizes: tuple[int | None, int | None] = (None, None)
) -> Figures:
    """Return the row of a reader that was given the labelled pictures by path."""
    images = {str(labels.parent / page.image): page.image for page in pages}
    read = {images[page.image]: page for page in run.pages if page.image in images and page.error is None}
    scores = score(pages, read)
    pages_per_s = len(read) / scores.total_s if scores.total_s else 0.0
    return Figures(name, scores, pages_per_s, run.peak_mb, *sizes)


def table(rows: Sequence[Figures]) -> list[str]:
    """Return the figures as aligned lines."""
    accuracy, speed = ("char_f1", "line_recall", "CAR", "hmean"), ("p50 s", "p95 s", "pages/s", "peak MB")
    head = ("reader", "images", *accuracy, *speed, "det MB", "rec MB")
    return aligned([head, *(_cells(row) for row in rows)])


def _cells(row: Figures) -> tuple[str, ...]:
    s = row.scores
    accuracy = (said(s.char_f1, ".4f"), said(s.line_recall, ".4f"), said(s.car, ".4f"), said(s.hmean, ".4f"))
    speed = (said(s.p50_s, ".3f"), said(s.p95_s, ".3f"), said(row.pages_per_s, ".2f"), said(row.peak_mb, ".0f"))
    sizes = tuple(said(None if size is None else size / 1e6, ".1f") for size in (row.det_bytes, row.rec_bytes))
    missing = f" (-{s.missing})" if s.missing else ""
    return (row.name, f"{s.images}{missing}", *accuracy, *speed, *sizes)


@click.command("evaluate")
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--bundle", "bundles", type=click.Path(path_type=Path), multiple=True, required=True, help="Repeatable.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Processor cores to use.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def evaluate_command(labels: Path, bundles: tuple[Path, ...], threads: int, json_file: Path | None) -> None:
    """Compare bundles on the labelled pictures of LABELS, a JSON Lines file."""
    pages = load_labels(labels)
    rows = [figures_of(bundle, labels, pages, threads) for bundle in bundles]
    click.echo("\n".join(table(rows)))
    if json_file:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(rows)) + b"\n")
