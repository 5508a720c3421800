"""A folder that scanners, shares and people put pictures into: each file gets exactly one verdict.

A file is claimed when its size and time have stayed the same for a while and its end is there. Reports of the system
(inotify) make the folder listed at once and shorten nothing else: a closed file may be opened again for the next page,
and on a share there are no reports, where a file should be read no differently.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.clock import Clock
from agent.documents.document import is_complete, look_into
from agent.errors import AgentError, ConfigError, FrameError, InputError, readable
from agent.header import MAX_FILE_BYTES, printable
from agent.page import PageResult
from agent.source_config import DocumentsConfig, FolderConfig
from agent.sources import CHANGED, Capture
from agent.sources.folder.identity import digest_of
from agent.sources.folder.inbox import Inbox, Waiting, sight
from agent.sources.folder.pages import FolderCapture, Pages, reason_of
from agent.sources.folder.retention import Retention
from agent.sources.folder.tree import DONE, FAILED, Tree
from agent.sources.folder.watch import Watch

_log = logging.getLogger(__name__)

RETRY_S = 1.0
STUCK_S = 300.0
LOOKS = 100  # files looked into in one poll, at most
SHARE = 10  # listing takes no more than one part in so many of the time

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # should a FIFO take the file's place
_KINDS = ((stat.S_ISLNK, "a link"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))

AGAIN = "again-"
"""Claims of files to be read once more begin with this, so that a restart knows it too."""


class FolderSource:
    """Takes pictures and documents from a folder. See `FolderConfig` for what can be set."""

    def __init__(
        self,
        config: FolderConfig,
        clock: Clock | None = None,
        documents: DocumentsConfig | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the folder; files that were claimed before are offered first.

        Args:
            config: the settings.
            clock: time.
            documents: how files of several pages are read.
            progress: called while a large file is read to know it again, for a watchdog: a share may be slow.

        Raises:
            ConfigError: it cannot be worked in; the message says what to do.
        """
        self.name = config.name
        self._config = config
        self._documents = documents or DocumentsConfig()
        self._clock = clock or Clock()
        self._progress = progress
        self._tree = Tree(config.path)
        self._inbox = Inbox(config.stable_s)
        self._watch = Watch()
        self._retention = Retention(self._tree, keep_days=config.keep_days, keep_mb=config.keep_mb, clock=self._clock)
        self._out: dict[Path, Waiting] = {}  # offered, and no verdict yet
        self._pages: dict[Path, Pages] = {}  # those of them that are documents
        self._list_at = self._rested_at = self._spared_at = float("-inf")
        self._trouble = ""
        try:
            self._open()
        except OSError as error:
            self._suffer(error)

    def _open(self) -> None:
        self._tree.open()
        self._watch.begin(self._tree.path)
        self._inbox.clear()
        now = self._clock.monotonic()
        for claim, name in self._tree.claims():
            if self._tree.place_of(claim, name) not in self._out:
                self._hold(claim, name, now)

    def _hold(self, claim: str, name: str, now: float) -> Waiting | None:
        """Have a claimed file wait for its turn; None when it is gone."""
        with suppress(FileNotFoundError), self._tree.beside(claim) as (room, before):
            seen = sight(os.stat(before + name, dir_fd=room, follow_symlinks=False))
            waiting = Waiting(name, seen, now, now, claim)
            self._inbox.hold(waiting)
            return waiting
        return None

    def take_in(self, claim: str, name: str) -> None:
        """Offer a complete file that was put straight among the claimed ones; when the folder is away, later."""
        with suppress(OSError):
            self._hold(claim, name, self._now())

    # ------------------------------------------------------------------------------------------------ polling

    def poll(self) -> FolderCapture | None:
        """Return the next file or page of a document, claimed, or None; never waits."""
        now = self._clock.monotonic()
        if self._watch.heard():
            self._list_at = min(self._list_at, self._spared_at)
        if now < self._rested_at:
            return None
        try:
            if now >= self._list_at:
                self._look(now)
            return self._next(now)
        except (OSError, ConfigError) as error:
            self._suffer(error)
            return None

    def next_s(self) -> float:
        """Return the seconds until `poll` may have something although `fileno` stays silent."""
        due = self._now() if self._unfinished() else min(self._list_at, self._inbox.due)
        return max(0.0, self._rested_at - self._now(), due - self._now())

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors that are readable when files were put into the folder. `poll` empties them."""
        return tuple(fd for fd in (self._watch.fileno(),) if fd >= 0)

    def trouble(self) -> str:
        """Return why no files are taken, in one line; "" when nothing is wrong."""
        return self._trouble

    def needs_mb(self) -> int:
        """Return 0: the process that opens a PDF lives while nothing else does, and is part of decoding."""
        return 0

    def answer(self, capture: Capture, page: PageResult) -> None:
        """Do nothing: nobody waits beside a folder."""

    def _now(self) -> float:
        return self._clock.monotonic()

    def _look(self, now: float) -> None:
        """List the folder. It is opened anew when it was away: a share, a disk that was unplugged."""
        self._list_at = now + self._config.poll_s
        if not self._tree.is_there():
            self._open()
        self._inbox.look(self._tree.root, now)
        self._spared_at = now + SHARE * (self._now() - now)
        if self._trouble:
            self._trouble = ""
            _log.info("%s: files are taken from %s again", self.name, self._tree.path)

    def _suffer(self, error: OSError | ConfigError) -> None:
        """Wait for the folder to come back; said once."""
        said = str(error) if isinstance(error, AgentError) else f"{self._tree.path}: {os.strerror(error.errno or 0)}"
        if said != self._trouble:
            self._trouble = said
            _log.warning("%s: no files are taken: %s", self.name, said)
        self._tree.close()
        self._inbox.clear()
        # Documents of which pages are still to be offered wait too: only a look at the folder opens it again.
        self._list_at = self._rested_at = self._now() + self._config.poll_s

    def _next(self, now: float) -> FolderCapture | None:
        while pages := self._unfinished():
            if self._is_as_it_was(pages, now):
                return pages.next()
        for _ in range(LOOKS):
            waiting = self._inbox.next(now)
            if waiting is None:
                return None
            capture = self._take(waiting, now)
            if capture is not None:
                return capture
        return None

    def _unfinished(self) -> Pages | None:
        """Return the document that has pages to be offered; they come before other files."""
        return next((pages for pages in self._pages.values() if pages.has_more), None)

    def _is_as_it_was(self, pages: Pages, now: float) -> bool:
        """Return whether a document is still the one whose pages are offered; if not they are forgotten."""
        seen = pages.waiting.seen
        if self._status(pages.waiting, now) is not None:
            return True
        self._forget(pages.first.path)
        if pages.waiting.seen != seen:  # written to, and not gone
            self._inbox.hold(pages.waiting)
        return False

    def _forget(self, path: Path) -> Waiting:
        self._pages.pop(path, None)
        return self._out.pop(path)

    def _take(self, waiting: Waiting, now: float) -> FolderCapture | None:
        """Claim a file whose turn it is, or say when to look at it again."""
        if self._status(waiting, now) is None:
            return None
        waited = now - waiting.since
        if waited < self._config.give_up_s and not self._is_complete(waiting):
            until = min(waiting.since + self._config.give_up_s, now + max(waited, self._config.stable_s))
            self._inbox.later(waiting, until)
            return None
        claimed = waiting if waiting.claim else self._claim(waiting, now)
        return None if claimed is None else self._offer(claimed, now)

    def _offer(self, claimed: Waiting, now: float) -> FolderCapture | None:
        status = self._status(claimed, now)
        key = None if status is None else self._key(claimed, status, now)
        if status is None or key is None:
            return None
        self._inbox.drop(claimed)
        path = self._tree.place_of(claimed.claim, claimed.name)
        self._out[path] = claimed
        name, kind = printable(claimed.name), _kind(status.st_mode)
        try:
            document = None if kind else look_into(path, self._documents)
        except (FrameError, InputError) as refusal:
            return FolderCapture(key, self.name, name, path, kind, claimed.seen, refusal=refusal)
        if document is None:
            return FolderCapture(key, self.name, name, path, kind, claimed.seen)
        whole = FolderCapture(
            *(key, self.name, name, path, kind, claimed.seen),
            pages=document.pages,
            document=document,
            settings=self._documents,
        )
        self._pages[path] = pages = Pages(claimed, whole)
        return pages.next()

    def _status(self, waiting: Waiting, now: float) -> os.stat_result | None:
        """Return the status of a file that is as it was seen before."""
        try:
            with self._tree.beside(waiting.claim) as (room, before):
                status = os.stat(before + waiting.name, dir_fd=room, follow_symlinks=False)
        except FileNotFoundError:
            self._inbox.drop(waiting)
            if waiting.claim:
                self._tree.end_claim(waiting.claim)
            return None
        if sight(status) == waiting.seen:
            return status
        self._inbox.changed(waiting, sight(status), now)
        return None

    def _is_complete(self, waiting: Waiting) -> bool:
        """Return whether a file proves to have its end; others get `give_up_s` to have it."""
        try:
            with self._tree.beside(waiting.claim) as (room, before):
                descriptor = os.open(before + waiting.name, _READ, dir_fd=room)
            with os.fdopen(descriptor, "rb") as handle:
                is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
                return is_file and is_complete(handle, Path(waiting.name))
        except (OSError, FrameError, InputError):
            return False

    def _claim(self, waiting: Waiting, now: float) -> Waiting | None:
        """Move a file to the claimed ones."""
        claim = self._tree.begin_claim()
        try:
            self._tree.claim(claim, waiting.name)
        except FileNotFoundError:
            self._inbox.drop(waiting)
            return None
        except OSError as error:
            if not self._tree.is_writable():
                raise self._tree.refusal(error) from error
            if not waiting.warned:
                waiting.warned = True
                _log.warning("%s: a file cannot be claimed: %r: %s", self.name, waiting.name, error.strerror)
            self._inbox.later(waiting, now + STUCK_S)
            return None
        self._inbox.drop(waiting)
        claimed = self._hold(claim, waiting.name, now)
        if self._config.again == "read":
            self._tree.keep_claim(claim)  # it is part of the key
        if claimed is None or claimed.seen[:2] == waiting.seen[:2]:
            return claimed
        # Another file than the one that was looked at had taken its place.
        self._inbox.changed(claimed, claimed.seen, now)
        return None

    def _key(self, claimed: Waiting, status: os.stat_result, now: float) -> str | None:
        """Return the identity of a claimed file; None when it is written to meanwhile."""
        own = hashlib.sha256(claimed.claim.encode()).hexdigest()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return own
        try:
            with self._tree.beside(claimed.claim) as (room, before):
                descriptor = os.open(before + claimed.name, _READ, dir_fd=room)
            with os.fdopen(descriptor, "rb") as handle:
                digest = digest_of(handle, self._progress)
                seen = sight(os.fstat(descriptor))
        except OSError:
            return own
        if seen != claimed.seen:
            self._inbox.changed(claimed, seen, now)
            return None
        once = self._config.again == "skip" and not claimed.claim.startswith(AGAIN)
        return digest if once else f"{digest}:{claimed.claim.removeprefix(AGAIN)}"

    # ------------------------------------------------------------------------------------------------ verdicts

    def done(self, capture: Capture, error: FrameError | InputError | None = None) -> str:
        """Put a file away: its result is kept, or it is refused. Returns where it lies now, "" when it is gone.

        A document is put away with the last verdict on its pages, and refused when one of them was. A file that was
        written to while it was read is not put away: it waits for its turn again.

        Raises:
            OSError: it cannot be put away now; it will be offered again.
        """
        assert isinstance(capture, FolderCapture)
        pages, now = self._pages.get(capture.path), self._now()
        if capture.page and (pages is None or not pages.has(capture)):
            return ""  # its document went, or was written to, while this page was read
        if error is not None and error.reason == CHANGED:
            waiting = self._forget(capture.path)
            self._put_back(waiting, now + self._config.stable_s)
            return ""
        if pages is not None:
            if not pages.judge(capture, error):
                return ""
            error = pages.verdict()
        waiting = self._forget(capture.path)
        try:
            return self._put_away(waiting, capture, error)
        except FileNotFoundError:
            self._tree.end_claim(waiting.claim)
            return ""
        except OSError:
            self._put_back(waiting, now + STUCK_S)
            raise

    def _put_away(self, waiting: Waiting, capture: FolderCapture, error: FrameError | InputError | None) -> str:
        if error is not None:
            note = reason_of(error).replace(str(capture.path), capture.name)
            line = readable(note).replace("\n", "\\n") + "\n"
            return self._tree.put_away(waiting.claim, waiting.name, FAILED, line)
        if self._config.when_done == "keep":
            return self._tree.put_away(waiting.claim, waiting.name, DONE)
        self._tree.delete(waiting.claim, waiting.name)
        return ""

    def discard(self, capture: Capture) -> None:
        """Delete a file that nothing is to be kept of, whatever its verdict.

        Raises:
            OSError: it cannot be deleted now; it will be offered again.
        """
        assert isinstance(capture, FolderCapture)
        waiting = self._forget(capture.path)
        try:
            self._tree.delete(waiting.claim, waiting.name)
        except FileNotFoundError:
            self._tree.end_claim(waiting.claim)
        except OSError:
            self._put_back(waiting, self._now() + STUCK_S)
            raise

    def _put_back(self, waiting: Waiting, due: float) -> None:
        waiting.due = due
        self._inbox.hold(waiting)

    def retry(self, capture: Capture) -> None:
        """Offer a file or page again, before others and a little later: nothing could be decided about it."""
        assert isinstance(capture, FolderCapture)
        self._rested_at = self._now() + RETRY_S
        if not capture.page:
            if waiting := self._out.pop(capture.path, None):  # else it is put away already
                self._put_back(waiting, self._now())
        elif (pages := self._pages.get(capture.path)) and pages.has(capture):
            pages.retry(capture)

    def reread(self, place: str) -> bool:
        """Offer a file that `done` put away at a place once more, under a key of its own; false when it is gone."""
        folder, name = os.path.split(place)
        room = {os.path.join(self._tree.path, room): room for room in (DONE, FAILED)}.get(folder)
        if room is None or name in ("", ".", ".."):
            return False
        try:
            claim = self._tree.begin_claim(AGAIN)
            self._tree.claim(claim, name, room=room)
        except OSError:
            return False
        with suppress(OSError):  # claimed it is, and at the latest offered after the next start
            self._hold(claim, name, self._now())
            self._tree.keep_claim(claim)
        self._tree.forget_note(room, name)
        return True

    # ------------------------------------------------------------------------------------------------ upkeep

    def tidy(self) -> None:
        """Delete handled files that are over the caps, a step at a time."""
        with suppress(OSError):  # the folder is away; polling says so
            self._retention.tidy()

    def close(self) -> None:
        """Give descriptors back. Claimed files without a verdict are offered again after the next start."""
        self._watch.close()
        self._tree.close()


def _kind(mode: int) -> str:
    """Return what something is that is no file, "" for a file."""
    if stat.S_ISREG(mode):
        return ""
    return next((kind for test, kind in _KINDS if test(mode)), "a device")
