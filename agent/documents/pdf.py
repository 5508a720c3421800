"""PDFs: how many pages they have, and one page at a time, taken out in a process of its own.

PDFium unpacks what a file tells it to, and files are made to harm it. A process with a limit for its memory and time,
one for each page, takes 40 ms and 13 MB, and whatever happens in it is the verdict on one page.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from agent.errors import FrameError
from agent.heap import plain_environment
from agent.memory import MB, Budget
from agent.page import Pixels

MAGIC = b"%PDF-"
MAGIC_WITHIN_BYTES = 1024  # mailers put lines before it, and readers look so far (ISO 32000-1, annex H, 3.4.1)

COUNT_S, PAGE_S = 5, 20  # seconds of processor time; of waiting, three times as much
PROCESS_BYTES = 20 * MB  # resident in the process: 13 before it has opened anything, then more of the library
MAPPED_BYTES = 28 * MB  # and what it has mapped then
COUNT_BYTES = 28 * MB  # for the structure of a document

_HERE = Path(__file__).parents[2]
_END = b"%%EOF"
_END_WITHIN_BYTES = 4096
_TAIL_BYTES = 1 << 20
_PADDING = b"\0\t\n\f\r "


class Taken(msgspec.Struct, frozen=True):
    """A page as it came out: pixels, or the JPEG that it is.

    Attributes:
        width: of the page in its own pixels, as it is shown.
        height: likewise.
        pixels: uint8 (rows, columns, 3) BGR, or (rows, columns) grey; read-only.
        jpeg: open file.
        turns: quarter turns clockwise that the JPEG is shown with.
    """

    width: int = 0
    height: int = 0
    pixels: Pixels | None = None
    jpeg: BinaryIO | None = None
    turns: int = 0


def is_pdf(handle: BinaryIO) -> bool:
    """Return whether an open file is a PDF by its content.

    Raises:
        OSError: the file system fails.
    """
    handle.seek(0)
    return MAGIC in handle.read(MAGIC_WITHIN_BYTES)


def is_complete(handle: BinaryIO) -> bool:
    """Return whether an open PDF has its end marker near its end; nothing else is looked at.

    Raises:
        OSError: the file system fails.
    """
    size = handle.seek(0, os.SEEK_END)
    handle.seek(max(0, size - _TAIL_BYTES))
    return _END in handle.read().rstrip(_PADDING)[-_END_WITHIN_BYTES:]


def count(handle: BinaryIO, path: Path, most: int) -> tuple[int, bool]:
    """Return how many pages a PDF has, and whether all its images' samples mean what they say.

    Args:
        handle: the file.
        path: its name, for messages.
        most: more pages are refused.

    Raises:
        FrameError: encrypted, too many pages or none, an XFA form, damaged, or made to harm.
    """
    order = {"source": handle.fileno(), "target": -1, "page": -1, "most": most}
    answer = _ask(order, path, COUNT_BYTES, COUNT_S)
    return answer["pages"], answer["plain"]


def take(handle: BinaryIO, path: Path, page: int, *, raw: bool, dpi: float, budget: Budget) -> Taken:
    """Take a page out of a PDF.

    Args:
        handle: the file.
        path: its name, for messages.
        page: number from 1.
        raw: whether a page that is one JPEG is given as that.
        dpi: resolution of pages that are no scans.
        budget: what this may take, and what the page may keep.

    Raises:
        FrameError: this page cannot be shown, or not within the limits.
    """
    with open(os.memfd_create("page", os.MFD_CLOEXEC), "w+b") as target:
        spare = budget.decode_bytes - PROCESS_BYTES
        order: dict[str, Any] = {"source": handle.fileno(), "target": target.fileno(), "page": page - 1}
        order |= {"raw": raw, "dpi": dpi, "frame": min(budget.frame_bytes, max(1, spare // 2))}
        answer = _ask(order, path, spare, PAGE_S)
        if "jpeg" in answer:
            return Taken(jpeg=os.fdopen(os.dup(target.fileno()), "rb"), turns=answer["turns"])
        shape = tuple(answer["shape"])
        memory = mmap.mmap(target.fileno(), int(np.prod(shape)), prot=mmap.PROT_READ)
    return Taken(answer["width"], answer["height"], np.frombuffer(memory, np.uint8).reshape(shape))


def _ask(order: dict[str, Any], path: Path, spare: int, seconds: int) -> dict[str, Any]:
    """Have a process carry out an order, within so many bytes beside its own and so many seconds."""
    order |= {"library": _library(), "memory": MAPPED_BYTES + max(0, spare), "seconds": seconds}
    descriptors = tuple(fd for fd in (order["source"], order["target"]) if fd >= 0)
    process = subprocess.Popen(
        [sys.executable, "-E", "-S", "-m", "agent.documents.press", json.dumps(order)],
        cwd=_HERE,
        env=plain_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
    )
    try:
        said, _ = process.communicate(timeout=3 * seconds)
    except subprocess.TimeoutExpired:
        said = b""
    finally:
        process.kill()
        process.communicate()
    if not said:
        raise _failure(process.returncode, path, spare, seconds)
    answer: dict[str, Any] = json.loads(said)
    if answer.get("reason") == "memory":
        raise _failure(-signal.SIGABRT, path, spare, seconds)
    if "reason" in answer:
        raise FrameError(answer["reason"], f"{path}: {answer['why']}")
    return answer


def _failure(status: int, path: Path, spare: int, seconds: int) -> FrameError:
    """Return the verdict on a page that ended the process."""
    if status in (-signal.SIGABRT, -signal.SIGTRAP):  # so PDFium ends when it gets no memory
        needs = f"this page needs more than the {max(0, spare) // MB} MB that are free for it"
        return FrameError("memory", f"{path}: {needs}: raise --memory-mb or memory.limit_mb")
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return FrameError("slow", f"{path}: this page takes more than {seconds} s to show")
    return FrameError("damaged", f"{path}: damaged: PDFium ended over it (status {status})")


@functools.cache
def _library() -> str:
    """Return the file of PDFium; the Python package that it comes in is not loaded."""
    found = importlib.util.find_spec("pypdfium2_raw")
    for place in (found.submodule_search_locations or []) if found else []:
        library = Path(place, "libpdfium.so")
        if library.exists():
            return str(library)
    raise FrameError("type", "PDFs need PDFium: pip install pypdfium2")
