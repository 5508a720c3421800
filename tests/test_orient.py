"""Lines come in reading order, however the page lies."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.orient import contains, reading_order, runs_down, size, turned
from agent.page import Quad

CENTRE = (500.0, 700.0)


def box(x: float, y: float, width: float, height: float, degrees: float = 0.0) -> Quad:
    """Return a line's quad from its place on an upright page, the page then turned clockwise about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    moved = ((px - CENTRE[0], py - CENTRE[1]) for px, py in corners)
    a, b, c, d = ((CENTRE[0] + px * cos - py * sin, CENTRE[1] + px * sin + py * cos) for px, py in moved)
    return a, b, c, d


def assert_in_order(lines: list[tuple[float, float, float, float]], degrees: float = 0.0) -> None:
    """Check that lines, given in reading order, come out in it whatever order they are found in."""
    quads = [box(*line, degrees) for line in lines]
    for seed in range(3):
        found = random.Random(seed).sample(range(len(quads)), len(quads))
        order = reading_order([quads[i] for i in found])
        assert [found[i] for i in order] == list(range(len(quads)))


def prose(left: float, top: float, count: int, width: float = 420) -> list[tuple[float, float, float, float]]:
    """Return lines of running text, the last one of each paragraph of five short."""
    return [(left, top + 40 * n, width * (0.3 if n % 5 == 4 else 1 - n % 3 / 40), 26) for n in range(count)]


def receipt() -> list[tuple[float, float, float, float]]:
    """Return a receipt's lines: a heading, items with prices flush right, a total, thanks."""
    lines = [(300.0, 40.0, 400.0, 50.0)]
    for n in range(12):
        lines += [(100, 140 + 44 * n, 150 + 30 * (n % 4), 28), (620, 141 + 44 * n, 60, 26), (800, 139 + 44 * n, 90, 28)]
    return [*lines, (100, 700, 200, 36), (760, 698, 130, 36), (350, 780, 300, 28)]


ANGLES = (0, 3, -4, 8, -12, 90, 93, 180, 176, 270, 265)


@pytest.mark.parametrize("degrees", ANGLES)
def test_one_column_is_read_from_top_to_bottom(degrees):
    assert_in_order(prose(100, 100, 20, width=800), degrees)


@pytest.mark.parametrize("degrees", ANGLES)
def test_prices_stay_with_their_items(degrees):
    assert_in_order(receipt(), degrees)


@pytest.mark.parametrize("degrees", ANGLES)
def test_columns_of_prose_are_read_one_after_the_other(degrees):
    assert_in_order(prose(50, 100, 15) + prose(530, 100, 15), degrees)


@pytest.mark.parametrize("degrees", (0, 2, 180))
def test_three_columns_of_prose_are_read_one_after_the_other(degrees):
    columns = [prose(left, 100, 12, width=280) for left in (40, 360, 680)]
    assert_in_order([line for column in columns for line in column], degrees)


@pytest.mark.parametrize("degrees", (0, 2, -3, 90, 180))
def test_heading_across_two_columns_is_read_first_and_a_footer_last(degrees):
    heading, footer = [(60.0, 40.0, 880.0, 40.0)], [(80.0, 760.0, 850.0, 26.0)]
    assert_in_order(heading + prose(50, 110, 15) + prose(530, 110, 15) + footer, degrees)


def test_line_across_two_columns_parts_them_into_two_stories():
    first = prose(50, 100, 8) + prose(530, 100, 8)
    second = prose(50, 500, 8) + prose(530, 500, 8)
    assert_in_order([*first, (60, 440, 880, 40), *second])


def test_rows_of_a_table_with_long_cells_stay_rows():
    rows = [
        (x, 100 + 50 * n, width, 28) for n in range(10) for x, width in ((50, 120), (250, 330), (700, 60), (850, 90))
    ]
    assert_in_order(rows)


def test_words_of_one_row_are_read_from_left_to_right_though_their_heights_differ():
    assert_in_order([(50, 102, 100, 30), (200, 95, 150, 44), (400, 106, 60, 22), (500, 99, 200, 36)])


def test_large_type_does_not_swallow_the_small_lines_beside_it():
    assert_in_order([(300, 98, 200, 24), (60, 140, 200, 90)])


@given(st.integers(-15, 15))
def test_skew_does_not_mix_long_rows(degrees):
    rows = [(x, 100 + 45 * n, 180, 30) for n in range(14) for x in (20, 280, 540, 800)]
    assert_in_order(rows, degrees)


numbers = st.floats(-200, 3000)
points = st.tuples(numbers, numbers)


@given(st.lists(st.tuples(points, points, points, points), max_size=25))
def test_order_is_a_permutation_of_any_quads(quads):
    assert sorted(reading_order(quads)) == list(range(len(quads)))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60), st.integers(0, 30), st.integers(0, 2)), max_size=60),
    st.booleans(),
    st.sampled_from(ANGLES),
)
def test_order_is_a_permutation_of_any_page(lines, columns, degrees):
    every = [tuple(20 * number for number in line) for line in lines]
    every += prose(50, 100, 15) + prose(530, 100, 15) if columns else []
    order = reading_order([box(*line, degrees) for line in every])
    assert sorted(order) == list(range(len(every)))


def test_blank_page_has_an_order_too():
    assert reading_order([]) == ()


def test_thousands_of_lines_are_put_in_order():
    lines = [(x, 10 * n, 250, 8) for x in (0, 300, 600) for n in range(900)]
    assert_in_order(lines)


@given(st.integers(0, 7), st.integers(0, 7))
def test_quarter_turns_add_up(first, second):
    quad = box(10, 20, 300, 40, 7)
    assert turned(turned(quad, first), second) == turned(quad, first + second)
    assert turned(quad, 4) == quad


def test_turned_quad_starts_at_a_later_corner_and_swaps_its_sides():
    quad = box(10, 20, 300, 40)
    assert turned(quad, 1)[0] == quad[1]
    assert size(quad) == (300, 40) and size(turned(quad, 1)) == (40, 300)


def test_text_runs_down_where_most_of_its_length_does():
    across, down = box(0, 0, 300, 30), box(0, 100, 30, 300)
    assert not runs_down([]) and not runs_down([across]) and runs_down([down])
    assert runs_down([down, down, across]) and not runs_down([across, across, down])
    assert not runs_down([box(0, 0, 30, 30)] * 5)  # single characters tell nothing


@given(st.floats(0, 360), st.floats(-0.4, 1.4), st.floats(-0.4, 1.4))
def test_quad_contains_what_lies_between_its_sides(degrees, u, v):
    a, b, c, d = quad = box(100, 200, 300, 40, degrees)
    point = tuple(a[i] + u * (b[i] - a[i]) + v * (d[i] - a[i]) for i in (0, 1))
    if min(abs(u), abs(v), abs(u - 1), abs(v - 1)) > 1e-6:
        assert contains(quad, point) == (0 < u < 1 and 0 < v < 1)
    assert c
