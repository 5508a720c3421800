"""The worker's loop over the real folder source and outbox; only the models are a stub."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from agent import health
from agent.clock import Clock
from agent.config import AgentConfig, MemoryConfig, OutboxConfig
from agent.errors import BundleError, EngineError, ExitCode, OutboxError
from agent.openers import open_sources
from agent.outbox import Marks, Outbox
from agent.page import Frame, PageResult
from agent.source_config import FolderConfig
from agent.worker import Worker
from tests.command import EDGE_OCR, ROOT, environment, run
from tests.stub_worker import CRASHES, FAILS, HANGS, HOARDS, LEAKS, SWELLS, StubReader, draw
from tests.system.branch import until


class CountingReader(StubReader):
    """Counts the pages it reads, and adds a long number to each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.beside: list[Any] = []

    def read(self, frame: Frame) -> PageResult:
        self.count += 1
        self.beside = []
        page = super().read(frame)
        number = msgspec.structs.replace(page.lines[0], text="Card 6222 0212 3456 7890 123")
        return msgspec.structs.replace(page, lines=(*page.lines, number))


class Bench:
    """A worker that a test steps."""

    def __init__(self, home: Path, outbox: OutboxConfig, *, idle_s: float = 60.0, **source: Any) -> None:
        self.inbox = home / "inbox"
        self.inbox.mkdir(exist_ok=True)
        folder = FolderConfig(name="desk", path=str(self.inbox), stable_s=0.05, poll_s=0.05, give_up_s=0.3, **source)
        self.config = AgentConfig(
            device="box-1",
            state_dir=str(home / "state"),
            source=(folder,),
            outbox=outbox,
            memory=MemoryConfig(limit_mb=65_536, idle_s=idle_s),  # the process of the tests is large
        )
        self.clock = Clock()
        self.outbox = Outbox(home / "state", outbox, role="worker", clock=self.clock)
        self.reader = CountingReader()
        self.worker = Worker(
            self.config,
            self.outbox,
            open_sources(self.config, self.clock),
            lambda: (self.reader, "stub-bundle"),
            self.clock,
        )
        self.worker.start()

    def work_until(self, happened: Callable[[], bool]) -> None:
        for _ in range(600):
            if not self.worker.tick():
                if happened():
                    return
                time.sleep(0.01)
        raise AssertionError("it does not happen")

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(row.result) for row in self.outbox.rows(None, 100, 0)]

    def has(self, accepted: int) -> bool:
        return self.state.accepted == accepted

    @property
    def state(self) -> health.WorkerState:
        return self.worker.state

    def files(self, folder: str) -> list[str]:
        place = self.inbox / folder
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, OutboxConfig(min_free_mb=0, ballast_mb=0))
    yield bench
    bench.worker.close()
    bench.outbox.close()


def test_page_becomes_a_masked_row_and_its_file_is_put_away(bench):
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.accepted == 1)
    (row,) = bench.rows()
    assert [line["text"] for line in row["lines"]] == ["page-00000007", "Card **** **** **** ***0 123"]
    assert (row["image"], row["source"], row["bundle"]) == ("scan.png", "desk", "stub")
    assert len(row["key"]) == 64
    assert abs(row["taken_at"] - time.time()) < 60
    assert bench.files("done") == ["scan.png"]


def test_what_was_read_is_not_in_the_log(bench, caplog):
    caplog.set_level(logging.INFO)
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.accepted == 1)
    assert "desk: 2 lines" in caplog.text
    assert "page-0000" not in caplog.text
    assert "6222" not in caplog.text


def test_same_picture_twice_is_one_row(bench):
    draw(bench.inbox / "first.png", 7)
    bench.work_until(lambda: bench.state.accepted == 1)
    draw(bench.inbox / "second.png", 7)
    bench.work_until(lambda: bench.state.skipped == 1)
    assert len(bench.rows()) == 1
    assert bench.files("done") == ["first.png", "second.png"]


def test_pages_leave_no_stock_of_freed_objects(bench):
    """Python keeps freed tuples of each length below 20 for their next use; texts of all lengths leave some of each."""
    blocks = []
    for number in range(8):
        bench.reader.beside = [tuple([number] * length) for length in range(1, 20) for _ in range(100 * number)]
        draw(bench.inbox / f"{number}.png", number)
        bench.work_until(partial(bench.has, number + 1))
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[2] < 1000, blocks


def test_defect_on_one_page_leaves_the_others(bench, caplog):
    draw(bench.inbox / "a.png", 1, FAILS)
    bench.work_until(lambda: bench.state.failed == 1)
    draw(bench.inbox / "b.png", 2)
    bench.work_until(lambda: bench.state.accepted == 1)
    assert "a.png" in bench.files("failed")
    assert any(
        "defect" in (bench.inbox / "failed" / name).read_text() for name in bench.files("failed") if ".txt" in name
    )


