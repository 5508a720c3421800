"""`edge-ocr status` and `edge-ocr outbox`, run for real on an outbox with rows in every state."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.config import OutboxConfig
from agent.errors import ExitCode
from agent.health import Lock, UplinkState, WorkerState, write_state
from agent.outbox import Marks, Outbox
from tests.command import EDGE_OCR, Ran, run
from tests.test_check_machine import mounted

SETTINGS = """\
device = "box-1"
state_dir = "{home}/state"

[mqtt]
host = "localhost"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A branch with a pending, a brokered and a dead row."""
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path))
    outbox = Outbox(tmp_path / "state", OutboxConfig(), role="worker")
    for number in range(3):
        outbox.begin(f"key-{number}", "desk", "scan.png")
        page = {"source": "desk", "lines": [{"text": f"secret {number}"}] * (number + 1)}
        outbox.accept(f"key-{number}", json.dumps(page).encode())
    first, second, _ = outbox.rows()
    refused = ((second.epoch, second.seq, "conflict"),)
    outbox.record(Marks(brokered=((first.epoch, first.seq), (second.epoch, second.seq)), refused=refused))
    outbox.close()
    return tmp_path


def tell(home: Path, *arguments: str) -> Ran:
    return run((*EDGE_OCR, *arguments, "-c", home / "agent.toml"))


def test_status_counts_rows_and_says_what_to_look_at(home):
    ran = tell(home, "status", "--json")
    told = json.loads(ran.out)
    assert ran.status == ExitCode.SOME_FAILED
    assert (told["pending"], told["brokered"], told["dead"]) == (1, 1, 1)
    assert told["connection"] == "not running"
    assert [line.split(":")[0] for line in told["look_at"]].count("worker") == 1
    assert any("edge-ocr outbox list --state dead" in line for line in told["look_at"])


def test_status_tells_what_running_programs_say(home):
    now = Clock().wall_ms()
    worker = WorkerState(pid=1, at_ms=now, started_ms=now, accepted=7, bundle="models-1", rss_mb=100.0, held="full")
    uplink = UplinkState(pid=2, at_ms=now - 3_600_000, started_ms=now, connection="online", stored=5, rss_mb=28.0)
    locks = [Lock(home / "state", "worker"), Lock(home / "state", "uplink")]
    try:
        write_state(home / "state", "worker", worker)
        write_state(home / "state", "uplink", uplink)
        told = json.loads(tell(home, "status", "--json").out)
        shown = tell(home, "status").out
    finally:
        for lock in locks:
            lock.close()
    assert (told["bundle"], told["stored"], told["connection"], told["rss_mb"]) == ("models-1", 5, "online", 128.0)
    assert "worker: takes no pages: full" in told["look_at"]
    assert any(line.startswith("uplink: has said nothing for 60 min") for line in told["look_at"])
    assert "7 accepted" in shown


def test_healthy_offline_agent_needs_nothing(tmp_path):
    (tmp_path / "agent.toml").write_text(f'device = "box-1"\nstate_dir = "{tmp_path}/state"\n')
    lock = Lock(tmp_path / "state", "worker")
    now = Clock().wall_ms()
    write_state(tmp_path / "state", "worker", WorkerState(pid=1, at_ms=now, started_ms=now))
    ran = tell(tmp_path, "status")
    lock.close()
    assert (ran.status, ran.err) == (0, "")
    assert "LOOK AT" not in ran.out


def test_list_shows_states_and_no_text(home):
    ran = tell(home, "outbox", "list")
    assert [line.split()[1] for line in ran.out.splitlines()[1:]] == ["brokered", "dead", "pending"]
    assert "secret" not in ran.out
    assert "conflict" in ran.out
    assert len(tell(home, "outbox", "list", "--state", "dead").out.splitlines()) == 2
    assert "--after 1" in tell(home, "outbox", "list", "--limit", "1").err


def test_show_prints_the_row_as_it_is_sent(home):
    shown = json.loads(tell(home, "outbox", "show", "2").out)
    assert (shown["state"], shown["reason"]) == ("dead", "conflict")
    assert shown["result"]["lines"][0]["text"] == "secret 1"


def test_row_that_is_not_there_is_named(home):
    ran = tell(home, "outbox", "show", "99")
    assert ran.status == ExitCode.NO_INPUT
    assert "no row 99" in ran.err


def test_export_writes_every_row(home, tmp_path):
    target = tmp_path / "rows.jsonl"
    assert tell(home, "outbox", "export", "--output", str(target)).status == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3]
    assert all({"epoch", "seq", "state", "sha256", "result"} <= row.keys() for row in rows)


def test_exported_file_is_private_and_takes_the_place_of_a_link(home, tmp_path):
    precious, target = tmp_path / "precious", tmp_path / "rows.jsonl"
    precious.write_text("kept")
    target.symlink_to(precious)
    ran = tell(home, "outbox", "export", "--output", str(target))
    assert (ran.status, ran.err, precious.read_text()) == (0, "3 rows\n", "kept")
    assert (target.is_symlink(), target.stat().st_mode & 0o777) == (False, 0o600)


def test_export_of_no_rows_is_an_empty_file(home, tmp_path):
    ran = tell(home, "outbox", "export", "--state", "stored", "--output", str(tmp_path / "rows.jsonl"))
    assert (ran.status, ran.err, (tmp_path / "rows.jsonl").read_bytes()) == (0, "0 rows\n", b"")


def test_export_goes_to_standard_output(home):
    ran = tell(home, "outbox", "export", "--output", "-")
    assert (ran.status, ran.err, len(ran.out.splitlines())) == (0, "3 rows\n", 3)


def test_export_that_has_no_place_leaves_what_was_there(home, tmp_path):
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4k", "tmpfs") as small:
        (small / "rows.jsonl").write_text("before")
        ran = tell(home, "outbox", "export", "--output", str(small / "rows.jsonl"))
        assert ran.status == ExitCode.NO_INPUT
        assert ran.err.startswith(f"edge-ocr: {small}/rows.jsonl: No space left on device; ")
        assert [(path.name, path.read_text()) for path in small.iterdir()] == [("rows.jsonl", "before")]


def test_export_never_takes_the_place_of_a_pipe_or_device(home, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    ran = tell(home, "outbox", "export", "--output", str(tmp_path / "pipe"))
    assert (ran.status, "is no file" in ran.err) == (ExitCode.NO_INPUT, True)
    assert (tmp_path / "pipe").is_fifo()


def test_standard_output_that_takes_no_more_is_said(home):
    with open("/dev/full", "wb") as full:
        command = (*EDGE_OCR, "outbox", "export", "-c", home / "agent.toml")
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == ExitCode.NO_INPUT
    assert ran.stderr.startswith("edge-ocr: standard output: No space left on device; ")
    assert ran.stderr.count("\n") == 1


def test_retry_sends_dead_rows_again(home):
    assert tell(home, "outbox", "retry").status == ExitCode.USAGE
    assert "1 rows" in tell(home, "outbox", "retry", "--all").out
    assert json.loads(tell(home, "outbox", "stats", "--json").out)["dead"] == 0


def test_stats_are_shown_for_people_too(home):
    shown = tell(home, "outbox", "stats").out
    assert dict(line.split(None, 1) for line in shown.splitlines() if " " in line.strip())["pending"] == "1"


def test_outbox_that_was_never_made_is_said(tmp_path):
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path))
    ran = tell(tmp_path, "outbox", "list")
    assert ran.status == ExitCode.NO_INPUT
    assert "first start" in ran.err
