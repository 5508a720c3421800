"""Probability maps become boxes as PP-OCR's post-processing makes them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pyclipper
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent import orient
from agent.detect import Box, find_boxes, unclip

CERTAIN = 230  # of 255


def boxes_of(probability: np.ndarray, *, threshold: float = 0.3, box_threshold: float = 0.5) -> tuple[Box, ...]:
    return find_boxes(probability, threshold=threshold, box_threshold=box_threshold, unclip_ratio=1.6)


def blank(width: int = 640, height: int = 480) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def drawn(*rectangles: tuple[float, float, float, float, float], level: int = CERTAIN) -> np.ndarray:
    """Return a map with rectangles (centre x, y, width, height, degrees clockwise)."""
    probability = blank()
    for x, y, width, height, degrees in rectangles:
        corners = cv2.boxPoints(((x, y), (width, height), degrees))
        cv2.fillPoly(probability, [np.rint(corners).astype(np.int32)], level)
    return probability


def centre(box: Box) -> tuple[float, float]:
    return sum(x for x, _ in box.quad) / 4, sum(y for _, y in box.quad) / 4


def by_polygon_library(width: float, height: float, degrees: float, ratio: float) -> tuple[float, float]:
    """Return the sides of the smallest rectangle around a rectangle that pyclipper has grown, as PP-OCR does it."""
    fine = 1000  # pyclipper counts in whole numbers
    corners = cv2.boxPoints(((0, 0), (width, height), degrees)).astype(float) * fine
    offset = pyclipper.PyclipperOffset(arc_tolerance=0.001 * fine)
    offset.AddPath(corners.tolist(), pyclipper.JT_ROUND, pyclipper.ET_CLOSEDPOLYGON)
    distance = width * height * ratio / (2 * (width + height))
    (grown,) = offset.Execute(distance * fine)
    return cv2.minAreaRect(np.array(grown, np.float32) / fine)[1]


@given(st.floats(3, 900), st.floats(3, 200), st.floats(0, 90), st.floats(0.5, 3))
def test_unclip_is_what_a_polygon_library_makes_of_it(width, height, degrees, ratio):
    ours = unclip((width, height), ratio)
    theirs = by_polygon_library(width, height, degrees, ratio)
    assert sorted(ours) == pytest.approx(sorted(theirs), rel=2e-3, abs=0.05)


@given(st.floats(3, 900), st.floats(3, 200), st.floats(0.1, 3))
def test_unclip_grows_both_sides_by_the_same_amount(width, height, ratio):
    wide, high = unclip((width, height), ratio)
    assert wide - width == pytest.approx(high - height)
    assert wide > width


@pytest.mark.parametrize("level", [0, 70])
def test_map_without_text_gives_no_boxes(level):
    probability = blank()
    probability[:] = level
    assert boxes_of(probability) == ()


@pytest.mark.parametrize("shape", [(1, 1), (32, 32), (1, 500), (500, 1)])
@pytest.mark.parametrize("level", [0, 255])
def test_maps_of_any_shape_are_borne(shape, level):
    assert len(boxes_of(np.full(shape, level, np.uint8))) <= 1


def test_map_full_of_text_is_one_box_of_its_size():
    probability = blank()
    probability[:] = 255
    (box,) = boxes_of(probability)
    assert box.score == pytest.approx(1)
    assert centre(box) == pytest.approx((320, 240), abs=2)


def test_box_has_the_mean_probability_as_its_score():
    (box,) = boxes_of(drawn((320, 240, 200, 40, 0)))
    assert box.score == pytest.approx(CERTAIN / 255, abs=0.03)


def test_unsure_boxes_are_left_out():
    probability = drawn((320, 240, 200, 40, 0), level=100)
    assert boxes_of(probability, box_threshold=0.5) == ()
    assert len(boxes_of(probability, box_threshold=0.3)) == 1


@pytest.mark.parametrize("height", [1, 2])
def test_lines_too_thin_for_text_are_left_out(height):
    probability = blank()
    probability[100 : 100 + height, 50:600] = 255
    assert all(min(orient.size(box.quad)) > 3 for box in boxes_of(probability))
    assert boxes_of(np.pad(np.full((1, 1), 255, np.uint8), 20)) == ()


@given(
    st.floats(200, 440),
    st.floats(200, 280),
    st.floats(60, 240),
    st.floats(10, 40),
    st.floats(-89, 90),
)
def test_turned_rectangle_is_found_where_it_is_and_grown(x, y, width, height, degrees):
    assume(abs(abs(degrees) - 45) > 2 and width > 1.3 * height)
    (box,) = boxes_of(drawn((x, y, width, height, degrees)))
    assert centre(box) == pytest.approx((x, y), abs=2)
    found = sorted(orient.size(box.quad), reverse=True)
    assert found == pytest.approx(unclip((width, height), 1.6), abs=12)  # a pixel more of height grows threefold
    assert found[0] > width and found[1] > height


@given(st.floats(-44, 44), st.floats(60, 240), st.floats(10, 40))
def test_first_side_is_the_upper_one_and_corners_go_clockwise(degrees, width, height):
    (box,) = boxes_of(drawn((320, 240, width, height, degrees)))
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = box.quad
    assert (bx - ax) * (cy - by) - (by - ay) * (cx - bx) > 0
    if width > 1.3 * height and abs(degrees) < 43:
        assert math.degrees(math.atan2(by - ay, bx - ax)) == pytest.approx(degrees, abs=4)
        assert (ay + by) / 2 < (cy + dy) / 2
        assert ax < bx and dx < cx


def test_upright_column_keeps_its_short_side_up():
    (box,) = boxes_of(drawn((320, 240, 30, 300, 0)))
    width, height = orient.size(box.quad)
    assert height > 4 * width
    assert box.quad[0][1] < box.quad[3][1]


def test_separate_rectangles_are_separate_boxes():
    spots = [(150, 100 + 60 * row, 200, 24, 0) for row in range(5)] + [(450, 200, 200, 24, 0)]
    found = boxes_of(drawn(*spots))
    assert sorted((round(centre(box)[0], -1), round(centre(box)[1], -1)) for box in found) == sorted(
        (x, y) for x, y, *_ in spots
    )


def test_boxes_at_the_edge_are_found_and_may_reach_over_it():
    (box,) = boxes_of(drawn((60, 8, 120, 16, 0)))
    assert min(x for x, _ in box.quad) < 0 and min(y for _, y in box.quad) < 0


def test_map_of_countless_specks_is_bounded():
    probability = np.zeros((1200, 1200), np.uint8)
    for dy in range(5):
        for dx in range(5):
            probability[dy::12, dx::12] = 255
    assert len(boxes_of(probability)) <= 3000


def test_map_is_left_as_it_was():
    probability = drawn((320, 240, 200, 40, 10))
    before = probability.copy()
    boxes_of(probability)
    assert np.array_equal(probability, before)
