"""What systemd is told: ready once the start is over, fed by progress alone, also after a process replaced itself."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import notify
from agent.config import AgentConfig, MemoryConfig, load
from agent.memory import MB, resident_bytes
from agent.notify import Notifier
from agent.openers import open_reader
from tests import stub_worker
from tests.agent_settings import agent_toml, broker_here
from tests.broker import free_port
from tests.command import ROOT, run_python
from tests.notify_kit import Init, internet_sockets, socket_inode
from tests.test_supervise import FrozenClock

WATCHDOG_S = 4.0
"""A feed is due every second; programs at rest turn their loop once a second."""


@pytest.fixture
def init(tmp_path: Path) -> Iterator[Init]:
    init = Init(str(tmp_path / "notify"))
    yield init
    init.close()


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return written(tmp_path, host="127.0.0.1", limit_mb=256)


def written(home: Path, *, host: str, limit_mb: int) -> Path:
    (home / "inbox").mkdir(exist_ok=True)
    path = home / "agent.toml"
    mqtt = broker_here(free_port(), host=host)
    path.write_text(agent_toml(home, memory={"limit_mb": limit_mb}, mqtt=mqtt))
    return path


class Started:
    """A program under a stand-in for systemd, killed with the block."""

    def __init__(self, init: Init, command: tuple[str | Path, ...], **more: object) -> None:
        environment = {**os.environ, **init.environment(WATCHDOG_S), "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, **more)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def worker(settings: Path) -> tuple[str | Path, ...]:
    return (sys.executable, "-m", "tests.stub_worker", "-c", settings)


def uplink(settings: Path) -> tuple[str | Path, ...]:
    return (sys.executable, "-m", "agent", "uplink", "-c", settings)


# ------------------------------------------------------------------------------------------------ the notifier


def test_nobody_is_told_anything_where_nobody_asked(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    told = run_python(
        "import sys\nfrom agent import notify\nn = notify.connect()\nn.ready(); n.progress(); n.status('x')\n"
        "print('socket' in sys.modules)"
    )
    assert (told.status, told.out) == (0, "False\n")


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_readiness_feeds_and_status_are_told(tmp_path, kind):
    init = Init(str(tmp_path / "notify") if kind == "path" else f"@edge-ocr-test-{os.getpid()}")
    clock = FrozenClock()
    notifier = notify.connect(clock, {**init.environment(8.0), "WATCHDOG_PID": str(os.getpid())})
    notifier.ready()
    assert init.listen(0.1) == ["READY=1", "WATCHDOG=1"]
    for _ in range(9):  # 4.5 s: twice the fourth part of the interval
        clock.now += 0.5
        notifier.progress()
    notifier.status("reading\nnow")
    notifier.status("reading now")
    notifier.stopping()
    assert init.listen(0.1) == ["WATCHDOG=1", "WATCHDOG=1", "STATUS=reading now", "STOPPING=1"]
    init.close()


def test_a_watchdog_of_another_process_is_not_fed(init):
    notifier = notify.connect(environ={**init.environment(1.0), "WATCHDOG_PID": "1"})
    notifier.progress()
    assert init.listen(0.1) == []


@pytest.mark.parametrize("value", ["", "x", "-5", "0"])
def test_an_interval_that_is_none_is_none(init, value):
    notifier = notify.connect(environ={**init.environment(), "WATCHDOG_USEC": value})
    notifier.progress()
    assert init.listen(0.1) == []


def test_an_init_that_is_gone_or_does_not_listen_stops_nothing(init, tmp_path):
    Notifier(str(tmp_path / "none"), 1.0).ready()
    notifier = Notifier(init.environment()["NOTIFY_SOCKET"], 1e-9)
    for _ in range(5000):  # far more than its buffer takes
        notifier.progress()
    notifier.stopping()
    assert notify.connect(environ={"NOTIFY_SOCKET": "vsock:2:1234"})._address == ""


# ------------------------------------------------------------------------------------------------ the programs


@pytest.mark.parametrize("program", [worker, uplink])
def test_program_is_ready_fed_and_says_that_it_stops(init, settings, program):
    with Started(init, program(settings)) as process:
        assert init.wait(lambda line: line == "READY=1")
        assert init.wait(lambda line: line == "WATCHDOG=1")
        assert init.wait(lambda line: line == "WATCHDOG=1", WATCHDOG_S)  # at rest; for the uplink the broker is away
        process.send_signal(signal.SIGTERM)
        assert init.wait(lambda line: line == "STOPPING=1")
        assert process.wait(20) == 0
    assert any(line.startswith("STATUS=") for line in init.told)


@pytest.mark.parametrize("program", [worker, uplink])
def test_program_that_hangs_starves_the_watchdog(init, settings, program):
    with Started(init, program(settings)) as process:
        assert init.wait(lambda line: line == "WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        init.listen(0.3)  # what was on its way
        assert init.listen(WATCHDOG_S) == []


def test_page_that_hangs_starves_the_watchdog(init, settings, tmp_path):
    with Started(init, worker(settings)):
        assert init.wait(lambda line: line == "READY=1")
        stub_worker.draw(tmp_path / "inbox" / "scan.png", 1, stub_worker.HANGS)
        deadline = time.monotonic() + 30
        while "WATCHDOG=1" in init.listen(2.0):
            assert time.monotonic() < deadline
        assert "WATCHDOG=1" not in init.listen(WATCHDOG_S - 2.0)


def test_uplink_is_fed_while_the_broker_takes_connections_and_says_nothing(init, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        path = written(tmp_path, host="127.0.0.1", limit_mb=256)
        path.write_text(path.read_text().replace("port = ", f"port = {deaf.getsockname()[1]} # "))
        with Started(init, uplink(path)):
            assert init.wait(lambda line: line == "READY=1")
            init.listen(3.0)
            assert init.wait(lambda line: line == "WATCHDOG=1", WATCHDOG_S)


PASSED = """
import os, sys
from agent import worker
from tests import stub_worker

