import math

import pyclipper
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.boxes import count_matches, overlap
from converters.scores import Line, Page, score


def upright(x, y, width=100.0, height=20.0):
    return ((x, y), (x + width, y), (x + width, y + height), (x, y + height))


def hmean(boxes, quads, text="a"):
    """Score one page: labelled boxes, with a text each, against what was read."""
    labels = tuple(Line(text, box=box) for box in boxes)
    return score([Page("a", labels)], {"a": Page("a", tuple(Line("b", quad=quad) for quad in quads))}).hmean


ROWS = [upright(0.0, 40.0 * row) for row in range(4)]


def test_all_boxes_found_is_one_whatever_their_order_and_text():
    assert hmean(ROWS, ROWS[::-1]) == 1.0


def test_half_of_the_boxes_found_is_two_thirds():
    assert hmean(ROWS, ROWS[:2]) == pytest.approx(2 / 3)


def test_twice_as_many_boxes_as_labels_is_two_thirds():
    assert hmean(ROWS, [*ROWS, *(upright(500.0, 40.0 * row) for row in range(4))]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("shift", "found"), [(30.0, 1.0), (36.0, 0.0)])
def test_a_box_is_found_when_the_common_area_is_more_than_half_of_both_together(shift, found):
    # Of boxes 100 wide, (100 - shift) / (100 + shift) is common: half at a third.
    assert hmean([upright(0.0, 0.0)], [upright(shift, 0.0)]) == found


def test_a_label_is_found_once_and_what_is_read_finds_one_label():
    twice = [upright(0.0, 0.0), upright(2.0, 0.0)]
    assert hmean(ROWS[:1], twice) == pytest.approx(2 / 3)
    assert hmean(twice, ROWS[:1]) == pytest.approx(2 / 3)


def test_the_closest_boxes_are_taken_first():
    near, far = upright(10.0, 0.0), upright(-20.0, 0.0)
    assert count_matches([upright(0.0, 0.0), upright(30.0, 0.0)], [near, far]) == 1
    assert count_matches([upright(0.0, 0.0), upright(30.0, 0.0)], [upright(31.0, 0.0), near]) == 2


def test_turned_boxes_are_compared_as_they_lie():
    long = ((0.0, 0.0), (300.0, 300.0), (290.0, 310.0), (-10.0, 10.0))
    assert hmean([long], [long]) == 1.0
    assert hmean([long], [((0.0, 0.0), (300.0, 0.0), (300.0, 310.0), (0.0, 310.0))]) == 0.0, "its upright bounds"


def test_nothing_read_is_zero_and_nothing_labelled_is_unknown():
    assert hmean(ROWS, []) == 0.0
    assert hmean([], ROWS) is None
    assert score([Page("a", (Line("x"),))], {}).hmean is None, "a label without a box"


def test_pages_with_a_line_that_has_no_box_are_left_out():
    whole, part = Page("a", (Line("x", box=ROWS[0]),)), Page("b", (Line("x", box=ROWS[0]), Line("y")))
    read = {name: Page(name, (Line("x", quad=ROWS[0]), Line("y", quad=ROWS[1]))) for name in "ab"}
    assert score([whole, part], read).hmean == score([whole], read).hmean == pytest.approx(2 / 3)


def test_what_is_read_in_a_box_without_text_counts_nowhere():
    labels = (Line("x", box=ROWS[0]), Line(" ", box=upright(0.0, 100.0, 200.0, 100.0)))
    inside, beside = Line("y", quad=upright(10.0, 110.0)), Line("y", quad=upright(160.0, 110.0))
    assert score([Page("a", labels)], {"a": Page("a", (Line("x", quad=ROWS[0]), inside))}).hmean == 1.0
    assert score([Page("a", labels)], {"a": Page("a", (Line("x", quad=ROWS[0]), beside))}).hmean == pytest.approx(2 / 3)


def test_pages_are_counted_together_and_a_missing_one_as_empty():
    labels = [Page("a", (Line("x", box=ROWS[0]),)), Page("b", (Line("x", box=ROWS[0]), Line("x", box=ROWS[1])))]
    assert score(labels, {"a": Page("a", (Line("x", quad=ROWS[0]),))}).hmean == pytest.approx(2 * 1 / (3 + 1))


def test_boxes_without_area_are_never_the_same():
    flat = ((0.0, 0.0), (10.0, 0.0), (10.0, 0.0), (0.0, 0.0))
    assert hmean([flat], [flat]) == 0.0


# ------------------------------------------------------------------------------------------------ overlap


@st.composite
def quads(draw):
    """A line somewhere on a large page, up to 20 degrees askew, in either direction of its corners."""
    x, y = draw(st.floats(0, 200)) + 3000.0, draw(st.floats(0, 60)) + 3000.0
    width, height, turn = draw(st.floats(50, 800)), draw(st.floats(10, 60)), draw(st.floats(-0.35, 0.35))
    cos, sin = math.cos(turn), math.sin(turn)
    corners = [(0.0, 0.0), (width, 0.0), (width, height), (0.0, height)]
    placed = tuple((x + cos * right - sin * down, y + sin * right + cos * down) for right, down in corners)
    return placed[::-1] if draw(st.booleans()) else placed


def exact_overlap(a, b):
    clipper, scale = pyclipper.Pyclipper(), 1000
    for box, kind in ((a, pyclipper.PT_CLIP), (b, pyclipper.PT_SUBJECT)):
        clipper.AddPath([(round(x * scale), round(y * scale)) for x, y in box], kind)
    paths = clipper.Execute(pyclipper.CT_INTERSECTION, pyclipper.PFT_NONZERO, pyclipper.PFT_NONZERO)
    common = sum(abs(pyclipper.Area(path)) for path in paths)
    both = sum(abs(pyclipper.Area([(round(x * scale), round(y * scale)) for x, y in box])) for box in (a, b))
    return common / (both - common)


@given(a=quads(), b=quads())
def test_overlap_is_that_of_exact_polygons(a, b):
    assert overlap(a, b) == pytest.approx(exact_overlap(a, b), abs=2e-3)
    assert overlap(a, b) == pytest.approx(overlap(b, a), abs=1e-3)


@given(a=quads())
def test_overlap_with_itself_is_whole(a):
    assert overlap(a, a) == pytest.approx(1.0, abs=1e-4)
