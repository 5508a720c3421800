"""What a folder offers: a claimed picture, or the pages of a claimed document one after the other."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import msgspec

from agent.documents.document import Document, is_complete, load_page
from agent.errors import FrameError, InputError
from agent.header import open_regular
from agent.image import load_frame
from agent.memory import Budget
from agent.page import Frame, page_key
from agent.source_config import DocumentsConfig
from agent.sources import CHANGED
from agent.sources.folder.identity import digest_of
from agent.sources.folder.inbox import Sight, Waiting, sight

NOTED = 20  # pages that a note names, at most


class FolderCapture(msgspec.Struct, frozen=True):
    """A claimed picture, or a page of a claimed document.

    Attributes:
        key: `digest_of` the file, with its claim's name behind where the same content is to be read again, and the
            number of the page in a document; of a file without readable content the sha256 of its claim's name.
        source: the source's name.
        name: the file's, valid Unicode.
        path: where it lies.
        kind: what it is instead of a file, or "".
        seen: how the file was seen when it was offered.
        page: its number in its document; 0 for a picture.
        pages: pages of its document; 0 for a picture.
        keep: its result goes into the outbox.
        document: it is of.
        settings: how documents are read.
        refusal: why nothing of it can be read.
    """

    key: str
    source: str
    name: str
    path: Path
    kind: str = ""
    seen: Sight = (0, 0, 0)
    page: int = 0
    pages: int = 0
    keep: bool = True
    document: Document | None = None
    settings: DocumentsConfig = DocumentsConfig()
    refusal: FrameError | InputError | None = None

    def load(self, budget: Budget) -> Frame:
        """Return its pixels.

        Raises:
            FrameError: it cannot be read; with the reason "changed" it was written to since it was claimed.
            InputError: it is gone or may not be opened.
        """
        if self.kind:
            raise FrameError("special", f"{self.name}: {self.kind} and not a file")
        try:
            if self.document is None and self.refusal is None:
                return self._picture(budget)
            return self._page(budget)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from error

    def _picture(self, budget: Budget) -> Frame:
        try:
            with open_regular(self.path) as handle:
                if not is_complete(handle, self.path):
                    raise FrameError("truncated", f"{self.path}: truncated, its end is missing")
            frame = load_frame(self.path, self.source, budget)
        except FrameError as error:
            if error.reason != "huge":  # a verdict on a file that is still written to is none
                with open_regular(self.path) as handle:
                    self._check_same(self.key.startswith(digest_of(handle)))
            raise
        self._check_same(self.key.startswith(frame.key))
        return msgspec.structs.replace(frame, key=self.key)

    def _page(self, budget: Budget) -> Frame:
        """Return a page of a document, whose content is not looked at as a whole for each page."""
        try:
            if self.refusal is not None or self.document is None:
                raise self.refusal or FrameError("damaged", f"{self.path}: damaged")
            frame = load_page(self.path, self.source, self.document, self.page, self.settings, budget)
        except FrameError:
            self._check_same(sight(os.lstat(self.path)) == self.seen)
            raise
        self._check_same(sight(os.lstat(self.path)) == self.seen)
        return msgspec.structs.replace(frame, key=self.key)

    def _check_same(self, same: bool) -> None:
        if not same:
            raise FrameError(CHANGED, f"{self.path}: was written to while it was read")


class Pages:
    """A claimed document: which of its pages are still to be offered, and what became of the others."""

    def __init__(self, waiting: Waiting, first: FolderCapture) -> None:
        """Begin with all pages.

        Args:
            waiting: the claimed file.
            first: what its pages have in common; its key is the document's.
        """
        self.waiting = waiting
        self.first = first
        self._to_offer = deque(range(1, first.pages + 1))
        self._open = set(self._to_offer)
        self._refused: dict[int, str] = {}

    @property
    def has_more(self) -> bool:
        """Whether pages are to be offered."""
        return bool(self._to_offer)

    def next(self) -> FolderCapture:
        """Return the next page."""
        page = self._to_offer.popleft()
        return msgspec.structs.replace(self.first, key=page_key(self.first.key, page), page=page)

    def has(self, capture: FolderCapture) -> bool:
        """Return whether a page is of this document, and not of what lay there before."""
        return capture.key == page_key(self.first.key, capture.page)

    def retry(self, capture: FolderCapture) -> None:
        """Have a page offered again, before the others."""
        self._to_offer.appendleft(capture.page)

    def judge(self, capture: FolderCapture, error: FrameError | InputError | None) -> bool:
        """Take a page's verdict; returns whether all pages have theirs."""
        self._open.discard(capture.page)
        if error is not None:
            self._refused[capture.page] = reason_of(error)
        return not self._open

    def verdict(self) -> FrameError | None:
        """Return why the document as a whole is refused: which of its pages were, and why."""
        if not self._refused:
            return None
        told = [f"page {page}: {why}" for page, why in sorted(self._refused.items())]
        more = [f"and {len(told) - NOTED} more"] if len(told) > NOTED else []
        count = f"{len(told)} of {self.first.pages} pages were not read"
        return FrameError("pages", f"{self.first.path}: {count}: {'; '.join([*told[:NOTED], *more])}")


def reason_of(error: FrameError | InputError) -> str:
    """Return why a page is refused: one word, and what to know about it."""
    return f"{error.reason}: {error}"
