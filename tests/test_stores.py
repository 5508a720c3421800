"""One contract for both stores, then what each of them has for itself."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.collect import tables
from agent.collect.stores import PostgresStore, SqliteStore, open_store
from agent.collect.tables import Batch, Happening, Reject, Row, Seen, StoreError
from agent.errors import ConfigError, EngineError, InputError
from agent.protocol import ranges, sha256
from tests import postgres
from tests.command import run_python

EPOCH = "e" * 32


def row(seq: int, text: str = "", *, device: str = "box-1", epoch: str = EPOCH) -> Row:
    result = f'{{"lines": [], "text": "{text}"}}'
    return Row(
        device=device,
        epoch=epoch,
        seq=seq,
        sha256=sha256(result.encode()),
        historical=False,
        created_ms=1,
        received_ms=2,
        collector="centre",
        source="inbox",
        page="page",
        lines=0,
        result=result,
    )


def rows(*seqs: int, text: str = "") -> Batch:
    return Batch(rows=tuple(row(seq, text) for seq in seqs))


def reject(reason: str = "not a ResultMessage") -> Reject:
    return Reject(topic="t", reason=reason, size_bytes=2, body=b"\0\xff", received_ms=1, collector="centre")


def happening(text: str = "a") -> Happening:
    digest = sha256(text.encode())
    return Happening(
        device="box-1",
        at_ms=5,
        sha256=digest,
        kind="gap",
        detail=text,
        epoch=EPOCH,
        rows="[[1,2]]",
        received_ms=6,
        collector="centre",
    )


def seen(session: int, *, online: bool = True, seen_ms: int | None = 7) -> Seen:
    status = f'{{"session":{session}}}'
    return Seen(device="box-1", online=online, session=session, at_ms=5, seen_ms=seen_ms, status=status)


class SqlitePlace:
    """A file for one test, and a look at it from outside."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "centre.db"
        self.url = f"sqlite:{self.path}"

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            return connection.execute(statement).fetchall()

    def refuse(self, table: str) -> None:
        """Make a table refuse all that is inserted."""
        self.sql(f"CREATE TRIGGER no BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END")

    def allow(self, table: str) -> None:
        self.sql("DROP TRIGGER no")


class PostgresPlace:
    """A database for one test, and a look at it from outside."""

    def __init__(self) -> None:
        self.url = postgres.shared().fresh()

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        return postgres.shared().execute(statement, self.url)

    def refuse(self, table: str, condition: str = "TRUE", code: str = "P0001") -> None:
        """Make a table refuse what is inserted, with an error code."""
        self.sql(
            f"CREATE FUNCTION no() RETURNS trigger AS $$ BEGIN IF {condition} THEN RAISE EXCEPTION 'no secret'"
            f" USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$ LANGUAGE plpgsql"
        )
        self.sql(f"CREATE TRIGGER no BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION no()")

    def allow(self, table: str) -> None:
        self.sql(f"DROP TRIGGER no ON {table}")


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    return SqlitePlace(tmp_path) if request.param == "sqlite" else PostgresPlace()


@pytest.fixture
def store(place):
    with contextlib.closing(open_store(place.url)) as opened:
        opened.ready()
        yield opened


@pytest.fixture
def postgres_place():
    return PostgresPlace()


# ---------------------------------------------------------------------------------------------- the contract


def test_each_row_is_stored_once(store, place):
    assert store.put(rows(1, 2, 3)) == ("new", "new", "new")
    assert store.put(rows(3, 4, 4, 2)) == ("known", "new", "known", "known")
    assert place.sql("SELECT seq FROM results ORDER BY seq") == [(1,), (2,), (3,), (4,)]


def test_rows_of_other_devices_and_epochs_are_other_rows(store, place):
    others = (row(1), row(1, device="box-2"), row(1, epoch="f" * 32))
    assert store.put(Batch(rows=others)) == ("new", "new", "new")
    assert place.sql("SELECT COUNT(*) FROM results") == [(3,)]


def test_another_content_under_a_taken_key_is_a_conflict_and_both_are_kept(store, place):
    store.put(rows(1, text="first"))
    assert store.put(rows(1, text="second")) == ("conflict",)
    assert store.put(rows(1, text="second")) == ("conflict",)
    assert store.put(rows(1, text="first")) == ("known",)
    assert place.sql("SELECT sha256 FROM results") == [(row(1, "first").sha256,)]
    assert place.sql("SELECT seq, sha256, device FROM conflicts") == [(1, row(1, "second").sha256, "box-1")]


