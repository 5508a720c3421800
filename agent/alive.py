"""What `edge-ocr alive` tells: whether worker and uplink make progress. For whoever has no watchdog, as a container."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import heartbeat
from agent.clock import Clock
from agent.health import START_S, WATCHDOG_S, Role, holder, runs_elsewhere

ABORT_S = 2.0
"""A program that is to end has so long to say where it hung."""


class Sign(msgspec.Struct, frozen=True):
    """How a program is.

    Attributes:
        role: of the program.
        said: one line for people.
        well: it made progress of late.
        hangs: it runs here and did not for longer than it may.
        pid: of its process; 0 when it does not run here.
    """

    role: Role
    said: str
    well: bool = False
    hangs: bool = False
    pid: int = 0


def look(state_dir: Path, role: Role, clock: Clock | None = None) -> Sign:
    """Return how a program is, by its lock and what it noted; it is not asked, so one that hangs delays nothing."""
    clock = clock or Clock()
    pid = holder(state_dir, role)
    if pid is None:
        if runs_elsewhere(state_dir, role, clock):
            return Sign(role, f"{role}: makes progress, in another container", well=True)
        return Sign(role, f"{role}: not running")
    beat = heartbeat.read(state_dir / f"{role}.lock")
    if beat is None:
        return Sign(role, f"{role}: runs, but what it noted cannot be read; look as its user, or as root", pid=pid)
    return _judged(role, beat, heartbeat.ago_s(beat, clock), pid)


def _judged(role: Role, beat: heartbeat.Beat, ago_s: float, pid: int) -> Sign:
    if ago_s == float("inf"):
        return Sign(role, f"{role}: runs, but what it noted is by another clock", pid=pid)
    allowed_s = WATCHDOG_S[role] if beat.ready else START_S[role]
    if ago_s > allowed_s:
        what = "no progress" if beat.ready else "not ready"
        return Sign(role, f"{role}: {what} for {ago_s:.0f} s, {allowed_s:.0f} s are allowed", hangs=True, pid=pid)
    if not beat.ready:
        return Sign(role, f"{role}: starting, for {ago_s:.0f} s", pid=pid)
    return Sign(role, f"{role}: made progress {ago_s:.0f} s ago", well=True, pid=pid)


def end(sign: Sign, state_dir: Path, abort_s: float = ABORT_S) -> bool:
    """End a program that hangs, as systemd's watchdog would; false when it has ended by itself, or may not be ended."""
    try:
        for number in _signals(abort_s):
            if holder(state_dir, sign.role) != sign.pid:  # it has ended; the number may be another's
                break
            os.kill(sign.pid, number)
    except OSError:
        return False
    return holder(state_dir, sign.role) != sign.pid


def _signals(abort_s: float) -> Iterator[signal.Signals]:
    """Give the signals in turn. SIGABRT has Python's fault handler, where it is on, say where the program hung."""
    yield signal.SIGABRT
    time.sleep(abort_s)
    yield signal.SIGKILL
    time.sleep(0.2)
