"""What makes a file the same as one that was there before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent.bundle import sha256_of_open
from agent.documents import pdf
from agent.errors import FrameError, InputError
from agent.header import parse_header

PART_BYTES = 1 << 20


def digest_of(handle: BinaryIO, progress: Callable[[], None] = lambda: None) -> str:
    """Return the identity of an open file's content, its sha256; `progress` is called after each MB.

    A large file that is refused for its first bytes, such as a film that lies there by mistake, is not read as a whole:
    from a slow share that takes longer than the watchdog waits. The sha256 is of its size, its first and its last MB.

    Raises:
        OSError: the file system fails.
    """
    size = handle.seek(0, os.SEEK_END)
    if size <= 2 * PART_BYTES or _may_be_read(handle):
        return sha256_of_open(handle, progress)
    digest = hashlib.sha256(b"%d bytes\n" % size)
    for at in (0, size - PART_BYTES):
        handle.seek(at)
        digest.update(handle.read(PART_BYTES))
    return digest.hexdigest()


def _may_be_read(handle: BinaryIO) -> bool:
    if pdf.is_pdf(handle):
        return True
    try:
        parse_header(handle, Path())
    except (FrameError, InputError):
        return False
    return True
