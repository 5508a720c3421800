"""What a picture file is and how large, from its first bytes: nothing is decoded and nothing large is allocated.

Written here because the decision needs what size libraries do not tell: what decoding will hold, sample depth, alpha.
(The package imagesize 2 also opens URLs, which has no place in a process without network.)
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from agent import jpeg, tiff
from agent.errors import FrameError, InputError
from agent.tiff import Directories, take

MAX_SIDE = 65_500  # the largest side of a JPEG; longer ones in other formats are refused too
MAX_PIXELS = 400_000_000  # A3 at 1200 dpi: 279 Mpx
MAX_FILE_BYTES = 2 << 30
MAX_PARTS = 4096  # segments, chunks or entries before the pixels; a photo with a large colour profile has hundreds

_TAIL_BYTES = 1 << 20
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

T = TypeVar("T")

_TIFF_HEADS = (b"II*\x00", b"MM\x00*")
_KNOWN = "JPEG, PNG, TIFF, WebP, BMP and PDF can be read"


class Header(msgspec.Struct, frozen=True):
    """A picture file's own description of itself.

    Attributes:
        kind: "jpeg", "png", "tiff", "webp" or "bmp".
        width: stored pixels per row, before any EXIF rotation.
        height: stored rows.
        channels: samples per pixel, 1..4.
        bits: bits per sample.
        alpha: whether pixels carry transparency.
        orientation: EXIF's number, 1..8, of how the stored picture is to be turned; 1 is upright.
        beside_bytes: what OpenCV's decoder holds beside the decoded picture; measured (`test_image.py`).
        data_at: where the first scan's data begin, in bytes (JPEG).
        part: number of the directory from 0 that describes it (TIFF).
    """

    kind: str
    width: int
    height: int
    channels: int = 3
    bits: int = 8
    alpha: bool = False
    orientation: int = 1
    beside_bytes: int = 0
    data_at: int = 0
    part: int = 0


def read_header(path: Path) -> Header:
    """Return the header of a picture file.

    Raises:
        InputError: missing, not a regular file, or not readable.
        FrameError: empty, of an unknown type, truncated, or of an impossible size.
    """
    with open_regular(path) as handle:
        return parse_header(handle, path)


def parse_header(handle: BinaryIO, path: Path) -> Header:
    """Return the header of an open picture file.

    Args:
        handle: the file, anywhere in it.
        path: its name, for messages.

    Raises:
        InputError: the file system fails.
        FrameError: empty, of an unknown type, truncated, or of an impossible size.
    """
    return _parsed(path, lambda: _parser(_head(handle), path)(handle))


def tiff_parts(handle: BinaryIO, path: Path, most: int) -> list[tuple[int, int]]:
    """Return the pages of an open file: number of the TIFF's directory, and where it begins; none of other files.

    Args:
        handle: the file, anywhere in it.
        path: its name, for messages.
        most: one more than this is looked for.

    Raises:
        InputError: the file system fails.
        FrameError: truncated.
    """
    return _parsed(path, lambda: tiff.pages(handle, most) if _head(handle)[:4] in _TIFF_HEADS else [])


def parse_tiff_part(handle: BinaryIO, path: Path, part: tuple[int, int]) -> Header:
    """Return the header of one page of an open TIFF.

    Args:
        handle: the file, anywhere in it.
        path: its name, for messages.
        part: of `tiff_parts`.

    Raises:
        InputError: the file system fails.
        FrameError: truncated, or of an impossible size.
    """
    return _parsed(path, lambda: _tiff(handle, part))


def _head(handle: BinaryIO) -> bytes:
    handle.seek(0)
    head = handle.read(12)
    handle.seek(0)
    return head


def _parsed(path: Path, parse: Callable[[], T]) -> T:
    """Return what a parser finds; a header is checked for its size."""
    try:
        found = parse()
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise FrameError("truncated", f"{path}: truncated or damaged before its size is told") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if isinstance(found, Header):
        _check_size(path, found)
    return found


def is_complete(handle: BinaryIO, header: Header) -> bool:
    """Return whether an open picture file has its end; nothing is decoded.

    JPEG and PNG have an end marker. WebP says how long it is, BMP follows from its size in pixels; every part that a
    TIFF's directories point at must lie within the file.

    Raises:
        OSError: the file system fails.
    """
    size = handle.seek(0, os.SEEK_END)
    try:
        return _ENDS[header.kind](handle, header, size)
    except (struct.error, ValueError, KeyError, OverflowError):
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; of anything else (a FIFO, a device) not even the opening is tried.

    Raises:
        InputError: missing, of another kind, or not readable.
        FrameError: larger than any picture.
    """
    try:
        _check_regular(os.stat(path), path)
        # O_NONBLOCK: should a FIFO have taken the file's place since, opening it must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    handle = os.fdopen(descriptor, "rb")
    try:
        _check_regular(os.fstat(descriptor), path)
    except (InputError, FrameError):
        handle.close()
        raise
    return handle


