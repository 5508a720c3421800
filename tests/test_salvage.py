"""A damaged outbox is replaced, keeps every row that the damage did not touch, and never gives a wrong one."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from agent.clock import Clock
from agent.errors import OutboxError
from agent.outbox import Marks, Outbox, salvage, schema
from agent.outbox.rows import BROKERED, DEAD, PENDING, STORED
from agent.protocol import ranges
from tests.outbox_kit import NO_BALLAST, BentClock, fill, in_memory, keys, opened, result, whole

SEEDS = 500
PAGE = schema.PAGE_BYTES
SIZES = (40, 300, 1500, 3000, 9000)  # with and without pages beyond the leaf
ROWS = 180


def size_of(key: str) -> int:
    """Size of the result of a page in the template."""
    return SIZES[int(key[-5:]) % len(SIZES)]


tmp_path = pytest.fixture(in_memory)
room = pytest.fixture(in_memory, scope="module")


@pytest.fixture(scope="module")
def template(room) -> Path:
    """An outbox with rows in several states, verdicts, an event and a command."""
    path = room / "template"
    with opened(path, clock=BentClock()) as box:
        for number in range(ROWS):
            key = f"page-{number:05}"
            box.begin(key, "dock", f"{key}.jpg")
            box.accept(key, result(key, size_of(key)))
        epoch = box.stats().epoch
        box.record(Marks(stored=whole(epoch, (20, 39)), brokered=tuple((epoch, seq) for seq in range(1, 20))))
        box.begin("crasher", "dock", "crasher.jpg")
        box.fail("blank", "blank")
        box.add_event("alarm", "something")
        box.ask("c1", "status", "")
        box.set_paused(False)
        box.next_session()
    return path / "outbox.db"


def pages_of_rows(path: Path) -> dict[str, set[int]]:
    """Which pages the row of each key lies on."""
    read: list[int] = []
    found: dict[str, set[int]] = {}
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        plain = salvage._page
        patch.setattr(salvage, "_page", lambda descriptor, number: read.append(number) or plain(descriptor, number))
        leaf = 0
        for row in salvage.scan(file.fileno()):
            # The generator reads the next leaf before its first row, and the pages beyond it before each.
            leaf = next((n for n in reversed(read) if plain(file.fileno(), n)[100 * (n == 1)] == 0x0D), leaf)
            if row is not None and row.table is schema.OUTBOX:
                beyond = {n for n in read if plain(file.fileno(), n)[0] != 0x0D and n != 1}
                found[str(row.values[1])] = {leaf, *beyond}
            read[:] = [leaf]
    return found


def test_scan_finds_what_select_finds(template):
    with template.open("rb") as file:
        found = list(salvage.scan(file.fileno()))
    assert None not in found
    connection = schema.connect(template)
    for table in schema.TABLES:
        rows = connection.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}").fetchall()
        assert {(row.number, *row.values) for row in found if row.table is table} == set(rows)
        assert len(rows) > 0
    connection.close()


def test_scan_reads_every_form_of_number_and_length(tmp_path):
    clock = BentClock()
    numbers = [0, 1, 127, 128, 32767, 32768, 8388607, 8388608, 1 << 31, 1 << 47, 1 << 52]
    with opened(tmp_path, clock=clock) as box:
        for number, size in itertools.product(numbers, (0, 57, 58, 3900, 4000, 4061, 4100, 8000, 20_000)):
            clock.wall_s, clock.mono_s = number / 1000, number % 10_000
            key = f"{number}-{size}-\N{SNOWMAN}"
            box.accept(key, b"x" * size)
        shown = {(row.seq, row.key, row.result) for row in box.rows()}
        box.record(Marks(stored=whole(box.stats().epoch, (5, 9))))
    with (tmp_path / "outbox.db").open("rb") as file:
        found = [row for row in salvage.scan(file.fileno()) if row is None or row.table is schema.OUTBOX]
    assert None not in found
    assert {(row.number, row.values[1], row.values[-1]) for row in found} == {
        row for row in shown if not 5 <= row[0] <= 9
    }


def test_deleted_rows_do_not_come_back(tmp_path):
    with opened(tmp_path) as box:
        for number in range(60):
            fill(box, 1, first=number, size=size_of(f"{number:05}"))
        box.record(Marks(stored=whole(box.stats().epoch, (1, 10), (12, 30), (35, 58))))
        left = keys(box)
    with (tmp_path / "outbox.db").open("rb") as file:
        found = [row for row in salvage.scan(file.fileno()) if row is not None and row.table is schema.OUTBOX]
    assert sorted(str(row.values[1]) for row in found) == sorted(left)


# ------------------------------------------------------------------------------------------------------ what is carried


def spoil(path: Path) -> None:
    """Damage the header: nothing can be read, nothing else is touched."""
    with path.open("r+b") as file:
        file.write(b"not a database, ")


def test_everything_is_carried_over_under_its_old_name_and_new_rows_get_a_new_epoch(room, template):
    path = room / "carried"
    path.mkdir()
    shutil.copy(template, path)
    with opened(path, clock=BentClock()) as box:
        before = list(box.rows())
        old = box.stats()
        box.set_level("debug")
    spoil(path / "outbox.db")
    with opened(path, clock=BentClock()) as box:
        now = box.stats()
        assert list(box.rows()) == before
        assert now.epoch != old.epoch
        assert (now.pending, now.brokered, now.level) == (old.pending, old.brokered, "debug")
        assert "salvage" in now.alarms
        assert [event.kind for event in box.events(9)] == ["alarm", "salvage"]
        assert box.events(9)[1].detail.endswith(f"{ROWS - 20} results and {ROWS + 2} verdicts kept, 0 records damaged")
        assert box.intake("crasher").attempts == 1
        assert box.intake("blank").reason == "blank"
        assert box.intake("page-00020").status == "accepted"  # stored and gone, known nevertheless
        assert not box.ask("c1", "status", "")
        assert box.next_session() == 2
        assert box.accept("new", b"1") == ROWS + 1
        assert box.row(ROWS + 1).epoch == now.epoch
        (aside,) = path.glob("outbox.corrupt-*.db")
        assert aside.stat().st_mode & 0o077 == 0
        aside.unlink()
        assert box.stats().alarms == ()


def test_result_whose_verdict_is_lost_is_not_read_again(tmp_path):
    with opened(tmp_path) as box:
        fill(box, 3)
    connection = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    connection.execute("UPDATE intake SET status = 2, reason = 'x'")  # their checksums do not fit any more
    connection.close()
    spoil(tmp_path / "outbox.db")
    with opened(tmp_path) as box:
        assert [box.intake(key).status for key in keys(box)] == ["accepted"] * 3
        assert "3 records damaged" in box.events(1)[0].detail


def test_row_whose_state_is_damaged_is_sent_again(tmp_path):
    with opened(tmp_path) as box:
        fill(box, 3)
    connection = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    connection.execute("UPDATE outbox SET state = 77, attempts = -1")
    connection.close()
    spoil(tmp_path / "outbox.db")
    with opened(tmp_path) as box:
        assert [(row.state, row.attempts) for row in box.rows()] == [(PENDING, 0)] * 3


def test_dead_and_stored_rows_stay_what_they_are(tmp_path):
    config = NO_BALLAST.__class__(min_free_mb=0, ballast_mb=0, keep_stored_days=9)
    with opened(tmp_path, config) as box:
        fill(box, 3)
        epoch = box.stats().epoch
        box.record(Marks(stored=whole(epoch, (1, 1)), refused=((epoch, 2, "conflict"),), brokered=((epoch, 3),)))
    spoil(tmp_path / "outbox.db")
    with opened(tmp_path, config) as box:
        assert [row.state for row in box.rows()] == [STORED, DEAD, BROKERED]
        assert box.row(2).reason == "conflict"


def test_counters_do_not_fall_back_when_they_are_lost(tmp_path):
    clock = BentClock()
    with opened(tmp_path, clock=clock, role="uplink") as box:
        session = [box.next_session() for _ in range(3)][-1]
        box.add_event("alarm", "a")
        (event,) = box.events(1)
        clock.run(1000)
        fill(box, 1)
    connection = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    connection.execute("UPDATE meta SET seal = 0")
    connection.close()
    spoil(tmp_path / "outbox.db")
    with opened(tmp_path, clock=clock, role="uplink") as box:
        assert box.next_session() > session
        assert box.events(2)[1].id > event.id + 100
        clock.run(10)
        assert box.stats().oldest_s == 10.0


def test_only_the_last_three_damaged_files_are_kept(tmp_path):
    for number in range(5):
        with opened(tmp_path) as box:
            fill(box, 1, first=number)
        spoil(tmp_path / "outbox.db")
    with opened(tmp_path) as box:
        assert len(keys(box)) == 5
    kept = list(tmp_path.glob("outbox.corrupt-*"))
    assert len([path for path in kept if path.suffix == ".db"]) == 3
    assert len(kept) <= 6


def test_tool_names_the_damage_and_touches_nothing(tmp_path):
    with opened(tmp_path) as box:
        fill(box, 1)
    spoil(tmp_path / "outbox.db")
    before = (tmp_path / "outbox.db").read_bytes()
    with pytest.raises(OutboxError, match=r"damaged .* the worker or the uplink repairs it"):
        Outbox(tmp_path, NO_BALLAST, role="tool")
    assert (tmp_path / "outbox.db").read_bytes() == before
    assert [path.name for path in tmp_path.glob("outbox.corrupt*")] == []


@pytest.mark.parametrize("first", ["worker", "uplink"])
def test_who_meets_the_damage_repairs_it_and_the_other_goes_on_with_the_new_file(tmp_path, first):
    second = {"worker": "uplink", "uplink": "worker"}[first]
    with opened(tmp_path, role=first) as one, opened(tmp_path, role=second) as two:
        fill(one, 40, size=3000)
        assert len(keys(two)) == 40
        data = bytearray((tmp_path / "outbox.db").read_bytes())
        data[PAGE:] = bytes(len(data) - PAGE)
        (tmp_path / "outbox.db").write_bytes(data)
        one.accept("new", b"1")
        two.accept("newer", b"1")
        one.accept("newest", b"1")
        assert keys(one) == keys(two)
        assert keys(two)[-3:] == ["new", "newer", "newest"]
        assert len(list(tmp_path.glob("outbox.corrupt-*.db"))) == 1
        assert len([event for event in one.events(9) if event.kind == "salvage"]) == 1


def test_file_deleted_while_running_is_made_anew_and_reported(tmp_path):
    with opened(tmp_path) as box:
        fill(box, 2)
        (tmp_path / "outbox.db").unlink()
        assert box.accept("a", b"1") == 1
        assert [event.kind for event in box.events(9)] == ["salvage"]


def test_crash_between_the_steps_of_a_repair_loses_nothing(tmp_path, monkeypatch):
    """At each step the process dies; the next start repairs from the beginning."""
    with opened(tmp_path) as box:
        fill(box, 5)
    spoil(tmp_path / "outbox.db")
    for name in ("link", "fsync", "rename"):
        plain = getattr(os, name)
        for at in itertools.count(1):
            calls = itertools.count(1)

            def die(*given, plain=plain, calls=calls, at=at, **named):
                if next(calls) == at:
                    raise KeyboardInterrupt
                return plain(*given, **named)

            with monkeypatch.context() as patch:
                patch.setattr(os, name, die)
                try:
                    box = Outbox(tmp_path, NO_BALLAST, role="worker")
                except KeyboardInterrupt:
                    continue
                assert len(keys(box)) == 5
                box.close()
                spoil(tmp_path / "outbox.db")
                break
    with opened(tmp_path) as box:
        assert len(keys(box)) == 5


# ------------------------------------------------------------------------------------------------------ seeded damage


def flip(data: bytearray, luck: random.Random, first: int, end: int) -> set[int]:
    """Change up to 64 bytes within a part; returns the pages touched."""
    places = [luck.randrange(first, end) for _ in range(luck.choice((1, 2, 8, 64)))]
    for at in places:
        data[at] ^= luck.randrange(1, 256)
    return {at // PAGE + 1 for at in places}


def page_of_kind(data: bytearray, luck: random.Random, kinds: tuple[int, ...]) -> int:
    """A page, counted from 0, of a kind of b-tree page."""
    return luck.choice([n for n in range(1, len(data) // PAGE) if data[n * PAGE] in kinds])


def damage(data: bytearray, luck: random.Random) -> tuple[str, set[int]]:
    """Damage a file's bytes in some way; returns its name and the pages touched."""
    pages = len(data) // PAGE
    kind = luck.choice(
        ("header", "leaf", "interior", "anywhere", "cut", "zeroed", "noise", "swapped", "empty", "text", "longer")
    )
    if kind == "header":
        return kind, flip(data, luck, 0, 100)
    if kind in ("leaf", "interior"):
        page = page_of_kind(data, luck, (0x0D, 0x0A) if kind == "leaf" else (0x05, 0x02))
        return kind, flip(data, luck, page * PAGE, page * PAGE + luck.choice((12, PAGE)))
    if kind == "anywhere":
        return kind, flip(data, luck, 0, len(data))
    if kind == "cut":
        length = luck.choice((luck.randrange(len(data)), luck.randrange(pages) * PAGE))
        del data[length:]
        return kind, set(range(length // PAGE + 1, pages + 1))
    if kind in ("zeroed", "noise"):
        page = luck.randrange(pages)
        data[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if kind == "zeroed" else luck.randbytes(PAGE)
        return kind, {page + 1}
    if kind == "swapped":
        one, two = (PAGE * luck.randrange(pages) for _ in range(2))
        data[one : one + PAGE], data[two : two + PAGE] = data[two : two + PAGE], data[one : one + PAGE]
        return kind, {one // PAGE + 1, two // PAGE + 1}
    if kind == "longer":
        data += luck.randbytes(luck.randrange(3 * PAGE))
        return kind, set()
    data[:] = b"" if kind == "empty" else b"This is a text.\n" * luck.randrange(1, 5000)
    return kind, set(range(1, pages + 1))


def serve(box: Outbox) -> dict[str, bytes]:
    """Work as worker and uplink do until all is sent; returns what was sent."""
    sent: dict[str, bytes] = {}
    assert box.held() == ""
    box.begin("later", "dock", "later.jpg")
    box.accept("later", result("later"))
    for _ in range(2):
        for epoch, runs in box.waiting(1000).items():
            box.record(Marks(again=tuple((epoch, seq) for run in runs for seq in range(run[0], run[1] + 1))))
        while rows := box.pending(100, fresh_s=60):
            for row in rows:
                assert row.key not in sent or sent[row.key] == row.result
                sent[row.key] = row.result
            by_epoch: dict[str, list[int]] = {}
            for row in rows:
                by_epoch.setdefault(row.epoch, []).append(row.seq)
            box.record(Marks(stored={epoch: ranges(seqs) for epoch, seqs in by_epoch.items()}))
        box.tidy()
    box.events(100)
    assert box.stats().pending == 0
    return sent


def expected(key: str) -> bytes:
    return result(key) if key == "later" else result(key, size_of(key))


def run_seed(seed: int, path: Path, template: Path, places: dict[str, set[int]]) -> tuple[str, int, int, bool]:
    """Damage a copy and serve from it; returns the kind, rows expected, rows missing of those, and whether replaced."""
    luck = random.Random(seed)
    path.mkdir()
    data = bytearray(template.read_bytes())
    kind, touched = damage(data, luck)
    running = luck.random() < 0.3
    if luck.random() < 0.2:
        (path / "outbox.db-journal").write_bytes(luck.randbytes(luck.randrange(5000)))
    (path / "outbox.db").write_bytes(template.read_bytes() if running else data)
    box = Outbox(path, NO_BALLAST, role="worker", clock=Clock())
    try:
        if running:
            box.stats()
            (path / "outbox.db").write_bytes(data)
        sent = serve(box)
    finally:
        box.close()
    with opened(path) as later:  # what was damaged of a file that was open is met at the next start
        assert later.stats().pending == 0
        later.tidy()
    wrong = [key for key, body in sent.items() if body != expected(key)]
    assert not wrong, f"wrong payload for {wrong}"
    assert "later" in sent
    safe = {key for key, pages in places.items() if not pages & touched}
    check = sqlite3.connect(path / "outbox.db")
    assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check.close()
    return kind, len(safe), len(safe - sent.keys()), any(path.glob("outbox.corrupt-*"))


def test_five_hundred_kinds_of_damage(room, template):
    places = pages_of_rows(template)
    assert len(places) == ROWS - 20
    replaced = 0
    for seed in range(SEEDS):
        path = room / f"seed-{seed}"
        try:
            kind, safe, missing, was_replaced = run_seed(seed, path, template, places)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        assert missing <= safe * 0.05, f"seed {seed} ({kind}): {missing} of {safe} rows that were not touched are gone"
        replaced += was_replaced
        shutil.rmtree(path)
    assert replaced > SEEDS / 2


def test_file_of_another_program_is_put_aside(tmp_path):
    connection = sqlite3.connect(tmp_path / "outbox.db")
    connection.execute("CREATE TABLE outbox(seq, sha256, result)")
    connection.executemany("INSERT INTO outbox VALUES (?, ?, ?)", [(n, b"x" * 32, b"y" * 900) for n in range(50)])
    connection.commit()
    connection.close()
    with opened(tmp_path) as box:
        assert keys(box) == []
        assert box.accept("a", b"1") == 1
        assert [event.kind for event in box.events(9)] == ["salvage"]


def test_file_switched_to_a_write_ahead_log_is_switched_back(tmp_path):
    with opened(tmp_path) as box:
        fill(box, 5)
    connection = sqlite3.connect(tmp_path / "outbox.db")
    connection.execute("PRAGMA journal_mode=wal")
    connection.execute("DELETE FROM outbox WHERE seq = 1")
    connection.commit()
    shutil.copy(tmp_path / "outbox.db", tmp_path / "kept.db")
    shutil.copy(tmp_path / "outbox.db-wal", tmp_path / "kept.db-wal")
    connection.close()
    (tmp_path / "kept.db").replace(tmp_path / "outbox.db")
    (tmp_path / "kept.db-wal").replace(tmp_path / "outbox.db-wal")
    with opened(tmp_path) as box:
        assert [row.seq for row in box.rows()] == [2, 3, 4, 5]
        assert box.stats().alarms == ()
    assert not (tmp_path / "outbox.db-wal").exists()


def test_damage_to_what_is_read_later_is_found_then(tmp_path):
    with opened(tmp_path) as box:
        for number in range(400):
            box.accept(f"page-{number:05}", result(f"page-{number:05}", 1500))
    data = bytearray((tmp_path / "outbox.db").read_bytes())
    kinds = [data[at] for at in range(0, len(data), PAGE)]
    data[kinds.index(0x05, 1) * PAGE + 3] ^= 0x40
    (tmp_path / "outbox.db").write_bytes(data)
    with opened(tmp_path) as box:
        sent = []
        while rows := box.pending(50, fresh_s=60):
            sent += [row.key for row in rows]
            box.record(Marks(stored={rows[0].epoch: ranges(row.seq for row in rows)}))
        assert sorted(set(sent)) == [f"page-{number:05}" for number in range(400)]
