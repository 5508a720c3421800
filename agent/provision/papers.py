"""Settings that stand in several files: a box's own before those that all boxes have; and tables as text."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
from msgspec import Struct

from agent import strict
from agent.errors import ConfigError


class Part(Struct, frozen=True):
    """One file.

    Attributes:
        document: what is in it.
        name: where it lies below the medium.
    """

    document: strict.Document
    name: str

    def beside(self, name: str) -> str:
        """Return where a file of that name lies that is in the same folder."""
        above, slash, _ = self.name.rpartition("/")
        return f"{above}{slash}{name}"


class Merged(strict.Document):
    """Several files as one, the first before the others; tells of each setting in which file it stands."""

    def __init__(self, parts: tuple[Part, ...]) -> None:
        """Join files, the one that goes before the others first.

        Raises:
            ConfigError: one is made so that it cannot be looked at.
        """
        self.path = parts[0].document.path
        self.parts = parts
        self.table: dict[str, Any] = {}
        try:
            for part in reversed(parts):
                self.table = _merge(self.table, part.document.table)
        except RecursionError:  # a.a.a.a = 1, a hundred thousand times
            raise ConfigError(f"{self.path}: nested too deeply: these are no settings") from None

    def part(self, at: strict.At) -> Part:
        """Return the file that a setting stands in, or the first."""
        return max(self.parts, key=lambda part: _depth(part.document.table, at))

    def place(self, at: strict.At) -> str:
        """Return the file and the line where a setting stands, or would."""
        return self.part(at).document.place(at)


def render(table: dict[str, Any], above: str = "") -> str:
    """Return a table as TOML, each setting on a line of its own."""
    plain = {key: value for key, value in table.items() if not _tables(value)}
    text = msgspec.toml.encode(plain).decode()
    for key, value in table.items():
        name = f"{above}.{key}" if above else key
        for one in _tables(value):
            text += f"\n{f'[[{name}]]' if isinstance(value, list) else f'[{name}]'}\n{render(one, name)}"
    return text


def _tables(value: object) -> list[dict[str, Any]]:
    """Return what is a table of its own in TOML: of a table itself, of a list of tables each."""
    if isinstance(value, dict):
        return [value]
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _merge(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return one table out of two: tables are joined, anything else is the own one's, lists too."""
    joined = {key: copy.deepcopy(value) for key, value in common.items()}
    for key, value in own.items():
        below = joined.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        joined[key] = _merge(below, value) if both and isinstance(below, dict) else copy.deepcopy(value)
    return joined


def _depth(table: object, at: strict.At) -> int:
    """Return how far a table leads to a setting."""
    for depth, name in enumerate(at):
        inside = isinstance(table, list) and isinstance(name, int) and name < len(table)
        if not inside and not (isinstance(table, dict) and name in table):
            return depth
        table = table[name]  # type: ignore[index]
    return len(at)
