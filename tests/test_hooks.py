"""Hooks are told of each page once, in the background, and nothing they do is in the way of the next page."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from agent.clock import Clock
from agent.config import HooksConfig
from agent.errors import ExitCode
from agent.hooks import MAX_BYTES, FailedPage, Hooks
from tests.command import EDGE_OCR, run
from tests.stub_worker import FAILS
from tests.system.branch import until
from tests.upload_kit import Desk, picture, wait

FAILED = FailedPage("k", "scans", "a.png", "damaged", "a.png: damaged")


def script(tmp_path: Path, text: str) -> tuple[str, ...]:
    """Return a hook that runs a piece of Python; `said` is what it was told, `out` a file for what it has to say."""
    path = tmp_path / "hook.py"
    path.write_text(
        f"import json, os, sys, time\nsaid = sys.stdin.read()\nout = open({str(tmp_path / 'out')!r}, 'a')\n{text}\n"
    )
    return (sys.executable, "-S", str(path))


def out(tmp_path: Path) -> list[Any]:
    path = tmp_path / "out"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


WRITE = "out.write(said)"


def worked(hooks: Hooks, within_s: float = 20.0) -> float:
    """Step hooks as the worker does until none runs and none waits; returns the longest step in seconds."""
    deadline, longest = time.monotonic() + within_s, 0.0
    while True:
        began = time.monotonic()
        hooks.tick()
        longest = max(longest, time.monotonic() - began)
        if hooks.next_s() == float("inf"):
            return longest
        assert time.monotonic() < deadline, "hooks do not end"
        select.select(hooks.filenos(), [], [], min(1.0, hooks.next_s()))


@pytest.fixture
def make():
    made: list[Hooks] = []

    def start(**settings: Any) -> Hooks:
        made.append(Hooks(HooksConfig(**settings), Clock()))
        return made[-1]

    yield start
    for hooks in made:
        hooks.close()


def test_hook_is_told_one_object_on_standard_input(make, tmp_path):
    hooks = make(on_accepted=script(tmp_path, WRITE), on_failed=script(tmp_path, WRITE))
    hooks.accepted(b'{"key": "a"}')
    hooks.failed(FAILED)
    worked(hooks)
    told = {"key": "k", "source": "scans", "name": "a.png", "reason": "damaged", "error": "a.png: damaged"}
    assert out(tmp_path) == [{"key": "a"}, {**told, "page": 0, "pages": 0}]


def test_hook_is_told_of_a_file_whose_name_is_no_utf8(make, tmp_path):
    hooks = make(on_failed=script(tmp_path, WRITE))
    hooks.failed(msgspec.structs.replace(FAILED, error="/scans/a\udcff.png: the file is empty"))
    worked(hooks)
    assert [told["error"] for told in out(tmp_path)] == [r"/scans/a\udcff.png: the file is empty"]


def test_without_hooks_nothing_waits(make):
    hooks = make()
    hooks.accepted(b"{}")
    hooks.failed(FAILED)
    assert (hooks.next_s(), hooks.filenos(), hooks.missed) == (float("inf"), (), 0)


def test_large_result_that_is_not_read_is_in_nobodys_way(make):
    hooks = make(on_accepted=("/bin/true",))
    hooks.accepted(b"x" * (1 << 20))  # a pipe would take 64 kB
    worked(hooks)
    assert hooks.missed == 0


def test_hook_has_a_small_environment_and_no_descriptors(make, tmp_path, monkeypatch):
    monkeypatch.setenv("MQTT_PASSWORD", "hunter2")
    text = "out.write(json.dumps([dict(os.environ), os.getcwd(), sorted(os.listdir('/proc/self/fd')), os.getsid(0)]))"
    hooks = make(on_failed=script(tmp_path, text))
    hooks.failed(FAILED)
    worked(hooks)
    ((environment, folder, descriptors, session),) = out(tmp_path)
    environment.pop("LC_CTYPE", None)  # Python's own
    assert set(environment) == {"PATH", "LANG", "EDGE_OCR_EVENT"}
    assert environment["EDGE_OCR_EVENT"] == "failed"
    assert (folder, descriptors) == ("/", ["0", "1", "2", "3", "4"])  # 3 and 4: `out`, and the listing
    assert session != os.getsid(0)


def test_hooks_run_one_at_a_time_and_in_order(make, tmp_path):
    text = "a = time.time(); time.sleep(0.05); out.write(f'[{said.strip()}, {a}, {time.time()}]\\n')"
    hooks = make(on_accepted=script(tmp_path, text))
    for number in range(4):
        hooks.accepted(str(number).encode())
    worked(hooks)
    found = out(tmp_path)
    assert [number for number, _, _ in found] == [0, 1, 2, 3]
    assert all(one[2] <= after[1] for one, after in pairwise(found))


def test_slow_hook_is_killed_with_all_it_started(make, tmp_path, caplog):
    child = f"['/bin/sh', '-c', 'echo $$ > {tmp_path}/child; sleep 60']"
    text = f"import subprocess; subprocess.Popen({child}); time.sleep(60)"
    hooks = make(on_accepted=script(tmp_path, text), timeout_s=0.5)
    hooks.accepted(b"1")
    worked(hooks)
    child = int((tmp_path / "child").read_text())
    assert until(lambda: not _lives(child)) < 10
    assert "takes" not in caplog.text and "took longer than 0.5 s and is killed" in caplog.text


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("text", "how"), [("sys.exit(3)", "status 3"), ("os.kill(os.getpid(), 9)", "signal 9")])
def test_hook_that_fails_is_a_warning_without_what_it_was_told_or_said(make, tmp_path, caplog, text, how):
    hooks = make(on_accepted=script(tmp_path, f"print('OUTPUT'); print('OUTPUT', file=sys.stderr); {text}"))
    hooks.accepted(b'"SECRET"')
    worked(hooks)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"hook {sys.executable} ended with {how}"


def test_program_that_cannot_be_started_is_said_once(make, caplog):
    hooks = make(on_accepted=("/none/program",))
    for _ in range(3):
        hooks.accepted(b"1")
    worked(hooks)
    assert [record.getMessage() for record in caplog.records] == [
        "hook /none/program cannot be started: No such file or directory"
    ]
    assert hooks.missed == 3


def test_oldest_pages_are_not_told_when_hooks_are_too_slow(make, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    hooks = make(on_accepted=script(tmp_path, WRITE), max_waiting=3)
    for number in range(10):
        hooks.accepted(str(number).encode())
    worked(hooks)
    assert out(tmp_path) == [7, 8, 9]
    assert hooks.missed == 7
    assert [record.getMessage() for record in caplog.records] == [
        "hooks are slower than pages come: the oldest pages are not told",
        "hooks have caught up; 7 pages were not told since the start",
    ]


def test_large_results_that_wait_are_bounded_too(make):
    hooks = make(on_accepted=("/bin/true",), max_waiting=1000)
    for _ in range(20):
        hooks.accepted(bytes(1 << 20))
    assert sum(len(said) for _, _, said in hooks._waiting) <= MAX_BYTES
    assert hooks.missed == 20 - (MAX_BYTES >> 20)


def test_hook_that_runs_at_the_end_is_waited_for_and_the_rest_is_not(make, tmp_path, caplog):
    hooks = make(on_accepted=script(tmp_path, f"time.sleep(0.3); {WRITE}"))
    for number in range(3):
        hooks.accepted(str(number).encode())
    hooks.tick()
    hooks.close()
    assert out(tmp_path) == [0]
    assert "2 pages are not told" in caplog.text


def test_descriptors_and_children_do_not_pile_up(make):
    hooks = make(on_accepted=("/bin/true",))
    before, children = len(os.listdir("/proc/self/fd")), set(psutil.Process().children())
    for _ in range(30):
        hooks.accepted(b"1")
        worked(hooks)
    assert len(os.listdir("/proc/self/fd")) == before
    assert set(psutil.Process().children()) <= children


# ------------------------------------------------------------------------------------------------ in the worker


def test_worker_tells_of_accepted_and_refused_pages_and_of_no_others(tmp_path):
    command = script(tmp_path, WRITE)
    desk = Desk(tmp_path, hooks=HooksConfig(on_accepted=command, on_failed=command), masked=False).start()
    try:
        desk.read(picture(tmp_path, 1), "/v1/read?store=0")
        desk.read(b"no picture", "/v1/read?store=0")
        desk.read(picture(tmp_path, 2))
        desk.read(picture(tmp_path, 3, FAILS))
        wait(lambda: len(out(tmp_path)) == 2)
    finally:
        desk.stop()
    accepted, failed = out(tmp_path)
    assert [accepted] == desk.rows()  # masked
    assert (failed["reason"], failed["source"], failed["name"]) == ("defect", "desk", "upload.png")


def test_pages_are_read_while_a_hook_sleeps(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.hooks.END_S", 0.1)
    desk = Desk(tmp_path, hooks=HooksConfig(on_accepted=("/bin/sleep", "60"), timeout_s=60.0)).start()
    try:
        for number in range(5):
            assert desk.read(picture(tmp_path, number)).status == 200
    finally:
        desk.stop()


def test_hook_without_a_whole_path_is_refused(tmp_path):
    (tmp_path / "agent.toml").write_text('device = "a"\n[hooks]\non_failed = ["notify"]\n')
    ran = run((*EDGE_OCR, "worker", "-c", tmp_path / "agent.toml"))
    assert ran.status == ExitCode.CONFIG
    assert "must begin with the whole path of a program" in ran.err
