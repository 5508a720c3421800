"""The collector: the other end. Results of all devices -> one database -> receipts.

The order keeps every row: committed, then confirmed to its device, and only then acknowledged to the broker. A
collector that ends anywhere between gets the messages again, and a database that takes nothing stops the devices.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import random
import signal
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from agent import health
from agent.clock import Clock
from agent.collect.inbox import KINDS, Inbox, Reading
from agent.collect.receipts import answered, confirmed
from agent.collect.stores import Store, open_store
from agent.collect.tables import Row, StoreError, Verdict
from agent.config import CollectorConfig, secret
from agent.errors import ExitCode, MessageError
from agent.mqtt import Event, Link, Message, Offline, Online, Session, Will
from agent.protocol import (
    MAX_RESULT_BYTES,
    CollectorState,
    Receipt,
    Resync,
    collector_topic,
    device_topic,
    encode,
)

_log = logging.getLogger(__name__)

LOOK_S = 1.0
"""The longest sleep."""
QUIET_S = 0.02
"""Who waits for more rows gives up after so long without one: a broker may deliver far fewer at once than a batch."""
REPORT_S = 60.0
WARN_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
STOP_S = 5.0
END_S = 9
"""After so long an end is not waited for any more, whatever hangs."""
RETRY_MAX_S = 10.0
WINDOW = 1000
PRINTED_LENGTH = 60

SESSION_S = 30 * 86_400
"""The broker keeps the messages of a collector that is away for so long."""
GROUP_SESSION_S = 60
"""And those of one in a group: brokers go on giving an absent member its share, which the devices then send again."""


class _Say(msgspec.Struct, frozen=True):
    """A message to be published."""

    topic: str
    body: bytes


class Counts(msgspec.Struct):
    """What a collector has done since its start."""

    stored: int = 0
    known: int = 0
    conflicts: int = 0
    rejected: int = 0
    receipts: int = 0


class Collector:
    """Stores what devices send and tells them."""

    def __init__(
        self,
        config: CollectorConfig,
        store: Store,
        *,
        broker: Link | None = None,
        clock: Clock | None = None,
        on_row: Callable[[Row], None] | None = None,
    ) -> None:
        """Make a collector; nothing is opened before `start`.

        Args:
            config: the settings.
            store: keeps the rows.
            broker: the connection; made from the settings when it is left out.
            clock: time.
            on_row: called with each row that was not stored before, after its commit.
        """
        self.counts = Counts()
        self._config = config
        self._store = store
        self._clock = clock or Clock()
        self._on_row = on_row
        self._session = uuid.uuid4().hex
        self._inbox = Inbox(config.mqtt.topic_prefix, config.name)
        self._broker = broker or Link(config.mqtt, _session(config), will=self._will, clock=self._clock)
        self._queue: list[Message] = []
        self._todo: deque[_Say | Message] = deque()  # receipts before the messages they are for, these without bodies
        self._first_at = self._last_at = 0.0
        self._serving = False
        self._waiting = False
        self._state_due = True
        self._denied = False
        self._trouble = ""
        self._pause_s = FIRST_PAUSE_S
        self._retry_at = self._warn_at = 0.0
        self._reported = Counts()
        self._reported_at = self._clock.monotonic()

    def start(self) -> None:
        """Open the store.

        Raises:
            ConfigError: it cannot be used with these settings. One that is only away now is waited for.
        """
        _log.info("collector %s starts, session %s", self._config.name, self._session)
        self._attend_store()

    def tick(self, timeout_s: float = LOOK_S) -> None:
        """Wait for messages, at most so long, and do what is due."""
        for event in self._broker.tick(self._patience(timeout_s)):
            self._take(event)
        self._attend_store()
        self._tell()
        self._report()

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Store and confirm what is here, say goodbye and disconnect. What comes meanwhile is not taken."""
        until = self._clock.monotonic() + timeout_s
        with contextlib.suppress(StoreError):  # then it comes again after the next start
            while self._queue and self._serving:
                self._settle()
        self._serving, self._state_due = False, True
        self._tell()
        while self._broker.online and (self._todo or self._state_due) and self._clock.monotonic() < until:
            self._broker.tick(0.1)
            self._tell()
        self._broker.close(max(0.0, until - self._clock.monotonic()))
        self._store.close()
        self._report(now=True)
        _log.info("collector %s stopped", self._config.name)

    # ------------------------------------------------------------------------------------------ the broker

    def _patience(self, timeout_s: float) -> float:
        """Return how long nothing is due, but no more than this."""
        return max(0.0, min(timeout_s, self._due_at() - self._clock.monotonic()))

    def _take(self, event: Event) -> None:
        if isinstance(event, Message):
            self._last_at = self._clock.monotonic()
            if not self._queue:
                self._first_at = self._last_at
            self._queue.append(event)
            if len(self._queue) > 2 * self._config.batch and not self._serving:
                # mosquitto 2.0 forgets the Receive Maximum of who publishes too; a new connection has it again
                # (test_mosquitto_sends_more_than_it_may).
                self._broker.drop("the broker sends more than it may while the store is away")
        elif isinstance(event, Online):
            self._denied = bool(event.denied)
            self._state_due = True
            _log.info("connected to the broker%s", "" if event.limits.session_present else ", with a new session")
            if event.denied:
                _log.error("the broker does not let this collector subscribe to %s", ", ".join(event.denied))
        elif isinstance(event, Offline):
            # What was not acknowledged comes again, from the broker or from the devices.
            self._queue.clear()
            self._todo.clear()
            if event.reason != self._trouble:
                _log.warning("no broker: %s", event.reason)
        self._trouble = event.reason if isinstance(event, Offline) else ""

    def _tell(self) -> None:
        """Publish and acknowledge what is ready for it, in order."""
        if self._state_due and self._broker.online:
            state = self._state()
            self._state_due = self._broker.publish(self._topic, encode(state), retain=True) is None
            if state.online and not self._state_due:
                _log.info("ready: devices may send")
        while self._todo and self._broker.online:
            next_one = self._todo[0]
            if isinstance(next_one, Message):
                self._broker.ack(next_one)
            elif not self._say(next_one):
                return
            self._todo.popleft()

    def _say(self, what: _Say) -> bool:
        """Publish a receipt; false when it must wait."""
        if not self._broker.room:
            return False
        try:
            self._broker.publish(what.topic, what.body)
            self.counts.receipts += 1
        except MessageError as error:
            _log.error("a receipt cannot be sent: %s", error)
        return True

    @property
    def _topic(self) -> str:
        return collector_topic(self._config.mqtt.topic_prefix, self._config.name)

    def _state(self) -> CollectorState:
        online = self._serving and not self._denied
        return CollectorState(collector=self._config.name, online=online, session=self._session)

    def _will(self) -> Will:
        return Will(self._topic, encode(msgspec.structs.replace(self._state(), online=False)))

    # ------------------------------------------------------------------------------------------- the store

    def _due_at(self) -> float:
        """Return when something is to be done with the store."""
        if not self._serving:
            return self._retry_at
        if not self._queue:
            return math.inf
        if len(self._queue) >= self._config.batch:
            return 0.0
        return min(self._first_at + self._config.batch_s, self._last_at + QUIET_S)

    def _attend_store(self) -> None:
        """Store what is due. Devices are asked to send only while the store takes something."""
        if self._clock.monotonic() < self._due_at():
            return
        try:
            if not self._serving:
                self._store.ready()
            if self._queue:
                self._settle()
        except StoreError as error:
            self._wait_for_store(error)
        else:
            self._go_on()

    def _wait_for_store(self, error: StoreError) -> None:
        if not self._waiting:
            _log.error("devices are asked to wait, the store takes nothing: %s", error)
            self._waiting = self._state_due = True
        self._serving = False
        self._retry_at = self._clock.monotonic() + self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _go_on(self) -> None:
        if not self._serving:
            _log.info("the store takes rows")
            self._serving = self._state_due = True
            self._waiting = False

    def _settle(self) -> None:
        """Commit what is here; then its receipts, and after them its acknowledgements, are ready to go."""
        messages = tuple(self._queue[: self._config.batch])
        reading = self._inbox.read(messages, self._clock.wall_ms())
        verdicts = self._store.put(reading.batch)
        receipts = [*confirmed(self._config.name, reading, verdicts), *self._answers(reading.resyncs)]
        del self._queue[: len(messages)]
        self._todo.extend(self._letter(receipt) for receipt in receipts)
        self._todo.extend(msgspec.structs.replace(message, topic="", body=b"") for message in messages)
        self._pause_s = FIRST_PAUSE_S
        self._count(reading, verdicts)
        if self._on_row is not None:
            for row, verdict in zip(reading.batch.rows, verdicts, strict=True):
                if verdict == "new":
                    self._on_row(row)

    def _answers(self, resyncs: Iterable[Resync]) -> Iterator[Receipt]:
        for resync in resyncs:
            held = self._store.held(resync.device, resync.epoch, resync.waiting)
            yield from answered(self._config.name, resync, held)

    def _letter(self, receipt: Receipt) -> _Say:
        return _Say(device_topic(self._config.mqtt.topic_prefix, receipt.device, "receipt"), encode(receipt))

    # --------------------------------------------------------------------------------------------- the log

    def _count(self, reading: Reading, verdicts: Sequence[Verdict]) -> None:
        counts = self.counts
        counts.stored += verdicts.count("new")
        counts.known += verdicts.count("known")
        counts.conflicts += verdicts.count("conflict")
        counts.rejected += len(reading.batch.rejects) + verdicts.count("unfit")
        conflicts = [row for row, verdict in zip(reading.batch.rows, verdicts, strict=True) if verdict == "conflict"]
        for row in {row.device: row for row in conflicts}.values():
            _log.error(
                "device %s sent another content under a key that is taken (epoch %s, seq %d): do two machines have this"
                " name, or was a backup restored? See the table conflicts",
                *row.key,
            )
        now = self._clock.monotonic()
        if reading.batch.rejects and now >= self._warn_at:
            self._warn_at = now + WARN_S
            first = reading.batch.rejects[0]
            _log.warning("messages are rejected (table rejects), one of them on %r: %s", first.topic, first.reason)

    def _report(self, *, now: bool = False) -> None:
        at = self._clock.monotonic()
        if (not now and at - self._reported_at < REPORT_S) or self.counts == self._reported:
            return
        self._reported, self._reported_at = msgspec.structs.replace(self.counts), at
        told = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(self.counts).items())
        _log.info("since the start: %s; resident %.0f MB", told, health.resident_mb())


