"""The hostile inputs are what they claim to be, by Pillow's reading or byte by byte."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

import tests.bad_inputs as bad


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bad.BadInput]]:
    directory = tmp_path_factory.mktemp("bad") / "inputs"
    started = time.monotonic()
    table = bad.write_all(directory)
    assert time.monotonic() - started < 10
    yield {one.name: one for one in table}
    bad.remove(directory)


def opened(one: bad.BadInput) -> Image.Image:
    with Image.open(one.path) as image:
        image.load()
        return image


def test_every_input_has_its_own_name_and_file_and_can_be_made(inputs):
    assert len(inputs) == len({one.path for one in inputs.values()}) == len(bad.CASES)
    assert {one.name for one in inputs.values() if one.skip} <= {"unreadable"}


def test_all_inputs_together_are_small(inputs):
    files = [one.path for one in inputs.values() if one.path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000


def test_bomb_is_small_and_its_header_and_data_are_valid(inputs):
    data = inputs["bomb"].path.read_bytes()
    assert len(data) < 5_000_000
    assert struct.unpack_from(">II", data, 16) == (50_000, 50_000)
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    body = data[start + 4 : start + 4 + length]
    assert zlib.crc32(b"IDAT" + body) == struct.unpack_from(">I", data, start + 4 + length)[0]
    assert zlib.decompressobj().decompress(body, 200_000) == bytes(200_000)


def test_giant_jpeg_claims_65500_pixels_a_side(inputs, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with Image.open(inputs["giant-jpeg"].path) as image:
        assert image.size == (65_500, 65_500)


def test_no_pixels_header_has_width_zero(inputs):
    assert struct.unpack_from(">II", inputs["no-pixels"].path.read_bytes(), 16) == (0, 100)


@pytest.mark.parametrize("name", ["truncated-jpeg", "truncated-png"])
def test_truncated_files_have_a_header_and_no_end(inputs, name):
    with Image.open(inputs[name].path) as image:
        assert image.size == bad.page().size
        with pytest.raises(OSError, match="truncated"):
            image.load()


def test_damaged_crc_is_the_only_damage(inputs):
    data = inputs["damaged-crc"].path.read_bytes()
    start = data.index(b"IDAT")
    (length,) = struct.unpack_from(">I", data, start - 4)
    assert (
        zlib.crc32(data[start : start + 4 + length]) ^ struct.unpack_from(">I", data, start + 4 + length)[0] == 1 << 24
    )


@pytest.mark.parametrize("name", ["empty", "text", "pdf", "heic", "header-only"])
def test_files_that_are_no_pictures_are_not_recognised(inputs, name):
    with pytest.raises(UnidentifiedImageError):
        Image.open(inputs[name].path)


def pictures() -> list[str]:
    return [name for name, _, _, expect, _ in bad.CASES if expect == "lines" and name != "loop"]


@pytest.mark.parametrize("name", pictures())
def test_inputs_with_lines_show_the_page_upright_on_white(inputs, name):
    image = ImageOps.exif_transpose(opened(inputs[name]))
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level / 257)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    shown, meant = (np.asarray(one, dtype=float).ravel() for one in (image.convert("RGB").convert("L"), bad.page()))
    assert np.corrcoef(shown, meant)[0, 1] > 0.9  # a mirrored or turned page stays below 0.6


@pytest.mark.parametrize("name", ["gif", "webp", "apng"])
def test_animations_and_page_stacks_have_three_frames(inputs, name):
    with Image.open(inputs[name].path) as image:
        assert image.n_frames == 3


@pytest.mark.parametrize(("name", "mode"), [("cmyk", "CMYK"), ("palette", "P"), ("alpha", "RGBA"), ("bilevel", "1")])
def test_colour_modes_are_the_claimed_ones(inputs, name, mode):
    assert opened(inputs[name]).mode == mode


@pytest.mark.parametrize("name", ["grey-16", "rgb-16"])
def test_deep_pictures_have_16_bits_a_sample(inputs, name):
    assert inputs[name].path.read_bytes()[24] == 16


@pytest.mark.parametrize(("name", "size"), [("one-pixel", (1, 1)), ("tall", (1, 20_000)), ("wide", (20_000, 1))])
def test_blank_pictures_have_the_claimed_size(inputs, name, size):
    assert opened(inputs[name]).size == size


def test_special_files_are_special(inputs):
    assert inputs["fifo"].path.is_fifo()
    assert inputs["broken-link"].path.is_symlink() and not inputs["broken-link"].path.exists()
    loop = inputs["loop"].path
    assert (loop / "again").resolve() == loop.resolve()
    assert inputs["unreadable"].path.stat().st_mode & 0o777 == 0


def test_names_hold_a_newline_and_bytes_that_are_not_utf_8(inputs):
    assert "\n" in inputs["newline-name"].path.name
    with pytest.raises(UnicodeEncodeError):
        str(Path(inputs["bytes-name"].path.name)).encode()
