"""Which way text runs, and in which order lines are read. Pure geometry on quads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate

import msgspec

from agent.page import Point, Quad

# A box this much taller than wide holds a line that runs up or down the picture (PP-OCR's bound).
TALL = 1.5

# Fewer lines side by side are no columns of text; a gutter may be crossed by this share of lines, such as headings.
MIN_COLUMN_LINES = 5
CROSSED = 0.2


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

    Rows follow the page's skew: positions are taken along and across the lines' common direction. Gutters part columns
    only when all of them are blocks of running text, so the price column of a receipt stays with its items. A heading
    across columns parts them into what comes before and after it.

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


def _ordered(items: Sequence[_Item]) -> list[_Item]:
    columns = _columns(items)
    if columns is None:
        return [item for row in _rows(items) for item in row]
    blocks, across = columns
    ordered: list[_Item] = []
    top = -math.inf
    for bar in (*(item for row in _rows(across) for item in row), None):
        bottom = math.inf if bar is None else max(top, bar.middle)
        for block in blocks:
            ordered += _ordered([item for item in block if top <= item.middle < bottom])
        ordered += [] if bar is None else [bar]
        top = bottom
    return ordered


def _columns(items: Sequence[_Item]) -> tuple[list[list[_Item]], list[_Item]] | None:
    """Return blocks of running text that stand side by side, and the lines that run across; or None."""
    cuts = _gutters(items)
    for chosen in ([cuts] if len(cuts) > 1 else []) + [[cut] for cut in cuts]:
        blocks: list[list[_Item]] = [[] for _ in range(len(chosen) + 1)]
        across: list[_Item] = []
        for item in items:
            crosses = any(item.left < cut < item.right for cut in chosen)
            (across if crosses else blocks[sum(cut <= item.left for cut in chosen)]).append(item)
        if all(len(block) >= MIN_COLUMN_LINES and _is_running_text(block) for block in blocks):
            return blocks, across
    return None


def _gutters(items: Sequence[_Item]) -> list[float]:
    """Return the middles of the upright strips, wider than half a line is high, that hardly any line crosses."""
    if len(items) < 2 * MIN_COLUMN_LINES:
        return []
    edges = sorted([(i.left, 1) for i in items] + [(i.right, -1) for i in items])
    counts = list(accumulate(step for _, step in edges))
    wide = 0.5 * statistics.median(i.height for i in items)
    few = CROSSED * max(counts)
    gutters, start = [], math.inf  # where a strip begins; none has before the first column
    for (x, _), before, count in zip(edges[1:], counts, counts[1:], strict=False):
        if before > few >= count:
            start = x
        elif before <= few < count:
            gutters += [(start + x) / 2] if x - start > wide else []
    return gutters


def _is_running_text(items: Sequence[_Item]) -> bool:
    """Return whether most lines span most of their block: prose does, labels and prices do not."""
    width = max(i.right for i in items) - min(i.left for i in items)
    typical = statistics.median(i.right - i.left for i in items)
    tall = statistics.median(i.height for i in items)
    return typical >= 0.6 * width and typical >= 8 * tall


def _rows(items: Sequence[_Item]) -> list[list[_Item]]:
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
