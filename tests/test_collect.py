"""The collector against a real broker; what needs a particular moment, against a scripted one."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import Clock
from agent.collect import Collector
from agent.collect import collector as collect
from agent.collect.inbox import Inbox
from agent.collect.stores import SqliteStore
from agent.collect.tables import Batch, Held, Row, StoreError
from agent.config import BrokerConfig, CollectorConfig
from agent.errors import MessageError
from agent.mqtt import Limits, Link, Message, Offline, Online, Session
from agent.protocol import CollectorState, Event, Receipt, Status, decode, encode, sha256
from tests.broker import Broker
from tests.command import EDGE_OCR, ROOT, run
from tests.light_device import LightDevice, page, until

EPOCH = "e" * 32


@pytest.fixture(autouse=True, scope="module")
def prompt() -> Iterator[None]:
    """Links connect at once: the pauses are another test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.mqtt.link.FIRST_PAUSE_S", 0.02)
        yield


@pytest.fixture(scope="module")
def broker(tmp_path_factory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker") / "b") as started:
        yield started


def settings_of(port: int, path: Path, **more: Any) -> CollectorConfig:
    mqtt = BrokerConfig(host="127.0.0.1", port=port, tls=False, keepalive_s=5)
    return CollectorConfig(**{"name": f"c-{path.name}"[:40], "mqtt": mqtt, "store": f"sqlite:{path}/c.db", **more})


class Centre:
    """A collector in this process, and a device to talk to it."""

    def __init__(self, port: int, path: Path, **more: Any) -> None:
        self.path = path / "c.db"
        self.rows: list[Row] = []
        config = settings_of(port, path, **more)
        self.collector = Collector(config, SqliteStore(self.path), on_row=self.rows.append)
        self.device = LightDevice(f"box-{path.name}"[:40], port)
        self.collector.start()
        self.until(lambda: self.device.connected and config.name in self.device.online)

    def until(self, happened: Any, *steps: Any) -> None:
        until(happened, lambda: self.collector.tick(0.01), self.device.step, *steps)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()

    def close(self) -> None:
        self.collector.stop(1.0)
        self.device.close()


@pytest.fixture
def centre(broker, tmp_path) -> Iterator[Centre]:
    made = Centre(broker.port, tmp_path)
    yield made
    made.close()


# -------------------------------------------------------------------------------------------- what it is for


def test_rows_are_stored_and_confirmed(centre):
    for _ in range(300):
        centre.device.put()
    centre.until(lambda: centre.device.done)
    assert centre.device.stored == set(range(1, 301))
    assert centre.sql("SELECT COUNT(*), COUNT(DISTINCT seq), MIN(lines) FROM results") == [(300, 300, 1)]
    ((device, epoch, digest, source, key, result),) = centre.sql(
        "SELECT device, epoch, sha256, source, page, result FROM results WHERE seq = 7"
    )
    assert (device, epoch) == (centre.device.name, centre.device.epoch)
    assert (source, key, digest) == ("inbox", "k" * 64, sha256(result.encode()))
    assert [row.seq for row in centre.rows] == sorted(centre.device.stored)


def test_a_second_delivery_is_confirmed_and_not_stored_again(centre):
    seq = centre.device.put()
    centre.until(lambda: centre.device.done)
    told = len(centre.device.receipts)
    centre.device.publish("result", centre.device.body(seq))
    centre.until(lambda: len(centre.device.receipts) > told)
    assert centre.device.receipts[-1].stored == ((seq, seq),)
    assert centre.sql("SELECT COUNT(*) FROM results") == [(1,)]
    assert len(centre.rows) == 1


def test_another_content_under_a_taken_key_is_refused_and_said_loudly(centre, caplog):
    seq = centre.device.put(page("first secret"))
    centre.until(lambda: centre.device.done)
    other = page("second secret")
    body = centre.device.body(seq, result=msgspec.Raw(other), sha256=sha256(other))
    with caplog.at_level(logging.DEBUG):
        centre.device.publish("result", body)
        centre.until(lambda: bool(centre.device.refused))
    assert centre.device.refused == {seq: "conflict"}
    assert centre.sql("SELECT sha256 FROM results") == [(sha256(page("first secret")),)]
    assert centre.sql("SELECT sha256 FROM conflicts") == [(sha256(other),)]
    assert [record.levelname for record in caplog.records if "is taken" in record.message] == ["ERROR"]
    assert "secret" not in caplog.text


def test_a_device_that_asks_gets_the_rows_that_are_stored(centre):
    for _ in range(10):
        centre.device.put()
    centre.until(lambda: centre.device.done)
    centre.device.receipts.clear()
    centre.device.ask((3, 5), (8, 4000))
    centre.until(lambda: bool(centre.device.receipts))
    assert centre.device.receipts[0].stored == ((3, 5), (8, 10))
    centre.device.ask((1, 9), epoch="f" * 32)
    centre.device.ask((1, 1))
    centre.until(lambda: len(centre.device.receipts) > 1)
    assert centre.device.receipts[1].stored == ((1, 1),)  # nothing was said about rows that are not there


def test_status_and_events_are_kept(centre):
    status = Status(device=centre.device.name, online=True, session=3, at_ms=5, pending=2, bundle="v4")
    event = Event(device=centre.device.name, kind="gap", at_ms=9, detail="12 rows", epoch=EPOCH, rows=((1, 12),))
    centre.device.publish("status", encode(status), retain=True)
    centre.device.publish("event", encode(event))
    centre.device.publish("event", encode(event))
    centre.until(lambda: centre.sql("SELECT 1 FROM events") and centre.sql("SELECT 1 FROM devices"))
    assert centre.sql("SELECT kind, at_ms, detail, epoch, rows FROM events") == [
        ("gap", 9, "12 rows", EPOCH, "[[1,12]]")
    ]
    ((online, session, kept),) = centre.sql("SELECT online, session, status FROM devices WHERE seen_ms > 0")
    assert (online, session, json.loads(kept)["bundle"]) == (1, 3, "v4")
    centre.device.publish("status", b"", retain=True)


def test_retained_states_are_read_at_the_next_start(broker, tmp_path):
    (tmp_path / "one").mkdir()
    device = LightDevice("box-retained", broker.port)
    until(lambda: device.connected, device.step)
    device.publish("status", encode(Status(device=device.name, online=True, session=1, at_ms=5)), retain=True)
    centre = Centre(broker.port, tmp_path / "one", group="all")
    centre.until(lambda: centre.sql("SELECT device FROM devices") == [(device.name,)], device.step)
    assert centre.sql("SELECT seen_ms FROM devices") == [(None,)]  # the broker does not say since when it has it
    device.publish("status", b"", retain=True)
    until(lambda: device.unacknowledged == 0, device.step)
    device.close()
    centre.close()


# --------------------------------------------------------------------------------------- what is not a message


def test_what_is_no_message_is_put_aside_and_stops_nothing(centre, caplog):
    device = centre.device
    seq = device.put(page("fine"))
    body = device.body(seq)
    centre.until(lambda: device.done)
    wrong = [
        b"",
        b"\xff\xfe secret",
        b"[" * 100_000,
        b'{"device": "x"}',
        b"null",
        body[:-1],
        body.replace(b"fine", b"five"),  # the digest is another
        device.body(seq, device="box-of-somebody-else"),
        device.body(seq, seq=901, result=msgspec.Raw(b'"text"'), sha256=sha256(b'"text"')),
        device.body(seq, seq=902, result=msgspec.Raw(b'{"a": "\xff"}'), sha256=sha256(b'{"a": "\xff"}')),
        device.body(seq, seq=903, sha256="0" * 64),
        device.body(seq, seq=904, schema=2),
        device.body(seq, epoch="no epoch"),
        device.body(seq, seq=-1),
    ]
    with caplog.at_level(logging.DEBUG):
        for one in wrong:
            device.publish("result", one)
        device.publish("resync", b'{"device": 1}')
        device.publish("event", b"secret")
        device.publish("status", b"{}")
        last = device.put()
        centre.until(lambda: last in device.stored)
    assert device.refused == {seq: "invalid", 901: "invalid", 902: "invalid", 903: "invalid"}
    assert centre.sql("SELECT COUNT(*), MAX(LENGTH(body)) FROM rejects") == [(len(wrong) + 3, 16 << 10)]
    assert centre.sql("SELECT size_bytes FROM rejects WHERE id = 3") == [(100_000,)]
    assert centre.sql("SELECT COUNT(*) FROM results") == [(2,)]
    assert "rejected" in caplog.text
    assert "secret" not in caplog.text


def test_numbers_and_texts_that_databases_do_not_hold_are_made_to_fit(centre):
    device = centre.device
    odd = page("x", source="a\0b" * 200, key=7, lines="none")
    device.put(odd)
    huge = (1 << 53) - 1
    device.publish("result", device.body(1, created_ms=huge, seq=huge))
    device.publish("result", device.body(1, created_ms=10**25, seq=5))
    device.publish("event", encode(Event(device=device.name, kind="alarm", at_ms=huge, detail="a\0b")))
    device.publish("status", encode(Status(device=device.name, online=True, session=huge, at_ms=huge)))
    centre.until(lambda: {1, huge} <= {seq for r in device.receipts for run in r.stored for seq in run})
    centre.until(lambda: bool(centre.sql("SELECT 1 FROM devices")))
    assert centre.sql("SELECT LENGTH(source), page, lines FROM results WHERE seq = 1") == [(200, "", 0)]
    assert centre.sql(f"SELECT created_ms FROM results WHERE seq = {huge}") == [(huge,)]
    assert device.refused == {5: "invalid"}
    assert centre.sql("SELECT detail FROM events") == [("a\ufffdb",)]


class Letter(msgspec.Struct):
    topic: str
    body: bytes
    retain: bool = False


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(
    ("device", "epoch", "seq", "sha256", "result", "waiting", "kind", "schema", "session", "rows")
)


@settings(max_examples=300)
@given(
    topic=st.sampled_from(("result", "resync", "event", "status")).map(lambda kind: f"ocr/v1/devices/box/{kind}")
    | st.text(max_size=20),
    body=st.binary(max_size=60) | st.dictionaries(_FIELDS, _VALUES, max_size=6).map(lambda v: json.dumps(v).encode()),
)
def test_nothing_that_a_device_sends_raises(topic, body):
    reading = Inbox("ocr/v1", "c").read([Letter(topic, body)], 5)
    batch = reading.batch
    counted = len(batch.rows) + len(batch.rejects) + len(batch.happenings) + len(batch.seen) + len(reading.resyncs)
    assert counted == (0 if not body and topic.endswith("/status") else 1)
    assert not reading.refused or batch.rejects


# ------------------------------------------------------------------------------------- the moments that matter


class ScriptedLink:
    """Plays what is put into it, and notes what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.said: list[tuple[str, Any]] = []
        self.room = 100
        self.online = False

    def tick(self, timeout_s: float) -> list[Any]:
        events, self.events = self.events, []
        for event in events:
            self.online = isinstance(event, Online) or (self.online and not isinstance(event, Offline))
        return events

    def publish(self, topic: str, body: bytes, *, retain: bool = False) -> int | None:
        if not self.room or not self.online:
            return None
        self.room -= 1
        if topic.endswith("/state"):
            assert retain
            self.said.append(("state", decode(CollectorState, body).online))
        else:
            receipt = decode(Receipt, body)
            self.said.append(("receipt", receipt.stored or receipt.refused))
        return 1

    def ack(self, message: Message) -> None:
        self.said.append(("ack", message.mid))

    def close(self, timeout_s: float = 2.0) -> None:
        self.said.append(("close", None))

    def drop(self, reason: str) -> None:
        self.said.append(("drop", None))
        self.events.append(Offline(reason))


class ScriptedStore:
    """Keeps keys, or fails as told."""

    def __init__(self) -> None:
        self.failing = False
        self.keys: set[Any] = set()
        self.sizes: list[int] = []
        self.on_put: Any = lambda: None

    def ready(self) -> None:
        if self.failing:
            raise StoreError("away")

    def put(self, batch: Batch) -> tuple[str, ...]:
        self.ready()
        self.sizes.append(len(batch.rows))
        told = tuple("known" if row.key in self.keys else "new" for row in batch.rows)
        self.keys |= {row.key for row in batch.rows}
        self.on_put()
        return told

    def held(self, device: str, epoch: str, asked: Any) -> Held:
        self.ready()
        return Held(tuple(asked), ())

    def close(self) -> None:
        pass


class SteppedClock(Clock):
    """Moves when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Scripted:
    """A collector of which every step is told."""

    def __init__(self, **more: Any) -> None:
        self.link, self.store, self.clock = ScriptedLink(), ScriptedStore(), SteppedClock()
        mqtt = BrokerConfig(host="none", tls=False)
        config = CollectorConfig(name="c", mqtt=mqtt, **more)
        self.collector = Collector(config, self.store, broker=self.link, clock=self.clock)  # type: ignore[arg-type]
        self.collector.start()
        self.mid = 0

    def connect(self) -> None:
        self.link.events.append(Online(Limits(window=100)))
        self.step()

    def result(self, seq: int, device: str = "box") -> Message:
        body = {"device": device, "epoch": EPOCH, "seq": seq, "sha256": sha256(b"{}"), "result": {}}
        body |= {"sent_ms": 1, "created_ms": 1, "historical": False}
        return self.message(f"devices/{device}/result", json.dumps(body, separators=(",", ":")).encode())

    def message(self, topic: str, body: bytes) -> Message:
        self.mid += 1
        return Message(f"ocr/v1/{topic}", body, False, self.mid)

    def step(self, *events: Any, seconds: float = 0.0) -> list[tuple[str, Any]]:
        """Let time pass and events happen; returns what was said then."""
        self.clock.now += seconds
        self.link.events += events
        before = len(self.link.said)
        self.collector.tick()
        return self.link.said[before:]


@pytest.fixture
def scripted():
    return Scripted()


def test_the_order_is_commit_receipt_acknowledgement(scripted):
    scripted.connect()
    scripted.store.on_put = lambda: scripted.link.said.append(("commit", None))
    assert scripted.step(scripted.result(1), scripted.result(3)) == []
    assert scripted.step(seconds=0.05) == [
        ("commit", None),
        ("receipt", ((1, 1), (3, 3))),
        ("ack", 1),
        ("ack", 2),
    ]


def test_a_batch_is_committed_when_it_is_full_when_it_is_quiet_or_when_it_is_time():
    scripted = Scripted(batch=3, batch_s=0.25)
    scripted.connect()
    scripted.step(*(scripted.result(seq) for seq in (1, 2, 3)))
    assert scripted.store.sizes == [3]
    scripted.step(scripted.result(4))
    assert scripted.store.sizes == [3]
    scripted.step(seconds=0.021)
    assert scripted.store.sizes == [3, 1]
    scripted.collector._config = msgspec.structs.replace(scripted.collector._config, batch=1000)
    for seq in range(5, 50):
        scripted.step(scripted.result(seq), seconds=0.015)
    assert len(scripted.store.sizes) == 4  # never quiet for long: every quarter of a second


def test_nothing_is_said_about_rows_while_the_store_is_down(scripted):
    scripted.connect()
    scripted.store.failing = True
    first = scripted.step(scripted.result(1), seconds=1) + scripted.step(seconds=1)
    assert first == [("state", False)]
    scripted.step(seconds=30)
    scripted.store.failing = False
    assert scripted.step(seconds=30) == [("state", True), ("receipt", ((1, 1),)), ("ack", 1)]


def test_a_store_that_is_away_at_the_start_is_waited_for(caplog):
    with caplog.at_level(logging.INFO):
        scripted = Scripted()
        scripted.store.failing = True
        scripted.collector._serving = False
        scripted.connect()
        for _ in range(20):
            scripted.step(seconds=10)
        scripted.store.failing = False
        assert scripted.step(seconds=10) == [("state", True)]
    assert caplog.text.count("the store takes nothing") == 1  # not once for each attempt


def test_pauses_grow_and_end(scripted):
    scripted.connect()
    scripted.store.failing = True
    scripted.step(scripted.result(1), seconds=1)
    scripted.step(seconds=1)
    tries: list[float] = []
    ready = scripted.store.ready
    scripted.store.ready = lambda: (tries.append(scripted.clock.now), ready())
    for _ in range(4000):
        scripted.step(seconds=0.01)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert 0.1 < gaps[0] < 2.1
    assert 2.4 < gaps[-1] < 5.1
    assert len(tries) < 30


def test_a_lost_connection_forgets_what_the_broker_will_send_again(scripted):
    scripted.connect()
    scripted.step(scripted.result(1), scripted.result(2))
    scripted.step(Offline("gone"))
    assert scripted.step(seconds=5) == []
    assert scripted.store.sizes == []
    scripted.link.room = 1  # for the state; the receipts of the next batch must wait
    scripted.connect()
    scripted.step(scripted.result(1), scripted.result(2))
    assert scripted.step(seconds=5) == []
    scripted.step(Offline("gone"))
    scripted.link.room = 100
    scripted.connect()
    assert ("ack", 1) not in scripted.link.said
    scripted.step(scripted.result(1))
    assert scripted.step(seconds=5) == [("receipt", ((1, 1),)), ("ack", 5)]


def test_a_batch_is_never_larger_than_it_may_be():
    scripted = Scripted(batch=3)
    scripted.connect()
    scripted.step(*(scripted.result(seq) for seq in range(1, 8)))
    scripted.step()
    scripted.step(seconds=1)
    assert scripted.store.sizes == [3, 3, 1]
    assert scripted.link.said[-1] == ("ack", 7)


def test_memory_is_bounded_although_the_broker_sends_more_than_it_may():
    scripted = Scripted(batch=3)
    scripted.connect()
    scripted.step(scripted.result(1))
    scripted.store.failing = True
    scripted.step(seconds=1)
    told = scripted.step(*(scripted.result(seq) for seq in range(2, 8)))
    assert told == [("drop", None)]
    scripted.step()
    assert scripted.collector._queue == []


def test_mosquitto_sends_more_than_it_may(broker):
    config = BrokerConfig(host="127.0.0.1", port=broker.port, tls=False)
    session = Session(client_id="taker", subscriptions=("more/+",), receive_maximum=10, manual_ack=True)
    taker, giver = Link(config, session), Link(config, Session(client_id="giver", window=500))
    until(lambda: taker.online and giver.online, lambda: taker.tick(0.01), lambda: giver.tick(0.01))
    for _ in range(500):
        giver.publish("more/one", b"x")
    unacked: list[Message] = []
    most = 0
    for _ in range(300):
        giver.tick(0.001)
        unacked += [event for event in taker.tick(0.002) if isinstance(event, Message)]
        most = max(most, len(unacked))
        taker.publish("else", b"y")
        if len(unacked) > 5:
            taker.ack(unacked.pop(0))
    taker.close(0.1)
    giver.close(0.1)
    assert most > 10, "this one keeps to the Receive Maximum: what works around it may go"


def test_receipts_wait_for_room_and_acknowledgements_for_receipts(scripted):
    scripted.connect()
    scripted.link.room = 1
    scripted.step(scripted.result(1, "a"), scripted.result(1, "b"))
    assert scripted.step(seconds=1) == [("receipt", ((1, 1),))]
    assert scripted.step(seconds=1) == []
    scripted.link.room = 5
    assert scripted.step() == [("receipt", ((1, 1),)), ("ack", 1), ("ack", 2)]


def test_a_long_answer_is_cut_into_receipts_that_fit(scripted):
    scripted.connect()
    waiting = [[seq, seq] for seq in range(9 * 10**15, 9 * 10**15 + 1400, 2)]
    body = {"device": "box", "epoch": EPOCH, "waiting": waiting}
    scripted.step(scripted.message("devices/box/resync", json.dumps(body, separators=(",", ":")).encode()))
    told = scripted.step(seconds=1)
    assert [what for what, _ in told] == ["receipt"] * 2 + ["ack"]  # each was decoded, and so has no more than 64 kB
    assert sum(len(runs) for what, runs in told if what == "receipt") == 700


def test_a_receipt_that_the_broker_does_not_take_stops_nothing(scripted, caplog):
    scripted.connect()
    publish = scripted.link.publish

    def refuse(topic: str, body: bytes, *, retain: bool = False) -> int | None:
        if "receipt" in topic:
            raise MessageError("larger than the broker takes")
        return publish(topic, body, retain=retain)

    scripted.link.publish = refuse
    scripted.step(scripted.result(1))
    assert scripted.step(seconds=1) == [("ack", 1)]
    assert "larger than the broker takes" in caplog.text


def test_a_planned_end_stores_and_confirms_what_is_here(scripted):
    scripted.connect()
    scripted.step(scripted.result(1))
    scripted.collector.stop(0.0)
    assert scripted.link.said[1:] == [("state", False), ("receipt", ((1, 1),)), ("ack", 1), ("close", None)]


def test_an_end_while_the_store_is_down_acknowledges_nothing(scripted):
    scripted.connect()
    scripted.step(scripted.result(1))
    scripted.store.failing = True
    scripted.collector.stop(0.0)
    assert scripted.link.said[1:] == [("state", False), ("close", None)]


def test_a_collector_that_may_not_read_results_is_not_online(scripted, caplog):
    scripted.link.events.append(Online(Limits(window=100), ("ocr/v1/devices/+/result",)))
    assert scripted.step() == [("state", False)]
    assert "does not let this collector subscribe" in caplog.text


def test_the_session_asks_for_what_the_protocol_needs(tmp_path):
    plain = collect._session(settings_of(1, tmp_path, batch=50))
    assert plain.subscriptions == tuple(f"ocr/v1/devices/+/{kind}" for kind in ("result", "resync", "event", "status"))
    assert (plain.receive_maximum, plain.clean_start, plain.manual_ack) == (50, False, True)
    assert plain.expiry_s == 30 * 86_400
    shared = collect._session(settings_of(1, tmp_path, group="all"))
    assert shared.subscriptions[:3] == tuple(
        f"$share/all/ocr/v1/devices/+/{kind}" for kind in ("result", "resync", "event")
    )
    assert shared.subscriptions[3] == "ocr/v1/devices/+/status"  # a shared one would get no retained messages
    assert shared.expiry_s == 60


# ------------------------------------------------------------------------------------------- with a real store


def test_a_locked_database_makes_devices_wait(broker, tmp_path, monkeypatch):
    monkeypatch.setattr("agent.collect.stores.WAIT_S", 0.05)
    centre = Centre(broker.port, tmp_path)
    with contextlib.closing(sqlite3.connect(centre.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        centre.device.put()
        centre.until(lambda: not centre.device.online)
        assert not centre.device.stored
        waiting = centre.device.put()
        other.execute("ROLLBACK")
    centre.until(lambda: centre.device.done)
    assert waiting in centre.device.stored
    assert centre.sql("SELECT COUNT(*) FROM results") == [(2,)]
    centre.close()


def test_it_comes_back_after_the_broker_was_away(tmp_path):
    with Broker(tmp_path / "own") as own:
        centre = Centre(own.port, tmp_path)
        centre.device.put()
        centre.until(lambda: centre.device.done)
        own.kill()
        centre.until(lambda: not centre.device.connected)
        own.start()
        for _ in range(5):
            centre.device.put()
        centre.until(lambda: centre.device.done)
        assert centre.sql("SELECT COUNT(*) FROM results") == [(6,)]
        centre.close()


# ---------------------------------------------------------------------------------------------- the program


def write_settings(path: Path, port: int, **more: str) -> Path:
    lines = [f'{key} = "{value}"' for key, value in {"name": "centre", "store": f"sqlite:{path}/c.db", **more}.items()]
    file = path / "collector.toml"
    file.write_text("\n".join([*lines, "[mqtt]", 'host = "127.0.0.1"', f"port = {port}", "tls = false", ""]))
    return file


def test_the_program_prints_rows_and_ends_in_order(tmp_path):
    with Broker(tmp_path / "own") as own:
        file = write_settings(tmp_path, own.port)
        command = (*EDGE_OCR, "collect", "-c", str(file), "--print")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
        try:
            device = LightDevice("box-7", own.port)
            device.put(page("HELLO\x1b[31m WORLD 世界"))
            until(lambda: device.done, lambda: device.step(0.02))
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            out, err = process.communicate(timeout=15)
        finally:
            process.kill()
        assert (process.returncode, out) == (0, "box-7 1 inbox 1 lines: HELLO [31m WORLD 世界\n")
        assert time.monotonic() - began < 10
        until(lambda: not device.online, lambda: device.step(0.02))
        assert "HELLO" not in err
        assert "ready: devices may send" in err
        assert "stored 1, known 0" in err


def test_without_print_nothing_is_printed(monkeypatch, capsys, tmp_path):
    printer = collect._Printer()
    row = Row(**{name: 1 if name == "seq" else "x" for name in Row.__struct_fields__})
    printer(row)
    assert capsys.readouterr().out == "x 1 x x lines: \n"

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return spare.fileno()

    with open(tmp_path / "spare", "w") as spare:
        monkeypatch.setattr(sys, "stdout", Closed())
        printer(row)
        printer(row)


@pytest.mark.parametrize(
    ("settings", "status", "said"),
    [
        ({"store": "sqlite:/nowhere/c.db"}, 66, "folder must be writable"),
        ({"store": "postgresql://ocr:pw@db/ocr"}, 78, "store_password"),
        ({"store_password": "env:NOT_THERE"}, 78, "NOT_THERE"),
        ({"batches": "7"}, 78, "did you mean batch"),
    ],
)
def test_settings_that_cannot_work_end_it_at_once(tmp_path, settings, status, said):
    ran = run((*EDGE_OCR, "collect", "-c", write_settings(tmp_path, 1, **settings)))
    assert (ran.status, ran.out) == (status, "")
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_second_collector_on_one_file_is_refused(tmp_path):
    with contextlib.closing(SqliteStore(tmp_path / "c.db")):
        ran = run((*EDGE_OCR, "collect", "-c", write_settings(tmp_path, 1)))
    assert ran.status == 78
    assert "several need PostgreSQL" in ran.err
