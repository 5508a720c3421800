"""What is to be given up at which reading, and what the kernel refuses."""

from __future__ import annotations

import pytest

from agent import cgroup
from agent.ceiling import WARM_BYTES, Ceiling, Reading, allowed_mb, clear_peak
from agent.health import peak_mb
from agent.memory import MARGIN_BYTES, MB
from tests.command import run_python

LOADED = 100 * MB
SOFT = 100 + (WARM_BYTES + MARGIN_BYTES) // MB


@pytest.fixture
def ceiling() -> Ceiling:
    made = Ceiling(256)
    made.settle(LOADED)
    return made


def reading(resident: float, peak: float = 0.0) -> Reading:
    return Reading(resident, max(resident, peak))


def test_what_the_budget_allows_is_no_matter(ceiling):
    assert ceiling.judge(reading(SOFT, 256)) == ""


def test_growth_past_the_margin_rebuilds_the_models_and_then_the_process(ceiling):
    assert ceiling.judge(reading(SOFT + 1)) == "rebuild"
    assert ceiling.judge(reading(SOFT + 1)) == "restart"


def test_growth_that_a_rebuilding_ended_may_come_again(ceiling):
    for _ in range(3):
        assert ceiling.judge(reading(SOFT + 1)) == "rebuild"
        assert ceiling.judge(reading(SOFT - 1)) == ""


def test_page_past_the_limit_ends_the_process(ceiling, caplog):
    assert ceiling.judge(reading(101, 257)) == "restart"
    assert "a page took 257 MB, and the limit is 256" in caplog.text


def test_other_processes_have_their_part_of_the_limit():
    ceiling = Ceiling(256)
    ceiling.settle(LOADED, beside_bytes=56 * MB)
    assert ceiling.limit_mb == 200
    assert ceiling.judge(reading(101, 201)) == "restart"


def test_control_group_that_allows_less_sets_the_limit(monkeypatch, caplog):
    monkeypatch.setattr(cgroup, "look", lambda: cgroup.Group(200 * MB))
    assert allowed_mb(256) == 200
    assert "allows this service 200 MB, and memory.limit_mb is 256" in caplog.text
    assert allowed_mb(150) == 150
    monkeypatch.setattr(cgroup, "look", cgroup.Group)
    assert allowed_mb(256) == 256


def test_reading_is_of_this_process_and_its_peak_begins_anew(ceiling):
    taken = bytearray(64 * MB)
    first = ceiling.read()
    size = len(taken)
    del taken
    second = ceiling.read()  # its peak is that of the moment after the first
    third = ceiling.read()
    assert first.peak_mb >= first.resident_mb >= size / MB
    assert third.peak_mb < first.peak_mb - 32
    assert ceiling.most_mb == max(first.peak_mb, second.peak_mb)
    clear_peak()
    assert peak_mb() < first.peak_mb - 32


def test_kernel_refuses_what_is_far_above_the_limit():
    ran = run_python(
        "import numpy as np\n"
        "from agent.ceiling import fence\n"
        "fence(150)\n"
        "np.ones(60 << 20, np.uint8)\n"
        "try:\n"
        "    np.ones(400 << 20, np.uint8)\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )
    assert ran.out == "refused\n", ran.err
