"""What follows a JPEG's header: whether its end is there, and how often a decoder goes over its pixels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agent.errors import FrameError

MAX_SCANS = 100  # libtiff's limit for JPEGs too; programs write ten
MAX_SCANNED_PX = 4_000_000_000  # ten scans of the largest picture
MAX_SEGMENTS = 4096  # behind the first scan's header; each scan brings a table or two

_PIECE_BYTES = 1 << 20
_END = b"\xff\xd9"
_SCAN = 0xDA
# In a scan's data a zero follows each FF, or it is a restart marker (ITU T.81, B.1.1.2 and B.2.1).
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


def ends(handle: BinaryIO, data_at: int) -> bool:
    """Return whether an open JPEG has its end marker.

    It is looked for near the file's end first, then from the first scan on: a phone puts a film behind it.

    Args:
        handle: the file, anywhere in it.
        data_at: where the first scan's data begin, in bytes.

    Raises:
        OSError: the file system fails.
    """
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(data_at, size - _PIECE_BYTES))
    if _END in handle.read():
        return True
    handle.seek(data_at)
    last = b""
    while handle.tell() < size - _PIECE_BYTES and (piece := handle.read(_PIECE_BYTES)):
        if _END in last + piece:
            return True
        last = piece[-1:]
    return False


def check_scans(handle: BinaryIO, data_at: int, size_px: int, path: Path) -> None:
    """Refuse a JPEG of more scans than a picture needs: a scan of 40 bytes has the decoder go over all pixels.

    Args:
        handle: the file, anywhere in it.
        data_at: where the first scan's data begin, in bytes.
        size_px: width by height.
        path: its name, for messages.

    Raises:
        FrameError: it has.
        OSError: the file system fails.
    """
    most = min(MAX_SCANS, MAX_SCANNED_PX // size_px)
    scans = 1
    for number, marker in enumerate(_segments(handle, data_at)):
        scans += marker == _SCAN
        if scans > most or number == MAX_SEGMENTS:
            told = f"{most} scans" if scans > most else f"{MAX_SEGMENTS} segments"
            raise FrameError("huge", f"{path}: a JPEG of more than {told}, which no program needs for a picture")


def _segments(handle: BinaryIO, at: int) -> Iterator[int]:
    """Yield the markers of the segments from a scan's data to the end marker, stepping over what they hold."""
    start, piece = at, b""
    while True:
        found = _SEGMENT.search(piece, at - start)
        if found is None or len(piece) - found.start() < 4:
            at = start + (found.start() if found else max(at - start, len(piece) - 1))  # the last byte may be an FF
            handle.seek(at)
            start, piece = at, handle.read(_PIECE_BYTES)
            if len(piece) < 4:
                return
            continue
        marker = piece[found.start() + 1]
        if marker == _END[1]:
            return
        yield marker
        at = start + found.end() + max(2, int.from_bytes(piece[found.end() : found.end() + 2], "big"))
