"""How rows are sent and marked, stepped by hand: a real outbox, a link and a clock that the test holds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from agent.config import AgentConfig, OutboxConfig
from agent.mqtt import Offline
from agent.outbox import Outbox
from agent.protocol import Receipt
from agent.uplink import delivery
from agent.uplink.delivery import Delivery
from tests.centre import SetClock, broker_settings, page

DEVICE = "dev-1"


class StubLink:
    """A link that takes everything and says nothing by itself."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str, bytes]] = []
        self.unacked: set[int] = set()
        self.online = True
        self.most_bytes = 1 << 30

    @property
    def room(self) -> int:
        return 10 - len(self.unacked)

    def fits(self, topic: str, body: bytes) -> bool:
        return len(body) <= self.most_bytes

    def publish(self, topic: str, body: bytes, **_: Any) -> int | None:
        mid = len(self.sent) + 1
        self.sent.append((mid, topic, body))
        self.unacked.add(mid)
        return mid


class Bench:
    """A delivery, stepped by hand."""

    def __init__(self, state_dir: Path, rows: int, **more: Any) -> None:
        config = broker_settings(1, **{"retry_max_s": 300.0, "receipt_s": 60.0, **more})
        agent = AgentConfig(
            device=DEVICE, state_dir=str(state_dir), mqtt=config, outbox=OutboxConfig(min_free_mb=0, ballast_mb=0)
        )
        self.clock = SetClock()
        self.outbox = Outbox(state_dir, agent.outbox, role="uplink", clock=self.clock)
        for number in range(rows):
            self.outbox.accept(f"key-{number}", page(f"key-{number}", "x"))
        self.link = StubLink()
        self.delivery = Delivery(agent, config, self.link, self.outbox, self.clock)  # type: ignore[arg-type]
        self.delivery.heard_collector("c", "1")

    def send(self, later_s: float = 0.0) -> list[int]:
        """Send what may be sent after some time; returns the ids."""
        self.clock.now += later_s
        self.delivery.ledger.record()
        before = len(self.link.sent)
        self.delivery.send()
        return [mid for mid, _, _ in self.link.sent[before:]]

    def ack(self, mids: list[int], code: int) -> None:
        """Let the broker answer."""
        for mid in mids:
            self.link.unacked.discard(mid)
            assert self.delivery.acked(mid, code)

    def dead(self) -> list[tuple[int, str]]:
        """Return the rows put aside, and why."""
        self.delivery.ledger.record(at_once=True)
        return [(row.seq, row.reason) for row in self.outbox.rows(state=3)]


@pytest.mark.parametrize(("code", "word"), [(0x10, "no_subscriber"), (0x87, "not_authorized")])
def test_nobody_there_or_no_right_stops_sending_and_tries_slowly_with_one_row(tmp_path, code, word):
    bench = Bench(tmp_path, 30)
    mids = bench.send()
    assert len(mids) == 10
    bench.ack(mids, code)
    assert (bench.delivery.held, bench.send(14.9)) == (word, [])
    pauses = []
    for _ in range(6):
        start = bench.clock.now
        while not (mids := bench.send(1.0)):
            pass
        assert len(mids) == 1
        pauses.append(bench.clock.now - start)
        bench.ack(mids, code)
    assert max(pauses) <= 301.0 and pauses[-1] >= 150.0, "30 s at first, doubling to 300 s"
    bench.clock.now += 300.0
    bench.ack(bench.send(), 0)
    assert (bench.delivery.held, len(bench.send())) == ("", 10)
    assert (bench.dead(), bench.delivery.counts.refused) == ([], 0)


def test_collector_that_comes_online_ends_the_wait_for_a_subscriber(tmp_path):
    bench = Bench(tmp_path, 3)
    bench.ack(bench.send(), 0x10)
    bench.delivery.heard_collector("c", None)
    bench.delivery.heard_collector("c", "2")
    assert len(bench.send()) == 3


@pytest.mark.parametrize("code", [0x80, 0x83, 0x91, 0x97])
def test_broker_that_takes_nothing_now_is_asked_again_soon(tmp_path, code):
    bench = Bench(tmp_path, 3)
    bench.ack(bench.send(), code)
    assert bench.send(0.4) == []
    mids = bench.send(0.7)
    assert len(mids) == 1
    bench.ack(mids, 0)
    assert (len(bench.send()), bench.dead()) == (2, [])


