"""SANE's program `scanimage`: what it is asked, what its answers mean, and a run of it that nobody waits for.

A program and not a binding: backends hang and crash, and then this ends only them. It ends with the number of a
SANE_Status (sane.h), so that no fault is told by its text; 1 also stands for a scanner that cannot be opened.
"""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import msgspec

PROGRAM = "scanimage"
PACKAGE = "sane-utils"
LOCK = "lock"

_MAX_OUTPUT_BYTES = 1 << 20
_WORDS_BYTES = 2000
_END_S = 2.0

EMPTY = 7  # SANE_STATUS_NO_DOCS
STUCK, ABSENT, REFUSED = "stuck", "absent", "setting"
UNCLEAR = frozenset(("closed", REFUSED, "unknown", "crash"))
"""Words of faults that scanimage's own words tell more of."""


class Fault(msgspec.Struct, frozen=True):
    """Why a scanner gives no pages.

    Attributes:
        word: one stable word for it.
        advice: what is wrong and what to do, one line.
        pause_s: it is tried again after so long.
    """

    word: str
    advice: str
    pause_s: float


_FAULTS = {
    1: Fault("closed", "the scanner cannot be opened: another program has it, or this user has no right to it", 10.0),
    2: Fault("cancelled", "the scan was cancelled at the scanner", 10.0),
    3: Fault("busy", "the scanner is busy: another program uses it, or it warms up", 5.0),
    4: Fault(REFUSED, "the scanner refuses a setting: compare them with what `scanimage -A` shows", 60.0),
    5: Fault("io", "the scanner ended a page too early", 10.0),
    6: Fault("jam", "paper is jammed: take it out, and put in again what was not read", 10.0),
    8: Fault("cover", "the scanner's cover is open: close it", 10.0),
    9: Fault("io", "the connection to the scanner failed: look at its cable and power", 10.0),
    10: Fault("memory", "scanimage has not enough memory: lower resolution_dpi", 30.0),
    11: Fault("denied", "this user may not use the scanner: see `edge-ocr check`", 30.0),
}
"""By SANE_Status."""

NO_PROGRAM = Fault("program", f"{PROGRAM} is missing: apt-get install {PACKAGE}", 60.0)
NO_PROGRESS = Fault(STUCK, "scanimage made no progress and was ended: switch the scanner off and on", 10.0)


def fault_of(status: int) -> Fault:
    """Return the fault that an exit status of scanimage tells, negative for a signal; not of 0 and `EMPTY`."""
    if status < 0:
        return Fault("crash", f"scanimage was ended by signal {-status}", 10.0)
    return _FAULTS.get(status) or Fault("unknown", f"scanimage ended with status {status}", 10.0)


class Device(msgspec.Struct, frozen=True):
    """A scanner that SANE found: its name there, and what it is for people."""

    name: str
    label: str


LIST = (PROGRAM, "-f", "%d|%v %m, %t%n")


def devices_in(lines: list[str]) -> tuple[Device, ...]:
    """Return the scanners in what `LIST` prints."""
    found = (line.partition("|") for line in lines)
    return tuple(Device(name, label.strip()) for name, bar, label in found if bar)


def list_devices(timeout_s: float, *, user: str = "") -> tuple[Device, ...] | Fault:
    """Return the scanners that SANE finds, waiting for it.

    Args:
        timeout_s: no longer than this.
        user: who looks, where this is not the one who runs this program; only root can ask.
    """
    said = said_by(LIST, timeout_s, user)
    return said if isinstance(said, Fault) else devices_in(said)


def said_by(command: tuple[str, ...], timeout_s: float, user: str = "") -> list[str] | Fault:
    """Return the lines that a command prints, waiting for it, or why it prints none."""
    uid, gid, groups = _identity(user) if user else (None, None, None)
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            env=_environment(),
            cwd="/",
            user=uid,
            group=gid,
            extra_groups=groups,
        )
    except FileNotFoundError:
        return NO_PROGRAM
    except subprocess.TimeoutExpired:
        return Fault(STUCK, f"scanimage takes longer than {timeout_s:g} s", 0.0)
    return fault_of(ran.returncode) if ran.returncode else ran.stdout.decode(errors="replace").splitlines()


