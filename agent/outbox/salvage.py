"""Takes the rows out of a damaged outbox, without SQLite: whatever lies whole on a page is found and proven.

A table's rows lie on leaf pages. Here every page of the file is looked at, whether or not the pages above still lead to
it, so that the loss of one page costs what lay on it and nothing else; on a sound file the same rows are found as by
SELECT (`test_salvage`). Format: https://www.sqlite.org/fileformat2.html#b_tree_pages
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.outbox import schema
from agent.outbox.schema import EVENT, INTAKE, META, OUTBOX, PAGE_BYTES, Table, Value
from agent.protocol import MAX_RESULT_BYTES

_LEAF = 0x0D
_LOCAL_MOST = PAGE_BYTES - 35  # bytes of a row that lie on its leaf at most, and what is left when it overflows
_LOCAL_LEAST = (PAGE_BYTES - 12) * 32 // 255 - 23
_MAX_ROW_BYTES = MAX_RESULT_BYTES + (64 << 10)
_BYTES = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}  # of a value by its type; we write no fractions
_KEEP = {table.name: table.insert("INSERT OR IGNORE") for table in schema.TABLES}
_WIDTH = {table.name: len(table.columns) for table in schema.TABLES}
_EVENTS_AHEAD = 1000  # numbers of events are not given again, lest "sent" for a lost one hit a new one


class Found(msgspec.Struct, frozen=True):
    """One proven row.

    Attributes:
        table: which it belongs to.
        number: its own, in the table.
        values: of the table's other columns.
    """

    table: Table
    number: int
    values: tuple[Value, ...]


class Salvaged(msgspec.Struct):
    """What was found.

    Attributes:
        rows: results kept.
        verdicts: pages whose verdict is known still.
        damaged: records that were there and cannot be proven.
        epoch: of new rows.
    """

    rows: int = 0
    verdicts: int = 0
    damaged: int = 0
    epoch: str = ""

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.rows} results and {self.verdicts} verdicts kept, {self.damaged} records damaged"


def rebuild(source: Path | None, target: Path, at_ms: int | None) -> Salvaged:
    """Write a new outbox with all that can be proven of an old one, and see it to the disk.

    Args:
        source: the damaged file; None makes an empty outbox.
        target: the new file; must not exist.
        at_ms: the time for the event that tells of it; None when there is nothing to tell.
    """
    salvaged = Salvaged(epoch=uuid.uuid4().hex)
    with contextlib.closing(schema.create(target)) as connection:
        connection.execute("BEGIN")
        if source is not None:
            with source.open("rb", buffering=0) as file:
                for found in scan(file.fileno()):
                    _keep(connection, found, salvaged)
            _judge_again(connection)
            _count_on(connection, at_ms or 0)
        schema.write_meta(connection, "epoch", salvaged.epoch)
        if at_ms is not None:
            detail = f"the outbox was damaged and is replaced: {salvaged}"
            schema.write_event(connection, "salvage", at_ms, detail)
        connection.execute("COMMIT")
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return salvaged


def _keep(connection: sqlite3.Connection, found: Found | None, salvaged: Salvaged) -> None:
    """Write a row into the new file; a number or key that is there already is a copy."""
    if found is None:
        salvaged.damaged += 1
    elif found.table is META:
        key, value = found.values[:2]
        if key not in ("epoch", "version"):
            schema.write_meta(connection, str(key), str(value))
    else:
        row = (found.number, *found.values)
        kept = connection.execute(_KEEP[found.table.name], row).rowcount
        salvaged.rows += kept if found.table is OUTBOX else 0
        salvaged.verdicts += kept if found.table is INTAKE else 0


def _judge_again(connection: sqlite3.Connection) -> None:
    """Give each result whose verdict is lost its verdict: it was accepted."""
    lost = connection.execute(
        "SELECT key, created_ms, life_ms FROM outbox WHERE key NOT IN (SELECT key FROM intake) ORDER BY seq"
    ).fetchall()
    for key, created_ms, life_ms in lost:
        values = (key, "", "", 1, 1, "", "", created_ms, life_ms)
        connection.execute(INTAKE.insert(), (None, *values, INTAKE.seal(0, values)))


def _count_on(connection: sqlite3.Connection, at_ms: int) -> None:
    """Keep what only grows from falling back where the page that remembered it is lost."""
    connection.execute("DELETE FROM sqlite_sequence WHERE name = 'event'")
    connection.execute(
        "INSERT INTO sqlite_sequence(name, seq) SELECT 'event', coalesce(max(id), 0) + ? FROM event", (_EVENTS_AHEAD,)
    )
    meta = schema.read_meta(connection)
    if "session" not in meta:
        schema.write_meta(connection, "session", str(at_ms // 1000))  # more than there can have been
    if "life" not in meta:
        newest = "SELECT max(life_ms) FROM (SELECT life_ms FROM outbox UNION ALL SELECT life_ms FROM intake)"
        life_ms = connection.execute(newest).fetchone()[0] or 0
        schema.write_meta(connection, "life", f"[0, 0, 0, {life_ms}]")


def scan(file: int) -> Iterator[Found | None]:
    """Yield every proven row of a file of ours, and None for every record that cannot be proven.

    Args:
        file: descriptor, open for reading. Pages that the disk cannot read count as lost.
    """
    pages = -(-os.fstat(file).st_size // PAGE_BYTES)
    for number in range(1, pages + 1):
        page = _page(file, number)
        head = 100 if number == 1 else 0
        if len(page) == PAGE_BYTES and page[head] == _LEAF:
            yield from _rows(file, page, head)


def _page(file: int, number: int) -> bytes:
    try:
        return os.pread(file, PAGE_BYTES, (number - 1) * PAGE_BYTES)
    except OSError:
        return b""


def _rows(file: int, page: bytes, head: int) -> Iterator[Found | None]:
    count = int.from_bytes(page[head + 3 : head + 5], "big")
    for at in range(head + 8, min(head + 8 + 2 * count, PAGE_BYTES - 1), 2):
        try:
            number, payload = _cell(file, page, int.from_bytes(page[at : at + 2], "big"))
            values = _record(payload)
            if not _of_sqlite(values):
                yield _prove(number, values)
        except (LookupError, ValueError):
            yield None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place after it."""
    value = 0
    for end in range(at, at + 8):
        value = value << 7 | data[end] & 0x7F
        if data[end] < 0x80:
            return value, end + 1
    value = value << 8 | data[at + 8]
    return value - (1 << 64) if value >= 1 << 63 else value, at + 9


