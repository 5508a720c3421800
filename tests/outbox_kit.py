"""What tests of the outbox share: a clock that bends, results that prove themselves, a small outbox."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agent.clock import Clock
from agent.config import OutboxConfig
from agent.outbox import Outbox
from agent.protocol import Range

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where thousands of small files are written and synchronised in no time."""
NO_BALLAST = OutboxConfig(min_free_mb=0, ballast_mb=0)
DAY_S = 86_400.0


class BentClock(Clock):
    """A clock that a test sets: the wall clock jumps, the monotonic one runs, a boot ends."""

    def __init__(self) -> None:
        self.boot_id = "first"
        self.wall_s = 1_700_000_000.0
        self.mono_s = 1000.0

    def wall_ms(self) -> int:
        return max(0, int(self.wall_s * 1000))

    def monotonic(self) -> float:
        return self.mono_s

    def run(self, seconds: float) -> None:
        self.wall_s += seconds
        self.mono_s += seconds

    def boot(self, off_s: float = 60.0) -> None:
        self.boot_id += "."
        self.wall_s += off_s
        self.mono_s = 5.0


def in_memory() -> Iterator[Path]:
    """A directory of its own, for a fixture."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:
        yield Path(path)


@contextlib.contextmanager
def opened(path: Path, config: OutboxConfig = NO_BALLAST, **more) -> Iterator[Outbox]:
    """An outbox that is closed at the end."""
    outbox = Outbox(path, config, **{"role": "worker", **more})
    try:
        yield outbox
    finally:
        outbox.close()


def result(key: str, size: int = 0) -> bytes:
    """The result of a page: the same for the same key and size, and no other."""
    noise = hashlib.shake_128(key.encode()).hexdigest(max(8, size // 2))
    return b'{"page":"%s","noise":"%s"}' % (key.encode(), noise.encode())


def fill(outbox: Outbox, count: int, first: int = 0, size: int = 0) -> list[str]:
    """Accept pages named by numbers; returns their keys."""
    keys = [f"page-{number:05}" for number in range(first, first + count)]
    for key in keys:
        outbox.begin(key, "dock", f"{key}.jpg")
        assert outbox.accept(key, result(key, size)) is not None
    return keys


def keys(outbox: Outbox, state: int | None = None) -> list[str]:
    """Keys of the rows in the outbox."""
    return [row.key for row in outbox.rows(state)]


def whole(epoch: str, *runs: Range) -> dict[str, tuple[Range, ...]]:
    """Runs of one epoch, as marks take them."""
    return {epoch: runs}
