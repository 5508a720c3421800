"""A page read by two processes is the page read by one; a mate that dies costs nothing but time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import memory
from agent.bundle import ModelBundle
from agent.engines import EngineSettings
from agent.image import load_frame
from agent.mate import Crew, shares
from agent.page import PageResult
from agent.reader import Reader, ReaderSettings
from tests.crew_program import pictures

SAMPLE = Path(__file__).parent.parent / "samples" / "receipt.png"


def settings(threads: int) -> ReaderSettings:
    # Enough for the largest tiles whatever the process of the tests holds: tiles of another size give other boxes.
    return ReaderSettings(memory_mb=2000, engine=EngineSettings(threads=threads))


def read(reader: Reader) -> PageResult:
    return reader.read(load_frame(SAMPLE, "receipt", reader.budget))


def mates(reader: Reader) -> list[int]:
    return [mate._process.pid for mate in reader._crew._mates]


@pytest.mark.models
def test_two_processes_read_what_one_reads(bundle_path: Path) -> None:
    bundle = ModelBundle.load(bundle_path)
    alone, both = Reader(bundle, settings(1)), Reader(bundle, settings(2))
    try:
        assert not mates(alone)
        assert len(mates(both)) == 1
        assert read(both).lines == read(alone).lines
        assert read(both).lines  # the mate is in order for the next page
    finally:
        alone.close()
        both.close()


@pytest.mark.models
def test_a_second_process_goes_where_pictures_would_be_kept_smaller_for_it(
    bundle_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, limit = ModelBundle.load(bundle_path), memory.resident_bytes() // memory.MB + 170
    alone = Reader(bundle, ReaderSettings(memory_mb=limit))
    both = Reader(bundle, ReaderSettings(memory_mb=limit, engine=EngineSettings(threads=2)))
    try:
        assert not mates(both)
        assert both.budget.frame_bytes == alone.budget.frame_bytes
        (record,) = caplog.records
        assert "too small for 2 processes" in record.message
        assert read(both).lines
    finally:
        alone.close()
        both.close()


@pytest.mark.models
def test_a_page_is_read_to_the_end_when_the_mate_dies(bundle_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(ModelBundle.load(bundle_path), settings(2))
    try:
        whole = read(reader)
        os.kill(mates(reader)[0], signal.SIGKILL)
        assert read(reader).lines == whole.lines
        assert not mates(reader)
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert read(reader).lines == whole.lines
    finally:
        reader.close()


@pytest.mark.models
@pytest.mark.parametrize("fault", [MemoryError, KeyboardInterrupt])
def test_page_after_one_that_broke_off_has_its_own_text(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    bundle = ModelBundle.load(bundle_path)
    alone, both = Crew(bundle, EngineSettings()), Crew(bundle, EngineSettings(threads=3))
    first, second = pictures()[0], [tile[:, ::-1] for tile in pictures()[0]]
    texts = [[found.tolist() for found in alone.run("det", tiles, costs=[1] * 4)] for tiles in (first, second)]
    assert texts[0] != texts[1]
    before = list(both._mates)

    def breaks_off(*given: object) -> NoReturn:
        raise fault

    try:
        with monkeypatch.context() as patched:
            patched.setattr(both.wake(), "run", breaks_off)
            with pytest.raises(fault):
                both.run("det", first, costs=[1] * 4)
        assert both.size == 1
        assert all(mate.status is not None for mate in before)
        assert [found.tolist() for found in both.run("det", second, costs=[1] * 4)] == texts[1]
        assert both.size == 3
    finally:
        alone.close()
        both.close()


@pytest.mark.models
def test_mate_that_was_sent_away_or_died_stays_away_after_a_rest(bundle_path: Path) -> None:
    crew = Crew(ModelBundle.load(bundle_path), EngineSettings(threads=3))
    try:
        crew.dismiss()
        crew.rest()
        crew.wake()
        assert crew.size == 2
        crew._mates[0]._process.kill()
        crew._mates[0]._process.wait()
        crew.release()
        crew.rest()
        crew.wake()
        assert crew.size == 1
    finally:
        crew.close()


@given(costs=st.lists(st.integers(1, 3000), max_size=60), count=st.integers(1, 4))
def test_shares_hold_every_job_once_and_none_costs_more_than_its_part_and_one_job(costs: list[int], count: int) -> None:
    order = sorted(range(len(costs)), key=costs.__getitem__)
    cut = shares(order, costs, count)
    assert len(cut) == count
    assert [index for share in cut for index in share] == order
    if costs:
        assert max(sum(costs[i] for i in share) for share in cut) <= sum(costs) / count + max(costs)
