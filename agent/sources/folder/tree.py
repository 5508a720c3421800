"""A watched folder and what is kept below it: claimed files, handled ones, and why some were refused.

    PATH/NAME                         waits
    PATH/.edge-ocr/work/CLAIM/NAME    is claimed, by renaming
    PATH/done/NAME                    was read
    PATH/failed/NAME, NAME.reason.txt was refused

Everything goes by descriptors of folders, so that a link put in the way leads nowhere else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

from agent.errors import ConfigError
from agent.header import printable

HOME, WORK, DONE, FAILED = ".edge-ocr", "work", "done", "failed"
NOTE = ".reason.txt"

_TRIAL = ".edge-ocr-trial"
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_NAME_BYTES = 255
_MAX_SUFFIX = 16

# What another try may not meet again: nothing in the settings is wrong.
_PASSING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EBUSY),
}
_ADVICE = {
    errno.EACCES: "this user must be able to write into it, because files are claimed by renaming them",
    errno.EPERM: "this user must be able to write into it, because files are claimed by renaming them",
    errno.EROFS: "it must be writable, because files are claimed by renaming them",
    errno.ENOENT: "make the folder it is to be in",
    errno.EXDEV: f"{HOME}, {DONE} and {FAILED} must be in the file system of the folder; unmount or move them",
    errno.EEXIST: "it must be a folder; move what has its name",
    errno.ENOTDIR: f"the folder, {HOME}, {DONE} and {FAILED} must be folders and not links; move what has the name",
    errno.ELOOP: f"{HOME}, {DONE} and {FAILED} must be folders and not links; move what has the name",
}


class Tree:
    """The folder, opened."""

    def __init__(self, path: str) -> None:
        """Make a tree; nothing is touched before `open`.

        Args:
            path: the folder.
        """
        self.path = os.path.abspath(path)
        self.root = -1
        self._lock = -1

    def open(self) -> None:
        """Open the folder, made when only it is missing, and try out what will be done in it.

        Raises:
            ConfigError: it cannot be worked in; the message says what to do.
            OSError: not now: its disk is full, or its share away.
        """
        self.close()
        try:
            if not os.path.isdir(self.path):
                os.mkdir(self.path)
            self.root = os.open(self.path, _OPEN & ~os.O_NOFOLLOW)
            self._take_lock()
            self._try_out()
        except OSError as error:
            self.close()
            if error.errno in _PASSING:
                raise
            raise self.refusal(error) from error
        except ConfigError:
            self.close()
            raise

    def refusal(self, error: OSError) -> ConfigError:
        """Return what to say of a folder that cannot be worked in."""
        advice = _ADVICE.get(error.errno or 0, "it cannot be worked in")
        return ConfigError(f"{self.path}: {error.strerror}: {advice}")

    def _take_lock(self) -> None:
        with self.room(HOME) as home:
            self._lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{self.path}: another edge-ocr takes files from it; end one of the two") from None
        except OSError:
            pass  # not every share has locks; claiming by renaming keeps two agents apart all the same

    def _try_out(self) -> None:
        """Take a file the way that others will take: only this tells of rights, mounts, full or read-only disks."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.end_claim(self.begin_claim())
        with self.room(HOME, WORK) as work, self.room(DONE) as done, self.room(FAILED) as failed:
            os.close(os.open(_TRIAL, flags, 0o600, dir_fd=self.root))
            rooms = (self.root, work, done, failed)
            try:
                for origin, to in pairwise(rooms):
                    os.rename(_TRIAL, _TRIAL, src_dir_fd=origin, dst_dir_fd=to)
            finally:
                for room in rooms:
                    with suppress(FileNotFoundError):
                        os.unlink(_TRIAL, dir_fd=room)

    def is_there(self) -> bool:
        """Return whether the path still leads to the folder that was opened, and not to an empty mount point.

        Raises:
            OSError: it leads nowhere.
        """
        if self.root < 0:
            return False
        there, opened = os.stat(self.path), os.fstat(self.root)
        return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)

    def is_writable(self) -> bool:
        """Return whether files can be renamed out of the folder."""
        return os.access(".", os.W_OK | os.X_OK, dir_fd=self.root, effective_ids=True)

    def close(self) -> None:
        """Give descriptors back."""
        for descriptor in (self.root, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self.root = self._lock = -1

    @contextmanager
    def room(self, *names: str) -> Iterator[int]:
        """Open a folder below, made when it is missing.

        Raises:
            OSError: it is a link, cannot be made, or the folder is away.
        """
        if self.root < 0:
            raise OSError(errno.ENOTCONN, "the folder is away")
        inner = self.root
        try:
            for name in names:
                outer, inner = inner, _enter(inner, name)
                if outer != self.root:
                    os.close(outer)
            yield inner
        finally:
            if inner != self.root:
                os.close(inner)

    @contextmanager
    def beside(self, claim: str) -> Iterator[tuple[int, str]]:
        """Give the descriptor of a folder, and what to put before a name in it: a claim's, or "" for the folder's own.

        Raises:
            OSError: as `room`.
        """
        with self.room(*((HOME, WORK) if claim else ())) as room:
            yield room, f"{claim}/" if claim else ""

    def place_of(self, claim: str, name: str) -> Path:
        """Return the path of a claimed file."""
        return Path(self.path, HOME, WORK, claim, name)

    # ---------------------------------------------------------------------------------------------- claims

    def begin_claim(self, mark: str = "") -> str:
        """Make a place for a file to be claimed into; returns its name: `mark`, then what no other ever has.

        Raises:
            OSError: the disk is full, or the folder away.
        """
        claim = mark + secrets.token_hex(8)
        with self.room(HOME, WORK) as work:
            os.mkdir(claim, 0o700, dir_fd=work)
        return claim

    def claim(self, claim: str, name: str, *, room: str = "") -> None:
        """Move a file of the folder, or of a room below it, into a claim.

        Args:
            claim: of `begin_claim`; given up when the file cannot be moved.
            name: the file's.
            room: where it is.

        Raises:
            OSError: it is gone, or may not be moved.
        """
        with self.room(HOME, WORK) as work, self.room(*([room] if room else [])) as origin:
            try:
                os.rename(name, f"{claim}/{name}", src_dir_fd=origin, dst_dir_fd=work)
            except OSError:
                self.end_claim(claim)
                raise

    def keep_claim(self, claim: str) -> None:
        """See to it that a loss of power does not undo a claim.

        Raises:
            OSError: it may be undone.
        """
        with self.room(HOME, WORK) as work, self.room(HOME, WORK, claim) as inside:
            for folder in (inside, work, self.root):
                _sync(folder)

    def end_claim(self, claim: str) -> None:
        """Remove the empty place of a claim; one that still holds something stays for the next start."""
        with suppress(OSError), self.room(HOME, WORK) as work:
            os.rmdir(claim, dir_fd=work)
            _sync(work)

    def claims(self) -> list[tuple[str, str]]:
        """Return the claims that lie here, with their files' names; empty ones are removed.

        Raises:
            OSError: they cannot be listed.
        """
        found = []
        with self.room(HOME, WORK) as work:
            for claim in sorted(os.listdir(work)):
                with suppress(NotADirectoryError), self.room(HOME, WORK, claim) as inside:
                    if names := os.listdir(inside):
                        found.append((claim, names[0]))
                    else:
                        os.rmdir(claim, dir_fd=work)
        return found

    # ---------------------------------------------------------------------------------------------- handled files

    def put_away(self, claim: str, name: str, room: str, note: str = "") -> str:
        """Move a claimed file to the handled ones, under a name of its own; a loss of power does not undo it.

        Args:
            claim: where it lies.
            name: its name.
            room: `DONE` or `FAILED`.
            note: one line on why it was refused, put beside it.

        Returns:
            Its path, valid Unicode.

        Raises:
            FileNotFoundError: somebody took it.
            OSError: it cannot be moved now.
        """
        with self.room(HOME, WORK) as work, self.room(room) as shelf:
            os.stat(f"{claim}/{name}", dir_fd=work, follow_symlinks=False)
            free = _free_name(shelf, name, note)
            if note:
                _write_note(shelf, free + NOTE, note)
            os.rename(f"{claim}/{name}", free, src_dir_fd=work, dst_dir_fd=shelf)
            _sync(shelf)
        self.end_claim(claim)
        return os.path.join(self.path, room, free)

    def forget_note(self, room: str, name: str) -> None:
        """Delete the note beside a handled file that is to be read again."""
        with suppress(OSError), self.room(room) as shelf:
            os.unlink(name + NOTE, dir_fd=shelf)

    def delete(self, claim: str, name: str) -> None:
        """Delete a claimed file.

        Raises:
            FileNotFoundError: somebody took it.
            OSError: it cannot be deleted now.
        """
        with self.room(HOME, WORK) as work:
            os.unlink(f"{claim}/{name}", dir_fd=work)
        self.end_claim(claim)


def _enter(folder: int, name: str) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=folder)
    except FileNotFoundError:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700 if name == HOME else 0o777, dir_fd=folder)
        return os.open(name, _OPEN, dir_fd=folder)


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # some shares cannot do it for folders
            raise