def test_a_conflict_inside_one_batch_is_found(store):
    batch = Batch(rows=(row(1, "first"), row(1, "second"), row(1, "first")))
    assert store.put(batch) == ("new", "conflict", "known")


def test_a_result_is_kept_as_it_came(store, place):
    text = '{ "b" : 1,"a":  2.50, "a": 1e400, "text": "\\u0000 \\ud83d\\ude00 中文 \\/" }'
    odd = Row(**{**{name: getattr(row(1), name) for name in Row.__struct_fields__}, "result": text})
    assert store.put(Batch(rows=(odd,))) == ("new",)
    cast = "result" if isinstance(place, SqlitePlace) else "result::text"
    assert place.sql(f"SELECT {cast} FROM results") == [(text,)]


def test_a_batch_is_stored_whole_or_not_at_all(store, place):
    place.refuse("events")
    batch = Batch(rows=(row(1),), rejects=(reject(),), happenings=(happening(),), seen=(seen(1),))
    with pytest.raises(StoreError):
        store.put(batch)
    for table in ("results", "rejects", "devices"):
        assert place.sql(f"SELECT COUNT(*) FROM {table}") == [(0,)]
    place.allow("events")
    assert store.put(batch) == ("new",)
    for table in ("results", "rejects", "devices", "events"):
        assert place.sql(f"SELECT COUNT(*) FROM {table}") == [(1,)]


def test_an_empty_batch_is_nothing(store):
    assert store.put(Batch()) == ()


def test_a_large_batch_fits(store):
    assert set(store.put(rows(*range(1, 5001)))) == {"new"}
    assert set(store.put(rows(*range(1, 5001)))) == {"known"}


def test_held_tells_which_of_the_asked_rows_are_stored(store):
    store.put(rows(1, 2, 3, 7, 9, 5000))
    assert store.held("box-1", EPOCH, [(2, 8), (4000, 6000)]).stored == ((2, 3), (7, 7), (5000, 5000))
    assert store.held("box-1", "f" * 32, [(1, 10)]).stored == ()
    assert store.held("box-2", EPOCH, [(1, 10)]).stored == ()
    assert store.held("box-1", EPOCH, []).stored == ()


def test_held_does_not_vouch_for_a_row_in_conflict(store):
    store.put(rows(1, 2, 3))
    store.put(rows(2, text="other"))
    held = store.held("box-1", EPOCH, [(1, 3)])
    assert (held.stored, held.conflicts) == (((1, 1), (3, 3)), (2,))


def test_held_answers_wide_questions_in_part(store, monkeypatch):
    monkeypatch.setattr(tables, "ASKED_ROWS", 10)
    store.put(rows(*range(1, 31)))
    assert store.held("box-1", EPOCH, [(5, 1 << 52), (1, 3)]).stored == ((1, 3), (5, 11))


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 80))), st.integers(1, 200))
def test_windows_hold_the_first_of_the_asked_rows(asked, most):
    runs = [(first, first + more) for first, more in asked]
    every = sorted({seq for first, last in runs for seq in range(first, last + 1)})[:most]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "ASKED_ROWS", most)
        patch.setattr(tables, "WINDOW_GAP", 20)
        bounded = tables._bounded(runs)
    assert ranges(seq for first, last in bounded for seq in range(first, last + 1)) == ranges(every)
    assert [run for window in tables._windows(bounded) for run in window] == bounded


def test_rejects_are_kept_up_to_a_number(store, place, monkeypatch):
    monkeypatch.setattr(tables, "KEPT_REJECTS", 5)
    for number in range(9):
        store.put(Batch(rejects=(reject(str(number)),)))
    assert place.sql("SELECT reason FROM rejects ORDER BY id") == [(str(number),) for number in range(4, 9)]
    assert place.sql("SELECT body FROM rejects LIMIT 1")[0][0] == b"\0\xff"


def test_an_event_is_stored_once(store, place):
    store.put(Batch(happenings=(happening("a"), happening("a"))))
    store.put(Batch(happenings=(happening("a"), happening("b"))))
    assert place.sql("SELECT detail FROM events ORDER BY detail") == [("a",), ("b",)]


