"""The folder that scanned pages wait in: a page is in it whole and durably, or not at all.

What one run of scanimage writes lies in `.run-WHEN-ID` below it. Its finished pages are moved up one by one, and from
there on the folder source has them.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from agent.clock import Clock
from agent.durable import synchronize
from agent.errors import FrameError, InputError
from agent.header import is_complete, open_regular, parse_header
from agent.sources.folder.inbox import is_temporary

PAGE_NAME = "%04d.tiff"
"""How scanimage numbers pages. TIFF: of a scanner that does not know how long a page is it cannot make PNG or JPEG."""

_PAGE = re.compile(r"[0-9]{4,9}\.tiff\Z")
_RUN = ".run-"


class Collected(NamedTuple):
    """Pages that were found in the folder of a run, and those that were cut off."""

    pages: int
    cut: int


class Spool:
    """The folder and the runs in it."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open the folder, made when it is missing.

        Raises:
            OSError: it cannot be made or read.
        """
        self.path = path
        self._clock = clock
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._last_ns = max((entry.stat().st_mtime_ns for entry in self._pages()), default=0)

    def _pages(self) -> list[os.DirEntry[str]]:
        with os.scandir(self.path) as entries:
            return [entry for entry in entries if not is_temporary(entry.name) and entry.is_file(follow_symlinks=False)]

    def waiting(self) -> int:
        """Return how many pages wait to be read."""
        return len(self._pages())

    def begin_run(self) -> Path:
        """Make a folder for a run of scanimage."""
        when = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock.wall_ms() / 1000))
        run = self.path / f"{_RUN}{when}-{secrets.token_hex(3)}"
        run.mkdir(mode=0o700)
        return run

    def runs(self) -> list[Path]:
        """Return the folders of runs that were not collected, the oldest first."""
        return sorted(self.path.glob(f"{_RUN}*"), key=lambda run: run.stat().st_mtime_ns)

    def size(self, run: Path) -> int:
        """Return how many bytes a run has written into its folder; it grows as long as a page does."""
        with suppress(FileNotFoundError), os.scandir(run) as entries:
            return sum(entry.stat().st_size for entry in entries)
        return 0

    def adopt(self, run: Path, name: str) -> bool:
        """Put a finished page where it waits to be read; it is on the disk before. False when it is none.

        Raises:
            OSError: not now; the page stays where it is.
        """
        path = run / name
        if not _PAGE.match(name) or not path.exists():
            return False
        try:
            with open_regular(path) as handle:
                if not is_complete(handle, parse_header(handle, path)):
                    return False
                self._date(handle.fileno())
                os.fsync(handle.fileno())
        except FrameError:
            return False
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # the paper is out of the feeder: this is its only picture
                raise error.__cause__ from error
            return False
        path.rename(self.path / f"{run.name.removeprefix(_RUN)}-{name}")
        synchronize(self.path)
        return True

    def _date(self, descriptor: int) -> None:
        """Make a page younger than the one before: they are read by age, and the clock may be set meanwhile."""
        self._last_ns = max(self._last_ns + 1, self._clock.wall_ms() * 1_000_000)
        os.utime(descriptor, ns=(self._last_ns, self._last_ns))

    def collect(self, run: Path) -> Collected:
        """Adopt what an ended run has left, delete what was cut off, and its folder.

        Raises:
            OSError: not now; it can be collected again.
        """
        pages = cut = 0
        for name in sorted(os.listdir(run)):
            if self.adopt(run, name):
                pages += 1
            else:
                cut += bool(_PAGE.match(name.removesuffix(".part")))
                (run / name).unlink()
        run.rmdir()
        return Collected(pages, cut)
