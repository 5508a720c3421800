"""Deletes handled files that are too old, and the oldest when they are too many."""

from __future__ import annotations

import heapq
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from agent.clock import Clock
from agent.sources.folder.tree import DONE, FAILED, HOME, NOTE, Tree, exists

_log = logging.getLogger(__name__)

STEP = 200  # files deleted at once
LOOK_S = 600.0
SPEED = 4  # so that a machine that is switched on for a quarter of the day keeps up
DAY_S = 86_400.0
FIRST_DAY_S = 1_767_225_600.0  # 2026-01-01: this program is younger, so a clock that says less was not set


class Handled(NamedTuple):
    """A handled file: when its name was given to it here, seconds since 1970; room, name and size."""

    at: float
    room: str
    name: str
    size: int


class Retention:
    """Keeps the handled files below their caps, a step at a time.

    How old a file is tells the time of its last renaming, which is its handling; the time of writing is the scanner's.

    Files age by a clock of their own. It follows the wall clock, but never faster than `SPEED` times the monotonic one,
    over restarts too: when the clock jumps a year ahead, or after a month without power, old files go day by day and
    not all at once. Where the wall clock is behind, files age by that. The cap on their size needs no clock.
    """

    def __init__(self, tree: Tree, *, keep_days: float, keep_mb: int, clock: Clock) -> None:
        """Make a keeper.

        Args:
            tree: holds the files.
            keep_days: older ones are deleted.
            keep_mb: the oldest are deleted when they are larger than this together; MB of 2**20 bytes.
            clock: time.
        """
        self._tree = tree
        self._keep_s = keep_days * DAY_S
        self._keep_bytes = keep_mb << 20
        self._clock = clock
        self._aged_s: float | None = None  # the files' own time, seconds since 1970
        self._aged_at = 0.0
        self._look_at = float("-inf")

    def tidy(self) -> int:
        """Delete what is over the caps, `STEP` files at most. Returns how many were deleted.

        Raises:
            OSError: the folder is away.
        """
        now = self._clock.monotonic()
        if now < self._look_at:
            return 0
        total, oldest = self._survey()
        deleted, limit = 0, self._age() - self._keep_s
        for file in oldest:
            if total > self._keep_bytes or FIRST_DAY_S <= file.at < limit:
                deleted += self._delete(file)
                total -= file.size
        # A step that deleted nothing would be the same again at once.
        self._look_at = now if deleted == STEP else now + LOOK_S
        if deleted:
            _log.info("%s: %d handled files deleted: too old or too many", self._tree.path, deleted)
        return deleted

    def _age(self) -> float:
        """Move the files' own clock on and return its time; it is kept as the time of a file."""
        wall, now = self._clock.wall_ms() / 1000, self._clock.monotonic()
        with self._tree.room(HOME) as home:
            descriptor = os.open("age", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
        try:
            if self._aged_s is None:
                kept = os.fstat(descriptor)
                # One byte is in it once its time means something.
                self._aged_s = kept.st_mtime if kept.st_size else wall
                self._aged_at = now
            self._aged_s = min(max(wall, self._aged_s), self._aged_s + SPEED * (now - self._aged_at))
            self._aged_at = now
            os.pwrite(descriptor, b".", 0)
            os.utime(descriptor, (self._aged_s, self._aged_s))
        finally:
            os.close(descriptor)
        return min(self._aged_s, wall)

    def _survey(self) -> tuple[int, list[Handled]]:
        """Return the size of all handled files, and the oldest of them; a note goes with its file."""
        total = 0

        def counted() -> Iterator[Handled]:
            nonlocal total
            for file in self._handled():
                total += file.size
                if not file.name.endswith(NOTE) or not self._exists(file.room, file.name.removesuffix(NOTE)):
                    yield file

        oldest = heapq.nsmallest(STEP, counted())
        return total, oldest

    def _handled(self) -> Iterator[Handled]:
        for room in (DONE, FAILED):
            with self._tree.room(room) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):  # people take files away
                        status = entry.stat(follow_symlinks=False)
                        if not stat.S_ISDIR(status.st_mode):
                            yield Handled(status.st_ctime, room, entry.name, status.st_size)

    def _exists(self, room: str, name: str) -> bool:
        with self._tree.room(room) as folder:
            return exists(folder, name)

    def _delete(self, file: Handled) -> bool:
        with suppress(OSError), self._tree.room(file.room) as folder:
            os.unlink(file.name, dir_fd=folder)
            with suppress(FileNotFoundError):
                os.unlink(file.name + NOTE, dir_fd=folder)
            return True
        return False
