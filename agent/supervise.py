"""`edge-ocr run`: worker and uplink as two child processes, started again when they end."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import health
from agent.clock import Clock
from agent.config import AgentConfig
from agent.errors import ConfigError, ExitCode

_log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STABLE_S = 60.0  # who ran for so long starts again after the first pause
STOP_S = 15.0
KILL_S = 2.0

HOPELESS = frozenset((ExitCode.CONFIG, ExitCode.USAGE, ExitCode.NO_INPUT))
"""Exit statuses after which a restart would end the same way."""


class Program:
    """One child process: its command, and when it is to be started again."""

    def __init__(self, name: str, command: Sequence[str], clock: Clock) -> None:
        self.name = name
        self._command = tuple(command)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._due_at = float("-inf")
        self._pause_s = FIRST_PAUSE_S

    @property
    def running(self) -> bool:
        """Whether the process was started and its end has not been seen."""
        return self._process is not None

    def start(self) -> None:
        """Start the process."""
        self._started_at = self._clock.monotonic()
        # In a group of its own, so that control-C reaches it through `stop`, once.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_end_with_parent(os.getpid())
        )
        _log.info("%s started, process %d", self.name, self._process.pid)

    def tick(self) -> int | None:
        """See whether it ended, and start it again when its pause is over. Returns the status it ended with now."""
        now = self._clock.monotonic()
        if self._process is None:
            if now >= self._due_at:
                self.start()
            return None
        status = self._process.poll()
        if status is None:
            return None
        self._process = None
        if now - self._started_at >= STABLE_S:
            self._pause_s = FIRST_PAUSE_S
        self._due_at = now + self._pause_s
        how = f"status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}"
        _log.warning("%s ended with %s; again in %.1f s", self.name, how, self._pause_s)
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        return status

    def signal(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; false when it goes on."""
        if self._process is not None:
            try:
                self._process.wait(max(0.0, timeout_s))
            except subprocess.TimeoutExpired:
                return False
            self._process = None
        return True


class Supervisor:
    """Keeps programs running until told to stop."""

    def __init__(self, programs: Sequence[Program], clock: Clock | None = None) -> None:
        self._programs = tuple(programs)
        self._clock = clock or Clock()
        self._stopping = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Run the programs until `stop`; returns an exit status: of a program that cannot be helped, or 0."""
        for program in self._programs:
            program.start()
        hopeless = 0
        while not self._stopping and not hopeless:
            select.select([self._wake_out], [], [], 0.1 if not all(p.running for p in self._programs) else 1.0)
            self._drain()
            for program in self._programs:
                status = program.tick()
                if status in HOPELESS:
                    _log.error("%s cannot run: see its message above", program.name)
                    hopeless = status
        self._end_all()
        return hopeless

    def stop(self) -> None:
        """End all programs. May be called from a signal handler."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Look at the programs now. May be called from a signal handler."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_in, b"!")

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_out, 4096)

    def _end_all(self) -> None:
        """Ask all to end, then insist."""
        for program in self._programs:
            program.signal(signal.SIGTERM)
        deadline = self._clock.monotonic() + STOP_S
        left = [p for p in self._programs if not p.wait(deadline - self._clock.monotonic())]
        for program in left:
            _log.error("%s did not end within %.0f s and is killed", program.name, STOP_S)
            program.signal(signal.SIGKILL)
            program.wait(KILL_S)


def _end_with_parent(parent: int) -> Callable[[], None]:
    """Return what makes a child end when this process is killed; Linux, prctl(2)."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it was killed before
            os._exit(1)

    return prepare


def run(config: AgentConfig, path: Path) -> int:
    """Run worker and, where a broker is configured, uplink, until SIGTERM or SIGINT. Returns the exit status."""
    health.set_up_logging("run", config.log_level)
    clock = Clock()
    if not config.source:
        raise ConfigError(f"{path}: no [[source]]: there is nothing to read")
    names = ["worker", *(["uplink"] if config.mqtt is not None else [])]
    if config.mqtt is None:
        _log.info("no [mqtt]: results stay in the outbox")
    command = (sys.executable, "-m", "agent")
    supervisor = Supervisor([Program(name, (*command, name, "-c", str(path)), clock) for name in names], clock)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: supervisor.stop())
    signal.signal(signal.SIGCHLD, lambda *_: supervisor.wake())
    return supervisor.run()
