"""Stamps: round, oval or square seals in red ink, pressed over the print."""

from __future__ import annotations

import math

import cv2
import numpy as np

from agent.page import Pixels
from converters.drawing.damage import darkened, field
from converters.drawing.geometry import Picture, moved
from converters.drawing.job import Job
from converters.drawing.sheet import Colour, DrawnLine, SetLine, box_at, set_line

_INKS: tuple[Colour, ...] = ((40, 32, 214), (60, 50, 190), (50, 30, 235), (180, 60, 50), (150, 50, 140))


def stamp(picture: Picture, job: Job, text_px: float) -> Picture:
    """Press a stamp somewhere over the text; its straight text is a line, that along its edge is none."""
    pixels, lines = picture
    radius = round(min(text_px * job.rng.uniform(3.0, 5.5), min(pixels.shape[:2]) * 0.3))
    seal, words = _seal(job, radius)
    angle = float(job.rng.normal(0, 8))
    side = seal.shape[0]
    left = job.texts.between(0, max(0, pixels.shape[1] - side))
    top = job.texts.between(0, max(0, pixels.shape[0] - side))
    turned = np.vstack([cv2.getRotationMatrix2D((side / 2, side / 2), angle, 1.0), [0, 0, 1]])
    seal = cv2.warpPerspective(seal, turned, (side, side), flags=cv2.INTER_LINEAR)
    shift = np.array([[1, 0, left], [0, 1, top], [0, 0, 1]], np.float64)
    return _pressed(pixels, seal, (left, top), job), (*lines, *moved(words, shift @ turned))


def _pressed(pixels: Pixels, seal: Pixels, at: tuple[int, int], job: Job) -> Pixels:
    """Return the picture darkened by the seal's ink: translucent, so that the print under it stays."""
    left, top = at
    part = pixels[top : top + seal.shape[0], left : left + seal.shape[1]]
    seal = seal[: part.shape[0], : part.shape[1]]
    cells = (seal.shape[0] // 9, seal.shape[1] // 9)
    ink = cv2.multiply(seal, field(seal.shape, job.rng, cells, job.rng.uniform(0.2, 0.7), 1.1), scale=1 / 255)
    share = ink[:, :, None].astype(np.float32) / 255
    gains = 255 - share * (255 - np.array(job.texts.one(_INKS), np.float32))
    result = pixels.copy()
    result[top : top + part.shape[0], left : left + part.shape[1]] = darkened(part, gains.astype(np.uint8))
    return result


def _seal(job: Job, radius: int) -> tuple[Pixels, tuple[DrawnLine, ...]]:
    """Return a stamp's ink, uint8 (side, side), and its straight line of text."""
    side, middle = 2 * radius + 8, radius + 4
    seal = np.zeros((side, side), np.uint8)
    squash, edge = job.texts.one((1.0, 1.0, 0.7)), max(2, radius // 22)
    cv2.ellipse(seal, (middle, middle), (radius, round(radius * squash)), 0, 0, 360, 235, edge, cv2.LINE_AA)
    if squash == 1.0:
        _star(seal, middle, radius * 0.3)
        _text_along(seal, job, job.texts.company(), radius)
    else:
        cv2.ellipse(seal, (middle, middle), (round(radius * 0.9), round(radius * 0.6)), 0, 0, 360, 235, 1, cv2.LINE_AA)
    text = job.texts.one((*job.texts.words.options, *job.texts.words.receipt, job.texts.date()))
    line = set_line(text, job.face(radius * 0.27, "sans", "serif"), width_px=radius * 1.3)
    if line is None:
        return seal, ()
    height, width = line.mask.shape
    left, top = middle - width // 2, middle - height // 2 + round(radius * (0.55 if squash == 1.0 else 0.0))
    _add(seal, line.mask, left, top)
    return seal, (DrawnLine(line.text, box_at(left, top, width, height)),)


def _add(seal: Pixels, mask: Pixels, left: int, top: int) -> None:
    """Put a mask into the seal, as far as it lies inside."""
    left, top = max(0, left), max(0, top)
    part = seal[top : top + mask.shape[0], left : left + mask.shape[1]]
    np.maximum(part, mask[: part.shape[0], : part.shape[1]], out=part)


def _star(seal: Pixels, middle: int, radius: float) -> None:
    angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
    reach = [radius if corner % 2 == 0 else radius * 0.38 for corner in range(10)]
    points = [(middle + r * math.cos(a), middle + r * math.sin(a)) for r, a in zip(reach, angles, strict=True)]
    cv2.fillPoly(seal, [np.array(points, np.int32)], 225, cv2.LINE_AA)


def _text_along(seal: Pixels, job: Job, text: str, radius: int) -> None:
    """Write a text along the upper edge, each character turned."""
    face, middle = job.face(radius * 0.26, "serif", "sans"), radius + 4
    step = min(28.0, 250.0 / max(1, len(text)))
    for number, character in enumerate(text):
        degrees = (number - (len(text) - 1) / 2) * step
        line = set_line(character, face)
        if line is not None:
            _add_turned(seal, line, middle, radius * 0.76, degrees)


def _add_turned(seal: Pixels, line: SetLine, middle: int, reach: float, degrees: float) -> None:
    tile = cv2.copyMakeBorder(line.mask, *(max(line.mask.shape) // 3,) * 4, cv2.BORDER_CONSTANT)
    height, width = tile.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -degrees, 1.0)
    turned = cv2.warpAffine(tile, matrix, (width, height), flags=cv2.INTER_LINEAR)
    x = middle + reach * math.sin(math.radians(degrees)) - width / 2
    y = middle - reach * math.cos(math.radians(degrees)) - height / 2
    _add(seal, turned, round(x), round(y))
