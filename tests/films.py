"""Films of what is held under a camera: a table, pages, hands, light, noise and compression."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT, FPS = 960, 540, 10
TABLE = 90


def table(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Return an empty table with grain and uneven light."""
    rows = np.linspace(-12, 12, height)[:, None]
    columns = 6 * np.sin(np.linspace(0, 40, width))[None, :]
    return np.repeat((TABLE + rows + columns).astype(np.uint8)[:, :, None], 3, axis=2)


def page(number: int, width: int = WIDTH, height: int = HEIGHT, at: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return a page on the table, with writing that no other number has, moved by so many pixels."""
    rng = np.random.default_rng(number)
    picture = table(width, height)
    left, top = width // 8 + at[0], height // 10 + at[1]
    right, bottom = left + width * 3 // 4, top + height * 4 // 5
    cv2.rectangle(picture, (left, top), (right, bottom), (235, 235, 235), -1)
    for row in range(7):
        words = "".join(chr(65 + letter) for letter in rng.integers(0, 26, 22))
        line = f"PAGE {number}" if row == 0 else words
        cv2.putText(picture, line, (left + 30, top + 45 + 55 * row), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (30, 30, 30), 2)
    return picture


def form(number: int) -> np.ndarray:
    """Return a filled form: all numbers have it in common but for two lines."""
    picture = page(1_000_000)
    left, top = WIDTH // 8, HEIGHT // 10
    rng = np.random.default_rng(number)
    for row in (2, 4):
        y = top + 45 + 55 * row
        cv2.rectangle(picture, (left + 20, y - 40), (left + 690, y + 12), (235, 235, 235), -1)
        cv2.putText(
            picture,
            f"AMOUNT {rng.integers(10**8, 10**9)}",
            (left + 30, y),
            cv2.FONT_HERSHEY_SIMPLEX,
            1.1,
            (30, 30, 30),
            2,
        )
    return picture


def hand(picture: np.ndarray, x: int) -> np.ndarray:
    """Return a picture with a hand over it."""
    covered = picture.copy()
    cv2.ellipse(covered, (x, HEIGHT // 2), (150, 110), 15, 0, 360, (120, 150, 200), -1)
    cv2.rectangle(covered, (x - 60, HEIGHT // 2), (x + 60, HEIGHT), (110, 140, 190), -1)
    return covered


def still(picture: np.ndarray, seconds: float) -> list[np.ndarray]:
    return [picture] * round(seconds * FPS)


def waved(picture: np.ndarray, after: np.ndarray | None = None) -> list[np.ndarray]:
    """Return a hand that moves across, and leaves another picture behind where one is given."""
    after = picture if after is None else after
    path = [*range(-150, WIDTH // 2, 90), *range(WIDTH // 2, -200, -90)]
    return [hand(picture if number < len(path) // 2 else after, x) for number, x in enumerate(path)]


def lit(picture: np.ndarray, seconds: float, by: float) -> list[np.ndarray]:
    """Return a picture that slowly becomes brighter or darker, as with the sun."""
    count = round(seconds * FPS)
    return [cv2.convertScaleAbs(picture, alpha=1 + by * number / count) for number in range(count)]


def noisy(frames: Iterable[np.ndarray], sigma: float = 6.0, seed: int = 1) -> list[np.ndarray]:
    """Return pictures with a sensor's noise."""
    summed = (
        frame + np.roll(_noise(sigma, seed, frame.shape)[number % 7], number, axis=0)
        for number, frame in enumerate(frames)
    )
    return [np.clip(frame, 0, 255).astype(np.uint8) for frame in summed]


@functools.cache
def _noise(sigma: float, seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, sigma, shape).astype(np.int16) for _ in range(7)]


def write(path: Path, frames: Iterable[np.ndarray]) -> Path:
    """Write a film, compressed as by a camera."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path
