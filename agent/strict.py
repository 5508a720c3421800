"""Reads a TOML file into a frozen struct, or says what is wrong: file, line, key, value and what is accepted."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from agent.errors import ConfigError

MAX_BYTES = 1 << 20

T = TypeVar("T", bound=msgspec.Struct)
At = tuple[str | int, ...]
"""Names from the outermost table inwards, and numbers of elements in lists."""

_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_mb": "MB", "_days": "days"}
_NAME = r"(?:[\w-]+|\"[^\"]*\"|'[^']*')"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*\]")
_SETTING = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")


class Document:
    """A settings file, and on which of its lines things stand."""

    def __init__(self, path: Path, raw: bytes | None = None) -> None:
        """Read a file.

        Args:
            path: the file.
            raw: what is in it, where it was read already.

        Raises:
            ConfigError: it is missing, unreadable, too large or not TOML.
        """
        self.path = path
        raw = _content(path) if raw is None else raw
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes: these are no settings")
        try:
            self.lines = raw.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text; save it as UTF-8") from error
        try:
            self.table: dict[str, Any] = msgspec.toml.decode("\n".join(self.lines))
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(self._no_toml(str(error))) from None  # a cause would show the text, secrets and all

    def wrong(self, at: At, why: str, value: object = None) -> ConfigError:
        """Return an error about a setting; `value` is shown when it is short and may hold no secret."""
        name = ".".join(part for part in at if isinstance(part, str)) or "the file"
        return ConfigError(f"{self.place(at)}: {name}{_shown(value)}: {why}")

    def place(self, at: At) -> str:
        """Return the file and the line where a setting stands, or where the table begins that it belongs in."""
        best: tuple[int, int] = (0, 0)
        for number, here in self._places():
            same = min(len(at), len(here))  # an unknown [[table]] is asked for without its number
            if at[:same] == here[:same] and same > best[0]:
                best = (same, number)
        return f"{self.path}:{best[1]}" if best[1] else str(self.path)

    def _places(self) -> Iterator[tuple[int, At]]:
        """Yield what each line begins: a table or a setting."""
        section: At = ()
        elements: dict[At, int] = {}
        for number, line in enumerate(self.lines, 1):
            if header := _HEADER.match(line):
                names = _names(header[2])
                if header[1] == "[[":
                    elements[names] = elements.get(names, -1) + 1
                section = ()
                for depth, name in enumerate(names, 1):
                    element = elements.get(names[:depth])
                    section += (name,) if element is None else (name, element)
                yield number, section
            elif setting := _SETTING.match(line):
                yield number, section + _names(setting[1])

    def _no_toml(self, said: str) -> str:
        """Return what the parser said, with its line where a line number is looked for, and the key there."""
        found = re.search(r"\s*\(at line (\d+), column \d+\)", said)
        if not found:
            return f"{self.path}: not valid TOML: {said}"
        number = int(found[1])
        key = _SETTING.match(self.lines[number - 1])
        what = f"{key[1]}: " if key else ""
        return f"{self.path}:{number}: {what}not valid TOML: {said.replace(found[0], '')}"


def check(document: Document, kind: type[T]) -> T:
    """Return the settings in a file that was read.

    Raises:
        ConfigError: a key is unknown or missing, or a value is not accepted.
    """
    _check(document, _type_of(kind), document.table, ())
    try:
        return msgspec.convert(document.table, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{document.path}: {error}") from None  # what `_check` knows too little about


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


@functools.cache
def _type_of(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def accepted(kind: inspect.Type, name: str = "") -> str:
    """Return in words what a setting may be; the ending of its name tells the unit."""
    if isinstance(kind, inspect.Metadata):
        said = (kind.extra_json_schema or {}).get("description")
        return said if isinstance(said, str) else accepted(kind.type, name)
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        word = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        unit = next((f" ({unit})" for ending, unit in _UNITS.items() if name.endswith(ending)), "")
        return f"{word} from {kind.ge:g} to {kind.le:.15g}{unit}"
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, inspect.UnionType):
        return accepted(_wanted(kind, None), name)
    if isinstance(kind, inspect.StructType):
        return f"a table, [{name}]"
    if isinstance(kind, inspect.VarTupleType):
        return f"a list of tables, [[{name}]]" if _is_table(kind.item_type) else f"a list: [{_example(kind)}]"
    return "true or false" if isinstance(kind, inspect.BoolType) else "text in quotes"


def _check(document: Document, kind: inspect.Type, value: Any, at: At) -> None:
    """Refuse a value that is not of its kind, or holds one that is not."""
    _check_tag(document, kind, value, at)
    kind = _wanted(kind, value)
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        _check_table(document, kind, value, at)
    elif isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for number, element in enumerate(value):
            _check(document, kind.item_type, element, (*at, number))
    elif not _fits(kind, value):
        name = next((part for part in reversed(at) if isinstance(part, str)), "")
        quoted = ", without quotes" if isinstance(value, str) and _is_number(kind) else ""
        raise document.wrong(at, f"must be {accepted(kind, name)}{quoted}", None if _is_secret(kind) else value)


def _check_tag(document: Document, kind: inspect.Type, value: Any, at: At) -> None:
    """Refuse a table of no known kind; one that does not say its kind is of the first."""
    kinds = [part for part in _parts(kind) if isinstance(part, inspect.StructType) and part.tag_field]
    if not kinds or not isinstance(value, dict):
        return
    field, tags = str(kinds[0].tag_field), [str(part.tag) for part in kinds]
    if len(kinds) > 1:
        value.setdefault(field, tags[0])
    if value.get(field, tags[0]) not in tags:
        known = ", ".join(f'"{tag}"' for tag in sorted(tags))
        raise document.wrong((*at, field), f"must be {'one of ' if tags[1:] else ''}{known}", value[field])


def _check_table(document: Document, kind: inspect.StructType, table: dict[str, Any], at: At) -> None:
    fields = {field.encode_name: field for field in kind.fields}
    known = [*fields, *([kind.tag_field] if kind.tag_field else [])]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key.lower().replace("-", "_"), known, 1, 0.5)
            meant = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
            raise document.wrong((*at, key), f"no such setting; {meant}")
    for name, field in fields.items():
        if name in table:
            _check(document, field.type, table[name], (*at, name))
        elif field.required:
            raise document.wrong((*at, name), f"is missing; must be {accepted(field.type, name)}")


def _wanted(kind: inspect.Type, value: object) -> inspect.Type:
    """Return the part of a union that a value is meant for: the one with its tag, or the first that is not None."""
    if not isinstance(kind, inspect.UnionType):
        return kind
    parts = _parts(kind)
    tagged = [part for part in parts if isinstance(part, inspect.StructType) and isinstance(value, dict)]
    return next((part for part in tagged if value.get(part.tag_field) == part.tag), parts[0])  # type: ignore[attr-defined]


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    """Return what a union is made of, without None."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return [part for part in kinds if not isinstance(part, inspect.NoneType)]


