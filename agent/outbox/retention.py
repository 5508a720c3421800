"""What the outbox lets go of, in small transactions: stored rows, old verdicts, and, when told to, the oldest rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from agent.outbox import schema
from agent.outbox.rows import BROKERED, PENDING, STORED
from agent.outbox.schema import Damaged
from agent.protocol import MAX_RANGES, Range, ranges

BATCH = 500
_BYTES_PER_VERDICT = 2048  # of the outbox's size: verdicts take some 350, so no more than a sixth of it
_SMALL_PAGES = 4096  # 16 MB: read in a tenth of a second, on a slow card in one
_KEEP_REQUESTS = 10_000
_REMEMBER_REQUESTS_MS = 7 * 86_400_000


def delete_stored(connection: sqlite3.Connection, until_ms: int) -> int:
    """Delete rows stored before some moment of the outbox's life; returns how many, BATCH at most.

    The first of them by number are looked at, not all: numbers and times grow together, nearly.
    """
    first = f"SELECT seq, closed_ms FROM outbox WHERE state = {STORED} ORDER BY seq LIMIT {BATCH}"
    old = [(seq,) for seq, closed_ms in connection.execute(first).fetchall() if closed_ms <= until_ms]
    connection.executemany("DELETE FROM outbox WHERE seq = ?", old)
    return len(old)


def forget_verdicts(connection: sqlite3.Connection, until_ms: int, max_bytes: int) -> int:
    """Forget pages met before some moment of the outbox's life, and the oldest when there are too many.

    Returns:
        How many, BATCH at most.
    """
    bounds = connection.execute("SELECT min(id), (SELECT max(id) FROM intake) FROM intake").fetchone()
    if bounds[0] is None:
        return 0
    too_many = bounds[1] - max(64, max_bytes // _BYTES_PER_VERDICT)
    first = connection.execute("SELECT id, life_ms FROM intake ORDER BY id LIMIT ?", (BATCH,)).fetchall()
    old = [(number,) for number, life_ms in first if life_ms < until_ms or number <= too_many]
    connection.executemany("DELETE FROM intake WHERE id = ?", old)
    return len(old)


def forget_requests(connection: sqlite3.Connection, now_ms: int) -> None:
    """Forget commands so old that they have expired, and the oldest when there are very many."""
    connection.execute(
        "DELETE FROM request WHERE life_ms < ? OR id <= (SELECT max(id) FROM request) - ?",
        (now_ms - _REMEMBER_REQUESTS_MS, _KEEP_REQUESTS),
    )


def shrink(connection: sqlite3.Connection) -> int:
    """Give the disk back some of what is free inside the file, when it is much; returns how many pages."""
    free, pages = (int(schema.pragma(connection, name)) for name in ("freelist_count", "page_count"))
    if free <= max(256, pages // 8):
        return 0
    connection.execute(f"PRAGMA incremental_vacuum({BATCH})").fetchall()
    return BATCH


def check(connection: sqlite3.Connection) -> None:
    """Look for damage that nobody has met: in the whole file while it is small, as it mostly is, else for lost rows.

    Raises:
        Damaged: there is some.
    """
    if int(schema.pragma(connection, "page_count")) <= _SMALL_PAGES:
        schema.check_whole(connection)
    states = f"WHERE state IN ({PENDING}, {BROKERED}) LIMIT 1"
    if connection.execute(f"SELECT 1 FROM outbox INDEXED BY outbox_state {states}").fetchone():
        return
    # The index knows of none to be sent, and so the table is small now: no row must wait in it unseen.
    if connection.execute(f"SELECT 1 FROM outbox NOT INDEXED {states}").fetchone():
        raise Damaged("the index does not know all rows")


def drop_oldest(connection: sqlite3.Connection, at_ms: int) -> int:
    """Give up the oldest rows and note which; rows that are stored at the centre go first and need no note.

    Returns:
        How many rows are gone.
    """
    if deleted := delete_stored(connection, 1 << 62):
        return deleted
    first, last = connection.execute("SELECT min(seq), (SELECT max(seq) FROM outbox) FROM outbox").fetchone()
    some = min(BATCH, ((last or 0) - (first or 0)) // 32 + 1)
    oldest = f"SELECT seq, epoch FROM outbox WHERE state != {STORED} ORDER BY seq LIMIT ?"
    rows = connection.execute(oldest, (some,)).fetchall()
    connection.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq, _ in rows])
    for epoch in {epoch for _, epoch in rows}:
        _note_gap(connection, epoch, ranges(seq for seq, of in rows if of == epoch), at_ms)
    return len(rows)


def _note_gap(connection: sqlite3.Connection, epoch: str, gone: tuple[Range, ...], at_ms: int) -> None:
    """Add rows to the newest event of their kind; under a new number, since the old event may be on its way."""
    last = connection.execute(
        "SELECT id, ranges FROM event WHERE kind = 'gap' AND epoch = ? ORDER BY id DESC LIMIT 1", (epoch,)
    ).fetchone()
    before = () if last is None else msgspec.json.decode(last[1], type=tuple[Range, ...])
    if len(before) + len(gone) <= MAX_RANGES // 2:
        gone = joined((*before, *gone))
        if last is not None:
            connection.execute("DELETE FROM event WHERE id = ?", (last[0],))
    count = sum(end - begin + 1 for begin, end in gone)
    detail = f"{count} results given up unconfirmed, the oldest first: the outbox was full"
    schema.write_event(connection, "gap", at_ms, detail, epoch, msgspec.json.encode(gone).decode())


def joined(runs: Iterable[Range]) -> tuple[Range, ...]:
    """Return runs in order, those that touch made one."""
    whole: list[Range] = []
    for begin, end in sorted(runs):
        if whole and begin <= whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return tuple(whole)
