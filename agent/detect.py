"""Text probability map -> boxes: the post-processing of DB with PP-OCR's parameters.

DB: Liao et al. 2020, "Real-time Scene Text Detection with Differentiable Binarization".
"""

from __future__ import annotations

import math

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from agent.page import Quad

ProbabilityMap = npt.NDArray[np.uint8]

MIN_SIDE_PX = 3
MAX_BOXES = 3000


class Box(msgspec.Struct, frozen=True):
    """One detected text box.

    Attributes:
        quad: corners in map pixels, clockwise from the corner nearest the map's top left; the first side is the
            upper one.
        score: mean text probability inside the box before it was grown, 0..1.
    """

    quad: Quad
    score: float


def find_boxes(
    probability: ProbabilityMap, *, threshold: float, box_threshold: float, unclip_ratio: float
) -> tuple[Box, ...]:
    """Return the text boxes of a probability map.

    Args:
        probability: uint8 (H, W), 255 is certain.
        threshold: probability above which a pixel is text.
        box_threshold: mean probability a box must have.
        unclip_ratio: how far boxes grow; the network is trained on shrunken ones.
    """
    binary = (probability > round(threshold * 255)).astype(np.uint8)
    # Threads of one or two pixels join lines across a gutter: columns read as one line (measured, DECISIONS).
    binary = cv2.morphologyEx(binary, cv2.MORPH_OPEN, np.ones((3, 1), np.uint8))
    # PP-OCR's "use_dilation": joins strokes that the shrinking has parted.
    binary = cv2.dilate(binary, np.ones((2, 2), np.uint8))
    contours, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=len, reverse=True)[:MAX_BOXES]
    boxes = (_box(contour, probability, box_threshold, unclip_ratio) for contour in contours)
    return tuple(box for box in boxes if box is not None)


def _box(
    contour: npt.NDArray[np.int32], probability: ProbabilityMap, box_threshold: float, unclip_ratio: float
) -> Box | None:
    rectangle = cv2.minAreaRect(contour)
    if min(rectangle[1]) < MIN_SIDE_PX:
        return None
    score = _mean_inside(probability, cv2.boxPoints(rectangle))
    if score < box_threshold:
        return None
    centre, size, angle = rectangle
    grown = unclip(size, unclip_ratio)
    if min(grown) < MIN_SIDE_PX + 2:
        return None
    return Box(_ordered(cv2.boxPoints((centre, grown, angle))), score)


def unclip(size: tuple[float, float], ratio: float) -> tuple[float, float]:
    """Return a rectangle's sides grown by area * ratio / perimeter on every side.

    PP-OCR offsets the rectangle as a polygon with round corners and takes the smallest rectangle around that, which
    is this one: the corners stay inside (`test_detect.py` holds it against a polygon library).
    """
    width, height = size
    distance = width * height * ratio / (2 * (width + height))
    return width + 2 * distance, height + 2 * distance


def _mean_inside(probability: ProbabilityMap, corners: npt.NDArray[np.float32]) -> float:
    """Return the mean probability, 0..1, inside a polygon."""
    height, width = probability.shape
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, (width - 1, height - 1))
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), 0, (width - 1, height - 1))
    mask = np.zeros((bottom - top + 1, right - left + 1), np.uint8)
    cv2.fillPoly(mask, [(corners - (left, top)).astype(np.int32)], (1,))
    return float(cv2.mean(probability[top : bottom + 1, left : right + 1], mask)[0] / 255)


def _ordered(corners: npt.NDArray[np.float32]) -> Quad:
    """Return corners clockwise from the top left: the start of the side whose direction is nearest to the right."""
    points = [(float(x), float(y)) for x, y in corners]
    angles = [_direction(points[i], points[(i + 1) % 4]) for i in range(4)]
    first = min(range(4), key=lambda i: abs(angles[i]))
    a, b, c, d = (points[(first + i) % 4] for i in range(4))
    return a, b, c, d


def _direction(a: tuple[float, float], b: tuple[float, float]) -> float:
    return math.atan2(b[1] - a[1], b[0] - a[0])
