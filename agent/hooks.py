"""Commands that are told of accepted and failed pages: one at a time, beside the reading, never in its way.

What waits is in memory only: a hook is told at most once, and not at all when the worker is killed. Whoever must not
miss a page follows the outbox.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections import deque
from contextlib import suppress

import msgspec

from agent.clock import Clock
from agent.config import HooksConfig
from agent.errors import readable

_log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20  # that wait, together
END_S = 5.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class FailedPage(msgspec.Struct, frozen=True):
    """What a hook is told of a page that was refused.

    Attributes:
        key: stable identity of the page.
        source: where it came from.
        name: what people know it by.
        reason: one stable word.
        error: one line.
        page: number in its document; 0 for a picture.
        pages: pages of its document; 0 for a picture.
    """

    key: str
    source: str
    name: str
    reason: str
    error: str
    page: int = 0
    pages: int = 0


class _Running(msgspec.Struct, frozen=True):
    """A hook that was started.

    Attributes:
        process: its.
        pidfd: readable when it has ended; -1 where the system has none.
        until: it is killed at this moment, seconds, monotonic; never again once it was.
    """

    process: subprocess.Popen[bytes]
    pidfd: int
    until: float


class Hooks:
    """Starts the configured commands; stepped by the worker between pages."""

    def __init__(self, config: HooksConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._waiting: deque[tuple[str, tuple[str, ...], bytes]] = deque()
        self._bytes = 0
        self._running: _Running | None = None
        self._missed = 0
        self._lag_said = False
        self._broken: set[str] = set()

    @property
    def missed(self) -> int:
        """How many pages no hook was told of, because hooks were too slow or could not be started."""
        return self._missed

    def accepted(self, result: bytes) -> None:
        """Have an accepted page told: its result as it was kept, JSON."""
        self._add("accepted", self._config.on_accepted, result)

    def failed(self, page: FailedPage) -> None:
        """Have a page told that was refused."""
        if self._config.on_failed:
            told = msgspec.structs.replace(page, error=readable(page.error))  # a file's path is in it
            self._add("failed", self._config.on_failed, msgspec.json.encode(told))

    def _add(self, event: str, command: tuple[str, ...], said: bytes) -> None:
        if not command:
            return
        self._waiting.append((event, command, said))
        self._bytes += len(said)
        while len(self._waiting) > self._config.max_waiting or (self._bytes > MAX_BYTES and len(self._waiting) > 1):
            self._bytes -= len(self._waiting.popleft()[2])
            self._missed += 1
            if not self._lag_said:
                self._lag_said = True
                _log.warning("hooks are slower than pages come: the oldest pages are not told")

    def tick(self) -> None:
        """See whether the running hook has ended or is to be, and start the next; takes no time to speak of."""
        if self._running is not None and not self._has_ended(self._running):
            return
        if self._waiting:
            self._start(*self._waiting.popleft())
        elif self._lag_said:
            self._lag_said = False
            _log.info("hooks have caught up; %d pages were not told since the start", self._missed)

    def next_s(self) -> float:
        """Return the seconds until `tick` has something to do although `filenos` stay silent."""
        if self._running is None:
            return 0.0 if self._waiting else float("inf")
        left_s = max(0.0, self._running.until - self._clock.monotonic())
        return left_s if self._running.pidfd >= 0 else min(0.1, left_s)

    def filenos(self) -> tuple[int, ...]:
        """Return a descriptor that is readable when the running hook has ended."""
        return (self._running.pidfd,) if self._running is not None and self._running.pidfd >= 0 else ()

    def _start(self, event: str, command: tuple[str, ...], said: bytes) -> None:
        self._bytes -= len(said)
        environment = {"PATH": _PATH, "LANG": "C.UTF-8", "EDGE_OCR_EVENT": event}
        try:
            # A file in memory and not a pipe: nobody has to wait until all of it is read.
            with os.fdopen(os.memfd_create("page"), "wb") as file:
                file.write(said + b"\n")
                file.seek(0)
                process = subprocess.Popen(
                    command,
                    stdin=file,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=environment,
                    start_new_session=True,
                )
        except OSError as error:
            self._missed += 1
            if command[0] not in self._broken:
                self._broken.add(command[0])
                _log.warning("hook %s cannot be started: %s", command[0], error.strerror)
            return
        self._broken.discard(command[0])
        pidfd = -1
        with suppress(OSError):  # Linux before 5.3
            pidfd = os.pidfd_open(process.pid)
        self._running = _Running(process, pidfd, self._clock.monotonic() + self._config.timeout_s)

    def _has_ended(self, running: _Running) -> bool:
        status = running.process.poll()
        if status is None:
            if self._clock.monotonic() >= running.until:
                _log.warning("hook %s took longer than %g s and is killed", _name(running), self._config.timeout_s)
                self._kill(running)
            return False
        if status != 0 and running.until < float("inf"):
            how = f"status {status}" if status > 0 else f"signal {-status}"
            _log.warning("hook %s ended with %s", _name(running), how)
        self._let_go(running)
        return True

    def _kill(self, running: _Running) -> None:
        """Kill a hook and all that it started in its group; the number is its until its end is seen."""
        with suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        self._running = msgspec.structs.replace(running, until=float("inf"))

    def _let_go(self, running: _Running) -> None:
        if running.pidfd >= 0:
            os.close(running.pidfd)
        self._running = None

    def close(self) -> None:
        """Wait for the running hook for a while, then kill it; pages that wait are not told."""
        running = self._running
        if running is not None:
            try:
                running.process.wait(min(END_S, max(0.0, running.until - self._clock.monotonic())))
            except subprocess.TimeoutExpired:
                _log.warning("hook %s is killed: the worker ends", _name(running))
                self._kill(running)
                with suppress(subprocess.TimeoutExpired):
                    running.process.wait(1.0)
            self._let_go(running)
        if self._waiting:
            _log.warning("the worker ends: %d pages are not told to hooks", len(self._waiting))
            self._missed += len(self._waiting)
            self._waiting.clear()


def _name(running: _Running) -> str:
    command = running.process.args
    return str(command[0]) if isinstance(command, (list, tuple)) else "?"
