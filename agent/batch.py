"""Read files and folders one after another: results stream out, a bad file stops nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.errors import AgentError, ExitCode, FrameError, InputError
from agent.image import load_frame, write_overlay
from agent.page import PageResult
from agent.reader import Reader

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"))


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the files to read: files as given; of folders every picture file below, in order of name.

    Links to folders are not followed, so a folder that contains itself ends.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                found += [Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
        else:
            found.append(path)
    return found


def read_files(reader: Reader, files: Sequence[Path], overlay: Path | None) -> Iterator[tuple[PageResult, ExitCode]]:
    """Read pictures in turn.

    Args:
        reader: reads the frames.
        files: picture files.
        overlay: folder for pictures with boxes drawn in, or None.

    Yields:
        One page result each, with `error` and `reason` set where it failed, and its exit code.
    """
    taken: set[str] = set()
    for path in files:
        began = time.perf_counter()
        try:
            frame = load_frame(path, printable(path), reader.budget)
            decoded = time.perf_counter() - began
            page = reader.read(frame)
            if overlay is not None:
                write_overlay(frame, page.lines, overlay / _free_name(path, taken))
        except (FrameError, InputError) as error:
            yield _failed(path, error, time.perf_counter() - began), error.code
            continue
        except MemoryError:
            failure = FrameError("memory", f"{path}: out of memory; raise --memory-mb or free memory")
            yield _failed(path, failure, time.perf_counter() - began), ExitCode.TEMPORARY
            continue
        del frame  # not beside the next one
        yield page.with_decoding(decoded), ExitCode.OK


def printable(path: Path) -> str:
    """Return a path as valid Unicode; bytes that are no UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _failed(path: Path, error: AgentError, seconds: float) -> PageResult:
    reason = error.reason if isinstance(error, FrameError) else "input"
    message = str(error).encode("utf-8", "backslashreplace").decode().replace("\n", "\\n")
    return PageResult(printable(path), 0, 0, seconds=round(seconds, 4), error=message, reason=reason)


def _free_name(path: Path, taken: set[str]) -> str:
    """Return an overlay's file name, another for each file of the same name."""
    stem, number = printable(Path(path.name)).replace("\n", "_"), 1
    name = f"{stem}.boxes.jpg"
    while name in taken:
        number += 1
        name = f"{stem}.{number}.boxes.jpg"
    taken.add(name)
    return name
