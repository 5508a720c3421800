"""The centre as processes that tests start and kill: collectors on one broker and one database.

    python -m tests.system.collectors SETTINGS MOMENT NUMBER

runs a collector that kills itself at a moment: after its NUMBERth "commit", "receipt" or "ack".
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from agent.collect import collector as collect
from agent.collect.stores import SqliteStore
from agent.config import CollectorConfig, load
from agent.mqtt import Link
from tests.command import EDGE_OCR, ROOT
from tests.light_device import LightDevice
from tests.postgres import shared

SETTINGS = """\
name = "{name}"
store = "{store}"
group = "{group}"
batch = {batch}

[mqtt]
host = "127.0.0.1"
port = {port}
tls = false
keepalive_s = {keepalive_s}
"""


class Member:
    """One collector: a process, or none at the moment."""

    def __init__(self, home: Path, port: int, store: str, *, name: str = "c1", **more: str | int) -> None:
        self.name = name
        self.settings = home / f"{name}.toml"
        values = {"name": name, "store": store, "group": "", "batch": 20, "port": port, "keepalive_s": 5, **more}
        self.settings.write_text(SETTINGS.format(**values))
        self._log = home / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self, *before: str) -> None:
        """Start it, under another program if one is given."""
        self._run(*before, *EDGE_OCR, "collect", "-c", str(self.settings))

    def start_dying(self, moment: str, number: int) -> None:
        """Start one that kills itself."""
        self._run(sys.executable, "-m", "tests.system.collectors", str(self.settings), moment, str(number))

    def _run(self, *command: str) -> None:
        assert self.process is None
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """End it; returns its status."""
        assert self.process is not None
        process, self.process = self.process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)  # strace, when it is killed alone, lets its program go on
        return process.wait(20)

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def ready(self, since: int) -> bool:
        """Whether it said that it is ready, after so much of its log."""
        return "ready: devices may send" in self.log[since:]


def rows_in(store: str) -> list[tuple[str, str, int, str]]:
    """Return device, epoch, number and digest of all stored rows."""
    sql = "SELECT device, epoch, seq, sha256 FROM results"
    if store.startswith("postgresql"):
        return shared().execute(sql, store)
    with contextlib.closing(sqlite3.connect(f"file:{store.removeprefix('sqlite:')}?mode=ro", uri=True)) as database:
        return database.execute(sql).fetchall()


def account(devices: Iterable[LightDevice], store: str, **more: Any) -> dict[str, Any]:
    """Return what became of every row."""
    expected = {(device.name, device.epoch, seq) for device in devices for seq in range(1, device.count + 1)}
    confirmed = {(device.name, device.epoch, seq) for device in devices for seq in device.stored}
    stored = [row[:3] for row in rows_in(store)]
    return {
        "submitted": len(expected),
        "accepted": len(confirmed),
        "stored": len(stored),
        "lost": len((expected | confirmed) - set(stored)),
        "unexpected": len(set(stored) - expected),
        "duplicated": len(stored) - len(set(stored)),
        **more,
    }


def drive(devices: Iterable[LightDevice], happened: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Let devices work until something holds."""
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        for device in devices:
            device.step(0.002)


def main(path: str, moment: str, number: str) -> None:
    left = int(number)

    def passed() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def then_count(function: Any, counts: Callable[..., bool]) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            told = function(*arguments, **named)
            if counts(*arguments):
                passed()
            return told

        return wrapped

    if moment == "commit":
        SqliteStore.put = then_count(SqliteStore.put, lambda self, batch: bool(batch.rows))  # type: ignore[method-assign]
    elif moment == "receipt":
        Link.publish = then_count(Link.publish, lambda self, topic, *_: "receipt" in topic)  # type: ignore[method-assign]
    else:
        Link.ack = then_count(Link.ack, lambda *_: True)  # type: ignore[method-assign]
    collect.run(load(Path(path), CollectorConfig))


if __name__ == "__main__":
    main(*sys.argv[1:])
