"""Headers tell what a picture is; hostile ones cannot make that cost anything."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from agent.errors import FrameError, InputError
from agent.header import MAX_FILE_BYTES, MAX_PARTS, Header, is_complete, open_regular, parse_header, read_header
from tests import bad_inputs as bad
from tests.command import run_python

NAME = Path("page.x")


def parse(data: bytes) -> Header:
    return parse_header(io.BytesIO(data), NAME)


def refusal(data: bytes) -> str:
    with pytest.raises(FrameError, match=r"^page\.x: ") as caught:
        parse(data)
    return caught.value.reason


def noise(mode: str, size: tuple[int, int] = (91, 67)) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels if mode == "RGBA" else pixels[:, :, :3]).convert(mode)


def saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """Return a picture of 91 x 67 pixels in a file's bytes."""
    file = io.BytesIO()
    noise(mode).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    """Return an EXIF block with an orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, bad.EXIF_ORIENTATION, 3, 1, orientation, 0, 0)


@cache
def real_files() -> dict[str, bytes]:
    """Return one file of each kind and colour mode that tells its size in its own way."""
    turned = Image.Exif()
    turned[bad.EXIF_ORIENTATION] = 6
    pages = {"save_all": True, "append_images": [Image.new("RGB", (91, 67))], "duration": 100}
    return {
        "jpeg": saved("JPEG"),
        "jpeg grey": saved("JPEG", "L"),
        "jpeg cmyk": saved("JPEG", "CMYK"),
        "jpeg progressive": saved("JPEG", progressive=True),
        "jpeg exif": saved("JPEG", exif=turned),
        "png": saved("PNG"),
        "png grey": saved("PNG", "L"),
        "png bilevel": saved("PNG", "1"),
        "png palette": saved("PNG", "P"),
        "png alpha": saved("PNG", "RGBA"),
        "png grey alpha": saved("PNG", "LA"),
        "png key": saved("PNG", transparency=(1, 2, 3)),
        "png exif": saved("PNG", exif=turned),
        "png animated": saved("PNG", **pages),
        "tiff": saved("TIFF"),
        "tiff lzw": saved("TIFF", compression="tiff_lzw"),
        "tiff bilevel": saved("TIFF", "1", compression="group4"),
        "tiff cmyk": saved("TIFF", "CMYK"),
        "tiff alpha": saved("TIFF", "RGBA"),
        "tiff turned": saved("TIFF", tiffinfo={bad.EXIF_ORIENTATION: 6}),
        "webp": saved("WEBP"),
        "webp lossless": saved("WEBP", lossless=True),
        "webp alpha": saved("WEBP", "RGBA", lossless=True),
        "webp exif": saved("WEBP", exif=turned),
        "webp animated": saved("WEBP", **pages),
        "bmp": saved("BMP"),
        "bmp grey": saved("BMP", "L"),
        "bmp alpha": saved("BMP", "RGBA"),
    }


EXPECTED = {
    "jpeg": {"channels": 3},
    "jpeg grey": {"channels": 1},
    "jpeg cmyk": {"channels": 4},
    "jpeg exif": {"orientation": 6},
    "png": {"channels": 3, "bits": 8, "alpha": False},
    "png grey": {"channels": 1, "alpha": False},
    "png bilevel": {"channels": 1, "bits": 1},
    "png palette": {"channels": 3, "alpha": False},
    "png alpha": {"channels": 4, "alpha": True},
    "png grey alpha": {"channels": 2, "alpha": True},
    "png key": {"channels": 3, "alpha": True},
    "png exif": {"orientation": 6},
    "tiff": {"channels": 3, "bits": 8, "alpha": False},
    "tiff bilevel": {"channels": 1, "bits": 1},
    "tiff cmyk": {"channels": 4, "alpha": False},
    "tiff alpha": {"channels": 4, "alpha": True},
    "tiff turned": {"orientation": 6},
    "webp": {"alpha": False},
    "webp alpha": {"alpha": True},
    "webp exif": {"orientation": 6},
}


@pytest.mark.parametrize("name", real_files())
def test_header_tells_kind_size_and_samples(name):
    header = parse(real_files()[name])
    assert (header.kind, header.width, header.height) == (name.split()[0], 91, 67)
    told = {"orientation": 1} | EXPECTED.get(name, {})
    assert {key: getattr(header, key) for key in told} == told


def test_depth_of_a_tiff_is_told_where_it_is_a_list():
    assert parse(_tiff({256: 9, 257: 7, 277: 3}, bits=(16, 16, 16))).bits == 16
    assert parse(_tiff({256: 9, 257: 7, 277: 3}, bits=(16, 16, 16), order=">")).bits == 16


def _tiff(tags: dict[int, int], bits: tuple[int, ...] = (), order: str = "<") -> bytes:
    """Return a TIFF's first directory; depths in a list behind it."""
    count = len(tags) + bool(bits)
    end = 8 + 2 + 12 * count + 4
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    entries += [struct.pack(f"{order}HHII", 258, 3, len(bits), end)] if bits else []
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, count)
    return head + b"".join(sorted(entries)) + bytes(4) + struct.pack(f"{order}{len(bits)}H", *bits)


