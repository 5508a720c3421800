"""Rows on their way: sent within the window, and kept until the other side has done what the guarantee says.

SQLite is the truth. What is remembered here may be lost at any moment: then rows are sent twice, and stored once.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, MqttConfig
from agent.errors import MessageError
from agent.mqtt import Link, Offline
from agent.outbox import Outbox, Row
from agent.protocol import MAX_RESULT_BYTES, Receipt, ResultMessage, Resync, device_topic, encode
from agent.uplink.ledger import WAITING_ROWS, Key, Ledger
from agent.uplink.screen import Screen

FETCH_ROWS = 50
FLIGHT_BYTES = 4 << 20
UNRECORDED_ROWS = 5000
"""An outbox that gives rows and takes no marks, as on a disk mounted read-only, is emptied no further than this."""
LOOK_S = 1.0
"""The outbox is asked this often for new rows."""
QUESTION_RUNS = 250
"""Runs of rows in one question: some kilobytes."""
ANSWER_S = 10.0
"""A collector that was asked gets so long before its rows are sent again."""
PATIENCE_MAX_S = 6 * 3600.0
SLOW_S = 30.0
QUICK_S = 1.0
TRIES = 3

TAKEN, UNHEARD, NOT_AUTHORIZED = 0x00, 0x10, 0x87
HOPELESS = frozenset((0x90, 0x95, 0x99))
"""PUBACK codes that are about the row itself."""
_HOSTILE = frozenset((0x81, *HOPELESS))
"""DISCONNECT codes that may be about a row."""


class Counts(msgspec.Struct):
    """Rows since the start: published, taken by the broker, confirmed by a collector, put aside for good."""

    sent: int = 0
    brokered: int = 0
    stored: int = 0
    refused: int = 0


class _Flight(msgspec.Struct):
    key: Key
    size: int
    settled: bool = False  # its receipt was faster than its PUBACK


class _Hold(msgspec.Struct):
    """Sending stops for longer and longer pauses, and goes on with one row at a time until one is taken.

    Attributes:
        word: why; empty when nothing is held.
        until: when the next row is tried.
        pause_s: the last pause.
    """

    word: str = ""
    until: float = 0.0
    pause_s: float = 0.0


class Delivery:
    """Sends the rows of an outbox over a link, and notes what becomes of them.

    No more than `ledger.WAITING_ROWS` wait for receipts: a collector that lags is not buried, and a broker's queue for
    it does not flow over.
    """

    def __init__(self, config: AgentConfig, mqtt: MqttConfig, link: Link, outbox: Outbox, clock: Clock) -> None:
        """Make a delivery of a device's rows."""
        self.counts = Counts()
        self.ledger = Ledger(outbox, clock)
        self._reasons: set[str] = set()
        self._closing = False
        self._device = config.device
        self._mqtt = mqtt
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._screen = Screen(config.privacy)
        self._topic = device_topic(mqtt.topic_prefix, config.device, "result")
        self._resync_topic = device_topic(mqtt.topic_prefix, config.device, "resync")
        self._confirms = mqtt.guarantee == "stored"
        self._collectors: dict[str, str] = {}
        self._ready: deque[Row] = deque()
        self._flights: dict[int, _Flight] = {}
        self._look_at = 0.0
        self._hold = _Hold()
        self._careful = False
        self._tries: dict[Key, int] = {}
        self._later: dict[Key, float] = {}
        self._ask_due = True
        self._load_at = 0.0
        self._asked: tuple[float, frozenset[Key]] | None = None
        self._patience_s = mqtt.receipt_s

    @property
    def collectors(self) -> tuple[str, ...]:
        """Names of the collectors that are online."""
        return tuple(sorted(self._collectors))

    @property
    def served(self) -> bool:
        """Whether somebody is there to send results to, as far as the guarantee wants it."""
        return bool(self._collectors) or not self._confirms

    @property
    def held(self) -> str:
        """Why no rows are sent although the link is up, as an alarm's word, or ""."""
        return self._hold.word

    @property
    def flying(self) -> int:
        """How many rows were published and not acknowledged."""
        return len(self._flights)

    def take_reasons(self) -> set[str]:
        """Return why rows were put aside since this was asked last."""
        reasons, self._reasons = self._reasons, set()
        return reasons

    def close(self) -> None:
        """Send no more rows."""
        self._closing = True

    # ---------------------------------------------------------------------------------------- what happened

    def offline(self, event: Offline) -> None:
        """Forget what was on its way: it may have arrived or not."""
        if event.code in _HOSTILE and self._flights:
            if len(self._flights) == 1:
                (flight,) = self._flights.values()
                self._try_again(flight.key)
            self._careful = True  # one at a time, so that next time it is known which row it was
        self.ledger.unsure(flight.key for flight in self._flights.values() if not flight.settled)
        self._flights.clear()
        self._ready.clear()
        self._collectors.clear()
        self._asked = None

    def heard_collector(self, name: str, session: str | None) -> None:
        """Note that a collector is online in a session, or (None) offline."""
        if session is None:
            self._collectors.pop(name, None)
            if not self._collectors:
                self._ready.clear()
        elif self._collectors.get(name) != session:
            self._collectors[name] = session
            self._ask_due = True
            self._asked = None
            self._look_at = 0.0
            if self._hold.word == "no_subscriber":
                self._hold = _Hold()

    def acked(self, mid: int, code: int) -> bool:
        """Take the broker's answer to a message; false when it was not about a row."""
        flight = self._flights.pop(mid, None)
        if flight is None:
            return False
        if code == TAKEN:
            self._hold, self._careful = _Hold(), False
            self._tries.pop(flight.key, None)
            self._note_taken(flight)
            return True
        self._look_at = 0.0
        if flight.settled:
            pass
        elif code in HOPELESS:
            self._try_again(flight.key)
        elif code == UNHEARD:
            self._wait("no_subscriber", SLOW_S)
        elif code == NOT_AUTHORIZED:
            self._wait("not_authorized", SLOW_S)
        else:
            self._wait("broker_refuses", QUICK_S)
        return True

    def _note_taken(self, flight: _Flight) -> None:
        self.counts.brokered += 1
        if not self._confirms:
            self.counts.stored += 1
            self.ledger.stored({flight.key})
        elif not flight.settled:
            self.ledger.brokered(flight.key)

    def receipt(self, receipt: Receipt) -> bool:
        """Take a collector's receipt; false when it cannot be one of ours."""
        if receipt.device != self._device:
            return False
        flying = {flight.key for flight in self._flights.values() if not flight.settled}
        done = self.ledger.confirmed(receipt.epoch, receipt.stored, flying)
        self.counts.stored += len(done)
        for refusal in receipt.refused:
            key = (receipt.epoch, refusal.seq)
            if key in flying or self.ledger.knows(key):
                self._put_aside(key, refusal.reason)
                done.add(key)
        for flight in self._flights.values():
            flight.settled |= flight.key in done
        self._ready = deque(row for row in self._ready if (row.epoch, row.seq) not in done)
        return True

    def _try_again(self, key: Key) -> None:
        """Give a row that was refused by itself some more chances, while others go on."""
        self._tries[key] = self._tries.get(key, 0) + 1
        if self._tries[key] >= TRIES:
            del self._tries[key]
            self._put_aside(key, "rejected")
        else:
            self._later[key] = self._clock.monotonic() + QUICK_S * self._tries[key]

    def _put_aside(self, key: Key, reason: str) -> None:
        self.ledger.refused(key, reason)
        self.counts.refused += 1
        self._reasons.add(reason)

    def _wait(self, word: str, first_s: float) -> None:
        """Stop sending for a while; answers to what was sent before do not make it longer."""
        now = self._clock.monotonic()
        if self._hold.word == word and now < self._hold.until:
            return
        longer = 2 * self._hold.pause_s if self._hold.word == word else first_s
        pause = min(longer, self._mqtt.retry_max_s)
        self._hold = _Hold(word, now + pause * random.uniform(0.5, 1.0), pause)

    # ------------------------------------------------------------------------------------------------ receipts

    def ask(self) -> None:
        """Ask collectors for receipts that are missing, and have rows sent again that they do not have.

        Raises:
            OutboxError: the outbox gives no answer now.
        """
        if not (self._confirms and self._collectors and self._link.online):
            return
        now = self._clock.monotonic()
        if self._ask_due or (now >= self._load_at and not self.ledger.waiting):
            self._load_at = now + self._mqtt.receipt_s
            self.ledger.load()
            self._ask_due = not self._send_resync()
        if self._asked is None:
            self._ask_overdue(now)
        elif now >= self._asked[0]:
            missing = self.ledger.again(self._asked[1])
            self._asked = None
            self._look_at = 0.0
            # Each time in vain, longer: a collector may be slow, and doubles make it slower.
            self._patience_s = min(2 * self._patience_s, PATIENCE_MAX_S) if missing else self._mqtt.receipt_s

    def _ask_overdue(self, now: float) -> None:
        overdue = self.ledger.overdue(self._patience_s)
        if overdue and self._send_resync():
            self._asked = (now + min(self._mqtt.receipt_s, ANSWER_S), overdue)

    def _send_resync(self) -> bool:
        """Ask for all rows that wait; false when there was no room for the questions."""
        questions = [
            Resync(device=self._device, epoch=epoch, waiting=runs[at : at + QUESTION_RUNS])
            for epoch, runs in self.ledger.questions().items()
            for at in range(0, len(runs), QUESTION_RUNS)
        ]
        if len(questions) > self._link.room:
            return False
        for question in questions:
            with contextlib.suppress(MessageError):  # then they are sent again without a question
                self._link.publish(self._resync_topic, encode(question))
        return True

    # ---------------------------------------------------------------------------------------------------- rows

    def due_at(self) -> float:
        """Return when rows may be sent, by the monotonic clock, if nothing comes from the network."""
        now = self._clock.monotonic()
        if not self._may_send():
            return now + LOOK_S
        return now if self._ready else min(self._look_at, now + LOOK_S)

    def send(self) -> None:
        """Publish what the window has room for.

        Raises:
            OutboxError: the outbox gives no rows now.
        """
        while self._may_send():
            row = self._next_row()
            if row is None:
                return
            body = self._body(row)
            if body is None:
                continue
            mid = self._link.publish(self._topic, body)
            if mid is None:
                return
            self._flights[mid] = _Flight((row.epoch, row.seq), len(body))
            self.counts.sent += 1

    def _may_send(self) -> bool:
        """Tell whether a row may be published now."""
        if not self._link.room or not self.served or self._closing or self.ledger.unrecorded >= UNRECORDED_ROWS:
            return False
        if self._hold.word or self._careful:
            return not self._flights and self._clock.monotonic() >= self._hold.until
        if len(self._later) >= FETCH_ROWS or self.ledger.waiting + len(self._flights) >= WAITING_ROWS:
            return False
        return sum(flight.size for flight in self._flights.values()) < FLIGHT_BYTES

    def _next_row(self) -> Row | None:
        now = self._clock.monotonic()
        if not self._ready and now >= self._look_at:
            self._later = {key: until for key, until in self._later.items() if until > now}
            flying = {flight.key for flight in self._flights.values()}
            busy = flying | self.ledger.busy() | self._later.keys()
            self._ready.extend(self._outbox.pending(FETCH_ROWS, fresh_s=self._mqtt.historical_s, skip=busy))
            self._look_at = now if self._ready else now + LOOK_S
        return self._ready.popleft() if self._ready else None

    def _body(self, row: Row) -> bytes | None:
        """Return the message of a row; None when it may not leave, which is noted."""
        reason = self._screen.why_not(row.result)
        if not reason:
            message = ResultMessage(
                device=self._device,
                epoch=row.epoch,
                seq=row.seq,
                sha256=row.sha256,
                sent_ms=self._clock.wall_ms(),
                created_ms=row.created_ms,
                historical=row.age_s is None or row.age_s > self._mqtt.historical_s,
                result=msgspec.Raw(row.result),
            )
            body = encode(message)
            if len(body) <= MAX_RESULT_BYTES and self._link.fits(self._topic, body):
                return body
            reason = "too_large"
        self._put_aside((row.epoch, row.seq), reason)
        return None