def _session(config: CollectorConfig) -> Session:
    prefix, share = config.mqtt.topic_prefix, f"$share/{config.group}/" if config.group else ""
    # Shared subscriptions get no retained messages, so every collector hears every status.
    shared = {kind: "" if kind == "status" else share for kind in KINDS}
    return Session(
        client_id=config.name,
        subscriptions=tuple(share + device_topic(prefix, "+", kind) for kind, share in shared.items()),
        expiry_s=GROUP_SESSION_S if config.group else SESSION_S,
        receive_maximum=config.batch,
        manual_ack=True,
        max_packet_bytes=MAX_RESULT_BYTES + 4096,
        window=WINDOW,
        retry_max_s=RETRY_MAX_S,
    )


class _Line(msgspec.Struct):
    text: str


class _Page(msgspec.Struct):
    lines: tuple[_Line, ...] = ()


def print_row(row: Row) -> None:
    """Print one line about a row: device, number, source, how many lines, and how they begin."""
    try:
        page = msgspec.json.decode(row.result, type=_Page)
    except msgspec.MsgspecError:
        page = _Page()
    text = " ".join(line.text for line in page.lines[:5])
    begin = "".join(letter if letter.isprintable() else " " for letter in text)[:PRINTED_LENGTH]
    print(f"{row.device} {row.seq} {row.source or '-'} {row.lines} lines: {begin}", flush=True)


