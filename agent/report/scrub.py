"""Takes out of lines whatever could be a page's text, a name or a number of somebody.

Nothing of that should be in them. The filter does not rely on it: of words only those stay that the program itself
says, or that stand in its settings; names of files are words too. Long numbers go, and so does what is in quotes.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

GONE = "…"
_WORD = re.compile(r"[^\W\d_]+")
_QUOTED = re.compile(r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)")
# A123456789, A123456(7), C0FFEE4711; not a picture's size, 1920x1080
_MIXED = re.compile(
    r"(?<!\w)(?!\d{2,5}x\d{2,5}\b)(?:(?=\d*[^\W\d])(?=(?:[^\W\d]*\d){6})|(?=(?:\d*[^\W\d_]){2})(?=(?:[^\W\d]*\d){4}))"
    r"\w+(?:\(\w\))?"
)
_NUMBER = re.compile(r"\d(?:[ \-./]?\d){7,}|\d(?:[ \-]?\d){6,}")
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# A whole IPv4 address or network, and a version: 5.15.0-1053.57. No part of a longer number.
_DOTTED = re.compile(
    rf"(?<![\w.\-/])(?<!\d )(?:{_OCTET}(?:\.{_OCTET}){{3}}(?:/\d\d?)?"
    r"|\d{1,2}\.\d{1,2}\.\d{1,3}(?:-\d{1,4}(?:\.\d{1,3})?)?)(?!\w|[.\-/ ]\d)"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?")
# Of an address what is behind the host: a camera takes its password there, and that may be a short number.
_ADDRESS = re.compile(r"(\w://)(?:[^\s/?#]*@)?([^\s/?#]+)([/?#]\S+)?")
_KEY = re.compile(r"\bkey [0-9a-f]{12}\b")  # the beginning of a page's digest, by which rows are found
_PLACE = re.compile(r'(\s*)File "([^"]*)", line (\d+)(, in (\w+|<\w+>))?')
_FAULT = re.compile(r"^\s*([\w.]*(?:Error|Exception|Interrupt|Exit|Damaged)): .*")
_MANY = re.compile(rf"{GONE}(?:[\s\-_.,/:]*{GONE})+")
_SYSTEM = (  # what systemd says of units, and names that every machine has
    "starting started stopping stopped reloading main control process exited code status failed with result scheduled"
    " restart job counter is at consumed cpu time deactivated successfully watchdog timeout limit sigterm sigkill"
    " sigabrt sigsegv killing killed dumped unit entered state memory peak of the a by an on no in to edge ocr service"
    " socket target oom killer found left over after mem swap requested too quickly dump abrt segv kill exit systemd"
    " ext xfs btrfs f fs squashfs vfat tmpfs overlay fuse nfs cifs dev mmcblk nvme sda usb proc sys run var lib etc srv"
    " mnt media home tmp opt usr video errno"
)


class Scrub:
    """A filter that knows which words may stand."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        """Make a filter.

        Args:
            allowed: texts whose words may stand, beside those of the program: names in settings, hosts, paths.
        """
        said = (*_own_words(), _SYSTEM, *map(os.strerror, range(1, 134)), *allowed)
        self._known = {word.casefold() for text in said for word in _WORD.findall(text)}

    def line(self, text: str) -> str:
        """Return a line without what could be private; the same line twice gives the same."""
        if found := _PLACE.match(text):
            return f'{found[1]}File "{_module(found[2])}", line {found[3]}{found[4] or ""}'
        if found := _FAULT.match(text):
            return f"{found[1]}: {GONE}"
        text = _ADDRESS.sub(lambda hit: f"{hit[1]}{hit[2]}{f'/{GONE}' if hit[3] else ''}", text)
        kept: list[str] = []
        for pattern in (_TIME, _KEY, _DOTTED):
            text = pattern.sub(lambda hit: _put(kept, hit[0]), text)
        text = _QUOTED.sub(GONE, text)
        text = _MIXED.sub(GONE, text)
        text = _NUMBER.sub(GONE, text)
        text = _WORD.sub(lambda hit: hit[0] if hit[0].casefold() in self._known else GONE, text)
        text = _MANY.sub(GONE, text)
        return re.sub("\0(\\d+)\0", lambda hit: kept[int(hit[1])], text)

    def everything(self, value: Any) -> Any:
        """Return lists and tables of builtins with every text in them filtered; names in tables stay."""
        if isinstance(value, str):
            return "\n".join(self.line(line) for line in value.splitlines())
        if isinstance(value, dict):
            return {key: self.everything(item) for key, item in value.items()}
        return [self.everything(item) for item in value] if isinstance(value, (list, tuple)) else value


def _module(path: str) -> str:
    """Return a file of Python without the way to it, which may lead through somebody's home."""
    inside = path.rpartition("/agent/")
    return f"agent/{inside[2]}" if inside[1] else path.rpartition("/")[2]


def _put(kept: list[str], text: str) -> str:
    kept.append(text)
    return f"\0{len(kept) - 1}\0"


def _own_words() -> Iterator[str]:
    """Yield the texts in the program's source that it may say: no comments, no docstrings."""
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue  # then its words are taken out, too
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
                yield node.value


# ------------------------------------------------------------------------------------------------ logs

_RECORD = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) +(\w+): (.*)")


def log_lines(lines: Iterable[str], clean: Callable[[str], str]) -> Iterator[str]:
    """Yield the lines of a log above DEBUG, filtered; what has no level is left out, and counted at the end."""
    keeping, unknown = False, 0
    for line in lines:
        if found := _RECORD.fullmatch(line):
            keeping = found[2] != "DEBUG"
            if keeping:
                yield f"{found[1]} {found[2]} {found[3]}: {clean(found[4])}"
        elif line.startswith("\t"):  # of the record before
            if keeping:
                yield f"\t{clean(line[1:])}"
        else:
            keeping, unknown = False, unknown + 1
    if unknown:
        yield f"({unknown} lines without a level are left out)"
