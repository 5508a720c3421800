"""Probabilities become text; line widths become few input widths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.recognize import REBUILD_PX, Reading, bucket, decode, plan_widths

CHARACTERS = ("", "a", "b", "甲", "乙", " ")


def naive(probabilities: np.ndarray, characters: tuple[str, ...]) -> tuple[str, list[float]]:
    """Greedy CTC decoding, step by step as the paper tells it."""
    text, scores, before = "", [], None
    for step in probabilities:
        best = max(range(len(step)), key=lambda index: (step[index], -index))
        if best != 0 and best != before:
            text += characters[best]
            scores.append(float(step[best]))
        before = best
    return text, scores


@st.composite
def line_probabilities(draw: st.DrawFn) -> np.ndarray:
    """Paths with the blanks and repeats that random numbers seldom have."""
    path = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=12))
    steps = [index for index, times in path for _ in range(times)]
    probabilities = np.zeros((len(steps), len(CHARACTERS)), np.float32)
    for row, index in enumerate(steps):
        peak = draw(st.floats(0.25, 1.0, width=32))
        probabilities[row] = (1 - peak) / len(CHARACTERS) / 2
        probabilities[row, index] = peak
    return probabilities


@given(line_probabilities())
def test_decoding_is_that_of_a_naive_decoder(probabilities):
    reading = decode(probabilities, CHARACTERS)
    text, scores = naive(probabilities, CHARACTERS)
    assert reading.text == text
    assert reading.character_scores == pytest.approx(tuple(scores))
    assert reading.score == pytest.approx(sum(scores) / len(scores) if scores else 0.0)


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_decoding_random_numbers_is_that_of_a_naive_decoder(steps, seed):
    probabilities = np.random.default_rng(seed).random((steps, len(CHARACTERS)), np.float32)
    assert decode(probabilities, CHARACTERS).text == naive(probabilities, CHARACTERS)[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [((), ""), ((0, 0, 0), ""), ((1, 1, 1), "a"), ((1, 0, 1), "aa"), ((1, 2, 2, 0, 2), "abb"), ((3, 5, 4), "甲 乙")],
)
def test_repeats_merge_and_blanks_part(path, text):
    probabilities = np.eye(len(CHARACTERS), dtype=np.float32)[list(path)].reshape(len(path), len(CHARACTERS))
    reading = decode(probabilities, CHARACTERS)
    assert reading.text == text
    assert len(reading.character_scores) == len(text)


def test_scores_stay_within_0_and_1_whatever_the_model_says():
    probabilities = np.array([[0, 1.0000002, 0], [0, 0, 1.3]], np.float32)
    assert decode(probabilities, ("", "a", "b")).character_scores == (1.0, 1.0)


def test_no_text_has_score_0():
    assert Reading("", ()).score == 0.0


@given(st.integers(0, 10_000), st.sampled_from((8, 32, 40)), st.integers(10, 100))
def test_bucket_is_the_next_multiple_up_to_the_longest(width, step, most):
    longest = step * most
    chosen = bucket(width, step, longest)
    assert chosen % step == 0 and step <= chosen <= longest
    assert chosen == longest or width <= chosen < width + step or (width == 0 and chosen == step)


widths_of_lines = st.lists(st.integers(1, 60).map(lambda n: 32 * n), min_size=1, max_size=12)


def cost(chosen: tuple[int, ...]) -> int:
    return REBUILD_PX * len(set(chosen)) + sum(chosen)


@given(widths_of_lines)
def test_planned_widths_hold_every_line(widths):
    chosen = plan_widths(widths, 32)
    assert len(chosen) == len(widths)
    assert all(own <= wide and wide % 32 == 0 and wide in widths for own, wide in zip(widths, chosen, strict=True))


@given(st.lists(st.integers(1, 12).map(lambda n: 32 * n), min_size=1, max_size=7))
def test_planned_widths_are_the_cheapest_choice(widths):
    distinct = sorted(set(widths))
    plans = []
    for count in range(len(distinct)):
        for kept in itertools.combinations(distinct[:-1], count):
            ends = (*kept, distinct[-1])
            plans.append(tuple(min(end for end in ends if end >= width) for width in widths))
    assert cost(plan_widths(widths, 32)) == min(map(cost, plans))


def test_no_lines_need_no_widths():
    assert plan_widths([], 32) == ()
