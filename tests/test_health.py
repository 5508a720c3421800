"""State files, log lines and the lock: what the programs tell about themselves, and one of each on a directory."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from agent import health
from agent.errors import BusyError, InputError
from agent.health import STALE_S, Lock, UplinkState, WorkerState, read_state, running, silent_s, write_state
from tests.command import ROOT, run_python

WORKER = WorkerState(pid=1, at_ms=2, started_ms=3, held="full", accepted=4, bundle="b", last_error="字")
UPLINK = UplinkState(pid=1, at_ms=2, started_ms=3, collectors=("a",), alarms=("x", "y"), rss_mb=1.5)

HOLD = """
import sys, time
from pathlib import Path
from agent.health import Lock
lock = Lock(Path(sys.argv[1]), "worker")
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the worker's lock."""
    command = (sys.executable, "-c", HOLD, tmp_path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


# ------------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize(("role", "state"), [("worker", WORKER), ("uplink", UPLINK)])
def test_a_state_is_read_as_it_was_written(tmp_path, role, state):
    write_state(tmp_path, role, state)
    assert read_state(tmp_path, role, type(state)) == state
    assert os.listdir(tmp_path) == [f"{role}.json"]
    assert json.loads((tmp_path / f"{role}.json").read_text())["pid"] == 1


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b'{"pid": "1"}', b'{"pid": 1}', b"[" * 100_000])
def test_a_state_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "worker.json").write_bytes(content)
    assert read_state(tmp_path, "worker", WorkerState) is None


def test_fields_of_a_newer_version_are_ignored(tmp_path):
    (tmp_path / "worker.json").write_bytes(msgspec.json.encode(WORKER)[:-1] + b',"news":1}')
    assert read_state(tmp_path, "worker", WorkerState) == WORKER


def test_a_state_is_never_seen_in_part(tmp_path):
    long = msgspec.structs.replace(WORKER, last_error="x" * 100_000)
    write_state(tmp_path, "worker", WORKER)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            write_state(tmp_path, "worker", long)
            write_state(tmp_path, "worker", WORKER)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {read_state(tmp_path, "worker", WorkerState) for _ in range(300)}
    stop.set()
    writer.join()
    assert seen <= {WORKER, long}


def test_a_place_that_takes_no_state_does_not_stop_the_program(tmp_path):
    write_state(tmp_path / "none", "worker", WORKER)
    (tmp_path / "worker.json").mkdir()
    write_state(tmp_path, "worker", WORKER)
    assert read_state(tmp_path, "worker", WorkerState) is None


def test_a_full_disk_leaves_the_old_state(tmp_path):
    write_state(tmp_path, "worker", WORKER)
    (tmp_path / "worker.new").symlink_to("/dev/full")
    write_state(tmp_path, "worker", msgspec.structs.replace(WORKER, accepted=5))
    assert read_state(tmp_path, "worker", WorkerState) == WORKER


def test_a_name_that_is_no_unicode_does_not_stop_the_program(tmp_path):
    odd = msgspec.structs.replace(WORKER, last_error=os.fsdecode(b"a\xff.png: empty"))
    write_state(tmp_path, "worker", odd)
    assert read_state(tmp_path, "worker", WorkerState).last_error == "a?.png: empty"


def test_silence_is_told_in_seconds_also_when_the_clock_went_back():
    state = msgspec.structs.replace(WORKER, at_ms=1_000_000)
    assert silent_s(state, 1_000_000) == 0.0
    assert silent_s(state, 1_012_500) == 12.5
    assert silent_s(state, 1_000_000 - 3_600_000) > STALE_S
    assert silent_s(state, 999_000) < STALE_S  # a second is no jump


def test_memory_is_that_of_this_program():
    with open("/proc/self/statm", encoding="ascii") as file:
        assert health.resident_mb() == pytest.approx(int(file.read().split()[1]) * 4096 / 2**20, rel=0.1)
    assert health.peak_mb() >= health.resident_mb() * 0.9
    assert health.process_id() == os.getpid()


def test_peak_memory_is_not_that_of_who_started_the_program():
    code = "import subprocess, sys; x = bytearray(200 << 20); subprocess.run([sys.executable, '-c', sys.argv[1]])"
    told = run_python(code, "from agent.health import peak_mb; print(peak_mb())")
    assert 1 < float(told.out) < 100


# ------------------------------------------------------------------------------------------------ lock


def test_a_second_program_of_a_kind_is_refused(tmp_path, holder):
    with pytest.raises(BusyError, match="another worker runs on it"):
        Lock(tmp_path, "worker")
    Lock(tmp_path, "uplink").close()


def test_the_lock_of_a_killed_program_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    Lock(tmp_path, "worker").close()


def test_the_lock_is_free_after_closing(tmp_path):
    Lock(tmp_path, "worker").close()
    Lock(tmp_path, "worker").close()


def test_whether_a_program_runs_is_told_by_its_lock_and_asking_takes_none(tmp_path, holder):
    assert running(tmp_path, "worker")
    assert not running(tmp_path, "uplink")
    holder.kill()
    holder.wait()
    assert not running(tmp_path, "worker")
    assert not running(tmp_path / "none", "worker")


def test_the_directory_is_made_for_its_owner_only(tmp_path):
    Lock(tmp_path / "a" / "b", "worker").close()
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="state_dir must be writable"):
        Lock(tmp_path / "file", "worker")
    with pytest.raises(InputError, match="state_dir must be writable"):
        Lock(tmp_path / "file" / "below", "worker")


# ------------------------------------------------------------------------------------------------ log

SAY = """
import logging, os, sys
from agent import health
if sys.argv[1] == "journal":
    status = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
else:
    os.environ["JOURNAL_STREAM"] = "8:1"
health.set_up_logging("worker", "info")
log = logging.getLogger("agent.worker")
log.debug("hidden")
log.info("one %d", 1)
log.warning("a\\nb\\r\\nc\\u2028d")
health.set_level("debug")
log.debug("shown")
try:
    raise ValueError("x")
except ValueError:
    log.exception("failed")
logging.getLogger().critical(os.fsdecode(b"\\xff"))
"""


def test_lines_for_the_journal_have_its_priority_each():
    lines = run_python(SAY, "journal").err.splitlines()
    assert lines[:6] == ["<6>one 1", "<4>a", "<4>\tb", "<4>\tc", "<4>\td", "<7>shown"]
    assert lines[6] == "<3>failed"
    assert all(line.startswith("<3>\t") for line in lines[7:-1])
    assert lines[-1].startswith("<3>")


def test_lines_for_people_have_time_level_and_program():
    lines = run_python(SAY, "terminal").err.splitlines()
    assert lines[0].endswith(" INFO    worker: one 1")
    assert time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")
    assert lines[1].endswith(" WARNING worker: a")
    assert lines[2:5] == ["\tb", "\tc", "\td"]
    assert "hidden" not in "".join(lines)


def test_logging_is_set_up_once_however_often_it_is_asked_for(monkeypatch):
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        health.set_up_logging("worker", "info")
        health.set_up_logging("worker", "error")
        assert len(root.handlers) == 1
        assert root.level == logging.ERROR
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
