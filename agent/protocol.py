"""The messages between a device and the centre: topics, payloads, limits. docs/PROTOCOL.md is the same in words.

Everything is MQTT 5 with QoS 1 and JSON. Topics, below the configured prefix:

    devices/DEVICE/result     device -> centre    one row of the outbox
    devices/DEVICE/resync     device -> centre    which rows still wait for a receipt
    devices/DEVICE/receipt    centre -> device    which rows are stored, and which are refused
    devices/DEVICE/status     device -> all       retained birth, state and, as the will, death
    devices/DEVICE/event      device -> all       an alarm, or rows that are gone
    devices/DEVICE/command    centre -> device    a command of the allow-list
    devices/DEVICE/answer     device -> centre    what became of a command
    collectors/NAME/state     collector -> all    retained: online or, as the will, offline
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, Literal, TypeVar

import msgspec

from agent.errors import MessageError

SCHEMA = 1

DEVICE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"  # "$" would let a line break follow
"""Names of devices and collectors: no separator or wildcard of topics, nothing that a path could take for its own."""

MAX_RESULT_BYTES = 1 << 20
MAX_SMALL_BYTES = 64 << 10
"""The largest result, and the largest message of any other kind, that either side sends or looks at."""
MAX_RANGES = 700  # so that the largest receipt fits (test_protocol.py)
LARGEST = (1 << 53) - 1
"""What every JSON reader keeps exactly."""

Name = Annotated[str, msgspec.Meta(pattern=DEVICE_PATTERN)]
Epoch = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Seq = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
Range = tuple[Seq, Seq]
"""First and last sequence number of a run, both included."""
Ranges = Annotated[tuple[Range, ...], msgspec.Meta(max_length=MAX_RANGES)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
"""Unix time, UTC."""
Count = Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
Schema = Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class ResultMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the outbox.

    Attributes:
        device: who sends; equal to the topic's.
        epoch: one life of the device's database; (device, epoch, seq) names the row for ever.
        seq: grows within an epoch, gaps allowed.
        sha256: of the bytes of `result` as they stand in the message.
        sent_ms: when it was sent.
        created_ms: when it was accepted, by the device's clock.
        historical: it waited, so it must not overwrite anything newer.
        result: the page, in the form of `edge-ocr read --json`, masked.
    """

    device: Name
    epoch: Epoch
    seq: Seq
    sha256: Sha256
    sent_ms: Milliseconds
    created_ms: Milliseconds
    historical: bool
    result: msgspec.Raw
    schema: Schema = SCHEMA