def run(config: CollectorConfig, *, printing: bool = False) -> None:
    """Collect until SIGTERM or SIGINT.

    Args:
        config: the settings.
        printing: whether each stored row is printed.

    Raises:
        ConfigError: the settings cannot work.
        InputError: the store's folder is missing or not writable.
        EngineError: the store's driver is not installed.
    """
    health.set_up_logging("collect", config.log_level)
    store = open_store(config.store, secret(config.store_password))
    collector = Collector(config, store, on_row=_Printer() if printing else None)
    ending: list[int] = []

    def end(number: int, frame: object) -> None:
        ending.append(number)
        signal.alarm(END_S)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGALRM, _give_up)
    collector.start()
    while not ending:
        collector.tick()
    collector.stop()
    signal.alarm(0)


def _give_up(number: int, frame: object) -> None:
    """End a program that waits for a database which neither answers nor fails; what is not acknowledged comes again."""
    _log.error("ended while the store did not answer")
    os._exit(ExitCode.TEMPORARY)


class _Printer:
    """Prints rows until nobody reads them any more; storing them matters more."""

    def __init__(self) -> None:
        self._read = True

    def __call__(self, row: Row) -> None:
        try:
            if self._read:
                print_row(row)
        except BrokenPipeError:
            self._read = False
            # Python would complain at its end about what it still has to write.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
