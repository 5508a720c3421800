"""Reads what devices sent to a collector: rows to be stored, questions to be answered, and what is neither."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from agent.collect.tables import Batch, Happening, Reject, Row, Seen
from agent.errors import MessageError
from agent.protocol import (
    SCHEMA,
    Epoch,
    Event,
    Refusal,
    ResultMessage,
    Resync,
    Seq,
    Status,
    decode,
    encode,
    name_in,
    sha256,
)

KINDS = ("result", "resync", "event", "status")
"""Last parts of the topics that a collector reads."""

KEPT_BYTES = 16 << 10
"""So much of a message that cannot be read is kept for someone to look at."""
NAME_LENGTH = 200


class Letter(Protocol):
    """A message from the broker."""

    @property
    def topic(self) -> str:
        """Where it was published."""

    @property
    def body(self) -> bytes:
        """Its payload."""

    @property
    def retain(self) -> bool:
        """Whether the broker had kept it."""


class Refused(msgspec.Struct, frozen=True):
    """A row that is not stored, to be told to the device of the topic it came by."""

    device: str
    epoch: str
    refusal: Refusal


class Reading(msgspec.Struct, frozen=True):
    """What messages said."""

    batch: Batch
    resyncs: tuple[Resync, ...]
    refused: tuple[Refused, ...]


class _Identity(msgspec.Struct):
    epoch: Epoch
    seq: Seq
    schema: int = SCHEMA


class Inbox:
    """Reads messages for one collector."""

    def __init__(self, prefix: str, collector: str) -> None:
        """Make an inbox.

        Args:
            prefix: topics begin with it.
            collector: name of the collector, for the rows.
        """
        self._prefix = prefix
        self._collector = collector

    def read(self, letters: Iterable[Letter], now_ms: int) -> Reading:
        """Return what messages say, in their order. Nothing is raised for anything in them."""
        rows: list[Row] = []
        rejects: list[Reject] = []
        happenings: list[Happening] = []
        seen: list[Seen] = []
        resyncs: dict[Resync, None] = {}
        refused: list[Refused] = []
        for letter in letters:
            if not letter.body and letter.topic.endswith("/status"):
                continue  # somebody takes a retained message away
            try:
                match self._open(letter):
                    case ResultMessage() as message:
                        rows.append(self._row(message, now_ms))
                    case Resync() as message:
                        resyncs[message] = None
                    case Event() as message:
                        happenings.append(self._happening(message, letter.body, now_ms))
                    case Status() as message:
                        seen.append(_seen(message, None if letter.retain else now_ms))
            except MessageError as error:
                rejects.append(self._reject(letter, str(error), now_ms))
                refused.extend(self._refusal(letter))
        batch = Batch(rows=tuple(rows), rejects=tuple(rejects), happenings=tuple(happenings), seen=tuple(seen))
        return Reading(batch, tuple(resyncs), tuple(refused))

    def _open(self, letter: Letter) -> ResultMessage | Resync | Event | Status:
        device = name_in(letter.topic, self._prefix)
        kind = letter.topic.rpartition("/")[2]
        message: ResultMessage | Resync | Event | Status
        if kind == "result":
            message = decode(ResultMessage, letter.body)
        elif kind == "resync":
            message = decode(Resync, letter.body)
        elif kind == "event":
            message = decode(Event, letter.body)
        else:
            message = decode(Status, letter.body)
        if message.device != device:  # the broker's ACL vouches for the topic, not for the payload
            raise MessageError("the payload names another device than the topic")
        return message

    def _row(self, message: ResultMessage, now_ms: int) -> Row:
        body = bytes(message.result)
        page = _page(body)
        lines = page.get("lines")
        return Row(
            device=message.device,
            epoch=message.epoch,
            seq=message.seq,
            sha256=message.sha256,
            historical=message.historical,
            created_ms=message.created_ms,
            received_ms=now_ms,
            collector=self._collector,
            source=_name(page.get("source")),
            page=_name(page.get("key")),
            lines=len(lines) if isinstance(lines, list) else 0,
            result=body.decode(),
        )

    def _happening(self, message: Event, body: bytes, now_ms: int) -> Happening:
        return Happening(
            device=message.device,
            at_ms=message.at_ms,
            sha256=sha256(body),
            kind=message.kind,
            detail=message.detail.replace("\0", "\ufffd"),
            epoch=message.epoch,
            rows=msgspec.json.encode(message.rows).decode(),
            received_ms=now_ms,
            collector=self._collector,
        )

    def _reject(self, letter: Letter, reason: str, now_ms: int) -> Reject:
        return Reject(
            topic=letter.topic,
            reason=reason.replace("\0", "\ufffd"),
            size_bytes=len(letter.body),
            body=letter.body[:KEPT_BYTES],
            received_ms=now_ms,
            collector=self._collector,
        )

    def _refusal(self, letter: Letter) -> tuple[Refused, ...]:
        """Return the refusal of a result whose row can be told; none for a newer form, which an update may read."""
        try:
            device = name_in(letter.topic, self._prefix)
            row = msgspec.json.decode(letter.body, type=_Identity)
        except (MessageError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return ()
        if row.schema > SCHEMA or not letter.topic.endswith("/result"):
            return ()
        return (Refused(device, row.epoch, Refusal(row.seq, "invalid")),)


def _page(body: bytes) -> dict[str, Any]:
    """Return a result with every part of it parsed: what a database would refuse is refused here.

    Raises:
        MessageError: not an object in JSON.
    """
    try:
        body.decode()
        page = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MessageError("the result is not JSON throughout") from None
    if not isinstance(page, dict):
        raise MessageError("the result is not an object")
    return page


def _name(value: object) -> str:
    return value[:NAME_LENGTH].replace("\0", "\ufffd") if isinstance(value, str) else ""


def _seen(message: Status, seen_ms: int | None) -> Seen:
    return Seen(
        device=message.device,
        online=message.online,
        session=message.session,
        at_ms=message.at_ms,
        seen_ms=seen_ms,
        status=encode(message).decode(),
    )
