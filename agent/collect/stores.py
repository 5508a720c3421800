"""Where a collector keeps results: SQLite, for one collector, or PostgreSQL, for several."""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from agent.collect.tables import (
    SCHEMA,
    Batch,
    Held,
    Record,
    Reject,
    Row,
    StoreError,
    Verdict,
    held_rows,
    migrate,
    put_batch,
    version_of,
)
from agent.errors import ConfigError, EngineError, InputError
from agent.protocol import Range

if TYPE_CHECKING:
    import psycopg
    import sqlite_utils

WAIT_S = 2
"""A database that is locked for longer counts as down: the broker's keep-alive must not be missed."""
ANSWER_S = 10
"""PostgreSQL is given so long for a statement."""

_SQLITE_TYPES = {"bool": "INTEGER", "json": "TEXT", "bytes": "BLOB", "identity": "INTEGER"}
_POSTGRES_TYPES = {
    "bool": "BOOLEAN",
    "json": "JSON",  # keeps the text as it is; JSONB would not
    "bytes": "BYTEA",
    "identity": "BIGINT GENERATED ALWAYS AS IDENTITY",
}
_ADVISORY_LOCK = 0x6564_6765_6F63_72  # "edgeocr"


class Store(Protocol):
    """Keeps rows, each key once. After a StoreError the same call may be tried again."""

    def ready(self) -> None:
        """Open the database if need be, make or extend its tables, and write something.

        Raises:
            StoreError: it takes nothing for now.
            ConfigError: it never will: its tables are of a newer version, or it is not set up for this.
        """

    def put(self, batch: Batch) -> tuple[Verdict, ...]:
        """Commit a batch, all of it or nothing; returns what became of each row.

        Raises:
            StoreError: nothing was committed, or nobody knows: put it again.
        """

    def held(self, device: str, epoch: str, asked: Sequence[Range]) -> Held:
        """Return which of the rows asked for are committed.

        Raises:
            StoreError: the database does not answer.
        """

    def close(self) -> None:
        """Give the database back."""


def open_store(url: str, password: str | None = None) -> SqliteStore | PostgresStore:
    """Return the store a setting names; nothing is connected before `ready`.

    Raises:
        ConfigError: the setting cannot work, or another collector has the SQLite file.
        InputError: the SQLite file's folder is missing or not writable.
        EngineError: the PostgreSQL driver is not installed.
    """
    kind, _, rest = url.partition(":")
    return SqliteStore(Path(rest)) if kind == "sqlite" else PostgresStore(url, password)


_TOUCH = "UPDATE edge_ocr_schema SET applied_ms = applied_ms"


