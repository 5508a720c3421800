"""The files that wait in a folder: which are still being written, and whose turn it is."""

from __future__ import annotations

import math
import os
from collections import deque
from contextlib import suppress

import msgspec

MAX_WAITING = 20_000
"""Files looked at together; more wait until these are gone, so that a million of them takes no memory."""

_TEMPORARY = (".tmp", ".temp", ".part", ".partial", ".filepart", ".crdownload", ".download", ".swp", "~")
_SYSTEM = ("thumbs.db", "desktop.ini")  # Windows puts them into shares by itself

Sight = tuple[int, int, int]
"""Size in bytes, time of writing and of any change in ns: another sight of a file means that it was written to.

The last, because copying programs set the time of writing to that of the original. Not the inode number: FUSE, FAT and
some SMB mounts make one up whenever they look.
"""


def sight(status: os.stat_result) -> Sight:
    """Return what of a file's status must stay the same."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def is_temporary(name: str) -> bool:
    """Return whether a name is one that programs give to files they still write, or to their own."""
    lower = name.lower()
    return lower.startswith((".", "~$")) or lower.endswith(_TEMPORARY) or lower in _SYSTEM


class Waiting(msgspec.Struct, eq=False, gc=False):
    """A file that waits for its turn.

    Attributes:
        name: in its folder.
        seen: how it was last seen.
        since: when that was seen first; seconds, monotonic.
        due: when it is worth another look.
        claim: where it lies when it was claimed already.
        warned: that it cannot be claimed was said.
    """

    name: str
    seen: Sight
    since: float
    due: float
    claim: str = ""
    warned: bool = False


class Inbox:
    """Remembers the files of a folder between looks at it."""

    def __init__(self, stable_s: float) -> None:
        """Make an inbox.

        Args:
            stable_s: a file is worth a look when it has not changed for so long.
        """
        self._stable_s = stable_s
        self._step_s = min(0.25, max(0.01, stable_s))
        self._files: dict[str, Waiting] = {}
        self._claimed: dict[str, Waiting] = {}
        self._line: deque[Waiting] = deque()
        self._next_due = float("inf")

    @property
    def due(self) -> float:
        """When `next` may have a file; infinite when nothing waits."""
        return float("-inf") if self._line else self._next_due

    def look(self, folder: int, now: float) -> None:
        """List a folder, open as a descriptor; sub-folders and temporary names are passed over.

        Raises:
            OSError: it cannot be listed.
        """
        files: dict[str, Waiting] = {}
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_temporary(entry.name):
                    continue
                with suppress(OSError):  # gone again
                    if not entry.is_dir(follow_symlinks=False):
                        seen = sight(entry.stat(follow_symlinks=False))
                        files[entry.name] = self._meet(entry.name, seen, now)
                if len(files) == MAX_WAITING:
                    break
        self._files = files
        self._line.clear()
        self._next_due = now  # whoever is due stands in line anew

    def _meet(self, name: str, seen: Sight, now: float) -> Waiting:
        known = self._files.get(name)
        return known if known and known.seen == seen else Waiting(name, seen, now, now + self._stable_s)

    def hold(self, waiting: Waiting) -> None:
        """Add a file that is claimed already; it comes before those that are not."""
        self._claimed[waiting.claim] = waiting
        self._next_due = min(self._next_due, waiting.due)

    def next(self, now: float) -> Waiting | None:
        """Return the next file worth a look: claimed ones first, then the oldest, then by name.

        The caller says what becomes of it: `later`, `changed` or `drop`.
        """
        if not self._line and now >= self._next_due:
            self._line_up(now)
        return self._line.popleft() if self._line else None

    def _line_up(self, now: float) -> None:
        every = [*self._claimed.values(), *self._files.values()]
        due = [waiting for waiting in every if waiting.due <= now]
        self._line = deque(sorted(due, key=lambda waiting: (not waiting.claim, waiting.seen[1], waiting.name)))
        self._next_due = min((waiting.due for waiting in every if waiting.due > now), default=float("inf"))

    def later(self, waiting: Waiting, due: float) -> None:
        """Have a file wait until a moment, or a little longer: those of one moment are put in line together."""
        waiting.due = math.ceil(due / self._step_s) * self._step_s
        self._next_due = min(self._next_due, waiting.due)

    def changed(self, waiting: Waiting, seen: Sight, now: float) -> None:
        """Have a file wait from the beginning, because it was written to."""
        waiting.seen, waiting.since = seen, now
        self.later(waiting, now + self._stable_s)

    def drop(self, waiting: Waiting) -> None:
        """Forget a file."""
        if waiting.claim:
            self._claimed.pop(waiting.claim, None)
        else:
            self._files.pop(waiting.name, None)

    def clear(self) -> None:
        """Forget all files."""
        self._files.clear()
        self._claimed.clear()
        self._line.clear()
        self._next_due = float("inf")
