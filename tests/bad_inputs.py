"""Hostile and unusual inputs, and what the reader must answer to each.

`write_all(directory)` writes every file and returns the table. Nothing here needs the agent.
"""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

Expectation = Literal["lines", "blank", "refused"]
SAMPLE = Path(__file__).parent.parent / "samples" / "receipt.png"
TEXT = "青石巷杂货店"
"""The first line of the page inside every input that is expected to give lines."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB = 0, 2  # PNG colour types
BOMB_SIDE_PX = 50_000
JPEG_SIDE_PX = 65_500
EXIF_ORIENTATION = 0x0112
STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation to how the upright page is turned in the file; the tag undoes it. Pillow turns anticlockwise."""


class BadInput(NamedTuple):
    """One input.

    Attributes:
        name: stable word for test ids.
        path: the file, or a directory to be walked.
        expect: "lines" (TEXT is read), "blank" (a result without lines) or "refused" (one clear line, a status).
        reason: one word that says what is the matter, for a refusal or as a note.
        skip: why this cannot be tried here, or nothing.
    """

    name: str
    path: Path
    expect: Expectation
    reason: str
    skip: str = ""


Writer = Callable[[Path], object]


def page() -> Image.Image:
    """Return the top of the sample receipt: four lines of text and paper below, uint8 grey, 380 x 300."""
    with Image.open(SAMPLE) as image:
        top = image.convert("L").crop((130, 40, 510, 340))
    top.paste(236, (0, 200, 380, 300))  # fewer lines are read faster
    return top


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Return one PNG chunk: length, type, body, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, *, bits: int = 8, colour: int = GREY) -> bytes:
    """Return a PNG's signature and header chunk."""
    return PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


def png_16_bit(image: Image.Image) -> bytes:
    """Return a grey or RGB picture as a PNG of 16 bits per sample, which Pillow cannot write for RGB."""
    width, height = image.size
    colour = RGB if image.mode == "RGB" else GREY
    samples = image.tobytes()
    step = len(samples) // height
    wide = bytes(byte for sample in samples for byte in (sample, sample))  # 0xAB becomes 0xABAB
    rows = b"".join(b"\0" + wide[2 * step * y : 2 * step * (y + 1)] for y in range(height))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return png_header(width, height, bits=16, colour=colour) + body + png_chunk(b"IEND", b"")


