"""What the outbox knows about pages: how often reading began, and what came of it."""

from __future__ import annotations

import sqlite3
from typing import Any

from agent.errors import readable
from agent.outbox.life import Life
from agent.outbox.rows import VERDICTS, Intake
from agent.outbox.schema import INTAKE, Value

READING, ACCEPTED, FAILED = range(3)

_FIND = f"SELECT {', '.join((*INTAKE.sealed, 'seal'))} FROM intake WHERE key = ?"
_UPDATE = ", ".join(f"{column} = excluded.{column}" for column in (*INTAKE.sealed, "seal"))
_WRITE = f"{INTAKE.insert()} ON CONFLICT(key) DO UPDATE SET {_UPDATE}"


def find(connection: sqlite3.Connection, key: str) -> Intake | None:
    """Return what is known about a page. What a checksum does not bear out is not known."""
    row = _row(connection, key)
    if row is None:
        return None
    return Intake(
        key=key,
        source=row["source"],
        name=row["name"],
        attempts=row["attempts"],
        status=VERDICTS[row["status"]],
        reason=row["reason"],
        place=row["place"],
        first_ms=row["first_ms"],
    )


def judge(connection: sqlite3.Connection, key: str, moment: Life, **changes: Value) -> None:
    """Change what is known about a page, known before or not. What was accepted stays accepted."""
    first = (key, "", "", READING, 0, "", "", moment.wall_ms, moment.life_ms)
    before = _row(connection, key) or dict(zip(INTAKE.sealed, first, strict=True))
    if before["status"] == ACCEPTED:
        changes = {**changes, "status": ACCEPTED, "reason": ""}
    values = tuple({**before, **changes}.values())
    connection.execute(_WRITE, (None, *values, INTAKE.seal(0, values)))


def forget(connection: sqlite3.Connection, key: str) -> None:
    """Forget a page that was not accepted."""
    connection.execute("DELETE FROM intake WHERE key = ? AND status != ?", (key, ACCEPTED))


def begin(connection: sqlite3.Connection, key: str, moment: Life, *, source: str, name: str, again: bool) -> int:
    """Note that reading a page begins; returns how often it did.

    Args:
        connection: in a transaction.
        key: of the page.
        moment: now.
        source: configured name.
        name: what people know it by.
        again: it began in this process before, which is still there: then it does not count.
    """
    known = find(connection, key)
    attempts = max(1, (known.attempts if known else 0) + (not again))
    judge(connection, key, moment, source=readable(source), name=readable(name), status=READING, attempts=attempts)
    return attempts


def _row(connection: sqlite3.Connection, key: str) -> dict[str, Any] | None:
    row = connection.execute(_FIND, (key,)).fetchone()
    if row is None or INTAKE.seal(0, row[:-1]) != row[-1]:
        return None
    return dict(zip(INTAKE.sealed, row, strict=False))