@pytest.mark.parametrize("error", [EngineError("no library"), BundleError("the bundle is gone")])
def test_models_that_cannot_be_loaded_again_are_no_verdict_on_a_page(bench, monkeypatch, error):
    def fails(frame: Frame) -> PageResult:
        raise error

    monkeypatch.setattr(bench.reader, "read", fails)
    draw(bench.inbox / "a.png", 1)
    with pytest.raises(type(error)):
        bench.work_until(lambda: False)
    assert (bench.state.failed, bench.files("failed")) == (0, [])


def test_place_that_cannot_be_noted_ends_nothing(bench, monkeypatch):
    monkeypatch.setattr(bench.outbox, "place", Mock(side_effect=[OutboxError("busy"), None]))
    draw(bench.inbox / "a.png", 1)
    bench.work_until(lambda: bench.state.held == "failing" or bench.state.accepted == 1)
    draw(bench.inbox / "b.png", 2)
    bench.work_until(lambda: bench.state.accepted == 2 and not bench.state.held)
    assert bench.files("done") == ["a.png", "b.png"]


def test_what_is_no_picture_is_refused_with_its_reason(bench):
    (bench.inbox / "letter.jpg").write_text("Dear Sirs")
    bench.work_until(lambda: bench.state.failed == 1)
    assert "letter.jpg" in bench.files("failed")
    assert not bench.rows()


def test_paused_worker_takes_nothing_until_resumed(bench):
    bench.outbox.set_paused(True)
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.held == "paused")
    time.sleep(0.3)
    assert not bench.worker.tick()
    assert (bench.inbox / "scan.png").exists()
    bench.outbox.set_paused(False)
    bench.work_until(lambda: bench.state.accepted == 1)


def test_page_is_not_read_again_when_the_outbox_takes_nothing_for_a_while(bench, monkeypatch):
    accept, failures = bench.outbox.accept, iter([OutboxError("full"), OutboxError("full")])

    def refuse_twice(key: str, result: bytes) -> int | None:
        for error in failures:
            raise error
        return accept(key, result)

    monkeypatch.setattr(bench.outbox, "accept", refuse_twice)
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.accepted == 1)
    assert bench.reader.count == 1
    assert len(bench.rows()) == 1


def test_full_outbox_stops_intake_and_goes_on_when_rows_are_stored(tmp_path):
    bench = Bench(tmp_path, OutboxConfig(max_mb=1, min_free_mb=0, ballast_mb=0))
    filler = b'{"lines": [], "pad": "' + b"x" * 60_000 + b'"}'
    number = 0
    while not bench.outbox.held():
        number += 1
        bench.outbox.begin(f"key-{number}", "desk", "filler")
        try:
            bench.outbox.accept(f"key-{number}", filler)
        except OutboxError:
            break
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.held != "")
    assert bench.state.held == "full"
    assert (bench.inbox / "scan.png").exists()
    told = health.read_state(tmp_path / "state", "worker", health.WorkerState)
    assert told is not None and not told.reading
    rows = list(bench.outbox.rows(None, 100, 0))
    uplink = Outbox(tmp_path / "state", bench.config.outbox, role="uplink")
    stored = {row.epoch: tuple((r.seq, r.seq) for r in rows if r.epoch == row.epoch) for row in rows}
    uplink.record(Marks(brokered=(), stored=stored, refused=(), again=()))
    uplink.close()
    bench.work_until(lambda: bench.state.accepted == 1)
    bench.worker.close()
    bench.outbox.close()


def test_page_is_read_again_on_request(bench):
    draw(bench.inbox / "scan.png", 7)
    bench.work_until(lambda: bench.state.accepted == 1)
    (row,) = bench.rows()
    assert bench.outbox.ask("order-1", "reread", row["key"])
    bench.work_until(lambda: bench.state.accepted == 2)
    assert len({row["key"] for row in bench.rows()}) == 2
    assert bench.outbox.ask("order-2", "reread", "nonsense")
    bench.work_until(lambda: len(bench.outbox.answers()) == 2)
    assert {answer.id: answer.ok for answer in bench.outbox.answers()} == {"order-1": True, "order-2": False}


def test_level_of_the_log_can_be_changed(bench):
    root = logging.getLogger()
    before = root.level
    try:
        bench.outbox.set_level("debug")
        bench.work_until(lambda: root.level == logging.DEBUG)
    finally:
        root.setLevel(before)


AGENT = """\
device = "box-1"
state_dir = "{home}/state"

[[source]]
type = "folder"
name = "desk"
path = "{home}/inbox"
stable_s = 0.05
poll_s = 0.05

[memory]
limit_mb = 128

[outbox]
min_free_mb = 0
"""


