"""What branch offices put into a folder, shuffled: pages of all sizes, photos, documents, blanks, broken files."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from converters.drawing import draw_page, find_fonts
from converters.scores import Line, Page, load_labels
from tests import bad_inputs

Pixels = npt.NDArray[np.uint8]

DRAWN = 60  # pages that are drawn where no labelled sets are given; they come again and again
LONG_SIDES = ((220, 500), (500, 1000), (900, 1600), (1500, 2600))


class Item(msgspec.Struct, frozen=True):
    """One file for the folder.

    Attributes:
        name: of the file; no other has it.
        content: of the file.
        pages: rows that it must become, 0 when it must be refused.
        label: the labelled page it is, "SET/IMAGE", or "".
    """

    name: str
    content: bytes
    pages: int = 1
    label: str = ""


class Labelled(msgspec.Struct, frozen=True):
    """A picture with its text, and the set it belongs to."""

    group: str
    page: Page
    content: bytes
    suffix: str


def sets_of(folder: Path) -> list[Labelled]:
    """Return the pictures of all labelled sets below a folder."""
    found = []
    for labels in sorted(folder.glob("*/labels.jsonl")):
        for page in load_labels(labels):
            path = labels.parent / page.image
            found.append(Labelled(labels.parent.name, page, path.read_bytes(), path.suffix))
    return found


def drawn(seed: int, count: int = DRAWN) -> list[Labelled]:
    """Return documents that the converter draws, from the size of a label to 300 dpi."""
    fonts, found = find_fonts(), []
    for index in range(count):
        page = draw_page(seed, index, fonts, long_side=LONG_SIDES[index % len(LONG_SIDES)])
        lines = tuple(Line(line.text, box=line.box) for line in page.lines)
        suffix, options = ((".png", []), (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 85]))[index % 2]
        content = _encoded(page.pixels, suffix, options)
        found.append(Labelled("drawn", Page(f"{index}{suffix}", lines), content, suffix))
    return found


class Mix:
    """Gives files in a row that depends on the seed alone."""

    def __init__(self, labelled: list[Labelled], seed: int, kinds: tuple[str, ...] = ()) -> None:
        """Make a mix of these pictures, each given about as often as any other; of all kinds of files, or of some."""
        self.labels = {f"{one.group}/{one.page.image}": one.page for one in labelled}
        self._labelled = labelled
        self._dice = random.Random(seed)
        self._deck: list[Labelled] = []
        self._kinds: dict[str, tuple[int, Callable[[str], Item]]] = {
            "page": (60, self._page),
            "pdf": (5, self._pdf),
            "tiff": (3, self._tiff),
            "photo": (4, self._photo),
            "crop": (10, self._crop),
            "blank": (8, self._blank),
            "broken": (10, self._broken),
        }
        if kinds:
            self._kinds = {kind: self._kinds[kind] for kind in kinds}

    def items(self, pages: int) -> Iterator[Item]:
        """Yield files that make so many pages together; a file to be refused counts as one."""
        number = given = 0
        weights = [weight for weight, _ in self._kinds.values()]
        while given < pages:
            (kind,) = self._dice.choices(tuple(self._kinds), weights)
            number += 1
            item = self._kinds[kind][1](f"{number:06d}-{kind}")
            given += max(1, item.pages)
            yield item

    def _next(self) -> Labelled:
        if not self._deck:
            self._deck = self._dice.sample(self._labelled, len(self._labelled))
        return self._deck.pop()

    def _page(self, name: str) -> Item:
        one = self._next()
        return Item(name + one.suffix, one.content, label=f"{one.group}/{one.page.image}")

    def _pdf(self, name: str) -> Item:
        pictures = self._some()
        return Item(f"{name}.pdf", _saved(pictures, "PDF", resolution=200.0), len(pictures))

    def _tiff(self, name: str) -> Item:
        pictures = self._some()
        return Item(f"{name}.tif", _saved(pictures, "TIFF", compression="tiff_lzw"), len(pictures))

    def _some(self) -> list[Image.Image]:
        """Return pictures for a document, none larger than an office scanner's."""
        pictures = [_opened(self._next().content) for _ in range(self._dice.randint(2, 4))]
        for picture in pictures:
            picture.thumbnail((1700, 2400))
        return pictures

    def _photo(self, name: str) -> Item:
        pixels = _pixels(self._next().content)
        factor = (12e6 / (pixels.shape[0] * pixels.shape[1])) ** 0.5
        large = cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        return Item(f"{name}.jpg", _encoded(large, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, 80]))

    def _crop(self, name: str) -> Item:
        pixels = _pixels(self._next().content)
        tall, wide = (min(side, self._dice.randint(16, 700)) for side in pixels.shape[:2])
        top, left = self._dice.randint(0, pixels.shape[0] - tall), self._dice.randint(0, pixels.shape[1] - wide)
        return Item(f"{name}.bmp", _encoded(pixels[top : top + tall, left : left + wide], ".bmp", []))

    def _blank(self, name: str) -> Item:
        size = self._dice.randint(1, 3000), self._dice.randint(1, 3000)
        return Item(f"{name}.png", _encoded(np.full(size, self._dice.choice((0, 128, 255)), np.uint8), ".png", []))

    def _broken(self, name: str) -> Item:
        whole = self._next().content
        content, suffix = self._dice.choice(
            (
                (whole[: len(whole) // self._dice.randint(2, 9)], ".jpg"),
                (self._dice.randbytes(self._dice.randint(1, 5000)), ".png"),
                (bad_inputs.png_header(50_000, 50_000), ".png"),
                (b"", ".jpg"),
                (b"%PDF-1.7\n" + self._dice.randbytes(500), ".pdf"),
                (b"<html></html>", ".tif"),
            )
        )
        return Item(name + suffix, content, 0)


def put(folder: Path, item: Item) -> None:
    """Put a file into a folder as careful programs do: whole, under a name that is not taken before."""
    hidden = folder / f".{item.name}"
    hidden.write_bytes(item.content)
    os.rename(hidden, folder / item.name)


def _encoded(pixels: Pixels, suffix: str, options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, pixels, options)
    assert done
    return data.tobytes()


def _pixels(content: bytes) -> Pixels:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def _opened(content: bytes) -> Image.Image:
    return Image.fromarray(_pixels(content)[:, :, ::-1])


def _saved(pictures: list[Image.Image], form: str, **options: object) -> bytes:
    out = io.BytesIO()
    pictures[0].save(out, form, save_all=True, append_images=pictures[1:], **options)
    return out.getvalue()
