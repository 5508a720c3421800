"""Read files and folders one after another: results stream out, a bad file stops nothing."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from agent.documents.document import Document, load_page, look_into
from agent.errors import AgentError, ExitCode, FrameError, InputError, readable
from agent.header import printable
from agent.image import load_frame
from agent.overlay import write_overlay
from agent.page import Frame, PageResult
from agent.reader import Reader
from agent.source_config import DocumentsConfig

_log = logging.getLogger(__name__)

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".pdf"))


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the files to read: files as given; of folders every picture file below, in order of name.

    Links to folders are not followed, so a folder that contains itself ends. A folder that cannot be listed stands in
    the result for its files, so that reading it fails and is seen.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir it raises nothing for names that no file can have
            found += _pictures_below(path)
        else:
            found.append(path)
    return found


def _pictures_below(path: Path) -> Iterator[Path]:
    shut: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=lambda error: shut.append(Path(os.fsdecode(error.filename)))):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)
    yield from shut


def read_files(reader: Reader, files: Sequence[Path], overlay: Path | None) -> Iterator[tuple[PageResult, ExitCode]]:
    """Read pictures and documents in turn.

    Args:
        reader: reads the frames.
        files: of pictures and documents.
        overlay: folder for pictures with boxes drawn in, or None.

    Yields:
        One page result for each picture and each page of a document, with `error` and `reason` set where it failed,
        and its exit code.
    """
    taken: set[str] = set()
    for path in files:
        name = "" if overlay is None else _free_name(path, taken)
        document, refusal = _look_into(path)
        for number in range(1, document.pages + 1) if document else (0,):
            drawing = None if overlay is None else overlay / f"{name}{f'.p{number}' if number else ''}.boxes.jpg"
            page, code = _read_one(reader, _Page(path, document, number, refusal), drawing)
            yield msgspec.structs.replace(page, page=number, pages=document.pages if document else 0), code


class _Page(msgspec.Struct, frozen=True):
    """A picture, or a page of a document.

    Attributes:
        path: the file.
        document: it is of; None for a picture.
        number: from 1; 0 for a picture.
        refusal: why nothing of the file can be read.
    """

    path: Path
    document: Document | None
    number: int
    refusal: FrameError | InputError | None

    def load(self, reader: Reader) -> Frame:
        if self.refusal is not None:
            raise self.refusal
        name = printable(self.path)
        if self.document is None:
            return load_frame(self.path, name, reader.budget)
        return load_page(self.path, name, self.document, self.number, DocumentsConfig(), reader.budget)


def _look_into(path: Path) -> tuple[Document | None, FrameError | InputError | None]:
    try:
        return look_into(path, DocumentsConfig()), None
    except (FrameError, InputError) as refusal:
        return None, refusal


def _read_one(reader: Reader, given: _Page, drawing: Path | None) -> tuple[PageResult, ExitCode]:
    """Read one page; whatever goes wrong with it is its result, so that the others are read."""
    began, path = time.perf_counter(), given.path
    try:
        frame = given.load(reader)
        decoded = time.perf_counter() - began
        page = reader.read(frame).with_decoding(decoded)
        if drawing is not None:
            write_overlay(frame, page.lines, drawing)
        return page, ExitCode.OK
    except (FrameError, InputError) as error:
        failure: FrameError | InputError = error
    except AgentError:
        raise  # of the program as a whole: no other page would fare better
    except MemoryError:
        failure = FrameError("memory", f"{path}: out of memory; raise --memory-mb or free memory")
        failure.code = ExitCode.TEMPORARY
    except Exception as error:
        _log.exception("a defect of this program; the page is left out")
        failure = FrameError("defect", f"{path}: left out, a defect of this program ({type(error).__name__}: {error})")
        failure.code = ExitCode.SOFTWARE
    return _failed(path, failure, time.perf_counter() - began), failure.code


def _failed(path: Path, error: FrameError | InputError, seconds: float) -> PageResult:
    message = readable(str(error)).replace("\n", "\\n")
    return PageResult(printable(path), 0, 0, seconds=round(seconds, 4), error=message, reason=error.reason)


def _free_name(path: Path, taken: set[str]) -> str:
    """Return what the names of a file's overlays begin with, another for each file of the same name."""
    stem, number = printable(Path(path.name)).replace("\n", "_"), 1
    name = stem
    while name in taken:
        number += 1
        name = f"{stem}.{number}"
    taken.add(name)
    return name
