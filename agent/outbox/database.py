"""One SQLite file that two processes write: opened, watched, and replaced when it is damaged.

Every operation holds a shared lock on the directory and looks whether the file is still the one it opened; who replaces
a damaged file holds the lock alone, so that nobody commits into a file that was put aside.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from agent.clock import Clock
from agent.errors import OutboxError
from agent.outbox import disk, salvage, schema
from agent.outbox.schema import Damaged

_log = logging.getLogger(__name__)

KEEP_DAMAGED = 3  # files put aside
LOCK_S = 10.0
_RETRY_S = {"disk": 5.0, "readonly": 5.0, "failing": 30.0}  # the longest pause between attempts; the first is 1 s

R = TypeVar("R")
Work = Callable[[sqlite3.Connection], R]

_ADVICE = {
    "disk": "the disk is full: free some space",
    "readonly": "the file or its disk may not be written: check permissions and how it is mounted",
    "failing": "the disk or the file fails: look at the system's log",
}


class Database:
    """The file `outbox.db` of a directory. Not for several threads, and one for a process.

    Attributes:
        path: of the file.
        trouble: why nothing can be written: "disk", "readonly", "failing", or "".
        cramped: the file was too full for something; reset by whoever has made room.
    """

    def __init__(
        self, directory: Path, max_pages: int, settle: Work[None], *, ballast: disk.Ballast, clock: Clock
    ) -> None:
        """Make nothing and open nothing yet: that is tried at each operation.

        Args:
            directory: must exist.
            max_pages: the file takes no more pages.
            settle: done at the begin of the first transaction that writes after each opening.
            ballast: released when the disk is full; `spends_ballast` and `repairs` say by whom.
            clock: time.
        """
        self.path = directory / "outbox.db"
        self._fresh = directory / f"outbox.new-{os.getpid()}.db"
        self.max_pages = max_pages
        self.trouble = ""
        self.cramped = False
        self.repairs = True
        self.spends_ballast = True
        self._settle = settle
        self._ballast = ballast
        self._clock = clock
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int] | None = None
        self._settled = False
        self._suspect = False
        self._unreadable = False
        self._retry_at = 0.0
        self._pause_s = 0.0

    def close(self) -> None:
        """Give the file back."""
        self._disconnect()
        if self._directory >= 0:
            os.close(self._directory)
        self._directory = -1

    def due(self) -> bool:
        """Tell whether it is time to try again after trouble."""
        return self._clock.monotonic() >= self._retry_at

    def suspect(self) -> None:
        """Have the whole file read and checked before the next operation."""
        self._disconnect()
        self._suspect = True

    def run(self, work: Work[R], *, write: bool = True) -> R:
        """Return what `work` returns, done in one transaction that is on the disk when this returns.

        `work` may be called again from the start: after damage was repaired, on the new file, and after a failure of
        the disk, on a file that was opened anew and read whole. A failed transaction is never taken up where it
        stopped: what a failed fsync has lost stays lost (https://lwn.net/Articles/752063/).

        Raises:
            OutboxError: nothing was done; the message says why and `trouble` in one word.
            ConfigError: a much newer program made the file.
        """
        if not self.due() and (write or self._unreadable or self.trouble == "failing"):
            raise OutboxError(self._says(self.trouble))
        for attempt in range(3):
            try:
                result = self._attempt(work, write)
            except (Damaged, sqlite3.OperationalError, OSError) as error:
                self._cure(error, attempt)
            else:
                if write:
                    self._note("")
                return result
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, work: Work[R], write: bool) -> R:
        with self._locked(fcntl.LOCK_SH):
            try:
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    if write and not self._settled:
                        self._settle(connection)
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):
                        connection.rollback()
                    raise
            except (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.InterfaceError):
                raise
            except sqlite3.Error as error:  # malformed, no database; or a value no statement of ours can have written
                raise Damaged(str(error)) from error
            self._settled = self._settled or write
            return result

    def _cure(self, error: Exception, attempt: int) -> None:
        """Do what gives another attempt a chance, or give up.

        Raises:
            OutboxError: there is nothing to be done now.
        """
        spends = self.spends_ballast
        if isinstance(error, Damaged) and attempt < 2:
            try:
                return self._replace(error)
            except (sqlite3.OperationalError, OSError) as worse:
                error, spends, self._unreadable = worse, True, True
        reason = disk.trouble(self.path.parent, self.path)
        with contextlib.suppress(OSError):  # after the look at the disk, which it may have filled
            self._fresh.unlink()
        if not reason and self._is_cramped():
            raise OutboxError("the outbox is full: it takes no more until rows were sent") from error
        self._disconnect()
        self._suspect = self._suspect or reason in ("", "failing")
        if (not reason and attempt == 0) or (reason == "disk" and spends and self._ballast.release()):
            return None
        self._note(reason or "failing")
        raise OutboxError(self._says(self.trouble)) from error

    def _is_cramped(self) -> bool:
        """Tell whether the failure was that the file may not grow; if so the connection is sound."""
        if self._connection is None or self._connection.in_transaction:
            return False
        try:
            room = self.room(self._connection)
        except (sqlite3.Error, OSError, Damaged):
            return False
        cramped = room < min(300, self.max_pages // 4)  # a result and what goes with it have no more pages
        self.cramped = self.cramped or cramped
        return cramped

    def room(self, connection: sqlite3.Connection) -> int:
        """Return how many pages the file takes still; negative when it is larger than it may be.

        Raises:
            Damaged: it tells of more pages than there are.
        """
        pages, free = (int(schema.pragma(connection, name)) for name in ("page_count", "freelist_count"))
        if not 0 <= free <= pages <= self.path.stat().st_size // schema.PAGE_BYTES:
            raise Damaged("the file's pages are not as many as it says")
        return self.max_pages - pages + free

    def _note(self, reason: str) -> None:
        """Remember trouble, or its end, and say so once."""
        if reason:
            self._pause_s = min(max(1.0, 2 * self._pause_s), _RETRY_S[reason])
            self._retry_at = self._clock.monotonic() + self._pause_s
        else:
            self._pause_s = self._retry_at = 0.0
        if reason != self.trouble:
            _log.warning("%s", self._says(reason) if reason else f"{self.path.name} takes rows again")
        self.trouble = reason

    def _says(self, reason: str) -> str:
        return f"{self.path}: nothing can be written: {_ADVICE[reason]}"

    # ------------------------------------------------------------------------------------------------- opening

    @contextlib.contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        """Hold the lock; a stopped process must not stop this one for good."""
        give_up = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(self._directory, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise OSError(errno.EBUSY, "another process holds the outbox's lock") from None
                time.sleep(0.01)
        try:
            yield
        finally:
            fcntl.flock(self._directory, fcntl.LOCK_UN)

    def _identity(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_dev, stat.st_ino

    def _connect(self) -> sqlite3.Connection:
        """Return the connection to the file that is there now, opened and checked when it is another than before."""
        identity = self._identity()
        if self._connection is not None and identity == self._opened:
            return self._connection
        self._disconnect()
        if identity is None:
            raise Damaged("the file is not there")
        self._opened = identity
        with self.path.open("rb", buffering=0) as file:
            schema.check_header(file.read(100))
        connection = schema.connect(self.path)
        try:
            schema.configure(connection, self.max_pages)
            schema.check_tables(connection)
            if self._suspect:
                schema.check_whole(connection)
        except BaseException:
            connection.close()
            raise
        self._connection, self._settled, self._suspect, self._unreadable = connection, False, False, False
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    # ----------------------------------------------------------------------------------------------- replacing

    def _replace(self, why: Damaged) -> None:
        """Put a new file in the place of a damaged one, with all that can be saved; or make the first one."""
        began = time.monotonic()
        self._disconnect()
        with self._locked(fcntl.LOCK_EX):
            there = self._identity()
            if there is not None and there != self._opened:
                return  # the other process has done it meanwhile
            if there is not None and not self.repairs:
                raise OutboxError(f"{self.path}: damaged ({why}); the worker or the uplink repairs it when it starts")
            for left in self.path.parent.glob("outbox.new-*.db*"):  # by a process that died at this
                left.unlink()
            lost = there or self._opened
            saved = salvage.rebuild(self.path if there else None, self._fresh, self._clock.wall_ms() if lost else None)
            if there is not None:
                self._put_aside()
            self._remove_journal()
            self._fresh.rename(self.path)
            os.fsync(self._directory)
        if lost:
            took_s = time.monotonic() - began
            _log.error("%s was damaged (%s) and is replaced: %s, %.1f s", self.path, why, saved, took_s)

    def _put_aside(self) -> None:
        """Give the damaged file a second name, so that at no moment there is none under the first."""
        now_ms = max(1, self._clock.wall_ms())
        while (aside := self.path.with_name(f"outbox.corrupt-{now_ms}.db")).exists():
            now_ms += 1
        try:
            os.link(self.path, aside)
        except OSError:  # a file system without links
            self.path.rename(aside)
        with contextlib.suppress(FileNotFoundError):
            self.path.with_name("outbox.db-journal").rename(f"{aside}-journal")
        for old in self.put_aside()[:-KEEP_DAMAGED]:
            old.unlink()
            Path(f"{old}-journal").unlink(missing_ok=True)

    def put_aside(self) -> list[Path]:
        """Return the damaged files that are kept for someone to look at, oldest first."""
        return sorted(self.path.parent.glob("outbox.corrupt-*.db"), key=lambda path: (len(path.name), path.name))

    def _remove_journal(self) -> None:
        """See that no journal of the old file lies beside the new one: SQLite would play it into that."""
        for end in ("-journal", "-wal", "-shm"):
            self.path.with_name(f"outbox.db{end}").unlink(missing_ok=True)
        os.fsync(self._directory)
