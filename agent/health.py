"""What the long-running programs tell about themselves: state files, log lines, a lock that lets one of each run."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import sys
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from agent import heartbeat
from agent.clock import Clock
from agent.errors import BusyError, InputError

Role = Literal["worker", "uplink"]
STALE_S = 30.0
"""A state file older than this is of a program that hangs or is gone."""
WATCHDOG_S: dict[Role, float] = {"worker": 120.0, "uplink": 60.0}
"""Without progress for so long a program hangs: `WatchdogSec` of its unit."""
START_S: dict[Role, float] = {"worker": 180.0, "uplink": 60.0}
"""And when it is not ready after this: `TimeoutStartSec`."""


class WorkerState(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker does, written at every change and at least every ten seconds.

    Attributes:
        pid: of the process.
        at_ms: when this was written.
        started_ms: when the process started.
        reading: it takes pages; otherwise `held` says why not.
        held: "", "paused", "full", "disk", "readonly" or "failing".
        accepted: pages since the start.
        failed: pages refused since the start.
        skipped: pictures known already, since the start.
        pages_per_minute: over the last five minutes.
        rss_mb: resident memory now.
        peak_mb: and at most, since the start.
        limit_mb: what it may have.
        rebuilds: how often the models were loaded anew since the start, because memory had grown.
        bundle: label of the models.
        last_error: one line; empty when there was none.
        troubles: of sources that give no pages though they should, one line each.
    """

    pid: int
    at_ms: int
    started_ms: int
    reading: bool = True
    held: str = ""
    accepted: int = 0
    failed: int = 0
    skipped: int = 0
    pages_per_minute: float = 0.0
    rss_mb: float = 0.0
    peak_mb: float = 0.0
    limit_mb: int = 0
    rebuilds: int = 0
    bundle: str = ""
    last_error: str = ""
    troubles: tuple[str, ...] = ()


class UplinkState(msgspec.Struct, frozen=True, kw_only=True):
    """What the uplink does, written at every change and at least every ten seconds.

    Attributes:
        pid: of the process.
        at_ms: when this was written.
        started_ms: when the process started.
        connection: "connecting", "online", "waiting" (for the next attempt), "no collector" or "refused".
        reason: why it is not online: one line that says what to do; empty when it is.
        session: connections so far, over all starts.
        sent: results published since the start.
        brokered: of those the broker took.
        stored: of those a collector confirmed.
        refused: of those it refused.
        collectors: names that are online.
        alarms: stable words for what someone should look at.
        rss_mb: resident memory now.
        last_error: one line; empty when there was none.
    """

    pid: int
    at_ms: int
    started_ms: int
    connection: str = "connecting"
    reason: str = ""
    session: int = 0
    sent: int = 0
    brokered: int = 0
    stored: int = 0
    refused: int = 0
    collectors: tuple[str, ...] = ()
    alarms: tuple[str, ...] = ()
    rss_mb: float = 0.0
    last_error: str = ""


S = TypeVar("S", WorkerState, UplinkState)


def write_state(state_dir: Path, role: Role, state: WorkerState | UplinkState) -> None:
    """Replace a program's state file. It is for people to look at: a full disk must not stop the program."""
    fresh = f"{state_dir}/{role}.new"  # a plain string: pathlib would intern its parts, at every page (cgroup.py)
    with contextlib.suppress(OSError):
        with open(fresh, "wb") as file:
            file.write(msgspec.json.encode(_utf8(state)) + b"\n")
        os.replace(fresh, f"{state_dir}/{role}.json")


def _utf8(state: WorkerState | UplinkState) -> WorkerState | UplinkState:
    """Return a state without halves of characters: names of files may bring them, and JSON cannot say them."""
    texts = {name: text for name in state.__struct_fields__ if isinstance(text := getattr(state, name), str)}
    return msgspec.structs.replace(
        state, **{name: text.encode("utf-8", "replace").decode() for name, text in texts.items()}
    )