def printable(path: Path | str) -> str:
    """Return a path as valid Unicode; bytes that are no UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _check_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: a folder that cannot be listed")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise FrameError("huge", f"{path}: {status.st_size >> 20} MB; the limit is {MAX_FILE_BYTES >> 20} MB a file")


def _parser(head: bytes, path: Path) -> Callable[[BinaryIO], Header]:
    if not head:
        raise FrameError("empty", f"{path}: the file is empty")
    for magic, parse in _FORMATS:
        if head.startswith(magic) and (magic != b"RIFF" or head[8:12] == b"WEBP"):
            return parse
    raise FrameError("type", f"{path}: not a picture of a known type; {_KNOWN}")


def _check_size(path: Path, header: Header) -> None:
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise FrameError("zero", f"{path}: the header says {width}x{height} pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise FrameError(
            "huge", f"{path}: {width}x{height} pixels; the limit is {MAX_SIDE} a side and {MAX_PIXELS // 10**6} Mpx"
        )


def _png(handle: BinaryIO) -> Header:
    """Read the header chunk and those before the pixels (PNG, third edition, section 11)."""
    data = take(handle, 33)
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}[colour]
    alpha, orientation, beside = colour in (4, 6), 1, 0
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack(">I4s", take(handle, 8))
        after = handle.tell() + length + 4
        if kind in (b"IDAT", b"IEND"):
            return Header("png", width, height, channels, bits, alpha, orientation, beside)
        if kind == b"tRNS":
            alpha = alpha or colour != 0  # OpenCV ignores a transparent grey
        elif kind == b"eXIf":
            orientation = _orientation(take(handle, min(length, 1 << 16)))
        elif kind == b"acTL":
            beside = 10 * width * height  # frames are put together in colour
        handle.seek(after)
    raise ValueError("no pixels")


def _jpeg(handle: BinaryIO) -> Header:
    """Walk the segments up to the first scan (ITU T.81, B.2)."""
    take(handle, 2)
    frame, exif, progressive = None, None, False
    for _ in range(MAX_PARTS):
        marker = _next_marker(handle)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        length = max(0, struct.unpack(">H", take(handle, 2))[0] - 2)
        after = handle.tell() + length
        if marker == 0xE1 and exif is None and take(handle, min(6, length)) == b"Exif\0\0":
            exif = take(handle, length - 6)
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame, progressive = _jpeg_frame(handle), marker in (0xC2, 0xC6, 0xCA, 0xCE)
        elif marker == 0xDA and frame is not None:
            # A picture whose colours come one after the other is held as coefficients, like a progressive one.
            held = frame.beside_bytes if progressive or take(handle, 1)[0] < frame.channels else 0
            turned = _orientation(exif or b"")
            return msgspec.structs.replace(frame, orientation=turned, beside_bytes=held, data_at=after)
        handle.seek(after)
    raise ValueError("no scan")


def _jpeg_frame(handle: BinaryIO) -> Header:
    """Return a frame header, `beside_bytes` being its 16-bit coefficients (ITU T.81, B.2.2)."""
    bits, height, width, channels = struct.unpack(">BHHB", take(handle, 6))
    sampling = [divmod(take(handle, 3)[1], 16) for _ in range(channels)]
    if not sampling or min(min(pair) for pair in sampling) < 1:
        raise ValueError("sampling")
    full = max(h for h, _ in sampling) * max(v for _, v in sampling)
    coefficients = width * height * sum(h * v for h, v in sampling) // full
    return Header("jpeg", width, height, channels, bits, beside_bytes=2 * coefficients)


def _next_marker(handle: BinaryIO) -> int:
    if take(handle, 1) != b"\xff":
        raise ValueError("no marker")
    for _ in range(MAX_PARTS):  # fill bytes
        (marker,) = take(handle, 1)
        if marker != 0xFF:
            return int(marker)
    raise ValueError("no marker")


def _bmp(handle: BinaryIO) -> Header:
    data = take(handle, 30)
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, bits = *struct.unpack_from("<HH", data, 18), struct.unpack_from("<H", data, 24)[0]
    else:
        width, height, bits = *struct.unpack_from("<ii", data, 18), struct.unpack_from("<H", data, 28)[0]
    return Header("bmp", width, abs(height), 4 if bits == 32 else 3)


def _webp(handle: BinaryIO) -> Header:
    """Read the first chunk (WebP container specification; RFC 6386, 9.1; WebP lossless, 3)."""
    data = take(handle, 30)
    chunk, size = data[12:16], handle.seek(0, os.SEEK_END)  # the file is read into memory
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        alpha, animated, exif = (bool(data[20] & bit) for bit in (0x10, 0x02, 0x08))
        beside = size + width * height * (9 if animated else 6)
        orientation = _orientation(_webp_exif(handle)) if exif else 1
        return Header("webp", width, height, 4, alpha=alpha, orientation=orientation, beside_bytes=beside)
    if chunk == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        width, height, alpha = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), bool(packed >> 28 & 1)
        return Header("webp", width, height, 4, alpha=alpha, beside_bytes=size + 6 * width * height)
    if chunk == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        return Header("webp", width, height, beside_bytes=size + 3 * width * height)
    raise ValueError("unknown chunk")


def _webp_exif(handle: BinaryIO) -> bytes:
    handle.seek(12)
    for _ in range(MAX_PARTS):
        head = handle.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF":
            return handle.read(min(length, 1 << 16)).removeprefix(b"Exif\0\0")
        handle.seek(length + length % 2, os.SEEK_CUR)
    return b""


def _tiff(handle: BinaryIO, part: tuple[int, int] | None = None) -> Header:
    """Read a directory, the first by default (TIFF 6.0, sections 2, 8 and 15).

    Args:
        handle: the file.
        part: number of the directory, and where it begins.
    """
    tags = Directories(handle).tags(part and part[1])
    width, height = tags[tiff.WIDTH], tags[tiff.HEIGHT]
    channels, bits = tags.get(tiff.SAMPLES, 1), tags.get(tiff.BITS, 1)
    rows = tags.get(tiff.TILE_HEIGHT, min(height, tags.get(tiff.STRIP_ROWS, height)))
    block = tags.get(tiff.TILE_WIDTH, width) * rows
    alpha = channels == 4 and tags.get(tiff.COLOURS) == 2 and tags.get(tiff.EXTRA) in (1, 2)
    # libtiff maps the file, and OpenCV takes a whole strip or tile as RGBA, or as it is when samples are deeper.
    mapped = tiff.stored_bytes(handle, part[1]) if part else handle.seek(0, os.SEEK_END)
    beside = mapped + block * (4 if bits <= 8 else max(4, channels * bits // 8))
    turned = tags.get(tiff.ORIENTATION, 1)
    turned = turned if 1 <= turned <= 8 else 1
    return Header(
        *("tiff", width, height, max(1, min(4, channels)), bits, alpha, turned, beside), part=part[0] if part else 0
    )


def _orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block, 1..8; 1 when it tells none."""
    try:
        found = Directories(io.BytesIO(exif)).tags().get(tiff.ORIENTATION, 1)
    except (struct.error, ValueError, KeyError):
        return 1  # EXIF is often damaged by programs that do not know it; the picture is not
    return found if 1 <= found <= 8 else 1


