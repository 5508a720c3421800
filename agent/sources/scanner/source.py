"""A scanner: paper from its feeder or glass, by SANE's `scanimage`, read as files of a folder of its own.

A run of scanimage is one of three: it looks which scanners there are, asks what one of them can, or scans. Nobody waits
for it. Each page that it finishes is moved, durably, into the folder that a folder source watches; so claims, verdicts,
a second reading and what a crash leaves are that source's, and known from there.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.errors import FrameError, InputError
from agent.page import PageResult
from agent.source_config import ScannerConfig, spool_config
from agent.sources import Capture
from agent.sources.folder.pages import FolderCapture
from agent.sources.folder.source import FolderSource
from agent.sources.scanner.options import has_feeder, needs_mb, options_in, settings
from agent.sources.scanner.orders import Answer, Order, folder_of, orders_of
from agent.sources.scanner.scanimage import (
    ABSENT,
    EMPTY,
    LIST,
    NO_PROGRAM,
    NO_PROGRESS,
    PROGRAM,
    UNCLEAR,
    Fault,
    Run,
    devices_in,
    fault_of,
    is_running,
    kill_left,
)
from agent.sources.scanner.spool import PAGE_NAME, Collected, Spool

_log = logging.getLogger(__name__)

LOOK_S = 1.0  # orders are looked for this often
LINGER_S = 0.05  # between the end of its output and its own
FINISH_S = 5.0
END_S = 5.0
BUSY_S = 60.0  # an order waits for a busy scanner for so long

_NONE = Fault(ABSENT, "no scanner is found: switch it on, connect it, and look at `edge-ocr check`", 15.0)


class ScannerSource:
    """Takes pages from a scanner. See `ScannerConfig` for what can be set."""

    def __init__(self, config: ScannerConfig, state_dir: Path, clock: Clock | None = None) -> None:
        """Open the folder of scanned pages; the scanner is not touched yet.

        Args:
            config: the settings.
            state_dir: of the agent; pages wait in `sources/NAME` below it.
            clock: time.

        Raises:
            InputError: the folder cannot be made.
            ConfigError: it cannot be worked in; the message says what to do.
        """
        self.name = config.name
        self._config = config
        self._clock = clock or Clock()
        try:
            self._spool = Spool(folder_of(state_dir, config.name), self._clock)
            self._orders = orders_of(state_dir, config.name)
            self._orders.begin()
        except OSError as error:
            raise InputError(f"{state_dir}: {error.strerror}: state_dir must be a directory of this user") from error
        # Two equal pages are two pages.
        folder = msgspec.structs.replace(spool_config(config, self._spool.path), again="read")
        self._folder = FolderSource(folder, self._clock)
        self._device = config.device
        self._arguments: tuple[str, ...] | None = None  # of a scan, once the scanner has said what it can
        self._order: Order | None = None
        self._order_until = self._left_since = float("inf")
        self._scanned = 0  # pages of the order
        self._doubt: Fault | None = None
        self._trouble = ""
        self._full = False
        self._due = float("-inf")  # nothing is begun before
        self._look_at = float("-inf") if config.trigger == "feeder" else float("inf")
        self._run: Run | None = None
        self._ended: Callable[[int, str], None] = self._listed  # what is done with the end of the run
        self._place = self._spool.path  # of the run
        self._heard: list[str] = []
        self._asked = self._adopted = self._size = 0
        self._moved_at = self._urged_at = 0.0

    # ------------------------------------------------------------------------------------------------ polling

    def poll(self) -> FolderCapture | None:
        """Return the next page, claimed, or None; never waits."""
        self._step()
        return self._folder.poll()

    def next_s(self) -> float:
        """Return the seconds until `poll` may have something although `filenos` stay silent."""
        if self._run is not None:
            own = LINGER_S if self._run.fileno() < 0 else LOOK_S
        else:
            own = min(LOOK_S, max(0.0, self._due - self._clock.monotonic()))
        return min(own, self._folder.next_s())

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors that are readable when a page is finished, or scanimage has ended."""
        own = () if self._run is None or self._run.fileno() < 0 else (self._run.fileno(),)
        return (*self._folder.filenos(), *own)

    def trouble(self) -> str:
        """Return why the scanner gives no pages, in one line; "" when nothing is wrong."""
        return self._trouble or self._folder.trouble()

    def needs_mb(self) -> int:
        """Return what scanimage takes, in MB; backends that scan both sides at once keep one of them."""
        return needs_mb(self._config)

    def _step(self) -> None:
        try:
            self._go_on(self._clock.monotonic())
        except OSError as error:
            self._fail(Fault("disk", f"{self._spool.path}: {error.strerror}", 10.0))

    def _go_on(self, now: float) -> None:
        """Go on with the run, or begin one."""
        if self._run is not None:
            self._attend(self._run, now)
            return
        if self._order is None:
            self._order = self._orders.next()
            if self._order is not None:
                self._scanned, self._due, self._order_until = 0, now, now + BUSY_S
        if now >= self._due:
            self._due = now + LOOK_S
            if self._is_clear(now) and (self._order is not None or now >= self._look_at):
                self._begin(now)

    def _is_clear(self, now: float) -> bool:
        """Collect what runs before this one have left; false while one of them, of an ended worker, goes on."""
        for left in self._spool.runs():
            if is_running(left):
                self._left_since = min(self._left_since, now)
                if now - self._left_since > self._config.timeout_s:
                    kill_left(left)
                return False
            self._tell(self._spool.collect(left))
        self._left_since = float("inf")
        return True

    def _begin(self, now: float) -> None:
        """Start the run that is needed next."""
        if not self._device:
            self._start(LIST, self._listed, now)
        elif self._arguments is None:
            # The configured options first: they may change what else can be set.
            self._start((PROGRAM, self._device_option, *self._config.options, "-A"), self._told_options, now)
        elif self._order is None and self._config.trigger == "order":
            self._recover()  # the scanner can be opened again, and no more is known before it scans
        elif room := self._room():
            self._asked = self._count(room)
            batch = (f"--batch={PAGE_NAME}", f"--batch-count={self._asked}", "--batch-print", "--format=tiff")
            self._start((PROGRAM, self._device_option, *self._arguments, *batch), self._scanned_pages, now)

    @property
    def _device_option(self) -> str:
        return f"--device-name={self._device}"

    def _room(self) -> int:
        """Return how many pages may be scanned; once there was no room, half of it must be free until there is."""
        most, waiting = self._config.max_waiting, self._spool.waiting()
        room = most - waiting
        self._full = room <= 0 or (self._full and waiting > most // 2)
        return 0 if self._full else room

    def _count(self, room: int) -> int:
        """Return how many pages a batch is to have."""
        feeds = has_feeder(self._arguments or ())
        room += room % 2 if feeds else 0  # both sides of a sheet come together
        if self._order is None:
            return room
        return min(room, self._order.pages - self._scanned) if self._order.pages else room if feeds else 1

    # ------------------------------------------------------------------------------------------------ runs

    def _start(self, arguments: tuple[str, ...], ended: Callable[[int, str], None], now: float) -> None:
        self._place = self._spool.begin_run()
        self._ended, self._heard, self._adopted, self._size = ended, [], 0, 0
        self._moved_at, self._urged_at = now, float("inf")
        try:
            self._run = Run(arguments, self._place)
        except FileNotFoundError:
            self._fail(NO_PROGRAM)
        except OSError as error:
            self._fail(Fault("start", f"{PROGRAM} cannot be started: {error.strerror}", 10.0))

    def _attend(self, run: Run, now: float) -> None:
        """Take what a run has put out, and see whether it goes on."""
        status = run.status()  # before its lines, so that none are missed
        for line in run.lines():
            self._moved_at = now
            if self._ended != self._scanned_pages:
                self._heard.append(line)
            elif self._spool.adopt(self._place, line):
                self._adopted += 1
        if status is None:
            self._watch(run, now)
            return
        said = run.said()
        run.close()
        self._run = None
        left = self._spool.collect(self._place)
        self._adopted += left.pages
        self._scanned += self._adopted
        if self._adopted:
            _log.info("%s: %d pages scanned", self.name, self._adopted)
        self._tell(Collected(0, left.cut))
        if self._urged_at != float("inf"):
            self._fail(NO_PROGRESS)
        else:
            self._ended(status, said)

    def _watch(self, run: Run, now: float) -> None:
        """End a run that has not put out anything for too long."""
        size = self._spool.size(self._place)
        if size != self._size:
            self._size, self._moved_at = size, now
        if now - self._moved_at < self._config.timeout_s:
            return
        if self._urged_at == float("inf"):
            self._urged_at = now
            run.signal(signal.SIGTERM)  # backends bring the scanner to rest
        elif now - self._urged_at >= END_S:
            run.signal(signal.SIGKILL)

    def _tell(self, left: Collected) -> None:
        if left.pages:
            _log.info("%s: %d pages from before a restart", self.name, left.pages)
        if left.cut:
            _log.warning("%s: a page was cut off and is not read: scan it again", self.name)

    # ------------------------------------------------------------------------------------------------ their ends

    def _listed(self, status: int, said: str) -> None:
        """Take the list of scanners: to choose the only one, or to say why one cannot be opened."""
        names = [device.name for device in devices_in(self._heard)]
        doubt, self._doubt = self._doubt, None
        if status:
            self._fail(fault_of(status), said)
        elif doubt is not None:
            self._fail(doubt if self._device in names else _NONE, said)
        elif not names:
            self._fail(_NONE)
        elif len(names) > 1:
            self._fail(Fault("several", f"there are several scanners; set device to one of: {', '.join(names)}", 60.0))
        else:
            self._device = names[0]
            self._due = self._clock.monotonic()

    def _told_options(self, status: int, said: str) -> None:
        """Take what the scanner can, and make the arguments of scans from it."""
        if status:
            self._doubt = _with_words(fault_of(status), said)
            self._start(LIST, self._listed, self._clock.monotonic())
            return
        arguments = settings(self._config, options_in(self._heard))
        if isinstance(arguments, Fault):
            self._fail(arguments)
        else:
            self._arguments = arguments
            self._due = self._clock.monotonic()

    def _scanned_pages(self, status: int, said: str) -> None:
        """Take the end of a scan: the feeder is empty, the pages asked for are there, or something is wrong."""
        if status not in (0, EMPTY):
            self._fail(fault_of(status), said)
            return
        self._recover()
        now, empty = self._clock.monotonic(), status == EMPTY or self._adopted < self._asked
        if self._order is not None and (empty or self._has_enough(self._order)):
            self._answer("" if self._scanned else "there is no paper in the feeder")
        more = not empty and self._config.trigger == "feeder"
        self._due = now if more or self._order is not None else now + LOOK_S
        if self._config.trigger == "feeder":
            self._look_at = now if more else now + self._config.poll_s

    def _has_enough(self, order: Order) -> bool:
        return self._scanned >= order.pages if order.pages else not has_feeder(self._arguments or ())

    def _answer(self, fault: str) -> None:
        if self._order is not None:
            self._orders.answer(self._order, Answer(self._scanned, fault))
            self._order = None

    def _recover(self) -> None:
        """Note that nothing is wrong any more; said once."""
        if self._config.trigger == "order":
            self._look_at = float("inf")
        if self._trouble:
            self._trouble = ""
            _log.info("%s: the scanner works again", self.name)

    def _fail(self, fault: Fault, said: str = "") -> None:
        """Note what is wrong, said once, and try again after a while; whoever ordered pages is told."""
        now, line = self._clock.monotonic(), _with_words(fault, said).advice
        self._arguments, self._device = None, self._config.device
        self._due = self._look_at = now + fault.pause_s
        if fault.word != "busy" or now >= self._order_until:
            self._answer(line)
        if line != self._trouble:
            self._trouble = line
            _log.warning("%s: no pages are scanned: %s", self.name, line)

    # ------------------------------------------------------------------------------------------------ pages

    def answer(self, capture: Capture, page: PageResult) -> None:
        """Do nothing: nobody waits for the text beside a scanner."""

    def done(self, capture: Capture, error: FrameError | InputError | None = None) -> str:
        """Put a page away; see `FolderSource.done`."""
        return self._folder.done(capture, error)

    def retry(self, capture: Capture) -> None:
        """Offer a page again, a little later."""
        self._folder.retry(capture)

    def reread(self, place: str) -> bool:
        """Offer a page that `done` put away at a place once more, under a key of its own; false when it is gone."""
        return self._folder.reread(place)

    def tidy(self) -> None:
        """Delete handled pages that are over the caps, and answers that nobody took."""
        self._folder.tidy()
        self._orders.tidy(self._clock.wall_ms() / 1000)

    def close(self) -> None:
        """Have a scan end after the page at hand, and give descriptors back."""
        if self._run is not None:
            self._run.finish(FINISH_S)
            self._run.close()
            self._run = None
            with suppress(OSError):  # it is collected after the next start
                self._scanned += self._spool.collect(self._place).pages
        self._answer("the worker was told to end meanwhile; order again")
        self._folder.close()


def _with_words(fault: Fault, said: str) -> Fault:
    """Return a fault with scanimage's own words behind it, where its status alone leaves much open."""
    if fault.word not in UNCLEAR or not said:
        return fault
    return Fault(fault.word, f"{fault.advice} ({said})", fault.pause_s)
