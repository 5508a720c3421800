"""Which way text runs, and in which order lines are read. Pure geometry on quads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import msgspec

from agent.page import Point, Quad

# A box this much taller than wide holds a line that runs up or down the picture (PP-OCR's bound).
TALL = 1.5


def turned(quad: Quad, quarters: int) -> Quad:
    """Return a quad that starts `quarters` corners later: text turned clockwise by as many quarter turns."""
    a, b, c, d = (quad[(quarters + i) % 4] for i in range(4))
    return a, b, c, d


def size(quad: Quad) -> tuple[float, float]:
    """Return (width, height) along the quad's own first and second side, in pixels."""
    return math.dist(quad[0], quad[1]), math.dist(quad[1], quad[2])


def contains(quad: Quad, point: Point) -> bool:
    """Return whether a point lies within a convex quad."""
    x, y = point
    sides = zip(quad, (*quad[1:], quad[0]), strict=True)
    return all((bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0 for (ax, ay), (bx, by) in sides)


def runs_down(quads: Sequence[Quad]) -> bool:
    """Return whether most of the text, by length, runs up or down the picture rather than across."""
    across = down = 0.0
    for quad in quads:
        width, height = size(quad)
        if height >= TALL * width:
            down += height
        elif width >= TALL * height:
            across += width
    return down > across


class _Item(msgspec.Struct, frozen=True):
    index: int
    left: float
    right: float
    middle: float
    height: float


def reading_order(quads: Sequence[Quad]) -> tuple[int, ...]:
    """Return the indices of lines in reading order: columns left to right, rows top to bottom, then left to right.

    Rows follow the page's skew: positions are taken along and across the lines' common direction. A gutter parts
    columns only when both sides are blocks of running text, so the price column of a receipt stays with its items.

    Args:
        quads: corners in reading direction.
    """
    if not quads:
        return ()
    items = _along(quads)
    return tuple(item.index for item in _ordered(items))


def _along(quads: Sequence[Quad]) -> list[_Item]:
    """Return the lines in a frame turned so that they run to the right."""
    angle = _common_angle(quads)
    cos, sin = math.cos(-angle), math.sin(-angle)

    def spin(point: Point) -> Point:
        return point[0] * cos - point[1] * sin, point[0] * sin + point[1] * cos

    items = []
    for index, quad in enumerate(quads):
        points = [spin(p) for p in quad]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        items.append(_Item(index, min(xs), max(xs), sum(ys) / 4, size(quad)[1]))
    return items


def _common_angle(quads: Sequence[Quad]) -> float:
    """Return the direction of the text in radians: of its sides added up as vectors, so long lines decide."""
    dx = sum(q[1][0] - q[0][0] + q[2][0] - q[3][0] for q in quads)
    dy = sum(q[1][1] - q[0][1] + q[2][1] - q[3][1] for q in quads)
    return math.atan2(dy, dx)


def _ordered(items: list[_Item]) -> list[_Item]:
    gutter = _gutter(items)
    if gutter is None:
        return [item for row in _rows(items) for item in row]
    left = [item for item in items if item.right <= gutter]
    right = [item for item in items if item.left >= gutter]
    return _ordered(left) + _ordered(right)


def _gutter(items: list[_Item]) -> float | None:
    """Return where a free vertical strip parts two blocks of running text, or None."""
    by_left = sorted(items, key=lambda item: item.left)
    reach, best = -math.inf, None
    for done, item in enumerate(by_left):
        gap = item.left - reach
        if gap > 0 and done >= 5 and len(items) - done >= 5:
            wide = gap > max(0.5 * statistics.median(i.height for i in items), best[0] if best else 0.0)
            if wide and all(_is_running_text(side) for side in (by_left[:done], by_left[done:])):
                best = (gap, (item.left + reach) / 2)
        reach = max(reach, item.right)
    return best[1] if best else None


def _is_running_text(items: Sequence[_Item]) -> bool:
    """Return whether most lines span most of their block: prose does, labels and prices do not."""
    width = max(i.right for i in items) - min(i.left for i in items)
    typical = statistics.median(i.right - i.left for i in items)
    tall = statistics.median(i.height for i in items)
    return typical >= 0.6 * width and typical >= 8 * tall


def _rows(items: list[_Item]) -> list[list[_Item]]:
    """Group lines into rows: a line joins the row whose middle it overlaps by half of the smaller height."""
    rows: list[list[_Item]] = []
    for item in sorted(items, key=lambda i: i.middle):
        row = rows[-1] if rows else None
        if row is not None and _shares_row(row, item):
            row.append(item)
        else:
            rows.append([item])
    return [sorted(row, key=lambda i: i.left) for row in rows]


def _shares_row(row: list[_Item], item: _Item) -> bool:
    nearest = min(row, key=lambda i: max(i.left - item.right, item.left - i.right, 0.0))
    return abs(item.middle - nearest.middle) < 0.5 * min(item.height, nearest.height)
