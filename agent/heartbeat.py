"""A sign of life for whoever looks from outside: when a program last made progress, in the file whose lock it holds.

It is by the monotonic clock, which all containers of a machine share and which nobody sets: a wall clock that jumps
makes no program look dead.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from agent.clock import Clock

BEAT_S = 5.0
"""Progress is noted no oftener."""
_BYTES = 192  # always as many, so that a later note never needs more of a full disk


class Beat(msgspec.Struct, frozen=True):
    """What a program noted last.

    Attributes:
        namespace: of its process number; programs in other containers are in others, and see no lock of this one.
        boot: of the machine.
        at_s: when it made progress, or took the lock, by the monotonic clock.
        ready: its start was over then.
    """

    namespace: str
    boot: str
    at_s: float
    ready: bool = False


class Heart:
    """Notes progress in an open file."""

    def __init__(self, descriptor: int, clock: Clock | None = None) -> None:
        """Note that the program starts."""
        self._descriptor = descriptor
        self._clock = clock or Clock()
        self._namespace = namespace()
        self._noted_at = float("-inf")
        self._note(ready=False)

    def beat(self) -> None:
        """Note progress, now and then. Call it when something was done, never from a timer."""
        if self._clock.monotonic() - self._noted_at >= BEAT_S:
            self._noted_at = self._clock.monotonic()
            self._note(ready=True)

    def stop(self) -> None:
        """Note nothing more: the file is about to be closed, and its number may be another's next."""
        self._descriptor = -1

    def _note(self, *, ready: bool) -> None:
        now_s = int(self._clock.monotonic() * 1000) / 1000  # never rounded up, into what is to come
        told = Beat(self._namespace, self._clock.boot_id, now_s, ready)
        with contextlib.suppress(OSError):  # a full disk must not stop the program
            os.pwrite(self._descriptor, msgspec.json.encode(told).ljust(_BYTES - 1) + b"\n", 0)


def read(path: Path) -> Beat | None:
    """Return what a program noted last; None where there is nothing, or nothing that this user may read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Beat)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def ago_s(beat: Beat, clock: Clock) -> float:
    """Return how long ago that was, in seconds; infinite when it is by another clock: the machine was started anew."""
    ago = clock.monotonic() - beat.at_s
    return ago if beat.boot == clock.boot_id and ago >= 0 else float("inf")


def namespace() -> str:
    """Return what the numbers of processes count in here; empty where the system does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
