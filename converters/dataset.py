"""Pictures that a compressor trains and calibrates on, drawn and the user's own; and labelled pages to evaluate on."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np

from agent import image
from agent.batch import find_pictures
from agent.errors import ConfigError, FrameError, InputError
from agent.memory import MB, Budget
from agent.page import Pixels, Quad
from converters import child
from converters.drawing import DRAWING_VERSION, Font, draw_line, draw_page, find_fonts

LINE_HEIGHT_PX = 48
SQUEEZE = 0.85  # `squeeze` of models/ppocr-v4.toml
READER_LONG_SIDE_PX = 1280  # `long_side_px` of agent.reader.ReaderSettings

OWN_EVERY = 4
"""Where there are pictures of the user's own, one input in so many is one of them."""

FIRST_EVALUATION = 1_000_000_000
"""Evaluation pages have indices from here on, beyond all that are trained on."""

WINDOWS_PER_PAGE = 4
TURNED_SHARE = 0.1
"""Of the detector's inputs, that lie on a side or upside down: the reader looks at pages as they come."""

_TEXT_PX = (14.0, 44.0)
"""Usual height of the lines in a detector input; single ones are between 12 and 64."""

_LIMITS = Budget(limit_mb=1024, processes=1, decode_bytes=512 * MB, frame_bytes=12 * MB, spare_bytes=512 * MB)
"""For the user's pictures: decoded in at most 512 MB, and kept at no more than 4 Mpx in colour."""

MOST_OWN = 200
"""Pictures of the user's own that are looked at; of more, so many are chosen by lot."""


class OwnPicture(msgspec.Struct, frozen=True):
    """A picture of the user's own, and the lines on it: quads in reading direction, in pixels of `load_pixels`."""

    path: Path
    quads: tuple[Quad, ...] = ()