def test_a_late_will_does_not_take_a_device_offline(store, place):
    store.put(Batch(seen=(seen(4), seen(3, online=False))))
    assert place.sql("SELECT session FROM devices WHERE online") == [(4,)]
    store.put(Batch(seen=(seen(4, online=False),)))
    assert place.sql("SELECT session FROM devices WHERE NOT online") == [(4,)]
    store.put(Batch(seen=(seen(1),)))  # a new disk: it counts from the beginning
    assert place.sql("SELECT session FROM devices WHERE online") == [(1,)]


def test_a_kept_message_does_not_say_when_a_device_was_seen(store, place):
    store.put(Batch(seen=(seen(1, seen_ms=None),)))
    assert place.sql("SELECT seen_ms FROM devices") == [(None,)]
    store.put(Batch(seen=(seen(1, seen_ms=70),)))
    store.put(Batch(seen=(seen(2, seen_ms=None),)))
    assert place.sql("SELECT seen_ms, session FROM devices") == [(70, 2)]


def test_tables_are_made_once(store, place):
    store.put(rows(1))
    store.close()
    with contextlib.closing(open_store(place.url)) as again:
        again.ready()
        assert again.put(rows(1)) == ("known",)
    assert place.sql("SELECT version FROM edge_ocr_schema") == [(tables.SCHEMA,)]


def test_tables_one_version_newer_are_written_and_two_are_refused(store, place):
    store.close()
    for newer in (1, 2):
        place.sql(f"INSERT INTO edge_ocr_schema VALUES ({tables.SCHEMA + newer}, 0)")
        with contextlib.closing(open_store(place.url)) as again:
            if newer == 1:
                assert again.put(rows(1)) == ("new",)
            else:
                with pytest.raises(ConfigError, match="update edge-ocr"):
                    again.ready()


def test_an_older_version_is_extended(place, monkeypatch):
    with contextlib.closing(open_store(place.url)) as first:
        first.put(rows(1))
    monkeypatch.setattr(tables, "MIGRATIONS", (*tables.MIGRATIONS, ("ALTER TABLE results ADD COLUMN more {json}",)))
    monkeypatch.setattr(tables, "SCHEMA", tables.SCHEMA + 1)
    monkeypatch.setattr("agent.collect.stores.SCHEMA", tables.SCHEMA)
    with contextlib.closing(open_store(place.url)) as second:
        assert second.put(rows(1, 2)) == ("known", "new")
    assert place.sql("SELECT seq, more FROM results ORDER BY seq") == [(1, None), (2, None)]


@settings(max_examples=25)
@given(batches=st.lists(st.lists(st.tuples(st.integers(1, 6), st.sampled_from("ab")), max_size=8), max_size=5))
def test_stores_agree_with_a_dictionary(model_stores, batches):
    for device, one in model_stores():
        held: dict[int, str] = {}
        for batch in batches:
            expected = []
            for seq, text in batch:
                taken = held.setdefault(seq, text) != text
                expected.append("conflict" if taken else "fine")
            got = one.put(Batch(rows=tuple(row(seq, text, device=device) for seq, text in batch)))
            assert ["conflict" if verdict == "conflict" else "fine" for verdict in got] == expected
        stored = one.held(device, EPOCH, [(1, 100)])
        every = {*stored.conflicts, *(seq for first, last in stored.stored for seq in range(first, last + 1))}
        assert every == held.keys()


@pytest.fixture(scope="module")
def model_stores(tmp_path_factory):
    opened = [SqliteStore(tmp_path_factory.mktemp("model") / "c.db"), PostgresStore(postgres.shared().fresh())]
    counter = iter(range(1 << 30))
    yield lambda: [(f"box-{next(counter)}", one) for one in opened]
    for one in opened:
        one.close()


# --------------------------------------------------------------------------------------------------- SQLite


