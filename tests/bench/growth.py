"""Looks where a worker's memory grows: `python -m tests.bench.growth [--kinds page,crop] [--stub] [--keep-freed]`.

The product's own loop, folder source, outbox and models in one process; another one puts files into the folder. One
JSON row after each so many pages: the microseconds that a full collection takes; what is resident of glibc's heap, of
other memory without a file (Python's small objects among it) and of files, in kB of 1,024 bytes; the blocks that
Python's small objects have, and what the heap has given out. With `--stub` 60 lines of drawn characters stand in for
the models; with `--keep-freed` Python keeps its stock of freed tuples. The last row is the growth per page over the
second half.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from agent import memory
from agent.clock import Clock
from agent.config import AgentConfig, load
from agent.openers import PageReader, open_reader, open_sources
from agent.outbox import Outbox
from agent.page import Frame, PageResult, TextLine
from agent.worker import Worker
from tests.agent_settings import agent_toml
from tests.command import ROOT
from tests.system.soak import BUNDLE
from tests.system.soak_pages import Mix, drawn, put, sets_of

WAITING = 6
LINES = 60
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+\s*(.*)")


class _Mallinfo(ctypes.Structure):
    """struct mallinfo2 of <malloc.h>."""

    _fields_ = tuple(
        (f"{name}_bytes", ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "given", "kept", "keepcost")
    )


class DrawnLines:
    """Reads other lines from every page, whatever is on it."""

    beside_bytes = 0

    def __init__(self, reader: PageReader) -> None:
        self.budget = reader.budget
        self._dice = random.Random(1)
        reader.close()

    def read(self, frame: Frame) -> PageResult:
        return PageResult("", frame.width, frame.height, tuple(self._line() for _ in range(LINES)), bundle="drawn")

    def _line(self) -> TextLine:
        text = "".join(chr(self._dice.randint(0x4E00, 0x9FA5)) for _ in range(self._dice.randint(2, 20)))
        quad = tuple((self._dice.random(), self._dice.random()) for _ in range(4))
        return TextLine(text, self._dice.random(), quad, self._dice.random())

    def rest(self) -> None:
        """Nothing is held."""

    rebuild = close = rest


def open_stub(config: AgentConfig) -> tuple[PageReader, str]:
    reader, label = open_reader(config)
    return DrawnLines(reader), label


def resident_kb() -> dict[str, int]:
    """Return what is resident, by where it comes from."""
    told = {"heap_kb": 0, "anonymous_kb": 0, "files_kb": 0}
    kind = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := _MAPPING.fullmatch(line):
            kind = {"[heap]": "heap_kb", "": "anonymous_kb"}.get(mapping[1], "files_kb")
        elif line.startswith("Rss:"):
            told[kind] += int(line.split()[1])
    return told


def sample(libc: ctypes.CDLL, pages: int) -> dict[str, int]:
    began = time.perf_counter()
    memory.collect()
    row = {"pages": pages, "collect_us": round(1e6 * (time.perf_counter() - began)), **resident_kb()}
    return {**row, "python_blocks": sys.getallocatedblocks(), "heap_given_kb": libc.mallinfo2().given_bytes >> 10}


def feed(inbox: Path, data: Path | None, kinds: tuple[str, ...]) -> None:
    """Keep some files waiting, until killed."""
    for item in Mix(sets_of(data) if data else drawn(1), 1, kinds).items(1 << 62):
        while sum(path.is_file() for path in inbox.iterdir()) >= WAITING:
            time.sleep(0.02)
        put(inbox, item)


@contextmanager
def fed(inbox: Path, data: Path | None, kinds: str) -> Iterator[None]:
    """Have another process put files into a folder."""
    command = [sys.executable, "-m", "tests.bench.growth", "--feed", str(inbox), "--kinds", kinds]
    feeder = subprocess.Popen([*command, *(["--data", str(data)] if data else [])], cwd=ROOT)
    try:
        yield
    finally:
        feeder.kill()
        feeder.wait()


def grow(home: Path, pages: int, every: int, *, stub: bool) -> list[dict[str, int]]:
    """Read so many pages; returns, and prints, a row for each `every` of them."""
    settings = home / "agent.toml"
    source = {"poll_s": 0.05, "give_up_s": 0.3, "again": "read", "keep_mb": 8192}
    limit = {"limit_mb": 256}
    settings.write_text(agent_toml(home, reader={"bundle": str(BUNDLE)}, memory=limit, source=source))
    config, clock = load(settings, AgentConfig), Clock()
    outbox = Outbox(Path(config.state_dir), config.outbox, role="worker", clock=clock)
    opened = partial(open_stub if stub else open_reader, config)
    worker = Worker(config, outbox, open_sources(config, clock), opened, clock)
    worker.start()
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Mallinfo
    rows: list[dict[str, int]] = []
    while (done := worker.state.accepted + worker.state.failed) < pages:
        if done >= every * (len(rows) + 1):
            rows.append(sample(libc, done))
            print(json.dumps(rows[-1]), flush=True)
        if not worker.tick():
            time.sleep(0.01)
    return [*rows, sample(libc, done)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="pages between two rows")
    parser.add_argument("--kinds", default="page", help="of tests/system/soak_pages.py; comma between")
    parser.add_argument("--data", type=Path, help="folder of labelled sets; without it pages are drawn")
    parser.add_argument("--stub", action="store_true", help="drawn lines in place of the models")
    parser.add_argument("--keep-freed", action="store_true", help="let Python keep freed tuples")
    parser.add_argument("--feed", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.feed:
        feed(given.feed, given.data, tuple(given.kinds.split(",")))
    logging.disable(logging.WARNING)
    if given.keep_freed:
        memory.collect = lambda: None
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "inbox").mkdir()
        with fed(home / "inbox", given.data, given.kinds):
            rows = grow(home, given.pages, given.every, stub=given.stub)
    first, last = rows[len(rows) // 2 - 1], rows[-1]
    count = last["pages"] - first["pages"]
    grown = {
        f"{name}_per_page": round((last[name] - first[name]) / count, 2)
        for name in first
        if name not in ("pages", "collect_us")
    }
    print(json.dumps(grown))


if __name__ == "__main__":
    main()