@pytest.mark.parametrize(("sampling", "samples"), [(0, 3), (1, 2), (2, 1.5)])
def test_progressive_jpeg_tells_the_coefficients_it_will_hold(sampling, samples):
    header = parse(saved("JPEG", progressive=True, subsampling=sampling))
    assert header.beside_bytes == int(91 * 67 * samples) * 2
    assert parse(saved("JPEG", subsampling=sampling)).beside_bytes == 0


def test_jpeg_of_one_scan_a_colour_tells_the_coefficients_it_will_hold():
    data = bytearray(saved("JPEG", subsampling=0))
    data[data.index(b"\xff\xda") + 4] = 1
    assert parse(bytes(data)).beside_bytes == 91 * 67 * 3 * 2


def test_tiff_in_one_piece_tells_that_it_will_be_held_in_colour():
    size = {256: 1000, 257: 1000}
    assert parse(_tiff(size)).beside_bytes >= 4_000_000
    assert parse(_tiff(size | {278: 8})).beside_bytes < 40_000
    assert parse(_tiff(size | {322: 1 << 20, 323: 1 << 20})).beside_bytes >= 1 << 40  # a bomb of one tile


def test_animated_pictures_tell_the_frames_they_will_hold():
    for name in ("png", "webp"):
        one, several = (parse(real_files()[key]).beside_bytes for key in (name, f"{name} animated"))
        assert several - one > 5 * 91 * 67


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_orientation_is_read_in_both_byte_orders(orientation, order):
    block = b"Exif\0\0" + exif(orientation, order)
    data = saved("JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]
    assert parse(data).orientation == orientation


@pytest.mark.parametrize("block", [b"", b"II", exif(0), exif(9), exif(6)[:15], b"MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_leaves_a_picture_as_it_is(block):
    data = saved("JPEG")
    block = b"Exif\0\0" + block
    assert parse(data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block + data[2:]).orientation == 1


def test_first_exif_block_counts_and_other_application_data_is_passed_over():
    data = saved("JPEG")
    blocks = [b"http://ns.adobe.com/xap/1.0/\0<x/>", b"Exif\0\0" + exif(8), b"Exif\0\0" + exif(3), b"E"]
    extra = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(block)) + block for block in blocks)
    assert parse(data[:2] + extra + data[2:]).orientation == 8


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"GIF89a" + bytes(100), b"RIFF\0\0\0\0WAVEfmt ", b"%PDF-1.4\n"])
def test_what_is_no_picture_is_refused(data):
    assert refusal(data) == ("type" if data else "empty")


def test_refusal_of_a_type_names_the_readable_ones():
    with pytest.raises(FrameError, match="JPEG, PNG, TIFF, WebP, BMP and PDF can be read"):
        parse(b"GIF89a" + bytes(100))


