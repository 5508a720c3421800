"""The worker: sees pictures, has no network. Sources -> reader -> mask -> outbox, one page at a time.

The order keeps every page: claimed, its attempt committed, read, its result committed, and only then put away. A page
that ends the process is met again after the restart, and put aside when that has happened too often.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from agent import health, memory, notify
from agent.ceiling import Ceiling, allowed_mb, fence
from agent.clock import Clock
from agent.config import AgentConfig
from agent.errors import BundleError, EngineError, FrameError, InputError, OutboxError
from agent.hooks import FailedPage, Hooks
from agent.logbook import Logbook
from agent.mask import Masker
from agent.notify import Notifier
from agent.openers import PageReader, open_reader, open_sources
from agent.outbox import Outbox, Request
from agent.page import PageResult, document_keys, to_json
from agent.sources import CHANGED, Attentive, Capture, Source

_log = logging.getLogger(__name__)

LOOK_S = 1.0  # the longest sleep: commands and a full outbox are looked at this often
LEVEL_S = 5.0
TIDY_S = 60.0


class _Unsaved(msgspec.Struct, frozen=True):
    """A page that was read while the outbox took nothing: kept until it does, so that it is not read again."""

    source: Source
    capture: Capture
    result: bytes


class Worker:
    """Takes pages from sources until told to stop."""

    def __init__(
        self,
        config: AgentConfig,
        outbox: Outbox,
        sources: Sequence[Source],
        open_reader: Callable[[], tuple[PageReader, str]],
        clock: Clock | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Make a worker; nothing is loaded before `start`.

        Args:
            config: the settings.
            outbox: keeps results.
            sources: give pages.
            open_reader: loads the models; returns the reader and the label of its bundle.
            clock: time.
            notifier: is told of readiness and of progress.
        """
        self._config = config
        self._outbox = outbox
        self._sources = {source.name: source for source in sources}
        self._open_reader = open_reader
        self._clock = clock or Clock()
        self._notifier = notifier or Notifier()
        self._masker = Masker(config.privacy)
        self._hooks = Hooks(config.hooks, self._clock)
        self._reader: PageReader | None = None
        self._ceiling = Ceiling(config.memory.limit_mb)
        self._rested = False
        self._restarts = False
        self._worked_at = self._clock.monotonic()
        self._unsaved: _Unsaved | None = None
        self._logbook = Logbook(Path(config.state_dir), self._clock)
        self._level: str = config.log_level
        self._troubles = dict.fromkeys(self._sources, "")
        self._tidied_at = self._looked_at = float("-inf")
        self._stopping = False
        self._wake_out, self._wake_in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def state(self) -> health.WorkerState:
        """What it says of itself now; without what is looked up when it is written."""
        return self._logbook.state

    def start(self) -> None:
        """Load the models.

        Raises:
            BundleError: they cannot be trusted.
            EngineError: no runtime for them.
            BudgetError: they do not fit.
        """
        self._reader, label = self._open_reader()
        memory.settle()
        self._ceiling.settle(memory.resident_bytes(), beside_bytes=self._reader.beside_bytes)
        self._logbook.note(bundle=label, limit_mb=self._ceiling.limit_mb)
        self._tell()
        self._notifier.ready()
        _log.info("ready: %s, %d sources, %.0f MB", label, len(self._sources), health.resident_mb())

    def run(self) -> bool:
        """Work until `stop` is called; true when the process must be started anew because it holds too much memory."""
        while not self._stopping and not self._restarts:
            if not self.tick():
                self._sleep()
        if self._stopping:
            self._notifier.stopping()
        return self._restarts and not self._stopping

    def stop(self) -> None:
        """End after the page at hand. May be called from a signal handler, and when it has ended."""
        self._stopping = True
        with suppress(OSError):
            os.write(self._wake_in, b"!")

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    def close(self) -> None:
        """Give everything back."""
        for source in self._sources.values():
            source.close()
        self._hooks.close()
        if self._reader is not None:
            self._reader.close()
        memory.unsettle()
        self._tell()
        wake_in, self._wake_in = self._wake_in, -1  # the number may soon be another file's
        os.close(wake_in)
        os.close(self._wake_out)

    def tick(self) -> bool:
        """Do one thing: take at most one page. Returns whether there may be more to do at once."""
        try:
            self._obey()
            self._tidy()
            self._hold(self._outbox.held())
            worked = self._save_unsaved() if self._unsaved else not self.state.held and self._take_page()
            self._hear_troubles()
            self._mind_memory(worked)
        except OutboxError as error:
            # Nothing was decided about the page at hand; it is offered again when the outbox takes results.
            self._hold("failing", str(error))
            worked = False
        self._hooks.tick()
        if self._logbook.is_due:
            self._tell()
        self._notifier.progress()
        return worked

    # ---------------------------------------------------------------------------------------------- pages

    def _take_page(self) -> bool:
        """Take the next page of the first source that has one; sources take turns."""
        for name, source in tuple(self._sources.items()):
            capture = source.poll()
            if capture is None:
                continue
            self._sources[name] = self._sources.pop(name)  # to the end of the row
            try:
                self._handle(source, capture)
            except OutboxError:
                if self._unsaved is None:
                    source.retry(capture)
                raise
            return True
        return False

    def _handle(self, source: Source, capture: Capture) -> None:
        """Give one page its verdict."""
        known = self._outbox.intake(capture.key)
        if known is not None and known.status == "accepted":
            self._logbook.note(skipped=self.state.skipped + 1)
            _log.info("%s: known already, not read again, key %s", capture.source, capture.key[:12])
            self._put_away(source, capture, None)
            return
        attempts = self._outbox.begin(capture.key, capture.source, capture.name if capture.keep else "")
        # What had its verdict did not end the process: a page that is refused again each time it comes, or each time
        # another page of its document ended the worker.
        refused = known is not None and known.status == "failed" and known.reason != "crash"
        if attempts > self._config.outbox.max_attempts and not refused:
            ended = attempts - 1
            self._refuse(source, capture, FrameError("crash", f"ended the worker {ended} times; put aside"))
            return
        if attempts > 1:
            _log.warning("%s: read again, attempt %d, key %s", capture.source, attempts, capture.key[:12])
        try:
            page = self._read(capture)
        except (FrameError, InputError) as error:
            if error.reason == CHANGED:
                source.done(capture, error)  # no verdict: it is offered again, with another content and key
            else:
                self._refuse(source, capture, error)
            return
        source.answer(capture, page)
        if capture.keep:
            self._unsaved = _Unsaved(source, capture, to_json(self._masker.page(page)))
            self._save_unsaved()
        else:
            self._outbox.forget(capture.key)
            self._put_away(source, capture, None)

    def _read(self, capture: Capture) -> PageResult:
        """Return what is on a page."""
        assert self._reader is not None
        began = self._clock.monotonic()
        try:
            frame = capture.load(self._reader.budget)
            decoded = self._clock.monotonic() - began
            page = self._reader.read(frame).with_decoding(decoded)
        except (FrameError, InputError, EngineError, BundleError):  # models that are gone are no page's fault
            raise
        except MemoryError as error:
            raise FrameError("memory", "out of memory: raise memory.limit_mb, or free memory") from error
        except Exception as error:  # of this page only: the others are read
            _log.exception("a defect of this program; the page is put aside")
            raise FrameError("defect", f"a defect of this program ({type(error).__name__})") from error
        page = msgspec.structs.replace(
            page,
            image=capture.name,
            key=capture.key,
            source=capture.source,
            taken_at=frame.taken_at,
            page=capture.page,
            pages=capture.pages,
        )
        _log.info(
            "%s: %d lines, %.0f ms, %.0f MB, key %s",
            *(capture.source, len(page.lines), 1000 * page.seconds, health.resident_mb(), capture.key[:12]),
        )
        return page

    def _save_unsaved(self) -> bool:
        """Commit the page that was read; only then is it put away."""
        assert self._unsaved is not None
        page = self._unsaved
        try:
            self._outbox.accept(page.capture.key, page.result)
        except FrameError as error:  # too large for a message
            self._unsaved = None
            self._refuse(page.source, page.capture, error)
            return True
        self._unsaved = None
        self._logbook.accepted()
        self._hooks.accepted(page.result)
        self._put_away(page.source, page.capture, None)
        return True

    def _refuse(self, source: Source, capture: Capture, error: FrameError | InputError) -> None:
        if capture.keep:
            self._outbox.fail(capture.key, error.reason)
            said = (capture.key, capture.source, capture.name, error.reason, str(error), capture.page, capture.pages)
            self._hooks.failed(FailedPage(*said))
        else:
            self._outbox.forget(capture.key)
        self._logbook.note(failed=self.state.failed + 1)
        _log.warning("%s: refused (%s), key %s", capture.source, error.reason, capture.key[:12])
        self._put_away(source, capture, error)

    def _put_away(self, source: Source, capture: Capture, error: FrameError | InputError | None) -> None:
        try:
            place = source.done(capture, error)
        except OSError as problem:
            # It stays claimed; after the next start its verdict is known, and it is put away then.
            self._logbook.note(last_error=f"{source.name}: a handled file cannot be put away: {problem.strerror}")
            _log.warning("%s", self.state.last_error)
            return
        if place:
            self._outbox.place(document_keys(capture.key, capture.pages), place)

    # -------------------------------------------------------------------------------------------- memory

    def _mind_memory(self, worked: bool) -> None:
        """Look what a page has left behind, or give the models back when none comes."""
        assert self._reader is not None
        now = self._clock.monotonic()
        if not worked:
            if not self._rested and now - self._worked_at >= self._config.memory.idle_s:
                self._rested = True
                self._reader.rest()
                _log.info("no pages: the models are given back, %.0f MB", health.resident_mb())
            return
        self._worked_at, self._rested = now, False
        memory.collect()
        memory.trim()  # the page is gone only now: up to 10 MB of it would stay
        advice = self._ceiling.judge(self._ceiling.read())
        if advice == "rebuild":
            before = health.resident_mb()
            self._reader.rebuild()
            self._logbook.note(rebuilds=self.state.rebuilds + 1)
            _log.warning("memory grew to %.0f MB: the models were loaded anew, %.0f MB", before, health.resident_mb())
        elif advice == "restart" and self._unsaved is None:
            _log.warning("memory stays at %.0f MB: this process starts anew", health.resident_mb())
            self._restarts = True

    # --------------------------------------------------------------------------------------- housekeeping

    def _obey(self) -> None:
        """Carry out what was ordered over MQTT or with `edge-ocr`."""
        for request in self._outbox.requests():
            if request.verb != "reread":
                continue  # the uplink's own, between its asking and its finishing
            self._outbox.finish(request.id, *self._carry_out(request))

    def _carry_out(self, request: Request) -> tuple[bool, str]:
        known = self._outbox.intake(request.argument)
        if known is None:
            return False, "no such page"
        source = self._sources.get(known.source)
        if source is None or not known.place or not source.reread(known.place):
            return False, "its picture is gone"
        return True, "to be read again"

    def _tidy(self) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at >= LEVEL_S:
            self._looked_at = now
            self._set_level(self._outbox.stats().level)
        if now - self._tidied_at >= TIDY_S:
            self._tidied_at = now
            self._outbox.tidy()
            for source in self._sources.values():
                source.tidy()

    def _hear_troubles(self) -> None:
        """Have the centre and `edge-ocr status` know when a source gives no pages; sources log it themselves."""
        for name, source in self._sources.items():
            trouble = source.trouble()
            if trouble == self._troubles[name]:
                continue
            if trouble:
                self._outbox.add_event("alarm", f"{name}: {trouble}")
            self._troubles[name] = trouble
            self._logbook.note(
                troubles=tuple(f"{name}: {said}" for name, said in sorted(self._troubles.items()) if said)
            )

    def _set_level(self, level: str) -> None:
        """Follow a changed level of the log; "" is the configured one."""
        level = level or self._config.log_level
        if level != self._level:
            self._level = level
            health.set_level(level)

    def _hold(self, held: str, error: str = "") -> None:
        """Note why no pages are taken; say so once."""
        if held != self.state.held:
            if held in ("", "paused"):
                _log.info("pages are %s", "not taken: paused" if held else "taken again")
            else:
                _log.error("no pages are taken: %s %s", held, error)
        self._logbook.note(held=held, reading=not held, **({"last_error": error} if error else {}))

    def _tell(self) -> None:
        told = self._logbook.write(self._ceiling.most_mb)
        for source in self._sources.values():
            if isinstance(source, Attentive):
                source.heed(told)
        doing = "reading" if told.reading else f"takes no pages: {told.held}"
        self._notifier.status(f"{doing}; {told.accepted} accepted, {told.failed} refused, {told.rss_mb:.0f} MB")

    def _sleep(self) -> None:
        """Wait for a file, a signal or the next look."""
        idle = not self.state.held and self._unsaved is None
        sources = self._sources.values() if idle else ()
        timeout = min([LOOK_S, self._hooks.next_s(), *(source.next_s() for source in sources)])
        watched = [*self._hooks.filenos(), *(fd for source in sources for fd in source.filenos())]
        select.select([self._wake_out, *watched], [], [], max(0.0, timeout))


