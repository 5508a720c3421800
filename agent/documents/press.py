"""The process that takes one page out of a PDF, started by `agent.documents.pdf`.

It opens files that were made to harm, with a large library. So it has limits for its memory and its time, lives for one
page, and ends with the process that asked. It imports what it needs and no more, to start in 30 ms.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from agent.documents import pdfium as api
from agent.documents.search import Refusal, check_size, search

MAX_SIDE_PT = 7200.0  # 2.5 m; a page that is one picture is measured by its pixels
MAX_OBJECTS = 100_000
LOOKED_INTO = 2000  # objects inside of others
LEAST_SIDE_PX = 1280  # the detector looks at so much; smaller a page is drawn only when it is
HELD_BYTES = 60_000_000  # PDFium keeps unpacked images up to this size
REST_BYTES = 6 << 20
WHITE = 255
JUNK = 50  # lines and areas over a scan that are no drawing of its own
MAX_DEPTH = 8  # of objects in objects

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class Order(NamedTuple):
    """What is asked for.

    Attributes:
        library: file of PDFium.
        source: descriptor of the document.
        target: descriptor of a memory file for the page.
        memory: bytes that may be mapped.
        seconds: of processor time.
        page: number from 0; -1 asks how many there are.
        most: pages of a document, at most.
        dpi: resolution of pages that are no scans.
        frame: bytes of the page, at most.
        raw: whether a JPEG may be handed over as it is.
    """

    library: str
    source: int
    target: int
    memory: int
    seconds: int
    page: int
    most: int = 0
    dpi: float = 200.0
    frame: int = 0
    raw: bool = False


def main() -> None:
    """Carry out the order in the first argument; the answer is one line of JSON."""
    order = Order(**json.loads(sys.argv[1]))
    _limit(order)
    try:
        answer = _count(order) if order.page < 0 else _take(order)
    except Refusal as refusal:
        answer = {"reason": refusal.reason, "why": str(refusal)}
    except MemoryError:
        answer = {"reason": "memory", "why": ""}
    os.write(1, json.dumps(answer).encode())
    os._exit(0)  # without PDFium's own end, which takes time and may fail


def _limit(order: Order) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _, given = resource.getrlimit(resource.RLIMIT_AS)  # the worker's own, where it has one
    memory = order.memory if given == resource.RLIM_INFINITY else min(given, order.memory)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (order.seconds, order.seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _count(order: Order) -> dict[str, Any]:
    """Return how many pages there are, and whether samples of all JPEGs mean what they say."""
    portfolio, plain = search(order.source)
    pdfium = api.load(order.library)
    document = _open(pdfium, order)
    pages = pdfium.FPDF_GetPageCount(document)
    attached = pdfium.FPDFDoc_GetAttachmentCount(document)
    if pages < 1 or (portfolio and attached > 0):
        what = "only files attached to it" if attached > 0 else "no pages"
        raise Refusal("attachments" if attached > 0 else "pages", f"has {what}")
    if pdfium.FPDF_GetFormType(document) == api.XFA:
        raise Refusal("xfa", "an XFA form, which only its maker's program can show; print it to a PDF")
    if pages > order.most:
        raise Refusal("pages", f"has {pages} pages; the limit is {order.most}: raise documents.max_pages")
    return {"pages": pages, "plain": plain}


def _open(pdfium: Any, order: Order) -> int:
    document = pdfium.FPDF_LoadDocument(f"/proc/self/fd/{order.source}".encode(), None)
    if document:
        return int(document)
    if pdfium.FPDF_GetLastError() in (api.PASSWORD, api.SECURITY):
        raise Refusal("encrypted", "encrypted; save it without a password")
    raise Refusal("damaged", "damaged: no PDF can be made out of it")


# ------------------------------------------------------------------------------------------------ a page


def _take(order: Order) -> dict[str, Any]:
    """Put a page into the memory file: the JPEG that it is, or its pixels."""
    pdfium = api.load(order.library)
    document = _open(pdfium, order)
    page = pdfium.FPDF_LoadPage(document, order.page)
    if not page:
        raise Refusal("damaged", "damaged: this page cannot be found, or nothing can be made out of it")
    look = _Look(pdfium, page)
    if order.raw and look.is_one_jpeg():
        return look.jpeg(order)
    return _draw(pdfium, page, look, order)


class _Look:
    """What is on a page."""

    def __init__(self, pdfium: Any, page: int) -> None:
        self._pdfium, self._page = pdfium, page
        box = api.Rectangle()
        pdfium.FPDF_GetPageBoundingBox(page, ctypes.byref(box))
        self.left, self.bottom = min(box.left, box.right), min(box.bottom, box.top)
        self.wide, self.high = abs(box.right - box.left), abs(box.top - box.bottom)
        if not 0 < self.wide * self.high < math.inf:
            raise Refusal("damaged", "damaged: this page has no size")
        self.turns: int = pdfium.FPDFPage_GetRotation(page)
        self.pictures: list[api.Picture] = []
        self.texts = self.drawings = 0
        self._left = LOOKED_INTO
        count = pdfium.FPDFPage_CountObjects(page)
        if count > MAX_OBJECTS:
            raise Refusal("huge", f"this page has {count} parts; the limit is {MAX_OBJECTS}")
        for number in range(count):
            thing = pdfium.FPDFPage_GetObject(page, number)
            self._see(thing, thing, 0)
        self.notes = self._notes()

    def _see(self, thing: int, outer: int, depth: int) -> None:
        kind = self._pdfium.FPDFPageObj_GetType(thing)
        if kind == api.IMAGE:
            picture = api.Picture(self._pdfium, self._page, thing, outer)
            check_size(picture.width, picture.height)
            if min(picture.width, picture.height) > 0 and math.isfinite(picture.wide * picture.high):
                self.pictures.append(picture)
        elif kind == api.TEXT:
            self.texts += self._pdfium.FPDFTextObj_GetTextRenderMode(thing) != api.INVISIBLE
        elif kind == api.FORM and depth < MAX_DEPTH:
            for number in range(min(self._left, max(0, self._pdfium.FPDFFormObj_CountObjects(thing)))):
                self._left -= 1
                self._see(self._pdfium.FPDFFormObj_GetObject(thing, number), outer, depth + 1)
        else:
            self.drawings += 1

    def _notes(self) -> int:
        """Return how many annotations can be seen."""
        count = min(LOOKED_INTO, self._pdfium.FPDFPage_GetAnnotCount(self._page))
        notes = (self._pdfium.FPDFPage_GetAnnot(self._page, number) for number in range(count))
        return sum(self._pdfium.FPDFAnnot_GetSubtype(note) not in (api.LINK, api.POPUP) for note in notes if note)

    def is_one_jpeg(self) -> bool:
        """Return whether the page is a JPEG and nothing else that is seen."""
        if len(self.pictures) != 1 or self.texts or self.drawings or self.notes:
            return False
        picture = self.pictures[0]
        return self._is_filled_by(picture) and not picture.nested and picture.is_upright() and picture.is_jpeg()

    def _is_filled_by(self, picture: api.Picture) -> bool:
        near = (picture.left - self.left, picture.bottom - self.bottom)
        far = (self.left + self.wide - picture.right, self.bottom + self.high - picture.top)
        most: float = max(map(abs, (*near, *far)))
        return most <= 0.01 * float(max(self.wide, self.high))

    def _share_of(self, picture: api.Picture) -> float:
        """Return which part of the page a picture covers."""
        wide = min(picture.right, self.left + self.wide) - max(picture.left, self.left)
        high = min(picture.top, self.bottom + self.high) - max(picture.bottom, self.bottom)
        share: float = max(0.0, wide) * max(0.0, high) / (self.wide * self.high)
        return share

    def jpeg(self, order: Order) -> dict[str, Any]:
        """Hand the page's JPEG over, with the quarter turns clockwise that it is shown with."""
        size = self.pictures[0].raw_bytes()
        with _mapped(order.target, size) as memory:
            self.pictures[0].copy_raw(ctypes.byref(ctypes.c_char.from_buffer(memory)), size)
            return {"jpeg": size, "turns": self.turns}

    def need_bytes(self, across: int, down: int, channels: int) -> int:
        """Return what PDFium takes to draw the page at a size in pixels; measured, `test_documents.py`.

        It keeps images that have less than 60 MB twice when they are unpacked, takes larger ones row by row, and
        scales each to the width it is drawn at first.
        """
        drawn = channels * across * down
        kept = sum(p.unpacked_bytes for p in self.pictures if p.unpacked_bytes <= HELD_BYTES)
        most = max((p.unpacked_bytes for p in self.pictures if p.unpacked_bytes <= HELD_BYTES), default=0)
        beside = max((p.decoder_bytes for p in self.pictures), default=0)
        sides = ((across, p.height, p.width, down, p) for p in self.pictures)
        scaled = max((p.channels * max(a * h, w * d if p.is_turned() else 0) for a, h, w, d, p in sides), default=0)
        turned = drawn if any(p.is_turned() for p in self.pictures) or self.turns % 2 else 0
        return drawn + kept + most + beside + scaled + turned

    def size_px(self, dpi: float) -> tuple[int, int, bool]:
        """Return the page's own size in pixels, as it is shown, and whether grey is enough for it.

        A scan is as large as its picture: where that is the whole page, to the pixel. Pages with text or drawings have
        at least the resolution asked for.
        """
        scans = [picture for picture in self.pictures if self._share_of(picture) > 0.005]
        is_scan = sum(map(self._share_of, scans)) > 0.8
        plain = is_scan and not self.texts and not self.notes and self.drawings <= JUNK
        grey = plain and all(p.bits in (1, 8) and p.is_grey() for p in self.pictures)
        if plain and len(scans) == 1 and self._is_filled_by(scans[0]):
            across, down = scans[0].width, scans[0].height
            across, down = (down, across) if scans[0].is_turned() else (across, down)
        else:
            finest = max((p.finest() for p in scans), default=0.0) if is_scan else 0.0
            if not is_scan and max(self.wide, self.high) > MAX_SIDE_PT:
                size = f"{self.wide / 72:.0f}x{self.high / 72:.0f} inches"
                raise Refusal("huge", f"a page of {size}; the limit is {MAX_SIDE_PT / 72:.0f} inches a side")
            scale = finest if plain else max(finest, dpi / 72)
            across, down = max(1, round(self.wide * scale)), max(1, round(self.high * scale))
        check_size(across, down)
        return (down, across, grey) if self.turns % 2 else (across, down, grey)


