"""What the worker says of itself: noted as it happens, written at every change and every few seconds."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import msgspec

from agent import health
from agent.clock import Clock

STATE_S = 5.0
RATE_S = 300.0


class Logbook:
    """Keeps the worker's state, and writes it for `edge-ocr status`, the uplink and the upload source."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        """Begin; nothing is written yet."""
        self._state_dir = state_dir
        self._clock = clock
        self.state = health.WorkerState(pid=os.getpid(), at_ms=0, started_ms=clock.wall_ms())
        self._written = self.state
        self._written_at = float("-inf")
        self._accepted_at: deque[float] = deque(maxlen=10_000)

    def note(self, **changes: object) -> None:
        """Change fields of the state."""
        self.state = msgspec.structs.replace(self.state, **changes)

    def accepted(self) -> None:
        """Count a page, for the total and for the pages a minute."""
        self._accepted_at.append(self._clock.monotonic())
        self.note(accepted=self.state.accepted + 1)

    @property
    def is_due(self) -> bool:
        """Whether it must be written: changed, or written long ago."""
        return self.state != self._written or self._clock.monotonic() - self._written_at >= STATE_S

    def write(self, most_mb: float) -> health.WorkerState:
        """Write the state.

        Args:
            most_mb: the highest peak of memory that was read so far, MB of 2**20 bytes.

        Returns:
            What was written: with the time, the pages a minute and the memory of now.
        """
        now = self._clock.monotonic()
        while self._accepted_at and now - self._accepted_at[0] > RATE_S:
            self._accepted_at.popleft()
        self._written, self._written_at = self.state, now
        told = msgspec.structs.replace(
            self.state,
            at_ms=self._clock.wall_ms(),
            pages_per_minute=round(60 * len(self._accepted_at) / RATE_S, 2),
            rss_mb=round(health.resident_mb(), 1),
            peak_mb=round(max(most_mb, health.peak_mb()), 1),
        )
        health.write_state(self._state_dir, "worker", told)
        return told
