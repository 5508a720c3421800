"""Whether a program makes progress is told from outside, by what its loop notes: hung, starting, gone, elsewhere."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent import alive, heartbeat
from agent.clock import Clock
from agent.health import START_S, WATCHDOG_S, Lock, running
from tests import stub_worker
from tests.agent_settings import agent_toml, broker_here
from tests.broker import free_port
from tests.command import EDGE_OCR, ROOT, Ran, run
from tests.test_supervise import FrozenClock


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "agent.toml").write_text(agent_toml(tmp_path, mqtt=broker_here(free_port())))
    return tmp_path / "agent.toml"


class Programs:
    """Worker and uplink, each started at its name and killed at the end."""

    def __init__(self, settings: Path) -> None:
        self.commands = {
            "worker": (sys.executable, "-m", "tests.stub_worker", "-c", settings),
            "uplink": (sys.executable, "-m", "agent", "uplink", "-c", settings),
        }
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, role: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.started[role] = subprocess.Popen(
            self.commands[role], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self.started[role]


@pytest.fixture
def programs(settings: Path) -> Iterator[Programs]:
    programs = Programs(settings)
    yield programs
    for process in programs.started.values():
        process.kill()
        process.wait()


def told(settings: Path, *arguments: str) -> Ran:
    return run((*EDGE_OCR, "alive", "-c", settings, *arguments))


def wait_for(settings: Path, status: int, *arguments: str) -> Ran:
    until = time.monotonic() + 30
    while (ran := told(settings, *arguments)).status != status:
        assert time.monotonic() < until, ran
        time.sleep(0.1)
    return ran


def set_back(state_dir: Path, role: str, seconds: float) -> None:
    """Have a program that is stopped look as if it had been so for longer."""
    path = state_dir / f"{role}.lock"
    beat = heartbeat.read(path)
    older = msgspec.structs.replace(beat, at_s=beat.at_s - seconds)
    path.write_bytes(msgspec.json.encode(older).ljust(191) + b"\n")


# ------------------------------------------------------------------------------------------------ the command


def test_programs_that_run_are_well_and_one_that_ended_is_not(settings, programs):
    assert told(settings).out == "worker: not running\nuplink: not running\n"
    programs.start("worker")
    programs.start("uplink")
    ran = wait_for(settings, 0)
    assert re.fullmatch(r"worker: made progress \d s ago\nuplink: made progress \d s ago\n", ran.out)
    programs.started["uplink"].kill()
    programs.started["uplink"].wait()
    assert told(settings).status == 1
    assert told(settings, "uplink").out == "uplink: not running\n"
    assert told(settings, "worker").status == 0


def test_without_a_broker_only_the_worker_is_looked_at(settings, programs):
    settings.write_text(agent_toml(settings.parent))
    programs.start("worker")
    assert wait_for(settings, 0).out.count("\n") == 1


@pytest.mark.parametrize("role", ["worker", "uplink"])
def test_program_that_hangs_is_told_and_ended_only_when_asked(settings, programs, role):
    process = programs.start(role)
    wait_for(settings, 0, role)
    process.send_signal(signal.SIGSTOP)
    assert told(settings, role, "--end").status == 0, "it may rest for so long"
    set_back(settings.parent / "state", role, WATCHDOG_S[role])
    ran = told(settings, role)
    assert ran.status == 1
    assert re.fullmatch(rf"{role}: no progress for \d+ s, {WATCHDOG_S[role]:.0f} s are allowed\n", ran.out)
    assert process.poll() is None
    ran = told(settings, role, "--end")
    assert (ran.status, ran.err) == (1, f"edge-ocr: {role}: was ended\n")
    assert process.wait(5) == -signal.SIGKILL  # a stopped process hears SIGABRT only when it goes on


def test_program_that_hangs_in_a_page_says_where_when_it_is_ended(settings, programs, monkeypatch):
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")
    process = programs.start("worker")
    wait_for(settings, 0, "worker")
    stub_worker.draw(settings.parent / "inbox" / "scan.png", 1, stub_worker.HANGS)
    while not list((settings.parent / "inbox").glob(".edge-ocr/work/*")):
        time.sleep(0.05)
    time.sleep(0.2)
    set_back(settings.parent / "state", "worker", WATCHDOG_S["worker"])
    assert told(settings, "worker", "--end").status == 1
    assert process.wait(5) == -signal.SIGABRT


def test_health_check_loads_nothing_heavy(settings):
    code = "import sys\nfrom agent import alive, service\nprint(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(run((sys.executable, "-c", code)).out.split())
    assert not {"cv2", "numpy", "paho", "onnxruntime", "paddlelite", "ssl"} & loaded


# ------------------------------------------------------------------------------------------------ what is noted


def test_program_is_starting_until_its_first_progress(tmp_path):
    clock = FrozenClock()
    lock = Lock(tmp_path, "worker", clock)
    assert alive.look(tmp_path, "worker", clock).said == "worker: starting, for 0 s"
    clock.now += START_S["worker"] + 1
    assert alive.look(tmp_path, "worker", clock).hangs
    lock.heart.beat()
    assert alive.look(tmp_path, "worker", clock).well
    lock.close()
    assert not alive.look(tmp_path, "worker", clock).well


def test_progress_is_noted_now_and_then_and_not_each_time(tmp_path):
    clock = FrozenClock()
    lock = Lock(tmp_path, "worker", clock)
    noted = set()
    for _ in range(100):
        clock.now += 0.25
        lock.heart.beat()
        noted.add(heartbeat.read(tmp_path / "worker.lock").at_s)
    assert len(noted) == 5
    lock.close()


def test_nothing_is_noted_after_the_lock_was_freed(tmp_path):
    clock = FrozenClock()
    lock = Lock(tmp_path, "worker", clock)
    lock.close()
    other = open(tmp_path / "other", "w+b")  # noqa: SIM115  takes the number that was freed
    clock.now += 60
    lock.heart.beat()
    assert other.read() == b""
    other.close()


def test_note_is_never_in_the_future(tmp_path):
    clock = FrozenClock()
    for now in (1000.0005, 1000.0009999, 1e6 + 1 / 3):
        clock.now = now
        lock = Lock(tmp_path, "worker", clock)
        lock.heart.beat()
        assert alive.look(tmp_path, "worker", clock).well
        lock.close()


def test_program_whose_note_is_by_another_clock_is_not_ended(tmp_path):
    lock = Lock(tmp_path, "worker")
    for boot, at_s in (("another-boot", 0.0), (Clock().boot_id, Clock().monotonic() + 600)):
        beat = heartbeat.Beat(heartbeat.namespace(), boot, at_s, ready=True)
        (tmp_path / "worker.lock").write_bytes(msgspec.json.encode(beat))
        sign = alive.look(tmp_path, "worker")
        assert not sign.well and not sign.hangs
    lock.close()


def test_wall_clock_that_jumps_makes_no_program_look_dead(tmp_path):
    lock = Lock(tmp_path, "worker")
    lock.heart.beat()
    os.utime(tmp_path / "worker.lock", (0, 0))
    assert alive.look(tmp_path, "worker").well
    lock.close()


def test_what_was_noted_before_the_machine_was_started_anew_counts_for_nothing(tmp_path):
    note = heartbeat.Beat("pid:[1]", "another-boot", Clock().monotonic(), ready=True)
    (tmp_path / "worker.lock").write_bytes(msgspec.json.encode(note))
    assert not running(tmp_path, "worker")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b'{"namespace": 1}', b"[" * 5000])
def test_lock_of_an_older_version_or_of_rubbish_is_a_lock_all_the_same(tmp_path, content):
    lock = Lock(tmp_path, "worker")
    (tmp_path / "worker.lock").write_bytes(content)
    assert running(tmp_path, "worker")
    assert "cannot be read" in alive.look(tmp_path, "worker").said
    assert not alive.look(tmp_path, "worker").hangs
    lock.close()


def test_program_in_another_container_runs_while_it_makes_progress(tmp_path):
    clock = Clock()
    for ago_s, runs in ((1, True), (WATCHDOG_S["uplink"] + 1, False), (-60, False)):
        beat = heartbeat.Beat("pid:[1]", clock.boot_id, clock.monotonic() - ago_s, ready=True)
        (tmp_path / "uplink.lock").write_bytes(msgspec.json.encode(beat))
        assert running(tmp_path, "uplink") == runs
        assert alive.look(tmp_path, "uplink").well == runs


@pytest.mark.parametrize("role", ["worker", "uplink"])
def test_as_long_as_the_units_allow(role):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.read(ROOT / "systemd" / f"edge-ocr-{role}.service")
    assert float(unit["Service"]["WatchdogSec"]) == WATCHDOG_S[role]
    assert float(unit["Service"]["TimeoutStartSec"]) == START_S[role]