def _draw(pdfium: Any, page: int, look: _Look, order: Order) -> dict[str, Any]:
    """Draw a page, in grey where colour would not fit, and smaller where grey would not either."""
    width, height, grey = look.size_px(order.dpi)
    spare = _spare_bytes()
    colour_fits = 3 * width * height <= order.frame and look.need_bytes(width, height, 3) <= spare
    channels = 1 if grey or not colour_fits else 3
    across, down = _fitting(look, width, height, channels, order.frame, spare)
    with _mapped(order.target, channels * across * down) as memory:
        shape = (down, across) if channels == 1 else (down, across, channels)
        _paint(pdfium, page, memory, across, down, channels)
        if look.pictures and min(memory) == WHITE:
            _check_blank(pdfium, page, memory, across, down)
            memory[:] = bytes([WHITE]) * len(memory)
    return {"shape": shape, "width": width, "height": height}


def _fitting(look: _Look, width: int, height: int, channels: int, frame: int, spare: int) -> tuple[int, int]:
    """Return the largest size that a page can be drawn at, no larger than its own.

    PDFium draws nothing and says nothing where an image gets no memory, so what it needs is reckoned beforehand.
    """
    shrink = math.sqrt(min(1.0, frame / (channels * width * height)))
    least = min(shrink, LEAST_SIDE_PX / max(width, height))
    while True:
        across, down = max(1, int(width * shrink)), max(1, int(height * shrink))
        need = look.need_bytes(across, down, channels)
        if need <= spare:
            return across, down
        if shrink <= least:
            break
        shrink = max(least, 0.9 * shrink)
    more = f"raise --memory-mb or memory.limit_mb by {(need - spare >> 20) + 1}"
    raise Refusal("memory", f"this page needs {need >> 20} MB, {max(0, spare) >> 20} MB are free for it: {more}")


