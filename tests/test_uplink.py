"""The uplink against a real mosquitto and a real outbox: rows, receipts, presence, commands, and what goes wrong."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agent import health
from agent.clock import Clock
from agent.config import AgentConfig
from agent.errors import ConfigError, OutboxError
from agent.mqtt import Link, Message, Session
from agent.outbox import Outbox
from agent.protocol import Receipt, Refusal, Status, collector_topic, device_topic, encode
from agent.uplink import delivery, post, presence, uplink
from tests.broker import Broker
from tests.centre import Centre, SetClock, Site, broker_settings, closing, pair, run, step
from tests.command import run_python
from tests.tcp_proxy import Proxy


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The outbox is looked at more often than in life; and an uplink sets the log level of its process."""
    monkeypatch.setattr(delivery, "LOOK_S", 0.1)
    monkeypatch.setattr(post, "LOOK_S", 0.2)
    monkeypatch.setattr(uplink, "NOTE_S", 0.1)
    monkeypatch.setattr(uplink, "PAUSE_S", 0.1)
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def statuses(centre: Centre) -> list[Status]:
    return centre.heard["status"]


# ---------------------------------------------------------------------------------------------------- rows


def test_row_is_kept_until_its_receipt_and_then_deleted(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        centre.confirms = False
        (seq,) = site.add()
        run(site, centre, until=lambda: centre.raw)
        step(site, centre, for_s=0.3)
        assert (site.outbox.stats().pending, site.outbox.stats().brokered) == (0, 1)
        centre.confirms = True
        run(site, centre, until=lambda: site.outbox.row(seq) is None)
        assert len(centre.raw) == 1, "the answer to the question was enough"


def test_results_are_not_sent_while_no_collector_is_online(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        site.add(3)
        run(site, until=lambda: site.state["connection"] == "no collector")
        assert "edge-ocr collect" in site.state["reason"]
        step(site, for_s=0.3)
        assert site.state["sent"] == 0
        run(site, centre, until=lambda: len(centre.rows) == 3)
        run(site, centre, until=lambda: site.state["stored"] == 3)
        assert (site.state["connection"], site.state["reason"], site.state["collectors"]) == (
            "online",
            "",
            [centre.name],
        )
        centre.announce(False)
        run(site, centre, until=lambda: site.state["connection"] == "no collector")
        site.add(2)
        step(site, centre, for_s=0.5)
        assert len(centre.raw) == 3


def test_brokered_guarantee_asks_for_no_collector(broker, tmp_path):
    with pair(broker.port, tmp_path, guarantee="brokered") as (site, centre):
        centre.confirms = False
        run(site, centre, until=lambda: centre.link.online)
        centre.announce(False)
        site.add(30)
        run(site, centre, until=lambda: site.outbox.stats().pending == 0 and len(centre.rows) == 30)
        assert site.outbox.stats().brokered == 0
        run(site, centre, until=lambda: site.state["brokered"] == 30)


def test_fresh_rows_overtake_the_backlog_which_is_marked(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "FETCH_ROWS", 8)
    with pair(broker.port, tmp_path, historical_s=0.4, window=4) as (site, centre):
        old = site.add(40)
        time.sleep(0.5)
        fresh = site.add(10)
        run(site, centre, until=lambda: len(centre.rows) == 50)
        order = [seq for _, _, seq in centre.raw]
        assert order.index(fresh[-1]) < 20, "a quarter of the room is left to the backlog, no more"
        assert {row.seq for row in centre.heard["result"] if row.historical} == set(old)


def test_message_names_the_row_and_carries_its_bytes(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        (seq,) = site.add()
        row = site.outbox.row(seq)
        run(site, centre, until=lambda: centre.rows)
        (sent,) = centre.heard["result"]
        assert (sent.device, sent.epoch, sent.seq, sent.sha256) == (site.config.device, row.epoch, seq, row.sha256)
        assert (bytes(sent.result), sent.created_ms) == (row.result, row.created_ms)


def test_window_is_never_passed_and_nothing_piles_up(broker, tmp_path):
    with Proxy(broker.port) as proxy, pair(broker.port, tmp_path / "unused") as (other, centre):
        prefix = other.config.mqtt.topic_prefix
        site = Site(tmp_path / "s", broker_settings(proxy.port, window=5, topic_prefix=prefix), device="narrow")
        with closing(site):
            run(site, centre, until=lambda: site.state["connection"] == "online")
            step(site, centre, for_s=0.3)
            proxy.drop_pubacks = True
            before = proxy.publishes
            site.add(30)
            run(site, centre, until=lambda: len(centre.raw) >= 5)
            step(site, centre, for_s=0.5)
            assert proxy.publishes - before == 5


# ------------------------------------------------------------------------------------------------ receipts


def test_rows_without_receipt_are_asked_for_and_then_sent_again(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        centre.forgets = True
        seqs = site.add(5)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 5)
        run(site, centre, until=lambda: centre.heard["resync"])
        assert centre.heard["resync"][0].waiting == ((seqs[0], seqs[-1]),)
        centre.forgets = False
        run(site, centre, until=lambda: len(centre.rows) == 5)
        run(site, centre, until=lambda: site.outbox.stats().brokered == site.outbox.stats().pending == 0)


def test_new_session_of_a_collector_is_asked_at_once(broker, tmp_path):
    with pair(broker.port, tmp_path, receipt_s=3600.0) as (site, centre):
        centre.confirms = False
        site.add(5)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 5)
        assert not centre.heard["resync"]
        centre.restart()
        run(site, centre, until=lambda: site.outbox.stats().brokered == 0)
        assert len(centre.raw) == 5


def test_uplink_that_comes_back_asks_for_rows_of_before(broker, tmp_path):
    with pair(broker.port, tmp_path, receipt_s=3600.0) as (site, centre):
        centre.confirms = False
        site.add(5)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 5)
        site.restart()
        run(site, centre, until=lambda: site.outbox.stats().brokered == 0)
        assert (len(centre.raw), len(centre.heard["resync"])) == (5, 1)


def test_receipts_that_cannot_be_ours_change_nothing(broker, tmp_path):
    with pair(broker.port, tmp_path, receipt_s=3600.0) as (site, centre):
        centre.confirms = False
        site.add(2)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 2)
        epoch = site.outbox.stats().epoch
        good = Receipt(collector="centre", device=site.config.device, epoch=epoch, stored=((1, 2),))
        for wrong in (
            encode(msgspec.structs.replace(good, device="dev-2")),
            encode(msgspec.structs.replace(good, epoch="0" * 32)),
            encode(msgspec.structs.replace(good, stored=((2, 1),))),
            encode(good)[:-1],
            b"[" * 5000,
            b"",
        ):
            centre.say(site.topic("receipt"), wrong)
        step(site, centre, for_s=0.5)
        assert site.outbox.stats().brokered == 2
        assert "message" in site.state["alarms"]
        centre.say(site.topic("receipt"), encode(good))
        run(site, centre, until=lambda: site.outbox.stats().brokered == 0)