def read_state(state_dir: Path, role: Role, kind: type[S]) -> S | None:
    """Return what a program last said, or None."""
    try:
        return msgspec.json.decode((state_dir / f"{role}.json").read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def running(state_dir: Path, role: Role, clock: Clock | None = None) -> bool:
    """Tell whether a program of a kind runs on a state directory: here by its lock, in other containers by progress."""
    return holder(state_dir, role) is not None or runs_elsewhere(state_dir, role, clock or Clock())


def holder(state_dir: Path, role: Role) -> int | None:
    """Return the process that holds a lock, None when none that can be seen does; nothing is locked to ask."""
    try:
        inode = os.stat(state_dir / f"{role}.lock").st_ino  # the device's number there is another on btrfs
        with open("/proc/locks", encoding="ascii") as file:
            rows = [row.split() for row in file]
    except OSError:
        return None
    return next((int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].endswith(f":{inode}")), None)


def runs_elsewhere(state_dir: Path, role: Role, clock: Clock) -> bool:
    """Tell whether a program in another container made progress of late; the system shows its lock to nobody else."""
    beat = heartbeat.read(state_dir / f"{role}.lock")
    return (
        beat is not None
        and beat.namespace != heartbeat.namespace()
        and heartbeat.ago_s(beat, clock) <= WATCHDOG_S[role]
    )


def silent_s(state: WorkerState | UplinkState, now_ms: int) -> float:
    """Return how long ago a program wrote its state, in seconds; more than `STALE_S` when the clock went back."""
    ago_s = (now_ms - state.at_ms) / 1000
    return ago_s if ago_s > -STALE_S else -ago_s


def process_id() -> int:
    """Return the number of this process."""
    return os.getpid()


def resident_mb() -> float:
    """Return the resident memory of this process, without a package for it."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


def peak_mb() -> float:
    """Return the largest resident memory since the start, or a reset; unlike ru_maxrss without the parent's."""
    return status_bytes("VmHWM") / (1 << 20)


def status_bytes(name: str) -> int:
    """Return a size that the kernel tells of this process, such as "VmData"; 0 where it tells none."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(f"{name}:")), 0)


class Lock:
    """Lets one program of a kind run on a state directory; the system frees it when the process ends.

    Attributes:
        heart: notes the program's progress in the same file.
    """

    def __init__(self, state_dir: Path, role: Role, clock: Clock | None = None) -> None:
        """Take the lock; the directory is made when it is missing.

        Raises:
            InputError: the directory cannot be made or written.
            BusyError: another process has the lock.
        """
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(state_dir / f"{role}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"{state_dir}: {error.strerror}: state_dir must be writable") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise BusyError(f"{state_dir}: another {role} runs on it; end it first") from error
        self.heart = heartbeat.Heart(self._descriptor, clock)

    def close(self) -> None:
        """Free the lock."""
        self.heart.stop()
        os.close(self._descriptor)


class _Form(logging.Formatter):
    """One line a record: with its time, or under systemd with the journal's priority instead."""

    _PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def __init__(self, program: str, journal: bool) -> None:
        super().__init__("%(message)s" if journal else f"%(asctime)s %(levelname)-7s {program}: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).splitlines() or [""]
        priority = next((p for level, p in self._PRIORITY if record.levelno >= level), 7)
        before = f"<{priority}>" if self._journal else ""  # the journal wants it on each line
        return before + f"\n{before}\t".join(lines)


def set_up_logging(program: str, level: str) -> None:
    """Send log lines to standard error, for people or for systemd's journal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Form(program, _goes_to_journal()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def _goes_to_journal() -> bool:
    """Tell whether standard error is what systemd connected: children with another one inherit the variable too."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def set_level(level: str) -> None:
    """Change the least severe messages that are logged."""
    logging.getLogger().setLevel(level.upper())