def _within(config: AgentConfig, limit_mb: int) -> AgentConfig:
    return msgspec.structs.replace(config, memory=msgspec.structs.replace(config.memory, limit_mb=limit_mb))


def _on_end(handler: Callable[..., object] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def run(
    config: AgentConfig,
    reader: Callable[[AgentConfig], tuple[PageReader, str]] | None = None,
    clock: Clock | None = None,
) -> None:
    """Run the worker until SIGTERM or SIGINT.

    Raises:
        AgentError: it cannot start.
    """
    health.set_up_logging("worker", config.log_level)
    clock = clock or Clock()
    state_dir = Path(config.state_dir)
    lock = health.Lock(state_dir, "worker", clock)
    notifier = notify.connect(clock, beat=lock.heart.beat)
    reader = reader or partial(open_reader, progress=notifier.progress)
    outbox = Outbox(state_dir, config.outbox, role="worker", clock=clock)
    sources = open_sources(config, clock, notifier.progress)
    config = _within(config, allowed_mb(config.memory.limit_mb) - sum(source.needs_mb() for source in sources))
    worker = Worker(config, outbox, sources, partial(reader, config), clock, notifier)
    _on_end(lambda *_: worker.stop())
    again = False
    try:
        worker.start()
        fence(config.memory.limit_mb)
        again = worker.run()
    finally:
        worker.close()
        outbox.close()
        lock.close()
    if not again:
        return
    _on_end(signal.SIG_DFL)  # all is closed: what comes from here on ends it at once
    if not worker.is_stopping:
        # The same process to whoever started it: neither systemd nor a supervisor has anything to do. The watchdog goes
        # on while the models are loaded.
        notify.keep_passed_sockets()
        notifier.progress()
        os.execv(sys.executable, sys.orig_argv)