@pytest.mark.parametrize("name", real_files())
def test_file_that_ends_in_its_header_is_truncated(name):
    data = real_files()[name]
    last = {"tiff": 24, "webp": 24, "bmp": 20, "jpeg": 18, "png": 24}[name.split()[0]]
    for end in range(12, last):
        assert refusal(data[:end]) == "truncated"


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (0, 9, "zero"),
        (9, 0, "zero"),
        (65_501, 1, "huge"),
        (1, 65_501, "huge"),
        (20_001, 20_000, "huge"),
        (2**31 - 1, 2**31 - 1, "huge"),
    ],
)
def test_impossible_sizes_are_refused_in_every_format(width, height, reason):
    png = bad.png_header(width, height) + bad.png_chunk(b"IEND", b"")
    assert refusal(png) == reason
    assert refusal(_tiff({256: width, 257: height})) == reason
    bmp = bytearray(saved("BMP"))
    struct.pack_into("<ii", bmp, 18, width, height)
    assert refusal(bytes(bmp)) == reason


def test_largest_sizes_are_accepted():
    for size in ((65_500, 1), (1, 65_500), (20_000, 20_000)):
        header = parse(bad.png_header(*size) + bad.png_chunk(b"IEND", b""))
        assert (header.width, header.height) == size


def test_bitmap_stored_from_the_top_has_a_height():
    data = bytearray(saved("BMP"))
    struct.pack_into("<i", data, 22, -67)
    assert parse(bytes(data)).height == 67


HOSTILE = {
    "endless fill bytes": b"\xff\xd8" + b"\xff" * 3_000_000,
    "endless restart marks": b"\xff\xd8" + b"\xff\xd0" * 1_500_000,
    "endless empty segments": b"\xff\xd8" + b"\xff\xe0\0\2" * 750_000,
    "endless EXIF": b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"Exif\0\0" + bytes(65_527)) * 60,
    "endless chunks": bad.png_header(9, 9) + bad.png_chunk(b"tEXt", b"") * 250_000,
    "directory of 65535 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(800_000),
    "endless RIFF": saved("WEBP")[:12] + b"VP8X\x0a\0\0\0\x08" + bytes(9) + b"JUNK\0\0\0\0" * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_header_makes_the_search_endless(name):
    handle = bad.Counted(HOSTILE[name])
    try:
        parse_header(handle, NAME)
    except FrameError as error:
        assert error.reason == "truncated"
    assert handle.taken <= 13 * MAX_PARTS + (1 << 17)


@given(st.sampled_from([b"", *(data[:12] for data in real_files().values())]), st.binary(max_size=400))
def test_random_bytes_give_a_header_or_a_refusal(start, rest):
    handle = bad.Counted(start + rest)
    try:
        header = parse_header(handle, NAME)
    except FrameError:
        return
    assert 0 < header.width * header.height <= 400_000_000 and header.beside_bytes >= 0


@given(st.sampled_from(sorted(real_files())), st.data())
def test_mutated_headers_give_a_header_or_a_refusal(name, data):
    content = bytearray(real_files()[name])
    near = st.integers(0, min(len(content), 700) - 1)
    spots = data.draw(st.lists(st.tuples(near, st.integers(0, 255)), min_size=1, max_size=12))
    for at, value in spots:
        content[at] = value
    handle = bad.Counted(content[: data.draw(st.integers(0, len(content)))])
    try:
        header = parse_header(handle, NAME)
    except FrameError:
        return
    finally:
        assert handle.taken <= 13 * MAX_PARTS + (1 << 17)
    assert 1 <= header.channels <= 255 and 1 <= header.orientation <= 8


@given(st.integers(0, 7), st.binary(max_size=64))
@example(0, b"")
def test_growing_pixels_are_never_read(scale, junk):
    handle = bad.Counted(bad.png_header(100, 100) + bad.png_chunk(b"IDAT", junk * 10_000 * scale))
    parse_header(handle, NAME)
    assert handle.taken < 100


def test_missing_and_special_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.png: No such file or directory"):
        read_header(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="a folder that cannot be listed"):
        read_header(tmp_path)
    with pytest.raises(InputError, match="not a regular file"):
        read_header(Path("/dev/zero"))
    with pytest.raises(InputError, match="File name too long"):
        read_header(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match="embedded null byte"):
        read_header(tmp_path / "a\0b")


def test_fifo_is_not_opened_so_its_writer_goes_on_waiting(tmp_path):
    fifo = tmp_path / "page.png"
    os.mkfifo(fifo)
    code = "import sys; print('ready', flush=True); open(sys.argv[1], 'wb')"
    with subprocess.Popen([sys.executable, "-c", code, fifo], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"ready\n"
            with pytest.raises(InputError, match="not a regular file"):
                open_regular(fifo)
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.3)
            os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))  # which is all it was waiting for
            assert writer.wait(10) == 0
        finally:
            writer.kill()


