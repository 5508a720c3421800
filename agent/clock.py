"""Time, in one place, so that a test can bend it: wall clock for people, monotonic for intervals, boot for both."""

from __future__ import annotations

import time
import uuid
from pathlib import Path


class Clock:
    """The machine's clocks. The wall clock may jump: nothing waits or expires by it."""

    def __init__(self) -> None:
        self.boot_id = _boot_id()

    def wall_ms(self) -> int:
        """Return milliseconds since 1970, UTC; 0 before it."""
        return max(0, time.time_ns() // 1_000_000)

    def monotonic(self) -> float:
        """Return seconds that only grow, since some moment of this boot; the same moment for all processes."""
        return time.monotonic()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return uuid.uuid4().hex  # every start then counts as a boot of its own
