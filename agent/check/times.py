"""The clock: results carry its time, certificates are judged by it, and boards without a battery start in the past."""

from __future__ import annotations

import ctypes
import datetime
from collections.abc import Iterator
from pathlib import Path

from agent.check.finding import Finding, Subject

RELEASED_S = datetime.datetime(2026, 11, 1, tzinfo=datetime.timezone.utc).timestamp()
"""No clock that is right shows less."""
BACK_S = 120.0
_UNSYNCHRONISED = 0x40  # STA_UNSYNC of <sys/timex.h>
_SET = "timedatectl set-ntp true, or `date -s` where there is no network; see `timedatectl`"


def look(subject: Subject) -> Iterator[Finding]:
    """Look whether the clock can be right, and whether something keeps it so."""
    shown = datetime.datetime.fromtimestamp(subject.now_s, datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    kept, own = synchronised(), _has_own(subject.root)
    if subject.now_s < RELEASED_S:
        yield Finding("fail", "clock", f"{shown}: before this program was made", _SET)
        return
    if (ahead := _newest(subject.state_dir) - subject.now_s) > BACK_S:
        said = f"{shown}: {_span(ahead)} before the agent's last sign of life; it was set back, or is wrong"
        yield Finding("warn", "clock", said, _SET)
        return
    if kept:
        yield Finding("ok", "clock", f"{shown}, synchronised")
    else:
        without = (
            "" if own else "; this machine has no clock of its own (RTC), so it starts in the past after a power cut"
        )
        yield Finding("warn", "clock", f"{shown}, not synchronised{without}", _SET)


class _Timex(ctypes.Structure):
    """The beginning of struct timex, adjtimex(2); what follows `status` is not needed but has its place."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def synchronised() -> bool:
    """Return whether the kernel holds the clock to be synchronised, whoever does it."""
    timex = _Timex()
    try:
        asked = ctypes.CDLL("libc.so.6", use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        return False
    return asked >= 0 and not timex.status & _UNSYNCHRONISED


def _has_own(root: Path) -> bool:
    return any((root / "sys/class/rtc").glob("rtc*"))


def _newest(state_dir: Path) -> float:
    """Return when the agent last wrote something."""
    times = [0.0]
    for name in ("outbox.db", "worker.json", "uplink.json"):
        try:
            times.append((state_dir / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _span(seconds: float) -> str:
    return f"{seconds / 86_400:.0f} days" if seconds > 172_800 else f"{seconds / 60:.0f} minutes"