if "LISTEN_PID" not in os.environ:  # the first time; descriptor 3 stays over the second
    os.dup2(int(sys.argv[3]), 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
opened = worker.open_sources
def take(*given):
    os.set_inheritable(3, False)  # as a source does that wants no child to have it
    return opened(*given)
worker.open_sources = take
stub_worker.main()
"""


def test_worker_that_replaces_itself_keeps_number_readiness_and_passed_sockets(init, tmp_path):
    settings = written(tmp_path, host="127.0.0.1", limit_mb=128)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "upload"))
        listening.listen()
        number = listening.fileno()
        program = tmp_path / "passed.py"
        program.write_text(PASSED)
        command = (sys.executable, program, "-c", settings, str(number))
        with Started(init, command, pass_fds=(number,)) as process:
            assert init.wait(lambda line: line == "READY=1")
            name = socket_inode(process.pid, 3)
            stub_worker.draw(tmp_path / "inbox" / "scan.png", 1, stub_worker.SWELLS, megabytes=90)
            assert init.wait(lambda line: line == "READY=1"), "it has not started anew"
            assert init.wait(lambda line: line == "WATCHDOG=1", WATCHDOG_S)
            assert "STOPPING=1" not in init.told
            assert name == os.readlink(f"/proc/self/fd/{number}") == socket_inode(process.pid, 3)
            assert process.poll() is None


def test_only_socket_of_a_told_worker_is_one_of_unix(init, settings, tmp_path):
    trace = tmp_path / "trace"
    command = ("strace", "-f", "-qq", "-e", "trace=network", "-o", trace, *worker(settings))
    with Started(init, command, start_new_session=True) as process:
        assert init.wait(lambda line: line == "WATCHDOG=1")
        stub_worker.draw(tmp_path / "inbox" / "scan.png", 1)
        assert init.wait(lambda line: "1 accepted" in line)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)
    assert "AF_UNIX" in trace.read_text()
    assert internet_sockets(trace) == []


def test_a_page_is_progress_in_pieces(settings, bundle_path):
    """Each tile and line that went through a model is told, so that a long page does not starve the watchdog."""
    from agent import image

    fed: list[int] = []
    settings.write_text(settings.read_text() + f'[reader]\nbundle = "{bundle_path}"\n')
    config = load(settings, AgentConfig)
    memory = MemoryConfig(limit_mb=resident_bytes() // MB + 250)  # this process has more than models in it
    config = msgspec.structs.replace(config, memory=memory)
    reader, _ = open_reader(config, lambda: fed.append(1))
    frame = image.load_frame(ROOT / "samples" / "form.png", "desk", reader.budget)
    page = reader.read(frame)
    reader.close()
    assert len(fed) >= len(page.lines) > 20
