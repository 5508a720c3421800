"""Writes agent/messages.json, the JSON schema of the protocol's messages: `python -m scripts.write_schema`."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from agent import protocol
from agent.page import PageResult

PLACE = Path(__file__).parent.parent / "agent" / "messages.json"
MESSAGES = (
    protocol.ResultMessage,
    protocol.Resync,
    protocol.Receipt,
    protocol.Status,
    protocol.Event,
    protocol.Command,
    protocol.Answer,
    protocol.CollectorState,
)


def schema() -> dict[str, Any]:
    """Return the schema of any message; `#/$defs/NAME` is that of one kind, PageResult that of `read --json`."""
    refs, parts = msgspec.json.schema_components((*MESSAGES, PageResult))
    parts["ResultMessage"]["properties"]["result"] = {"$ref": "#/$defs/PageResult"}  # kept as bytes in the program
    for part in parts.values():
        _tell(part)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of edge-ocr",
        "description": f'Version {protocol.SCHEMA}. README, "Protocol", tells which message goes where.',
        "anyOf": list(refs[: len(MESSAGES)]),
        "$defs": parts,
    }


def _tell(part: dict[str, Any]) -> None:
    """Move what a docstring says of attributes to the properties."""
    said, _, attributes = inspect.cleandoc(part.get("description", "")).partition("\n\nAttributes:\n")
    part["description"] = " ".join(said.split())
    for name, about in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        known = part["properties"][name]
        about = " ".join(about.split())
        part["properties"][name] = {"description": about, **({"allOf": [known]} if "$ref" in known else known)}


def text() -> str:
    r"""Return the schema's text. Python's end of text, `\Z`, is `$` in JSON schema."""
    return json.dumps(schema(), ensure_ascii=False, indent=2).replace(r"\\Z", "$") + "\n"


if __name__ == "__main__":
    PLACE.write_text(text(), encoding="utf-8")
