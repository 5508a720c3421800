"""A tiny collector in memory, and a device's uplink beside it, stepped by one thread."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, MqttConfig, OutboxConfig
from agent.errors import MessageError
from agent.mqtt import Link, Message, Online, Session, Will
from agent.outbox import Outbox
from agent.protocol import (
    VERBS,
    Answer,
    CollectorState,
    Event,
    Receipt,
    Refusal,
    ResultMessage,
    Resync,
    Status,
    collector_topic,
    decode,
    device_topic,
    encode,
    ranges,
)
from agent.uplink import Uplink

WAIT_S = 20.0
KINDS = {"result": ResultMessage, "resync": Resync, "status": Status, "event": Event, "answer": Answer}

Key = tuple[str, str, int]

_numbers = itertools.count()


class SetClock(Clock):
    """A clock that a test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.wall = 1_800_000_000_000

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> int:
        return self.wall


class Centre:
    """Stores what devices send, in memory, and confirms it as a collector does.

    Attributes:
        rows: what is stored, and its digest.
        raw: keys of all results that came, in order, with doubles.
        heard: every message of a kind, in order.
        bodies: every payload that came.
        confirms: whether it sends receipts.
        forgets: it loses results on their way, as a broker whose queue flows over.
        refuses: why it refuses a row, instead of storing it.
        deaf: whether it takes no messages from the broker.
    """

    def __init__(self, mqtt: MqttConfig, *, name: str = "centre", expiry_s: int = 600) -> None:
        self.rows: dict[Key, str] = {}
        self.raw: list[Key] = []
        self.results: list[ResultMessage] = []
        self.heard: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        self.bodies: list[bytes] = []
        self.confirms = True
        self.forgets = False
        self.refuses: dict[int, str] = {}
        self.deaf = False
        self.unknown = 0
        self._mqtt = mqtt
        self.name = name
        self._run = f"{random.getrandbits(64):x}"
        self._to_say: list[tuple[str, bytes, bool]] = []
        session = Session(
            client_id=name,
            subscriptions=tuple(device_topic(mqtt.topic_prefix, "+", kind) for kind in KINDS),
            expiry_s=expiry_s,
            receive_maximum=100,
            manual_ack=True,
            max_packet_bytes=1 << 21,
            window=1000,
            retry_max_s=0.1,
        )
        self.link = Link(mqtt, session, will=lambda: Will(self._topic, self._state(False)))

    @property
    def _topic(self) -> str:
        return collector_topic(self._mqtt.topic_prefix, self.name)

    def _state(self, online: bool) -> bytes:
        return encode(CollectorState(collector=self.name, online=online, session=self._run))

    def announce(self, online: bool = True) -> None:
        """Tell devices whether results are taken."""
        self._to_say.append((self._topic, self._state(online), True))

    def restart(self) -> None:
        """Come back as another run, knowing all rows."""
        self._run = f"{random.getrandbits(64):x}"
        self.announce()

    def say(self, topic: str, body: bytes, *, retain: bool = False) -> None:
        """Publish something."""
        self._to_say.append((topic, body, retain))

    def tick(self, timeout_s: float = 0.0) -> None:
        """Take what came and confirm it."""
        if self.deaf:
            return
        self._stored: dict[tuple[str, str], list[int]] = {}
        receipts: list[Receipt] = []
        messages = []
        for event in self.link.tick(timeout_s):
            if isinstance(event, Online):
                self.announce()
            elif isinstance(event, Message):
                messages.append(event)
                receipts += self._take(event)
        for (device, epoch), seqs in self._stored.items():
            receipts.append(Receipt(collector=self.name, device=device, epoch=epoch, stored=ranges(seqs)))
        for receipt in receipts:
            self.say(device_topic(self._mqtt.topic_prefix, receipt.device, "receipt"), encode(receipt))
        while self._to_say and self.link.room:
            topic, body, retain = self._to_say.pop(0)
            self.link.publish(topic, body, retain=retain)
        for message in messages:
            self.link.ack(message)

    def _take(self, message: Message) -> list[Receipt]:
        kind = message.topic.rpartition("/")[2]
        if kind == "result" and self.forgets:
            return []
        self.bodies.append(message.body)
        try:
            told = decode(KINDS[kind], message.body)
        except (MessageError, KeyError):
            self.unknown += 1
            return []
        self.heard[kind].append(told)
        if isinstance(told, ResultMessage):
            return self._store(told)
        return self._answer(told) if isinstance(told, Resync) else []

    def _store(self, row: ResultMessage) -> list[Receipt]:
        key = (row.device, row.epoch, row.seq)
        self.raw.append(key)
        if row.seq in self.refuses:
            refused = (Refusal(row.seq, self.refuses[row.seq]),)  # type: ignore[arg-type]
            return [Receipt(collector=self.name, device=row.device, epoch=row.epoch, refused=refused)]
        self.rows.setdefault(key, row.sha256)
        if self.confirms:
            self._stored.setdefault((row.device, row.epoch), []).append(row.seq)
        return []

    def _answer(self, asked: Resync) -> list[Receipt]:
        seqs = [
            seq
            for device, epoch, seq in self.rows
            if (device, epoch) == (asked.device, asked.epoch) and any(a <= seq <= b for a, b in asked.waiting)
        ]
        return [Receipt(collector=self.name, device=asked.device, epoch=asked.epoch, stored=ranges(seqs))]


