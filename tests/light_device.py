"""A device that is little more than MQTT: rows in memory, kept until a collector has them. For tests of the centre."""

from __future__ import annotations

import json
import select
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from agent.errors import MessageError
from agent.protocol import (
    CollectorState,
    Receipt,
    ResultMessage,
    Resync,
    collector_topic,
    decode,
    device_topic,
    encode,
    ranges,
    sha256,
)

PREFIX = "ocr/v1"


def page(text: str, **more: Any) -> bytes:
    """Return a result with one line."""
    lines = [{"text": text, "score": 0.99, "quad": [[0, 0], [9, 0], [9, 9], [0, 9]], "box_score": 0.9}]
    said = {"schema": 1, "image": "a.png", "width": 9, "height": 9, "lines": lines, "key": "k" * 64, "source": "inbox"}
    return json.dumps({**said, **more}, ensure_ascii=False).encode()


class LightDevice:
    """Sends rows while a collector is online, again when receipts do not come, and asks when a collector is new."""

    def __init__(self, name: str, port: int, *, window: int = 20, receipt_s: float = 2.0, hello: bool = True) -> None:
        self.name = name
        self.epoch = uuid.uuid4().hex
        self.stored: set[int] = set()
        self.refused: dict[int, str] = {}
        self.receipts: list[Receipt] = []
        self.lags_s: list[float] = []
        self.keep_receipts = True
        self.online: dict[str, str] = {}  # sessions of the collectors that are online
        self._rows: dict[int, bytes] = {}
        self._fresh: deque[int] = deque()
        self._sent: dict[int, float] = {}
        self._first_sent: dict[int, float] = {}
        self._port, self._window, self._receipt_s, self._hello = port, window, receipt_s, hello
        self._client: Client | None = None
        self._retry_at = 0.0
        self._asked_at = 0.0
        self.unacknowledged = 0
        self._subscribed = False

    def put(self, result: bytes | None = None) -> int:
        """Add a row; returns its number."""
        seq = len(self._rows) + 1
        self._rows[seq] = result if result is not None else page(f"{self.name} row {seq}")
        self._fresh.append(seq)
        return seq

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def done(self) -> bool:
        return len(self.stored) + len(self.refused) >= len(self._rows)

    def body(self, row: int, /, **changes: Any) -> bytes:
        """Return a row as it is sent."""
        result = self._rows[row]
        message = ResultMessage(
            device=self.name,
            epoch=self.epoch,
            seq=row,
            sha256=sha256(result),
            sent_ms=int(time.time() * 1000),
            created_ms=int(time.time() * 1000),
            historical=False,
            result=msgspec.Raw(result),
        )
        return encode(msgspec.structs.replace(message, **changes))

    def publish(self, kind: str, body: bytes, *, retain: bool = False) -> None:
        """Publish anything below this device's name."""
        assert self._client is not None
        if self._client.publish(device_topic(PREFIX, self.name, kind), body, qos=1, retain=retain).rc == 0:
            self.unacknowledged += 1

    def ask(self, *runs: tuple[int, int], epoch: str = "") -> None:
        """Ask which rows are stored."""
        self.publish("resync", encode(Resync(device=self.name, epoch=epoch or self.epoch, waiting=runs)))

    # -------------------------------------------------------------------------------------------- the link

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1."""
        found = self._client.socket() if self._client is not None else None
        return found.fileno() if found is not None else -1

    @property
    def connected(self) -> bool:
        """Whether it has subscribed."""
        return self._client is not None and self._subscribed

    def step(self, wait_s: float = 0.0) -> None:
        """Connect, read, send: what can be done now."""
        now = time.monotonic()
        if self._client is None:
            if now >= self._retry_at:
                self._connect(now)
            return
        if self.fileno() < 0:
            self._lose(now)
            return
        if select.select([self.fileno()], [], [], wait_s)[0]:
            self.read()
        self.send(now)

    def read(self) -> None:
        """Read what has come."""
        client = self._client
        if client is not None and client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose(time.monotonic())

    def send(self, now: float) -> None:
        """Send what is due."""
        client = self._client
        if client is None or client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._lose(now)
            return
        if self._subscribed and self.online:
            self._send_rows(now)
        if client.want_write():
            client.loop_write()

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client = None

    def _connect(self, now: float) -> None:
        client = Client(CallbackAPIVersion.VERSION2, client_id=self.name, protocol=MQTTProtocolVersion.MQTTv5)
        client.max_inflight_messages = 65_535
        client.on_connect = self._on_connect
        client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        client.on_message = self._on_message
        client.on_publish = lambda *_: setattr(self, "unacknowledged", max(0, self.unacknowledged - 1))
        try:
            client.connect("127.0.0.1", self._port, keepalive=60)
        except OSError:
            self._retry_at = now + 0.2
            return
        self._client = client

    def _lose(self, now: float) -> None:
        self._client, self._subscribed, self.unacknowledged = None, False, 0
        self.online.clear()
        self._retry_at = now + 0.1

    def _on_connect(self, client: Client, *_: Any) -> None:
        client.subscribe([(device_topic(PREFIX, self.name, "receipt"), 1), (collector_topic(PREFIX, "+"), 1)])

    def _on_message(self, client: Client, userdata: object, message: Any) -> None:
        try:
            if message.topic.endswith("/state"):
                self._hear(decode(CollectorState, message.payload))
            else:
                self._note(decode(Receipt, message.payload))
        except MessageError as error:
            raise AssertionError(f"the centre sent {message.payload[:100]!r}") from error

    def _hear(self, state: CollectorState) -> None:
        if not state.online:
            self.online.pop(state.collector, None)
        elif self.online.get(state.collector) != state.session:
            self.online[state.collector] = state.session
            if self._hello and (waiting := [seq for seq in self._sent if seq not in self.stored]):
                self.ask(*ranges(waiting))

    def _note(self, receipt: Receipt) -> None:
        if self.keep_receipts:
            self.receipts.append(receipt)
        if receipt.epoch != self.epoch:
            return
        now = time.monotonic()
        for first, last in receipt.stored:
            for seq in range(first, last + 1):
                if seq not in self.stored and seq in self._rows:
                    self.stored.add(seq)
                    self.lags_s.append(now - self._first_sent.pop(seq, now))
                self._sent.pop(seq, None)
        for refusal in receipt.refused:
            self.refused[refusal.seq] = refusal.reason
            self._sent.pop(refusal.seq, None)

    def _send_rows(self, now: float) -> None:
        if self._sent and now - self._asked_at > self._receipt_s / 4:
            self._asked_at = now
            for seq in [seq for seq, at in self._sent.items() if now - at > self._receipt_s]:
                del self._sent[seq]
                self._fresh.append(seq)
        while self._fresh and len(self._sent) < self._window and self.unacknowledged < self._window:
            seq = self._fresh.popleft()
            if seq in self.stored or seq in self.refused:
                continue
            self._sent[seq] = now
            self._first_sent.setdefault(seq, now)
            self.publish("result", self.body(seq))


def until(happened: Callable[[], bool], *steps: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Step until something holds.

    Raises:
        AssertionError: it does not in time.
    """
    end = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        for step in steps:
            step()
