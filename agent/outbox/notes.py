"""What the outbox keeps besides rows: events for the centre, and commands from it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import msgspec

from agent.outbox import schema
from agent.outbox.life import Life
from agent.outbox.rows import EventRow, Finished, Request
from agent.outbox.schema import REQUEST, Value
from agent.protocol import Range

_MOST_EVENTS = 1000
_ASKED, _FINISHED, _ANSWERED = range(3)


def tell(connection: sqlite3.Connection, kind: str, at_ms: int, detail: str) -> None:
    """Note an event, once as long as it is not sent; of very many, the oldest that tell of no lost rows go."""
    known = connection.execute("SELECT 1 FROM event WHERE kind = ? AND detail = ?", (kind, detail)).fetchone()
    if known is None:
        schema.write_event(connection, kind, at_ms, detail)
        connection.execute(
            "DELETE FROM event WHERE kind = 'alarm' AND id <= (SELECT max(id) FROM event) - ?", (_MOST_EVENTS,)
        )


def events(connection: sqlite3.Connection, limit: int) -> list[EventRow]:
    """Return the oldest events."""
    sql = "SELECT id, kind, at_ms, detail, epoch, ranges FROM event ORDER BY id LIMIT ?"
    return [
        EventRow(number, kind, at_ms, detail, epoch or None, _runs(runs))
        for number, kind, at_ms, detail, epoch, runs in connection.execute(sql, (limit,)).fetchall()
    ]


def _runs(text: str) -> tuple[Range, ...]:
    try:
        return msgspec.json.decode(text, type=tuple[Range, ...])
    except msgspec.MsgspecError:
        raise schema.Damaged("an event is not as it was noted") from None


def forget(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Delete events that were sent."""
    connection.executemany("DELETE FROM event WHERE id = ?", [(number,) for number in numbers])


def ask(connection: sqlite3.Connection, moment: Life, request: Request) -> bool:
    """Hand over a command; false when its name was seen before."""
    if connection.execute("SELECT 1 FROM request WHERE name = ?", (request.id,)).fetchone():
        return False
    values = (request.id, request.verb, request.argument, _ASKED, 0, "", moment.life_ms)
    connection.execute(REQUEST.insert(), (None, *values, REQUEST.seal(0, values)))
    return True


def requests(connection: sqlite3.Connection) -> tuple[Request, ...]:
    """Return the commands that wait to be carried out."""
    sql = f"SELECT name, verb, argument FROM request WHERE state = {_ASKED} ORDER BY id"
    return tuple(Request(*row) for row in connection.execute(sql).fetchall())


def finish(connection: sqlite3.Connection, name: str, ok: bool, detail: str) -> None:
    """Note what became of a command."""
    _alter(connection, name, state=_FINISHED, ok=int(ok), detail=detail)


def answers(connection: sqlite3.Connection) -> tuple[Finished, ...]:
    """Return the commands whose answer is to be sent."""
    sql = f"SELECT name, verb, ok, detail FROM request WHERE state = {_FINISHED} ORDER BY id"
    return tuple(
        Finished(name, verb, bool(ok), detail) for name, verb, ok, detail in connection.execute(sql).fetchall()
    )


def answered(connection: sqlite3.Connection, names: Iterable[str]) -> None:
    """Note that answers were sent; the names are remembered."""
    for name in names:
        _alter(connection, name, state=_ANSWERED)


def _alter(connection: sqlite3.Connection, name: str, **changes: Value) -> None:
    sql = f"SELECT id, {', '.join(REQUEST.sealed)} FROM request WHERE name = ?"
    for number, *before in connection.execute(sql, (name,)).fetchall():
        values = tuple({**dict(zip(REQUEST.sealed, before, strict=True)), **changes}.values())
        connection.execute(REQUEST.insert("REPLACE"), (number, *values, REQUEST.seal(0, values)))
