"""Keeps the worker below its memory limit over days: looks after every page, and says when something must be given up.

`Budget` decides what one page may take, from what is resident when the models are loaded. Here is seen to it that this
stays true: what is resident between pages must not grow past the margin that the budget left, and no page may have gone
past the limit.
"""

from __future__ import annotations

import logging
import resource
from contextlib import suppress
from typing import Literal

import msgspec

from agent import cgroup
from agent.health import peak_mb, status_bytes
from agent.memory import MB, margin_bytes, resident_bytes

_log = logging.getLogger(__name__)

Advice = Literal["", "rebuild", "restart"]

WARM_BYTES = 16 * MB
"""What the first pages load for good: pages of MKL's library 12 MB, the heap 5 MB. Measured, x86-64."""
RESERVED_BYTES = 96 * MB
"""Address space that is reserved and never touched: stacks of threads, glibc's arenas, MKL's. Measured 50 to 90 MB."""
_CLEAR_PEAK = "5"  # proc(5), /proc/PID/clear_refs


def allowed_mb(limit_mb: int) -> int:
    """Return what the worker may have: the configured limit, or that of its control group where it is lower."""
    group = cgroup.look()
    if not 0 < group.limit_bytes < limit_mb * MB:
        return limit_mb
    allowed = group.limit_bytes // MB
    _log.warning("the system allows this service %d MB, and memory.limit_mb is %d: using the former", allowed, limit_mb)
    return allowed


class Reading(msgspec.Struct, frozen=True):
    """Memory at a moment, in MB of 2**20 bytes.

    Attributes:
        resident_mb: of this process.
        peak_mb: at most since the last reading; since the start where the system does not let it be reset.
    """

    resident_mb: float
    peak_mb: float


class Ceiling:
    """Watches the memory of this process against a limit."""

    def __init__(self, limit_mb: int) -> None:
        """Make a ceiling.

        Args:
            limit_mb: what this process may have resident.
        """
        self.limit_mb = limit_mb
        self.most_mb = 0.0
        self._soft_bytes = limit_mb * MB
        self._pressed = 0
        self._rebuilt = False

    def settle(self, resident: int, *, beside_bytes: int = 0) -> None:
        """Begin: the models are loaded.

        Above the soft limit, what is resident now, what the first pages load for good and the budget's margin, the
        budget's sums are no longer right.

        Args:
            resident: bytes of this process now.
            beside_bytes: what other processes, that read with this one, have of the limit.
        """
        self.limit_mb -= beside_bytes // MB
        self._soft_bytes = resident + WARM_BYTES + margin_bytes()
        self._pressed = cgroup.look().pressed
        clear_peak()

    def read(self) -> Reading:
        """Return the memory now, and begin a new peak."""
        group = cgroup.look()
        if group.pressed > self._pressed:
            _log.warning(
                "the system holds this service back: its control group is at %.0f of %.0f MB; give it more, or lower"
                " memory.limit_mb",
                *(group.used_bytes / MB, group.limit_bytes / MB),
            )
            self._pressed = group.pressed
        reading = Reading(resident_bytes() / MB, peak_mb())
        self.most_mb = max(self.most_mb, reading.peak_mb)
        clear_peak()
        return reading

    def judge(self, reading: Reading) -> Advice:
        """Return what must be done before the next page.

        "rebuild": the models must be loaded anew, as what they hold has grown. "restart": that was not enough, or a
        page went past the limit.
        """
        if reading.peak_mb > self.limit_mb:
            _log.warning("a page took %.0f MB, and the limit is %d", reading.peak_mb, self.limit_mb)
            return "restart"
        if reading.resident_mb * MB <= self._soft_bytes:
            self._rebuilt = False
            return ""
        if self._rebuilt:
            return "restart"
        self._rebuilt = True
        return "rebuild"


def clear_peak() -> None:
    """Begin a new peak of resident memory, where the system lets it be done."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write(_CLEAR_PEAK)


def fence(limit_mb: int) -> None:
    """Let the kernel refuse memory to this process far above a limit, so that one page fails and nothing is killed.

    The limit of data segments counts private writable memory, touched or not, so some must be left for what is only
    reserved. A decoder or numpy then gets MemoryError, which is that page's verdict; native code that cannot bear it
    ends the process, which is counted against the page.
    """
    room = limit_mb * MB - resident_bytes() + RESERVED_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = status_bytes("VmData") + max(room, RESERVED_BYTES)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
