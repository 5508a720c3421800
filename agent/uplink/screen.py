"""The uplink's own look at a result before it leaves the box: nothing that the worker should have masked passes."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from agent.config import PrivacyConfig
from agent.mask import Masker

Point = tuple[float, float]

_OURS = ("source", "bundle", "reason", "schema")
"""Fields that settings and the program fill, not pages."""
_HASH = re.compile(r"[0-9a-f]{64}(?::[0-9a-f]{16})?")
"""The key of a page: digest of its picture, and a claim's random name."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    quad: tuple[Point, Point, Point, Point]
    score: float = 0.0
    box_score: float = 0.0


class _Page(msgspec.Struct, frozen=True):
    """What `Masker.page` needs of a page; the real one loads numpy."""

    image: str = ""
    lines: tuple[_Line, ...] = ()
    error: str | None = None


class Screen:
    """Finds numbers in results that are not masked."""

    def __init__(self, config: PrivacyConfig) -> None:
        """Make a screen for the configured numbers."""
        self._masker = Masker(config)
        self._fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._page = msgspec.json.Decoder(_Page)

    def why_not(self, result: bytes) -> str:
        """Return why a result may not be sent, in one word: "privacy" or "invalid"; empty when it may."""
        try:
            fields = self._fields.decode(result)
            leaks = self._page_leaks(result, fields) or any(
                self._leaks(name) or self._leaks_in(value) for name, value in fields.items() if name not in _OURS
            )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "invalid"
        return "privacy" if leaks else ""

    def _page_leaks(self, result: bytes, fields: dict[str, msgspec.Raw]) -> bool:
        """Tell whether the worker's masker would mask more of the page, also over line breaks; take its fields away.

        A page of another form keeps its fields, to be looked at text by text.
        """
        mask: Any = self._masker.page
        try:
            page = self._page.decode(result)
        except msgspec.ValidationError:
            return False
        for name in _Page.__struct_fields__:
            fields.pop(name, None)
        return bool(mask(page) != page)

    def _leaks_in(self, value: msgspec.Raw) -> bool:
        return any(map(self._leaks, _texts(msgspec.json.decode(value))))

    def _leaks(self, text: str) -> bool:
        return not _HASH.fullmatch(text) and self._masker.clean(text) != text


def _texts(value: Any) -> list[str]:
    """Return all text in a JSON value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for part in value.values() for text in _texts(part))]
    return [text for part in value for text in _texts(part)] if isinstance(value, list) else []
