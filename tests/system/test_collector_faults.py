"""Collectors, brokers and databases that end in the middle of everything. The accounting is the judge.

KILLS=n in the environment makes the random tests longer, SEED=n repeats one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from agent.protocol import sha256
from tests import postgres
from tests.broker import Broker
from tests.light_device import LightDevice, page, until
from tests.system.collectors import Member, account, drive, rows_in

pytestmark = pytest.mark.system

KILLS = int(os.environ.get("KILLS", "4"))
SEED = int(os.environ.get("SEED", "1"))


@pytest.fixture
def broker(tmp_path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker", persistence=True, more="max_inflight_messages 200") as started:
        yield started


@pytest.fixture
def members() -> Iterator[list[Member]]:
    every: list[Member] = []
    yield every
    for member in every:
        if member.process is not None:
            member.kill()


def devices_of(broker: Broker, count: int, rows: int = 0, **more: Any) -> list[LightDevice]:
    made = [LightDevice(f"box-{number}", broker.port, **more) for number in range(count)]
    for device in made:
        for _ in range(rows):
            device.put()
    return made


def check(devices: list[LightDevice], store: str, **more: Any) -> dict[str, Any]:
    told = account(devices, store, **more)
    print(json.dumps(told))
    assert (told["lost"], told["unexpected"], told["duplicated"]) == (0, 0, 0), told
    assert told["accepted"] == told["submitted"] == told["stored"], told
    return told


@pytest.mark.parametrize(("moment", "number"), [("commit", 1), ("commit", 3), ("receipt", 2), ("ack", 30)])
def test_killed_between_commit_receipt_and_acknowledgement(broker, members, tmp_path, moment, number):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store))
    devices = devices_of(broker, 2, rows=60)
    member.start_dying(moment, number)
    drive(devices, lambda: member.ended)
    assert member.kill() == -9
    stored = len(rows_in(store))
    confirmed = sum(len(device.stored) for device in devices)
    assert 0 < stored < 120
    assert confirmed <= stored
    member.start()
    drive(devices, lambda: all(device.done for device in devices))
    check(devices, store)


def test_killed_at_random_while_devices_send(broker, members, tmp_path):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store))
    devices = devices_of(broker, 5, receipt_s=1.0)
    member.start()
    told = torture(devices, [member], [], chance=random.Random(SEED))
    check(devices, store, seed=SEED, **told)


@pytest.mark.parametrize("persistence", [True, False])
def test_the_broker_is_killed_while_devices_send(members, tmp_path, persistence):
    store = f"sqlite:{tmp_path}/c.db"
    with Broker(tmp_path / "broker", persistence=persistence) as broker:
        members.append(member := Member(tmp_path, broker.port, store))
        devices = devices_of(broker, 5, receipt_s=1.0)
        member.start()
        told = torture(devices, [], [broker], chance=random.Random(SEED), kills=max(2, KILLS // 3))
        check(devices, store, seed=SEED, **told)


def test_two_collectors_share_the_work_and_are_killed(broker, members, tmp_path):
    store = postgres.shared().fresh()
    members += [Member(tmp_path, broker.port, store, name=name, group="centre") for name in ("c1", "c2")]
    devices = devices_of(broker, 5, receipt_s=1.0)
    for member in members:
        member.start()
    drive(devices, lambda: all(len(device.online) == 2 for device in devices))
    for device in devices:
        for _ in range(40):
            device.put()
    drive(devices, lambda: all(device.done for device in devices))
    by = dict(postgres.shared().execute("SELECT collector, COUNT(*) FROM results GROUP BY 1", store))
    assert by.keys() == {"c1", "c2"}
    told = torture(devices, members, [], chance=random.Random(SEED), kills=max(3, KILLS // 2))
    check(devices, store, seed=SEED, **told)


def test_postgres_is_restarted_and_crashes_while_devices_send(broker, members, tmp_path):
    server = postgres.shared()
    store = server.fresh()
    members.append(member := Member(tmp_path, broker.port, store))
    devices = devices_of(broker, 3, rows=50)
    member.start()
    drive(devices, lambda: all(device.done for device in devices))
    for end in (server.stop, server.crash):
        end()
        try:
            for device in devices:
                for _ in range(30):
                    device.put()
            drive(devices, lambda: not any(device.online for device in devices))
        finally:
            server.start()
        drive(devices, lambda: all(device.done for device in devices))
    assert not member.ended
    check(devices, store)


def test_devices_stop_while_postgres_hangs(broker, members, tmp_path):
    server = postgres.shared()
    store = server.fresh()
    members.append(member := Member(tmp_path, broker.port, store, keepalive_s=1))
    devices = devices_of(broker, 1, rows=10)
    member.start()
    drive(devices, lambda: all(device.done for device in devices))
    server.freeze()
    try:
        devices[0].put()
        drive(devices, lambda: not devices[0].online, timeout_s=40)
    finally:
        server.freeze(False)
    drive(devices, lambda: devices[0].done)
    check(devices, store)


def test_ten_thousand_second_deliveries_leave_one_row_each(broker, members, tmp_path):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store, batch=200))
    (device,) = devices_of(broker, 1, rows=100)
    member.start()
    drive([device], lambda: device.done)
    bodies = [device.body(seq) for seq in range(1, 101)]
    for _ in range(20):
        for body in bodies * 5:
            device.publish("result", body)
        device.put()  # comes behind them; a broker's queue is not endless
        drive([device], lambda: device.done)
    other = page("changed")
    device.publish("result", device.body(7, result=msgspec.Raw(other), sha256=sha256(other)))
    drive([device], lambda: bool(device.refused))
    assert device.refused == {7: "conflict"}
    assert "is taken" in member.log
    assert member.kill(signal.SIGTERM) == 0
    assert "stored 120, known 10000, conflicts 1," in member.log
    assert check([device], store)["stored"] == 120


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "sendto"])
def test_killed_at_each_system_call_of_its_kind(broker, members, tmp_path, call):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store))
    (device,) = devices_of(broker, 1)
    for number in (1, 2, 3, 5, 8, 13, 21, 34):
        for _ in range(40):
            device.put()
        inject = f"inject={call}:signal=SIGKILL:when={number}"
        member.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)
        drive([device], lambda: member.ended or device.done)
        killed = member.ended
        member.kill()
        if not killed:
            break
    member.start()
    drive([device], lambda: device.done)
    check([device], store, last=number)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is missing: apt-get install strace")
@pytest.mark.parametrize("fault", ["fdatasync:error=EIO:when=4..7", "pwrite64:error=ENOSPC:when=30..34"])
def test_errors_of_the_disk_make_devices_wait(broker, members, tmp_path, fault):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store))
    (device,) = devices_of(broker, 1, rows=300, window=10)
    member.start("strace", "-f", "-o", "/dev/null", "-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}")
    drive([device], lambda: device.done)
    assert not member.ended
    assert "the store takes nothing" in member.log
    check([device], store)


def torture(
    devices: list[LightDevice],
    members: list[Member],
    brokers: list[Broker],
    *,
    chance: random.Random,
    kills: int = KILLS,
) -> dict[str, Any]:
    """Let devices send while one after the other is killed and started again, then until all is confirmed."""
    ready_s: list[float] = []
    for _ in range(kills):
        send_for(devices, chance.uniform(0.2, 0.8))
        if brokers:
            broker = chance.choice(brokers)
            broker.kill()
            send_for(devices, chance.uniform(0.0, 0.3))
            broker.start()
            continue
        member = chance.choice(members)
        member.kill()
        send_for(devices, chance.uniform(0.0, 0.3))
        since, began = len(member.log), time.monotonic()
        member.start()
        drive(devices, lambda member=member, since=since: member.ready(since))
        ready_s.append(time.monotonic() - began)
    send_for(devices, 0.3)
    drive(devices, lambda: all(device.done for device in devices), timeout_s=90)
    return {"recovered": kills, "ready_s": round(max(ready_s, default=0.0), 2)}


def send_for(devices: list[LightDevice], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for device in devices:
            device.put()
        pause = time.monotonic() + 0.02
        while time.monotonic() < pause:
            for device in devices:
                device.step(0.002)


def test_helpers_see_a_loss(broker, members, tmp_path):
    store = f"sqlite:{tmp_path}/c.db"
    members.append(member := Member(tmp_path, broker.port, store))
    (device,) = devices_of(broker, 1, rows=3)
    member.start()
    drive([device], lambda: device.done)
    device.put()
    assert account([device], store)["lost"] == 1
    device.epoch = "0" * 32
    assert account([device], store)["unexpected"] == 3


def test_a_step_that_never_comes_is_noticed():
    with pytest.raises(AssertionError, match="does not happen"):
        until(lambda: False, timeout_s=0.01)


@pytest.mark.slow
def test_a_collector_ends_in_time_although_postgres_hangs(broker, members, tmp_path):
    server = postgres.shared()
    store = server.fresh()
    members.append(member := Member(tmp_path, broker.port, store))
    (device,) = devices_of(broker, 1, rows=1)
    member.start()
    drive([device], lambda: device.done)
    server.freeze()
    try:
        device.put()
        soon = time.monotonic() + 1
        drive([device], lambda: time.monotonic() > soon)
        began = time.monotonic()
        assert member.kill(signal.SIGTERM) == 75
        assert time.monotonic() - began < 10
    finally:
        server.freeze(False)
    assert "ended while the store did not answer" in member.log
    member.start()
    drive([device], lambda: device.done)
    check([device], store)