def _paint(pdfium: Any, page: int, memory: mmap.mmap, across: int, down: int, channels: int) -> None:
    """Draw a page on white, rows without gaps from the memory's beginning on."""
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    form = api.GREY if channels == 1 else api.BGR
    bitmap = pdfium.FPDFBitmap_CreateEx(across, down, form, start, channels * across)
    if not bitmap:
        raise MemoryError
    pdfium.FPDFBitmap_FillRect(bitmap, 0, 0, across, down, 0xFFFFFFFF)
    pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, across, down, 0, api.DRAW_ANNOTATIONS)


def _check_blank(pdfium: Any, page: int, memory: mmap.mmap, across: int, down: int) -> None:
    """Draw a page with images that came out white once more, small, where less can fail."""
    shrink = min(1.0, 128 / max(across, down))
    across, down = max(1, int(across * shrink)), max(1, int(down * shrink))
    _paint(pdfium, page, memory, across, down, 1)
    if min(memory[: across * down]) < WHITE:
        raise MemoryError


def _spare_bytes() -> int:
    """Return how much may still be mapped, less what is needed for all the rest."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * mmap.PAGESIZE
    return resource.getrlimit(resource.RLIMIT_AS)[0] - mapped - REST_BYTES


@contextmanager
def _mapped(target: int, size: int) -> Iterator[mmap.mmap]:
    """Give a memory file of a size; it is unmapped with the process, as PDFium still looks at it."""
    os.ftruncate(target, max(1, size))
    try:
        yield mmap.mmap(target, max(1, size))
    except OSError:
        raise MemoryError from None


if __name__ == "__main__":
    main()
