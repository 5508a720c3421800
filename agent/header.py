"""What a picture file is and how large, from its first bytes: nothing is decoded and nothing large is allocated.

Written here because the decision needs what size libraries do not tell: progressive JPEG, sample depth, alpha. (The
package imagesize 2 also opens URLs, which has no place in a process without network.)
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from agent.errors import FrameError, InputError

MAX_SIDE = 65_500  # the largest side of a JPEG; longer ones in other formats are refused too
MAX_PIXELS = 400_000_000  # A3 at 1200 dpi: 279 Mpx
MAX_FILE_BYTES = 2 << 30

_KNOWN = "JPEG, PNG, TIFF, WebP, BMP and GIF can be read"


class Header(msgspec.Struct, frozen=True):
    """A picture file's own description of itself.

    Attributes:
        kind: "jpeg", "png", "tiff", "webp", "bmp" or "gif".
        width: stored pixels per row, before any EXIF rotation.
        height: stored rows.
        channels: samples per pixel, 1..4.
        bits: bits per sample.
        alpha: whether pixels carry transparency.
        progressive: JPEG whose coefficients must all be held in memory.
        data_at: offset in bytes behind which the picture's data ends with its end marker (JPEG).
    """

    kind: str
    width: int
    height: int
    channels: int = 3
    bits: int = 8
    alpha: bool = False
    progressive: bool = False
    data_at: int = 0


def read_header(path: Path) -> Header:
    """Return the header of a picture file.

    Raises:
        InputError: missing, not a regular file, or not readable.
        FrameError: empty, of an unknown type, truncated, or of an impossible size.
    """
    with open_regular(path) as handle:
        head = handle.read(32)
        if not head:
            raise FrameError("empty", f"{path}: the file is empty")
        parse = _parser(head)
        if parse is None:
            raise FrameError("type", f"{path}: not a picture of a known type; {_KNOWN}")
        try:
            handle.seek(0)
            header = parse(handle)
        except (struct.error, ValueError, KeyError, OSError) as error:
            raise FrameError("truncated", f"{path}: truncated or damaged before its size is told") from error
    _check_size(path, header)
    return header


def _parser(head: bytes) -> Callable[[BinaryIO], Header] | None:
    for magic, parse in _FORMATS:
        if head.startswith(magic) and (magic != b"RIFF" or head[8:12] == b"WEBP"):
            return parse
    return None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a FIFO or a device is refused without being opened for data.

    Raises:
        InputError: missing, of another kind, or not readable.
    """
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _check_size(path: Path, header: Header) -> None:
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise FrameError("zero", f"{path}: the header says {width}x{height} pixels")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise FrameError(
            "huge", f"{path}: {width}x{height} pixels; the limit is {MAX_SIDE} a side and {MAX_PIXELS // 10**6} Mpx"
        )


def _take(handle: BinaryIO, count: int) -> bytes:
    data = handle.read(count)
    if len(data) != count:
        raise ValueError("end of file")
    return data


def _png(handle: BinaryIO) -> Header:
    data = _take(handle, 33)
    if data[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour)
    if channels is None:
        raise ValueError("colour type")
    return Header("png", width, height, channels, bits, alpha=colour in (3, 4, 6))


def _jpeg(handle: BinaryIO) -> Header:
    """Walk the segments up to the frame header (ITU T.81, B.2)."""
    _take(handle, 2)
    while True:
        marker = _next_marker(handle)
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            continue
        if marker in (0xD9, 0xDA):
            raise ValueError("no frame header before the scan")
        (length,) = struct.unpack(">H", _take(handle, 2))
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", _take(handle, 6))
            progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            return Header("jpeg", width, height, channels, bits, progressive=progressive, data_at=handle.tell())
        handle.seek(max(0, length - 2), os.SEEK_CUR)


def _next_marker(handle: BinaryIO) -> int:
    if _take(handle, 1) != b"\xff":
        raise ValueError("no marker")
    marker = 0xFF
    while marker == 0xFF:
        (marker,) = _take(handle, 1)
    return marker


def _bmp(handle: BinaryIO) -> Header:
    data = _take(handle, 30)
    (size,) = struct.unpack_from("<I", data, 14)
    if size == 12:
        width, height, bits = *struct.unpack_from("<HH", data, 18), struct.unpack_from("<H", data, 24)[0]
    else:
        width, height, bits = *struct.unpack_from("<ii", data, 18), struct.unpack_from("<H", data, 28)[0]
    return Header("bmp", width, abs(height), 4 if bits == 32 else 3)


def _gif(handle: BinaryIO) -> Header:
    width, height = struct.unpack_from("<HH", _take(handle, 10), 6)
    return Header("gif", width, height, 4, alpha=True)


def _webp(handle: BinaryIO) -> Header:
    data = _take(handle, 30)
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
        return Header("webp", width, height, 4, alpha=bool(data[20] & 0x10))
    if chunk == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        return Header("webp", 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), 4, alpha=bool(packed >> 28 & 1))
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("webp", width & 0x3FFF, height & 0x3FFF)
    raise ValueError("unknown chunk")


_TIFF_SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _tiff(handle: BinaryIO) -> Header:
    """Read width, height, depth and samples of the first directory (TIFF 6.0, section 2)."""
    order = "<" if _take(handle, 2) == b"II" else ">"
    handle.seek(4)
    (offset,) = struct.unpack(order + "I", _take(handle, 4))
    handle.seek(offset)
    (count,) = struct.unpack(order + "H", _take(handle, 2))
    tags: dict[int, int] = {}
    for _ in range(min(count, 512)):
        entry = _take(handle, 12)
        tag, kind, items = struct.unpack_from(order + "HHI", entry)
        if kind in _TIFF_SIZES and kind != 16 and items * struct.calcsize(_TIFF_SIZES[kind]) <= 4:
            (tags[tag],) = struct.unpack_from(order + _TIFF_SIZES[kind], entry, 8)
    channels = tags.get(277, 1)
    bits = tags.get(258, 8 if channels > 1 else 1)  # a list of depths, one a sample, does not fit the entry: 8 or 16
    return Header("tiff", tags[256], tags[257], min(4, channels), bits, alpha=channels in (2, 4))


_FORMATS: tuple[tuple[bytes, Callable[[BinaryIO], Header]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"II*\x00", _tiff),
    (b"MM\x00*", _tiff),
    (b"RIFF", _webp),
    (b"BM", _bmp),
    (b"GIF8", _gif),
)
