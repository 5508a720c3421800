"""Pictures of documents and of single lines, with damage; each follows from a version, a seed and an index."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import msgspec
import numpy as np

from agent import image
from agent.page import Pixels, Quad
from converters.drawing import damage, geometry
from converters.drawing.documents import draw_cheque, draw_form, draw_invoice, draw_receipt
from converters.drawing.fonts import Font, Style, nearest_size
from converters.drawing.geometry import Picture
from converters.drawing.job import Job
from converters.drawing.pages import draw_book, draw_letter, draw_list, draw_notice
from converters.drawing.sheet import BLACK, DrawnLine, SetLine, Sheet, box_at, lay, set_line
from converters.drawing.stamps import stamp
from converters.drawing.texts import Texts
from converters.drawing.words import SCRIPTS

DRAWING_VERSION = 1
"""Raised whenever the same seed and index give another picture."""

CLEAN_SHARE = 0.25
"""Of the pictures, that are clean scans."""

KINDS: Mapping[str, Callable[[Job], Sheet]] = MappingProxyType(
    {
        "receipt": draw_receipt,
        "invoice": draw_invoice,
        "cheque": draw_cheque,
        "form": draw_form,
        "letter": draw_letter,
        "book": draw_book,
        "list": draw_list,
        "notice": draw_notice,
    }
)
_STYLES: tuple[Style, ...] = ("sans", "serif", "kai", "mono")
_PAGE, _LINE = 0, 1  # streams of random numbers


class DrawnPage(msgspec.Struct, frozen=True):
    """A picture of a drawn document.

    Attributes:
        pixels: uint8 (H, W, 3) BGR.
        lines: its lines of text; boxes lie within the picture.
        kind: of document, a key of KINDS.
        clean: it has no damage.
    """

    pixels: Pixels
    lines: tuple[DrawnLine, ...]
    kind: str
    clean: bool


class DrawnLineStrip(msgspec.Struct, frozen=True):
    """One line of text as the recogniser gets it.

    Attributes:
        pixels: uint8 (height, W, 3) BGR.
        text: what it says.
    """

    pixels: Pixels
    text: str


def draw_page(
    seed: int, index: int, fonts: tuple[Font, ...], *, long_side: tuple[int, int] = (1000, 1600)
) -> DrawnPage:
    """Return a page; the same seed, index, fonts and version give the same bytes.

    Args:
        seed: of the set of pages, >= 0.
        index: of the page in it, >= 0; pages do not depend on each other.
        fonts: as found by `find_fonts`.
        long_side: the range of the picture's longer side, in pixels.
    """
    job = _job(seed, index, fonts, _PAGE, long_side)
    sheet = job.texts.one(tuple(KINDS.values()))(job)
    text_px = _text_px(sheet.lines)
    clean = job.texts.chance(CLEAN_SHARE)
    printed = sheet.pixels if clean else _printed(sheet.pixels, job, sheet.kind, text_px)
    picture: Picture = (damage.darkened(printed, sheet.paper), tuple(sheet.lines))
    if not clean:
        picture = _captured(_aged(picture, job, sheet.kind, text_px), job, sheet.kind, text_px)
    pixels, lines = picture
    return DrawnPage(pixels, tuple(_within(line, pixels) for line in lines), sheet.kind, clean)


def _job(seed: int, index: int, fonts: tuple[Font, ...], stream: int, long_side: tuple[int, int]) -> Job:
    rng = np.random.default_rng((DRAWING_VERSION, seed, index, stream))
    script = SCRIPTS[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    longest, leading = int(rng.integers(long_side[0], long_side[1] + 1)), float(rng.uniform(1.3, 1.9))
    return Job(rng, Texts(rng, script), fonts, longest, leading)


def _text_px(lines: list[DrawnLine]) -> float:
    """Return the usual height of the lines' ink, in pixels."""
    return statistics.median(line.box[2][1] - line.box[0][1] for line in lines) if lines else 24.0


