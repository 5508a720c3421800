"""Small files that unpack to gigabytes, or claim to."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests import bad_inputs as bad
from tests import pdf_files as pdf

_BLOCK = 10 << 20


def _press() -> zlib._Compress:
    return zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)


def blanks(blocks: int, first: bytes = b"") -> bytes:
    """Return zlib's packing of some bytes and then of so many times 10 MB of spaces, but for its checksum.

    A fully flushed block refers to nothing before it, so one block stands for all of them.
    """
    press, start = _press(), _press()
    block = press.compress(b" " * _BLOCK) + press.flush(zlib.Z_FULL_FLUSH)
    head = start.compress(first) + start.flush(zlib.Z_FULL_FLUSH)
    return b"\x78\xda" + head + block * blocks + b"\x03\x00" + bytes(4)


def ztxt() -> bytes:
    """Return a good PNG with a gigabyte of packed text before its pixels."""
    text = bad.png_chunk(b"zTXt", b"Comment\0\0" + blanks(103))
    data = bad.png_chunk(b"IDAT", zlib.compress(bytes(100 * 101)))
    return bad.png_header(100, 100) + text + data + bad.png_chunk(b"IEND", b"")


def tiff(width: int, height: int, rows: int, data: bytes, strips: int = 1) -> bytes:
    """Return a grey TIFF of packed strips, all of them the same data."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    after = 8 + len(data)
    lists = struct.pack(f"<{strips}I", *[8] * strips) + struct.pack(f"<{strips}I", *[len(data)] * strips)
    at = (after, after + 4 * strips) if strips > 1 else (8, len(data))
    entries += [(273, 4, strips, at[0]), (278, 4, 1, rows), (279, 4, strips, at[1])]
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    directory = struct.pack("<H", len(entries)) + body + bytes(4)
    return b"II*\0" + struct.pack("<I", after + len(lists)) + data + lists + directory


def scans(count: int = 5000, side: int = 3000, mode: str = "L") -> bytes:
    """Return a progressive JPEG with so many more scans of 22 bytes, each of which says that no pixel changes."""
    file = io.BytesIO()
    Image.new(mode, (side, side), "white").save(file, "JPEG", progressive=True)
    picture = file.getvalue().removesuffix(b"\xff\xd9")
    table = struct.pack(">HHB16sB", 0xFFC4, 20, 0x11, bytes([1]) + bytes(15), 0xE0)  # code 0: 2**14 blocks and more
    scan = struct.pack(">HHB5B", 0xFFDA, 8, 1, 1, 1, 1, 63, 0x10)
    block_runs = -(-(((side + 7) // 8) ** 2) // 27_306)
    bits = "010101010101010" * block_runs
    data = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big")
    return picture + table + (scan + data) * count + b"\xff\xd9"


def tiff_chain(directories: int = 4095, lies: int = 2048) -> bytes:
    """Return a TIFF of so many directories behind its first, of 4096 entries each, that lie over one another.

    Each says that it is of a small copy and no page. They begin every 6 bytes, with the number of entries; 8192 such
    steps further each tells where the next begins.
    """
    entries = [(256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 8), (277, 3, 1, 1)]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    places = [lies + 6 * number for number in range(directories)]
    data = bytearray((head + struct.pack("<I", lies)).ljust(lies + 6 * (8192 + directories), b"\0"))
    for at, after in zip(places, [*places[1:], 0], strict=True):
        struct.pack_into("<H", data, at, 4096)
        struct.pack_into("<I", data, at + 2 + 12 * 4096, after)
    for number in (5000, 5003):  # every other directory comes upon each
        struct.pack_into("<HHII", data, lies + 6 * number + 2, 254, 4, 1, 1)
    return bytes(data)


def _content(data: bytes, packing: bytes) -> bytes:
    return pdf.document((pdf.stream(data, b"/Filter" + packing),))


def _nested() -> bytes:
    inner = zlib.compress(zlib.compress(blanks(1024), 9), 9)
    return _content(inner, b"[/FlateDecode/FlateDecode/FlateDecode]")


def _object_stream() -> bytes:
    pages = b"<</Type/Pages/Kids[4 0 R]/Count 1>>"
    packed = pdf.stream(blanks(103), b"/Type/ObjStm/N 1000/First 10000/Filter/FlateDecode")
    return pdf.pdf([b"<</Type/Catalog/Pages 2 0 R>>", pages, packed])


def _image(width: int, height: int, data: bytes, packing: bytes = b"/FlateDecode") -> bytes:
    about = b"/Type/XObject/Subtype/Image/Width %d/Height %d/BitsPerComponent 8/ColorSpace/DeviceRGB/Filter"
    return pdf.whole(pdf.stream(data, about % (width, height) + packing))


def _pages(count: int) -> bytes:
    kids = b" ".join(b"%d 0 R" % (3 + number) for number in range(count))
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]>>"
    tree = b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count)
    return pdf.pdf([b"<</Type/Catalog/Pages 2 0 R>>", tree, *[page] * count])


def _laughs() -> bytes:
    """Return a page that draws a form ten times, which draws one ten times, and so on."""
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 100 100]/Resources<</XObject<</F %d 0 R>>>>"
    forms = [pdf.stream(b"/F Do " * 10, form % (6 + number)) for number in range(12)]
    return pdf.document((pdf.stream(b"/O0 Do"), *forms, pdf.stream(b"0 0 m 9 9 l S", form % 3)))


BOMBS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "png-text.png": (ztxt, ()),
    "tiff-size.tif": (lambda: tiff(50_000, 50_000, 50_000, blanks(1)), ("huge",)),
    "tiff-strip.tif": (lambda: tiff(100, 100, 100, blanks(103)), ()),
    "tiff-strips.tif": (lambda: tiff(60_000, 6000, 1, zlib.compress(bytes(60_000)), 1 << 20), ("memory",)),
    "tiff-chain.tif": (tiff_chain, ("truncated",)),
    "jpeg-scans.jpg": (scans, ("huge",)),
    "jpeg-scans.pdf": (lambda: _image(3000, 3000, scans(mode="RGB"), b"/DCTDecode"), ("huge",)),
    "content.pdf": (lambda: _content(blanks(103), b"/FlateDecode"), ("huge",)),
    "nested.pdf": (_nested, ("huge",)),
    "objects.pdf": (_object_stream, ("huge",)),
    "image-size.pdf": (lambda: _image(50_000, 50_000, blanks(1)), ("huge",)),
    "image-nested.pdf": (
        lambda: _image(100, 100, zlib.compress(blanks(103)), b"[/FlateDecode/FlateDecode]"),
        ("huge",),
    ),
    "page-size.pdf": (
        lambda: pdf.document((pdf.stream(b""),), about=[b"/MediaBox[0 0 14400 14400]"]),
        ("huge",),
    ),
    "pages.pdf": (lambda: _pages(10_000), ("pages",)),
    "hidden.pdf": (lambda: _content(blanks(103, os.urandom(200_000)), b"/FlateDecode"), ("memory",)),
    "laughs.pdf": (_laughs, ("memory", "slow")),
}
"""Each file, and the reasons it may be refused with; none where what it hides is passed over, and the rest is read."""


def write_all(folder: Path) -> list[Path]:
    """Write every bomb, the PNG of 50,000 x 50,000 pixels too."""
    bad.bomb(folder / "png-size.png")
    for name, (make, _) in BOMBS.items():
        (folder / name).write_bytes(make())
    return sorted(path for path in folder.iterdir())