def test_sqlite_waits_for_the_disk(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "c.db")) as store:
        store.ready()
        connection = store._db.conn
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_sqlite_goes_on_when_a_lock_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.collect.stores.WAIT_S", 0.05)
    with contextlib.closing(SqliteStore(tmp_path / "c.db")) as store:
        store.ready()
        with contextlib.closing(sqlite3.connect(tmp_path / "c.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for attempt in (store.ready, lambda: store.put(rows(1))):
                with pytest.raises(StoreError, match="locked"):
                    attempt()
            assert store.held("box-1", EPOCH, [(1, 9)]).stored == ()
            other.execute("ROLLBACK")
        assert store.put(rows(1)) == ("new",)


def test_sqlite_goes_on_when_there_is_space_again(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "c.db")) as store:
        store.put(rows(1))
        (pages,) = store._db.conn.execute("PRAGMA page_count").fetchone()
        store._db.conn.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StoreError, match="full"):
            store.put(rows(*range(1, 500), text="x" * 100))
        store._db.conn.execute("PRAGMA max_page_count = 100000")
        assert set(store.put(rows(*range(2, 500), text="x" * 100))) == {"new"}


def test_sqlite_does_not_write_into_a_file_that_was_moved_away(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "c.db")) as store:
        store.put(rows(1))
        for name in ("c.db", "c.db-wal", "c.db-shm"):
            shutil.move(tmp_path / name, tmp_path / f"old-{name}")
        assert store.put(rows(1, 2)) == ("new", "new")
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as look:
        assert look.execute("SELECT COUNT(*) FROM results").fetchone() == (2,)


def test_a_file_that_is_no_database_is_not_touched(tmp_path):
    (tmp_path / "c.db").write_bytes(b"something else, and long enough to be seen " * 100)
    with contextlib.closing(SqliteStore(tmp_path / "c.db")) as store, pytest.raises(StoreError, match="not a database"):
        store.ready()
    assert (tmp_path / "c.db").read_bytes().startswith(b"something else")


def test_two_collectors_cannot_have_one_file(tmp_path):
    with (
        contextlib.closing(SqliteStore(tmp_path / "c.db")),
        pytest.raises(ConfigError, match="several need PostgreSQL"),
    ):
        SqliteStore(tmp_path / "c.db")
    SqliteStore(tmp_path / "c.db").close()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="No such file or directory: its folder"):
        open_store(f"sqlite:{tmp_path}/none/c.db")


# ----------------------------------------------------------------------------------------------- PostgreSQL


def test_postgres_goes_on_after_a_restart_and_a_crash(postgres_place):
    server = postgres.shared()
    with contextlib.closing(PostgresStore(postgres_place.url)) as store:
        store.put(rows(1))
        for end in (server.stop, server.crash):
            end()
            try:
                for attempt in (
                    store.ready,
                    lambda: store.put(rows(1, 2)),
                    lambda: store.held("box-1", EPOCH, [(1, 9)]),
                ):
                    with pytest.raises(StoreError):
                        attempt()
            finally:
                server.start()
            assert store.put(rows(1, 2)) in (("known", "new"), ("known", "known"))
    assert postgres_place.sql("SELECT COUNT(*) FROM results") == [(2,)]


def test_postgres_is_used_as_the_collector_needs_it(postgres_place):
    postgres_place.sql("ALTER ROLE postgres SET synchronous_commit = off")
    postgres_place.sql("ALTER ROLE postgres SET default_transaction_isolation = 'serializable'")
    try:
        with contextlib.closing(PostgresStore(postgres_place.url)) as store:
            store.ready()
            shown = {
                name: store._connection.execute(f"SHOW {name}".encode()).fetchone()
                for name in ("synchronous_commit", "default_transaction_isolation", "statement_timeout")
            }
    finally:
        postgres_place.sql("ALTER ROLE postgres RESET ALL")
    assert shown == {
        "synchronous_commit": ("on",),
        "default_transaction_isolation": ("read committed",),
        "statement_timeout": ("10s",),
    }


def test_postgres_keeps_the_text_of_a_result(postgres_place):
    with contextlib.closing(PostgresStore(postgres_place.url)) as store:
        store.put(rows(1, text="12"))
    assert postgres_place.sql("SELECT result->>'text', pg_typeof(result)::text FROM results") == [("12", "json")]


def test_many_collectors_may_start_at_once(postgres_place):
    failures: list[BaseException] = []

    def start() -> None:
        try:
            with contextlib.closing(PostgresStore(postgres_place.url)) as store:
                store.ready()
        except BaseException as error:
            failures.append(error)

    in_threads([start] * 6)
    assert not failures
    assert postgres_place.sql("SELECT version FROM edge_ocr_schema") == [(tables.SCHEMA,)]


