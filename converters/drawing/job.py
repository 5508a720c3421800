"""What every kind of document is drawn with: random choices, texts, fonts, a size."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from converters.drawing.fonts import Font, Style, fonts_for, nearest_size
from converters.drawing.sheet import Colour, Face, Sheet
from converters.drawing.texts import Texts

_TINTS: tuple[Colour, ...] = ((226, 240, 228), (240, 230, 222), (222, 234, 246), (232, 226, 244), (214, 236, 244))


_NO_START = "，。、！？：；）"


class Job(msgspec.Struct, frozen=True):
    """One document to be drawn.

    Attributes:
        rng: every choice comes from it.
        texts: makes the texts, in the document's script.
        fonts: all that are installed.
        long_side: of the sheet at most, in pixels.
        leading: from baseline to baseline of running text, in sizes of the type.
    """

    rng: np.random.Generator
    texts: Texts
    fonts: tuple[Font, ...]
    long_side: int
    leading: float = 1.6

    def face(self, size_px: float, *styles: Style) -> Face:
        """Return a face in one of the styles; in Chinese text, Latin letters may come from a font of their own."""
        able = fonts_for(self.fonts, self.texts.script, *styles)
        plain = tuple(font for font in able if not font.bold)
        chosen = [self.texts.one(able if self.texts.chance(0.15) else plain or able)]
        if self.texts.script != "latin" and self.texts.chance(0.4):
            latin = tuple(font for font in fonts_for(self.fonts, "latin", *styles) if not font.bold)
            chosen = [self.texts.one(latin), *chosen] if latin else chosen
        return Face(tuple(chosen), nearest_size(size_px))

    def bold(self, face: Face) -> Face:
        """Return a face for headings: in broader strokes, where the type is large enough for them."""
        stroke = 0 if face.size_px < 24 or face.fonts[-1].bold else max(1, face.size_px // 40)
        return msgspec.structs.replace(face, stroke_px=stroke)

    def spread(self, face: Face, step_px: int) -> Face:
        """Return a face whose digits stand `step_px` apart."""
        digit = face.glyph("0")
        space = step_px - (digit.advance if digit is not None else face.size_px // 2)
        return msgspec.structs.replace(face, tracking_px=max(0, space))

    def some(self, options: Sequence[str], count: int) -> tuple[str, ...]:
        """Return so many of the options, none twice until all are used."""
        order = [*self.rng.permutation(len(options)), *self.rng.permutation(len(options))]
        return tuple(options[int(i)] for i in order[:count])

    def tint(self) -> Colour:
        """Return a pale colour for paper."""
        return self.texts.one(_TINTS)

    def value(self) -> str:
        """Return what may stand in a field of a form."""
        texts = self.texts
        makers = (texts.person, texts.date, texts.phone, texts.code, texts.company, texts.tax_number, texts.amount)
        return texts.one((*makers, texts.account))()

    def paragraph(self, sheet: Sheet, face: Face, band: tuple[float, float, float], lines: int) -> float:
        """Write running text between (left, right) below a top; return where the next may begin.

        Args:
            sheet: to write on.
            face: to set it in.
            band: (left, right, top), in pixels.
            lines: how many.
        """
        left, right, top = band
        step = face.size_px * self.leading
        indent = 2 * face.size_px
        per_line = (right - left) / face.size_px * (2.4 if self.texts.script == "latin" else 1.1)
        text = self.texts.sentence(int(per_line * lines))
        for line in range(lines):
            x = left + (indent if line == 0 else 0)
            count = fitting(text, face, right - x)
            sheet.write((x, top + step * (line + 1)), text[:count], face)
            text = text[count:].lstrip()
            if not text:
                break
        return top + step * lines + step * 0.2


def fitting(text: str, face: Face, width_px: float) -> int:
    """Return how many characters of a text fit into a width; Latin words are not broken where that can be."""
    x = 0
    for count, character in enumerate(text):
        glyph = face.glyph(character)
        x += (glyph.advance + face.tracking_px) if glyph is not None else 0
        if x > width_px:
            space = text.rfind(" ", 0, count)
            count += len(text[count:]) - len(text[count:].lstrip(_NO_START))  # these hang into the margin
            return space if space > 0 and character.isascii() and text[count - 1].isascii() else max(1, count)
    return len(text)
