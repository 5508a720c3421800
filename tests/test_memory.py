"""The budget keeps its promise, and says what it needs where it cannot."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.errors import BudgetError
from agent.memory import (
    DET_BYTES_PER_PX,
    MARGIN_BYTES,
    MB,
    MODEL_BYTES,
    REC_BYTES_PER_PX,
    SCALED_BYTES,
    Budget,
    resident_bytes,
    trim,
)
from tests.command import run_python

limits = st.integers(1, 4000)
residents = st.integers(0, 600 * MB)
crews = st.integers(1, 8)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Budget, int]:
    """Return a budget that could be made and the resident memory it was made for."""
    limit, resident, processes = draw(limits), draw(residents), draw(crews)
    try:
        return Budget.plan(limit, resident, processes), resident
    except BudgetError:
        assume(False)
        raise


@given(plans(), st.floats(0, 1))
def test_what_a_page_takes_stays_within_the_limit(made, share):
    budget, resident = made
    held = int(share * (budget.frame_bytes + SCALED_BYTES))
    taken = resident + MARGIN_BYTES + MODEL_BYTES * budget.processes + held
    assert taken + budget.tile_px(held) * DET_BYTES_PER_PX * budget.processes <= budget.limit_mb * MB
    assert taken + budget.line_px(held) * REC_BYTES_PER_PX * budget.processes <= budget.limit_mb * MB


@given(plans())
def test_decoding_stays_within_the_limit(made):
    budget, resident = made
    assert resident + budget.decode_bytes + MARGIN_BYTES <= budget.limit_mb * MB
    assert budget.frame_bytes <= budget.decode_bytes


@given(plans(), st.integers(0, 10_000 * MB))
def test_tiles_and_lines_are_never_uselessly_small(made, held):
    budget, _ = made
    assert budget.tile_px(held) >= 160 * 320
    assert budget.line_px(held) >= 48 * 320


@given(limits, residents, crews)
def test_too_small_a_limit_names_the_smallest_that_suffices(limit, resident, processes):
    try:
        Budget.plan(limit, resident, processes)
    except BudgetError as error:
        (needed,) = map(
            int, re.findall(r"a memory limit of \d+ MB is too small for any page: give (\d+) MB", str(error))
        )
        assert needed > limit
        assert Budget.plan(needed, resident, processes).limit_mb == needed
        with pytest.raises(BudgetError):
            Budget.plan(needed - 2, resident, processes)


@given(plans(), st.integers(1, 500))
def test_more_memory_never_makes_a_page_smaller(made, more):
    budget, resident = made
    larger = Budget.plan(budget.limit_mb + more, resident, budget.processes)
    assert larger.frame_bytes >= budget.frame_bytes
    assert larger.tile_px(budget.frame_bytes) >= budget.tile_px(budget.frame_bytes)


def test_resident_memory_is_that_of_this_process():
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    assert resident_bytes() == pytest.approx(pages * 4096, rel=0.05)


def test_freed_memory_goes_back_to_the_system():
    ran = run_python(
        "import numpy as np\n"
        "from agent.memory import MB, keep_heap_small, resident_bytes, trim\n"
        "keep_heap_small()\n"
        "np.ones(12 * MB, np.uint8)\n"
        "before = resident_bytes()\n"
        "for size in (12, 20, 28, 12):\n"
        "    held = [np.ones(size * MB, np.uint8) for _ in range(3)] + [bytes(3 * MB)]\n"
        "    del held\n"
        "trim()\n"
        "print((resident_bytes() - before) // MB)\n"
    )
    assert ran.err == ""
    assert int(ran.out) <= 2


def test_collecting_passes_over_what_was_there_before():
    ran = run_python(
        "import gc\n"
        "from agent.memory import collect, settle, unsettle\n"
        "ring = []\n"
        "ring.append(ring)\n"
        "settle()\n"
        "held = len(gc.get_objects())\n"
        "after = []\n"
        "after.append(after)\n"
        "del ring, after\n"
        "collect()\n"
        "print(held, gc.get_freeze_count() > 1000)\n"
        "unsettle()\n"
        "print(gc.get_freeze_count(), gc.collect() >= 1)\n"
    )
    assert ran.err == ""
    held, *said = ran.out.split()
    assert int(held) < 100
    assert said == ["True", "0", "True"]


def test_trimming_is_safe_at_any_time():
    trim()
    trim()
