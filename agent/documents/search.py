"""What is looked for in a PDF before PDFium opens it: streams that grow beyond measure, and what it does not tell."""

from __future__ import annotations

import os
import re
import zlib

MAX_SIDE_PX = 65_500
MAX_PIXELS = 400_000_000
MAX_LAYERS = 8
LONG_BYTES = 16 << 10  # packed, that can become BOMB_BYTES
BOMB_BYTES = 16 << 20
BOMB_RATIO = 200

_PIECE = 1 << 20
_BEFORE = 4096  # of a stream, where its dictionary is
_STREAM = re.compile(rb"(?<!end)stream\r?\n")
_SIZE = re.compile(rb"/(Width|Height)\s+(\d{1,12})\b(?!\s+\d+\s+R)")
_BENT = re.compile(rb"/(Decode|SMask|Mask|ImageMask)(?![A-Za-z])")


class Refusal(Exception):
    """The document or page cannot be read: one stable word, and why."""

    def __init__(self, reason: str, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def search(source: int) -> tuple[bool, bool]:
    """Look through a file for what PDFium must not meet, and what it does not tell.

    Returns:
        Whether it is a portfolio of files; whether no image has masks or its own meaning of samples.

    Raises:
        Refusal: a stream grows beyond all measure.
    """
    portfolio, plain, at = False, True, 0
    overlap = b""
    while piece := os.pread(source, _PIECE, at):
        window = overlap + piece
        start = at - len(overlap)
        portfolio = portfolio or b"/Collection" in window
        plain = plain and not _BENT.search(window)
        for found in _STREAM.finditer(window):
            if start + found.end() > at:  # else it was seen with the piece before
                _weigh(source, start + found.end(), window[max(0, found.start() - _BEFORE) : found.start()])
        at += len(piece)
        overlap = window[-_BEFORE:]
    return portfolio, plain


def _weigh(source: int, at: int, before: bytes) -> None:
    """Refuse a stream that is a bomb. PDFium would unpack a gigabyte of it; its images it takes row by row."""
    about = before[before.rfind(b" obj") + 1 :]
    size = {name: int(number) for name, number in _SIZE.findall(about)}
    width, height = size.get(b"Width", 0), size.get(b"Height", 0)
    check_size(width, height)
    if b"/EmbeddedFile" not in about and _is_bomb(source, at, is_image=width * height > 0):
        raise Refusal("huge", f"a stream in it unpacks to more than {BOMB_BYTES >> 20} MB")


def check_size(width: int, height: int) -> None:
    """Refuse an image or page by its size in pixels."""
    if max(width, height) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        limit = f"{MAX_SIDE_PX} a side and {MAX_PIXELS // 10**6} Mpx"
        raise Refusal("huge", f"an image of {width}x{height} pixels; the limit is {limit}")


def _starts_packed(data: bytes) -> bool:
    """Return whether data begin as zlib's do (RFC 1950, 2.2)."""
    return len(data) > 2 and data[0] & 0x0F == 8 and data[0] >> 4 <= 7 and (data[0] << 8 | data[1]) % 31 == 0


class _Layer:
    """One packing of a stream; what comes out of it may be packed again."""

    def __init__(self, depth: int = 0) -> None:
        self._zlib = zlib.decompressobj()
        self._depth = depth
        self.bytes = 0
        self.inner: _Layer | None = None

    @property
    def most(self) -> int:
        """Bytes of the largest layer."""
        return max(self.bytes, self.inner.most if self.inner else 0)

    @property
    def ended(self) -> bool:
        """Whether the stream ends here."""
        return self._zlib.eof

    def feed(self, data: bytes, limit: int) -> None:
        """Unpack, until that is more than a limit.

        Raises:
            zlib.error: it is not packed.
        """
        while data and not self._zlib.eof and self.most < limit:
            out = self._zlib.decompress(data, 1 << 16)
            data = self._zlib.unconsumed_tail
            if not self.bytes and self._depth < MAX_LAYERS and _starts_packed(out):
                self.inner = _Layer(self._depth + 1)
            self.bytes += len(out)
            if self.inner is not None:
                try:
                    self.inner.feed(out, limit)
                except zlib.error:
                    self.inner = None


def _is_bomb(source: int, at: int, *, is_image: bool) -> bool:
    """Return whether a stream unpacks to `BOMB_BYTES`, and grows all the way there as nothing else does."""
    data, taken, layer = os.pread(source, LONG_BYTES, at), 0, _Layer()
    if not _starts_packed(data):
        return False
    try:
        layer.feed(data[:512], 1 << 16)
        is_nested = layer.inner is not None and layer.inner.bytes > 64
        if is_image or (not is_nested and b"endstream" in data):  # too short to become large
            return is_image and is_nested
        layer = _Layer()
        while data and not layer.ended and layer.most >= BOMB_RATIO * taken:
            taken += len(data)
            layer.feed(data, BOMB_BYTES)
            if layer.most >= BOMB_BYTES:
                return True
            data = os.pread(source, LONG_BYTES, at + taken)
    except zlib.error:
        pass
    return False