class Child:
    """The stub worker as a process."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "inbox").mkdir(exist_ok=True)
        (home / "agent.toml").write_text(AGENT.format(home=home))
        self.command = (sys.executable, "-m", "tests.stub_worker", "-c", str(home / "agent.toml"))

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.PIPE)

    def rows(self) -> list[str]:
        outbox = Outbox(self.home / "state", OutboxConfig(), role="tool")
        try:
            return [json.loads(row.result)["lines"][0]["text"] for row in outbox.rows(None, 100, 0)]
        finally:
            outbox.close()


def test_page_that_ends_the_process_three_times_is_put_aside_and_the_next_is_read(tmp_path):
    child = Child(tmp_path)
    draw(tmp_path / "inbox" / "a.png", 1, CRASHES)
    for _ in range(3):
        with child.start() as process:
            assert process.wait(30) == -signal.SIGSEGV
    draw(tmp_path / "inbox" / "b.png", 2)
    with child.start() as process:
        assert until((tmp_path / "inbox" / "done" / "b.png").exists) < 30
        process.terminate()
        assert process.wait(30) == 0
    assert child.rows() == ["page-00000002"]
    failed = {path.name for path in (tmp_path / "inbox" / "failed").iterdir()}
    assert "a.png" in failed
    assert any(
        "crash" in (tmp_path / "inbox" / "failed" / name).read_text() for name in failed if name.endswith(".txt")
    )


def test_page_at_hand_is_finished_when_the_worker_is_told_to_end(tmp_path):
    child = Child(tmp_path)
    draw(tmp_path / "inbox" / "a.png", 1, seconds=1.0)
    with child.start() as process:
        work = tmp_path / "inbox" / ".edge-ocr" / "work"
        assert until(lambda: work.is_dir() and any(work.iterdir())) < 30
        time.sleep(0.3)
        process.terminate()
        assert process.wait(30) == 0
    assert child.rows() == ["page-00000001"]


def test_page_of_a_killed_worker_is_read_by_the_next(tmp_path):
    child = Child(tmp_path)
    draw(tmp_path / "inbox" / "a.png", 1, HANGS)
    with child.start() as process:
        work = tmp_path / "inbox" / ".edge-ocr" / "work"
        assert until(lambda: work.is_dir() and any(work.iterdir())) < 30
        process.kill()
    assert not (tmp_path / "inbox" / "a.png").exists()
    (claimed,) = list(work.rglob("*.png"))
    draw(claimed, 3)  # as if it did not hang this time
    with child.start() as process:
        assert until((tmp_path / "inbox" / "done" / "a.png").exists) < 30
        process.terminate()
        assert process.wait(30) == 0
    assert child.rows() == ["page-00000003"]


def test_second_worker_on_one_state_is_refused(tmp_path):
    child = Child(tmp_path)
    with child.start() as first:
        assert until((tmp_path / "state" / "worker.json").exists) < 30
        with child.start() as second:
            assert second.wait(30) != 0
            assert b"another worker" in second.stderr.read()
        first.terminate()
        assert first.wait(30) == 0


def state_of(home: Path) -> health.WorkerState:
    state = health.read_state(home / "state", "worker", health.WorkerState)
    assert state is not None
    return state


def has_read(home: Path, count: int) -> Callable[[], bool]:
    return lambda: sum(1 for _ in (home / "inbox").glob("done/*")) == count


def test_models_are_loaded_anew_when_they_hold_more_and_more(tmp_path):
    child = Child(tmp_path)
    with child.start() as process:
        assert until((tmp_path / "state" / "worker.json").exists) < 30
        draw(tmp_path / "inbox" / "a.png", 1, HOARDS, megabytes=55)
        draw(tmp_path / "inbox" / "b.png", 2)
        assert until(has_read(tmp_path, 2)) < 30
        assert until(lambda: state_of(tmp_path).rebuilds == 1) < 30
        assert state_of(tmp_path).rss_mb < 100
        process.terminate()
        assert process.wait(30) == 0
        assert b"starts anew" not in process.stderr.read()


@pytest.mark.parametrize(("action", "megabytes"), [(LEAKS, 55), (SWELLS, 90)])
def test_worker_over_its_limit_starts_anew_and_loses_nothing(tmp_path, action, megabytes):
    child = Child(tmp_path)
    with child.start() as process:
        assert until((tmp_path / "state" / "worker.json").exists) < 30
        began = state_of(tmp_path).started_ms
        draw(tmp_path / "inbox" / "a.png", 1, action, megabytes=megabytes)
        for number in range(2, 6):
            draw(tmp_path / "inbox" / f"{number}.png", number)
        assert until(has_read(tmp_path, 5)) < 60
        assert until(lambda: state_of(tmp_path).started_ms > began) < 30
        assert state_of(tmp_path).pid == process.pid
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == 0
        said = process.stderr.read().decode()
    assert "this process starts anew" in said
    assert sorted(child.rows()) == [f"page-{number:08x}" for number in range(1, 6)]
    assert state_of(tmp_path).limit_mb == 128


def test_worker_that_is_stopped_while_it_closes_to_start_anew_stops(tmp_path):
    child = Child(tmp_path)
    with open(tmp_path / "agent.toml", "a") as settings:
        settings.write('[hooks]\non_accepted = ["/bin/sleep", "2"]\n')
    with child.start() as process:
        assert until((tmp_path / "state" / "worker.json").exists) < 30
        draw(tmp_path / "inbox" / "a.png", 1, SWELLS, megabytes=90)
        for line in process.stderr:
            if b"starts anew" in line:
                process.terminate()
                break
        assert process.wait(30) == 0
        assert b"ready" not in process.stderr.read()


def test_page_that_would_take_everything_is_refused_and_the_process_lives(tmp_path):
    child = Child(tmp_path)
    with child.start() as process:
        assert until((tmp_path / "state" / "worker.json").exists) < 30
        draw(tmp_path / "inbox" / "a.png", 1, SWELLS, megabytes=250)
        draw(tmp_path / "inbox" / "b.png", 2)
        assert until(has_read(tmp_path, 1)) < 30
        process.terminate()
        assert process.wait(30) == 0
    assert child.rows() == ["page-00000002"]
    assert (tmp_path / "inbox" / "failed" / "a.png.reason.txt").read_text().startswith("memory: out of memory: raise ")


def test_models_are_given_back_when_nothing_comes_and_are_there_for_the_next_page(tmp_path):
    bench = Bench(tmp_path, OutboxConfig(min_free_mb=0, ballast_mb=0), idle_s=0.2)
    draw(bench.inbox / "a.png", 1, HOARDS, megabytes=1)
    bench.work_until(lambda: bench.state.accepted == 1)
    assert bench.reader.hoard
    bench.work_until(lambda: not bench.reader.hoard)
    draw(bench.inbox / "b.png", 2)
    bench.work_until(lambda: bench.state.accepted == 2)
    bench.worker.close()
    bench.outbox.close()


def test_sources_take_turns_however_much_waits_in_one(tmp_path):
    homes = {"few": 3, "many": 60, "some": 20}
    folders = tuple(FolderConfig(name=name, path=str(tmp_path / name), stable_s=0.05) for name in homes)
    config = AgentConfig(device="box-1", state_dir=str(tmp_path / "state"), source=folders)
    for start, (name, count) in enumerate(homes.items()):
        (tmp_path / name).mkdir()
        for number in range(count):
            draw(tmp_path / name / f"{number}.png", 1000 * start + number)
    outbox = Outbox(tmp_path / "state", OutboxConfig(min_free_mb=0), role="worker")
    worker = Worker(config, outbox, open_sources(config, Clock()), lambda: (CountingReader(), "stub"))
    worker.start()
    rows: list[Any] = []
    deadline = time.monotonic() + 60
    while len(rows) < sum(homes.values()) and time.monotonic() < deadline:
        worker.tick()
        rows = list(outbox.rows()) if worker.state.accepted == sum(homes.values()) else rows
    order = [json.loads(row.result)["source"] for row in rows]
    assert {name: order.count(name) for name in homes} == homes
    assert all(order[: 3 * homes["few"]].count(name) == homes["few"] for name in homes)
    assert order[: 3 + 2 * homes["some"]].count("some") == homes["some"]
    worker.close()
    outbox.close()


@pytest.mark.parametrize(
    ("wanted", "environment_of", "started"),
    [("true", {}, 2), ("true", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, 1), ("false", {}, 1)],
)
def test_worker_starts_itself_once_more_for_large_memory_pages(tmp_path, wanted, environment_of, started):
    (tmp_path / "agent.toml").write_text(
        f'device = "a"\nstate_dir = "{tmp_path}/state"\n[memory]\nlarge_pages = {wanted}\n[reader]\nbundle = "none"\n'
    )
    command = (*EDGE_OCR, "worker", "-c", tmp_path / "agent.toml")
    traced = ("strace", "-f", "-e", "trace=execve", "-o", tmp_path / "trace", *command)
    ran = run(traced, {**environment(tmp_path / "cache"), **environment_of})
    assert ran.status == ExitCode.BUNDLE, ran.err
    assert (tmp_path / "trace").read_text().count("execve(") == started