class Site:
    """One device: its outbox and its uplink."""

    def __init__(self, state_dir: Path, mqtt: MqttConfig, *, device: str = "dev-1", **outbox: Any) -> None:
        self.config = AgentConfig(
            device=device,
            state_dir=str(state_dir),
            mqtt=mqtt,
            outbox=OutboxConfig(min_free_mb=0, ballast_mb=0, **outbox),
        )
        self.state_dir = state_dir
        self.worker = Outbox(state_dir, self.config.outbox, role="worker")
        self.outbox = Outbox(state_dir, self.config.outbox, role="uplink")
        self.uplink = Uplink(self.config, self.outbox)
        self.submitted: dict[int, str] = {}
        self.uplink.start()

    def add(self, count: int = 1, text: str = "Invoice") -> list[int]:
        """Put results into the outbox; returns their numbers."""
        seqs = []
        for _ in range(count):
            key = f"{random.getrandbits(256):064x}"
            result = page(key, text)
            seq = self.worker.accept(key, result)
            assert seq is not None
            self.submitted[seq] = key
            seqs.append(seq)
        return seqs

    def topic(self, kind: str) -> str:
        """Return one of the device's topics."""
        assert self.config.mqtt is not None
        return device_topic(self.config.mqtt.topic_prefix, self.config.device, kind)

    @property
    def state(self) -> dict[str, Any]:
        """What the state file says."""
        return json.loads((self.state_dir / "uplink.json").read_bytes())

    def restart(self) -> None:
        """Begin anew after what a kill -9 leaves: the connection breaks, nothing in memory survives."""
        self.uplink._link.drop("killed")
        self.uplink._link.tick(0.0)
        self.outbox.close()
        self.outbox = Outbox(self.state_dir, self.config.outbox, role="uplink")
        self.uplink = Uplink(self.config, self.outbox)
        self.uplink.start()

    def close(self) -> None:
        """End in order."""
        self.uplink.stop(0.5)
        self.outbox.close()
        self.worker.close()


def page(key: str, *texts: str) -> bytes:
    """Return a result as the worker makes them."""
    lines = [
        {"text": text, "score": 0.9, "quad": [[5, y], [90, y], [90, y + 8], [5, y + 8]], "box_score": 0.8}
        for y, text in zip(range(10, 1000, 10), texts, strict=False)
    ]
    named = {"image": "scan.png", "width": 100, "height": 100, "key": key, "source": "dock", "taken_at": 1.5}
    return msgspec.json.encode({"schema": 1, **named, "lines": lines})


def run(*parts: Site | Centre, until: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Step all of them until something has happened."""
    end = time.monotonic() + wait_s
    while not until():
        assert time.monotonic() < end, f"waited in vain: {[p.state for p in parts if isinstance(p, Site)]}"
        for part in parts:
            if isinstance(part, Site):
                part.uplink.tick(0.02)
            else:
                part.tick(0.0)


def step(*parts: Site | Centre, for_s: float) -> None:
    """Step all of them for some time."""
    end = time.monotonic() + for_s
    with contextlib.suppress(AssertionError):
        run(*parts, until=lambda: time.monotonic() >= end)


def broker_settings(port: int, **more: Any) -> MqttConfig:
    """Return settings for a broker of loopback, without TLS, below a prefix that no other test uses."""
    prefix = f"test/{next(_numbers)}"
    impatient = {"retry_max_s": 0.1, "receipt_s": 0.3, "commands": VERBS, "topic_prefix": prefix}
    return MqttConfig(host="127.0.0.1", port=port, tls=False, **{**impatient, **more})


@contextlib.contextmanager
def pair(port: int, state_dir: Path, **more: Any) -> Iterator[tuple[Site, Centre]]:
    """Give a device and a collector of a broker, with names that no other test uses."""
    config = broker_settings(port, **more)
    number = next(_numbers)
    site, centre = Site(state_dir, config, device=f"dev-{number}"), Centre(config, name=f"centre-{number}")
    with closing(site, centre):
        yield site, centre


@contextlib.contextmanager
def closing(*parts: Site | Centre) -> Iterator[None]:
    """Close devices and collectors at the end."""
    try:
        yield
    finally:
        for part in parts:
            if isinstance(part, Site):
                part.close()
            else:
                part.link.close(0.2)


def account(centre: Centre, *sites: Site, **more: Any) -> dict[str, Any]:
    """Return what became of every row that was accepted, as one JSON object, and print it."""
    accepted = {(site.config.device, key) for site in sites for key in site.submitted.values()}
    stored: dict[tuple[str, str], int] = {}
    for row in {(r.device, r.epoch, r.seq): r for r in centre.heard["result"]}.values():
        name = (row.device, json.loads(bytes(row.result))["key"])
        stored[name] = stored.get(name, 0) + 1
    told = {
        "submitted": len(accepted),
        "accepted": len(accepted),
        "stored": len(stored),
        "lost": len(accepted - stored.keys()),
        "unexpected": len(stored.keys() - accepted),
        "duplicated": sum(stored.values()) - len(stored),
        "duplicated_raw": len(centre.raw) - len(centre.rows),
        "recovered": 0,
        **more,
    }
    print(json.dumps(told))
    return told