class Resync(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one epoch that were sent and have no receipt; a collector answers with those it has stored."""

    device: Name
    epoch: Epoch
    waiting: Ranges
    schema: Schema = SCHEMA


class Refusal(msgspec.Struct, frozen=True):
    """A row that will never be stored as it is.

    Attributes:
        seq: the row.
        reason: "conflict": another payload is stored under its key. "invalid": not a message of this form.
    """

    seq: Seq
    reason: Literal["conflict", "invalid"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one epoch that are committed at the centre, and rows that are refused. May be repeated at will."""

    collector: Name
    device: Name
    epoch: Epoch
    stored: Ranges = ()
    refused: Annotated[tuple[Refusal, ...], msgspec.Meta(max_length=MAX_RANGES)] = ()
    schema: Schema = SCHEMA


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Retained state of a device.

    Attributes:
        device: whose.
        online: false in the will and at a planned end.
        session: counts the device's connections; a will with an older one is out of date.
        at_ms: when it was made.
        pending: rows to be sent.
        brokered: rows at the broker without a receipt.
        dead: rows that the centre refused.
        oldest_s: age of the oldest row without a receipt.
        paused: no pages are taken.
        alarms: what someone should look at, one stable word each.
        pages_per_minute: over the last minutes.
        bundle: what reads.
        version: of the agent.
    """

    device: Name
    online: bool
    session: Count
    at_ms: Milliseconds
    pending: Count = 0
    brokered: Count = 0
    dead: Count = 0
    oldest_s: float = 0.0
    paused: bool = False
    alarms: tuple[str, ...] = ()
    pages_per_minute: float = 0.0
    bundle: str = ""
    version: str = ""
    schema: Schema = SCHEMA


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something the centre should know.

    Attributes:
        device: where.
        kind: "gap": rows were given up. "salvage": the database was damaged and replaced. "alarm": see `detail`.
        at_ms: when.
        detail: one line without text of pages.
        epoch: of the rows given up.
        rows: the rows given up.
    """

    device: Name
    kind: Literal["gap", "salvage", "alarm"]
    at_ms: Milliseconds
    detail: Text = ""
    epoch: Epoch | None = None
    rows: Ranges = ()
    schema: Schema = SCHEMA


Verb = Literal["status", "pause", "resume", "reread", "level"]
VERBS: tuple[Verb, ...] = ("status", "pause", "resume", "reread", "level")


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An order to a device. It is refused when its verb is not allowed, when it is retained, old, or known already.

    Attributes:
        id: names the command; the answer carries it, and a second one with the same is not carried out.
        verb: what to do.
        expires_ms: not carried out after this.
        argument: key of the page for "reread"; "debug", "info", "warning" or "error" for "level".
    """

    id: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    verb: Verb
    expires_ms: Milliseconds
    argument: Annotated[str, msgspec.Meta(max_length=200)] = ""
    schema: Schema = SCHEMA


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command, and the state after it."""

    id: str
    ok: bool
    detail: Text
    status: Status
    schema: Schema = SCHEMA


class CollectorState(msgspec.Struct, frozen=True, kw_only=True):
    """Retained state of a collector; devices send nothing while none is online.

    Attributes:
        collector: whose.
        online: false in the will and at a planned end.
        session: names this run of the collector: when it changes, devices ask again for receipts.
    """

    collector: Name
    online: bool
    session: Annotated[str, msgspec.Meta(max_length=64)]
    schema: Schema = SCHEMA


DEVICE_KINDS = ("result", "resync", "receipt", "status", "event", "command", "answer")


def device_topic(prefix: str, device: str, kind: str) -> str:
    """Return a device's topic; device "+" gives the filter for all."""
    return f"{prefix}/devices/{device}/{kind}"


def collector_topic(prefix: str, collector: str) -> str:
    """Return a collector's topic; collector "+" gives the filter for all."""
    return f"{prefix}/collectors/{collector}/state"


def name_in(topic: str, prefix: str) -> str:
    """Return the device or collector a topic is about.

    Raises:
        MessageError: not a topic of this protocol.
    """
    parts = topic[len(prefix) :].split("/") if topic.startswith(f"{prefix}/") else []
    kinds = {"devices": DEVICE_KINDS, "collectors": ("state",)}
    if len(parts) != 4 or parts[3] not in kinds.get(parts[1], ()) or not re.match(DEVICE_PATTERN, parts[2]):
        raise MessageError("not a topic of this protocol")
    return parts[2]


def sha256(result: bytes) -> str:
    """Return the digest that names a result's bytes."""
    return hashlib.sha256(result).hexdigest()


T = TypeVar("T", ResultMessage, Resync, Receipt, Status, Event, Command, Answer, CollectorState)


class _Head(msgspec.Struct):
    schema: Schema = SCHEMA


def encode(message: msgspec.Struct) -> bytes:
    """Return a message as JSON."""
    return msgspec.json.encode(message)


def decode(kind: type[T], body: bytes) -> T:
    """Return the message in a payload.

    Raises:
        MessageError: too large, not of this form, of a newer schema, rows from a higher number to a lower, or a result
            whose digest is another. The error is one short line without recognised text: a result stays unparsed.
    """
    if len(body) > (MAX_RESULT_BYTES if kind is ResultMessage else MAX_SMALL_BYTES):
        raise MessageError(f"{len(body)} bytes are too many")
    try:
        schema = _decoder(_Head).decode(body).schema  # type: ignore[attr-defined]  # first: newer forms may differ
        if schema > SCHEMA:
            raise MessageError(f"schema {schema} is newer than {SCHEMA}")
        message: T = _decoder(kind).decode(body)  # type: ignore[assignment]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a {kind.__name__}: {_one_line(str(error))}") from None
    if isinstance(message, ResultMessage) and sha256(bytes(message.result)) != message.sha256:
        raise MessageError("the digest is not that of the result")
    if any(first > last for first, last in _rows_of(message)):
        raise MessageError(f"not a {kind.__name__}: rows from a higher number to a lower")
    return message


@functools.cache
def _decoder(kind: type) -> msgspec.json.Decoder[object]:
    return msgspec.json.Decoder(kind)


def _rows_of(message: object) -> tuple[Range, ...]:
    if isinstance(message, Receipt):
        return message.stored
    if isinstance(message, Resync):
        return message.waiting
    return message.rows if isinstance(message, Event) else ()


def _one_line(said: str) -> str:
    """Return an error's text fit for a log: a name from a payload may be in it, of any length and any characters."""
    return "".join(c if c.isprintable() else "?" for c in said[:120])


def ranges(seqs: Iterable[int]) -> tuple[Range, ...]:
    """Return the runs that sequence numbers, in any order, form."""
    runs: list[Range] = []
    for seq in sorted(set(seqs)):
        if runs and seq == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return tuple(runs)
