"""Lines set in type, and the sheets they are drawn on.

Coordinates are (x, y) in pixels, x to the right, y down; colours are BGR, 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import cv2
import msgspec
import numpy as np

from agent.page import Pixels, Point, Quad
from converters.drawing.fonts import Font, Glyph, nearest_size

Colour = tuple[int, int, int]
Anchor = Literal["left", "middle", "right"]

BLACK: Colour = (20, 20, 20)
WHITE: Colour = (255, 255, 255)


class DrawnLine(msgspec.Struct, frozen=True):
    """One line of text of a drawn page.

    Attributes:
        text: what was drawn.
        box: corners of its ink, clockwise from the text's upper left, in pixels of the final picture.
    """

    text: str
    box: Quad


class Face(msgspec.Struct, frozen=True):
    """What a line is set in.

    Attributes:
        fonts: each character is taken from the first that has it.
        size_px: of the type.
        stroke_px: by which outlines are widened on each side.
        tracking_px: extra space after each character.
    """

    fonts: tuple[Font, ...]
    size_px: int
    stroke_px: int = 0
    tracking_px: int = 0

    def glyph(self, character: str) -> Glyph | None:
        """Return a character's glyph from the first font that has it, or None."""
        found = (font.glyph(character, self.size_px, self.stroke_px) for font in self.fonts)
        return next((glyph for glyph in found if glyph is not None), None)

    def scaled(self, factor: float) -> Face:
        """Return the face at another size."""
        return msgspec.structs.replace(self, size_px=nearest_size(self.size_px * factor))

    def width(self, text: str) -> int:
        """Return how far the pen moves over a text, in pixels."""
        return sum(glyph.advance + self.tracking_px for glyph in map(self.glyph, text) if glyph is not None)


class SetLine(msgspec.Struct, frozen=True):
    """A line set in type, not yet on paper.

    Attributes:
        text: what is in it.
        mask: uint8 (H, W), 255 where ink is, cut to its ink.
        left: of the mask, in pixels from the pen's start.
        top: of the mask, in pixels from the baseline, negative above it.
        advance: how far the pen moved.
    """

    text: str
    mask: Pixels
    left: int
    top: int
    advance: int


def set_line(text: str, face: Face, width_px: float = float("inf")) -> SetLine | None:
    """Set a text; what no font of the face has is left out, and so is the end that goes beyond a width.

    Returns:
        The line without space around it, or None when nothing is left.
    """
    known = "".join(character for character in text if face.glyph(character) is not None)
    placed = list(_placed(known.strip(), face, width_px))
    while placed and placed[-1][0].isspace():
        placed.pop()
    inked = [(x, glyph) for _, x, glyph in placed if glyph.mask.size]
    if not inked:
        return None
    left, top = min(x + g.left for x, g in inked), min(g.top for _, g in inked)
    right = max(x + g.left + g.mask.shape[1] for x, g in inked)
    bottom = max(g.top + g.mask.shape[0] for _, g in inked)
    mask = np.zeros((bottom - top, right - left), np.uint8)
    for x, g in inked:
        rows, columns = slice(g.top - top, g.top - top + g.mask.shape[0]), x + g.left - left
        part = mask[rows, columns : columns + g.mask.shape[1]]
        np.maximum(part, g.mask, out=part)
    _, x, last = placed[-1]
    return SetLine("".join(c for c, _, _ in placed), mask, left, top, x + last.advance)


def _placed(text: str, face: Face, width_px: float) -> Iterator[tuple[str, int, Glyph]]:
    x = 0
    for character in text:
        glyph = face.glyph(character)
        if glyph is None:
            continue
        if x + glyph.advance > width_px:
            return
        yield character, x, glyph
        x += glyph.advance + face.tracking_px


def lay(mask: Pixels, pixels: Pixels, ink: Colour) -> None:
    """Colour a part of a picture, uint8 (H, W, 3), by a mask, uint8 (H, W)."""
    share = mask[:, :, None].astype(np.int32)
    pixels += ((np.array(ink, np.int32) - pixels) * share // 255).astype(np.int16).astype(np.uint8)


def box_at(left: float, top: float, width: float, height: float) -> Quad:
    """Return the corners of an upright box."""
    right, bottom = left + width, top + height
    return (left, top), (right, top), (right, bottom), (left, bottom)


class Sheet:
    """A page being drawn.

    Attributes:
        pixels: uint8 (H, W, 3), what is printed, on white.
        paper: uint8 (H, W, 3), what was on the paper before: tint, patterns, preprinted rules and words.
        lines: the lines of text drawn so far, in both.
        kind: of document.
    """

    def __init__(self, kind: str, width: int, height: int, paper: Colour = WHITE) -> None:
        self.kind = kind
        self.width, self.height = width, height
        self.pixels = np.full((height, width, 3), 255, np.uint8)
        self.paper = np.full((height, width, 3), paper, np.uint8)
        self.lines: list[DrawnLine] = []

    def write(
        self,
        at: Point,
        text: str,
        face: Face,
        *,
        ink: Colour = BLACK,
        anchor: Anchor = "left",
        width_px: float = float("inf"),
        preprinted: bool = False,
    ) -> int:
        """Draw a text on a baseline and remember its box, unless it would leave the sheet.

        Args:
            at: the anchor on the baseline.
            text: its end is left out where the width is too small.
            face: to set it in.
            ink: its colour.
            anchor: which end of the text, or its middle, stands there.
            width_px: what it may take.
            preprinted: draw on the paper.

        Returns:
            How far the pen moved, in pixels; 0 when nothing was drawn.
        """
        line = set_line(text, face, width_px)
        if line is None:
            return 0
        pen = round(at[0] - line.advance * {"left": 0.0, "middle": 0.5, "right": 1.0}[anchor])
        left, top = pen + line.left, round(at[1]) + line.top
        height, width = line.mask.shape
        if left < 0 or top < 0 or left + width > self.width or top + height > self.height:
            return 0
        surface = self.paper if preprinted else self.pixels
        lay(line.mask, surface[top : top + height, left : left + width], ink)
        self.lines.append(DrawnLine(line.text, box_at(left, top, width, height)))
        return line.advance

    def rule(
        self, start: Point, end: Point, width_px: int = 1, ink: Colour = BLACK, *, preprinted: bool = False
    ) -> None:
        """Draw a straight rule."""
        surface = self.paper if preprinted else self.pixels
        cv2.line(surface, _rounded(start), _rounded(end), ink, width_px)

    def frame(
        self, corner: Point, opposite: Point, width_px: int = 1, ink: Colour = BLACK, *, preprinted: bool = False
    ) -> None:
        """Draw a rectangle's outline, or fill it where the width is -1."""
        surface = self.paper if preprinted else self.pixels
        cv2.rectangle(surface, _rounded(corner), _rounded(opposite), ink, width_px)

    def cut(self, bottom: float) -> None:
        """Cut off what lies below a height; no line may."""
        lowest = max((line.box[2][1] for line in self.lines), default=1.0)
        self.height = max(math.ceil(lowest), min(self.height, round(bottom)))
        self.pixels, self.paper = self.pixels[: self.height], self.paper[: self.height]

    def dashes(self, left: float, right: float, y: float, dash_px: int, width_px: int = 1) -> None:
        """Draw a dashed rule across."""
        for x in range(round(left), round(right) - dash_px, 2 * dash_px):
            self.rule((x, y), (x + dash_px, y), width_px)


def _rounded(point: Point) -> tuple[int, int]:
    return round(point[0]), round(point[1])
