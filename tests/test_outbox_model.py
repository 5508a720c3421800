"""The outbox against a dictionary: whatever order things happen in, both hold the same."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.config import OutboxConfig
from agent.errors import OutboxError
from agent.outbox import Marks, Outbox
from agent.outbox.rows import BROKERED, DEAD, PENDING
from agent.protocol import ranges
from tests.outbox_kit import MEMORY, BentClock, result

PAGES = [f"page-{number:05}" for number in range(12)]
SIZES = (10, 700, 4000, 60_000)
CONFIG = OutboxConfig(max_mb=1, min_free_mb=0, ballast_mb=0)

page = st.sampled_from(PAGES)
choice = st.lists(st.integers(0, 11), max_size=6)


class OutboxMachine(RuleBasedStateMachine):
    """One outbox, seen through a worker and an uplink that may each be closed and opened at any time."""

    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.path = Path(tempfile.mkdtemp(dir=MEMORY))
        self.clock = BentClock()
        self.worker = self.open("worker")
        self.uplink = self.open("uplink")
        self.rows: dict[tuple[str, int], tuple[str, bytes, int]] = {}
        self.verdicts: dict[str, str] = {}
        self.begun: dict[str, int] = {}
        self.here: set[str] = set()
        self.last_seq = 0
        self.session = 0
        self.salvaged = 0

    def open(self, role: str) -> Outbox:
        return Outbox(self.path, CONFIG, role=role, clock=self.clock)

    def teardown(self) -> None:
        self.worker.close()
        self.uplink.close()
        shutil.rmtree(self.path)
        logging.disable(logging.NOTSET)

    def chosen(self, numbers: list[int]) -> list[tuple[str, int]]:
        """Some rows by their place."""
        rows = sorted(self.rows, key=lambda key: key[1])
        return [rows[number] for number in set(numbers) if number < len(rows)]

    # -------------------------------------------------------------------------------------------------- worker

    @rule(key=page)
    def begin(self, key):
        attempts = self.worker.begin(key, "dock", key)
        if key not in self.here:
            self.begun[key] = self.begun.get(key, 0) + 1
            self.here.add(key)
        assert attempts == self.begun[key]
        if self.verdicts.get(key) != "accepted":
            self.verdicts[key] = "reading"

    @rule(key=page, size=st.sampled_from(SIZES))
    def accept(self, key, size):
        body = result(key, size)
        try:
            seq = self.worker.accept(key, body)
        except OutboxError:
            assert self.worker.held() == "full"
            return
        self.here.discard(key)
        if self.verdicts.get(key) == "accepted":
            assert seq is None
            return
        assert seq > self.last_seq
        self.last_seq = seq
        self.verdicts[key] = "accepted"
        self.begun.setdefault(key, 0)
        self.rows[self.worker.stats().epoch, seq] = (key, body, PENDING)

    @rule(key=page)
    def fail(self, key):
        self.worker.fail(key, "blank")
        self.here.discard(key)
        self.begun.setdefault(key, 0)
        if self.verdicts.get(key) != "accepted":
            self.verdicts[key] = "failed"

    # -------------------------------------------------------------------------------------------------- uplink

    @rule(numbers=choice)
    def brokered(self, numbers):
        keys = self.chosen(numbers)
        self.uplink.record(Marks(brokered=tuple(keys)))
        self.move(keys, (PENDING,), BROKERED)

    @rule(numbers=choice)
    def again(self, numbers):
        keys = self.chosen(numbers)
        self.uplink.record(Marks(again=tuple(keys)))
        self.move(keys, (PENDING, BROKERED), PENDING)

    @rule(numbers=choice)
    def refused(self, numbers):
        keys = self.chosen(numbers)
        self.uplink.record(Marks(refused=tuple((*key, "invalid") for key in keys)))
        self.move(keys, (PENDING, BROKERED), DEAD)

    @rule(numbers=choice)
    def stored(self, numbers):
        keys = self.chosen(numbers)
        epochs = {epoch for epoch, _ in keys}
        marks = {epoch: ranges(seq for of, seq in keys if of == epoch) for epoch in epochs}
        self.uplink.record(Marks(stored=marks))
        self.move(keys, (PENDING, BROKERED), None)

    def move(self, keys, before, after):
        for name in keys:
            key, body, state = self.rows[name]
            if state in before and after is None:
                del self.rows[name]
            elif state in before:
                self.rows[name] = (key, body, after)

    @rule(numbers=choice)
    def retry(self, numbers):
        keys = self.chosen(numbers)
        dead = [name for name in keys if self.rows[name][2] == DEAD]
        assert self.worker.retry([seq for _, seq in keys]) == len(dead)
        self.move(dead, (DEAD,), PENDING)

    @rule()
    def new_session(self):
        session = self.uplink.next_session()
        assert session > self.session
        self.session = session

    # ------------------------------------------------------------------------------------------------- the world

    @rule()
    def worker_restarts(self):
        self.worker.close()
        self.worker = self.open("worker")
        self.here.clear()

    @rule()
    def uplink_restarts(self):
        self.uplink.close()
        self.uplink = self.open("uplink")

    @rule(seconds=st.sampled_from((1.0, 100.0, 4000.0)))
    def time_passes(self, seconds):
        self.clock.run(seconds)

    @rule(seconds=st.sampled_from((-1e9, -3600.0, 1e9)))
    def wall_clock_jumps(self, seconds):
        self.clock.wall_s = max(0.0, self.clock.wall_s + seconds)

    @rule()
    def tidy(self):
        self.worker.tidy()
        self.uplink.tidy()

    @precondition(lambda self: self.salvaged < 3)
    @rule()
    def file_is_damaged(self):
        self.salvaged += 1
        epoch = self.worker.stats().epoch
        with (self.path / "outbox.db").open("r+b") as file:
            file.write(b"damage")
        self.worker.close()
        self.worker = self.open("worker")
        self.here.clear()
        assert self.worker.stats().epoch != epoch
        self.last_seq = max((seq for _, seq in self.rows), default=0)  # the new epoch counts from there

    # -------------------------------------------------------------------------------------------------- what holds

    @invariant()
    def both_hold_the_same_rows(self):
        found = {(row.epoch, row.seq): (row.key, row.result, row.state) for row in self.uplink.rows()}
        assert found == self.rows

    @invariant()
    def verdicts_are_the_same(self):
        found = {key: known.status for key in PAGES if (known := self.worker.intake(key)) is not None}
        assert found == self.verdicts

    @invariant()
    def what_is_to_be_sent_is_given(self):
        pending = {name for name, (_, _, state) in self.rows.items() if state == PENDING}
        assert {(row.epoch, row.seq) for row in self.uplink.pending(100, fresh_s=50)} == pending

    @invariant()
    def what_waits_is_told(self):
        waiting = {name for name, (_, _, state) in self.rows.items() if state == BROKERED}
        told = self.uplink.waiting(100)
        assert {(epoch, seq) for epoch, runs in told.items() for a, b in runs for seq in range(a, b + 1)} == waiting

    @invariant()
    def numbers_are_the_same(self):
        stats = self.uplink.stats()
        states = [state for _, _, state in self.rows.values()]
        assert (stats.pending, stats.brokered, stats.dead) == tuple(map(states.count, (PENDING, BROKERED, DEAD)))
        assert stats.bytes <= stats.max_bytes
        assert self.worker.held() in ("", "full")


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
