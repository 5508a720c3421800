"""The system's fonts: which are known and installed, and their glyphs as masks.

Only files of the table are used, so that the same Debian packages give the same pictures.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import cv2
import msgspec
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agent.errors import EngineError
from agent.page import Pixels
from converters.drawing.words import SCRIPTS, Script

Style = Literal["sans", "serif", "kai", "mono"]

FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path("~/.fonts"), Path("~/.local/share/fonts"))
PACKAGES: Mapping[Script, str] = MappingProxyType(
    {
        "simplified": "fonts-wqy-zenhei fonts-arphic-uming fonts-arphic-ukai",
        "traditional": "fonts-wqy-zenhei fonts-arphic-uming fonts-arphic-ukai",
        "latin": "fonts-dejavu-core fonts-liberation",
    }
)
"""Which Debian packages have fonts for a script; any one of them will do."""

SIZES_PX: tuple[int, ...] = (*range(12, 33), *range(34, 49, 2), *range(52, 97, 4), *range(104, 201, 8))
"""Sizes of type: few enough that a glyph is met again at the same size."""

_SMALL_PX = 18
"""Below, some Chinese fonts hold black and white bitmaps for screens; glyphs are drawn at twice the size instead."""


class _Known(msgspec.Struct, frozen=True):
    """A face of a font file, and what it is good for."""

    style: Style
    scripts: tuple[Script, ...]
    index: int = 0
    bold: bool = False


_CHINESE: tuple[Script, ...] = ("simplified", "traditional")
_LATIN: tuple[Script, ...] = ("latin",)


def _noto(style: Style, *, bold: bool) -> tuple[_Known, ...]:
    return _Known(style, ("simplified",), 2, bold), _Known(style, ("traditional",), 3, bold)


_KNOWN: Mapping[str, tuple[_Known, ...]] = MappingProxyType(
    {
        "wqy-zenhei.ttc": (_Known("sans", _CHINESE), _Known("mono", _CHINESE, 1)),
        "wqy-microhei.ttc": (_Known("sans", _CHINESE), _Known("mono", _CHINESE, 1)),
        "uming.ttc": (_Known("serif", ("simplified",)), _Known("serif", ("traditional",), 2)),
        "ukai.ttc": (_Known("kai", ("simplified",)), _Known("kai", ("traditional",), 2)),
        "NotoSansCJK-Regular.ttc": _noto("sans", bold=False),
        "NotoSansCJK-Bold.ttc": _noto("sans", bold=True),
        "NotoSerifCJK-Regular.ttc": _noto("serif", bold=False),
        "NotoSerifCJK-Bold.ttc": _noto("serif", bold=True),
        "DejaVuSans.ttf": (_Known("sans", _LATIN),),
        "DejaVuSans-Bold.ttf": (_Known("sans", _LATIN, bold=True),),
        "DejaVuSansMono.ttf": (_Known("mono", _LATIN),),
        "DejaVuSansMono-Bold.ttf": (_Known("mono", _LATIN, bold=True),),
        "DejaVuSerif.ttf": (_Known("serif", _LATIN),),
        "DejaVuSerif-Bold.ttf": (_Known("serif", _LATIN, bold=True),),
        "LiberationSans-Regular.ttf": (_Known("sans", _LATIN),),
        "LiberationSans-Bold.ttf": (_Known("sans", _LATIN, bold=True),),
        "LiberationSans-Italic.ttf": (_Known("sans", _LATIN),),
        "LiberationSansNarrow-Regular.ttf": (_Known("sans", _LATIN),),
        "LiberationSerif-Regular.ttf": (_Known("serif", _LATIN),),
        "LiberationSerif-Bold.ttf": (_Known("serif", _LATIN, bold=True),),
        "LiberationSerif-Italic.ttf": (_Known("serif", _LATIN),),
        "LiberationMono-Regular.ttf": (_Known("mono", _LATIN),),
        "LiberationMono-Bold.ttf": (_Known("mono", _LATIN, bold=True),),
    }
)


class Glyph(msgspec.Struct, frozen=True):
    """One character at one size.

    Attributes:
        mask: uint8 (H, W), 255 where ink is; empty for a space.
        left: of the mask, in pixels from the pen.
        top: of the mask, in pixels from the baseline, negative above it.
        advance: how far the pen moves, in pixels.
    """

    mask: Pixels
    left: int
    top: int
    advance: int


class Font(msgspec.Struct, frozen=True):
    """One face of an installed font file.

    Attributes:
        path: the file.
        index: of the face in it.
        style: of its strokes.
        scripts: what it is used for; it may hold more.
        bold: whether its strokes are.
    """

    path: Path
    index: int
    style: Style
    scripts: tuple[Script, ...]
    bold: bool = False

    @property
    def name(self) -> str:
        """The file's name and the face's number, the same on every machine."""
        return f"{self.path.name}#{self.index}"

    def glyph(self, character: str, size_px: int, stroke_px: int = 0) -> Glyph | None:
        """Return a character's glyph, its outline widened by `stroke_px` on each side; None where the font has none."""
        return _glyph(self.path, self.index, character, size_px, stroke_px)


