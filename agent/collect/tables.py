"""The tables that a collector fills, the same in SQLite and PostgreSQL, and what is done with them in both.

`results` is for other programs to read. `result` is the text exactly as the device sent it, so that its sha256 holds.
A reader that follows the table asks by `received_ms`, with an overlap of some seconds, and knows rows again by their
key (device, epoch, seq): rows become visible in the order of commits, which is not the order of any column.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, Union

import msgspec

from agent.errors import AgentError, ConfigError, ExitCode
from agent.protocol import Range, ranges

KEPT_REJECTS = 10_000
ASKED_ROWS = 50_000
"""A resync is answered for so many rows at most; what is left is asked again."""
WINDOW_GAP = 1000
"""Ranges that lie no further apart are looked for together."""

SCHEMA = 1
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE results ("
        " device TEXT NOT NULL, epoch TEXT NOT NULL, seq BIGINT NOT NULL, sha256 TEXT NOT NULL,"
        " historical {bool} NOT NULL, created_ms BIGINT NOT NULL, received_ms BIGINT NOT NULL,"
        " collector TEXT NOT NULL, source TEXT NOT NULL, page TEXT NOT NULL, lines INTEGER NOT NULL,"
        " result {json} NOT NULL, PRIMARY KEY (device, epoch, seq))",
        "CREATE INDEX results_by_received ON results (received_ms)",
        "CREATE TABLE conflicts ("
        " device TEXT NOT NULL, epoch TEXT NOT NULL, seq BIGINT NOT NULL, sha256 TEXT NOT NULL,"
        " created_ms BIGINT NOT NULL, received_ms BIGINT NOT NULL, collector TEXT NOT NULL,"
        " result {json} NOT NULL, PRIMARY KEY (device, epoch, seq, sha256))",
        "CREATE TABLE rejects ("
        " id {identity} PRIMARY KEY, topic TEXT NOT NULL, reason TEXT NOT NULL, size_bytes BIGINT NOT NULL,"
        " body {bytes} NOT NULL, received_ms BIGINT NOT NULL, collector TEXT NOT NULL)",
        "CREATE TABLE events ("
        " device TEXT NOT NULL, at_ms BIGINT NOT NULL, sha256 TEXT NOT NULL, kind TEXT NOT NULL,"
        " detail TEXT NOT NULL, epoch TEXT, rows {json} NOT NULL, received_ms BIGINT NOT NULL,"
        " collector TEXT NOT NULL, PRIMARY KEY (device, at_ms, sha256))",
        "CREATE TABLE devices ("
        " device TEXT NOT NULL PRIMARY KEY, online {bool} NOT NULL, session BIGINT NOT NULL,"
        " at_ms BIGINT NOT NULL, seen_ms BIGINT, status {json} NOT NULL)",
    ),
)
"""What each version adds. Only additions: a collector one version older goes on working beside a newer one."""

_SEEN = (
    "INSERT INTO devices (device, online, session, at_ms, seen_ms, status) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (device) DO UPDATE SET online = excluded.online, session = excluded.session,"
    " at_ms = excluded.at_ms, seen_ms = COALESCE(excluded.seen_ms, devices.seen_ms), status = excluded.status"
    " WHERE excluded.online OR excluded.session >= devices.session"  # a will may come after the next birth
)

# Ranges as a join, or numbers as an array: PostgreSQL reads all rows of the device for each of them as long as it has
# no statistics of a table that has just grown.
_IN_WINDOW = "SELECT seq FROM {} WHERE device = ? AND epoch = ? AND seq BETWEEN ? AND ?"

Key = tuple[str, str, int]
"""Device, epoch, sequence number."""
Verdict = Literal["new", "known", "conflict", "unfit"]
"""What became of a row: stored now; stored before; another one has its key; the database cannot hold its text."""


class StoreError(AgentError):
    """The database takes nothing for now. Nothing is lost: unconfirmed rows stay at the devices."""

    code = ExitCode.TEMPORARY


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `results`, field by column.

    Attributes:
        device: who read the page.
        epoch: one life of the device's database.
        seq: number within it.
        sha256: of `result` in UTF-8.
        historical: it waited at the device for a while.
        created_ms: when the device accepted it, by the device's clock.
        received_ms: when the collector took it, by the collector's.
        collector: which one did.
        source: the device's name of where the page came from.
        page: stable identity of the page.
        lines: how many were read.
        result: JSON, as it came.
    """

    device: str
    epoch: str
    seq: int
    sha256: str
    historical: bool
    created_ms: int
    received_ms: int
    collector: str
    source: str
    page: str
    lines: int
    result: str

    @property
    def key(self) -> Key:
        """What names the row."""
        return self.device, self.epoch, self.seq


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """A row that came under a key that another one has: two machines go by one name, or a backup was restored."""

    device: str
    epoch: str
    seq: int
    sha256: str
    created_ms: int
    received_ms: int
    collector: str
    result: str


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is not one of the protocol; `body` is its beginning."""

    topic: str
    reason: str
    size_bytes: int
    body: bytes
    received_ms: int
    collector: str


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """A device's event; `sha256` is of the message, so that a second delivery is known."""

    device: str
    at_ms: int
    sha256: str
    kind: str
    detail: str
    epoch: str | None
    rows: str
    received_ms: int
    collector: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A device's last status; `seen_ms` is None when the broker had kept the message for an unknown time."""

    device: str
    online: bool
    session: int
    at_ms: int
    seen_ms: int | None
    status: str


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What is committed together."""

    rows: tuple[Row, ...] = ()
    rejects: tuple[Reject, ...] = ()
    happenings: tuple[Happening, ...] = ()
    seen: tuple[Seen, ...] = ()


class Held(msgspec.Struct, frozen=True):
    """Which of the rows asked for are stored, and which of them came with another content too."""

    stored: tuple[Range, ...]
    conflicts: tuple[int, ...]


Record = Union[Row, Conflict, Reject, Happening]  # noqa: UP007  evaluated at run time on Python 3.10


class Tables(Protocol):
    """What both databases do alike; parameters are written as `?`."""

    def exists(self, table: str) -> bool:
        """Return whether there is such a table."""

    def execute(self, sql: str, *parameters: object) -> None:
        """Run a statement that returns nothing."""

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query."""

    def insert(self, table: str, records: Sequence[Record]) -> None:
        """Insert records whose keys are not there yet."""

    def transaction(self) -> AbstractContextManager[object]:
        """Return what makes the statements inside it one commit, or none when an error leaves it."""


