"""Boxes of text that was labelled or read: which of them are the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

Point = tuple[float, float]
Box = tuple[Point, ...]
"""Corners (x, y) in pixels of the picture, in order."""

SAME = 0.5
"""Two boxes are the same when their common area is more than this share of what they cover together (ICDAR 2015)."""


def lies_in(quad: Box, boxes: Iterable[Box]) -> bool:
    """Say whether more than half of what was found lies in a box labelled without text, which counts nowhere."""
    return any(_common_area(quad, box) > 0.5 * _area(_hull(quad)) for box in boxes)


def count_matches(boxes: Sequence[Box], found: Sequence[Box]) -> int:
    """Return how many pairs there are of boxes that are the same, each in one pair at most, the closest first."""
    alike = [(overlap(box, quad), i, j) for i, box in enumerate(boxes) for j, quad in enumerate(found)]
    left: set[int] = set()
    right: set[int] = set()
    for share, i, j in sorted(alike, reverse=True):
        if share > SAME and i not in left and j not in right:
            left.add(i)
            right.add(j)
    return len(left)


def overlap(a: Box, b: Box) -> float:
    """Return the common area of two boxes as a share of the area they cover together."""
    common = _common_area(a, b)
    return common / (_area(_hull(a)) + _area(_hull(b)) - common) if common else 0.0


def _common_area(a: Box, b: Box) -> float:
    """Return the area that two boxes share, in square pixels.

    Not by OpenCV's `intersectConvexConvex`, which can give far too large an area where edges are nearly parallel
    (https://github.com/opencv/opencv/issues/26972; `test_overlap_is_that_of_exact_polygons` finds such boxes).
    """
    if _apart(a, b) or _apart(b, a):
        return 0.0
    common, other = _hull(a), _hull(b)
    for start, end in zip(other, [*other[1:], *other[:1]], strict=True):
        common = _cut(common, start, end)
    return _area(common)


def _apart(a: Box, b: Box) -> bool:
    """Say whether the first box ends before the second begins, along an axis."""
    return any(max(p[axis] for p in a) <= min(p[axis] for p in b) for axis in (0, 1))


def _cut(corners: list[Point], start: Point, end: Point) -> list[Point]:
    """Return what of a convex polygon lies to the right of a line, as seen on the picture (Sutherland and Hodgman)."""
    sides = [(end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (x - start[0]) for x, y in corners]
    kept = []
    for (x, y), (x1, y1), side, side1 in zip(
        corners, [*corners[1:], *corners[:1]], sides, [*sides[1:], *sides[:1]], strict=True
    ):
        if side >= 0.0:
            kept.append((x, y))
        if side * side1 < 0.0:
            at = side / (side - side1)
            kept.append((x + at * (x1 - x), y + at * (y1 - y)))
    return kept


def _area(corners: list[Point]) -> float:
    after = [*corners[1:], *corners[:1]]
    return abs(sum(x * y1 - x1 * y for (x, y), (x1, y1) in zip(corners, after, strict=True))) / 2


def _hull(box: Box) -> list[Point]:
    """Return the corners of a box's convex hull, clockwise as seen on the picture."""
    hull = cv2.convexHull(np.array(box, np.float32), clockwise=False)  # to OpenCV y goes up here
    return [(float(x), float(y)) for [[x, y]] in hull]
