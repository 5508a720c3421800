"""Gives the agent thousands of mixed pages and watches its memory and descriptors; then accounts for every page."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from agent.config import OutboxConfig
from agent.health import WorkerState, read_state
from agent.outbox import Outbox
from agent.page import PageResult, from_json
from converters.scores import Line, Page, score
from tests.agent_settings import agent_toml
from tests.command import EDGE_OCR, ROOT
from tests.system.soak_pages import Item, Mix, put

BUNDLE = ROOT / "models" / "build" / "ppocr-v4-x86_64-fp32"
WAITING = 40  # files ahead of the worker: more than it reads in a minute
SAMPLE_S = 0.1
SETTLED, WARM = 0.1, 60  # a tenth of the pages, or so many: until then everything has been loaded once
SLOPE_MB, LONG = 1.0, 1000  # per 1,000 pages; asked of runs with so many
GROWTH_MB = 10.0  # of the median between pages, from the first quarter to the last
STUCK_S = 180.0


class Sample(msgspec.Struct, frozen=True):
    """The worker at a moment.

    Attributes:
        at_s: since the start.
        pages: with a verdict so far.
        resting_mb: its memory between two pages, as it says itself.
        family_mb: its memory now and that of its processes.
        descriptors: open ones.
        threads: of the process.
        start: how often it had been started anew.
    """

    at_s: float
    pages: int
    resting_mb: float
    family_mb: float
    descriptors: int
    threads: int
    start: int


class Watch:
    """Samples the worker from outside, ten times a second."""

    def __init__(self, home: Path) -> None:
        self.samples: list[Sample] = []
        self.peak_mb = 0.0
        self.restarts = self.rebuilds = 0
        self._home = home
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        before: WorkerState | None = None
        rebuilt = 0
        while not self._end.wait(SAMPLE_S):
            state = read_state(self._home / "state", "worker", WorkerState)
            if state is None:
                continue
            self.peak_mb = max(self.peak_mb, state.peak_mb)
            if before is not None and (state.pid, state.started_ms) != (before.pid, before.started_ms):
                self.restarts += 1
                rebuilt += before.rebuilds
            self.rebuilds = rebuilt + state.rebuilds
            before = state
            with suppress(psutil.NoSuchProcess, FileNotFoundError):
                self._sample(state)

    def _sample(self, state: WorkerState) -> None:
        process = psutil.Process(state.pid)
        own, command = process.memory_info().rss / (1 << 20), process.cmdline()
        beside = 0.0
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                # One that has not yet become its program is the worker's memory, seen a second time.
                beside += child.memory_info().rss / (1 << 20) if child.cmdline() != command else 0.0
        self.peak_mb = max(self.peak_mb, own + beside)
        self.samples.append(
            Sample(
                time.monotonic() - self._began,
                state.accepted + state.failed,
                state.rss_mb,
                own + beside,
                process.num_fds(),
                process.num_threads(),
                self.restarts,
            )
        )


@contextmanager
def service(home: Path, limit_mb: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run the agent as a service: supervisor and worker, its log in `agent.log`."""
    (home / "inbox").mkdir(parents=True)
    settings = home / "agent.toml"
    told = agent_toml(
        home,
        reader={"bundle": str(BUNDLE)},
        memory={"limit_mb": limit_mb},
        source={"poll_s": 0.2, "give_up_s": 0.3, "again": "read", "keep_mb": 8192},
        outbox={"max_mb": 2048},
    )
    settings.write_text(told, encoding="utf-8")
    with open(home / "agent.log", "wb") as log:
        process = subprocess.Popen((*EDGE_OCR, "run", "-c", settings), cwd=ROOT, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def waiting(home: Path) -> int:
    """Return how many files have no verdict."""
    inbox, work = home / "inbox", home / "inbox" / ".edge-ocr" / "work"
    claimed = sum(1 for _ in work.iterdir()) if work.is_dir() else 0
    return claimed + sum(entry.is_file() and not entry.name.startswith(".") for entry in os.scandir(inbox))


def soak(home: Path, mix: Mix, pages: int, limit_mb: int) -> dict[str, Any]:
    """Run so many pages through a service; returns the account and draws the curves."""
    items: list[Item] = []
    began = time.monotonic()
    with service(home, limit_mb) as process:
        watch = Watch(home)
        for item in mix.items(pages):
            while waiting(home) >= WAITING:
                assert process.poll() is None, f"the service ended: {home / 'agent.log'}"
                time.sleep(0.05)
            put(home / "inbox", msgspec.structs.replace(item))
            items.append(msgspec.structs.replace(item, content=b""))
            _progress(watch, pages)
        _drain(home, process, watch, pages)
        watch.stop()
    account = {
        "limit_mb": limit_mb,
        **_verdicts(home, items),
        **_memory(watch, limit_mb),
        **_accuracy(home, mix, items),
        "service_deaths": 0 if process.returncode == 0 else 1,
        "worker_deaths": (home / "agent.log").read_text(errors="replace").count(" ended with "),
        "seconds": round(time.monotonic() - began, 1),
    }
    _plot(watch, limit_mb, home / "memory.png")
    return account


def _drain(home: Path, process: subprocess.Popen[bytes], watch: Watch, pages: int) -> None:
    """Wait until every file has its verdict; a service that does nothing for long is stuck."""
    before, since = None, time.monotonic()
    while left := waiting(home):
        assert process.poll() is None, f"the service ended: {home / 'agent.log'}"
        time.sleep(0.2)
        _progress(watch, pages)
        now = left, watch.samples[-1].pages if watch.samples else 0
        if now != before:
            before, since = now, time.monotonic()
        assert time.monotonic() - since < STUCK_S, f"{left} files have no verdict: {home}"


def _progress(watch: Watch, pages: int) -> None:
    if sys.stderr.isatty() and watch.samples:
        last = watch.samples[-1]
        print(f"\r{last.pages}/{pages} pages, {last.at_s:.0f} s, {last.family_mb:.0f} MB ", end="", file=sys.stderr)


def results(home: Path) -> list[PageResult]:
    """Return every accepted page."""
    outbox = Outbox(home / "state", OutboxConfig(max_mb=2048), role="tool")
    try:
        return [from_json(row.result) for row in outbox.rows(None, 10_000_000, 0)]
    finally:
        outbox.close()


def _verdicts(home: Path, items: list[Item]) -> dict[str, Any]:
    """Account for every file: rows it became, or the reason it was refused for."""
    rows = Counter(page.image for page in results(home))
    failed = {path.name for path in (home / "inbox" / "failed").glob("*") if not path.name.endswith(".reason.txt")}
    notes = {name: (home / "inbox" / "failed" / f"{name}.reason.txt") for name in failed}
    reasons = Counter(note.read_text().split(":")[0] for note in notes.values() if note.exists())
    lost = [item.name for item in items if rows[item.name] < item.pages and item.name not in failed]
    refused = [item.name for item in items if item.pages and item.name in failed]
    return {
        "files": len(items),
        "pages": sum(max(1, item.pages) for item in items),
        "rows": sum(rows.values()),
        "lost": lost,
        "refused": refused,
        "unexplained": [name for name in failed if not notes[name].exists()],
        "taken_although_broken": [item.name for item in items if not item.pages and item.name not in failed],
        "duplicated": [item.name for item in items if item.pages and rows[item.name] > item.pages],
        "reasons": dict(sorted(reasons.items())),
    }


def _memory(watch: Watch, limit_mb: int) -> dict[str, Any]:
    settled = steady(watch.samples)
    grown, error = slope(settled)
    quarter = max(1, len(settled) // 4)
    ends = settled[:quarter], settled[-quarter:]
    return {
        "peak_mb": round(watch.peak_mb, 1),
        "resting_mb": [statistics.median(s.resting_mb for s in part) for part in ends],
        "slope_mb_per_1000": round(grown, 2),
        "slope_error": round(error, 2),
        "descriptors": [statistics.mode(s.descriptors for s in part) for part in ends],
        "threads": [statistics.mode(s.threads for s in part) for part in ends],
        "restarts": watch.restarts,
        "rebuilds": watch.rebuilds,
    }


def steady(samples: list[Sample]) -> list[Sample]:
    """Return the samples of the longest time without a restart, from when everything had been loaded once."""
    ((start, _),) = Counter(sample.start for sample in samples).most_common(1)
    longest = [sample for sample in samples if sample.start == start]
    last = longest[-1].pages
    return [sample for sample in longest if sample.pages >= min(max(SETTLED * last, WARM), last / 2)]


def slope(samples: list[Sample]) -> tuple[float, float]:
    """Return the growth of the memory between pages, MB per 1,000 pages, by least squares; and its standard error."""
    resting = {sample.pages: sample.resting_mb for sample in samples}
    if len(resting) < 10:
        return 0.0, float("inf")
    fitted, errors = np.polyfit([pages / 1000 for pages in resting], list(resting.values()), 1, cov=True)
    return float(fitted[0]), float(errors[0, 0] ** 0.5)


def _accuracy(home: Path, mix: Mix, items: list[Item]) -> dict[str, Any]:
    """Return char_f1 of each set, over all readings of its pictures."""
    names = {item.name: item.label for item in items if item.label}
    labels: dict[str, list[Page]] = {}
    read: dict[str, Page] = {}
    for page in results(home):
        label = names.get(page.image)
        if label is None:
            continue
        lines = tuple(Line(line.text, quad=line.quad) for line in page.lines)
        read[page.image] = Page(page.image, lines)
        truth = msgspec.structs.replace(mix.labels[label], image=page.image)
        labels.setdefault(label.partition("/")[0], []).append(truth)
    by_set = {name: round(score(pages, read).char_f1, 4) for name, pages in sorted(labels.items())}
    return {"char_f1": by_set, "mean_char_f1": round(statistics.mean(by_set.values()), 4) if by_set else None}


def missed(account: dict[str, Any]) -> list[str]:
    """Return the bars that an account misses."""
    bars = {
        "peak": account["peak_mb"] <= account["limit_mb"],
        # The heap takes some hundred pages to its full size.
        "slope": account["pages"] < LONG or account["slope_mb_per_1000"] <= SLOPE_MB,
        "growth": account["resting_mb"][1] - account["resting_mb"][0] <= GROWTH_MB,
        "lost": not account["lost"] and not account["duplicated"],
        "explained": not account["unexplained"] and not account["taken_although_broken"],
        "descriptors": account["descriptors"][1] <= account["descriptors"][0],
        "threads": account["threads"][1] <= account["threads"][0],
        "deaths": not account["service_deaths"] and not account["worker_deaths"],
    }
    return [name for name, held in bars.items() if not held]


def _plot(watch: Watch, limit_mb: int, out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    pages = [sample.pages for sample in watch.samples]
    above.plot(pages, [sample.family_mb for sample in watch.samples], lw=0.4, color="#4c72b0", label="resident")
    above.plot(pages, [sample.resting_mb for sample in watch.samples], lw=0.8, color="#dd8452", label="between pages")
    above.axhline(limit_mb, color="#c44e52", lw=1, label=f"limit, {limit_mb} MB")
    above.set_ylabel("MB, worker and its processes")
    above.set_ylim(0, limit_mb * 1.1)
    above.legend(frameon=False)
    below.plot(pages, [sample.descriptors for sample in watch.samples], lw=0.6, label="descriptors")
    below.plot(pages, [sample.threads for sample in watch.samples], lw=0.6, label="threads")
    below.set_xlabel("pages")
    below.set_ylim(0)
    below.legend(frameon=False)
    figure.savefig(out, dpi=110)
