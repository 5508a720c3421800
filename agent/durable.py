"""Files and names that outlast a loss of power. The installer uses it too: the standard library only."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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
    with written(fresh, path, mode) as file:
        file.write(content)


@contextmanager
def exported(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that nobody else may read; it takes its place whole, or not at all, when the block ends.

    The folder may be one where others write too: no link that somebody has laid there is followed.

    Raises:
        OSError: it cannot be written, or a device or pipe is there, which a file would take the place of.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "is no file", str(path))
    with written(path.with_name(f".{path.name}.{os.urandom(8).hex()}"), path, 0o600) as file:
        yield file


@contextmanager
def written(fresh: Path, path: Path, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Give a file to write that is there whole and for good when the block ends, or not at all.

    Args:
        fresh: its name until then, beside the other; nothing has it.
        path: its name.
        mode: its permissions, whatever the umask is; None leaves them to it.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o666 if mode is None else mode)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            yield file
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    synchronize(path.parent)