def test_receipt_counts_only_for_rows_that_were_sent(broker, tmp_path):
    with pair(broker.port, tmp_path, receipt_s=3600.0) as (site, centre):
        centre.confirms = False
        site.add(2)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 2)
        centre.announce(False)
        run(site, centre, until=lambda: site.state["connection"] == "no collector")
        site.add(3)
        all_rows = Receipt(
            collector="centre",
            device=site.config.device,
            epoch=site.outbox.stats().epoch,
            stored=((1, 4), (6, 1 << 52)),
            refused=(Refusal(5, "conflict"),),
        )
        centre.say(site.topic("receipt"), encode(all_rows))
        run(site, centre, until=lambda: site.outbox.stats().brokered == 0)
        step(site, centre, for_s=0.3)
        assert (site.outbox.stats().pending, site.outbox.stats().dead) == (3, 0)


def test_refused_row_is_kept_as_dead_and_told(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        centre.refuses = {2: "conflict", 3: "invalid"}
        site.add(4)
        run(site, centre, until=lambda: len(centre.heard["event"]) == 2 and site.outbox.stats().dead == 2)
        run(site, centre, until=lambda: site.outbox.stats().events == 0 and site.outbox.stats().brokered == 0)
        assert [(row.seq, row.reason) for row in site.outbox.rows(state=3)] == [(2, "conflict"), (3, "invalid")]
        assert {"conflict", "invalid", "dead"} <= {*site.state["alarms"], *site.outbox.stats().alarms}
        run(site, centre, until=lambda: site.state["refused"] == 2)
        assert [event.kind for event in centre.heard["event"]] == ["alarm", "alarm"]


# ------------------------------------------------------------------------------------------------- privacy


def test_number_that_is_not_masked_does_not_leave(broker, tmp_path):
    with Proxy(broker.port) as proxy:
        proxy.keep = True
        config = broker_settings(proxy.port)
        site, centre = Site(tmp_path, config, device="private"), Centre(config)
        with closing(site, centre):
            site.add(1, "Card 4111 1111 1111 1111")
            site.add(1, "Total 12.50")
            run(site, centre, until=lambda: centre.rows and centre.heard["event"] and site.outbox.stats().dead)
            assert [(row.seq, row.reason) for row in site.outbox.rows(state=3)] == [(1, "privacy")]
            assert "privacy" in site.state["alarms"]
        assert b"Total 12.50" in proxy.sent and b"1111" not in proxy.sent


def test_row_too_large_for_the_broker_is_put_aside(tmp_path):
    narrow = "max_packet_size 3000"
    with Broker(tmp_path / "b", more=narrow) as broker, pair(broker.port, tmp_path / "s") as (site, centre):
        site.add(1, "word " * 1000)
        site.add(1)
        run(site, centre, until=lambda: len(centre.rows) == 1 and site.outbox.stats().dead == 1)
        assert [row.reason for row in site.outbox.rows(state=3)] == ["too_large"]


# ------------------------------------------------------------------------------------------------ presence


def test_birth_is_retained_and_a_planned_end_says_goodbye_itself(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        birth = statuses(centre)[-1]
        assert (birth.online, birth.session, birth.device) == (True, 1, site.config.device)
        site.uplink.stop(0.5)
        run(centre, until=lambda: not statuses(centre)[-1].online)
        assert statuses(centre)[-1].session == 1
        late = Centre(site.config.mqtt, name="late")
        with closing(late):
            run(late, until=lambda: statuses(late))
            assert [status.online for status in statuses(late)] == [False]


def test_will_carries_the_session_of_its_birth(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(uplink, "WILL_DELAY_S", 0)
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        site.uplink._link.drop("as if cut")
        site.uplink._link.tick(0.0)
        run(centre, until=lambda: not statuses(centre)[-1].online)
        assert statuses(centre)[-1].session == 1
        run(site, centre, until=lambda: statuses(centre)[-1].online)
        assert statuses(centre)[-1].session == 2


def test_changes_are_told_now_and_then(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "CHANGE_S", 0.3)
    monkeypatch.setattr(post, "LOOK_S", 0.05)
    with pair(broker.port, tmp_path, receipt_s=3600.0) as (site, centre):
        centre.confirms = False
        run(site, centre, until=lambda: statuses(centre))
        for _ in range(10):
            site.add()
            step(site, centre, for_s=0.06)
        run(site, centre, until=lambda: statuses(centre)[-1].brokered == 10)
        assert 2 <= len(statuses(centre)) <= 8
        count = len(statuses(centre))
        step(site, centre, for_s=0.5)
        assert len(statuses(centre)) == count, "nothing has changed"


def test_status_has_what_the_worker_says_of_itself_while_it_is_there(tmp_path):
    config = AgentConfig(device="d", state_dir=str(tmp_path), mqtt=broker_settings(1))
    clock = SetClock()
    made = presence.Presence(config, config.mqtt, clock)
    worker = health.WorkerState(pid=1, at_ms=clock.wall_ms(), started_ms=0, pages_per_minute=7.5, bundle="v4")
    health.write_state(tmp_path, "worker", worker)
    status = made.status(3, post._NOTHING, {"clock"})
    assert (status.pages_per_minute, status.bundle, status.alarms, status.session) == (7.5, "v4", ("clock",), 3)
    clock.wall += 60_000
    status = made.status(3, post._NOTHING, set())
    assert (status.pages_per_minute, status.alarms) == (0.0, ("worker",))


def test_home_assistant_finds_the_device(broker, tmp_path):
    config = broker_settings(broker.port, home_assistant=True, home_assistant_prefix="ha")
    site = Site(tmp_path, config, device="dev.1")
    with closing(site):
        found = listen(broker, "ha/#", site)
    name = next(iter(found))
    assert name.split("/")[1:] == ["device", name.split("/")[2], "config"]
    assert name.split("/")[2].startswith("dev_1_"), "only letters, digits, _ and - may be in it"
    told = json.loads(found[name])
    assert told["origin"]["name"] and told["device"]["identifiers"]
    assert {part["platform"] for part in told["components"].values()} == {"sensor", "binary_sensor"}
    ids = [part["unique_id"] for part in told["components"].values()]
    assert len(set(ids)) == len(ids) == 5
    assert told["state_topic"] == device_topic(config.topic_prefix, "dev.1", "status")
    fields = set(Status.__struct_fields__)
    for part in told["components"].values():
        assert any(f"value_json.{field}" in part["value_template"] for field in fields)


def listen(broker: Broker, name: str, *sites: Site) -> dict[str, bytes]:
    """Return the first messages of a topic filter."""
    link = Link(broker_settings(broker.port), Session(client_id="ear", subscriptions=(name,), retry_max_s=0.1))
    found: dict[str, bytes] = {}

    def heard() -> bool:
        found.update({event.topic: event.body for event in link.tick(0.0) if isinstance(event, Message)})
        return bool(found)

    run(*sites, until=heard)
    link.close()
    return found


def test_events_of_the_outbox_are_published_and_then_forgotten(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        site.worker.add_event("salvage", "the database was damaged")
        run(site, centre, until=lambda: centre.heard["event"])
        assert (centre.heard["event"][0].kind, centre.heard["event"][0].detail) == (
            "salvage",
            "the database was damaged",
        )
        run(site, centre, until=lambda: site.outbox.events(10) == [])
        assert len(centre.heard["event"]) == 1


def test_event_that_nobody_heard_is_told_again(broker, tmp_path, monkeypatch):
    monkeypatch.setattr(post, "LOOK_S", 0.1)
    monkeypatch.setattr(post, "AGAIN_S", 0.5)
    with pair(broker.port, tmp_path, guarantee="brokered") as (site, centre):
        site.worker.add_event("alarm", "anybody there?")
        run(site, until=lambda: site.state["connection"] == "online")
        step(site, for_s=0.3)
        assert len(site.outbox.events(10)) == 1
        run(site, centre, until=lambda: centre.heard["event"])


# ------------------------------------------------------------------------------------------------ commands


def command(verb: str = "status", **more: Any) -> bytes:
    made = {"id": f"c{random.getrandbits(40):x}", "verb": verb, "expires_ms": Clock().wall_ms() + 60_000, **more}
    return msgspec.json.encode(made)


def order(site: Site, centre: Centre, body: bytes, *, retain: bool = False) -> Any:
    """Send a command and return its answer."""
    before = len(centre.heard["answer"])
    centre.say(site.topic("command"), body, retain=retain)
    run(site, centre, until=lambda: len(centre.heard["answer"]) > before)
    return centre.heard["answer"][-1]


def test_commands_are_carried_out_and_answered_with_the_state(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        answer = order(site, centre, command("status", id="first"))
        assert (answer.id, answer.ok, answer.status.online, answer.status.paused) == ("first", True, True, False)
        assert order(site, centre, command("pause")).status.paused
        assert site.worker.held() == "paused"
        assert not order(site, centre, command("resume")).status.paused
        assert order(site, centre, command("level", argument="error")).ok
        run(site, centre, until=lambda: logging.getLogger().level == logging.ERROR)
        assert site.worker.stats().level == "error"


def test_reread_is_answered_when_the_worker_has_done_it(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        centre.say(site.topic("command"), command("reread", id="r1", argument="key-of-a-page"))
        run(site, centre, until=lambda: site.worker.requests())
        assert [(r.id, r.verb, r.argument) for r in site.worker.requests()] == [("r1", "reread", "key-of-a-page")]
        assert not centre.heard["answer"]
        site.worker.finish("r1", False, "its picture is gone")
        run(site, centre, until=lambda: centre.heard["answer"])
        assert (centre.heard["answer"][0].ok, centre.heard["answer"][0].detail) == (False, "its picture is gone")
        run(site, centre, until=lambda: not site.outbox.answers())


def test_command_waits_at_the_broker_for_a_device_that_is_away(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        site.uplink.stop(0.2)
        centre.say(site.topic("command"), command("pause"))
        step(centre, for_s=0.2)
        site.uplink = uplink.Uplink(site.config, site.outbox)
        run(site, centre, until=lambda: centre.heard["answer"])
        assert site.outbox.stats().paused


def test_command_is_refused_with_a_reason(broker, tmp_path):
    now_ms = Clock().wall_ms()
    with pair(broker.port, tmp_path, commands=("status", "pause", "level", "reread")) as (site, centre):
        run(site, centre, until=lambda: statuses(centre))
        assert order(site, centre, command("status", id="again")).ok
        for body, said in (
            (command("status", id="again"), "carried out before"),
            (command("resume"), "not allowed here"),
            (command("status", expires_ms=now_ms - 1), "too late"),
            (command("status", expires_ms=now_ms + 10**12), "days ahead"),
            (command("level", argument="loud"), "level takes one of"),
            (command("reread"), "key of a page"),
        ):
            answer = order(site, centre, body)
            assert not answer.ok and said in answer.detail
        centre.say(site.topic("command"), command("pause"), retain=True)  # not seen as retained by who is there
        step(site, centre, for_s=0.3)
        centre.say(site.topic("command"), command("level", argument="error"), retain=True)
        step(site, centre, for_s=0.3)
        site.outbox.set_level("")
        site.restart()
        run(site, centre, until=lambda: "retained" in centre.heard["answer"][-1].detail)
        assert site.outbox.stats().level == ""
        centre.say(site.topic("command"), b"", retain=True)
        step(site, centre, for_s=0.2)


@pytest.mark.parametrize("name", ["receipt", "command", "state", "other"])
def test_garbage_on_any_topic_is_passed_over(broker, tmp_path, name):
    dice = random.Random(7)
    with pair(broker.port, tmp_path) as (site, centre):
        where = collector_topic(site.config.mqtt.topic_prefix, "x") if name == "state" else site.topic(name)
        run(site, centre, until=lambda: statuses(centre))
        for _ in range(50):
            centre.say(where, dice.randbytes(dice.choice((0, 5, 200))))
        centre.say(where, encode(Receipt(collector="c", device=site.config.device, epoch="0" * 32)))
        site.add()
        run(site, centre, until=lambda: len(centre.rows) == 1)


# ------------------------------------------------------------------------------------------------- troubles


class Broken:
    """An outbox that fails when it is told to."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.fails: tuple[str, ...] = ()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def method(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if name in self.fails:
                raise OutboxError("the disk fails")
            return getattr(self._outbox, name)(*arguments, **named)

        return method


EVERYTHING = ("pending", "record", "waiting", "events", "ask", "answers", "next_session", "stats", "add_event")


@pytest.mark.parametrize("fails", [EVERYTHING, ("record",), ("pending",), ("stats", "next_session")])
def test_outbox_that_fails_is_waited_for(broker, tmp_path, fails):
    with pair(broker.port, tmp_path) as (site, centre):
        broken = Broken(site.outbox)
        broken.fails = fails
        site.uplink = uplink.Uplink(site.config, broken)  # type: ignore[arg-type]
        seqs = site.add(5)
        run(site, centre, until=lambda: centre.link.online and site.uplink._link.online)
        if "stats" not in fails or fails == EVERYTHING:
            run(site, centre, until=lambda: "outbox" in site.state["alarms"])
        calls = broken.calls
        for _ in range(3):
            site.uplink.tick(0.1)
        assert broken.calls - calls < 30, "it does not spin"
        broken.fails = ()
        run(site, centre, until=lambda: len(centre.rows) == len(seqs))
        run(site, centre, until=lambda: site.outbox.stats().pending == site.outbox.stats().brokered == 0)
        run(site, centre, until=lambda: site.state["alarms"] == [])
        assert len(centre.raw) == len(seqs)


def test_reason_for_no_connection_is_in_the_state_file(tmp_path):
    with Broker(tmp_path / "b", passwords={"dev": "right"}) as broker:
        (tmp_path / "password").write_text("wrong")
        site = Site(
            tmp_path / "s", broker_settings(broker.port, username="dev", password=f"file:{tmp_path / 'password'}")
        )
        run(site, until=lambda: site.state["connection"] == "refused")
        assert "mqtt.password" in site.state["reason"] and "wrong" not in site.state["reason"]
        broker.kill()
        run(site, until=lambda: site.state["connection"] == "waiting")
        assert "nothing listens" in site.state["reason"]
        site.close()


def test_certificate_is_warned_of_thirty_seven_and_one_days_before_its_end(tmp_path, caplog):
    site = Site(tmp_path, broker_settings(1))
    warned = []
    for days in (40.0, 29.0, 28.0, 6.5, 0.9, 0.5, -1.0, 300.0, 5.0):
        caplog.clear()
        site.uplink._link.certificate_days = lambda days=days: {"mqtt.cert_file": days, "other": 99.0}  # type: ignore[method-assign]
        site.uplink._look_at_certificates()
        warned.append([record.getMessage() for record in caplog.records])
    site.close()
    assert [len(lines) for lines in warned] == [0, 1, 0, 1, 1, 0, 1, 0, 1]
    assert warned[1] == ["mqtt.cert_file expires in 29 days: renew it"]
    assert warned[6] == ["mqtt.cert_file expired: renew it"]


def test_flood_of_commands_holds_no_row_up(broker, tmp_path):
    with pair(broker.port, tmp_path) as (site, centre):
        run(site, centre, until=lambda: site.state["connection"] == "online")
        for number in range(2000):
            centre.say(site.topic("command"), command("status", id=f"flood-{number}"))
        site.add(20)
        run(site, centre, until=lambda: len(centre.rows) == 20)
        run(site, centre, until=lambda: site.outbox.stats().brokered == 0)
        assert len(centre.heard["answer"]) < 200
        assert site.state["session"] == 1


# -------------------------------------------------------------------------------------------------- program


def test_uplink_loads_no_vision_package():
    heavy = {"cv2", "numpy", "PIL", "paddle", "paddlelite", "onnxruntime", "psutil"}
    ran = run_python("import sys, agent.uplink\nprint(*{name.split('.')[0] for name in sys.modules})")
    assert ran.status == 0, ran.err
    assert not heavy & set(ran.out.split())


def test_settings_without_mqtt_are_an_error(tmp_path):
    config = AgentConfig(device="d", state_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"add \[mqtt\]"):
        uplink.run(config)
    assert os.listdir(tmp_path) == []
