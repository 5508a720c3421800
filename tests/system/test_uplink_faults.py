"""What networks and brokers do to an uplink: afterwards every row is at the centre, once. Each prints its account."""

from __future__ import annotations

import json
import os
import random
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

from agent import health
from agent.config import MqttConfig, OutboxConfig
from agent.mqtt import Link, Session
from agent.outbox import Outbox, backlog, schema
from agent.uplink import delivery
from tests.broker import Authority, Broker
from tests.centre import Centre, Site, account, broker_settings, closing, page, pair, run, step
from tests.command import ROOT
from tests.tcp_proxy import Proxy

SEED = int(os.environ.get("SEED", "1"))
ROWS = int(os.environ.get("ROWS", "20000"))
"""Rows of the long outage."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 0.1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as broker:
        yield broker


def behind(proxy: Proxy, broker: Broker, state_dir: Path, **more: Any) -> tuple[Site, Centre]:
    """Return a device whose link goes through a proxy, and a collector whose does not."""
    config = broker_settings(proxy.port, **more)
    return Site(state_dir, config), Centre(msgspec.structs.replace(config, port=broker.port))


def is_done(site: Site, centre: Centre) -> bool:
    """Tell whether every row is confirmed."""
    if len(centre.rows) < len(site.submitted):
        return False
    stats = site.outbox.stats()
    return stats.pending == stats.brokered == 0


def check(centre: Centre, site: Site, **more: Any) -> dict[str, Any]:
    told = account(centre, site, seed=SEED, **more)
    assert (told["lost"], told["unexpected"], told["duplicated"]) == (0, 0, 0)
    assert site.outbox.stats().dead == 0
    return told


def test_link_cut_after_publish_before_its_acknowledgement(broker, tmp_path):
    dice = random.Random(SEED)
    with Proxy(broker.port) as proxy:
        site, centre = behind(proxy, broker, tmp_path / "s")
        with closing(site, centre):
            for _ in range(15):
                proxy.cut_after, before = dice.randint(1, 20), proxy.cuts
                site.add(proxy.cut_after + dice.randint(0, 10))
                run(site, centre, until=lambda before=before: proxy.cuts > before)
            run(site, centre, until=lambda: is_done(site, centre))
            told = check(centre, site, cuts=proxy.cuts)
            window = site.config.mqtt.window
            assert told["duplicated_raw"] <= window * proxy.cuts


def test_flapping_link(broker, tmp_path):
    dice = random.Random(SEED)
    with Proxy(broker.port) as proxy:
        site, centre = behind(proxy, broker, tmp_path / "s")
        with closing(site, centre):
            for _ in range(30):
                site.add(dice.randint(0, 5))
                step(site, centre, for_s=dice.uniform(0.02, 0.2))
                proxy.refuse = dice.random() < 0.3
                proxy.cut()
            proxy.refuse = False
            run(site, centre, until=lambda: is_done(site, centre))
            check(centre, site, cuts=proxy.cuts, connections=proxy.connections)


def test_slow_attempts_while_connections_do_not_last(broker, tmp_path):
    """Pauses grow to the configured limit, whatever the broker says first."""
    with Proxy(broker.port) as proxy:
        site, centre = behind(proxy, broker, tmp_path / "s", retry_max_s=3600.0)
        with closing(site, centre):
            proxy.refuse = True
            link = site.uplink._link
            link._failures = 0
            for _ in range(12):
                link._next_try = 0.0
                site.uplink.tick(0.0)
                step(site, for_s=0.05)
            assert link._failures >= 12
            assert proxy.connections <= 14


@pytest.mark.parametrize("fault", ["black_hole", "drop_pubacks", "frozen broker"])
def test_half_dead_link(broker, tmp_path, fault):
    def break_it(broken: bool) -> None:
        if fault == "frozen broker":
            broker.freeze(broken)
        else:
            setattr(proxy, fault, broken)

    with Proxy(broker.port) as proxy:
        site, centre = behind(proxy, broker, tmp_path / "s", keepalive_s=1)
        with closing(site, centre):
            site.add(5)
            run(site, centre, until=lambda: is_done(site, centre))
            for session in (1, 2):
                break_it(True)
                site.add(30)
                run(site, centre, until=lambda: site.state["connection"] == "waiting")
                break_it(False)
                run(site, centre, until=lambda: site.state["connection"] == "online")
                assert site.state["session"] > session
            run(site, centre, until=lambda: is_done(site, centre))
            check(centre, site)


def test_broker_whose_queue_flows_over(tmp_path):
    with Broker(tmp_path / "b", queue=20) as broker, pair(broker.port, tmp_path / "s") as (site, centre):
        run(site, centre, until=lambda: site.state["connection"] == "online")
        centre.deaf = True  # it hangs: the broker says yes to everything and throws away what it cannot queue
        site.add(300)
        run(site, until=lambda: site.outbox.stats().brokered == 300)
        centre.deaf = False
        run(site, centre, until=lambda: is_done(site, centre), wait_s=60)
        taken = site.uplink._delivery.counts.brokered
        check(centre, site, brokered=taken)
        assert taken > 300, "the broker did lose rows that it had taken"


def test_broker_without_persistence_killed(broker, tmp_path):
    dice = random.Random(SEED)
    with pair(broker.port, tmp_path / "s") as (site, centre):
        for _ in range(8):
            site.add(dice.randint(20, 60))
            run(site, centre, until=lambda: site.state["connection"] == "online")
            step(site, centre, for_s=dice.uniform(0.0, 0.3))
            broker.kill()
            step(site, centre, for_s=dice.uniform(0.0, 0.2))
            broker.start()
        run(site, centre, until=lambda: is_done(site, centre), wait_s=60)
        check(centre, site)


def test_uplink_killed_between_everything(broker, tmp_path):
    dice = random.Random(SEED)
    with pair(broker.port, tmp_path / "s") as (site, centre):
        for _ in range(15):
            site.add(dice.randint(5, 30))
            step(site, centre, for_s=dice.uniform(0.0, 0.4))
            site.restart()
        run(site, centre, until=lambda: is_done(site, centre), wait_s=60)
        check(centre, site)


def test_slow_link_holds_the_window_and_nothing_times_out(broker, tmp_path):
    with Proxy(broker.port) as proxy:
        site, centre = behind(proxy, broker, tmp_path / "s", window=8, keepalive_s=5)
        with closing(site, centre):
            run(site, centre, until=lambda: site.state["connection"] == "online")
            proxy.bytes_per_s = 20_000
            proxy.latency_s = 0.2
            site.add(60)
            most = 0
            while not is_done(site, centre):
                step(site, centre, for_s=0.2)
                most = max(most, site.uplink._delivery.flying)
            assert most == 8
            assert site.state["session"] == 1, "the connection was never given up"
            assert check(centre, site)["duplicated_raw"] == 0


def test_stranger_with_the_same_name(broker, tmp_path):
    with pair(broker.port, tmp_path / "s") as (site, centre):
        twin = Link(site.config.mqtt, Session(client_id=site.config.device, retry_max_s=0.1))
        site.add(20)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            twin.tick(0.0)
            step(site, centre, for_s=0.05)
        twin.close(0.0)
        run(site, centre, until=lambda: is_done(site, centre))
        check(centre, site)


# ---------------------------------------------------------------------------------------------- long outage

PROGRAM = """
import sys, pathlib
from agent import config
from agent.uplink import uplink
uplink.run(config.load(pathlib.Path(sys.argv[1]), config.AgentConfig))
"""


def fill(outbox: Outbox, count: int) -> set[int]:
    """Put many rows in, quicker than the worker may."""

    def work(connection: sqlite3.Connection) -> list[int]:
        moment = outbox._moment(connection)
        epoch = schema.read_meta(connection)["epoch"]
        return [
            backlog.insert(connection, epoch, f"{n:064x}", page(f"{n:064x}", *["Invoice 12.50"] * 20), moment)
            for n in range(count)
        ]

    return set(outbox._db.run(work))


def resident(state_dir: Path) -> float:
    state = health.read_state(state_dir, "uplink", health.UplinkState)
    return 0.0 if state is None else state.rss_mb


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_long_outage_over_tls_in_flat_memory(tmp_path):
    authority = Authority(tmp_path / "ca")
    with Broker(tmp_path / "b", authority=authority) as broker:
        config = MqttConfig(
            host="localhost", port=broker.port, ca_file=str(authority.file), retry_max_s=0.5, historical_s=5.0
        )
        state_dir = tmp_path / "state"
        outbox = Outbox(state_dir, OutboxConfig(), role="worker")
        told = {"device": "dev-1", "state_dir": str(state_dir), "mqtt": msgspec.to_builtins(config)}
        told["mqtt"] = {name: value for name, value in told["mqtt"].items() if value is not None}
        path = tmp_path / "agent.toml"
        path.write_bytes(msgspec.toml.encode(told))
        broker.kill()
        child = subprocess.Popen((sys.executable, "-c", PROGRAM, path), cwd=ROOT)
        centre = Centre(config)
        try:
            wait(lambda: resident(state_dir) > 0)
            time.sleep(1.0)
            before = resident(state_dir)
            seqs = fill(outbox, ROWS)
            time.sleep(11.0)
            down = resident(state_dir)
            broker.start()
            run(centre, until=lambda: len(centre.rows) > 100)
            began, at = time.monotonic(), len(centre.rows)
            fresh = outbox.accept("f" * 64, page("f" * 64, "fresh"))
            added = time.monotonic()
            run(centre, until=lambda: centre.raw and any(seq == fresh for _, _, seq in centre.raw[-200:]))
            waited = time.monotonic() - added
            assert len(centre.rows) < ROWS, "the fresh row overtook"
            run(centre, until=lambda: len(centre.rows) == ROWS + 1, wait_s=500)
            rate = (ROWS + 1 - at) / (time.monotonic() - began)
            run(centre, until=lambda: outbox.stats().pending == outbox.stats().brokered == 0)
            time.sleep(1.5)
            after = resident(state_dir)
        finally:
            child.send_signal(signal.SIGTERM)
            centre.link.close(0.2)
            assert child.wait(15) == 0
        stored = {seq for _, _, seq in centre.rows}
        told = {
            "submitted": ROWS + 1,
            "accepted": ROWS + 1,
            "stored": len(stored),
            "lost": len((seqs | {fresh}) - stored),
            "unexpected": len(stored - seqs - {fresh}),
            "duplicated": 0,
            "duplicated_raw": len(centre.raw) - len(centre.rows),
            "recovered": 0,
            "seed": SEED,
            "rows_per_s": round(rate),
            "fresh_s": round(waited, 2),
            "rss_mb": {"empty": before, "down": down, "drained": after},
        }
        print(json.dumps(told))
        outbox.close()
        assert (told["lost"], told["unexpected"]) == (0, 0)
        assert down - before <= 5.0 and after <= 45.0


def wait(happened: Any, timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.05)