def _free_name(shelf: int, name: str, note: str) -> str:
    """Return a name that nothing on a shelf has: the file's own, or numbered, "NAME (2).png".

    Only this program puts files there, so the name is still free when it is used. A scanner that calls every page the
    same leaves thousands of numbers, so a free one is found by doubling and halving and not by counting.
    """
    stem, suffix = os.path.splitext(printable(name))
    if len(suffix) > _MAX_SUFFIX:
        stem, suffix = stem + suffix, ""
    high = 1
    while not _is_free(shelf, _numbered(stem, suffix, high), note):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _is_free(shelf, _numbered(stem, suffix, middle), note) else (middle, high)
    return _numbered(stem, suffix, high)


def _numbered(stem: str, suffix: str, number: int) -> str:
    """Return a name with a number, short enough that its note's name is short enough too."""
    suffix = f" ({number}){suffix}" if number > 1 else suffix
    while len((stem + suffix + NOTE).encode()) > _MAX_NAME_BYTES:
        stem = stem[:-1]
    return stem + suffix


def _is_free(shelf: int, name: str, note: str) -> bool:
    """Return whether a name is free for a file and its note; what a crash left of this very note is no matter."""
    if exists(shelf, name):
        return False
    if not note:
        return True
    try:
        descriptor = os.open(name + NOTE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=shelf)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    with os.fdopen(descriptor, "rb") as file:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return is_file and note.encode().startswith(file.read(len(note.encode()) + 1))


def exists(folder: int, name: str) -> bool:
    """Return whether a folder has something of a name."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_note(shelf: int, name: str, note: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=shelf)
    with os.fdopen(descriptor, "wb") as file:
        file.write(note.encode())
        file.flush()
        os.fsync(descriptor)
