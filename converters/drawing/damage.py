"""What happens to printed paper on its way into a picture.

Each function takes uint8 (H, W, 3) BGR and returns a new picture of the same shape; `rng` gives its strength and place.
What moves pixels, and so the boxes of lines, is in `geometry.py`.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from agent.page import Pixels

# ---------------------------------------------------------------------------------------------------- helpers


def field(shape: tuple[int, ...], rng: np.random.Generator, cells: tuple[int, int], low: float, high: float) -> Pixels:
    """Return smooth random gains from `low` to `high`, uint8 (rows, columns), 255 for 1.0.

    Args:
        shape: (rows, columns).
        rng: gives them.
        cells: how many independent ones there are down and across.
        low: the least.
        high: the most; above 1.0 more of the result is 255.
    """
    rows, columns = shape
    grid = rng.uniform(low * 255, high * 255, (max(2, cells[0]), max(2, cells[1]))).astype(np.float32)
    smooth = cv2.resize(grid, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth, 0, 255).astype(np.uint8)


def darkened(pixels: Pixels, gains: Pixels) -> Pixels:
    """Return the picture times gains, uint8 (H, W) or (H, W, 3), 255 for 1.0."""
    planes = cv2.merge((gains, gains, gains)) if gains.ndim == 2 else gains
    return cv2.multiply(pixels, planes, scale=1 / 255)


def faded(pixels: Pixels, strength: Pixels) -> Pixels:
    """Return the picture with its ink, on white, at a strength, uint8 (H, W), 255 for full."""
    return cv2.bitwise_not(darkened(cv2.bitwise_not(pixels), strength))


def _mixed(first: Pixels, second: Pixels, share: float) -> Pixels:
    return cv2.addWeighted(first, 1 - share, second, share, 0)


# ---------------------------------------------------------------------------------------------------- print


def press(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Print with more or less ink: the grey edges of thin strokes become darker."""
    gamma = rng.uniform(1.0, 2.4)
    table = (255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return cv2.LUT(pixels, table)


def bleed(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Let the ink run into the paper around it."""
    thick = cv2.GaussianBlur(cv2.erode(pixels, np.ones((2, 2), np.uint8)), (0, 0), max(0.5, text_px / 60))
    return _mixed(pixels, thick, rng.uniform(0.3, 0.8 if text_px > 20 else 0.5))


def wear(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Take ink away: strokes get thinner and uneven."""
    thin = cv2.dilate(pixels, np.ones((2, 2), np.uint8))
    pixels = _mixed(pixels, thin, rng.uniform(0.2, 0.6 if text_px > 24 else 0.35))
    rows, columns = pixels.shape[:2]
    cells = (int(rows / text_px * 4), int(columns / text_px * 4))
    return faded(pixels, field((rows, columns), rng, cells, 0.5, 1.25))


def print_thermally(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Print as a worn thermal head does: soft, in bands of uneven strength, with faint columns."""
    rows, columns = pixels.shape[:2]
    soft = cv2.GaussianBlur(pixels, (0, 0), max(0.4, text_px * rng.uniform(0.018, 0.035)))
    most = rng.uniform(0.65, 0.95)
    strength = field((rows, columns), rng, (int(rows / text_px / 4), 2), most - 0.25, most)
    strength = cv2.multiply(strength, field((rows, columns), rng, (2, columns // 8), 0.85, 1.1), scale=1 / 255)
    for column in rng.integers(0, columns, int(rng.integers(0, 6))):
        strength[:, column : column + 2] //= 2
    return faded(soft, strength)


def print_with_pins(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Print as a dot-matrix printer does: every stroke a row of dots, a ribbon that gets paler, a pin that is worn."""
    rows, columns = pixels.shape[:2]
    pitch = text_px / rng.uniform(16, 24)
    grid = (max(1, round(columns / pitch)), max(1, round(rows / pitch)))
    broad = cv2.erode(pixels, np.ones((2, 2), np.uint8))  # a pin is broader than the thin strokes of a screen font
    ink = cv2.bitwise_not(cv2.resize(broad, grid, interpolation=cv2.INTER_AREA))
    hit = np.where(ink.max(axis=2, keepdims=True) > 110, ink, 0)
    hit[int(rng.integers(24)) :: 24] //= int(rng.integers(1, 3))
    spread = cv2.resize(hit, (columns, rows), interpolation=cv2.INTER_NEAREST)
    dots = cv2.multiply(spread, _dots(rows, columns, pitch), scale=1 / 255)
    ribbon = field((rows, columns), rng, (2, 3), 0.55, 1.0)
    return faded(cv2.bitwise_not(cv2.GaussianBlur(dots, (0, 0), max(0.4, pitch / 4))), ribbon)


def _dots(rows: int, columns: int, pitch: float) -> Pixels:
    """Return round dots side by side, uint8 (rows, columns, 3)."""
    down = (np.arange(rows, dtype=np.float32) / pitch % 1 - 0.5) ** 2
    across = (np.arange(columns, dtype=np.float32) / pitch % 1 - 0.5) ** 2
    dots = np.clip((1.25 - 2.2 * (down[:, None] + across[None, :])) * 255, 0, 255).astype(np.uint8)
    return cv2.merge((dots, dots, dots))


# ---------------------------------------------------------------------------------------------------- paper


def texture(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Give the paper a grain and patches."""
    rows, columns = pixels.shape[:2]
    patches = field((rows, columns), rng, (rows // 150, columns // 150), 0.96, 1.0)
    grain = field((rows, columns), rng, (rows // 2, columns // 2), rng.uniform(0.92, 0.98), 1.0)
    return darkened(pixels, cv2.multiply(patches, grain, scale=1 / 255))


def tint(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Give the paper a colour: yellowed, recycled, or pink and blue copies."""
    base = rng.uniform(rng.uniform(0.78, 0.97), 1.0, 3)
    base[int(rng.integers(1, 3))] = 1.0
    return cv2.multiply(pixels, tuple(float(gain) for gain in (*base, 1.0)))


def fold(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Fold the paper once or twice: a dark crease with a worn edge, and a shade to one side of it."""
    for _ in range(int(rng.integers(1, 3))):
        axis = int(rng.integers(2))
        length = pixels.shape[axis]
        at = length * rng.choice((1 / 3, 1 / 2, 2 / 3)) + rng.normal(0, length / 40)
        distance = np.arange(length) - at
        crease = 1 - rng.uniform(0.08, 0.25) * np.exp(-((distance / rng.uniform(1.0, 2.5)) ** 2))
        shade = 1 - rng.uniform(0.02, 0.12) * np.exp(-np.abs(distance) / 60) * (distance > 0)
        gains = np.clip(crease * shade * 255, 0, 255).astype(np.uint8)
        shape = (length, 1) if axis == 0 else (1, length)
        pixels = darkened(pixels, np.ascontiguousarray(np.broadcast_to(gains.reshape(shape), pixels.shape[:2])))
    return pixels


# ---------------------------------------------------------------------------------------------------- light


def shade(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Let the light fall off to a side, and sometimes a soft shadow of a hand or a phone fall on the page."""
    rows, columns = pixels.shape[:2]
    low = rng.uniform(0.5, 0.85)
    gains = field((rows, columns), rng, (2, 2), low, 1.1)
    if rng.random() < 0.5:
        gains = cv2.multiply(gains, _shadow(rows, columns, rng), scale=1 / 255)
    return darkened(pixels, gains)


def _shadow(rows: int, columns: int, rng: np.random.Generator) -> Pixels:
    small = np.full((rows // 8 + 1, columns // 8 + 1), 255, np.uint8)
    down, across = small.shape
    points = rng.uniform(-0.2, 1.2, (4, 2)) * (across, down)
    hull = cv2.convexHull(points.astype(np.int32))
    cv2.fillConvexPoly(small, hull, int(rng.uniform(120, 200)))
    soft = cv2.GaussianBlur(small, (0, 0), max(0.6, min(down, across) * rng.uniform(0.01, 0.08)))
    return cv2.resize(soft, (columns, rows), interpolation=cv2.INTER_LINEAR)


def dim(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Take the picture in too little light: dark, flat, with a cast."""
    gain, lift = rng.uniform(0.35, 0.7), rng.uniform(0, 25)
    cast = rng.uniform(0.85, 1.0, 3)
    levels = np.arange(256)[:, None] * gain * cast[None, :] + lift
    return cv2.LUT(pixels, np.clip(levels, 0, 255).astype(np.uint8)[:, None, :])


def flatten(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Lower the contrast, as under glare or on a copy of a copy."""
    low, high = rng.uniform(20, 110), rng.uniform(190, 255)
    return cv2.LUT(pixels, np.linspace(low, high, 256).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- camera


def blur(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Take the picture out of focus, as far as text of that height stays readable."""
    return cv2.GaussianBlur(pixels, (0, 0), max(0.3, text_px * rng.uniform(0.02, 0.065)))


def shake(pixels: Pixels, rng: np.random.Generator, text_px: float) -> Pixels:
    """Move the camera along a line while the picture is taken."""
    length = max(2.0, text_px * rng.uniform(0.07, 0.2))
    size = int(np.ceil(length)) // 2 * 2 + 3
    kernel, angle = np.zeros((size, size), np.float32), rng.uniform(0, np.pi)
    reach, middle = length / 2, size // 2
    for step in np.linspace(-reach, reach, 4 * size):
        kernel[round(middle + step * np.sin(angle)), round(middle + step * np.cos(angle))] += 1
    return cv2.filter2D(pixels, -1, kernel / kernel.sum())


def noise(pixels: Pixels, rng: np.random.Generator, most: float = 15.0) -> Pixels:
    """Add the sensor's noise, with a deviation of at most `most` levels, grey or in each colour."""
    planes = 3 if rng.random() < 0.6 else 1
    rows, columns = pixels.shape[:2]
    raw = np.frombuffer(rng.bytes(rows * columns * planes), np.uint8).reshape(rows, columns, planes)
    deviation = rng.uniform(1.5, most)
    added = cv2.LUT(raw, np.clip(_normal_quantiles() * deviation, -127, 127).astype(np.float32))
    added = cv2.merge((added, added, added)) if planes == 1 else added
    return cv2.add(pixels, added, dtype=cv2.CV_8U)


@functools.cache
def _normal_quantiles() -> npt.NDArray[np.float64]:
    """Return 256 quantiles of the normal distribution: bytes through this table are noise, at a tenth of the price."""
    ordered = np.sort(np.random.default_rng(0).standard_normal(256 * 64)).reshape(256, 64)
    return ordered.mean(axis=1)


def recompress(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Store the picture as JPEG and read it again, once or twice."""
    for _ in range(int(rng.integers(1, 3))):
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(28, 88))]
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
    return pixels


def copy_to_fax(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Copy in black and white, black being what is somewhat darker than the paper, with specks."""
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY), (0, 0), 0.5)
    paper = float(np.median(grey[::8, ::8]))
    black = cv2.threshold(grey, paper * rng.uniform(0.7, 0.85), 255, cv2.THRESH_BINARY)[1]
    rows, columns = black.shape
    specks = rng.integers(0, (rows, columns), (int(rows * columns * rng.uniform(0, 0.0008)), 2))
    black[specks[:, 0], specks[:, 1]] = 0
    return cv2.cvtColor(black, cv2.COLOR_GRAY2BGR)