def _cell(file: int, page: bytes, at: int) -> tuple[int, bytes]:
    """Return the number and the record of the row whose cell begins at a place of a leaf page."""
    size, at = _varint(page, at)
    number, at = _varint(page, at)
    if not 0 < size <= _MAX_ROW_BYTES:
        raise ValueError("no row is so large")
    if size <= _LOCAL_MOST:
        return number, page[at : at + size]
    local = _LOCAL_LEAST + (size - _LOCAL_LEAST) % (PAGE_BYTES - 4)
    local = local if local <= _LOCAL_MOST else _LOCAL_LEAST
    parts = [page[at : at + local]]
    following = int.from_bytes(page[at + local : at + local + 4], "big")
    left = size - local
    while left > 0:
        more = _page(file, following) if following else b""
        if len(more) < PAGE_BYTES:
            raise ValueError("the rest of the row is missing")
        parts.append(more[4 : 4 + left])
        following = int.from_bytes(more[:4], "big")
        left -= PAGE_BYTES - 4
    return number, b"".join(parts)


def _record(payload: bytes) -> tuple[Value, ...]:
    """Return the values of a record: its header gives a type for each, and then they follow."""
    end, at = _varint(payload, 0)
    place = end
    values: list[Value] = []
    while at < end:
        kind = payload[at]  # most take one byte; 100,000 rows are to be read in seconds
        kind, at = (kind, at + 1) if kind < 0x80 else _varint(payload, at)
        after = place + (kind - 12 >> 1 if kind >= 12 else _BYTES[kind])
        values.append(_value(kind, payload[place:after]))
        place = after
    if at != end or place != len(payload):
        raise ValueError("not a record")
    return tuple(values)


def _value(kind: int, raw: bytes) -> Value:
    if kind >= 12:
        return raw if kind % 2 == 0 else str(raw, "utf-8")
    if kind == 0:
        return None
    return int.from_bytes(raw, "big", signed=True) if raw else kind - 8


def _of_sqlite(values: tuple[Value, ...]) -> bool:
    """Tell whether a record is of SQLite's own tables: of what there is, and of the largest numbers given."""
    return (len(values) == 5 and values[0] in ("table", "index")) or (
        len(values) == 2 and values[0] in (OUTBOX.name, EVENT.name)
    )


def _prove(number: int, values: tuple[Value, ...]) -> Found | None:
    """Return the row that a record is, by its checksum; columns that a later version added are dropped."""
    for table in schema.TABLES:
        last = 1 + len(table.sealed)
        if len(values) >= _WIDTH[table.name] and values[last] == table.seal(number, values[1:last]):
            loose = values[last + 1 : _WIDTH[table.name]]
            if table is not OUTBOX:
                return Found(table, number, (*values[1 : last + 1], *loose))
            if isinstance(loose[-1], bytes) and hashlib.sha256(loose[-1]).digest() == values[3]:
                return Found(table, number, (*values[1 : last + 1], *_sane(loose)))
    return None


def _sane(loose: tuple[Value, ...]) -> tuple[Value, ...]:
    """Return what may change in a row of results; where it is damaged, as of a row that is still to be sent."""
    state, attempts, closed_ms, reason, result = loose
    numbers = all(isinstance(value, int) and 0 <= value < 1 << 60 for value in (state, attempts, closed_ms))
    if numbers and state in (0, 1, 2, 3) and isinstance(reason, str):
        return loose
    return (0, 0, 0, "", result)
