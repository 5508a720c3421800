"""What the outbox's numbers hold good for: one machine, one boot of it, and the outbox's own age."""

from __future__ import annotations

import hashlib
import sqlite3
import uuid
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.outbox import schema

MACHINE_ID = Path("/etc/machine-id")
_MAX_OFF_MS = 3 * 86_400_000
_SAVE_MS = 300_000


class Life(msgspec.Struct, frozen=True, array_like=True):
    """How long the outbox has lived, for retention: a clock that a wrong date cannot turn.

    Within a boot the monotonic clock counts. While the machine was off only the wall clock knows, so no more than three
    days of that are believed: rows may be kept for longer than asked, never for less.

    Attributes:
        boot: when the last of these were read, in which boot (`boot_number`).
        mono_ms: the monotonic clock then.
        wall_ms: the wall clock then.
        life_ms: how long the outbox had lived.
    """

    boot: int = 0
    mono_ms: int = 0
    wall_ms: int = 0
    life_ms: int = 0

    def now(self, clock: Clock) -> Life:
        """Return how long it has lived by now."""
        boot, mono_ms, wall_ms = boot_number(clock), int(clock.monotonic() * 1000), clock.wall_ms()
        if boot == self.boot:
            gone_ms = mono_ms - self.mono_ms
        else:
            gone_ms = min(wall_ms - self.wall_ms, _MAX_OFF_MS) if self.wall_ms else 0
        return Life(boot, mono_ms, wall_ms, self.life_ms + max(0, gone_ms))


def moment(meta: dict[str, str], clock: Clock) -> Life:
    """Return the present, by what is remembered of the outbox."""
    return _saved(meta).now(clock)


def _saved(meta: dict[str, str]) -> Life:
    try:
        return msgspec.json.decode(meta.get("life", "[]"), type=Life)
    except msgspec.MsgspecError:
        return Life()


def save(connection: sqlite3.Connection, clock: Clock) -> int:
    """Write down, now and then, how long the outbox has lived; returns it in milliseconds."""
    before = _saved(schema.read_meta(connection))
    now = before.now(clock)
    if now.boot != before.boot or now.life_ms - before.life_ms >= _SAVE_MS:
        schema.write_meta(connection, "life", msgspec.json.encode(now).decode())
    return now.life_ms


def settle(connection: sqlite3.Connection, clock: Clock) -> None:
    """Bind the rows to come to this machine and this boot."""
    meta = schema.read_meta(connection)
    machine = _machine()
    moved = bool(machine) and meta.get("machine", machine) != machine
    if moved or "epoch" not in meta:
        # Two boxes with one disk's copy would give the same numbers to different rows.
        schema.write_meta(connection, "epoch", uuid.uuid4().hex)
    if moved:
        detail = "the outbox was made on another machine: new rows begin a new epoch"
        schema.write_event(connection, "alarm", clock.wall_ms(), detail)
    if machine and meta.get("machine") != machine:
        schema.write_meta(connection, "machine", machine)
    save(connection, clock)


def boot_number(clock: Clock) -> int:
    """Return a number that names this boot of the machine."""
    return int.from_bytes(hashlib.sha256(clock.boot_id.encode()).digest()[:6], "big")


def _machine() -> str:
    """Return a digest that names this machine, "" where it has no name; the name itself is confidential."""
    try:
        name = MACHINE_ID.read_bytes().strip()
    except OSError:
        return ""
    return hashlib.sha256(b"edge-ocr outbox " + name).hexdigest()[:32] if name else ""
