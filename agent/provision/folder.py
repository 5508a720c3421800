"""A folder that somebody else has filled, as on a stick: nothing leads out of it, and nothing in it is endless."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.errors import ConfigError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for
_SAID = {
    errno.ENOENT: "there is no such file; its place is beside this one",
    errno.ELOOP: "is a link, and links are not followed; put the file itself there",
}


def exists(folder: Path, name: str) -> bool:
    """Tell whether a folder has something of that name, a broken link too."""
    return os.path.lexists(folder / name)


def names(folder: Path, below: str) -> list[str]:
    """Return what a folder below this one holds, sorted; nothing where it is none."""
    try:
        with _inside(folder, (below,)) as at:
            return sorted(os.listdir(at))
    except OSError:
        return []


def read(folder: Path, name: str, most: int) -> bytes:
    """Return a file below a folder.

    Args:
        folder: where it is.
        name: its name, "/" between the folders below.
        most: a larger one is refused, in bytes.

    Raises:
        ConfigError: the name leads out, or there is no such plain file; without the name.
    """
    *parents, last = _parts(name)
    try:
        with _inside(folder, parents) as at:
            number = os.open(last, _FILE, dir_fd=at)
            with open(number, "rb") as file:
                if not stat.S_ISREG(os.fstat(number).st_mode):
                    raise ConfigError("is no plain file")
                content = file.read(most + 1)
    except OSError as error:
        raise ConfigError(_SAID.get(error.errno or 0, str(error.strerror))) from error
    if len(content) > most:
        raise ConfigError(f"is larger than {most} bytes")
    return content


def write(folder: Path, name: str, content: bytes) -> None:
    """Write a file below a folder, whole or not at all.

    Raises:
        ConfigError: the name leads out.
        OSError: it cannot be written.
    """
    *parents, last = _parts(name)
    fresh = f".{last}.new"
    with _inside(folder, parents) as at:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh, dir_fd=at)
        number = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=at)
        with open(number, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(number)
        os.rename(fresh, last, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)


def rename(folder: Path, name: str, to: str) -> None:
    """Give a file another name in its place; no error where it is not there.

    Raises:
        OSError: it cannot be.
    """
    *parents, last = _parts(name)
    with _inside(folder, parents) as at, contextlib.suppress(FileNotFoundError):
        os.rename(last, to, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)


def remove(folder: Path, name: str) -> None:
    """Delete a file; no error where it is not there.

    Raises:
        OSError: it cannot be.
    """
    *parents, last = _parts(name)
    with _inside(folder, parents) as at, contextlib.suppress(FileNotFoundError):
        os.unlink(last, dir_fd=at)
        os.fsync(at)


@contextlib.contextmanager
def _inside(folder: Path, parents: list[str] | tuple[str, ...]) -> Iterator[int]:
    """Open a folder step by step, so that no link is followed below the first."""
    with contextlib.ExitStack() as opened:
        at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, at)
        for parent in parents:
            at = os.open(parent, _FOLDER, dir_fd=at)
            opened.callback(os.close, at)
        yield at


def _parts(name: str) -> list[str]:
    """Return the steps of a name.

    Raises:
        ConfigError: it leads out of the folder, or nowhere.
    """
    parts = name.split("/")
    if "\\" in name:
        raise ConfigError('has a "\\" in it; folders are parted by "/"')
    if name.startswith("/") or ".." in parts:
        raise ConfigError("leads out of the folder; give a name beside this file")
    if not name.isprintable() or "" in parts or "." in parts:
        raise ConfigError("is no name of a file")
    return parts
