"""The outbox keeps what it accepted, in order, within its bounds, whatever the clock and the disk do."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest

from agent import protocol
from agent.config import OutboxConfig
from agent.errors import ConfigError, FrameError, InputError, OutboxError
from agent.outbox import Marks, Outbox, Request, backlog, database, disk, life, outbox, retention, schema
from agent.outbox.database import Database
from agent.outbox.life import Life
from agent.outbox.rows import DEAD, PENDING, STORED
from tests.command import run, run_python
from tests.outbox_kit import DAY_S, NO_BALLAST, BentClock, fill, in_memory, keys, opened, result, whole

tmp_path = pytest.fixture(in_memory)


@pytest.fixture
def clock():
    return BentClock()


@pytest.fixture
def box(tmp_path, clock):
    with opened(tmp_path, clock=clock) as made:
        yield made


@pytest.fixture
def uplink(tmp_path, clock, box):
    with opened(tmp_path, clock=clock, role="uplink") as made:
        yield made


def look(path: Path, sql: str) -> list[tuple]:
    """What SQLite says about the file, asked from outside."""
    connection = sqlite3.connect(path / "outbox.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def change(path: Path, *statements: str) -> None:
    """Change the file behind the outbox's back."""
    connection = sqlite3.connect(path / "outbox.db", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def brokered(outbox: Outbox, *seqs: int) -> None:
    outbox.record(Marks(brokered=tuple((outbox.stats().epoch, seq) for seq in seqs)))


# ------------------------------------------------------------------------------------------------------- worker's side


def test_accepted_row_is_given_for_sending_with_its_digest(box, uplink, clock):
    box.begin("a", "dock", "a.jpg")
    assert box.accept("a", b'{"x":1}') == 1
    clock.run(2)
    (row,) = uplink.pending(10, fresh_s=60)
    assert (row.key, row.seq, row.epoch, row.result, row.state) == ("a", 1, box.stats().epoch, b'{"x":1}', PENDING)
    assert row.sha256 == hashlib.sha256(b'{"x":1}').hexdigest()
    assert row.age_s == 2.0
    assert row.created_ms == 1_700_000_000_000


def test_page_accepted_twice_is_one_row(box):
    assert box.accept("a", b"1") == 1
    assert box.accept("a", b"2") is None
    assert [row.result for row in box.rows()] == [b"1"]


def test_page_is_not_accepted_again_after_its_row_is_stored_and_gone(box):
    box.accept("a", b"1")
    box.record(Marks(stored=whole(box.stats().epoch, (1, 1))))
    assert keys(box) == []
    assert box.accept("a", b"1") is None


def test_page_is_not_accepted_again_when_only_its_verdict_is_gone(tmp_path, box):
    box.accept("a", b"1")
    change(tmp_path, "DELETE FROM intake")
    assert box.accept("a", b"2") is None
    assert box.intake("a").status == "accepted"


def test_numbers_grow_although_rows_are_deleted(box):
    fill(box, 3)
    box.record(Marks(stored=whole(box.stats().epoch, (1, 3))))
    assert box.accept("next", b"1") == 4


def test_intake_tells_what_became_of_a_page(box):
    assert box.intake("a") is None
    assert box.begin("a", "dock", "a.jpg") == 1
    known = box.intake("a")
    assert (known.status, known.source, known.name, known.attempts) == ("reading", "dock", "a.jpg", 1)
    assert known.first_ms == 1_700_000_000_000
    box.fail("a", "truncated")
    box.place(("a",), "/inbox/failed/a.jpg")
    known = box.intake("a")
    assert (known.status, known.reason, known.place) == ("failed", "truncated", "/inbox/failed/a.jpg")


def test_accepted_page_stays_accepted(box):
    box.accept("a", b"1")
    box.fail("a", "late")
    box.begin("a", "dock", "a.jpg")
    assert box.intake("a").status == "accepted"
    assert box.intake("a").reason == ""


def test_failed_page_may_be_read_again(box):
    box.begin("a", "dock", "a.jpg")
    box.fail("a", "memory")
    assert box.begin("a", "dock", "a.jpg") == 2
    assert box.accept("a", b"1") == 1


def test_page_that_is_not_to_be_kept_is_forgotten_and_an_accepted_one_is_not(box):
    box.begin("once", "counter", "a.png")
    box.forget("once")
    assert box.intake("once") is None
    assert box.begin("once", "counter", "a.png") == 1
    box.accept("once", b"{}")
    box.forget("once")
    assert box.intake("once").status == "accepted"


def test_beginning_again_in_the_same_process_is_no_new_attempt(box):
    assert [box.begin("a", "dock", "a.jpg") for _ in range(3)] == [1, 1, 1]


def test_attempts_are_counted_over_sigkill(tmp_path):
    code = """
import os, signal, sys
from pathlib import Path
from agent.config import OutboxConfig
from agent.outbox import Outbox
print(Outbox(Path(sys.argv[1]), OutboxConfig(), role="worker").begin("a", "dock", "a.jpg"), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ran = [run_python(code, tmp_path) for _ in range(3)]
    assert [(r.status, r.out) for r in ran] == [(-9, "1\n"), (-9, "2\n"), (-9, "3\n")]
    with opened(tmp_path) as box:
        assert box.intake("a").attempts == 3


def test_names_that_are_no_text_do_no_harm(box):
    name = os.fsdecode(b"scan-\xff\n.jpg")
    box.begin("a", "dock", name)
    box.place(("a",), f"/done/{name}")
    assert box.intake("a").name == "scan-\\udcff\n.jpg"


def test_result_larger_than_a_message_is_an_error_of_the_page(box):
    with pytest.raises(FrameError) as caught:
        box.accept("a", b"1" * protocol.MAX_RESULT_BYTES)
    assert caught.value.reason == "large"
    assert keys(box) == []


def test_result_that_just_fits_makes_a_message_that_fits(box):
    body = b'"' + b"x" * (outbox._MOST_BYTES - 2) + b'"'
    assert box.accept("a", body) == 1
    message = protocol.ResultMessage(
        device="d" * 64,
        epoch="0" * 32,
        seq=1 << 52,
        sha256=protocol.sha256(body),
        sent_ms=1 << 62,
        created_ms=1 << 62,
        historical=False,
        result=msgspec.Raw(body),
    )
    assert len(protocol.encode(message)) <= protocol.MAX_RESULT_BYTES


# ------------------------------------------------------------------------------------------------------- uplink's side


def test_rows_go_from_pending_to_brokered_to_gone(box, uplink):
    fill(box, 3)
    epoch = box.stats().epoch
    brokered(uplink, 1, 2)
    assert [row.seq for row in uplink.pending(10, fresh_s=0)] == [3]
    assert uplink.waiting(10) == {epoch: ((1, 2),)}
    uplink.record(Marks(stored=whole(epoch, (1, 1)), again=((epoch, 2),)))
    assert uplink.waiting(10) == {}
    assert [(row.seq, row.attempts) for row in uplink.pending(10, fresh_s=0)] == [(2, 1), (3, 0)]


def test_receipt_may_come_before_the_broker_s_answer(box, uplink):
    fill(box, 1)
    epoch = box.stats().epoch
    uplink.record(Marks(stored=whole(epoch, (1, 1)), brokered=((epoch, 1),)))
    brokered(uplink, 1)
    assert keys(box) == []


def test_refused_row_is_dead_until_someone_retries_it(box, uplink):
    fill(box, 3)
    epoch = box.stats().epoch
    uplink.record(Marks(refused=((epoch, 1, "conflict"), (epoch, 3, "invalid"))))
    assert [(row.seq, row.reason) for row in box.rows(DEAD)] == [(1, "conflict"), (3, "invalid")]
    uplink.record(Marks(brokered=((epoch, 1),), again=((epoch, 1),), stored=whole(epoch, (1, 1))))
    assert box.stats().dead == 2
    assert "dead" in box.stats().alarms
    assert box.retry([1]) == 1
    assert [row.seq for row in uplink.pending(10, fresh_s=0)] == [1, 2]
    assert box.retry() == 1


def test_marks_of_another_epoch_change_nothing(box, uplink):
    fill(box, 1)
    other = "0" * 32
    uplink.record(
        Marks(brokered=((other, 1),), stored=whole(other, (1, 9)), refused=((other, 1, "x"),), again=((other, 1),))
    )
    assert [(row.state, row.attempts) for row in box.rows()] == [(PENDING, 0)]


def test_one_receipt_may_name_very_many_rows(box, uplink):
    for number in range(1300):
        box.accept(str(number), b"1")
    uplink.record(Marks(stored=whole(box.stats().epoch, (1, 1100), (1200, 1 << 53))))
    assert [row.seq for row in box.rows()] == list(range(1101, 1200))


def test_stored_rows_are_kept_for_as_long_as_asked(tmp_path, clock):
    config = OutboxConfig(min_free_mb=0, ballast_mb=0, keep_stored_days=2)
    with opened(tmp_path, config, clock=clock, role="uplink") as box:
        fill(box, 2)
        box.record(Marks(stored=whole(box.stats().epoch, (1, 1))))
        clock.run(1.9 * DAY_S)
        box.tidy()
        assert [row.seq for row in box.rows(STORED)] == [1]
        assert [row.seq for row in box.pending(5, fresh_s=0)] == [2]
        clock.run(0.2 * DAY_S)
        box.tidy()
        assert [row.seq for row in box.rows()] == [2]


def test_fresh_rows_come_first_and_older_ones_get_a_quarter(box, uplink, clock):
    fill(box, 20)
    clock.run(100)
    fill(box, 20, first=20)
    assert [row.seq for row in uplink.pending(8, fresh_s=60)] == [21, 22, 23, 24, 25, 26, 1, 2]


def test_older_rows_get_their_quarter_although_rows_are_asked_for_singly(box, uplink, clock):
    fill(box, 20)
    clock.run(100)
    fill(box, 20, first=20)
    skip: list[tuple[str, int]] = []
    for _ in range(16):
        (row,) = uplink.pending(1, fresh_s=60, skip=skip)
        skip.append((row.epoch, row.seq))
    assert sum(seq <= 20 for _, seq in skip) == 4


def test_older_rows_take_all_when_none_is_fresh_and_the_other_way_round(box, uplink, clock):
    fill(box, 5)
    assert [row.seq for row in uplink.pending(3, fresh_s=60)] == [1, 2, 3]
    clock.run(100)
    assert [row.seq for row in uplink.pending(3, fresh_s=60)] == [1, 2, 3]
    assert uplink.pending(0, fresh_s=60) == []


def test_rows_on_their_way_are_skipped(box, uplink):
    fill(box, 5)
    epoch = box.stats().epoch
    rows = uplink.pending(2, fresh_s=60, skip={(epoch, 1), (epoch, 3), ("0" * 32, 2)})
    assert [row.seq for row in rows] == [2, 4]


def test_rows_of_an_earlier_boot_are_never_fresh(box, uplink, clock):
    fill(box, 2)
    clock.boot()
    fill(box, 2, first=2)
    rows = uplink.pending(4, fresh_s=1e9)
    assert [(row.seq, row.age_s is None) for row in rows] == [(3, False), (4, False), (1, True), (2, True)]


@pytest.mark.parametrize("gone", [(), (1, 2, 3), (5,), (9, 10), tuple(range(2, 10)), tuple(range(1, 11))])
def test_border_of_fresh_rows_is_found_whatever_rows_are_gone(tmp_path, clock, gone):
    with opened(tmp_path, clock=clock) as box:
        for number in range(10):
            clock.run(10)
            fill(box, 1, first=number)
        brokered(box, *gone)
        left = [seq for seq in range(1, 11) if seq not in gone]
        for fresh_s in (0, 5, 15, 45, 95, 1000):
            fresh = [seq for seq in left if (10 - seq) * 10 < fresh_s]
            shown = [row.seq for row in box.pending(100, fresh_s=fresh_s)]
            assert shown == fresh + [seq for seq in left if seq not in fresh]


def test_large_rows_are_not_all_read_at_once(box):
    for number in range(8):
        box.accept(str(number), b"1" * 900_000)
    assert len(box.pending(8, fresh_s=60)) == 5


def test_pending_rows_are_found_by_index_alone(tmp_path, box, monkeypatch):
    fill(box, 3)
    seen: list[str] = []
    connection = sqlite3.connect(tmp_path / "outbox.db")
    connection.set_trace_callback(seen.append)
    moment = Life().now(BentClock())
    backlog.read(connection, backlog.choose(connection, 2, 2, 1, ())[0], moment)
    backlog.fresh_from(connection, moment, 1000)
    backlog.waiting(connection, 10)
    backlog.oldest_ms(connection)
    backlog.counts(connection)
    connection.set_trace_callback(None)
    plans = {row[3] for sql in seen for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")}
    connection.close()
    assert len(seen) > 6
    assert not [plan for plan in plans if "SCAN" in plan and "USING COVERING INDEX outbox_state" not in plan]
    assert not [plan for plan in plans if "TEMP B-TREE" in plan]


@pytest.mark.parametrize("damage", ["result = x'31'", "mono_ms = 7", "seal = 1", "sha256 = x''"])
def test_row_that_is_not_what_was_accepted_is_never_given(tmp_path, box, uplink, damage):
    fill(box, 2)
    change(tmp_path, f"UPDATE outbox SET {damage} WHERE seq = 1")
    assert [row.seq for row in uplink.pending(10, fresh_s=60)] == [2]
    assert [(row.seq, row.reason, row.result) for row in box.rows(DEAD)] == [(1, "damaged", b"")]
    assert [event.kind for event in uplink.events(5)] == ["alarm"]
    assert "salvage" not in uplink.stats().alarms


# ------------------------------------------------------------------------------------------- commands, events, counters


def test_command_is_handed_over_once_and_answered_once(box, uplink):
    assert uplink.ask("c1", "reread", "a")
    assert not uplink.ask("c1", "pause", "")
    assert box.requests() == (Request("c1", "reread", "a"),)
    assert uplink.answers() == ()
    box.finish("c1", ok=False, detail="it is gone")
    assert box.requests() == ()
    (answer,) = uplink.answers()
    assert (answer.id, answer.verb, answer.ok, answer.detail) == ("c1", "reread", False, "it is gone")
    uplink.answered(["c1"])
    assert uplink.answers() == ()
    assert not uplink.ask("c1", "reread", "a")


def test_commands_are_remembered_for_a_week_of_the_outbox_s_life(box, clock):
    box.ask("c1", "status", "")
    box.finish("c1", ok=True, detail="")
    box.answered(["c1"])
    clock.run(6.9 * DAY_S)
    box.tidy()
    assert not box.ask("c1", "status", "")
    clock.run(0.2 * DAY_S)
    box.tidy()
    assert box.ask("c1", "status", "")


def test_event_stays_until_it_was_sent(box, uplink):
    box.add_event("alarm", "the scanner smokes")
    box.add_event("alarm", "the scanner smokes")
    (event,) = uplink.events(5)
    assert event[1:] == ("alarm", 1_700_000_000_000, "the scanner smokes", None, ())
    assert box.stats().events == 1
    uplink.event_sent([event.id])
    assert uplink.events(5) == []


def test_unsent_alarms_are_bounded(box):
    connection_less = [f"alarm {number}" for number in range(1010)]
    for detail in connection_less:
        box.add_event("alarm", detail)
    assert [event.detail for event in box.events(2000)] == connection_less[10:]


def test_sessions_are_counted_over_restarts(tmp_path):
    with opened(tmp_path, role="uplink") as box:
        assert [box.next_session(), box.next_session()] == [1, 2]
    with opened(tmp_path, role="uplink") as box:
        assert box.next_session() == 3


def test_pause_and_level_are_seen_by_the_other_and_outlive_a_restart(tmp_path, box, uplink):
    uplink.set_paused(True)
    uplink.set_level("debug")
    assert box.held() == "paused"
    with opened(tmp_path) as later:
        assert (later.stats().paused, later.stats().level, later.held()) == (True, "debug", "paused")
    uplink.set_paused(False)
    assert box.held() == ""


def test_stats_count_states_and_tell_the_oldest_age(box, uplink, clock):
    fill(box, 5)
    epoch = box.stats().epoch
    clock.run(50)
    uplink.record(Marks(brokered=((epoch, 1),), refused=((epoch, 2, "invalid"),)))
    stats = box.stats()
    assert (stats.pending, stats.brokered, stats.stored, stats.dead) == (3, 1, 0, 1)
    assert (stats.oldest_s, stats.paused, stats.events) == (50.0, False, 0)
    assert 0 < stats.bytes < stats.max_bytes == 512 << 20


def test_rows_are_listed_in_parts(box):
    fill(box, 250)
    assert [row.seq for row in box.rows()] == list(range(1, 251))
    assert [row.seq for row in box.rows(PENDING, limit=120, after_seq=100)] == list(range(101, 221))
    assert box.row(7).key == "page-00006"
    assert box.row(251) is None


# --------------------------------------------------------------------------------------------------- time and retention


@pytest.mark.parametrize("jump_s", [365 * DAY_S, -365 * DAY_S, -1_700_000_000.0])
def test_wrong_date_deletes_nothing(tmp_path, clock, jump_s):
    config = OutboxConfig(min_free_mb=0, ballast_mb=0, keep_stored_days=1, remember_days=1)
    with opened(tmp_path, config, clock=clock, role="uplink") as box:
        fill(box, 3)
        box.record(Marks(stored=whole(box.stats().epoch, (1, 1))))
        clock.wall_s += jump_s
        clock.run(600)
        box.tidy()
        assert len(keys(box)) == 3
        assert box.intake("page-00000").status == "accepted"
        assert box.stats().oldest_s == 600.0
        assert box.accept("later", b"1") == 4


def test_wrong_date_after_a_restart_counts_three_days_at_most(tmp_path, clock):
    config = OutboxConfig(min_free_mb=0, ballast_mb=0, remember_days=4)
    with opened(tmp_path, config, clock=clock) as box:
        box.fail("a", "blank")
    clock.boot(off_s=365 * DAY_S)
    with opened(tmp_path, config, clock=clock) as box:
        box.tidy()
        assert box.intake("a") is not None
        clock.run(1.1 * DAY_S)
        box.tidy()
        assert box.intake("a") is None


def test_restart_into_1970_counts_nothing_and_harms_nothing(tmp_path, clock):
    with opened(tmp_path, clock=clock) as box:
        fill(box, 1)
        clock.run(1000)
        box.tidy()
    clock.boot()
    clock.wall_s = 3.0
    with opened(tmp_path, clock=clock) as box:
        assert box.stats().oldest_s == 1000.0
        assert [row.age_s for row in box.pending(5, fresh_s=60)] == [None]
        clock.wall_s = 1_700_002_000.0
        clock.run(10)
        assert box.stats().oldest_s == 1010.0


def test_verdicts_are_forgotten_after_the_days_asked_for(box, clock):
    box.fail("a", "blank")
    clock.run(89.9 * DAY_S)
    box.fail("b", "blank")
    box.tidy()
    assert box.intake("a") is not None
    clock.run(0.2 * DAY_S)
    box.tidy()
    assert (box.intake("a"), box.intake("b").status) == (None, "failed")


def test_verdicts_are_bounded_in_number(tmp_path, clock):
    with opened(tmp_path, OutboxConfig(max_mb=1, min_free_mb=0, ballast_mb=0), clock=clock) as box:
        for number in range(530):
            box.fail(str(number), "blank")
        box.tidy()
        assert box.intake("17") is None
        assert box.intake("18") is not None


def test_space_is_given_back_to_the_disk(tmp_path, box):
    fill(box, 400, size=8000)
    box.record(Marks(stored=whole(box.stats().epoch, (1, 399))))
    before = (tmp_path / "outbox.db").stat().st_size
    for _ in range(3):
        box.tidy()
    assert (tmp_path / "outbox.db").stat().st_size < before / 3
    assert look(tmp_path, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize("small", [True, False])
def test_row_that_the_index_forgot_is_found_at_the_latest_when_the_rest_is_sent(tmp_path, box, small, monkeypatch):
    monkeypatch.setattr(retention, "_SMALL_PAGES", 4096 * small)
    fill(box, 3)
    schema_is = "UPDATE sqlite_master SET sql = replace(sql, '{}', '{}') WHERE name = 'outbox_state'"
    change(tmp_path, "PRAGMA writable_schema=1", schema_is.format("(state)", "(state) WHERE seq <> 2"))
    change(tmp_path, "REINDEX outbox_state")
    change(tmp_path, "PRAGMA writable_schema=1", schema_is.format(" WHERE seq <> 2", ""))
    assert [row.seq for row in box.pending(9, fresh_s=60)] == [1, 3]
    box.record(Marks(stored=whole(box.stats().epoch, (1, 1), (3, 3))))
    box.tidy()
    assert [row.seq for row in box.pending(9, fresh_s=60)] == [2]
    assert [event.kind for event in box.events(9)] == ["salvage"]


# -------------------------------------------------------------------------------------------------------- cap and disk

SMALL = OutboxConfig(max_mb=1, min_free_mb=0, ballast_mb=0)


def fill_up(box: Outbox, size: int = 6000) -> int:
    """Accept pages as the worker does until it may not; returns how many."""
    count = 0
    while not box.held():
        fill(box, 1, first=count, size=size)
        count += 1
    return count


def test_full_outbox_takes_no_page_and_says_so(tmp_path, clock):
    with opened(tmp_path, SMALL, clock=clock) as box:
        count = fill_up(box)
        assert 80 < count < 130
        assert box.held() == "full"
        assert "full" in box.stats().alarms
        assert len(keys(box)) == count
        assert (tmp_path / "outbox.db").stat().st_size <= 1 << 20


def test_full_outbox_takes_pages_again_only_when_there_is_some_room(tmp_path, clock):
    with opened(tmp_path, SMALL, clock=clock) as box:
        fill_up(box)
        epoch = box.stats().epoch
        box.record(Marks(stored=whole(epoch, (1, 1))))
        assert box.held() == "full"
        box.record(Marks(stored=whole(epoch, (2, 10))))
        assert box.held() == ""


def test_page_that_finds_no_room_is_not_accepted_and_later_is(tmp_path, clock):
    with opened(tmp_path, SMALL, clock=clock) as box, opened(tmp_path, SMALL, clock=clock, role="uplink") as uplink:
        count = fill_up(box)
        with pytest.raises(OutboxError, match="full"):
            box.accept("large", b"1" * 200_000)
        assert box.intake("large") is None
        assert len(keys(box)) == count
        epoch = box.stats().epoch
        brokered(uplink, *range(1, count + 1))
        uplink.record(Marks(stored=whole(epoch, (1, 20))))
        assert box.held() == "full"  # a result like the one refused would not fit yet
        uplink.record(Marks(stored=whole(epoch, (21, count))))
        assert box.held() == ""
        assert box.accept("large", b"1" * 200_000) == count + 1


def test_marks_are_recorded_although_not_a_page_is_free(tmp_path, clock):
    with opened(tmp_path, SMALL, clock=clock) as box, opened(tmp_path, SMALL, clock=clock, role="uplink") as uplink:
        fill_up(box)
        number = 0
        with pytest.raises(OutboxError):
            while True:
                box.fail(f"verdict {number}", "blank")
                number += 1
        uplink.add_event("alarm", "x" * 8000)
        uplink.record(Marks(refused=tuple((box.stats().epoch, seq, "invalid" * 20) for seq in range(1, 60))))
        assert uplink.stats().dead == 59


def test_oldest_rows_make_room_when_told_to_and_are_reported(tmp_path, clock):
    config = OutboxConfig(max_mb=1, min_free_mb=0, ballast_mb=0, when_full="drop_oldest")
    with opened(tmp_path, config, clock=clock) as box:
        for number in range(300):
            assert box.held() == ""
            fill(box, 1, first=number, size=6000)
        left = [row.seq for row in box.rows()]
        (gap,) = box.events(9)
        assert gap.ranges == ((1, left[0] - 1),)
        assert left == list(range(left[0], 301))
        assert (gap.kind, gap.epoch) == ("gap", box.stats().epoch)
        assert gap.detail.startswith(f"{left[0] - 1} results given up")
        assert "gap" in box.stats().alarms


def test_rows_given_up_while_their_report_is_on_its_way_are_reported_too(tmp_path, clock):
    with opened(tmp_path, clock=clock) as box:
        fill(box, 64)
        drop = lambda: box._db.run(lambda connection: retention.drop_oldest(connection, 7))  # noqa: E731
        drop()
        (first,) = box.events(9)
        drop()
        box.event_sent([first.id])
        (second,) = box.events(9)
        assert (first.ranges, second.ranges) == (((1, 2),), ((1, 4),))


def test_stored_rows_are_given_up_before_any_other_and_without_a_report(tmp_path, clock):
    config = OutboxConfig(min_free_mb=0, ballast_mb=0, keep_stored_days=9)
    with opened(tmp_path, config, clock=clock) as box:
        fill(box, 6)
        box.record(Marks(stored=whole(box.stats().epoch, (3, 4))))
        assert box._db.run(lambda connection: retention.drop_oldest(connection, 7)) == 2
        assert [row.seq for row in box.rows()] == [1, 2, 5, 6]
        assert box.events(9) == []


def test_no_page_is_taken_while_the_disk_is_nearly_full(tmp_path, clock, monkeypatch):
    free_mb = 65
    monkeypatch.setattr(disk, "free_bytes", lambda path: free_mb << 20)
    with opened(tmp_path, OutboxConfig(min_free_mb=64, ballast_mb=0), clock=clock) as box:
        said = [box.held()]
        for free_mb in (63, 70, 79, 80, 65, 64):  # noqa: B007
            said.append(box.held())
        assert said == ["", "disk", "disk", "disk", "", "", ""]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, in memory."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = run(("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path))
    if mounted.status:
        pytest.skip(f"only root can mount a small disk: {mounted.err.strip()}")
    yield path
    assert run(("umount", path)).status == 0, "someone has left a file open"


def occupy(path: Path) -> Path:
    """Take all of a disk."""
    hog = path / "hog"
    with hog.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return hog


@pytest.mark.parametrize("name", ["outbox.probe-{}", "outbox.new"])
def test_link_in_the_place_of_a_probe_or_the_ballast_is_not_followed(tmp_path, name):
    precious, state = tmp_path / "precious", tmp_path / "state"
    precious.write_text("kept")
    state.mkdir()
    (state / name.format(os.getpid())).symlink_to(precious)
    assert disk.trouble(state, state / "outbox.db") == ""
    disk.Ballast(state / "outbox.ballast", 4096, 0).keep()
    assert precious.read_text() == "kept"
    assert os.listdir(state) == ["outbox.ballast"]


def test_full_disk_is_named_and_nothing_accepted_is_lost(small_disk, clock):
    with opened(small_disk, clock=clock) as box:
        accepted = fill(box, 20)
        hog = occupy(small_disk)
        with pytest.raises(OutboxError, match="disk is full"):
            fill(box, 50, first=20)
        accepted = [key for key in accepted + keys(box) if box.intake(key).status == "accepted"]
        assert box.held() == "disk"
        assert "disk" in box.stats().alarms
        hog.unlink()
        clock.run(5)
        assert box.held() == ""
        assert box.accept("after", b"1")
        assert set(accepted) <= set(keys(box))


def test_ballast_lets_marks_be_recorded_on_a_full_disk(small_disk, clock):
    config = OutboxConfig(min_free_mb=0, ballast_mb=1)
    with opened(small_disk, config, clock=clock) as box, opened(small_disk, config, clock=clock, role="uplink") as up:
        fill(box, 100)
        up.tidy()
        assert (small_disk / "outbox.ballast").stat().st_size == 1 << 20
        hog = occupy(small_disk)
        up.record(Marks(stored=whole(box.stats().epoch, (1, 90))))
        assert not (small_disk / "outbox.ballast").exists()
        assert len(keys(box)) == 10
        up.tidy()
        assert not (small_disk / "outbox.ballast").exists()
        hog.unlink()
        up.tidy()
        assert (small_disk / "outbox.ballast").exists()


def test_service_begins_on_a_full_disk_and_works_when_it_is_not_full_any_more(small_disk, clock):
    hog = occupy(small_disk)
    with opened(small_disk, clock=clock) as box:
        assert box.held() == "disk"
        with pytest.raises(OutboxError):
            box.begin("a", "dock", "a.jpg")
        hog.unlink()
        clock.run(5)
        assert box.held() == ""
        assert box.begin("a", "dock", "a.jpg") == 1


def test_read_only_disk_is_named_and_rows_are_still_given(small_disk, clock):
    with opened(small_disk, clock=clock) as box:
        fill(box, 3)
    assert run(("mount", "-o", "remount,ro", small_disk)).status == 0
    for role in ("worker", "uplink"):
        with opened(small_disk, clock=clock, role=role) as box:
            with pytest.raises(OutboxError, match="may not be written"):
                box.accept("a", b"1")
            assert box.held() == "readonly"
            assert len(box.pending(9, fresh_s=60)) == 3
            assert "readonly" in box.stats().alarms
            assert run(("mount", "-o", "remount,rw", small_disk)).status == 0
            clock.run(5)
            assert box.held() == ""
            box.set_paused(False)
        assert run(("mount", "-o", "remount,ro", small_disk)).status == 0


def test_damaged_file_waits_untouched_until_the_disk_has_room_for_the_new_one(small_disk, clock, tmp_path):
    with opened(small_disk, clock=clock) as box:
        fill(box, 100, size=20_000)
    with (small_disk / "outbox.db").open("r+b") as file:
        file.write(b"damage")
    config = OutboxConfig(min_free_mb=0, ballast_mb=1)
    with opened(small_disk, config, clock=clock) as box:
        for _ in range(3):
            assert box.held() == "disk"
            with pytest.raises(OutboxError, match="disk is full"):
                box.stats()
            clock.run(6)
        assert [path.name for path in small_disk.iterdir() if path.suffix != ".db-journal"] == ["outbox.db"]
        assert run(("mount", "-o", "remount,size=9m", small_disk)).status == 0
        assert box.held() == ""
        assert len(keys(box)) == 100
        assert [event.kind for event in box.events(9)] == ["salvage"]


def test_trouble_is_said_once_and_its_end_too(small_disk, clock, caplog):
    with opened(small_disk, clock=clock) as box:
        hog = occupy(small_disk)
        for _ in range(30):
            clock.run(1)
            box.held()
            with pytest.raises(OutboxError):
                fill(box, 30)
        hog.unlink()
        clock.run(6)
        assert box.held() == ""
    assert len(caplog.records) == 2


def test_directory_that_cannot_be_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="state_dir"):
        Outbox(tmp_path / "file", NO_BALLAST)


def test_files_are_for_this_user_alone(tmp_path):
    with opened(tmp_path / "state", OutboxConfig(min_free_mb=0, ballast_mb=1)) as box:
        fill(box, 1)
        box.tidy()
    assert {path.stat().st_mode & 0o077 for path in ((tmp_path / "state"), *(tmp_path / "state").iterdir())} == {0}


# -------------------------------------------------------------------------------------------------- file and versions


def test_connection_is_set_up_as_durability_needs_it(tmp_path, box):
    shown = box._db.run(lambda connection: {name: schema.pragma(connection, name) for name, _, _ in schema._PRAGMAS})
    assert shown["synchronous"] == 2
    assert shown["journal_mode"] == "truncate"
    assert shown["secure_delete"] == 1
    assert shown == {name: value for name, _, value in schema._PRAGMAS}
    assert look(tmp_path, "PRAGMA auto_vacuum") == [(2,)]


def test_setting_that_does_not_take_is_noticed():
    connection = sqlite3.connect(":memory:", isolation_level=None)  # which has no journal on a disk
    with pytest.raises(sqlite3.OperationalError, match="journal_mode"):
        schema.configure(connection, 256)
    connection.close()


def test_work_that_fails_leaves_nothing(box):
    def work(connection):
        connection.execute("DELETE FROM outbox")
        raise RuntimeError

    fill(box, 2)
    with pytest.raises(RuntimeError):
        box._db.run(work)
    assert len(keys(box)) == 2
    fill(box, 1, first=2)


def test_write_outside_of_a_transaction_is_impossible_to_forget(box):
    """Reads and writes alike stand between BEGIN and COMMIT."""
    assert box._db.run(lambda connection: connection.in_transaction)
    assert box._db.run(lambda connection: connection.in_transaction, write=False)


def add_page_count(connection):
    connection.execute("ALTER TABLE outbox ADD COLUMN pages INTEGER NOT NULL DEFAULT 1")
    connection.execute("CREATE TABLE extra(id INTEGER PRIMARY KEY) STRICT")


def test_older_file_is_brought_up_to_date_and_keeps_its_rows(tmp_path, monkeypatch):
    with opened(tmp_path) as box:
        fill(box, 3)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_page_count))
    with opened(tmp_path) as box:
        assert len(box.pending(9, fresh_s=60)) == 3
        fill(box, 1, first=3)
    assert look(tmp_path, "SELECT seq, pages FROM outbox") == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert look(tmp_path, "PRAGMA user_version") == [(2,)]


def test_file_of_the_next_version_is_read_and_written(tmp_path, monkeypatch):
    with monkeypatch.context() as newer:
        newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_page_count))
        with opened(tmp_path) as box:
            fill(box, 2)
    with opened(tmp_path) as box:
        fill(box, 1, first=2)
        assert [row.seq for row in box.pending(9, fresh_s=60)] == [1, 2, 3]
        box.record(Marks(stored=whole(box.stats().epoch, (1, 1))))
    assert look(tmp_path, "SELECT seq, pages FROM outbox") == [(2, 1), (3, 1)]
    assert look(tmp_path, "PRAGMA user_version") == [(2,)]


@pytest.mark.parametrize("role", ["worker", "uplink", "tool"])
def test_file_of_a_much_newer_version_is_refused_and_left_alone(tmp_path, monkeypatch, role):
    with monkeypatch.context() as newer:
        newer.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, add_page_count, lambda connection: None))
        with opened(tmp_path) as box:
            fill(box, 2)
    before = (tmp_path / "outbox.db").read_bytes()
    with pytest.raises(ConfigError, match=r"version 3 .* knows 1: install the newer program"):
        Outbox(tmp_path, NO_BALLAST, role=role)
    assert (tmp_path / "outbox.db").read_bytes() == before


def test_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    with opened(tmp_path) as box:
        fill(box, 1)

    def broken(connection):
        add_page_count(connection)
        raise RuntimeError

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
    with pytest.raises(RuntimeError):
        Outbox(tmp_path, NO_BALLAST, role="worker")
    monkeypatch.undo()
    with opened(tmp_path) as box:
        assert len(keys(box)) == 1


def test_copied_disk_gets_an_epoch_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "machine").write_text("one\n")
    monkeypatch.setattr(life, "MACHINE_ID", tmp_path / "machine")
    with opened(tmp_path) as box:
        fill(box, 1)
        first = box.stats().epoch
    with opened(tmp_path) as box:
        assert box.stats().epoch == first
    (tmp_path / "machine").write_text("two\n")
    with opened(tmp_path) as box:
        fill(box, 1, first=1)
        assert [row.epoch == first for row in box.rows()] == [True, False]
        assert [event.kind for event in box.events(9)] == ["alarm"]
    (tmp_path / "machine").unlink()
    with opened(tmp_path) as box:
        second = box.stats().epoch
        assert [row.epoch for row in box.rows()] == [first, second]


def test_rows_may_be_accepted_while_the_other_process_sends(box, uplink):
    for number in range(30):
        fill(box, 1, first=number)
        (row,) = uplink.pending(1, fresh_s=60)
        uplink.record(Marks(brokered=((row.epoch, row.seq),)))
        fill(box, 1, first=100 + number)
        uplink.record(Marks(stored=whole(row.epoch, (1, row.seq + 1))))
    assert keys(box) == []


def test_waiting_process_stopped_while_it_holds_the_lock_does_not_stop_this_one(tmp_path, box, monkeypatch):
    monkeypatch.setattr(database, "LOCK_S", 0.1)
    holder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(OutboxError):
        box.accept("a", b"1")
    assert box.held() == "failing"
    os.close(holder)


def test_uplink_s_half_imports_no_vision_and_no_network():
    code = "import sys, agent.outbox; print(*sys.modules)"
    loaded = set(run_python(code).out.split())
    assert not {"numpy", "cv2", "paho", "socket", "agent.image", "agent.page"} & loaded


def test_sqlite_too_old_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(ConfigError, match=r"3\.37"):
        Outbox(tmp_path, NO_BALLAST)


def test_ballast_is_optional_and_never_taken_from_what_must_stay_free(tmp_path, monkeypatch):
    ballast = disk.Ballast(tmp_path / "b", 1 << 20, 10 << 20)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 11 << 20)
    ballast.keep()
    assert not (tmp_path / "b").exists()
    monkeypatch.setattr(disk, "free_bytes", lambda path: 13 << 20)
    ballast.keep()
    assert (tmp_path / "b").stat().st_blocks * 512 >= 1 << 20
    disk.Ballast(tmp_path / "b", 0, 0).keep()
    assert not (tmp_path / "b").exists()


def test_database_can_be_closed_twice(tmp_path, clock):
    file = Database(tmp_path, 256, lambda connection: None, ballast=disk.Ballast(tmp_path / "b", 0, 0), clock=clock)
    file.close()
    file.close()


def test_runs_that_touch_become_one():
    assert retention.joined([(5, 6), (1, 2), (3, 4), (9, 9), (6, 7)]) == ((1, 7), (9, 9))


def test_accepted_row_is_in_the_file_before_anything_is_closed(tmp_path, box):
    fill(box, 5)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "outbox.db", tmp_path / "copy")
    with opened(tmp_path / "copy") as later:
        assert [row.result for row in later.rows()] == [result(key) for key in keys(box)]
