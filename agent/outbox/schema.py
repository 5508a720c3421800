"""The outbox's tables and their versions, and what is asserted of every connection to them."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import ConfigError

PAGE_BYTES = 4096
APPLICATION_ID = 0x454F4352  # "EOCR"
OLDEST_SQLITE = (3, 37, 0)  # STRICT tables
BUSY_MS = 5000

Value = int | float | str | bytes | None


class Damaged(Exception):
    """The file is not, or no longer, a sound outbox; `agent.outbox.database` replaces it."""


class Table(msgspec.Struct, frozen=True):
    """One table, in the form that every row of it can be proven by.

    Attributes:
        name: of the table.
        key: the column that is the row's number.
        sealed: the columns that the checksum in column `seal` covers, in the order of the record.
        loose: the columns after `seal`, which change often or have a digest of their own.
        numbered: the checksum covers the row's number too.
    """

    name: str
    key: str
    sealed: tuple[str, ...]
    loose: tuple[str, ...] = ()
    numbered: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Return all columns, as they stand in a record of version 1."""
        return (self.key, *self.sealed, "seal", *self.loose)

    def seal(self, number: int, values: Sequence[Value]) -> int:
        """Return the checksum of a row, so that neither a flipped bit nor a foreign record passes for one."""
        return zlib.crc32(repr((self.name, number if self.numbered else 0, *values)).encode())

    def insert(self, verb: str = "INSERT") -> str:
        """Return the statement that writes a whole row."""
        marks = ", ".join("?" * len(self.columns))
        return f"{verb} INTO {self.name}({', '.join(self.columns)}) VALUES ({marks})"


META = Table("meta", "id", ("key", "value"))
OUTBOX = Table(
    "outbox",
    "seq",
    ("epoch", "key", "sha256", "created_ms", "boot", "mono_ms", "life_ms"),
    ("state", "attempts", "closed_ms", "reason", "result"),
    numbered=True,
)
INTAKE = Table(
    "intake", "id", ("key", "source", "name", "status", "attempts", "reason", "place", "first_ms", "life_ms")
)
EVENT = Table("event", "id", ("kind", "at_ms", "detail", "epoch", "ranges"))
REQUEST = Table("request", "id", ("name", "verb", "argument", "state", "ok", "detail", "life_ms"))
TABLES = (OUTBOX, INTAKE, META, EVENT, REQUEST)

# Each row of outbox: state 0 pending, 1 brokered, 2 stored, 3 dead. created_ms is the wall clock; boot and mono_ms the
# clock that cannot jump; life_ms the age of the outbox (agent.life.Life). The index on state has seq in it too.
_FIRST = (
    "CREATE TABLE meta(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL, seal INTEGER NOT NULL)"
    " STRICT",
    "CREATE TABLE outbox(seq INTEGER PRIMARY KEY AUTOINCREMENT, epoch TEXT NOT NULL, key TEXT NOT NULL UNIQUE,"
    " sha256 BLOB NOT NULL, created_ms INTEGER NOT NULL, boot INTEGER NOT NULL, mono_ms INTEGER NOT NULL,"
    " life_ms INTEGER NOT NULL, seal INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,"
    " attempts INTEGER NOT NULL DEFAULT 0, closed_ms INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',"
    " result BLOB NOT NULL) STRICT",
    "CREATE INDEX outbox_state ON outbox(state)",
    "CREATE TABLE intake(id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, source TEXT NOT NULL, name TEXT NOT NULL,"
    " status INTEGER NOT NULL, attempts INTEGER NOT NULL, reason TEXT NOT NULL, place TEXT NOT NULL,"
    " first_ms INTEGER NOT NULL, life_ms INTEGER NOT NULL, seal INTEGER NOT NULL) STRICT",
    "CREATE TABLE event(id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, at_ms INTEGER NOT NULL,"
    " detail TEXT NOT NULL, epoch TEXT NOT NULL, ranges TEXT NOT NULL, seal INTEGER NOT NULL) STRICT",
    "CREATE TABLE request(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, verb TEXT NOT NULL,"
    " argument TEXT NOT NULL, state INTEGER NOT NULL, ok INTEGER NOT NULL, detail TEXT NOT NULL,"
    " life_ms INTEGER NOT NULL, seal INTEGER NOT NULL) STRICT",
)


def _first(connection: sqlite3.Connection) -> None:
    for statement in _FIRST:
        connection.execute(statement)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_first,)
"""What leads from each version to the next. Each only adds, tables or columns with a default at the end of a table, so
that the version before still reads and writes the file when the system's update is rolled back."""

