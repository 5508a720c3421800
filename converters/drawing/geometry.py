"""Damage that moves pixels, and the boxes of the lines with them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from agent.page import Pixels, Quad
from converters.drawing.damage import darkened, field
from converters.drawing.sheet import DrawnLine

Matrix = npt.NDArray[np.float64]
Picture = tuple[Pixels, tuple[DrawnLine, ...]]
"""A picture, uint8 (H, W, 3) BGR, and the lines on it."""


def moved(lines: Sequence[DrawnLine], matrix: Matrix) -> tuple[DrawnLine, ...]:
    """Return lines with their boxes moved by a perspective, a 3 x 3 matrix."""
    if not lines:
        return ()
    corners = np.array([line.box for line in lines], np.float64)
    places = cv2.perspectiveTransform(corners.reshape(1, -1, 2), matrix).reshape(-1, 4, 2)
    return tuple(DrawnLine(line.text, as_quad(box)) for line, box in zip(lines, places, strict=True))


def as_quad(corners: npt.NDArray[np.float64]) -> Quad:
    """Return (4, 2) corners as numbers with a tenth of a pixel."""
    a, b, c, d = ((round(float(x), 1), round(float(y), 1)) for x, y in corners)
    return a, b, c, d


def turn(picture: Picture, rng: np.random.Generator, most_degrees: float = 2.0) -> Picture:
    """Lay the paper a little askew on the scanner's glass; beyond its edge is the lid, white or black."""
    pixels, lines = picture
    rows, columns = pixels.shape[:2]
    degrees = float(rng.uniform(-most_degrees, most_degrees))
    corners = _corners(columns, rows)
    turned = cv2.transform(corners[None], cv2.getRotationMatrix2D((columns / 2, rows / 2), degrees, 1.0))[0]
    # Shrunk just so far that no corner is cut off.
    shrink = min(1.0, columns / np.ptp(turned[:, 0]), rows / np.ptp(turned[:, 1]))
    matrix = np.vstack([cv2.getRotationMatrix2D((columns / 2, rows / 2), degrees, shrink), [0, 0, 1]])
    lid = [int(level) for level in rng.choice((255, 250, 235, 40, 10)) - rng.integers(0, 8, 3)]
    size, flags = (columns, rows), cv2.INTER_LINEAR
    warped = cv2.warpPerspective(pixels, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=lid)
    return warped, moved(lines, matrix)


def photograph(picture: Picture, rng: np.random.Generator) -> Picture:
    """Photograph the paper on a desk, from somewhat aside; it stays whole in the picture."""
    pixels, lines = picture
    rows, columns = pixels.shape[:2]
    corners = _corners(columns, rows)
    inset = rng.uniform(0.015, 0.09, (4, 2)) * (columns, rows) * ((1, 1), (-1, 1), (-1, -1), (1, -1))
    target = (corners + inset).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(corners, target)
    desk = _desk(rows, columns, target, rng)
    flags = cv2.INTER_LINEAR
    warped = cv2.warpPerspective(
        pixels, matrix, (columns, rows), dst=desk, flags=flags, borderMode=cv2.BORDER_TRANSPARENT
    )
    return warped, moved(lines, matrix)


def _desk(rows: int, columns: int, page: npt.NDArray[np.float32], rng: np.random.Generator) -> Pixels:
    """Return a desk of some colour with a grain, darker along the page's edges."""
    base = np.full((rows, columns, 3), rng.uniform(40, 190) + rng.uniform(-25, 25, 3), np.uint8)
    grain = field((rows, columns), rng, (rows // 5, columns // 200), rng.uniform(0.75, 0.95), 1.0)
    small = np.full((rows // 8 + 1, columns // 8 + 1), 255, np.uint8)
    cv2.fillConvexPoly(small, np.int32(page / 8 + rng.uniform(0, 1.5, 2)), 110)
    edge = cv2.resize(cv2.GaussianBlur(small, (0, 0), 2.0), (columns, rows))
    return darkened(base, cv2.multiply(grain, edge, scale=1 / 255))


def curl(picture: Picture, rng: np.random.Generator, text_px: float) -> Picture:
    """Bend the page up at one side, as an open book does: lines bow, by less than half their height."""
    pixels, lines = picture
    rows, columns = pixels.shape[:2]
    depth, spine = text_px * rng.uniform(0.4, 1.2), float(rng.integers(2))
    xs = np.arange(columns, dtype=np.float32)
    drop = (depth * np.exp(-np.abs(xs / columns - spine) * 4.0)).astype(np.float32)
    ys = np.arange(rows, dtype=np.float32)[:, None] - drop[None, :]
    across = np.ascontiguousarray(np.broadcast_to(xs, (rows, columns)))
    bent = cv2.remap(pixels, across, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gains = np.clip(255 - 90 * drop / depth * rng.uniform(0.2, 1.0), 0, 255).astype(np.uint8)
    shaded = darkened(bent, np.ascontiguousarray(np.broadcast_to(gains, (rows, columns))))
    return shaded, tuple(DrawnLine(line.text, _bowed(line.box, drop, rows)) for line in lines)


def _bowed(box: Quad, drop: npt.NDArray[np.float32], rows: int) -> Quad:
    """Return a box around an upright box whose columns have dropped, its ends at the heights of the text's ends."""
    (left, top), (right, _), (_, bottom), _ = box
    ends = np.array([drop[int(left)], drop[min(len(drop) - 1, int(right))]])
    between = drop[int(left) : int(right) + 1]
    chord = np.linspace(ends[0], ends[1], len(between))
    above, below = min(0.0, float((between - chord).min())), max(0.0, float((between - chord).max()))
    tops, bottoms = top + ends + above, np.minimum(rows, bottom + ends + below)
    return as_quad(np.array([[left, tops[0]], [right, tops[1]], [right, bottoms[1]], [left, bottoms[0]]]))


def _corners(columns: int, rows: int) -> npt.NDArray[np.float32]:
    return np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