def truncated(suffix: str) -> Writer:
    """Return a writer of the first half of a good file."""

    def write(path: Path) -> None:
        whole = path.with_name(f"whole{suffix}")
        page().save(whole)
        data = whole.read_bytes()
        whole.unlink()
        path.write_bytes(data[: len(data) // 2])

    return write


def damaged_crc(path: Path) -> None:
    """Write a good PNG with one bit of its first data chunk's checksum turned."""
    page().save(path)
    data = bytearray(path.read_bytes())
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    data[start + 8 + length] ^= 1
    path.write_bytes(data)


def bomb(path: Path) -> None:
    """Write a valid grey PNG of 50,000 x 50,000 zeros: 2.5 GB of pixels in 2.4 MB of file.

    A fully flushed deflate block refers to nothing before it, so one compressed block stands for all of them.
    """
    rows, press = 500, zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = press.compress(bytes(rows * (1 + BOMB_SIDE_PX))) + press.flush(zlib.Z_FULL_FLUSH)
    adler = (BOMB_SIDE_PX * (1 + BOMB_SIDE_PX) % 65_521) << 16 | 1  # RFC 1950, 9, for zeros
    body = b"\x78\xda" + block * (BOMB_SIDE_PX // rows) + b"\x03\x00" + struct.pack(">I", adler)
    path.write_bytes(png_header(BOMB_SIDE_PX, BOMB_SIDE_PX) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b""))


def giant_jpeg(path: Path) -> None:
    """Write a good JPEG whose frame header claims 65,500 x 65,500 pixels."""
    page().save(path)
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, JPEG_SIDE_PX, JPEG_SIDE_PX)
    path.write_bytes(data)


def transparent(path: Path) -> None:
    """Write black text on nothing: colour black everywhere, the text only in alpha."""
    sheet = Image.new("RGBA", page().size, (0, 0, 0, 0))
    sheet.putalpha(page().point(lambda level: 255 - level))
    sheet.save(path)


def animated(path: Path) -> None:
    """Write three frames, of which the first is the page and the others are white."""
    first = page().convert("RGB")
    white = [Image.new("RGB", first.size, (255, 255, 250 + n)) for n in range(2)]
    first.save(
        path, save_all=True, append_images=white, duration=100, **({"lossless": True} if path.suffix == ".webp" else {})
    )


def with_copy(path: Path) -> None:
    """Write the page and a small copy of it, as scanners' programs do for their lists."""
    small = page().resize((95, 75))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    page().save(path, save_all=True, append_images=[small])


def turned(orientation: int) -> Writer:
    """Return a writer of the page stored turned, with the EXIF tag that turns it upright."""

    def write(path: Path) -> None:
        exif, how = Image.Exif(), STORED_AS[orientation]
        exif[EXIF_ORIENTATION] = orientation
        (page() if how is None else page().transpose(how)).save(path, exif=exif, quality=92)

    return write


def heic(path: Path) -> None:
    """Write the box structure that an iPhone photo starts with, and no picture."""
    brands = b"heic" + struct.pack(">I", 0) + b"mif1heic"
    path.write_bytes(struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + struct.pack(">I", 16) + b"mdat" + bytes(8))


def pdf(path: Path) -> None:
    """Write the smallest thing that calls itself a PDF."""
    path.write_bytes(b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n")


def unreadable(path: Path) -> None:
    """Write a good page that nobody but root may open."""
    page().save(path)
    path.chmod(0)


def loop(path: Path) -> None:
    """Make a directory with a page and a link to itself: a careless walk never ends, or reads the page often."""
    path.mkdir()
    page().save(path / "page.png")
    (path / "again").symlink_to(path, target_is_directory=True)


def blank(width: int, height: int) -> Writer:
    """Return a writer of a white picture."""
    return lambda path: Image.new("RGB", (width, height), "white").save(path)


def saved(mode: str, **options: object) -> Writer:
    """Return a writer of the page in one of Pillow's modes, undithered."""

    def write(path: Path) -> None:
        image = page().convert("RGB")
        image.convert(mode, dither=Image.Dither.NONE, palette=Image.Palette.ADAPTIVE).save(path, **options)

    return write


def holding(content: bytes) -> Writer:
    """Return a writer of bytes."""
    return lambda path: path.write_bytes(content)


CASES: tuple[tuple[str, str, Writer, Expectation, str], ...] = (
    ("empty", "empty.jpg", holding(b""), "refused", "empty"),
    ("truncated-jpeg", "truncated.jpg", truncated(".jpg"), "refused", "truncated"),
    ("truncated-png", "truncated.png", truncated(".png"), "refused", "truncated"),
    ("text", "text.jpg", holding("只是文字 only text\n".encode()), "refused", "type"),
    ("pdf", "pdf.png", pdf, "refused", "damaged"),
    ("heic", "photo.heic", heic, "refused", "type"),
    ("header-only", "header.png", holding(PNG_SIGNATURE), "refused", "truncated"),
    ("no-pixels", "zero.png", holding(png_header(0, 100) + png_chunk(b"IEND", b"")), "refused", "zero"),
    ("bomb", "bomb.png", bomb, "refused", "huge"),
    ("giant-jpeg", "giant.jpg", giant_jpeg, "refused", "huge"),
    ("damaged-crc", "crc.png", damaged_crc, "refused", "damaged"),
    ("one-pixel", "1x1.png", blank(1, 1), "blank", "size"),
    ("tall", "1x20000.png", blank(1, 20_000), "blank", "size"),
    ("wide", "20000x1.png", blank(20_000, 1), "blank", "size"),
    ("white", "white.jpg", blank(800, 600), "blank", "blank"),
    ("grey-16", "grey16.png", lambda path: path.write_bytes(png_16_bit(page())), "lines", "depth"),
    ("rgb-16", "rgb16.png", lambda path: path.write_bytes(png_16_bit(page().convert("RGB"))), "lines", "depth"),
    ("bilevel", "bilevel.png", saved("1"), "lines", "depth"),
    ("cmyk", "cmyk.jpg", saved("CMYK", quality=92), "lines", "colour"),
    ("palette", "palette.png", saved("P"), "lines", "colour"),
    ("alpha", "alpha.png", transparent, "lines", "colour"),
    ("gif", "animated.gif", animated, "refused", "type"),  # the wheel of OpenCV has no GIF decoder
    ("webp", "animated.webp", animated, "lines", "animated"),
    ("apng", "animated.png", animated, "lines", "animated"),
    ("tiff", "page.tiff", saved("RGB"), "lines", "format"),
    ("tiff-copy", "copy.tif", with_copy, "lines", "format"),
    ("bmp", "page.bmp", saved("RGB"), "lines", "format"),
    ("wrong-suffix", "really-a-jpeg.png", saved("RGB", format="JPEG"), "lines", "format"),
    ("upper-case", "PAGE.JPG", saved("RGB"), "lines", "format"),
    *((f"exif-{tag}", f"exif{tag}.jpg", turned(tag), "lines", "orientation") for tag in STORED_AS),
    ("unreadable", "unreadable.png", unreadable, "refused", "permission"),
    ("loop", "loop", loop, "lines", "loop"),
    ("broken-link", "broken.png", lambda path: path.symlink_to("nowhere.png"), "refused", "missing"),
    ("fifo", "fifo.png", lambda path: os.mkfifo(path), "refused", "special"),
    ("newline-name", "two\nlines.png", saved("L"), "lines", "name"),
    ("bytes-name", os.fsdecode(b"caf\xe9-\xff.png"), saved("L"), "lines", "name"),
)


def write_all(directory: Path) -> tuple[BadInput, ...]:
    """Write every input into a directory, anew, and return the table. `remove` takes it away again."""
    remove(directory)
    directory.mkdir(parents=True)
    return tuple(_write(directory, *case) for case in CASES)


def _write(directory: Path, name: str, file: str, write: Writer, expect: Expectation, reason: str) -> BadInput:
    """Write one input; one that the file system or the user's rights make meaningless says so in `skip`."""
    path, skip = directory / file, ""
    try:
        write(path)
    except OSError as error:
        skip = f"cannot be made here: {error.strerror}"
    if reason == "permission" and os.geteuid() == 0:
        skip = "root may read everything"
    return BadInput(name, path, expect, reason, skip)


def remove(directory: Path) -> None:
    """Remove what write_all wrote; links are not followed and the FIFO is not opened."""
    shutil.rmtree(directory, ignore_errors=True)


class Counted(io.BytesIO):
    """A file in memory that knows how much of it was read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data
