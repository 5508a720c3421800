"""Drawings show the boxes and leave the frame alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from agent.errors import InputError
from agent.overlay import write_overlay
from agent.page import Frame, TextLine
from tests.test_image import quad_at


@pytest.mark.parametrize("grey", [False, True])
def test_overlay_is_a_picture_with_the_boxes(tmp_path, grey):
    pixels = np.full((500, 700) if grey else (500, 700, 3), 255, np.uint8)
    line = TextLine("text", 0.9, quad_at(700, 500, 600, 80, 0))
    write_overlay(Frame("key", "source", pixels, 1400, 1000), (line,), tmp_path / "a.jpg")
    drawn = cv2.imread(str(tmp_path / "a.jpg"))
    assert drawn.shape == (500, 700, 3)
    green = (drawn[:, :, 1].astype(int) - drawn[:, :, 2] > 60).nonzero()
    assert (green[0].min(), green[0].max()) == (pytest.approx(230, abs=4), pytest.approx(270, abs=4))
    assert green[1].max() == pytest.approx(500, abs=4)


def test_overlay_of_a_large_page_is_a_small_picture(tmp_path):
    frame = Frame("key", "source", np.zeros((40, 3200), np.uint8), 6400, 80)
    write_overlay(frame, (), tmp_path / "a.jpg")
    assert cv2.imread(str(tmp_path / "a.jpg")).shape == (20, 1600, 3)


def test_overlay_leaves_the_frame_as_it_was(tmp_path):
    pixels = np.full((50, 70, 3), 255, np.uint8)
    write_overlay(Frame("k", "s", pixels, 70, 50), (TextLine("t", 1, quad_at(30, 20, 30, 10, 5)),), tmp_path / "a.jpg")
    assert pixels.min() == 255


def test_overlay_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere/a\.jpg: No such file or directory"):
        write_overlay(Frame("k", "s", np.zeros((9, 9), np.uint8), 9, 9), (), tmp_path / "nowhere" / "a.jpg")
