"""Orders to scan, from `edge-ocr scan` to the source: small files in a folder that both know.

    ID.order    waits
    ID.begun    is carried out; after a restart it is not, as nobody could tell how much of it was done
    ID.answer   what came of it; the one who ordered deletes it

Not the outbox's requests: those are answered over MQTT, and an order matters to the one who stands at the scanner.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import msgspec

FORGET_S = 86_400.0
"""Answers that nobody took are deleted after so long."""

_ORDER, _BEGUN, _ANSWER = ".order", ".begun", ".answer"
_MAX_BYTES = 4096


class Order(msgspec.Struct, frozen=True):
    """What is to be scanned.

    Attributes:
        pages: at most so many; 0: one from the glass, and from a feeder all.
        id: its name, which sorts by when it was given.
    """

    pages: int = 0
    id: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What came of an order: pages that were scanned, and why there are not more, "" when nothing is wrong."""

    pages: int
    fault: str = ""


class Orders:
    """The folder of orders."""

    def __init__(self, folder: Path) -> None:
        """Make it; the folder is looked at when something is wanted."""
        self._folder = folder

    def begin(self) -> None:
        """Make the folder, and answer what a source before this one has begun.

        Raises:
            OSError: it cannot be made.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for name in self._names(_BEGUN):
            self.answer(Order(id=name), Answer(0, "the worker was started anew meanwhile; see what it read"))

    def _names(self, ending: str) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(name.removesuffix(ending) for name in os.listdir(self._folder) if name.endswith(ending))
        return []

    def next(self) -> Order | None:
        """Return the oldest order that waits, begun from now on, or None."""
        for name in self._names(_ORDER):
            path = self._folder / (name + _ORDER)
            try:
                order = msgspec.json.decode(path.read_bytes()[:_MAX_BYTES], type=Order)
                path.rename(path.with_suffix(_BEGUN))
            except FileNotFoundError:
                continue  # withdrawn
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
                self.answer(Order(id=name), Answer(0, "the order cannot be read; order again"))
                continue
            return Order(order.pages, name)
        return None

    def answer(self, order: Order, answer: Answer) -> None:
        """Say what came of an order."""
        with suppress(OSError):  # a full disk is told of elsewhere
            self._write(order.id + _ANSWER, answer)
        for ending in (_BEGUN, _ORDER):
            with suppress(OSError):
                (self._folder / (order.id + ending)).unlink()

    def _write(self, name: str, value: msgspec.Struct) -> None:
        fresh = self._folder / f".{name}"
        fresh.write_bytes(msgspec.json.encode(value))
        fresh.chmod(0o644)  # root may order, and another user carries it out; the folder is closed to others
        fresh.rename(self._folder / name)

    # -------------------------------------------------------------------------------------------- who orders

    def give(self, pages: int) -> str:
        """Order pages; returns the order's name.

        Raises:
            OSError: this user may not, or no worker has made the folder yet.
        """
        name = f"{time.time_ns():020}-{secrets.token_hex(4)}"
        self._write(name + _ORDER, Order(pages))
        return name

    def answer_to(self, name: str) -> Answer | None:
        """Return what came of an order, once, or None.

        Raises:
            OSError: this user may not see it.
        """
        path = self._folder / (name + _ANSWER)
        try:
            answer = msgspec.json.decode(path.read_bytes(), type=Answer)
        except FileNotFoundError:
            return None
        path.unlink()
        return answer

    def withdraw(self, name: str) -> bool:
        """Take an order back; false when it was begun."""
        try:
            (self._folder / (name + _ORDER)).unlink()
        except FileNotFoundError:
            return False
        return True

    def tidy(self, now_s: float) -> None:
        """Delete answers that nobody took; `now_s` is seconds since 1970."""
        for name in self._names(_ANSWER):
            path = self._folder / (name + _ANSWER)
            with suppress(OSError):
                if abs(now_s - path.stat().st_mtime) > FORGET_S:
                    path.unlink()


def folder_of(state_dir: Path, name: str) -> Path:
    """Return the folder that a source's pages wait in."""
    return state_dir / "sources" / name


def orders_of(state_dir: Path, name: str) -> Orders:
    """Return the orders of a source."""
    return Orders(folder_of(state_dir, name) / ".orders")
