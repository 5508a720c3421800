"""Tells systemd how this process is: sd_notify(3) and sd_listen_fds(3) without a library.

The worker has no network: the socket module is imported only where systemd asks to be told, and nothing but AF_UNIX is
opened with it. What is told is state and numbers, never what was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress

from agent.clock import Clock

_FEEDS = 4  # times in an interval, so that one datagram may be lost
_MAX_STATUS = 200
_FIRST_PASSED = 3  # SD_LISTEN_FDS_START


class Notifier:
    """Tells what is asked for; where nobody asked it says nothing."""

    def __init__(
        self,
        address: str = "",
        watchdog_s: float = 0.0,
        clock: Clock | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        """Make a notifier.

        Args:
            address: of the socket, a path or "@" and an abstract name; "" is nobody.
            watchdog_s: the process is ended when it tells of no progress for so long; 0: it is not watched.
            clock: time.
            beat: is called at each progress, whoever listens.
        """
        self._address = address
        self._every_s = watchdog_s / _FEEDS
        self._clock = clock or Clock()
        self._beat = beat
        self._fed_at = float("-inf")
        self._status = ""

    def ready(self) -> None:
        """Tell that the start is over. A process that has replaced itself may tell it again."""
        self._send("READY=1")
        self.progress()

    def progress(self) -> None:
        """Feed the watchdog. Call it when something was done, never from a timer: a loop that hangs must starve it."""
        if self._beat is not None:
            self._beat()
        now = self._clock.monotonic()
        if self._every_s > 0 and now - self._fed_at >= self._every_s and self._send("WATCHDOG=1"):
            self._fed_at = now

    def status(self, line: str) -> None:
        """Tell a line for `systemctl status`, when it is another one."""
        line = " ".join(line.split())[:_MAX_STATUS]
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def stopping(self) -> None:
        """Tell that the process ends, as it was told to."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> bool:
        """Send a datagram, if anyone listens; returns whether it went. The program goes on either way."""
        if not self._address:
            return False
        import socket

        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(message.encode("utf-8", "replace"), address)
            return True
        return False


def connect(
    clock: Clock | None = None, environ: Mapping[str, str] = os.environ, beat: Callable[[], None] | None = None
) -> Notifier:
    """Return a notifier to whoever started this process; `beat` is called at each progress."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return Notifier(beat=beat)
    return Notifier(address, _watchdog_s(environ), clock, beat)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog's interval, 0 where this process is not meant."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    with suppress(ValueError):
        return max(0, int(environ.get("WATCHDOG_USEC", "0"))) / 1e6
    return 0.0


def keep_passed_sockets(environ: Mapping[str, str] = os.environ) -> None:
    """Let the sockets that systemd passed outlive `os.execv`: the process keeps its number, so they stay its own."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return
    with suppress(ValueError):
        for descriptor in range(_FIRST_PASSED, _FIRST_PASSED + int(environ.get("LISTEN_FDS", "0"))):
            with suppress(OSError):
                os.set_inheritable(descriptor, True)
