"""`edge-ocr bench`: this reader beside RapidOCR in one run, on the same pictures and threads."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from agent.bundle import ModelBundle
from agent.engines import choose_engine
from agent.errors import AgentError, ConfigError, EngineError, InputError
from converters import native
from converters.evaluate import Figures, figures, model_bytes, own_environment, read_command, run_reader, table
from converters.scores import Page, load_labels
from converters.tables import aligned, said

OWN = "edge-ocr"
PEER_SCRIPT = Path(__file__).with_name("peer.py")
ROUNDS = 5
MODEL_SHAPES = {"det": [1, 3, 640, 640], "rec": [1, 3, 48, 320]}
MODEL_RUNS = 7


class Peer(msgspec.Struct, frozen=True):
    """RapidOCR in an environment of its own.

    Attributes:
        name: in the table.
        package: what its Python imports.
        python: of that environment.
    """

    name: str
    package: str
    python: Path

    def command(self, *arguments: object) -> list[str]:
        """Return the command line of `peer.py` there."""
        return [str(self.python), str(PEER_SCRIPT), *map(str, arguments)]


class Contest(msgspec.Struct, frozen=True):
    """Who takes part, and with what.

    Attributes:
        bundle: this reader's models.
        threads: of each.
        peers: the others.
    """

    bundle: Path
    threads: int
    peers: tuple[Peer, ...]

    def names(self) -> list[str]:
        """Return the readers' names, this one first."""
        return [OWN, *(peer.name for peer in self.peers)]

    def command(self, name: str, images: Sequence[Path], *, warm: bool) -> list[str]:
        """Return the command line with which one of them reads pictures; peers can read the first once unseen."""
        if name == OWN:
            return read_command(images, self.bundle, self.threads)
        peer = next(peer for peer in self.peers if peer.name == name)
        return peer.command("read", peer.package, self.threads, int(warm), *images)


class ModelTime(msgspec.Struct, frozen=True):
    """Milliseconds of one run of a model: this bundle's engine, the peer's on ONNX Runtime, and their ratio."""

    model: str
    shape: list[int]
    own_ms: float
    peer_ms: float
    ratio: float


class Report(msgspec.Struct, frozen=True):
    """Everything that was measured, with where, when and with what."""

    machine: str
    cores: int
    date: str
    threads: int
    bundle: str
    sets: dict[str, list[Figures]]
    first_result_s: dict[str, dict[str, float]]
    models: list[ModelTime]