class SqliteStore:
    """A file that one collector writes; others may read it meanwhile (WAL), best with `mode=ro`."""

    def __init__(self, path: Path) -> None:
        """Claim the file for this process.

        Raises:
            InputError: its folder is missing or not writable.
            ConfigError: another collector has it.
        """
        self._path = path.absolute()
        self._db: sqlite_utils.Database | None = None
        self._inode = 0
        # SQLite before 3.51.3 can damage a WAL that two processes write; this keeps a second collector out.
        try:
            self._lock = open(f"{self._path}.lock", "a+", encoding="ascii")  # noqa: SIM115  held until `close`
        except OSError as error:
            raise InputError(f"store: {self._path}: {error.strerror}: its folder must be writable") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"store: another collector writes {self._path}; several need PostgreSQL") from error

    def ready(self) -> None:
        """See Store."""
        with self._working() as tables:
            tables.execute(_TOUCH)

    def put(self, batch: Batch) -> tuple[Verdict, ...]:
        """See Store."""
        with self._working() as tables:
            return put_batch(tables, batch)

    def held(self, device: str, epoch: str, asked: Sequence[Range]) -> Held:
        """See Store."""
        with self._working() as tables:
            return held_rows(tables, device, epoch, asked)

    def close(self) -> None:
        """See Store."""
        self._disconnect()
        self._lock.close()

    @contextlib.contextmanager
    def _working(self) -> Iterator[_SqliteTables]:
        # After an error the connection stays: a file whose fsync failed and that is opened anew would be believed.
        try:
            if self._db is not None and not self._in_place():
                self._disconnect()
            if self._db is None:
                self._db = self._connect()
            yield _SqliteTables(self._db)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self._path}: {error}") from error

    def _in_place(self) -> bool:
        """Return whether the open file is still the one at the path; writing into another would be writing nowhere."""
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _connect(self) -> sqlite_utils.Database:
        import sqlite_utils

        # isolation_level None: Python begins no transaction by itself; `atomic` does.
        connection = sqlite3.connect(self._path, timeout=WAIT_S, isolation_level=None)
        try:
            for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("journal_size_limit", 16 << 20)):
                connection.execute(f"PRAGMA {pragma} = {value}")
                if (got := connection.execute(f"PRAGMA {pragma}").fetchone()[0]) != value:
                    raise StoreError(f"{self._path}: {pragma} is {got} instead of {value}; keep it on a local disk")
            db = sqlite_utils.Database(connection, execute_plugins=False)
            tables = _SqliteTables(db)
            if version_of(tables) < SCHEMA:
                with tables.transaction():
                    migrate(tables, _SQLITE_TYPES)
        except BaseException:
            connection.close()
            raise
        self._inode = self._path.stat().st_ino
        return db

    def _disconnect(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None


class _SqliteTables:
    """Tables over sqlite-utils, from 4.0 on: before, `execute` left transactions open that were lost at the end."""

    def __init__(self, db: sqlite_utils.Database) -> None:
        self._db = db

    def exists(self, table: str) -> bool:
        return self._db[table].exists()

    def execute(self, sql: str, *parameters: object) -> None:
        self._db.execute(sql, parameters)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._db.execute(sql, parameters).fetchall()

    def insert(self, table: str, records: Sequence[Record]) -> None:
        if records:
            self._db.table(table).insert_all(map(msgspec.structs.asdict, records), ignore=True)

    def transaction(self) -> contextlib.AbstractContextManager[object]:
        return self._db.atomic()


class PostgresStore:
    """A database that any number of collectors write at the same time."""

    def __init__(self, url: str, password: str | None = None) -> None:
        """Check the address.

        Raises:
            EngineError: the driver is not installed.
            ConfigError: the address cannot be understood, or holds a password.
        """
        try:
            import psycopg
        except ImportError as error:
            raise EngineError(f"PostgreSQL needs psycopg ({error}): pip install 'edge-ocr-agent[postgres]'") from error
        try:
            given = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            # Its words may quote a password.
            raise ConfigError("store: not an address like postgresql://user@host:5432/database") from error
        if given.get("password"):
            raise ConfigError("store: the address holds a password; put it where store_password points")
        # All of them bound how long a dead server or network can hold the collector's only thread.
        defaults = {
            "connect_timeout": WAIT_S + 1,
            "tcp_user_timeout": ANSWER_S * 1000,
            "keepalives_idle": ANSWER_S,
            "target_session_attrs": "read-write",
            "application_name": "edge-ocr collect",
        }
        self._settings: dict[str, Any] = {**defaults, **given, **({"password": password} if password else {})}
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def ready(self) -> None:
        """See Store."""
        with self._working() as tables:
            tables.execute(_TOUCH)

    def put(self, batch: Batch) -> tuple[Verdict, ...]:
        """See Store."""
        import psycopg

        with self._working() as tables:
            try:
                return put_batch(tables, batch)
            except psycopg.DataError:
                return self._put_fit(tables, batch)

    def held(self, device: str, epoch: str, asked: Sequence[Range]) -> Held:
        """See Store."""
        with self._working() as tables:
            return held_rows(tables, device, epoch, asked)

    def close(self) -> None:
        """See Store."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _put_fit(self, tables: _PostgresTables, batch: Batch) -> tuple[Verdict, ...]:
        """Leave out the rows that the database does not hold: one of them must not stop all others for ever."""
        unfit = {row for row in batch.rows if not tables.takes(row)}
        if not unfit:
            raise StoreError("the database refuses the form of something that is no result; see its log")
        rejects = tuple(_reject(row) for row in batch.rows if row in unfit)
        rest = tuple(row for row in batch.rows if row not in unfit)
        verdicts = iter(put_batch(tables, msgspec.structs.replace(batch, rows=rest, rejects=batch.rejects + rejects)))
        return tuple("unfit" if row in unfit else next(verdicts) for row in batch.rows)

    @contextlib.contextmanager
    def _working(self) -> Iterator[_PostgresTables]:
        import psycopg

        try:
            if self._connection is None:
                self._connection = self._connect()
            yield _PostgresTables(self._connection)
        except psycopg.Error as error:
            self.close()  # whatever it was, a new connection is in a known state
            raise StoreError(f"PostgreSQL: {_one_line(error)}") from error

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        import psycopg

        connection = psycopg.connect(**self._settings, autocommit=True)
        try:
            if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
                raise ConfigError(f"store: the database's encoding is {encoding}; it must be UTF8")
            tables = _PostgresTables(connection)
            tables.set_up()
            if version_of(tables) < SCHEMA:
                with tables.transaction():
                    tables.query("SELECT pg_advisory_xact_lock(?)", (_ADVISORY_LOCK,))
                    tables.execute("SET LOCAL statement_timeout = 0")  # an index over all rows takes its time
                    migrate(tables, _POSTGRES_TYPES)
        except BaseException:
            connection.close()
            raise
        return connection


def _one_line(error: psycopg.Error) -> str:
    """Return what the server says, without the details: those may quote rows."""
    said = error.diag.message_primary or str(error)
    return " ".join(said.split()) or type(error).__name__


def _reject(row: Row) -> Reject:
    body = row.result.encode()
    return Reject(
        topic=f"{row.device} {row.epoch} {row.seq}",
        reason="the database cannot hold it",
        size_bytes=len(body),
        body=body,
        received_ms=row.received_ms,
        collector=row.collector,
    )


class _PostgresTables:
    """Tables over psycopg."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def set_up(self) -> None:
        """Set what the role or the server may have set otherwise."""
        settings = {
            "statement_timeout": f"{ANSWER_S}s",
            "lock_timeout": f"{ANSWER_S // 2}s",
            "idle_in_transaction_session_timeout": f"{ANSWER_S * 3}s",
            # Each statement sees what others have committed until then: a row's owner is read after the insert.
            "default_transaction_isolation": "read committed",
            "default_transaction_read_only": "off",
        }
        # Where it is off, a receipt may go out for a row that a power cut takes away.
        if self.query("SELECT current_setting('synchronous_commit')") == [("off",)]:
            settings["synchronous_commit"] = "on"
        calls = ", ".join(["set_config(?, ?, false)"] * len(settings))
        self.query(f"SELECT {calls}", tuple(part for pair in settings.items() for part in pair))

    def exists(self, table: str) -> bool:
        return self.query("SELECT to_regclass(?) IS NOT NULL", (table,))[0][0] is True

    def execute(self, sql: str, *parameters: object) -> None:
        self._connection.execute(_marked(sql), parameters or None)

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(_marked(sql), parameters).fetchall()

    def insert(self, table: str, records: Sequence[Record]) -> None:
        if records:
            names = records[0].__struct_fields__
            sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            with self._connection.cursor() as cursor:
                cursor.executemany(
                    _marked(f"{sql} ON CONFLICT DO NOTHING"), [msgspec.structs.astuple(record) for record in records]
                )

    def takes(self, row: Row) -> bool:
        """Return whether a row can be inserted; it is not."""
        import psycopg

        try:
            with self._connection.transaction(force_rollback=True):
                self.insert("results", [row])
        except psycopg.DataError:
            return False
        return True

    def transaction(self) -> contextlib.AbstractContextManager[object]:
        return self._connection.transaction()


def _marked(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()
