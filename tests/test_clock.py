"""The clocks: one wall clock, one that only grows and is the same for all processes, and the name of the boot."""

from __future__ import annotations

import time

from agent import clock as clocks
from agent.clock import Clock
from tests.command import run_python


def test_the_wall_clock_is_unix_time_in_milliseconds():
    before = time.time() * 1000
    assert before - 1 <= Clock().wall_ms() <= time.time() * 1000 + 1


def test_a_wall_clock_before_1970_is_0(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: -1)
    assert Clock().wall_ms() == 0


def test_the_monotonic_clock_is_the_same_for_all_processes():
    clock = Clock()
    before = clock.monotonic()
    there = float(run_python("from agent.clock import Clock; print(Clock().monotonic())").out)
    assert before < there < clock.monotonic()


def test_a_boot_has_one_name_for_all_processes():
    there = run_python("from agent.clock import Clock; print(Clock().boot_id)").out.strip()
    assert there == Clock().boot_id
    assert len(there) == 36


def test_without_a_name_of_the_boot_each_start_is_one_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setattr(clocks, "Path", lambda _: tmp_path / "none")
    assert Clock().boot_id != Clock().boot_id