_PRAGMAS: tuple[tuple[str, str, Value], ...] = (
    ("busy_timeout", str(BUSY_MS), BUSY_MS),
    ("page_size", str(PAGE_BYTES), PAGE_BYTES),
    # Two processes write: before SQLite 3.51.3 they may corrupt a write-ahead log, a rollback journal they cannot.
    ("journal_mode", "TRUNCATE", "truncate"),
    ("synchronous", "FULL", 2),  # accepted means on the disk; with NORMAL the power-cut test loses rows
    ("cell_size_check", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("foreign_keys", "ON", 1),
    # Pages are private; and what is gone must not look like a row to `agent.outbox.salvage`.
    ("secure_delete", "ON", 1),
    ("temp_store", "MEMORY", 2),
    ("cache_size", "-1024", -1024),
    ("mmap_size", "0", 0),
)

_MAKING = (
    f"page_size={PAGE_BYTES}",
    "auto_vacuum=2",
    "journal_mode=OFF",
    "synchronous=OFF",
    "cache_size=-8192",
    "temp_store=2",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing database for explicit transactions; text that is no text is kept readable, never an error."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; the outbox needs 3.37 or newer")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    connection.text_factory = lambda raw: str(raw, "utf-8", "replace")
    return connection


def configure(connection: sqlite3.Connection, max_pages: int) -> None:
    """Set what must hold for this connection, and see that it does.

    Raises:
        sqlite3.OperationalError: it does not, as when another program holds the file in another mode.
    """
    for name, setting, expected in _PRAGMAS:
        connection.execute(f"PRAGMA {name}={setting}").fetchall()
        if (got := pragma(connection, name)) != expected:
            raise sqlite3.OperationalError(f"PRAGMA {name} is {got!r}, not {expected!r}")
    if (got := pragma(connection, f"max_page_count={max_pages}")) != max(max_pages, pragma(connection, "page_count")):
        raise sqlite3.OperationalError(f"PRAGMA max_page_count is {got}, not {max_pages}")


def pragma(connection: sqlite3.Connection, name: str) -> Any:
    """Return the value of a PRAGMA; None when it has none."""
    row = connection.execute(f"PRAGMA {name}").fetchone()
    return row[0] if row else None


def create(path: Path) -> sqlite3.Connection:
    """Make an empty outbox that is fast to fill and not yet safe: whoever makes it synchronises it at the end."""
    path.touch(mode=0o600)
    connection = connect(path)
    try:
        for setting in _MAKING:
            connection.execute(f"PRAGMA {setting}").fetchall()
        connection.execute("BEGIN")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        _advance(connection, 0)
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _advance(connection: sqlite3.Connection, version: int) -> None:
    """Bring tables of some version up to date, within the caller's transaction."""
    for number, migrate in enumerate(MIGRATIONS[version:], version + 1):
        migrate(connection)
        connection.execute(f"PRAGMA user_version={number}")
        write_meta(connection, "version", str(number))


def check_header(head: bytes) -> None:
    """See that the first 100 bytes of a file are an outbox's: what never changes in them is as it was made.

    SQLite reads over some damage here, or reports it as a file that may not be written. Fields:
    https://www.sqlite.org/fileformat2.html#the_database_header

    Raises:
        Damaged: they are not.
    """
    number = {at: int.from_bytes(head[at : at + 4], "big") for at in (44, 52, 56, 64, 68)}
    sound = (
        len(head) == 100
        and head[:18] == b"SQLite format 3\0" + PAGE_BYTES.to_bytes(2, "big")
        and head[18:20] in (b"\1\1", b"\2\2")  # 2: someone switched to a write-ahead log; `configure` switches back
        and head[20:24] == bytes((0, 64, 32, 32))
        and (number[44], number[56], number[64], number[68]) == (4, 1, 1, APPLICATION_ID)
        and number[52] > 0
    )
    if not sound:
        raise Damaged("the file's header is not an outbox's")


def check_tables(connection: sqlite3.Connection) -> None:
    """See that the tables are there, in a version that can be worked with; older ones are brought up to date.

    Raises:
        Damaged: they are not all there.
        ConfigError: a much newer version made them.
    """
    version = _version(connection)
    if version > len(MIGRATIONS) + 1:
        raise ConfigError(
            f"the outbox has version {version} and this program knows {len(MIGRATIONS)}: install the newer program"
            " again, or let it send everything and move outbox.db away"
        )
    if version < len(MIGRATIONS):
        _migrate(connection)
    for table in TABLES:
        found = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table.name})"))
        if found[: len(table.columns)] != table.columns:
            raise Damaged(f"table {table.name} is not as it was made")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'outbox_state'").fetchone():
        raise Damaged("an index is missing")


def _version(connection: sqlite3.Connection) -> int:
    """Return the version, which stands in two places: a flipped bit in one must not pass for a newer program's file."""
    version = pragma(connection, "user_version")
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
        raise Damaged("there is no table meta")
    if not isinstance(version, int) or read_meta(connection).get("version") != str(version):
        raise Damaged("the file's version is not known for sure")
    return version


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        _advance(connection, _version(connection))  # read again: the other process may have done it meanwhile
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()
        raise


def check_whole(connection: sqlite3.Connection) -> None:
    """Read the whole file and compare tables with indexes; takes a second for 100 MB.

    Raises:
        Damaged: something does not fit.
    """
    if (said := pragma(connection, "integrity_check(1)")) != "ok":
        raise Damaged(str(said).splitlines()[0][:200])


def read_meta(connection: sqlite3.Connection) -> dict[str, str]:
    """Return what is remembered about the outbox as a whole; a value whose checksum does not fit is left out."""
    rows = connection.execute("SELECT key, value, seal FROM meta").fetchall()
    return {key: value for key, value, seal in rows if META.seal(0, (key, value)) == seal}


def write_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Remember something about the outbox as a whole, within the caller's transaction."""
    connection.execute(
        "INSERT INTO meta(key, value, seal) VALUES (?, ?, ?)"
        " ON CONFLICT(key) DO UPDATE SET value = excluded.value, seal = excluded.seal",
        (key, value, META.seal(0, (key, value))),
    )


def write_event(
    connection: sqlite3.Connection, kind: str, at_ms: int, detail: str, epoch: str = "", ranges: str = "[]"
) -> None:
    """Note something that the centre should know, within the caller's transaction."""
    values = (kind, at_ms, detail, epoch, ranges)
    connection.execute(EVENT.insert(), (None, *values, EVENT.seal(0, values)))