def find_fonts(folders: Sequence[Path] = FOLDERS) -> tuple[Font, ...]:
    """Return the known fonts that are installed, in the order of the table.

    Raises:
        EngineError: a script has none; the message names Debian's packages.
    """
    files: dict[str, Path] = {}
    for folder in folders:
        for where, _, names in os.walk(folder.expanduser()):
            files.update({name: Path(where, name) for name in names if name in _KNOWN and name not in files})
    known = [(files[name], face) for name, faces in _KNOWN.items() if name in files for face in faces]
    fonts = tuple(Font(path, face.index, face.style, face.scripts, face.bold) for path, face in known)
    _check_scripts(fonts)
    return fonts


def _check_scripts(fonts: Sequence[Font]) -> None:
    missing = [script for script in SCRIPTS if not any(script in font.scripts for font in fonts)]
    if missing:
        packages = dict.fromkeys(package for script in missing for package in PACKAGES[script].split())
        raise EngineError(
            f"no font is installed to draw training pictures with, for script: {', '.join(missing)}: "
            f"sudo apt-get install -y {' '.join(packages)}"
        )


def fonts_for(fonts: Sequence[Font], script: Script, *styles: Style) -> tuple[Font, ...]:
    """Return the fonts for a script, of the given styles where there are such, else of any."""
    able = tuple(font for font in fonts if script in font.scripts)
    return tuple(font for font in able if font.style in styles) or able


def nearest_size(size_px: float) -> int:
    """Return the size of type nearest to a wish, in pixels."""
    return min(SIZES_PX, key=lambda size: abs(size - size_px))


@functools.lru_cache(maxsize=32)  # each maps its file, up to 20 MB, anew
def _opened(path: Path, index: int, size_px: int) -> ImageFont.FreeTypeFont:
    # The basic layout: one glyph per character on every machine, whether Pillow finds libraqm or not.
    return ImageFont.truetype(str(path), size_px, index=index, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=20_000)
def _glyph(path: Path, index: int, character: str, size_px: int, stroke_px: int) -> Glyph | None:
    """Return a glyph; FreeType takes 0.1 ms to scale a Chinese one, so they are kept (about 1 KB each)."""
    if size_px < _SMALL_PX:
        return _halved(_glyph(path, index, character, 2 * size_px, 2 * stroke_px))
    font = _opened(path, index, size_px)
    if character.isspace():
        return Glyph(np.zeros((0, 0), np.uint8), 0, 0, round(font.getlength(character)))
    left, top, right, bottom = (round(side) for side in font.getbbox(character, anchor="ls", stroke_width=stroke_px))
    tile = Image.new("L", (max(0, right - left), max(0, bottom - top)))
    ImageDraw.Draw(tile).text((-left, -top), character, 255, font, anchor="ls", stroke_width=stroke_px)
    mask = np.asarray(tile)
    if not mask.any() or (character != _NOBODY and _is_missing(path, index, size_px, stroke_px, mask)):
        return None
    x, y, width, height = cv2.boundingRect(mask)  # Pillow's box may reach over the whole advance
    advance = round(font.getlength(character)) + stroke_px
    return Glyph(mask[y : y + height, x : x + width].copy(), left + x, top + y, advance)


def _halved(glyph: Glyph | None) -> Glyph | None:
    if glyph is None or not glyph.mask.size:
        return glyph and Glyph(glyph.mask, 0, 0, round(glyph.advance / 2))
    height, width = glyph.mask.shape
    above, before = glyph.top % 2, glyph.left % 2  # so that pairs of rows and columns start at the pen and the baseline
    mask = np.zeros((height + above + (height + above) % 2, width + before + (width + before) % 2), np.uint8)
    mask[above : above + height, before : before + width] = glyph.mask
    small = cv2.resize(mask, (mask.shape[1] // 2, mask.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return Glyph(small, glyph.left // 2, glyph.top // 2, round(glyph.advance / 2))


_NOBODY = "\uffff"
"""No character, so a font draws what it draws for all those it lacks."""


def _is_missing(path: Path, index: int, size_px: int, stroke_px: int, mask: Pixels) -> bool:
    missing = _glyph(path, index, _NOBODY, size_px, stroke_px)
    x, y, width, height = cv2.boundingRect(mask)
    return missing is not None and np.array_equal(missing.mask, mask[y : y + height, x : x + width])