def test_file_larger_than_any_picture_is_refused(tmp_path):
    with (tmp_path / "page.tif").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(FrameError, match="2048 MB; the limit is 2048 MB a file") as caught:
        read_header(tmp_path / "page.tif")
    assert caught.value.reason == "huge"


def test_failing_file_system_is_an_input_error():
    # Reading a process's own memory at 0 fails with EIO, and it counts as a regular file.
    with pytest.raises(InputError, match="/proc/self/mem: Input/output error"):
        read_header(Path("/proc/self/mem"))


def test_descriptors_are_given_back(tmp_path):
    bad.write_all(tmp_path / "bad")
    before = len(os.listdir("/proc/self/fd"))
    for path in sorted((tmp_path / "bad").iterdir()):
        try:
            read_header(path)
        except (FrameError, InputError):
            continue
    assert len(os.listdir("/proc/self/fd")) == before


def test_headers_are_read_without_a_vision_package(tmp_path):
    (tmp_path / "a.png").write_bytes(saved("PNG"))
    ran = run_python(
        "import sys; from pathlib import Path; from agent.header import read_header\n"
        "print(read_header(Path(sys.argv[1])).width); assert not {'cv2', 'numpy'} & sys.modules.keys()",
        tmp_path / "a.png",
    )
    assert (ran.status, ran.out, ran.err) == (0, "91\n", "")


def complete(data: bytes) -> bool:
    return is_complete(io.BytesIO(data), parse(data))


ENDS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("BMP", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 1000}),
    ("TIFF", {"save_all": True, "append_images": [noise("RGB"), noise("RGB", (20, 900))]}),
]


@pytest.mark.parametrize(("kind", "options"), ENDS)
def test_picture_has_its_end_when_the_last_byte_is_there(kind, options):
    data = saved(kind, **options)
    assert complete(data)
    assert complete(data + bytes(5000))
    for length in {*range(0, len(data), len(data) // 97), len(data) - 5}:
        handle = io.BytesIO(data[:length])
        try:
            header = parse_header(handle, NAME)
        except FrameError:
            continue
        assert not is_complete(handle, header), length


def test_film_behind_a_photo_hides_no_end():
    data = saved("JPEG")
    assert complete(data + b"\0\0\0\x18ftypmp42" + bytes(5 << 20))
    assert not complete(data[:-2] + bytes(5 << 20))


def test_end_between_two_pieces_of_a_photo_is_found():
    data = saved("JPEG")
    start = parse(data).data_at
    for shift in range(-3, 3):
        filler = bytes((1 << 20) + start + shift - len(data) + 1)
        assert complete(data[:-2] + filler + data[-2:] + bytes(3 << 20))


@pytest.mark.parametrize(("bits", "mode"), [(1, "1"), (8, "P"), (8, "L"), (24, "RGB"), (32, "RGBA")])
def test_size_a_bitmap_tells_of_itself_is_no_matter(bits, mode):
    data = bytearray(saved("BMP", mode))
    assert struct.unpack_from("<H", data, 28) == (bits,)
    for told in (0, 1 << 30):
        struct.pack_into("<I", data, 2, told)
        assert complete(bytes(data))
        assert not complete(bytes(data[:-1]))


def test_chain_of_directories_that_bites_its_tail_ends():
    data = bytearray(saved("TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    assert complete(bytes(data))
    struct.pack_into("<I", data, at + 2 + 12 * count, len(data) + 100)
    assert not complete(bytes(data))


@given(st.sampled_from(ENDS), st.data())
def test_question_for_the_end_never_fails(end, draw):
    data = bytearray(saved(end[0], **end[1]))
    for _ in range(draw.draw(st.integers(1, 5))):
        data[draw.draw(st.integers(0, min(len(data), 400) - 1))] = draw.draw(st.integers(0, 255))
    handle = bad.Counted(bytes(data))
    try:
        header = parse_header(handle, NAME)
    except FrameError:
        return
    assert is_complete(handle, header) in (True, False)
    assert handle.taken < 8 * len(data) + (64 << 20)