def find_sets(data: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Return the label files of a folder: its own, or those of its folders.

    Raises:
        InputError: there are none.
        ConfigError: a wanted set is not there.
    """
    own = data / "labels.jsonl"
    found = {data.name: own} if own.is_file() else {p.parent.name: p for p in sorted(data.glob("*/labels.jsonl"))}
    if not found:
        raise InputError(f"{data}: neither it nor its folders hold labels.jsonl")
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise ConfigError(f"--sets {unknown[0]}: not in {data}; there are {', '.join(found)}")
    return {name: found[name] for name in wanted or found}


def check_peers(peers: Sequence[Peer]) -> None:
    """Check that each peer's environment is there.

    Raises:
        EngineError: one is not; the message says how to make it.
    """
    for peer in peers:
        if not peer.python.is_file():
            raise EngineError(f"{peer.python}: {peer.name} is not installed: run `make bench`, or use --no-peers")


def read_sets(
    contest: Contest, sets: Mapping[str, Path], limit: int | None, say: Callable[[str], None]
) -> dict[str, list[Figures]]:
    """Let everyone read every set, one after the other set by set, so that a busy machine slows all alike."""
    results = {}
    for name, labels in sets.items():
        results[name] = _read_set(contest, labels, load_labels(labels)[:limit])
        for line in (f"{name}:", *table(results[name]), ""):
            say(line)
    return results


def _read_set(contest: Contest, labels: Path, pages: Sequence[Page]) -> list[Figures]:
    images, rows = [labels.parent / page.image for page in pages], []
    for name in contest.names():
        run = run_reader(contest.command(name, images, warm=True), _environment(contest))
        sizes = model_bytes(ModelBundle.load(contest.bundle)) if name == OWN else (None, None)
        rows.append(figures(name, labels, pages, run, sizes))
    return rows


def _environment(contest: Contest) -> dict[str, str]:
    return {**own_environment(), "OMP_NUM_THREADS": str(contest.threads)}


def first_results(contest: Contest, image: Path) -> dict[str, float]:
    """Return the seconds from start to first page of each, with everything in the page cache."""
    times: dict[str, list[float]] = {name: [] for name in contest.names()}
    for _ in range(3):
        for name, known in times.items():
            known.append(run_reader(contest.command(name, [image], warm=False), _environment(contest)).first_s)
    return {name: min(values[1:]) for name, values in times.items()}


def model_times(contest: Contest, peer: Peer) -> list[ModelTime]:
    """Return times of detector and recogniser beside the peer's own, in alternating runs; medians of medians."""
    bundle = ModelBundle.load(contest.bundle)
    engine = choose_engine(bundle, "auto")
    rows = []
    for model, shape in MODEL_SHAPES.items():
        files = [str(path) for path in bundle.model_files(model, engine)]  # type: ignore[arg-type]
        own, other = [], []
        for _ in range(ROUNDS):
            own.append(native.run("measure", engine=engine, files=files, shape=shape, threads=contest.threads)["ms"])
            other.append(_peer_model_ms(contest, peer, model, shape))
        own_ms, peer_ms = statistics.median(own), statistics.median(other)
        rows.append(ModelTime(model, shape, own_ms, peer_ms, own_ms / peer_ms))
    return rows


def _peer_model_ms(contest: Contest, peer: Peer, model: str, shape: Sequence[int]) -> float:
    command = peer.command("model", peer.package, contest.threads, model, *shape, MODEL_RUNS)
    ended = subprocess.run(command, capture_output=True, text=True, env=_environment(contest), stdin=subprocess.DEVNULL)
    if ended.returncode:
        raise AgentError(f"{peer.name}: {(ended.stderr.strip().splitlines() or ['no message'])[-1]}")
    return float(ended.stdout.split()[-1])


def model_table(rows: Sequence[ModelTime]) -> list[str]:
    """Return the models' times as aligned lines."""
    head = ("model", "input", f"{OWN} ms", "RapidOCR's model on ONNX Runtime ms", "ratio")
    cells = [
        (
            row.model,
            "x".join(map(str, row.shape)),
            said(row.own_ms, ".1f"),
            said(row.peer_ms, ".1f"),
            said(row.ratio, ".2f"),
        )
        for row in rows
    ]
    return aligned([head, *cells])


def machine_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@click.command("bench")
@click.option(
    "--data", type=click.Path(path_type=Path), default=Path("samples"), show_default=True, help="Labelled sets."
)
@click.option("--sets", default="", help="Names of some of them, with commas between.")
@click.option("--limit", type=click.IntRange(1), help="At most so many pictures of each set.")
@click.option("--threads", type=click.IntRange(1, 64), default=1, show_default=True, help="Processor cores of each.")
@click.option(
    "--bundle", type=click.Path(path_type=Path), default=Path(f"models/build/ppocr-v4-{platform.machine()}-fp32")
)
@click.option("--peers/--no-peers", "with_peers", default=True, help="Compare with RapidOCR.")
@click.option(
    "--v4-python", type=click.Path(path_type=Path), default=Path(".venv-rapidocr-v4/bin/python"), show_default=True
)
@click.option(
    "--newest-python", type=click.Path(path_type=Path), default=Path(".venv-rapidocr/bin/python"), show_default=True
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/bench.json"), show_default=True)
def bench_command(
    data: Path,
    sets: str,
    limit: int | None,
    threads: int,
    bundle: Path,
    with_peers: bool,
    v4_python: Path,
    newest_python: Path,
    output: Path,
) -> None:
    """Measure this reader beside RapidOCR, in one run on the same pictures and threads."""
    every = (
        Peer("RapidOCR, PP-OCRv4", "rapidocr_onnxruntime", v4_python),
        Peer("RapidOCR, newest", "rapidocr", newest_python),
    )
    contest = Contest(bundle, threads, every if with_peers else ())
    check_peers(contest.peers)
    ModelBundle.load(bundle)
    _run(contest, find_sets(data, [name for name in sets.split(",") if name]), limit, output)


def _run(contest: Contest, sets: Mapping[str, Path], limit: int | None, output: Path) -> None:
    results = read_sets(contest, sets, limit, click.echo)
    first = {
        name: first_results(contest, labels.parent / load_labels(labels)[0].image) for name, labels in sets.items()
    }
    rows = [(name, *(said(seconds, ".2f") for seconds in times.values())) for name, times in first.items()]
    click.echo("\n".join(aligned([("start to first page, s", *contest.names()), *rows])))
    models = model_times(contest, contest.peers[0]) if contest.peers else []
    if models:
        click.echo("\n" + "\n".join(model_table(models)))
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    label, cores = ModelBundle.load(contest.bundle).label, os.cpu_count() or 1
    report = Report(machine_name(), cores, date, contest.threads, label, results, first, models)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    click.echo(f"\n{output}")