@pytest.mark.parametrize("code", [0x90, 0x95, 0x99])
def test_row_that_is_refused_three_times_is_put_aside_and_others_go_on(tmp_path, code):
    bench = Bench(tmp_path, 3)
    tries = 0
    for _ in range(8):
        for mid in bench.send(1.0):
            seq = json.loads(bench.link.sent[mid - 1][2])["seq"]
            tries += seq == 2
            bench.ack([mid], code if seq == 2 else 0)
    assert (tries, bench.dead()) == (3, [(2, "rejected")])
    assert (bench.outbox.stats().brokered, bench.delivery.take_reasons()) == (2, {"rejected"})


def test_row_that_makes_the_broker_end_the_connection_is_found(tmp_path):
    bench = Bench(tmp_path, 3)
    for _ in range(12):
        for mid in bench.send(3.0):
            seq = json.loads(bench.link.sent[mid - 1][2])["seq"]
            if seq == 2:
                bench.link.unacked.clear()
                bench.delivery.offline(Offline("too large", code=0x95))
                bench.delivery.heard_collector("c", "1")
                break
            bench.ack([mid], 0)
    assert (bench.dead(), bench.outbox.stats().brokered) == ([(2, "rejected")], 2)


def test_lost_link_costs_no_row_an_attempt(tmp_path):
    bench = Bench(tmp_path, 3)
    for _ in range(10):
        assert len(bench.send(3.0)) == 3
        bench.link.unacked.clear()
        bench.delivery.offline(Offline("the connection was lost"))
        bench.delivery.heard_collector("c", "1")
    assert bench.dead() == []


def test_marks_of_a_row_cost_one_write_when_its_receipt_is_quick(tmp_path):
    bench = Bench(tmp_path, 10)
    written = []
    record = bench.outbox.record
    bench.outbox.record = lambda marks: (written.append(marks), record(marks))[1]  # type: ignore[method-assign,assignment]
    mids = bench.send()
    bench.ack(mids[:5], 0)
    epoch = bench.outbox.stats().epoch
    bench.delivery.receipt(Receipt(collector="c", device=DEVICE, epoch=epoch, stored=((1, 10),)))
    bench.ack(mids[5:], 0)  # receipts were faster than acknowledgements
    assert bench.send(0.1) == []
    bench.clock.now += 0.11
    bench.delivery.ledger.record()
    (marks,) = written
    assert (marks.brokered, marks.stored, marks.again) == ((), {epoch: ((1, 10),)}, ())
    assert (bench.outbox.stats().pending, bench.outbox.stats().brokered) == (0, 0)
    assert bench.delivery.counts.stored == 10


def test_marks_are_recorded_after_a_hundred_rows_or_a_fifth_of_a_second(tmp_path):
    bench = Bench(tmp_path, 0)
    written = []
    bench.outbox.record = written.append  # type: ignore[method-assign,assignment]
    for seq in range(99):
        bench.delivery.ledger.brokered(("e", seq))
    bench.delivery.ledger.record()
    assert not written
    bench.delivery.ledger.brokered(("e", 99))
    bench.delivery.ledger.record()
    bench.delivery.ledger.brokered(("e", 100))
    bench.delivery.ledger.record()
    bench.clock.now += 0.21
    bench.delivery.ledger.record()
    assert [len(marks.brokered) for marks in written] == [100, 1]


def test_collector_that_confirms_nothing_is_not_buried(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "WAITING_ROWS", 25)
    bench = Bench(tmp_path, 60)
    for _ in range(20):
        bench.ack(bench.send(0.1), 0)
    assert bench.delivery.counts.sent == 25


def test_patience_doubles_while_rows_are_sent_again_in_vain(tmp_path):
    bench = Bench(tmp_path, 1)
    sent_at = []
    for _ in range(3000):
        mids = bench.send(1.0)
        bench.delivery.ask()
        for mid in sorted(bench.link.unacked):
            bench.link.unacked.discard(mid)
            bench.delivery.acked(mid, 0)
        if mids:
            sent_at.append(bench.clock.now)
    gaps = [b - a for a, b in itertools.pairwise(sent_at)]
    assert gaps[:3] == pytest.approx([72, 132, 252], abs=4)


def test_few_large_rows_are_on_their_way_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(delivery, "FLIGHT_BYTES", 1000)
    bench = Bench(tmp_path, 10)
    assert len(bench.send()) == 1000 // len(bench.link.sent[0][2]) + 1
