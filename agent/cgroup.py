"""What the kernel allows this process and its neighbours together: the memory limit of its control group, v1 or v2.

Looked at after every page, so with plain strings: pathlib interns each part of a path, and the table of interned
strings takes 24 bytes for each, dead or alive, until it is built anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

UNLIMITED = 1 << 60  # version 1 says "none" with a number near 2**63


class Group(msgspec.Struct, frozen=True):
    """The memory of a control group.

    Attributes:
        limit_bytes: the tightest limit on the way to the root, 0 without one.
        used_bytes: what counts against it, file caches that the kernel gives up when asked left out.
        pressed: how often the kernel held the group back because it was near its limit (version 2), or refused it
            memory (version 1), since the group was made.
    """

    limit_bytes: int = 0
    used_bytes: int = 0
    pressed: int = 0


def look(root: Path = Path("/")) -> Group:
    """Return the memory of this process's control group; all zero where there is none or it cannot be seen.

    Args:
        root: where /proc and /sys are.
    """
    try:
        lines = _text(f"{root}/proc/self/cgroup").splitlines()
    except (OSError, UnicodeDecodeError):
        return Group()
    paths = {part[1]: part[2] for line in lines if len(part := line.split(":", 2)) == 3}
    home = f"{root}/sys/fs/cgroup"
    if "memory" in paths:
        return _first_version(f"{home}/memory", paths["memory"])
    return _second_version(home, paths[""]) if "" in paths else Group()


def _first_version(home: str, path: str) -> Group:
    inner = _folders(home, path)[0]
    limit = _statistic(f"{inner}/memory.stat", "hierarchical_memory_limit")
    caches = _statistic(f"{inner}/memory.stat", "total_inactive_file")
    return Group(
        0 if limit >= UNLIMITED else limit,
        max(0, _number(f"{inner}/memory.usage_in_bytes") - caches),
        _number(f"{inner}/memory.failcnt"),
    )


def _second_version(home: str, path: str) -> Group:
    folders = _folders(home, path)
    limits = [
        limit for folder in folders for name in ("memory.max", "memory.high") if (limit := _number(f"{folder}/{name}"))
    ]
    caches = _statistic(f"{folders[0]}/memory.stat", "inactive_file")
    return Group(
        min(limits, default=0),
        max(0, _number(f"{folders[0]}/memory.current") - caches),
        _statistic(f"{folders[0]}/memory.events", "high") + _statistic(f"{folders[0]}/memory.events", "max"),
    )


def _folders(home: str, path: str) -> list[str]:
    """Return a group's folder and those above it that can be seen; in a container its own may be the root."""
    parts = [part for part in path.split("/") if part]
    folders = ["/".join((home, *parts[:count])) for count in range(len(parts), -1, -1)]
    return folders if ".." not in parts and os.path.isdir(folders[0]) else [home]


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _number(path: str) -> int:
    """Return the number in a file; 0 for "max" and where there is no such file."""
    try:
        return int(_text(path))
    except (OSError, ValueError):
        return 0


def _statistic(path: str, name: str) -> int:
    """Return the number behind a name in a file of "NAME NUMBER" lines; 0 where there is none."""
    try:
        lines = _text(path).splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
