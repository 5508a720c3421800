"""What a reader makes of whole pages: direction, small print, blank and tiny pictures, limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from agent import memory
from agent.bundle import ModelBundle
from agent.errors import BudgetError
from agent.page import Frame, PageResult, Pixels
from agent.reader import Reader, ReaderSettings
from tests.command import run_python

pytestmark = pytest.mark.models
SAMPLE = Path(__file__).parent.parent / "samples" / "receipt.png"
TURNS = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}


@pytest.fixture(scope="module")
def reader(bundle_path: Path) -> Iterator[Reader]:
    # The process of the tests has much besides; the limit itself is tested on processes of its own.
    limit = memory.resident_bytes() // memory.MB + 170
    opened = Reader(ModelBundle.load(bundle_path), ReaderSettings(memory_mb=limit))
    yield opened
    opened.close()


@dataclasses.dataclass
class Print:
    """A page of Latin text drawn line by line with Pillow's own font, which every machine has."""

    pixels: Pixels
    texts: list[str]


def printed(width: int, height: int, sizes: list[int]) -> Print:
    picture = Image.new("L", (width, height), 255)
    draw, top, texts = ImageDraw.Draw(picture), 60, []
    for number, size in enumerate(sizes):
        text = f"Line {number:02d} pays {number * 37 % 90 + 10}.50 within thirty days"
        draw.text((80, top), text, fill=10, font=ImageFont.load_default(size))
        texts.append(text)
        top += round(size * 1.8)
    return Print(np.asarray(picture), texts)


def read(reader: Reader, pixels: Pixels) -> PageResult:
    return reader.read(Frame("key", "page", pixels, pixels.shape[1], pixels.shape[0]))


def folded(page: PageResult) -> list[str]:
    return ["".join(line.text.split()) for line in page.lines]


def test_a_turned_page_is_read_in_the_same_order_and_says_its_direction(reader: Reader) -> None:
    upright = cv2.imread(str(SAMPLE))
    expected = folded(read(reader, upright))
    assert expected[0] == "青石巷杂货店"
    for degrees, turn in TURNS.items():
        page = read(reader, cv2.rotate(upright, turn))
        assert page.direction == degrees
        assert folded(page)[0] == expected[0]
        assert len(set(folded(page)) & set(expected)) >= 0.85 * len(set(expected))


def test_the_quad_of_a_turned_line_begins_where_its_text_begins(reader: Reader) -> None:
    upright = cv2.imread(str(SAMPLE))
    line = read(reader, cv2.rotate(upright, cv2.ROTATE_180)).lines[0]
    (x0, y0), (x1, _), (_, y2), _ = line.quad
    assert x0 > x1  # the text runs to the left
    assert y0 > y2  # and its next line lies above


def test_one_line_upside_down_on_an_upright_page_is_read_too(reader: Reader) -> None:
    page = printed(1000, 700, [40] * 6)
    flipped = page.pixels.copy()
    flipped[340:420] = page.pixels[340:420][::-1, ::-1]  # the fifth line's strip
    assert page.texts[4].replace(" ", "") in folded(read(reader, flipped))


def test_a_blank_page_has_no_lines(reader: Reader) -> None:
    for pixels in (np.full((800, 600, 3), 255, np.uint8), np.zeros((30, 40), np.uint8)):
        page = read(reader, pixels)
        assert page.lines == ()
        assert page.error is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (20000, 1), (7, 5000, 3), (33, 33, 3)])
def test_odd_shapes_are_read_without_a_line(reader: Reader, shape: tuple[int, ...]) -> None:
    assert read(reader, np.full(shape, 128, np.uint8)).lines == ()


def test_print_too_small_for_the_first_look_is_read_at_the_second(reader: Reader) -> None:
    page = printed(3000, 4000, [60, 60, 60] + [26] * 12)
    found = folded(read(reader, page.pixels))
    missed = [text for text in page.texts if text.replace(" ", "") not in found]
    assert len(missed) <= 1, missed


def test_results_do_not_depend_on_the_pages_before(reader: Reader) -> None:
    receipt = cv2.imread(str(SAMPLE))
    before = read(reader, receipt).lines
    read(reader, printed(1700, 900, [30] * 8).pixels)
    assert read(reader, receipt).lines == before


def test_a_limit_below_any_page_is_refused_with_what_is_needed(bundle_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"give \d+ MB"):
        Reader(ModelBundle.load(bundle_path), ReaderSettings(memory_mb=memory.resident_bytes() // memory.MB))


def test_models_that_were_given_back_read_as_before(reader):
    page = printed(600, 200, [24, 24])
    before = read(reader, page.pixels)
    reader.rest()
    after = read(reader, page.pixels)
    reader.rebuild()
    again = read(reader, page.pixels)
    assert before.lines == after.lines == again.lines != ()


def test_models_that_are_given_back_take_no_memory(portable_path):
    # ONNX Runtime's: Paddle Lite's have nothing after any page.
    ran = run_python(
        "import sys, pathlib, numpy as np\n"
        "from agent import memory\n"
        "from agent.bundle import ModelBundle\n"
        "from agent.page import Frame\n"
        "from agent.reader import Reader, ReaderSettings\n"
        f"bundle = ModelBundle.load(pathlib.Path({str(portable_path)!r}))\n"
        "reader = Reader(bundle, ReaderSettings(memory_mb=600))\n"
        "reader.read(Frame('a', 'a', np.full((200, 200, 3), 255, np.uint8), 200, 200))\n"
        "before = memory.resident_bytes()\n"
        "reader.rest()\n"
        "print(before - memory.resident_bytes())\n"
    )
    assert int(ran.out) > 8 << 20, ran.err


@pytest.mark.parametrize(("size", "tiles"), [((1200, 550), 1), ((1280, 640), 2)])
def test_picture_a_little_larger_than_a_tile_is_looked_at_as_one(bundle_path, monkeypatch, size, tiles):
    limit = memory.resident_bytes() // memory.MB + 250
    reader = Reader(ModelBundle.load(bundle_path), ReaderSettings(memory_mb=limit))
    seen: list[int] = []
    crew_run = reader._crew.run

    def run(model, pictures, costs):
        seen.append(len(pictures) if model == "det" else 0)
        return crew_run(model, pictures, costs)

    monkeypatch.setattr(reader._crew, "run", run)
    page = read(reader, printed(*size, [30] * 6).pixels)
    assert seen[0] == tiles
    assert len(page.lines) == 6
    reader.close()
