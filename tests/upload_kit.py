"""A worker with an upload source, in a thread or a process of its own, and what asks it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, HooksConfig, MemoryConfig, OutboxConfig
from agent.openers import open_sources
from agent.outbox import Outbox
from agent.page import Frame, PageResult
from agent.source_config import UploadConfig
from agent.worker import Worker
from tests.broker import free_port
from tests.command import ROOT
from tests.stub_worker import READS, StubReader, draw
from tests.system.branch import until

OUTBOX = OutboxConfig(min_free_mb=0, ballast_mb=0)
LONG_NUMBER = "6222 0212 3456 7890 123"
TOKEN = "t0ken-of-the-teller"


class Reply(msgspec.Struct, frozen=True):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        """The one word of a problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        told = self.json
        assert (told["status"], told["type"]) == (self.status, f"urn:edge-ocr:problem:{told['reason']}")
        assert told["title"] and "\n" not in told["detail"]
        return told["reason"]


class _UnixConnection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


@contextmanager
def connected(listen: str, timeout_s: float = 30.0) -> Iterator[http.client.HTTPConnection]:
    """Give a connection to an address as the settings have it."""
    kind = _UnixConnection if listen.startswith("unix:") else http.client.HTTPConnection
    connection = kind(listen.removeprefix("unix:"), timeout=timeout_s)
    try:
        yield connection
    finally:
        connection.close()


def send(connection: http.client.HTTPConnection, method: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
    connection.request(method, path, body, headers, encode_chunked=not isinstance(body, (bytes, type(None))))
    response = connection.getresponse()
    return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def ask(listen: str, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Send one request; `content_type="..."` and the like are headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with connected(listen) as connection:
        return send(connection, method, path, body, {"authorization": f"Bearer {TOKEN}", **named})


def read(listen: str, picture: Any, path: str = "/v1/read", **headers: str) -> Reply:
    return ask(listen, "POST", path, picture, **{"content_type": "image/png", **headers})


def raw(listen: str, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Send bytes and return all that comes back until the other side closes."""
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host, int(port)), timeout_s) as peer:
        peer.sendall(data)
        found = b""
        while piece := peer.recv(65_536):
            found += piece
        return found


def picture(folder: Path, number: int, action: int = READS, seconds: float = 0.0) -> bytes:
    """Return a page that the stub knows by its number."""
    path = folder / f"drawn-{number}.png"
    draw(path, number, action, seconds)
    return path.read_bytes()


class NumberReader(StubReader):
    """Adds a long number to each page, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def read(self, frame: Frame) -> PageResult:
        self.count += 1
        page = super().read(frame)
        number = msgspec.structs.replace(page.lines[0], text=f"Card {LONG_NUMBER}")
        return msgspec.structs.replace(page, lines=(*page.lines, number))


class Desk:
    """A worker in a thread."""

    def __init__(self, home: Path, hooks: HooksConfig | None = None, **settings: Any) -> None:
        self.home = home
        settings = {"listen": f"127.0.0.1:{free_port()}", "max_per_minute": 100_000, **settings}
        (home / "token").write_text(TOKEN + "\n")
        self.source = UploadConfig(**{"name": "desk", "token": f"file:{home}/token", **settings})
        self.listen = self.source.listen
        self.config = AgentConfig(
            device="a",
            state_dir=str(home / "state"),
            source=(self.source,),
            memory=MemoryConfig(limit_mb=65_536),  # the process of the tests is large
            outbox=OUTBOX,
            hooks=hooks or HooksConfig(),
        )
        self.reader = NumberReader()
        self.worker: Worker | None = None
        self._thread = threading.Thread()

    def start(self) -> Desk:
        started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(started,))
        self._thread.start()
        assert started.wait(30)
        return self

    def _work(self, started: threading.Event) -> None:
        clock = Clock()
        outbox = Outbox(self.home / "state", OUTBOX, role="worker", clock=clock)
        try:
            sources = open_sources(self.config, clock)
            self.worker = Worker(self.config, outbox, sources, lambda: (self.reader, "stub"), clock)
            self.worker.start()
            started.set()
            self.worker.run()
            self.worker.close()
        finally:
            started.set()
            outbox.close()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.worker.stop()
            self._thread.join(30)
        assert not self._thread.is_alive()

    @contextmanager
    def outbox(self) -> Iterator[Outbox]:
        outbox = Outbox(self.home / "state", OUTBOX, role="tool")
        try:
            yield outbox
        finally:
            outbox.close()

    def rows(self) -> list[dict[str, Any]]:
        with self.outbox() as outbox:
            return [json.loads(row.result) for row in outbox.rows(None, 1000, 0)]

    def files(self) -> list[str]:
        """Return the files of the source's folder, but those that are there always."""
        home = self.home / "state" / "sources" / "desk"
        found = sorted(
            os.path.relpath(os.path.join(folder, name), home)
            for folder, _, names in os.walk(home)  # which bears that folders go meanwhile
            for name in names
        )
        return [name for name in found if name not in (".edge-ocr/lock", ".edge-ocr/age")]

    def read(self, page: Any, path: str = "/v1/read", **headers: str) -> Reply:
        return read(self.listen, page, path, **headers)


SETTINGS = """\
device = "a"
state_dir = "{home}/state"

[[source]]
type = "upload"
name = "desk"
listen = "{listen}"
anyone = true

[outbox]
min_free_mb = 0
max_attempts = {attempts}
"""


class Process:
    """A worker as a process, with the stub for its models."""

    def __init__(self, home: Path, listen: str = "", attempts: int = 3) -> None:
        self.home = home
        self.listen = listen or f"127.0.0.1:{free_port()}"
        (home / "agent.toml").write_text(SETTINGS.format(home=home, listen=self.listen, attempts=attempts))
        self.command = (sys.executable, "-m", "tests.stub_worker", "-c", str(home / "agent.toml"))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, passed: socket.socket | None = None) -> None:
        options: dict[str, Any] = {}
        command: tuple[str, ...] = self.command
        if passed is not None:  # as systemd does it: from descriptor 3 on, for the process of this number
            command = ("/bin/sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"', "sh", *self.command)
            options = {"pass_fds": (3,), "preexec_fn": lambda: os.dup2(passed.fileno(), 3)}
        with open(self.home / "log", "ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=log, **options)

    def wait_ready(self, listen: str = "") -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self.log()
            try:
                return ask(listen or self.listen, "GET", "/healthz").status == 200
            except OSError:
                return False

        assert until(ready) < 30

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)

    def end(self) -> int:
        if self._process.poll() is None:
            self._process.terminate()
        return self._process.wait(30)

    def log(self) -> str:
        return (self.home / "log").read_text()

    def rows(self) -> list[str]:
        outbox = Outbox(self.home / "state", OUTBOX, role="tool")
        try:
            return [json.loads(row.result)["lines"][0]["text"] for row in outbox.rows(None, 1000, 0)]
        finally:
            outbox.close()


class Later:
    """A request that is under way in a thread."""

    def __init__(self, request: Callable[[], Reply]) -> None:
        self._request = request
        self._reply: Reply | OSError | http.client.HTTPException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._reply = self._request()
        except (OSError, http.client.HTTPException) as error:
            self._reply = error

    def reply(self) -> Reply:
        found = self.end()
        assert isinstance(found, Reply), found
        return found

    def end(self) -> object:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._reply


def wait(happened: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
