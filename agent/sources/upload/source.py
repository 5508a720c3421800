"""Files that programs on this machine send over HTTP and wait for: a folder source, with a desk before it.

A file that came whole lies in a claim of the folder `STATE_DIR/sources/NAME`, so that claims, verdicts, reading again
and retention are the folder's, and a killed worker loses nothing.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, secret
from agent.errors import ConfigError, FrameError, InputError
from agent.health import WorkerState
from agent.mask import Masker
from agent.page import PageResult, to_json
from agent.source_config import FolderConfig, UploadConfig, spool_config
from agent.sources import CHANGED, Capture
from agent.sources.folder.pages import FolderCapture
from agent.sources.folder.source import FolderSource
from agent.sources.folder.tree import HOME, WORK
from agent.sources.upload.answers import Answers, Outcome
from agent.sources.upload.desk import ONCE, Desk, Ticket
from agent.sources.upload.front import Front, FrontSettings
from agent.sources.upload.listener import Listener, open_socket
from agent.sources.upload.problems import Problem

_log = logging.getLogger(__name__)

POLL_S = 30.0  # nothing else comes into the folder


class _Answer(msgspec.Struct, frozen=True):
    """The JSON of what was read.

    Attributes:
        key: of the file.
        kept: the result is in the outbox.
        pages: results as `edge-ocr read --json` has them; one of a picture, all of a document.
    """

    key: str
    kept: bool
    pages: tuple[msgspec.Raw, ...]


class _Told(msgspec.Struct, frozen=True):
    """A page as it is told.

    Attributes:
        body: JSON, masked as is set.
        reason: why it was refused, one word; None when it was read.
        error: likewise, one line.
    """

    body: msgspec.Raw
    reason: str | None
    error: str | None


class UploadSource:
    """Takes pages over HTTP. See `UploadConfig` for what can be set."""

    def __init__(self, config: UploadConfig, agent: AgentConfig, clock: Clock | None = None) -> None:
        """Open the folder and listen.

        Args:
            config: the settings.
            agent: the whole settings: where its folder is, what is masked, how documents are read.
            clock: time, of the folder.

        Raises:
            ConfigError: it cannot listen, or its folder cannot be worked in; the message says what to do.
        """
        self.name = config.name
        self._masker = Masker(agent.privacy) if config.masked else None
        self._pages: dict[str, dict[int, _Told]] = {}  # by claim and number
        home = Path(agent.state_dir) / "sources" / config.name
        token = secret(config.token)
        listening = open_socket(config, has_token=token is not None)
        settings = FrontSettings.of(config, token, listening)
        try:
            incoming = home / HOME / "incoming"
            shutil.rmtree(incoming, ignore_errors=True)
            incoming.mkdir(mode=0o700, parents=True)
            self._answers = Answers(home / HOME / "answers", config.repeat_s)
            self._desk = Desk(home / HOME / WORK, self._answers, config.max_waiting)
        except OSError as error:
            listening.close()
            raise ConfigError(f"{home}: {error.strerror}: state_dir must be writable") from error
        self._folder = FolderSource(_folder_config(config, home), clock, agent.documents)
        self._front = Front(self._desk, incoming, settings)
        path = config.listen.removeprefix("unix:") if config.listen.startswith("unix:") else ""
        self._listener = Listener(listening, self._front.exchange, config.max_connections, path)
        _log.info("%s: listens on %s", self.name, config.listen)

    def poll(self) -> Capture | None:
        """Return the next file, claimed, or None; never waits."""
        for claim, name in self._desk.arrivals():
            self._folder.take_in(claim, name)
        while (capture := self._folder.poll()) is not None:
            if not self._desk.give_up(_claim(capture)):
                return msgspec.structs.replace(capture, keep=not _claim(capture).startswith(ONCE))
            with suppress(OSError):
                self._folder.discard(capture)
        return None

    def next_s(self) -> float:
        """Return the seconds until `poll` may have something although `filenos` stay silent."""
        return self._folder.next_s()

    def filenos(self) -> tuple[int, ...]:
        """Return a descriptor that is readable when files came. `poll` empties it."""
        return (self._desk.fileno(),)

    def trouble(self) -> str:
        """Return why no files are taken, in one line; "" when nothing is wrong."""
        return self._folder.trouble()

    def needs_mb(self) -> int:
        """Return 0: it starts no process."""
        return 0

    def heed(self, state: WorkerState) -> None:
        """Take what the worker tells about itself: while it takes no pages, requests are refused at once."""
        self._front.heed(state, self.trouble())

    def answer(self, capture: Capture, page: PageResult) -> None:
        """Keep what was read until `done`."""
        self._front.tally.page(page)
        self._collect(capture, page)

    def _collect(self, capture: Capture, page: PageResult) -> None:
        """Put a page beside the others of its file, where somebody waits for them; read twice, it counts once."""
        claim = _claim(capture)
        ticket = self._desk.ticket(claim)
        if ticket is None:
            return
        masked = page if self._masker is None else self._masker.page(page)
        told = msgspec.structs.replace(masked, key=page.key.replace(claim, ticket.origin))
        self._pages.setdefault(claim, {})[page.page] = _Told(msgspec.Raw(to_json(told)), page.reason, page.error)

    def done(self, capture: Capture, error: FrameError | InputError | None = None) -> str:
        """Give whoever waits the answer, and put the file away. Returns where it lies now, "" when it is gone.

        Raises:
            OSError: it cannot be put away now; it will be offered again.
        """
        if error is not None and error.reason == CHANGED:
            return self._folder.done(capture, error)
        claim = _claim(capture)
        if error is not None:
            page = _refused(capture, error)
            self._front.tally.page(page)
            self._collect(capture, page)
        is_last = capture.page == capture.pages
        if is_last:
            self._finish(capture, self._pages.pop(claim, {}))
        if is_last and not capture.keep:
            self._folder.discard(capture)
            return ""
        return self._folder.done(capture, error)

    def _finish(self, capture: Capture, pages: dict[int, _Told]) -> None:
        """Hand out the outcome of a file whose last page has its verdict."""
        assert isinstance(capture, FolderCapture)
        claim = _claim(capture)
        ticket = self._desk.ticket(claim)
        if ticket is None:
            return
        if len(pages) < max(1, capture.pages):  # read before a restart; what was read is in the outbox, masked
            self._ask_again(ticket, capture)
            return
        digest = capture.key.partition(":")[0]
        told = [page for _, page in sorted(pages.items())]
        self._desk.finish(claim, digest, _outcome(f"{digest}:{ticket.origin}", told, kept=ticket.keep))

    def _ask_again(self, ticket: Ticket, capture: FolderCapture) -> None:
        try:
            self._folder.take_in(*self._desk.again(ticket, capture.path))
        except OSError as error:
            problem = Problem(503, "disk", f"kept before, and cannot be read again: {error.strerror}")
            self._desk.finish(ticket.claim, "", Outcome(problem.status, msgspec.Raw(problem.body())))

    def retry(self, capture: Capture) -> None:
        """Offer a file again, a little later: nothing could be decided about it."""
        self._folder.retry(capture)

    def reread(self, place: str) -> bool:
        """Offer a file that was put away at a place once more; false when it is gone. Nobody waits for that."""
        return self._folder.reread(place)

    def tidy(self) -> None:
        """Delete what is kept too long."""
        self._folder.tidy()
        self._answers.tidy()

    def close(self) -> None:
        """Listen no more, refuse whoever waits, and give descriptors back."""
        self._desk.stop()
        self._listener.close()
        self._folder.close()
        self._desk.close()


def _claim(capture: Capture) -> str:
    assert isinstance(capture, FolderCapture)
    return capture.path.parent.name


def _outcome(key: str, pages: list[_Told], *, kept: bool) -> Outcome:
    """Return what is told of a file: its pages, or, when none could be read, why."""
    if all(page.error is not None for page in pages):
        problem = Problem(422, pages[0].reason or "", pages[0].error or "")
        return Outcome(problem.status, msgspec.Raw(problem.body()))
    return Outcome(200, msgspec.Raw(msgspec.json.encode(_Answer(key, kept, tuple(page.body for page in pages)))))


def _refused(capture: Capture, error: FrameError | InputError) -> PageResult:
    assert isinstance(capture, FolderCapture)
    said = str(error).replace(os.fspath(capture.path), capture.name)
    return PageResult(
        *(capture.name, 0, 0),
        error=said,
        reason=error.reason,
        key=capture.key,
        source=capture.source,
        page=capture.page,
        pages=capture.pages,
    )


def _folder_config(config: UploadConfig, home: Path) -> FolderConfig:
    # Files get no time to have their end, nothing is dropped into the folder, and each request is a file of its own.
    return msgspec.structs.replace(spool_config(config, home), give_up_s=0.0, poll_s=POLL_S, again="read")