def test_collectors_that_store_the_same_rows_at_once_agree(postgres_place):
    stores = [PostgresStore(postgres_place.url) for _ in range(3)]
    told: list[tuple[int, tuple[str, ...]]] = []
    start = threading.Barrier(len(stores), timeout=20)

    def fill(number: int) -> None:
        for round_ in range(15):
            seqs = list(range(round_ * 40 + 1, round_ * 40 + 41))
            batch = Batch(rows=tuple(row(seq, "x" if seq % 4 else str(number)) for seq in seqs[:: (-1) ** number]))
            start.wait()
            told.extend((seq.seq, verdict) for seq, verdict in zip(batch.rows, stores[number].put(batch), strict=True))

    in_threads([lambda number=number: fill(number) for number in range(len(stores))])
    for one in stores:
        one.close()
    assert postgres_place.sql("SELECT COUNT(*) FROM results") == [(600,)]
    assert len(told) == 1800
    assert sum(verdict == "conflict" for seq, verdict in told) == 2 * 150  # the slower two of each fourth row
    assert all(verdict != "conflict" for seq, verdict in told if seq % 4)


def test_a_row_that_the_database_cannot_hold_does_not_stop_the_others(postgres_place):
    with contextlib.closing(PostgresStore(postgres_place.url)) as store:
        store.ready()
        postgres_place.refuse("results", "NEW.seq = 2", "22P05")  # untranslatable character
        assert store.put(rows(1, 2, 3)) == ("new", "unfit", "new")
        assert store.put(rows(2, 3)) == ("unfit", "known")
    assert postgres_place.sql("SELECT seq FROM results ORDER BY seq") == [(1,), (3,)]
    assert postgres_place.sql("SELECT body FROM rejects LIMIT 1") == [(row(2).result.encode(),)]


def test_a_row_that_vanishes_is_not_taken_for_stored(postgres_place):
    with contextlib.closing(PostgresStore(postgres_place.url)) as store:
        store.ready()
        postgres_place.sql("CREATE RULE away AS ON INSERT TO results DO INSTEAD NOTHING")
        with pytest.raises(StoreError, match="trigger or a rule"):
            store.put(rows(1))


def test_what_postgres_says_about_a_row_is_not_told(postgres_place):
    with contextlib.closing(PostgresStore(postgres_place.url)) as store:
        store.ready()
        postgres_place.sql("ALTER TABLE results ADD CHECK (seq <> 2)")
        with pytest.raises(StoreError, match="violates check constraint") as caught:
            store.put(rows(2, text="private"))
    assert "private" not in str(caught.value)


def test_the_password_comes_from_its_setting(postgres_place):
    server = postgres.shared()
    with contextlib.suppress(Exception):
        server.execute(f"CREATE ROLE {postgres.GUARDED} LOGIN SUPERUSER PASSWORD 'right'")
    url = postgres_place.url.replace("postgres@", f"{postgres.GUARDED}@")
    with contextlib.closing(PostgresStore(url, "right")) as store:
        store.ready()
    with contextlib.closing(PostgresStore(url, "wrong-one")) as store, pytest.raises(StoreError) as caught:
        store.ready()
    assert "password authentication failed" in str(caught.value)
    assert "wrong-one" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://ocr:secret@db/ocr", "holds a password"),
        ("postgresql://db/ocr?password=secret", "holds a password"),
        ("postgresql://db/ocr?unknown=1", "not an address"),
        ("postgresql://ocr:sec ret@db/ocr", "not an address"),
    ],
)
def test_an_address_that_cannot_work_is_refused(url, said):
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(url)
    assert "sec" not in str(caught.value)


def test_a_database_that_cannot_hold_all_text_is_refused():
    url = postgres.shared().fresh("ENCODING LATIN1 TEMPLATE template0")
    with contextlib.closing(PostgresStore(url)) as store, pytest.raises(ConfigError, match="encoding is LATIN1"):
        store.ready()


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(EngineError, match=r"pip install 'edge-ocr-agent\[postgres\]'"):
        open_store("postgresql://db/ocr")


def test_no_database_package_is_loaded_before_its_store():
    ran = run_python("import agent.collect.stores, sys; print({'psycopg', 'sqlite_utils', 'numpy'} & set(sys.modules))")
    assert ran.out.strip() == "set()", ran.err


def in_threads(works: list[Any]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
