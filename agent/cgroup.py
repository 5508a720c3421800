"""What the kernel allows this process and its neighbours together: the memory limit of its control group, v1 or v2."""

from __future__ import annotations

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
        lines = (root / "proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return Group()
    paths = {part[1]: part[2] for line in lines if len(part := line.split(":", 2)) == 3}
    home = root / "sys/fs/cgroup"
    if "memory" in paths:
        return _first_version(home / "memory", paths["memory"])
    return _second_version(home, paths[""]) if "" in paths else Group()


def _first_version(home: Path, path: str) -> Group:
    inner = _folders(home, path)[0]
    limit = _statistic(inner / "memory.stat", "hierarchical_memory_limit")
    caches = _statistic(inner / "memory.stat", "total_inactive_file")
    return Group(
        0 if limit >= UNLIMITED else limit,
        max(0, _number(inner / "memory.usage_in_bytes") - caches),
        _number(inner / "memory.failcnt"),
    )


def _second_version(home: Path, path: str) -> Group:
    folders = _folders(home, path)
    limits = [
        limit for folder in folders for name in ("memory.max", "memory.high") if (limit := _number(folder / name))
    ]
    caches = _statistic(folders[0] / "memory.stat", "inactive_file")
    return Group(
        min(limits, default=0),
        max(0, _number(folders[0] / "memory.current") - caches),
        _statistic(folders[0] / "memory.events", "high") + _statistic(folders[0] / "memory.events", "max"),
    )


def _folders(home: Path, path: str) -> list[Path]:
    """Return a group's folder and those above it that can be seen; in a container its own may be the root."""
    inner = home / path.lstrip("/")
    if not inner.is_dir() or ".." in inner.parts:
        return [home]
    return [inner, *(folder for folder in inner.parents if folder == home or home in folder.parents)]


def _number(path: Path) -> int:
    """Return the number in a file; 0 for "max" and where there is no such file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _statistic(path: Path, name: str) -> int:
    """Return the number behind a name in a file of "NAME NUMBER" lines; 0 where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
    except (OSError, ValueError, IndexError):
        return 0