def put_batch(tables: Tables, batch: Batch) -> tuple[Verdict, ...]:
    """Commit a batch; see `Store.put`."""
    firsts = {row.key: row for row in reversed(batch.rows)}
    before = _hashes(tables, firsts)
    fresh = sorted(firsts.keys() - before.keys())  # one order for all collectors: no deadlocks
    with tables.transaction():
        tables.insert("results", [firsts[key] for key in fresh])
        # Another collector may have been faster: only what stands there now tells whose row it is.
        held = before | _hashes(tables, fresh)
        verdicts = tuple(_verdict(row, firsts, before, held) for row in batch.rows)
        pairs = zip(batch.rows, verdicts, strict=True)
        tables.insert("conflicts", [_conflict(row) for row, verdict in pairs if verdict == "conflict"])
        _put_others(tables, batch)
    return verdicts


def _put_others(tables: Tables, batch: Batch) -> None:
    if batch.rejects:
        tables.insert("rejects", batch.rejects)
        tables.execute("DELETE FROM rejects WHERE id <= (SELECT MAX(id) FROM rejects) - ?", KEPT_REJECTS)
    tables.insert("events", batch.happenings)
    for seen in sorted(batch.seen, key=lambda seen: seen.device):
        tables.execute(_SEEN, *msgspec.structs.astuple(seen))


