"""Pages go to JSON and come back."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import FrameError
from agent.page import SCHEMA, PageResult, TextLine, from_json, to_json

numbers = st.floats(min_value=-1e6, max_value=1e6)
shares = st.floats(min_value=0.0, max_value=1.0)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
points = st.tuples(numbers, numbers)
text_lines = st.builds(
    TextLine, text=texts, score=shares, quad=st.tuples(points, points, points, points), box_score=shares
)
pages = st.builds(
    PageResult,
    image=texts,
    width=st.integers(0, 65_500),
    height=st.integers(0, 65_500),
    lines=st.lists(text_lines, max_size=5).map(tuple),
    seconds=st.floats(0, 1e4),
    timings_ms=st.dictionaries(texts, st.floats(0, 1e7), max_size=3),
    bundle=texts,
    direction=st.sampled_from((0, 90, 180, 270)),
)
failures = st.builds(PageResult, image=texts, width=st.just(0), height=st.just(0), error=texts, reason=texts)
PAGE = PageResult("a.png", 4, 3, (TextLine("字", 0.5, ((0, 0), (4, 0), (4, 3), (0, 3))),), bundle="b")


@given(pages | failures)
def test_page_goes_to_json_and_back_unchanged(page):
    assert from_json(to_json(page)) == page


@given(pages | failures)
def test_json_is_one_line_with_the_schema_first(page):
    row = to_json(page)
    assert b"\n" not in row
    assert next(iter(json.loads(row).items())) == ("schema", SCHEMA)


def test_only_a_failed_page_has_an_error():
    assert not {"error", "reason"} & json.loads(to_json(PAGE)).keys()
    failed = msgspec.structs.replace(PAGE, error="a.png: empty", reason="empty")
    assert {"error", "reason"} <= json.loads(to_json(failed)).keys()


def test_lines_have_the_fields_that_consumers_rely_on():
    (line,) = json.loads(to_json(PAGE))["lines"]
    assert line == {"text": "字", "score": 0.5, "quad": [[0, 0], [4, 0], [4, 3], [0, 3]], "box_score": 0.0}


def test_fields_added_later_are_ignored():
    assert from_json(to_json(PAGE)[:-1] + b',"document":"cheque"}') == PAGE


@pytest.mark.parametrize(
    "row",
    [
        b'{"schema": 2, "image": "a", "width": 1, "height": 1}',
        b'{"schema": 2, "image": {"name": "a"}, "size": [1, 1]}',  # a newer form may differ in anything
    ],
)
def test_newer_schema_is_refused_by_its_number(row):
    with pytest.raises(FrameError, match="schema 2; this version reads up to 1") as refusal:
        from_json(row)
    assert refusal.value.reason == "schema"


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"[]",
        b'{"image": "a"}',
        b'{"image": "a", "width": "1", "height": 1}',
        b'{"image": "a", "width": 1, "height": 1, "lines": [{"text": "a", "score": 1.5, "quad": []}]}',
        b'{"image": "\xff", "width": 1, "height": 1}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_page_is_refused(row):
    with pytest.raises(FrameError) as refusal:
        from_json(row)
    assert refusal.value.reason == "json"


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_and_nothing_else(row):
    with pytest.raises(FrameError):
        from_json(row)


def test_decoding_time_counts():
    page = PageResult("a.png", 4, 3, seconds=1.0, timings_ms={"det": 5.0}).with_decoding(0.25)
    assert page.seconds == 1.25
    assert page.timings_ms == {"decode": 250.0, "det": 5.0}
