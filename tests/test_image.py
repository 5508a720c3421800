"""Pictures are decoded upright and within the budget; tiles cover them; crops map back."""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import threading
from itertools import pairwise
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from agent import image
from agent.errors import FrameError, InputError
from agent.image import crop, load_frame, pad, scaled, side_lengths, tile, window
from agent.memory import MB, Budget
from agent.page import Frame
from tests import bad_inputs as bad
from tests.command import run_python


def budget(decode_bytes: int, frame_bytes: int = 200 * MB) -> Budget:
    return msgspec.structs.replace(Budget.plan(1000, 0), decode_bytes=decode_bytes, frame_bytes=frame_bytes)


AMPLE = budget(800 * MB)


def load(path: Path, within: Budget = AMPLE) -> Frame:
    return load_frame(path, "as given", within)


def picture(width: int = 97, height: int = 61) -> np.ndarray:
    """Return smooth colours that no turn or mirror leaves as they are, uint8 RGB (height, width, 3)."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (np.dstack([x * 200, y * 220, (x * (1 - y)) * 250]) + 5).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def close(a: np.ndarray, b: np.ndarray, within: float = 6) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(float) - b.astype(float)).max()) <= within


# ------------------------------------------------------------------------------------------------- decoding


def test_frame_tells_what_it_is(tmp_path):
    path = save(tmp_path / "page.png", picture())
    os.utime(path, (1_700_000_000, 1_700_000_000))
    frame = load(path)
    assert frame.key == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (frame.source, frame.width, frame.height, frame.taken_at) == ("as given", 97, 61, 1_700_000_000)
    assert np.array_equal(frame.pixels, picture()[:, :, ::-1])  # OpenCV's order is blue, green, red
    with pytest.raises(ValueError, match="read-only"):
        frame.pixels[0, 0] = 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_orientation_comes_out_upright(tmp_path, orientation, suffix):
    path, how = tmp_path / f"page.{suffix}", bad.STORED_AS[orientation]
    stored = Image.fromarray(picture())
    stored = stored if how is None else stored.transpose(how)
    tag = Image.Exif()
    tag[bad.EXIF_ORIENTATION] = orientation
    extra = {"tiffinfo": {bad.EXIF_ORIENTATION: orientation}} if suffix == "tif" else {"exif": tag}
    lossless = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    stored.save(path, **extra, **lossless)
    frame = load(path)
    assert (frame.width, frame.height) == (97, 61)
    assert close(frame.pixels, picture()[:, :, ::-1])


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_reduced_pictures_are_upright_too_and_keep_their_full_size(tmp_path, orientation):
    whole = picture(801, 800)  # a square at half scale: its sides do not tell whether it was turned
    how = bad.STORED_AS[orientation]
    stored = Image.fromarray(whole)
    tag = Image.Exif()
    tag[bad.EXIF_ORIENTATION] = orientation
    path = tmp_path / "page.jpg"
    (stored if how is None else stored.transpose(how)).save(path, exif=tag, quality=95)
    frame = load(path, budget(400 * 401 * 3 * 2))
    assert (frame.width, frame.height) == (801, 800)
    assert frame.pixels.shape == (400, 401, 3)
    assert close(frame.pixels, cv2.resize(whole, (401, 400), interpolation=cv2.INTER_AREA)[:, :, ::-1], 12)


def test_transparent_parts_are_white(tmp_path):
    pixels = np.dstack(
        [np.full((40, 50, 3), 100, np.uint8), np.tile(np.linspace(0, 255, 50).astype(np.uint8), (40, 1))]
    )
    for name in ("a.png", "a.webp"):
        Image.fromarray(pixels).save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
        opaque = pixels[:, :, 3:].astype(float) / 255
        assert close(load(tmp_path / name).pixels, np.repeat(100 * opaque + 255 * (1 - opaque), 3, axis=2), 1), name


def test_transparent_part_of_a_tiff_is_white(tmp_path):
    pixels = np.full((30, 40, 4), 100, np.uint8)
    pixels[:, 20:, 3] = 0
    pixels[:, :20, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    assert load(tmp_path / "a.tif").pixels[0, [0, 39]].tolist() == [[100] * 3, [255] * 3]


def test_transparent_colour_and_palette_entry_are_white(tmp_path):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, 20:] = (0, 250, 0)
    save(tmp_path / "key.png", pixels, transparency=(0, 250, 0))
    palette = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((30, 0)))
    for name in ("key.png", "palette.png"):
        assert load(tmp_path / name).pixels[0, [0, 39]].tolist() == [[0, 0, 0], [255, 255, 255]]


def test_alpha_of_16_bits_is_blended(tmp_path):
    pixels = np.zeros((30, 40, 4), np.uint16)
    pixels[:, 20:, 3] = 65_535
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    assert load(tmp_path / "a.png").pixels[0, [0, 39]].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_opaque_alpha_changes_nothing(tmp_path):
    assert np.array_equal(load(save(tmp_path / "a.png", picture(), "RGBA")).pixels, picture()[:, :, ::-1])


def test_pictures_of_16_bits_keep_their_high_byte(tmp_path):
    grey = picture()[:, :, 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "colour.png"), picture().astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "colour.tif"), picture().astype(np.uint16) * 257)
    assert close(load(tmp_path / "grey.png").pixels, grey, 1)
    assert close(load(tmp_path / "colour.png").pixels, picture(), 1)
    assert close(load(tmp_path / "colour.tif").pixels, picture(), 1)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
def test_grey_pictures_stay_grey(tmp_path, suffix):
    grey = picture()[:, :, 0]
    pixels = load(save(tmp_path / f"a.{suffix}", grey, "L")).pixels
    pixels = pixels if pixels.ndim == 2 else pixels[:, :, 0]  # a bitmap has a palette and does not tell
    assert close(pixels, grey)


def test_cmyk_looks_as_it_prints(tmp_path):
    for name in ("a.jpg", "a.tif"):
        pixels = load(save(tmp_path / name, np.full((40, 50, 3), (200, 40, 90), np.uint8), "CMYK")).pixels
        assert close(pixels, np.full((40, 50, 3), (90, 40, 200)), 12), name


def test_bilevel_pictures_are_black_and_white(tmp_path):
    for name, options in (("a.png", {}), ("a.tif", {"compression": "group4"})):
        dots = (picture()[:, :, 0] > 100).astype(np.uint8) * 255
        assert np.array_equal(load(save(tmp_path / name, dots, "1", **options)).pixels, dots), name


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, 500), (500, 1), (7, 9)])
def test_small_pictures_are_read(tmp_path, suffix, size):
    frame = load(save(tmp_path / f"a.{suffix}", np.full((size[1], size[0], 3), 200, np.uint8)))
    assert (frame.width, frame.height) == size
    assert close(frame.pixels, np.full(frame.pixels.shape, 200), 3)


def test_first_frame_of_an_animation_is_read(tmp_path):
    for name in ("a.png", "a.webp", "a.tif"):
        bad.animated(tmp_path / name)
        frame = load(tmp_path / name)
        grey = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2GRAY)
        assert close(grey, np.asarray(bad.page()), 3), name


# --------------------------------------------------------------------------------------------------- memory


def test_jpeg_that_does_not_fit_is_decoded_at_a_fraction_of_its_scale(tmp_path):
    path = save(tmp_path / "a.jpg", picture(800, 600))
    shapes = [load(path, budget(given)).pixels.shape for given in (1_440_000, 1_439_999, 359_999, 22_500)]
    assert shapes == [(600, 800, 3), (300, 400, 3), (150, 200, 3), (75, 100, 3)]
    with pytest.raises(
        FrameError, match=r"JPEG needs 1 MB .*, 0 MB are free .*: raise --memory-mb or memory\.limit_mb by 1"
    ):
        load(path, budget(22_499))


def test_jpeg_that_would_be_averaged_away_is_decoded_at_a_fraction_of_its_scale(tmp_path):
    path = save(tmp_path / "a.jpg", picture(800, 600))
    assert load(path, budget(10 * MB, frame_bytes=720_000)).pixels.nbytes <= 720_000
    assert load(path, budget(10 * MB, frame_bytes=719_999)).pixels.shape == (300, 400, 3)
    assert load(path, budget(10 * MB, frame_bytes=1000)).pixels.nbytes <= 1000  # beyond the smallest fraction


def test_other_kinds_are_read_in_grey_where_colour_does_not_fit(tmp_path):
    path = save(tmp_path / "a.png", picture(800, 600))
    assert load(path, budget(1_440_000)).pixels.shape == (600, 800, 3)
    assert load(path, budget(1_439_999)).pixels.shape == (600, 800)


def test_picture_is_averaged_down_to_what_a_frame_may_keep(tmp_path):
    frame = load(save(tmp_path / "a.png", picture(800, 600)), budget(10 * MB, frame_bytes=360_000))
    assert frame.pixels.nbytes <= 360_000
    assert frame.pixels.shape == (300, 400, 3)
    assert (frame.width, frame.height) == (800, 600)


def test_picture_that_cannot_fit_is_refused_with_what_it_needs(tmp_path):
    path = save(tmp_path / "a.png", picture(2000, 1500), compress_level=1)
    with pytest.raises(FrameError, match=r"a\.png: a 2000x1500 PNG needs 3 MB to decode, 2 MB are free") as caught:
        load(path, budget(2 * MB))
    assert caught.value.reason == "memory"


def test_what_the_refusal_asks_for_suffices(tmp_path):
    path = save(tmp_path / "a.png", picture(2000, 1500), compress_level=1)
    with pytest.raises(FrameError, match=r"raise --memory-mb or memory\.limit_mb by 1$"):
        load(path, budget(2 * MB))
    assert load(path, budget(3 * MB)).pixels.shape == (1500, 2000)


def test_negative_budget_refuses_and_does_not_crash(tmp_path):
    with pytest.raises(FrameError, match="0 MB are free"):
        load(save(tmp_path / "a.png", picture()), budget(-5 * MB))


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {}),
        ("a.jpg", "RGB", {"progressive": True, "subsampling": 0}),
        ("a.jpg", "CMYK", {"progressive": True}),
        ("a.png", "RGB", {"compress_level": 1}),
        ("a.png", "RGBA", {"compress_level": 1}),
        ("a.tif", "RGB", {}),
        ("a.tif", "L", {"compression": "tiff_lzw"}),
        ("a.webp", "RGB", {"method": 0}),
        ("a.webp", "RGB", {"lossless": True, "method": 0, "quality": 0}),
        ("a.bmp", "RGB", {}),
    ],
)
def test_decoding_holds_no_more_than_was_planned(tmp_path, name, mode, options):
    pixels = np.repeat(np.repeat(picture(250, 188), 11, axis=0), 11, axis=1)  # 6 Mpx
    if mode == "RGBA":
        pixels = np.dstack([pixels, pixels[:, :, :1]])
    path = save(tmp_path / name, pixels, mode, **options)
    ran = run_python(
        "import sys; from pathlib import Path; from agent import image; from agent.header import read_header\n"
        "import msgspec; from agent.memory import Budget\n"
        "def peak(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) << 10\n"
        "path, big = Path(sys.argv[1]), Budget.plan(1000, 0)\n"
        "big = msgspec.structs.replace(big, frame_bytes=1 << 30)\n"
        "header = read_header(path); way = image._choose(header, path, big)\n"
        "planned, before = header.beside_bytes + image._held_bytes(header, way, 1 << 30), peak()\n"
        "image.load_frame(path, 'x', big); print(peak() - before, planned)\n",
        path,
    )
    took, planned = map(int, ran.out.split())
    assert took <= planned + 5 * MB
    assert planned <= 2.2 * took  # nor is it far too careful


def test_tiff_bomb_of_one_giant_tile_is_refused_by_its_size(tmp_path):
    tags = [(256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (322, 1 << 16), (323, 1 << 16), (324, 8), (325, 100)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4))
    with pytest.raises(FrameError, match="to decode"):
        load(tmp_path / "a.tif")


# ---------------------------------------------------------------------------------------------- bad pictures


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
    ],
)
def test_truncated_pictures_are_refused_wherever_they_end(tmp_path, kind, options, capfd):
    file = io.BytesIO()
    bad.page().convert("RGB").save(file, kind, **options)
    data = file.getvalue()
    for share in (0.05, 0.3, 0.6, 0.9, 0.99):
        (tmp_path / "a").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(FrameError) as caught:
            load(tmp_path / "a")
        assert caught.value.reason in ("truncated", "damaged")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_damaged_pictures_are_read_or_refused_and_never_print(tmp_path, kind, capfd):
    file = io.BytesIO()
    bad.page().convert("RGB").save(file, kind)
    rng = np.random.default_rng(11)
    for _ in range(40):
        data = bytearray(file.getvalue())
        for at in rng.integers(0, min(len(data), 3000), 4):
            data[at] = rng.integers(256)
        (tmp_path / "a").write_bytes(data)
        try:
            frame = load(tmp_path / "a")
        except FrameError as error:
            assert "\n" not in str(error)
            continue
        assert frame.pixels.size and frame.width * frame.height > 0
    assert capfd.readouterr() == ("", "")


def test_damaged_checksum_is_refused_in_one_line_of_ours(tmp_path, capfd):
    bad.damaged_crc(tmp_path / "crc.png")
    with pytest.raises(FrameError, match=r"crc\.png: damaged"):
        load(tmp_path / "crc.png")
    assert capfd.readouterr() == ("", "")


def test_header_that_only_we_understand_gives_no_blank_page(tmp_path):
    # OpenCV leaves the array it was given untouched when it cannot make out the file, and raises nothing.
    data = bytearray(b"BM" + bytes(200))
    struct.pack_into("<IiiHH", data, 14, 77, 20, 20, 1, 24)
    (tmp_path / "a.bmp").write_bytes(data)
    with pytest.raises(FrameError, match="damaged, or a kind of BMP that cannot be decoded"):
        load(tmp_path / "a.bmp")


def refused(path: Path) -> None:
    with pytest.raises(FrameError):
        load(path)


def test_standard_error_works_again_after_decoding(tmp_path, capfd):
    bad.damaged_crc(tmp_path / "crc.png")
    threads = [threading.Thread(target=refused, args=(tmp_path / "crc.png",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_picture_is_read_where_standard_error_is_shut(tmp_path):
    path = save(tmp_path / "a.png", picture())
    code = (
        "import os, sys\n"
        "if len(sys.argv) == 2: os.close(2); os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], 'again'])\n"
        "from pathlib import Path; from agent.image import load_frame; from agent.memory import Budget\n"
        "assert sys.stderr is None\n"
        "print(load_frame(Path(sys.argv[1]), 'x', Budget.plan(1000, 0)).pixels.shape)"
    )
    assert run_python(code, path).out == "(61, 97, 3)\n"


def test_number_after_the_end_marker_is_no_matter(tmp_path):
    # A phone's "motion photo" carries a film behind the picture.
    path = save(tmp_path / "a.jpg", picture())
    path.write_bytes(path.read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(5000))
    assert load(path).pixels.shape == (61, 97, 3)


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "nothing.png")


def test_strange_names_are_no_matter(tmp_path):
    for name in ("two\nlines.png", os.fsdecode(b"caf\xe9-\xff.png"), "%d{}.png", "-rf.png", "名.png"):
        path = tmp_path / name
        path.write_bytes(save(tmp_path / "plain.png", picture()).read_bytes())
        assert load(path).pixels.shape == (61, 97, 3)


# ---------------------------------------------------------------------------------------------------- tiles

sides = st.integers(1, 5000)
multiples = st.sampled_from((1, 16, 32, 48, 64, 128))
areas = st.integers(160 * 320, 1000 * 1000)


@given(sides, sides, areas, multiples)
def test_kept_parts_cover_every_pixel_exactly_once(width, height, max_px, multiple):
    pieces = tile(width, height, max_px=max_px, multiple=multiple)
    xs = sorted({(p.keep_left, p.keep_right) for p in pieces})
    ys = sorted({(p.keep_top, p.keep_bottom) for p in pieces})
    for cuts, length in ((xs, width), (ys, height)):
        assert cuts[0][0] == 0 and cuts[-1][1] == length
        assert all(a[1] == b[0] for a, b in pairwise(cuts))
        assert all(start < end for start, end in cuts)
    kept = {(p.keep_left, p.keep_right, p.keep_top, p.keep_bottom) for p in pieces}
    assert len(pieces) == len(kept) == len(xs) * len(ys)


@given(sides, sides, areas, multiples)
def test_windows_are_of_one_size_multiples_and_bounded(width, height, max_px, multiple):
    pieces = tile(width, height, max_px=max_px, multiple=multiple)
    ((w, h),) = {(p.width, p.height) for p in pieces}
    assert w % multiple == h % multiple == 0
    assert w * h <= max(max_px, (2 * 64 + multiple) ** 2)


@given(sides, sides, areas, multiples)
def test_kept_parts_lie_in_their_windows_away_from_inner_seams(width, height, max_px, multiple):
    for p in tile(width, height, max_px=max_px, multiple=multiple):
        assert p.left >= 0 and p.top >= 0
        assert p.left <= p.keep_left < p.keep_right <= p.left + p.width
        assert p.top <= p.keep_top < p.keep_bottom <= p.top + p.height
        # Half the overlap of context, less rounding, wherever the page goes on.
        assert p.keep_left == 0 or p.keep_left - p.left >= 30
        assert p.keep_right == width or p.left + p.width - p.keep_right >= 30
        assert p.keep_top == 0 or p.keep_top - p.top >= 30
        assert p.keep_bottom == height or p.top + p.height - p.keep_bottom >= 30


def test_page_that_fits_is_one_window():
    (whole,) = tile(640, 480, max_px=640 * 640, multiple=32)
    assert (whole.width, whole.height, whole.keep_right, whole.keep_bottom) == (640, 480, 640, 480)


def test_windows_span_the_width_where_they_can():
    pieces = tile(900, 2000, max_px=640 * 640, multiple=32)
    assert {(p.left, p.width) for p in pieces} == {(0, 928)}


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_windows_joined_by_their_kept_parts_are_the_page(width, height, grey):
    rng = np.random.default_rng(width * 1000 + height)
    page = rng.integers(0, 256, (height, width) if grey else (height, width, 3), np.uint8)
    joined = np.zeros_like(page)
    for p in tile(width, height, max_px=160 * 160, multiple=16):
        part = window(page, p)
        assert part.shape == (p.height, p.width, *page.shape[2:])
        rows, columns = slice(p.keep_top, p.keep_bottom), slice(p.keep_left, p.keep_right)
        joined[rows, columns] = part[
            p.keep_top - p.top : p.keep_bottom - p.top, p.keep_left - p.left : p.keep_right - p.left
        ]
    assert np.array_equal(joined, page)


def test_window_beyond_the_page_repeats_its_edge():
    page = np.arange(12, dtype=np.uint8).reshape(3, 4)
    part = window(page, image.Tile(0, 0, 6, 5, 0, 0, 4, 3))
    assert part[:, 4:].tolist() == [[3, 3], [7, 7], [11, 11], [11, 11], [11, 11]]


# -------------------------------------------------------------------------------------------- scale and crop


def test_scaling_to_the_same_size_copies_nothing():
    page = picture()
    assert scaled(page, 97, 61) is page


def test_scaling_down_averages_and_keeps_the_kind():
    stripes = np.tile(np.array([0, 255], np.uint8), (10, 20))
    assert set(scaled(stripes, 20, 5).ravel()) <= {127, 128}
    assert scaled(picture(), 200, 122).shape == (122, 200, 3)


def quad_at(cx: float, cy: float, width: float, height: float, degrees: float) -> tuple[tuple[float, float], ...]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    halves = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return tuple(
        (cx + sx * width / 2 * cos - sy * height / 2 * sin, cy + sx * width / 2 * sin + sy * height / 2 * cos)
        for sx, sy in halves
    )


@given(st.floats(-180, 180), st.floats(40, 90), st.floats(20, 39))
def test_side_lengths_are_those_of_the_rectangle_whatever_its_turn(degrees, width, height):
    assert side_lengths(quad_at(50, 50, width, height, degrees)) == pytest.approx((width, height))


@given(st.floats(-180, 180), st.floats(60, 200), st.floats(20, 60), st.booleans())
def test_crop_of_a_turned_quad_shows_what_is_there(degrees, width, height, grey):
    # The picture holds its own coordinates, so that a crop's pixels tell where they were taken.
    x, y = np.meshgrid(np.arange(400), np.arange(400))
    page = np.dstack([x * 0.6, y * 0.6, x * 0]).astype(np.uint8)
    page = page[:, :, 0] if grey else page
    quad = quad_at(200, 200, width, height, degrees)
    strip = crop(page, quad, 48, 2000)
    rows, columns = strip.shape[:2]
    assert rows == 48 and columns == pytest.approx(48 * width / height, abs=1.01)
    for u, v in ((0.1, 0.1), (0.9, 0.2), (0.5, 0.5), (0.2, 0.8), (0.85, 0.9)):
        (ax, ay), (bx, by), _, (dx, dy) = quad
        there = (ax + u * (bx - ax) + v * (dx - ax), ay + u * (by - ay) + v * (dy - ay))
        shown = strip[int(v * rows), int(u * columns)]
        assert abs(float(shown if grey else shown[0]) / 0.6 - there[0]) < 5
        assert grey or abs(float(shown[1]) / 0.6 - there[1]) < 5


def test_crop_longer_than_allowed_is_squeezed():
    assert crop(picture(800, 40), quad_at(400, 20, 780, 10, 0), 48, 320).shape == (48, 320, 3)


def test_large_line_is_averaged_and_not_sampled():
    stripes = np.tile(np.array([0, 255], np.uint8), (400, 400))  # a sampled crop would show stripes or one colour
    strip = crop(stripes, quad_at(400, 200, 700, 380, 0), 48, 2000)
    assert strip.min() > 100 and strip.max() < 155


@given(st.tuples(*[st.tuples(st.floats(-80, 180), st.floats(-80, 140)) for _ in range(4)]))
def test_no_quad_breaks_a_crop(quad):
    assume(len({(round(x, 1), round(y, 1)) for x, y in quad}) == 4)
    strip = crop(picture(), quad, 48, 320)
    assert strip.shape[0] == 48 and 1 <= strip.shape[1] <= 320 and strip.dtype == np.uint8


@pytest.mark.parametrize("corner", [0, 97, -50, 500])
def test_quad_without_area_gives_a_strip(corner):
    assert crop(picture(), ((corner, corner),) * 4, 48, 320).shape[0] == 48


@given(st.integers(1, 400), st.integers(1, 400))
def test_padded_line_has_the_width_asked_for(width, wanted):
    line = np.full((48, width, 3), 7, np.uint8)
    assert pad(line, wanted).shape == (48, wanted, 3)


def test_padding_repeats_the_last_column():
    line = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert pad(line, 5).tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5]]
