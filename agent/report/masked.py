"""Settings for somebody else's eyes: what they are, without what they hide."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from agent.config import AgentConfig

HIDDEN = "(hidden)"
_HIDE = {"username", "pattern"}
"""Who somebody is at a broker or camera, and numbers of customers' forms. Where a password is stays: it is a path."""
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)(?:[^/?#]*@)?(\[[^\]/]*\]|[^/:?#@]*)(:\d+(?![^/?#]))?")
_ASSIGNED = re.compile(r"\s*([A-Za-z0-9_.\-]+)\s*=\s*(.*)")
_SECTION = re.compile(r"\s*(\[\[?[A-Za-z0-9_. \-]+\]\]?)\s*(#.*)?")


def settings(config: AgentConfig) -> dict[str, Any]:
    """Return settings as builtins: no user names, no arguments of hooks, no paths of addresses, nobody's home."""
    told: dict[str, Any] = _masked(msgspec.to_builtins(config))
    return told


def _masked(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _masked(item, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if name.startswith("on_") and value:
            return [_home(str(value[0])), f"({len(value) - 1} arguments)"]
        return [_masked(item, name) for item in value]
    if name in _HIDE and value:
        return HIDDEN
    return _home(address(value)) if isinstance(value, str) else value


def address(device: str) -> str:
    """Return of an address its scheme, host and port: cameras take passwords in paths, too. Others as they are."""
    if "://" not in device:
        return device
    found = _ADDRESS.search(device)
    if found is None:
        return HIDDEN
    more = device[found.end() :].strip("/")
    return f"{device[: found.start()]}{found[1]}{found[2]}{found[3] or ''}{f'/{HIDDEN}' if more else ''}"


def _home(path: str) -> str:
    return re.sub(r"(?<=/home/)[^/]+", HIDDEN, path)


def outline(path: Path) -> str:
    """Return what a file of settings that cannot be read is like: its sections and keys, and the kinds of values.

    A secret may stand in it by mistake, so that no value is shown.
    """
    shown = []
    for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := _SECTION.fullmatch(row):
            shown.append(found[1])
        elif found := _ASSIGNED.match(row):
            shown.append(f"{found[1]} = {_kind(found[2])}")
        elif row.strip() and not row.lstrip().startswith("#"):
            shown.append("(a line that is none of these)")
    return "\n".join(shown) + "\n"


def _kind(value: str) -> str:
    for begin, kind in (("[", "list"), ("{", "table"), ('"', "text"), ("'", "text")):
        if value.startswith(begin):
            return f"({kind})"
    plain = value.partition("#")[0].strip()
    return "(true or false)" if plain in ("true", "false") else "(number)" if plain[:1].isdigit() else "(something)"
