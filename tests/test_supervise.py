"""Programs that end are started again, later and later; one that cannot be helped ends all; nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from agent.clock import Clock
from agent.errors import ExitCode
from agent.supervise import FIRST_PAUSE_S, LONGEST_PAUSE_S, STABLE_S, Program, Supervisor
from tests.command import EDGE_OCR, ROOT, run


class FrozenClock(Clock):
    """Time that passes only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def ended(program: Program) -> int:
    """Return the status that a program ends with."""
    for _ in range(1000):
        status = program.tick()
        if status is not None:
            return status
        time.sleep(0.01)
    raise AssertionError(f"{program.name} does not end")


def test_program_that_ends_is_started_again_after_growing_pauses():
    clock = FrozenClock()
    program = Program("short", python("raise SystemExit(3)"), clock)
    program.start()
    pauses = []
    for _ in range(12):
        assert ended(program) == 3
        left = clock.now
        while not program.running:
            clock.now += 0.05
            program.tick()
        pauses.append(clock.now - left)
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, abs=0.11)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S, abs=0.11)
    ended(program)


def test_program_that_ran_long_starts_again_at_once():
    clock = FrozenClock()
    program = Program("long", python("import time; time.sleep(0.1); raise SystemExit(3)"), clock)
    program.start()
    for _ in range(3):
        clock.now += STABLE_S + 1
        ended(program)
        clock.now += FIRST_PAUSE_S
        program.tick()
        assert program.running
    ended(program)


def test_killed_program_is_started_again(tmp_path: Path):
    note = tmp_path / "pids"
    code = f"import os, time; open({str(note)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    supervisor = Supervisor([Program("worker", python(code), Clock())])
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        os.kill(int(wait_for(note, 1)[0]), signal.SIGKILL)
        second = int(wait_for(note, 2)[1])
        assert psutil.pid_exists(second)
    finally:
        supervisor.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert not psutil.pid_exists(second)


def wait_for(note: Path, count: int) -> list[str]:
    for _ in range(1000):
        if note.exists() and len(lines := note.read_text().split()) >= count:
            return lines
        time.sleep(0.02)
    raise AssertionError("not started")


@pytest.mark.parametrize("status", [ExitCode.CONFIG, ExitCode.NO_INPUT])
def test_program_that_cannot_be_helped_ends_the_others(status):
    programs = [
        Program("well", python("import time; time.sleep(60)"), Clock()),
        Program("wrong", python(f"raise SystemExit({int(status)})"), Clock()),
    ]
    assert Supervisor(programs).run() == status
    assert not any(program.running for program in programs)


def test_programs_end_when_the_supervisor_is_killed(tmp_path: Path):
    note = tmp_path / "pid"
    code = (
        "import sys; from agent.supervise import Program, Supervisor; from agent.clock import Clock\n"
        "child = 'import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); time.sleep(60)'\n"
        "Supervisor([Program('child', (sys.executable, '-c', child, sys.argv[1]), Clock())]).run()"
    )
    with subprocess.Popen((sys.executable, "-c", code, note), cwd=ROOT) as supervisor:
        child = psutil.Process(int(wait_for(note, 1)[0]))
        supervisor.kill()
    child.wait(10)


@pytest.mark.parametrize("command", ["run", "worker", "uplink", "collect", "status"])
def test_wrong_settings_end_with_their_own_status(command, tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('devise = "box-1"\n')
    ran = run((*EDGE_OCR, command, "-c", path))
    assert ran.status == ExitCode.CONFIG
    assert "devise" in ran.err
    assert "did you mean device?" in ran.err or command == "collect"


def test_missing_settings_are_named(tmp_path):
    ran = run((*EDGE_OCR, "run", "-c", tmp_path / "nowhere.toml"))
    assert ran.status == ExitCode.CONFIG
    assert "nowhere.toml" in ran.err


def test_run_without_a_source_says_so(tmp_path):
    path = tmp_path / "agent.toml"
    path.write_text(f'device = "box-1"\nstate_dir = "{tmp_path}/state"\n')
    ran = run((*EDGE_OCR, "run", "-c", path))
    assert ran.status == ExitCode.CONFIG
    assert "[[source]]" in ran.err
