"""Draws pages with print of known sizes, for the tests of what is still found. Pillow's own font: no font is needed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

LARGE = (
    "General terms of delivery and payment",
    "The seller keeps title to the goods until paid",
    "Complaints must be made within eight days",
    "Place of jurisdiction is the seat of the seller",
)
SMALL = (
    "Prices are net of packing and carriage unless stated otherwise",
    "Part deliveries are allowed and may be invoiced one by one",
    "Interest of nine percent is due from the thirtieth day on",
    "Set off is possible only with claims that are undisputed",
    "Samples show the average quality and not each single piece",
    "Tools and drawings stay the property of the manufacturer",
    "Force majeure releases both sides for as long as it lasts",
    "Changes of this contract need the written form throughout",
)


class Written(NamedTuple):
    """A line on a page."""

    text: str
    points: int


def a4(dpi: int) -> tuple[Image.Image, tuple[Written, ...]]:
    """Return a grey A4 page with lines of 12 and of 6 points, and what they say."""
    page = Image.new("L", (round(8.268 * dpi), round(11.693 * dpi)), 250)
    pen, written = ImageDraw.Draw(page), []
    y = dpi
    for points, lines in ((12, LARGE), (6, SMALL)):
        font = ImageFont.load_default(points / 72 * dpi)
        for line in lines:
            pen.text((dpi, y), line, font=font, fill=25)
            written.append(Written(line, points))
            y += round(1.9 * points / 72 * dpi)
        y += dpi // 3
    foot = SMALL[0].upper()
    pen.text((dpi, page.height - dpi), foot, font=ImageFont.load_default(6 / 72 * dpi), fill=25)
    written.append(Written(foot, 6))
    return page, tuple(written)


def photographed(page: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return a page as a phone sees it: from one side, a little turned, unevenly lit, noisy; uint8 BGR."""
    width, height = size
    seen = np.asarray(page)
    rows, columns = seen.shape
    corners = np.array([[0.14, 0.06], [0.87, 0.04], [0.90, 0.97], [0.11, 0.95]], np.float32) * (width, height)
    sheet = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], np.float32)
    matrix = cv2.getPerspectiveTransform(sheet, corners.astype(np.float32))
    table = cv2.warpPerspective(seen, matrix, size, flags=cv2.INTER_AREA, borderValue=90)
    light = (
        np.linspace(0.95, 0.75, width, dtype=np.float32)[None, :]
        * np.linspace(1, 0.9, height, dtype=np.float32)[:, None]
    )
    photo = cv2.GaussianBlur(table, (0, 0), 0.8) * light
    photo += np.random.default_rng(8).normal(0, 4, photo.shape).astype(np.float32)
    return cv2.merge([np.clip(photo * share, 0, 255).astype(np.uint8) for share in (0.92, 0.98, 1.0)])


def missing(written: Sequence[Written], rows: Iterable[dict[str, object]]) -> list[Written]:
    """Return the lines that were not read, four letters of five at least right."""
    read = [_folded(line["text"]) for row in rows for line in row["lines"]]  # type: ignore[attr-defined]
    return [one for one in written if not any(_alike(_folded(one.text), text) for text in read)]


def _folded(text: str) -> str:
    return "".join(text.lower().split())


def _alike(a: str, b: str) -> bool:
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio() >= 0.8


def save_large(page: Image.Image, path: Path) -> Path:
    """Write a large page in colour, quickly."""
    pixels = cv2.cvtColor(np.asarray(page), cv2.COLOR_GRAY2BGR)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_JPEG_QUALITY, 90])
    return path
