"""Files and names that outlast a loss of power. The installer uses it too: the standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def synchronize(folder: Path) -> None:
    """Have the names in a folder last.

    Raises:
        OSError: they may not.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all; it lasts when this returns.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(path)
    synchronize(path.parent)