def _png_ends(handle: BinaryIO, header: Header, size: int) -> bool:
    handle.seek(max(0, size - _TAIL_BYTES))
    return _PNG_END in handle.read()


def _jpeg_ends(handle: BinaryIO, header: Header, size: int) -> bool:
    return jpeg.ends(handle, header.data_at)


def _webp_ends(handle: BinaryIO, header: Header, size: int) -> bool:
    handle.seek(4)
    return 8 + int(struct.unpack("<I", take(handle, 4))[0]) <= size


def _bmp_ends(handle: BinaryIO, header: Header, size: int) -> bool:
    """Reckon where the rows end; the file's own number, which many writers leave wrong, tells for run lengths only."""
    handle.seek(0)
    data = take(handle, 30)
    told, at, core = (struct.unpack_from("<I", data, offset)[0] for offset in (2, 10, 14))
    (bits,) = struct.unpack_from("<H", data, 24 if core == 12 else 28)
    packing = 0 if core == 12 else struct.unpack("<I", take(handle, 4))[0]
    if packing in (0, 3, 6):  # plain rows of whole 32-bit words, with colour masks or without
        told = at + (header.width * bits + 31) // 32 * 4 * header.height
    return bool(told <= size)


def _tiff_ends(handle: BinaryIO, header: Header, size: int) -> bool:
    return tiff.ends_within(handle, size)


_ENDS: dict[str, Callable[[BinaryIO, Header, int], bool]] = {
    "jpeg": _jpeg_ends,
    "png": _png_ends,
    "webp": _webp_ends,
    "bmp": _bmp_ends,
    "tiff": _tiff_ends,
}

_FORMATS: tuple[tuple[bytes, Callable[[BinaryIO], Header]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    *((head, _tiff) for head in _TIFF_HEADS),
    (b"RIFF", _webp),
    (b"BM", _bmp),
)