class Dataset:
    """Inputs of the detector and the recogniser by index; the same index always gives the same input.

    Args:
        seed: of what is drawn.
        fonts: to draw with.
        images: the user's own pictures; lines come from those on which there are some.
        cache: a directory to keep inputs in, or None.
    """

    def __init__(
        self,
        seed: int,
        fonts: tuple[Font, ...],
        images: tuple[OwnPicture, ...] = (),
        cache: Path | None = None,
    ) -> None:
        self._seed, self._fonts, self._images = seed, fonts, images
        self._cache = None if cache is None else cache / _digest_of(seed, fonts, images)
        self._page = functools.lru_cache(maxsize=2)(functools.partial(draw_page, seed, fonts=fonts))
        self._load = functools.lru_cache(maxsize=2)(load_pixels)

    def det_input(self, index: int, size: int) -> Pixels:
        """Return a window of a page at a scale at which lines are 12 to 64 pixels high, uint8 (size, size, 3) BGR.

        Neighbouring indices look at the same page: asking for them in turn draws each page once.
        """
        return self._kept(f"det-{size}-{index}.png", functools.partial(self._det_input, index, size))

    def rec_input(self, index: int, width: int) -> Pixels:
        """Return one line, uint8 (48, width, 3) BGR; beyond its end its last column is repeated, as the reader does."""
        # A line is drawn about as fast as it is read from a file.
        own = self._own_line(index, width) if self._is_own(index) else None
        if own is not None:
            return own
        strip = draw_line(self._seed, index, self._fonts, height=LINE_HEIGHT_PX, squeeze=SQUEEZE, max_width=width)
        return image.pad(strip.pixels, width)

    def _is_own(self, index: int) -> bool:
        return bool(self._images) and index % OWN_EVERY == OWN_EVERY - 1

    def _own(self, index: int) -> OwnPicture:
        return self._images[index // OWN_EVERY % len(self._images)]

    def _det_input(self, index: int, size: int) -> Pixels:
        rng = np.random.default_rng((self._seed, index, size))
        if self._is_own(index):
            own = self._own(index)
            window = _window(self._load(own.path), own.quads, size, rng)
        else:
            page = self._page(index // WINDOWS_PER_PAGE)
            window = _window(page.pixels, [line.box for line in page.lines], size, rng)
        quarters = int(rng.integers(1, 4)) if rng.random() < TURNED_SHARE else 0
        return np.ascontiguousarray(np.rot90(window, quarters))

    def _own_line(self, index: int, width: int) -> Pixels | None:
        """Return a line of a picture of the user's, or None where none is found on it."""
        own = self._own(index)
        if not own.quads:
            return None
        rng = np.random.default_rng((self._seed, index, width))
        quad = _part(own.quads[int(rng.integers(len(own.quads)))], width / SQUEEZE / LINE_HEIGHT_PX, rng)
        across, down = image.side_lengths(quad)
        natural = min(width, max(1, math.ceil(SQUEEZE * LINE_HEIGHT_PX * across / max(down, 1e-6))))
        return image.pad(image.crop(self._load(own.path), quad, LINE_HEIGHT_PX, natural), width)

    def _kept(self, name: str, make: Callable[[], Pixels]) -> Pixels:
        """Return an input from the cache, or make it and keep it there."""
        if self._cache is None:
            return make()
        file = self._cache / name
        known = cv2.imread(str(file), cv2.IMREAD_COLOR) if file.is_file() else None
        if known is not None:
            return known
        pixels = make()
        write_picture(file, pixels)
        return pixels


def _digest_of(seed: int, fonts: Sequence[Font], images: Sequence[OwnPicture]) -> str:
    """Return a name for what inputs depend on."""
    own = [(str(own.path), own.path.stat().st_size, own.path.stat().st_mtime_ns, own.quads) for own in images]
    told = repr((DRAWING_VERSION, seed, [font.name for font in fonts], own))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _window(pixels: Pixels, quads: Sequence[Quad], size: int, rng: np.random.Generator) -> Pixels:
    """Return a square of a page around one of its lines, scaled so that the lines get a usual height."""
    rows, columns = pixels.shape[:2]
    if quads:
        scale = usual_scale(quads, rng)
        x, y = np.mean(quads[int(rng.integers(len(quads)))], axis=0)
    else:
        scale = min(1.0, READER_LONG_SIDE_PX / max(rows, columns)) * rng.uniform(0.7, 1.3)
        x, y = rng.uniform(0, columns), rng.uniform(0, rows)
    side = max(1, round(size / scale))
    left = _start(x + rng.uniform(-0.4, 0.4) * side, side, columns)
    top = _start(y + rng.uniform(-0.4, 0.4) * side, side, rows)
    part = pixels[top : top + side, left : left + side]
    height, width = (min(size, max(1, round(length * size / side))) for length in part.shape[:2])
    small = image.scaled(part, width, height)
    return cv2.copyMakeBorder(small, 0, size - height, 0, size - width, cv2.BORDER_REPLICATE)


def usual_scale(quads: Sequence[Quad], rng: np.random.Generator) -> float:
    """Return the scale that gives the usual line one of the usual heights, and eight in ten lines 12 to 64 pixels."""
    heights = sorted(min(image.side_lengths(quad)) for quad in quads)
    wanted = math.exp(rng.uniform(math.log(_TEXT_PX[0]), math.log(_TEXT_PX[1])))
    low, high = heights[len(heights) // 10], heights[-1 - len(heights) // 10]
    scale = wanted / max(1.0, statistics.median(heights))
    return min(max(scale, 12 / max(1.0, low)), 64 / max(1.0, high))


def _start(middle: float, side: int, length: int) -> int:
    """Return where a window begins that lies inside, where it is not larger than the whole."""
    return round(min(max(0.0, middle - side / 2), max(0.0, length - side)))


def _part(quad: Quad, most: float, rng: np.random.Generator) -> Quad:
    """Return a part of a quad, no longer than `most` times its height."""
    across, down = image.side_lengths(quad)
    share = min(1.0, most * down / max(across, 1e-6))
    begin = rng.uniform(0, 1 - share)
    a, b, c, d = (np.array(corner) for corner in quad)
    ends = (a + (b - a) * begin, a + (b - a) * (begin + share), d + (c - d) * (begin + share), d + (c - d) * begin)
    first, second, third, fourth = ((float(x), float(y)) for x, y in ends)
    return first, second, third, fourth


# ------------------------------------------------------------------------------------------ the user's own pictures


def load_pixels(path: Path) -> Pixels:
    """Return a picture of the user's, upright, uint8 (H, W, 3) BGR, at most 4 Mpx.

    Raises:
        InputError: the file cannot be read.
        FrameError: not a picture that can be decoded.
    """
    pixels = image.load_frame(path, str(path), _LIMITS).pixels
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels


def find_user_images(folder: Path) -> tuple[Path, ...]:
    """Return the picture files in a folder and those below it, at most `MOST_OWN`; none is opened.

    Raises:
        InputError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"--images {folder}: not a directory")
    found = find_pictures([folder])
    if not found:
        raise InputError(f"--images {folder}: holds no picture that can be read")
    chosen = np.random.default_rng(0).permutation(len(found))[:MOST_OWN]
    return tuple(found[index] for index in sorted(chosen))


def problem_of(path: Path) -> str | None:
    """Return why a picture of the user's cannot be read, or None; it is decoded, so that training meets no bad one."""
    try:
        load_pixels(path)
    except (FrameError, InputError) as error:
        return str(error)
    return None


# ------------------------------------------------------------------------------------------ evaluation


def write_evaluation(directory: Path, seed: int, pages: int, fonts: tuple[Font, ...] | None = None) -> Path:
    """Write drawn pages, half of them PNG and half JPEG, and their labels; return the path of the labels.

    The same seed, fonts and version give the same files; no page is one that is trained on.

    Args:
        directory: made when it is missing.
        seed: of the set.
        pages: how many.
        fonts: to draw with; by default those of the system.

    Raises:
        EngineError: a script has no font.
        ConfigError: the directory cannot be written.
    """
    rows, fonts = [], fonts or find_fonts()
    for number in child.counted(range(pages)):
        page = draw_page(seed, FIRST_EVALUATION + number, fonts)
        name = f"{number:04d}-{page.kind}.{'jpg' if number % 2 else 'png'}"
        write_picture(directory / name, page.pixels)
        rows.append(msgspec.json.encode({"image": name, "lines": page.lines}))
    labels = directory / "labels.jsonl"
    _write(labels, b"\n".join(rows) + b"\n")
    return labels


def write_picture(file: Path, pixels: Pixels) -> None:
    """Write a picture whole or not at all, as JPEG or PNG by its name.

    Raises:
        ConfigError: it cannot be written.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if file.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 2]
    _write(file, cv2.imencode(file.suffix, pixels, options)[1].tobytes())


def _write(file: Path, data: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")  # two trainings may share a cache
        partial.write_bytes(data)
        os.replace(partial, file)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
