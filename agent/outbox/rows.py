"""What the outbox takes and gives, as values."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from agent.protocol import Range

Key = tuple[str, int]
"""Epoch and sequence number: with the device's name, a row's name for ever."""

PENDING, BROKERED, STORED, DEAD = range(4)
VERDICTS: tuple[Literal["reading", "accepted", "failed"], ...] = ("reading", "accepted", "failed")


class Row(msgspec.Struct, frozen=True):
    """One result.

    Attributes:
        epoch: of the database's life that it was accepted in.
        seq: its number, growing.
        key: of the page it was read on.
        result: JSON, masked.
        sha256: digest of `result`, hexadecimal.
        created_ms: when it was accepted, by the wall clock.
        age_s: since then by the clock that cannot jump; None when the machine was started anew meanwhile.
        state: 0 pending, 1 brokered, 2 stored, 3 dead.
        attempts: how often it was sent in vain.
        reason: why it is dead.
    """

    epoch: str
    seq: int
    key: str
    result: bytes
    sha256: str
    created_ms: int
    age_s: float | None
    state: int
    attempts: int
    reason: str


class Intake(msgspec.Struct, frozen=True):
    """What is known about a page.

    Attributes:
        key: its stable identity.
        source: configured name.
        name: what people know it by.
        attempts: how often reading began in a process that then ended, or that reads it now.
        status: "reading" until there is a verdict.
        reason: why it failed, one word.
        place: where its file lies since.
        first_ms: when it was first met, by the wall clock.
    """

    key: str
    source: str
    name: str
    attempts: int
    status: Literal["reading", "accepted", "failed"]
    reason: str
    place: str
    first_ms: int


class Stats(msgspec.Struct, frozen=True):
    """The outbox in numbers.

    Attributes:
        pending: rows to be sent.
        brokered: rows at the broker without a receipt.
        stored: rows at the centre, kept for a while.
        dead: rows that were refused.
        oldest_s: age of the oldest row without a receipt, as far as clocks can tell.
        bytes: that the database takes.
        max_bytes: that it may take.
        epoch: of new rows.
        events: not sent yet.
        alarms: what someone should look at: "full", "disk", "readonly", "failing"; "salvage" while a damaged file lies
            beside the outbox; "gap" until given up rows are reported; "dead" while there are dead rows.
        paused: no pages are to be taken.
        level: of log lines, as ordered; empty means the configuration's.
    """

    pending: int
    brokered: int
    stored: int
    dead: int
    oldest_s: float
    bytes: int
    max_bytes: int
    epoch: str
    events: int
    alarms: tuple[str, ...]
    paused: bool
    level: str


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What became of rows that were sent.

    Attributes:
        brokered: rows the broker took.
        stored: runs of rows, by epoch, that a collector has stored.
        refused: rows that will never be stored, with the reason.
        again: rows to be sent once more.
    """

    brokered: tuple[Key, ...] = ()
    stored: dict[str, tuple[Range, ...]] = {}
    refused: tuple[tuple[str, int, str], ...] = ()
    again: tuple[Key, ...] = ()


class EventRow(NamedTuple):
    """Something the centre should know; `ranges` are rows of `epoch` that were given up."""

    id: int
    kind: str
    at_ms: int
    detail: str
    epoch: str | None
    ranges: tuple[Range, ...]


class Request(msgspec.Struct, frozen=True):
    """A command that the uplink has handed over."""

    id: str
    verb: str
    argument: str


class Finished(msgspec.Struct, frozen=True):
    """What became of a command."""

    id: str
    verb: str
    ok: bool
    detail: str
