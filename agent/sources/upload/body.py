"""The file in a request: written to the disk piece by piece, never whole in memory."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import multipart

from agent.sources.upload.connection import Connection, Request
from agent.sources.upload.problems import Problem, not_now

ENDINGS = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/tiff": ".tif",
    "image/webp": ".webp",
    "image/bmp": ".bmp",
    "application/pdf": ".pdf",
}
"""Kinds of body that are read, and what their files are called."""
FORM = "multipart/form-data"

_FORM_BYTES = 64 << 10  # what boundaries, headers and other fields may take beside the file
_MAX_PARTS = 16
_MAX_NAME = 100
_UNFIT = re.compile(r"[^\w .()+-]")


class Arrived(msgspec.Struct, frozen=True):
    """A file that has come whole and is on the disk.

    Attributes:
        path: where it lies.
        name: what people know it by.
        digest: sha256 of its content.
    """

    path: Path
    name: str
    digest: str


class Announced(msgspec.Struct, frozen=True):
    """What a header says of the body.

    Attributes:
        kind: media type.
        boundary: between the parts of a form; "" where the body is the file.
        max_bytes: of the file.
    """

    kind: str
    boundary: str
    max_bytes: int


def headers_of(request: Request) -> dict[str, str]:
    """Return a request's headers by their names in small letters; of one given twice the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers}


def announced(headers: dict[str, str], max_bytes: int) -> Announced:
    """Return what a header says of the body; nothing of the body is read.

    Raises:
        Problem: it is of no kind that is read, too large, or its length is not told.
    """
    kind, options = multipart.parse_options_header(headers.get("content-type", ""))
    kind = kind.lower()
    if kind not in ENDINGS and kind != FORM:
        known = ", ".join((*ENDINGS, FORM))
        raise Problem(415, "kind", f"Content-Type must be one of {known}", {"Accept": known})
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "encoding", "the body must not be compressed", {"Accept-Encoding": "identity"})
    boundary = options.get("boundary", "")
    if kind != FORM:
        boundary = ""
    elif not 1 <= len(boundary) <= 200:
        raise Problem(400, "form", "multipart/form-data needs a boundary")
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise Problem(411, "length", "Content-Length is missing")
    most = max_bytes + (_FORM_BYTES if kind == FORM else 0)
    if int(headers.get("content-length", "0")) > most:
        raise _too_large(max_bytes)
    return Announced(kind, boundary, max_bytes)


def _too_large(max_bytes: int) -> Problem:
    return Problem(413, "large", f"a file may have {max_bytes} bytes at most")


def receive(connection: Connection, expected: Announced, folder: Path) -> Arrived:
    """Write the file in a body into a folder, synchronised with the disk.

    Raises:
        Problem: it does not come whole, is too large, or there is no file in the form.
        OSError: the connection ended.
    """
    fresh = _Fresh(folder)
    try:
        name = ""
        for piece in _of_form(connection, expected) if expected.boundary else connection.body():
            if isinstance(piece, str):
                name = piece
                continue
            fresh.write(piece)
            if fresh.size > expected.max_bytes:
                raise _too_large(expected.max_bytes)
        fresh.finish()
    except BaseException:
        fresh.give_up()
        raise
    return Arrived(fresh.path, _fit(name) or f"upload{ENDINGS.get(expected.kind, '')}", fresh.digest.hexdigest())


class _Fresh:
    """A file that is being written; what the disk does not take is a problem of now."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"{secrets.token_hex(8)}.part"
        self.size = 0
        self.digest = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with _on_disk():
            self._descriptor = os.open(self.path, flags, 0o600)

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        self.digest.update(piece)
        with _on_disk():
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def finish(self) -> None:
        if not self.size:
            raise Problem(400, "empty", "there is no file in the request")
        with _on_disk():
            os.fsync(self._descriptor)
        os.close(self._descriptor)

    def give_up(self) -> None:
        with suppress(OSError):
            os.close(self._descriptor)
        with suppress(OSError):
            self.path.unlink()


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_now("disk", f"the file cannot be written: {error.strerror}", 10) from error


def _of_form(connection: Connection, expected: Announced) -> Iterator[bytes | str]:
    """Yield the name and then the content of the one file in a form; other fields are passed over."""
    parser = multipart.PushMultipartParser(expected.boundary, max_segment_count=_MAX_PARTS)
    file: multipart.MultipartSegment | None = None
    inside, others, total = False, 0, 0
    try:
        for piece in connection.body():
            total += len(piece)
            if total > expected.max_bytes + _FORM_BYTES:  # what stands before and behind the parts is no event
                raise _too_large(expected.max_bytes)
            for event in parser.parse(piece):
                if isinstance(event, multipart.MultipartSegment):
                    inside = event.filename is not None
                    if inside and file is not None:
                        raise Problem(400, "form", "there is more than one file in the form")
                    if inside:
                        file = event
                        yield event.filename or ""
                elif event is None:
                    inside = False
                elif inside:
                    yield event
                else:
                    others += len(event)
                    if others > _FORM_BYTES:
                        raise Problem(413, "large", "the fields of the form beside the file are too large")
        parser.close()
    except multipart.MultipartError as error:
        raise Problem(400, "form", f"not multipart/form-data: {error}") from error
    if file is None:
        raise Problem(400, "form", "there is no file in the form")


def _fit(name: str) -> str:
    """Return a name that is fit for a file: no directory, nothing hidden, not too long."""
    last = _UNFIT.sub("_", name.replace("\\", "/").rpartition("/")[2]).strip(" .")
    stem, ending = os.path.splitext(last)
    return stem[: _MAX_NAME - 10] + ending[:10]