def _hashes(tables: Tables, keys: Iterable[Key]) -> dict[Key, str]:
    asked = tuple(part for key in keys for part in key)
    if not asked:
        return {}
    values = ", ".join(["(CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT))"] * (len(asked) // 3))
    # CROSS JOIN makes SQLite look up each of the asked; with IN it reads the whole index.
    sql = (
        f"WITH asked AS (VALUES {values}) SELECT device, epoch, seq, sha256 FROM asked CROSS JOIN results"
        " WHERE device = column1 AND epoch = column2 AND seq = column3"
    )
    return {(device, epoch, seq): sha256 for device, epoch, seq, sha256 in tables.query(sql, asked)}


def _verdict(row: Row, firsts: dict[Key, Row], before: dict[Key, str], held: dict[Key, str]) -> Verdict:
    if row.key not in held:
        raise StoreError("a row that was inserted is not in the table: does a trigger or a rule take it away?")
    if held[row.key] != row.sha256:
        return "conflict"
    return "known" if row.key in before or row is not firsts[row.key] else "new"


def _conflict(row: Row) -> Conflict:
    return Conflict(**{name: getattr(row, name) for name in Conflict.__struct_fields__})


def held_rows(tables: Tables, device: str, epoch: str, asked: Sequence[Range]) -> Held:
    """Return which rows are stored; see `Store.held`."""
    stored: set[int] = set()
    conflicts: set[int] = set()
    for window in _windows(_bounded(asked)):
        seqs = {seq for first, last in window for seq in range(first, last + 1)}
        where = (device, epoch, window[0][0], window[-1][1])
        conflicts |= seqs & {seq for (seq,) in tables.query(_IN_WINDOW.format("conflicts"), where)}
        stored |= seqs & {seq for (seq,) in tables.query(_IN_WINDOW.format("results"), where)}
    return Held(ranges(stored - conflicts), tuple(sorted(conflicts)))


def _bounded(asked: Sequence[Range]) -> list[Range]:
    """Return runs in order that do not overlap, of no more than ASKED_ROWS rows together."""
    runs: list[Range] = []
    left = ASKED_ROWS
    for first, last in sorted(asked):
        start = max(first, runs[-1][1] + 1) if runs else first
        end = min(last, start + left - 1)
        if start <= end:
            runs.append((start, end))
            left -= end - start + 1
    return runs


def _windows(runs: Sequence[Range]) -> list[list[Range]]:
    """Return runs that lie close together as one window each."""
    windows: list[list[Range]] = []
    for run in runs:
        if windows and run[0] - windows[-1][-1][1] <= WINDOW_GAP:
            windows[-1].append(run)
        else:
            windows.append([run])
    return windows


def migrate(tables: Tables, types: dict[str, str]) -> None:
    """Make or extend the tables, inside a transaction that no other collector has at the same time."""
    tables.execute("CREATE TABLE IF NOT EXISTS edge_ocr_schema (version INTEGER PRIMARY KEY, applied_ms BIGINT)")
    for version in range(version_of(tables) + 1, SCHEMA + 1):
        for statement in MIGRATIONS[version - 1]:
            tables.execute(statement.format(**types))
        tables.execute("INSERT INTO edge_ocr_schema VALUES (?, ?)", version, time.time_ns() // 1_000_000)


def version_of(tables: Tables) -> int:
    """Return the version of the tables.

    Raises:
        ConfigError: newer than this collector can write.
    """
    found = tables.query("SELECT MAX(version) FROM edge_ocr_schema") if tables.exists("edge_ocr_schema") else []
    version = int(found[0][0] or 0) if found else 0
    if version > SCHEMA + 1:
        raise ConfigError(f"store: its tables have version {version}, this collector knows {SCHEMA}: update edge-ocr")
    return version