def _fits(kind: inspect.Type, value: object) -> bool:
    """Tell whether a value that is no table and no list is of its kind."""
    if isinstance(kind, inspect.Metadata):
        return _fits(kind.type, value)
    if isinstance(kind, inspect.BoolType):
        return isinstance(value, bool)
    if isinstance(kind, (inspect.IntType, inspect.FloatType)):
        number = int if isinstance(kind, inspect.IntType) else (int, float)
        if not isinstance(value, number) or isinstance(value, bool):
            return False
        return (kind.ge is None or kind.ge <= value) and (kind.le is None or value <= kind.le)  # nan does neither
    if isinstance(kind, inspect.LiteralType):
        return isinstance(value, str) and value in kind.values
    if not isinstance(kind, inspect.StrType) or not isinstance(value, str):
        return False
    long_enough = (kind.min_length or 0) <= len(value) <= (kind.max_length or MAX_BYTES)
    return long_enough and (kind.pattern is None or re.search(kind.pattern, value) is not None)


def _is_number(kind: inspect.Type) -> bool:
    return isinstance(kind, (inspect.IntType, inspect.FloatType))


def _is_table(kind: inspect.Type) -> bool:
    return isinstance(_wanted(kind, None), inspect.StructType)


def _is_secret(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.Metadata) and bool((kind.extra or {}).get("secret"))


def _example(kind: inspect.VarTupleType) -> str:
    item = kind.item_type
    return ", ".join(f'"{value}"' for value in item.values) if isinstance(item, inspect.LiteralType) else "..."


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _shown(value: object) -> str:
    """Return a value for a message. What holds an "@" may be an address with a password in it."""
    if isinstance(value, bool):
        return f" = {str(value).lower()}"
    if value is None or isinstance(value, (dict, list)) or "@" in str(value):
        return ""
    shown = repr(value) if isinstance(value, (str, int, float)) else str(value)  # days and times
    return f" = {shown}" if len(shown) <= 80 else f" = {shown[:80]}..."
