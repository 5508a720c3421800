"""A branch office and its centre on this machine, for tests that break them: folder, worker, uplink, broker, collector.

All are real processes; only the models are a stub (`tests.stub_worker`). Each can be killed and started again at will;
the accounting says what became of every page.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import stub_worker
from tests.agent_settings import agent_toml, broker_here
from tests.broker import MOSQUITTO, free_port
from tests.command import ROOT

BROKER_CONF = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence {persistence}
persistence_location {home}/broker/
{more}
"""

COLLECTOR_TOML = """\
name = "centre"
store = "{store}"

[mqtt]
host = "127.0.0.1"
port = {port}
tls = false
keepalive_s = 5
"""


class Branch:
    """Processes by name: "broker", "collector", "worker", "uplink"."""

    def __init__(
        self,
        home: Path,
        *,
        persistence: bool = True,
        broker: str = "",
        max_attempts: int = 100,
        store: str = "",
    ) -> None:
        self.home = home
        self.port = free_port()
        for name in ("inbox", "broker", "log"):
            (home / name).mkdir(parents=True, exist_ok=True)
        os.chmod(home / "broker", 0o777)  # mosquitto started by root drops its rights
        self.store = store or f"sqlite:{home}/centre.db"
        self._write(
            "mosquitto.conf", BROKER_CONF, persistence=str(persistence).lower(), more=f"{broker}\n{_same_user()}"
        )
        settings = agent_toml(
            home,
            reader={"bundle": f"{home}/no-bundle"},
            outbox={"max_attempts": max_attempts},
            mqtt=broker_here(self.port, keepalive_s=5, receipt_s=2.0, retry_max_s=0.5),
        )
        (home / "agent.toml").write_text(settings, encoding="utf-8")
        self._write("collector.toml", COLLECTOR_TOML, store=self.store)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.numbers: list[int] = []
        self._log_sizes: dict[str, int] = {}

    def _write(self, name: str, text: str, **values: object) -> None:
        (self.home / name).write_text(text.format(home=self.home, port=self.port, **values), encoding="utf-8")

    # ------------------------------------------------------------------------------------------- processes

    def command(self, name: str) -> list[str]:
        python = sys.executable
        return {
            "broker": [MOSQUITTO, "-c", str(self.home / "mosquitto.conf")],
            "collector": [python, "-m", "agent", "collect", "-c", str(self.home / "collector.toml")],
            "worker": [python, "-m", "tests.stub_worker", "-c", str(self.home / "agent.toml")],
            "uplink": [python, "-m", "agent", "uplink", "-c", str(self.home / "agent.toml")],
        }[name]

    def start(self, *names: str) -> None:
        for name in names or ("broker", "collector", "worker", "uplink"):
            with open(self.home / "log" / f"{name}.log", "ab") as log:
                self._log_sizes[name] = log.tell()
                self.processes[name] = subprocess.Popen(
                    self.command(name), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
                )

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal and wait for the end; returns the status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(30)

    def close(self) -> None:
        for name in tuple(self.processes):
            self.kill(name)

    def log(self, name: str) -> str:
        return (self.home / "log" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def is_ready(self, name: str) -> bool:
        """Whether the process that runs now does its work."""
        process = self.processes.get(name)
        if process is None or process.poll() is not None:
            return False
        if name == "broker":
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
                return True
            return False
        if name == "collector":
            return "ready" in self.log(name)[self._log_sizes[name] :]
        state = self.state(name)
        return state.get("pid") == process.pid and (name == "worker" or state.get("connection") == "online")

    def state(self, name: str) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self.home / "state" / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return told

    # ----------------------------------------------------------------------------------------------- pages

    def submit(self, count: int = 1, action: int = stub_worker.READS, seconds: float = 0.0) -> list[int]:
        """Put new pages into the folder; returns their numbers."""
        fresh = [len(self.numbers) + n + 1 for n in range(count)]
        for number in fresh:
            stub_worker.draw(self.home / "inbox" / f"scan {number:06}.png", number, action, seconds)
        self.numbers += fresh
        return fresh

    def stored(self) -> list[int]:
        """Return the page number of each row at the centre, in no order."""
        path = self.store.removeprefix("sqlite:")
        if not os.path.exists(path):
            return []
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
            try:
                rows = database.execute("SELECT result FROM results").fetchall()
            except sqlite3.OperationalError:
                return []
        return [page_number(row[0]) for row in rows]

    def account(self, **more: object) -> dict[str, Any]:
        """Return what became of every page."""
        stored = Counter(self.stored())
        submitted = set(self.numbers)
        return {
            "submitted": len(submitted),
            "accepted": len(submitted & stored.keys()),
            "stored": sum(stored.values()),
            "lost": len(submitted - stored.keys()),
            "unexpected": len(stored.keys() - submitted),
            "duplicated": sum(count - 1 for count in stored.values()),
            **more,
        }

    def drain(self, timeout_s: float = 60.0) -> None:
        """Wait until every page is at the centre and the outbox is empty, or the time is over."""
        until(lambda: set(self.stored()) >= set(self.numbers), timeout_s)


def page_number(result: str | bytes) -> int:
    """Return the number in a stored result."""
    (line,) = json.loads(result)["lines"]
    return int(line["text"].removeprefix("page-"), 16)


def until(happened: Callable[[], bool], timeout_s: float = 30.0, step_s: float = 0.05) -> float:
    """Wait until a condition holds; returns the seconds it took, or infinity when it does not hold in time."""
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > timeout_s:
            return float("inf")
        time.sleep(step_s)
    return time.monotonic() - began


@contextlib.contextmanager
def running(home: Path, **options: Any) -> Iterator[Branch]:
    """A branch with everything started, ended with the block."""
    branch = Branch(home, **options)
    try:
        branch.start("broker")
        assert until(lambda: branch.is_ready("broker"), 10) < 10, branch.log("broker")
        branch.start("collector", "worker", "uplink")
        yield branch
    finally:
        branch.close()


def _same_user() -> str:
    return "user root" if os.geteuid() == 0 else ""
