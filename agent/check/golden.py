"""A page whose text is known, read by the configured models: they may load and still read nonsense.

The page is the program's own (`scripts/draw_golden.py`), so that any bundle can be tried, however old. What a bundle's
characters cannot spell is not asked of it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).with_name("golden.png")
LINES = ("Edge OCR reads this page", "0123456789", "样本页面文字识别")
GOOD, USABLE = 0.9, 0.6
"""Likeness of what was read to what is there: from which on it is as expected, and below which it is nonsense."""


def expected(characters: Iterable[str]) -> tuple[str, ...]:
    """Return the lines that models with these characters can spell, spaces aside."""
    known = set(characters)
    return tuple(line for line in LINES if set(_plain(line)) <= known)


def likeness(wanted: Iterable[str], read: Iterable[str]) -> float:
    """Return how much of the wanted lines was read, 0 to 1: the mean over them of the read line that is most alike."""
    found = [_plain(line) for line in read]
    best = [max((_ratio(_plain(line), other) for other in found), default=0.0) for line in wanted]
    return sum(best) / len(best) if best else 0.0


def _plain(text: str) -> str:
    return "".join(text.split())


def _ratio(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
