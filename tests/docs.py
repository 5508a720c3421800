"""The project's documents, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.command import ROOT

DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("INSTALL", "OPERATIONS", "PROTOCOL", "SECURITY")),
)
_FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)


class Block(NamedTuple):
    """What stands between fences: the words behind the first, and the text."""

    said: str
    text: str


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> list[Block]:
    return [Block(said.strip(), text) for said, text in _FENCE.findall(text_of(document))]


def shell(document: str, more: str = "") -> str:
    """Return the commands of a document, in order: those of blocks marked `sh`, or `sh` and another word."""
    wanted = f"sh {more}".strip()
    return "".join(text for said, text in blocks(document) if said == wanted)


def inline(document: str, start: str) -> list[str]:
    """Return the commands that stand within sentences and begin so, one line each."""
    found = re.findall(r"`([^`\n]+)`", _FENCE.sub("", text_of(document)))
    return [f"{text}\n" for text in found if text.startswith(start)]


def links(document: str) -> list[Path]:
    """Return the files that a document's links lead to."""
    here = (ROOT / document).parent
    found = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(document))
    return [here / target for target in found]