def _identity(user: str) -> tuple[int, int, list[int]]:
    record = pwd.getpwnam(user)
    return record.pw_uid, record.pw_gid, os.getgrouplist(user, record.pw_gid)


def group_of(device: str) -> str:
    """Return the group of a USB scanner's node, as its SANE name gives the bus and the number; "" when it does not."""
    place = re.search(r"libusb:([0-9]{3}):([0-9]{3})\Z", device)
    try:
        return grp.getgrgid(os.stat(f"/dev/bus/usb/{place[1]}/{place[2]}").st_gid).gr_name if place else ""
    except (OSError, KeyError):
        return ""


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


# --------------------------------------------------------------------------------------------------------- a run


class Run:
    """A running scanimage, in a folder of its own that it keeps locked as long as it lives."""

    def __init__(self, arguments: tuple[str, ...], folder: Path) -> None:
        """Start it.

        Args:
            arguments: the command.
            folder: where it runs and puts pages.

        Raises:
            FileNotFoundError: the program is missing.
            OSError: it cannot be started now.
        """
        self._lines = b""
        self._taken = 0
        self._words = os.memfd_create("words")
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In a session of its own, so that control-C does not cut off the page at hand.
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._words,
                cwd=folder,
                env=_environment(),
                pass_fds=(lock,),
                start_new_session=True,
            )
            with suppress(OSError):  # a full disk
                os.write(lock, f"{self._process.pid}\n".encode())
        except OSError:
            os.close(self._words)
            raise
        finally:
            os.close(lock)  # it has its own
        assert self._process.stdout is not None
        self._out = self._process.stdout
        os.set_blocking(self._out.fileno(), False)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are lines or its end, or -1 after that."""
        return -1 if self._out.closed else self._out.fileno()

    def lines(self) -> list[str]:
        """Return the whole lines it has printed since the last call."""
        with suppress(BlockingIOError):
            while not self._out.closed:
                piece = os.read(self._out.fileno(), 1 << 16)
                if not piece or len(self._lines) > _MAX_OUTPUT_BYTES:
                    self._out.close()  # a closed pipe is never readable again, and nobody is woken for nothing
                self._lines += piece
        whole, _, self._lines = self._lines.rpartition(b"\n")
        return whole.decode(errors="replace").splitlines()

    def status(self) -> int | None:
        """Return the status it ended with, negative for a signal, or None."""
        return self._process.poll()

    def said(self) -> str:
        """Return the last line of what it complained about, for people."""
        size = os.fstat(self._words).st_size
        text = os.pread(self._words, _WORDS_BYTES, max(0, size - _WORDS_BYTES)).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.startswith(f"{PROGRAM}: ")]
        return "".join(c if c.isprintable() else "?" for c in (lines or [""])[-1])

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def finish(self, timeout_s: float) -> None:
        """Have it end after the page at hand: it ends when nobody takes its output; then have it ended."""
        self._out.close()
        for number, wait_s in ((0, timeout_s), (signal.SIGTERM, _END_S), (signal.SIGKILL, _END_S)):
            self.signal(number)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
                return

    def close(self) -> None:
        """Give descriptors back; it has ended."""
        self._out.close()
        os.close(self._words)


def is_running(folder: Path) -> bool:
    """Return whether a scanimage that an ended program has left runs in a folder."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def kill_left(folder: Path) -> None:
    """End a scanimage that `is_running` in a folder: while it holds the lock, the number in it is its own."""
    with suppress(OSError, ValueError):
        number = int((folder / LOCK).read_text(encoding="ascii"))
        if is_running(folder):
            os.kill(number, signal.SIGKILL)
