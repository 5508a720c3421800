"""A file of several pages: what it is, how many pages it has, and one page at a time as a frame."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from agent import header
from agent.documents import pdf
from agent.errors import FrameError, InputError
from agent.header import Header, open_regular, parse_header
from agent.image import decode, upright_size
from agent.memory import Budget
from agent.page import Frame
from agent.source_config import DocumentsConfig

_TURNED = (1, 6, 3, 8)
"""EXIF's orientations for quarter turns clockwise."""


class Document(msgspec.Struct, frozen=True):
    """A document.

    Attributes:
        kind: of the file.
        pages: how many it has; a TIFF of one page is a picture and no document.
        plain: the samples of all its images mean what they say (PDF).
        parts: number of each page's directory and where it begins (TIFF).
    """

    kind: Literal["pdf", "tiff"]
    pages: int
    plain: bool = False
    parts: tuple[tuple[int, int], ...] = ()


def is_complete(handle: BinaryIO, path: Path) -> bool:
    """Return whether an open file, a picture or a document, has its end.

    Raises:
        FrameError: it is neither.
        InputError: the file system fails.
        OSError: likewise.
    """
    if pdf.is_pdf(handle):
        return pdf.is_complete(handle)
    return header.is_complete(handle, parse_header(handle, path))


def look_into(path: Path, settings: DocumentsConfig) -> Document | None:
    """Return the document in a file; None for a picture, and for what is neither.

    Raises:
        InputError: missing, not a regular file, or not readable.
        FrameError: none of its pages can be read: encrypted, truncated, too many pages, made to harm.
    """
    with open_regular(path) as handle:
        try:
            if pdf.is_pdf(handle):
                if not pdf.is_complete(handle):
                    raise FrameError("truncated", f"{path}: truncated, its end is missing")
                pages, plain = pdf.count(handle, path, settings.max_pages)
                return Document("pdf", pages, plain)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        parts = header.tiff_parts(handle, path, settings.max_pages)
    if len(parts) > settings.max_pages:
        limit = f"the limit is {settings.max_pages}: raise documents.max_pages"
        raise FrameError("pages", f"{path}: has {len(parts)} pages or more; {limit}")
    return Document("tiff", len(parts), parts=tuple(parts)) if len(parts) > 1 else None


def load_page(
    path: Path, source: str, document: Document, page: int, settings: DocumentsConfig, budget: Budget
) -> Frame:
    """Return a page of a document, upright and within the budget; its key is left empty.

    A page of a PDF that is a scan has the scan's own pixels, any other the resolution of the settings, less where that
    is more than the budget.

    Args:
        path: the file.
        source: the name to report.
        document: of `look_into`.
        page: number from 1.
        settings: those of documents.
        budget: what this may take, and what the page may keep.

    Raises:
        InputError: missing, or not readable.
        FrameError: this page cannot be read, or not within the budget.
    """
    with open_regular(path) as handle:
        try:
            taken_at = os.fstat(handle.fileno()).st_mtime
            if document.kind == "tiff":
                part = header.parse_tiff_part(handle, path, document.parts[page - 1])
                frame = _decoded(handle, part, path, budget)
            else:
                frame = _pdf_page(handle, path, document, page, settings, budget)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
    return msgspec.structs.replace(frame, source=source, taken_at=taken_at)


def _pdf_page(
    handle: BinaryIO, path: Path, document: Document, page: int, settings: DocumentsConfig, budget: Budget
) -> Frame:
    taken = pdf.take(handle, path, page, raw=document.plain, dpi=settings.pdf_dpi, budget=budget)
    if taken.jpeg is not None:
        with taken.jpeg as jpeg:
            try:
                stored = parse_header(jpeg, path)
                turned = msgspec.structs.replace(stored, orientation=_TURNED[taken.turns])
                if stored.kind == "jpeg" and stored.channels in (1, 3):
                    return _decoded(jpeg, turned, path, budget)
            except FrameError as error:
                if error.reason in ("memory", "huge"):
                    raise
        # What the decoder does not take, PDFium may: it fills in what is missing.
        taken = pdf.take(handle, path, page, raw=False, dpi=settings.pdf_dpi, budget=budget)
    assert taken.pixels is not None
    return Frame("", "", taken.pixels, taken.width, taken.height)


def _decoded(handle: BinaryIO, stored: Header, path: Path, budget: Budget) -> Frame:
    return Frame("", "", decode(handle, stored, path, budget), *upright_size(stored))
