"""What every source keeps to. A source's tests inherit `SourceContract` and give it a rig."""

from __future__ import annotations

import os
import select
import time
from typing import Protocol

from agent.clock import Clock
from agent.errors import FrameError
from agent.memory import Budget
from agent.sources import Capture, Source

AMPLE = Budget.plan(1000, 0)


class BentClock(Clock):
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.wall_s = time.time()
        self.now_s = 1000.0

    def wall_ms(self) -> int:
        return int(self.wall_s * 1000)

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.wall_s += seconds
        self.now_s += seconds


class Rig(Protocol):
    """A source under test, and the world it takes pages from."""

    clock: BentClock

    def open(self) -> Source:
        """Start the source, as after the end of its process where it was started before."""

    def put(self, number: int) -> None:
        """Give the world a page of its own content."""

    def settle(self) -> None:
        """Let the time pass that a new page may take to be offered."""


def drained(source: Source, rig: Rig, limit: int = 1000) -> list[Capture]:
    """Return every page a source offers now."""
    found: list[Capture] = []
    for _ in range(limit):
        capture = source.poll()
        if capture is None and source.next_s() > 0:
            return found
        found += [] if capture is None else [capture]
    raise AssertionError("a source that says there is more and gives nothing")


class SourceContract:
    """Tests for any source."""

    def test_nothing_gives_nothing_and_sleeps(self, rig):
        source = rig.open()
        assert source.poll() is None
        assert 0 < source.next_s() <= 60
        assert source.poll() is None

    def test_what_is_watched_can_be_waited_for(self, rig):
        source = rig.open()
        source.poll()
        assert select.select(source.filenos(), [], [], 0) == ([], [], [])

    def test_every_page_is_offered_once(self, rig):
        source = rig.open()
        for number in range(3):
            rig.put(number)
        rig.settle()
        captures = drained(source, rig)
        assert len({capture.key for capture in captures}) == len(captures) == 3
        assert all(capture.source == source.name and capture.name for capture in captures)
        rig.settle()
        assert drained(source, rig) == []
        for capture in captures:
            source.done(capture)
        rig.settle()
        assert drained(source, rig) == []

    def test_page_that_is_done_never_comes_back(self, rig):
        source = rig.open()
        rig.put(1)
        rig.settle()
        (capture,) = drained(source, rig)
        source.done(capture)
        source = rig.open()
        rig.settle()
        assert drained(source, rig) == []

    def test_page_without_a_verdict_has_the_same_key_after_a_restart(self, rig):
        source = rig.open()
        rig.put(1)
        rig.put(2)
        rig.settle()
        keys = sorted(capture.key for capture in drained(source, rig))
        for _ in range(2):
            source = rig.open()
            assert sorted(capture.key for capture in drained(source, rig)) == keys

    def test_pixels_are_those_of_the_page(self, rig):
        source = rig.open()
        rig.put(7)
        rig.settle()
        (capture,) = drained(source, rig)
        frame = capture.load(AMPLE)
        assert frame.key == capture.key
        assert frame.source == capture.source
        assert frame.pixels.shape[:2] == (frame.height, frame.width)

    def test_page_that_nothing_was_decided_about_is_offered_again_and_not_at_once(self, rig):
        source = rig.open()
        rig.put(1)
        rig.settle()
        (capture,) = drained(source, rig)
        source.retry(capture)
        assert source.poll() is None
        assert 0 < source.next_s() <= 5
        rig.clock.wait(source.next_s())
        (again,) = drained(source, rig)
        assert again.key == capture.key

    def test_put_away_page_can_be_read_again(self, rig):
        source = rig.open()
        for number, error in ((1, None), (2, FrameError("damaged", "damaged"))):
            rig.put(number)
            rig.settle()
            (capture,) = drained(source, rig)
            place = source.done(capture, error)
            place.encode()
            assert source.reread(place)
            (again,) = drained(source, rig)
            assert again.key != capture.key  # the outbox would know it, and it would not be read
            assert not source.reread(place)
            source.done(again)

    def test_places_that_hold_nothing_are_told_so(self, rig):
        source = rig.open()
        assert not any(source.reread(place) for place in ("", "/", "/etc/passwd", "..", "nonsense", "a\0b"))

    def test_closing_gives_every_descriptor_back(self, rig):
        before = len(os.listdir("/proc/self/fd"))
        source = rig.open()
        rig.put(1)
        rig.settle()
        (capture,) = drained(source, rig)
        source.done(capture)
        source.tidy()
        source.close()
        assert len(os.listdir("/proc/self/fd")) == before
