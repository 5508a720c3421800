"""The rows of the outbox: put in, chosen for sending, marked with what became of them."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

from agent.outbox.life import Life
from agent.outbox.rows import BROKERED, DEAD, PENDING, STORED, Key, Marks, Row
from agent.outbox.schema import OUTBOX, Damaged
from agent.protocol import Range, ranges

_COLUMNS = (OUTBOX.key, *OUTBOX.sealed, "seal", "state", "attempts", "reason", "result")
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM outbox WHERE"
_LAST = "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0), coalesce(max(seq), 0))"
_OPEN = f"state IN ({PENDING}, {BROKERED})"
_AT_ONCE = 500  # rows changed in one transaction by a run of a receipt
_GIVE_BYTES = 4 << 20  # no more is read at once, whatever the limit


def insert(connection: sqlite3.Connection, epoch: str, key: str, result: bytes, moment: Life) -> int:
    """Add a row; returns its number, larger than any before."""
    last = connection.execute(f"{_LAST} FROM outbox").fetchone()[0]
    if not isinstance(last, int) or not 0 <= last < 1 << 52:
        raise Damaged("the last number is none")
    seq = last + 1
    sealed = (
        epoch,
        key,
        hashlib.sha256(result).digest(),
        moment.wall_ms,
        moment.boot,
        moment.mono_ms,
        moment.life_ms,
    )
    row = (seq, *sealed, OUTBOX.seal(seq, sealed), PENDING, 0, 0, "", result)
    connection.execute(OUTBOX.insert(), row)
    return seq


def choose(
    connection: sqlite3.Connection, limit: int, fresh_from: int, older: int, skip: Collection[Key]
) -> tuple[list[int], list[int]]:
    """Return numbers of rows to be sent: fresh ones and older ones, both in order.

    Args:
        connection: in a transaction.
        limit: of both together.
        fresh_from: number that the fresh rows begin at.
        older: so many are older, when there are so many; and as many more as there are too few fresh ones.
        skip: rows that are on their way.
    """
    old = _pick(connection, 0, fresh_from, limit, skip)
    fresh = _pick(connection, fresh_from, 1 << 62, limit - min(older, len(old)), skip)
    return fresh, old[: limit - len(fresh)]


def _pick(connection: sqlite3.Connection, first: int, end: int, limit: int, skip: Collection[Key]) -> list[int]:
    sql = f"SELECT epoch, seq FROM outbox WHERE state = {PENDING} AND seq >= ? AND seq < ? ORDER BY seq LIMIT ?"
    keys = connection.execute(sql, (first, end, limit + len(skip) if limit else 0)).fetchall()
    return [key[1] for key in keys if key not in skip][:limit]


def fresh_from(connection: sqlite3.Connection, moment: Life, fresh_ms: int) -> int:
    """Return the first number whose pending rows are younger than `fresh_ms`.

    Rows of one boot grow older with falling numbers, and other boots are past: so it is found by halving, without an
    index that every insertion would pay for.
    """
    sql = f"SELECT seq, boot, mono_ms FROM outbox WHERE state = {PENDING} AND seq >= ? ORDER BY seq LIMIT 1"
    low = next((row[0] for row in connection.execute(sql, (0,)).fetchall()), 0)
    high = low
    for row in connection.execute(f"SELECT max(seq) FROM outbox WHERE state = {PENDING}").fetchall():
        high = (row[0] or 0) + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute(sql, (middle,)).fetchone()
        if row is None or (row[1] == moment.boot and row[2] > moment.mono_ms - fresh_ms):
            high = middle
        else:
            low = max(row[0], middle) + 1
    return low


def read(connection: sqlite3.Connection, numbers: Iterable[int], moment: Life) -> tuple[list[Row], list[int]]:
    """Return rows that are as they were accepted, up to some size, and the numbers of those that are not.

    Raises:
        Damaged: there is no such row.
    """
    rows, damaged, taken = [], [], 0
    for seq in numbers:
        found = connection.execute(f"{_SELECT} seq = ?", (seq,)).fetchone()
        if found is None:
            raise Damaged("the index names a row that is not there")
        if _is_proven(found):
            rows.append(_row(found, moment))
            taken += len(rows[-1].result)
        else:
            damaged.append(seq)
        if taken > _GIVE_BYTES:
            break
    return rows, damaged


def listed(connection: sqlite3.Connection, after: int, limit: int, state: int | None, moment: Life) -> list[Row]:
    """Return rows of one state, or all, by number; of one that is not as it was accepted, only the number."""
    where = "" if state is None else f"state = {int(state)} AND"
    found = connection.execute(f"{_SELECT} {where} seq > ? ORDER BY seq LIMIT ?", (after, limit)).fetchall()
    return [_row(values, moment) if _is_proven(values) else _lost(values[0]) for values in found]


def _lost(seq: int) -> Row:
    return Row("", seq, "", b"", "", 0, None, DEAD, 0, "damaged")


def _is_proven(values: tuple[Any, ...]) -> bool:
    sealed, result = values[1 : 1 + len(OUTBOX.sealed)], values[-1]
    return (
        values[8] == OUTBOX.seal(values[0], sealed)
        and isinstance(result, bytes)
        and hashlib.sha256(result).digest() == values[3]
    )


def _row(values: tuple[Any, ...], moment: Life) -> Row:
    field = dict(zip(_COLUMNS, values, strict=True))
    age_s = max(0, moment.mono_ms - field["mono_ms"]) / 1000 if field["boot"] == moment.boot else None
    names = ("epoch", "seq", "key", "result", "created_ms", "state", "attempts", "reason")
    return Row(sha256=field["sha256"].hex(), age_s=age_s, **{name: field[name] for name in names})


def mark(connection: sqlite3.Connection, marks: Marks, moment: Life, *, keep_stored: bool) -> bool:
    """Record what became of rows; whether so many are stored that some are left for another transaction."""
    closed = moment.life_ms
    connection.executemany(
        f"UPDATE outbox SET state = {BROKERED} WHERE seq = ? AND epoch = ? AND state = {PENDING}",
        [(seq, epoch) for epoch, seq in marks.brokered],
    )
    connection.executemany(
        f"UPDATE outbox SET state = {PENDING}, attempts = attempts + 1 WHERE seq = ? AND epoch = ? AND {_OPEN}",
        [(seq, epoch) for epoch, seq in marks.again],
    )
    connection.executemany(
        f"UPDATE outbox SET state = {DEAD}, reason = ?, closed_ms = ? WHERE seq = ? AND epoch = ? AND {_OPEN}",
        [(reason, closed, seq, epoch) for epoch, seq, reason in marks.refused],
    )
    change = f"UPDATE outbox SET state = {STORED}, closed_ms = {closed}" if keep_stored else "DELETE FROM outbox"
    left = _AT_ONCE
    for epoch, runs in marks.stored.items():
        for first, last in runs:
            left -= _close(connection, change, epoch, (first, last), left)
    return left == 0


def _close(connection: sqlite3.Connection, change: str, epoch: str, run: Range, most: int) -> int:
    """Change the rows of a run that wait for their receipt; returns how many, no more than `most`."""
    chosen = f"SELECT seq FROM outbox NOT INDEXED WHERE seq BETWEEN ? AND ? AND epoch = ? AND {_OPEN} LIMIT ?"
    return connection.execute(f"{change} WHERE seq IN ({chosen})", (*run, epoch, most)).rowcount


def bury(connection: sqlite3.Connection, numbers: Iterable[int]) -> int:
    """Put rows aside that are not what was accepted; returns how many."""
    sql = f"UPDATE outbox SET state = {DEAD}, reason = 'damaged' WHERE seq = ? AND {_OPEN}"
    return connection.executemany(sql, [(seq,) for seq in numbers]).rowcount


def revive(connection: sqlite3.Connection, numbers: Iterable[int] | None) -> int:
    """Make dead rows pending again, some or all; returns how many."""
    sql = f"UPDATE outbox SET state = {PENDING}, attempts = 0, reason = '', closed_ms = 0 WHERE state = {DEAD}"
    if numbers is None:
        return connection.execute(sql).rowcount
    return connection.executemany(f"{sql} AND seq = ?", [(seq,) for seq in numbers]).rowcount


def waiting(connection: sqlite3.Connection, limit: int) -> dict[str, tuple[Range, ...]]:
    """Return the runs, by epoch, of the oldest rows that are at the broker."""
    sql = f"SELECT epoch, seq FROM outbox WHERE state = {BROKERED} ORDER BY seq LIMIT ?"
    by_epoch: dict[str, list[int]] = {}
    for epoch, seq in connection.execute(sql, (limit,)).fetchall():
        by_epoch.setdefault(epoch, []).append(seq)
    return {epoch: ranges(seqs) for epoch, seqs in by_epoch.items()}


def counts(connection: sqlite3.Connection) -> list[int]:
    """Return how many rows there are in each state."""
    by_state = dict(connection.execute("SELECT state, count(*) FROM outbox GROUP BY state").fetchall())
    return [by_state.get(state, 0) for state in (PENDING, BROKERED, STORED, DEAD)]


def oldest_ms(connection: sqlite3.Connection) -> int | None:
    """Return when, in the outbox's life, the oldest row without a receipt was accepted."""
    sql = "SELECT life_ms FROM outbox WHERE state = ? ORDER BY seq LIMIT 1"
    found = [row[0] for state in (PENDING, BROKERED) for row in connection.execute(sql, (state,)).fetchall()]
    return min(found, default=None)
