"""What the disk below a directory takes: why it takes nothing, how much is free, and a file kept to be given up."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

PROBE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def trouble(directory: Path, file: Path) -> str:
    """Return why files here cannot be written: "disk" (is full), "readonly", "failing", or "" when they can.

    It is found out by writing, since Python before 3.11 does not tell the code of an SQLite error, and its text is no
    ground to stand on. `file` itself is not opened: closing it would free SQLite's locks (fcntl(2), "advisory").
    """
    if file.exists() and not os.access(file, os.W_OK):
        return "readonly"
    probe = directory / f"outbox.probe-{os.getpid()}"
    try:
        _write(probe, PROBE_BYTES)
    except OSError as error:
        return "disk" if error.errno in _FULL else "readonly" if error.errno in _READ_ONLY else "failing"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return ""


def _write(path: Path, size: int) -> None:
    """Make a file that has its place on the disk for sure, in place of one that was left; no link is followed."""
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(file, 0, size)
        os.pwrite(file, bytes(512), 0)
        os.fsync(file)
    finally:
        os.close(file)


def free_bytes(directory: Path) -> int:
    """Return what this user may still write; 0 when the disk does not say."""
    try:
        stat = os.statvfs(directory)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize


class Ballast:
    """A file without meaning: deleting rows takes space first, and this gives it when there is none."""

    def __init__(self, path: Path, size_bytes: int, min_free_bytes: int) -> None:
        self._path = path
        self._size = size_bytes
        self._min_free = min_free_bytes

    def release(self) -> bool:
        """Give the space up; whether there was any."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def keep(self) -> None:
        """Take the space again as soon as there is plenty."""
        if not self._size:
            self.release()
        elif not self._path.exists() and free_bytes(self._path.parent) >= 2 * self._size + self._min_free:
            fresh = self._path.with_suffix(".new")
            try:
                _write(fresh, self._size)
                fresh.replace(self._path)
            except OSError:  # then it is not plenty
                with contextlib.suppress(OSError):
                    fresh.unlink()