def _within(line: DrawnLine, pixels: Pixels) -> DrawnLine:
    height, width = pixels.shape[:2]
    a, b, c, d = ((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in line.box)
    return DrawnLine(line.text, (a, b, c, d))


# ---------------------------------------------------------------------------------------------------- damage


def _printed(pixels: Pixels, job: Job, kind: str, text_px: float) -> Pixels:
    """Return the ink, on white, as a printer leaves it."""
    rng, chance = job.rng, job.texts.chance
    if chance({"receipt": 0.7, "list": 0.0, "line": 0.15}.get(kind, 0.04)):
        return damage.print_thermally(pixels, rng, text_px)
    if text_px >= 16 and chance({"list": 0.8, "invoice": 0.3, "line": 0.12}.get(kind, 0.04)):
        return damage.print_with_pins(pixels, rng, text_px)
    pixels = damage.press(pixels, rng)
    if chance(0.25):
        pixels = damage.bleed(pixels, rng, text_px)
    return damage.wear(pixels, rng, text_px) if chance(0.2) else pixels


def _aged(picture: Picture, job: Job, kind: str, text_px: float) -> Picture:
    """Return the paper after its use: stained, stamped, folded."""
    chance, (pixels, lines) = job.texts.chance, picture
    if chance(0.35):
        pixels = damage.texture(pixels, job.rng)
    if chance(0.25):
        pixels = damage.tint(pixels, job.rng)
    if chance(0.4 if kind in ("invoice", "cheque", "form", "letter") else 0.1):
        pixels, lines = stamp((pixels, lines), job, text_px)
    if chance(0.3):
        pixels = damage.fold(pixels, job.rng)
    return pixels, lines


def _captured(picture: Picture, job: Job, kind: str, text_px: float) -> Picture:
    """Return the paper's picture from a camera or a scanner."""
    if kind == "book" and job.texts.chance(0.5):
        picture = geometry.curl(picture, job.rng, text_px)
    if job.texts.chance(0.45):
        pixels, lines = geometry.photograph(picture, job.rng)
        return _exposed(pixels, job, text_px), lines
    pixels, lines = geometry.turn(picture, job.rng) if job.texts.chance(0.7) else picture
    return _scanned(pixels, job, text_px), lines


def _exposed(pixels: Pixels, job: Job, text_px: float) -> Pixels:
    """Return what a camera makes of it."""
    rng, chance = job.rng, job.texts.chance
    if chance(0.7):
        pixels = damage.shade(pixels, rng)
    if chance(0.35):
        pixels = damage.shake(pixels, rng, text_px)
    elif chance(0.5):
        pixels = damage.blur(pixels, rng, text_px)
    dark = chance(0.25)
    if dark:
        pixels = damage.dim(pixels, rng)
    if chance(0.7):
        pixels = damage.noise(pixels, rng, 8.0 if dark else 15.0)
    return damage.recompress(pixels, rng) if chance(0.7) else pixels


def _scanned(pixels: Pixels, job: Job, text_px: float) -> Pixels:
    """Return what a scanner or copier makes of it."""
    rng, chance = job.rng, job.texts.chance
    if text_px >= 20 and chance(0.08):
        return damage.copy_to_fax(pixels, rng)
    if chance(0.3):
        pixels = damage.blur(pixels, rng, text_px)
    if chance(0.2):
        pixels = damage.flatten(pixels, rng)
    if chance(0.35):
        pixels = damage.noise(pixels, rng, 8.0)
    return damage.recompress(pixels, rng) if chance(0.5) else pixels


# ---------------------------------------------------------------------------------------------------- lines


def draw_line(
    seed: int,
    index: int,
    fonts: tuple[Font, ...],
    *,
    height: int = 48,
    squeeze: float = 0.85,
    max_width: int = 960,
) -> DrawnLineStrip:
    """Return one line, cut out as the reader cuts out what its detector finds; the same arguments give the same bytes.

    Args:
        seed: of the set of lines, >= 0.
        index: of the line in it, >= 0.
        fonts: as found by `find_fonts`.
        height: of the result, in pixels.
        squeeze: share of its natural width at which a line is read.
        max_width: of the result, in pixels; texts are cut to fit.
    """
    job = _job(seed, index, fonts, _LINE, (0, 0))
    size = nearest_size(math.exp(job.rng.uniform(math.log(13), math.log(58))))
    line = _line(job, size, max_width / squeeze / height * size * 1.1)
    pixels, box = _scrap(job, line, size)
    clean, inverse = job.texts.chance(CLEAN_SHARE), job.texts.chance(0.08)
    pixels = pixels if clean else _printed(pixels, job, "line", size * 0.9)
    pixels = cv2.bitwise_not(pixels) if inverse else pixels
    pixels = pixels if clean else _used_scrap(pixels, job, size * 0.9)
    quad = _found(box, job.rng)
    across, down = image.side_lengths(quad)
    width = min(max_width, math.ceil(squeeze * height * across / down))
    return DrawnLineStrip(image.crop(pixels, quad, height, width), line.text)


def _line(job: Job, size: int, room: float) -> SetLine:
    """Return a line of text, in a face of some kind, that takes at most so many pixels."""
    face = job.face(size, job.texts.one(_STYLES))
    face = job.bold(face) if job.texts.chance(0.2) else face
    room *= job.rng.uniform(0.2, 1.0)
    line = set_line(job.texts.line(max(2, int(room / size * 1.2))), face, max(room, 2.0 * size))
    line = line or set_line("0", face)
    assert line is not None  # every font has digits
    return line


def _scrap(job: Job, line: SetLine, size: int) -> tuple[Pixels, Quad]:
    """Return the piece of paper around a line, on which other print may be near, and the line's box."""
    margin, (height, width) = round(size * 0.8), line.mask.shape
    pixels = np.full((height + 2 * margin, width + 2 * margin, 3), 255, np.uint8)
    between, chance = job.texts.between, job.texts.chance
    ink = (between(0, 90), between(0, 90), between(0, 90)) if chance(0.3) else BLACK
    lay(line.mask, pixels[margin : margin + height, margin : margin + width], ink)
    if chance(0.25):
        y = margin + height + between(2, max(3, margin // 2))
        cv2.line(pixels, (0, y), (pixels.shape[1], y), ink, max(1, size // 16))
    if chance(0.15):
        x = margin - between(3, max(4, margin // 2))
        cv2.line(pixels, (x, 0), (x, pixels.shape[0]), ink, max(1, size // 16))
    return pixels, box_at(margin, margin, width, height)


def _used_scrap(pixels: Pixels, job: Job, text_px: float) -> Pixels:
    for share, step in ((0.3, damage.texture), (0.4, damage.tint), (0.1, damage.fold)):
        if job.texts.chance(share):
            pixels = step(pixels, job.rng)
    return _exposed(pixels, job, text_px) if job.texts.chance(0.5) else _scanned(pixels, job, text_px)


def _found(box: Quad, rng: np.random.Generator) -> Quad:
    """Return a line's box as PP-OCRv4's detector finds it on drawn pages: with some air, not quite straight."""
    (x0, y0), _, (x1, y1), _ = box
    height = y1 - y0
    left, right = rng.uniform(-0.03, 0.35, 2) * height
    top, bottom = rng.uniform(0.0, 0.48, 2) * height
    slope = float(np.clip(rng.normal(0, 0.006) * (x1 - x0) / 2, -0.15 * height, 0.15 * height))
    return (
        (x0 - left, y0 - top - slope),
        (x1 + right, y0 - top + slope),
        (x1 + right, y1 + bottom + slope),
        (x0 - left, y1 + bottom - slope),
    )
