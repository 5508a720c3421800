"""The uplink: has the network, sees no picture. Outbox -> broker -> collector, and receipts back.

One thread does everything: it waits in `Link.tick`, notes what came, and then does what is due. What the outbox cannot
take now is done later; nothing that the network, the broker or the disk does ends the program.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from agent import health, notify
from agent.clock import Clock
from agent.config import AgentConfig, MqttConfig
from agent.errors import ConfigError, MessageError, OutboxError
from agent.mqtt import Acked, Event, Link, Message, Offline, Online, Session, Will
from agent.outbox import Outbox
from agent.protocol import (
    MAX_SMALL_BYTES,
    CollectorState,
    Receipt,
    collector_topic,
    decode,
    device_topic,
    encode,
    name_in,
)
from agent.uplink.delivery import Delivery
from agent.uplink.orders import CLOCK_SET_MS, Orders
from agent.uplink.post import Post
from agent.uplink.presence import WILL_DELAY_S

_log = logging.getLogger(__name__)

SESSION_S = 7 * 86_400
"""Commands and receipts wait at the broker for a device that is away so long."""
LOOK_S = 1.0
"""The longest sleep."""
STATE_S = 10.0
NOTE_S = 1.0
"""Numbers in the state file are renewed no oftener."""
DAY_S = 86_400.0
HOUR_S = 3600.0
PAUSE_S = 1.0
"""An outbox that failed is tried again after this."""
WARN_DAYS = (30, 7, 1)
"""Certificates are warned of so long before they expire."""
STOP_S = 3.0

_NO_COLLECTOR = "no collector is online: is `edge-ocr collect` running, and may this device read {topic}?"
_HELD = {
    "no_subscriber": "the broker says that nobody subscribes to results: has the collector the right to read {topic}?",
    "not_authorized": "the broker does not let this device publish to {topic}: correct its ACL",
    "broker_refuses": "the broker takes no messages just now; see its log",
}
_ASIDE = {
    "privacy": "a result had a number that is not masked and was not sent: `edge-ocr outbox list --state dead`",
    "conflict": "another content is stored under a row's key: have two machines this name, or was a backup restored?",
    "invalid": "a result is not of the form that the centre takes",
    "too_large": "a result is larger than the broker or the protocol takes",
    "rejected": "the broker refused a result three times",
}


class _Steps:
    """Runs steps that need the outbox; after an error not before a pause."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.error = ""
        self.due_at = 0.0

    def run(self, steps: tuple[Callable[[], object], ...]) -> None:
        if self._clock.monotonic() < self.due_at:
            return
        try:
            for step in steps:
                step()
        except OutboxError as error:
            if not self.error:
                _log.error("the outbox fails, it is tried again: %s", error)
            self.error = str(error)
            self.due_at = self._clock.monotonic() + PAUSE_S
        else:
            if self.error:
                _log.info("the outbox works again")
            self.error, self.due_at = "", 0.0


class Uplink:
    """Sends what the outbox has, and does what it is told, until it is stopped."""

    def __init__(
        self, config: AgentConfig, outbox: Outbox, *, link: Link | None = None, clock: Clock | None = None
    ) -> None:
        """Make an uplink; nothing is connected before the first `tick`.

        Args:
            config: the settings, with `mqtt`.
            outbox: has the rows.
            link: the connection; made from the settings when it is left out.
            clock: time.

        Raises:
            ConfigError: the settings have no [mqtt].
        """
        if config.mqtt is None:
            raise ConfigError("mqtt is not in the settings: add [mqtt] with the broker's host, or run no uplink")
        self._config = config
        self._state_dir = Path(config.state_dir)
        self._mqtt: MqttConfig = config.mqtt
        self._outbox = outbox
        self._clock = clock or Clock()
        self._link = link or Link(self._mqtt, _session(config, self._mqtt), will=self._will, clock=self._clock)
        self._delivery = Delivery(config, self._mqtt, self._link, outbox, self._clock)
        self._orders = Orders(self._mqtt, outbox, self._clock, self._link.ack)
        self._post = Post(config, self._mqtt, self._link, outbox, self._clock)
        self._marks, self._work = _Steps(self._clock), _Steps(self._clock)
        self._acks: list[Acked] = []
        self._alarms: dict[str, float] = {}  # words, and when they are over by the monotonic clock
        self._to_note: set[str] = set()
        self._level = ""
        now_ms = self._clock.wall_ms()
        self._state = health.UplinkState(pid=health.process_id(), at_ms=now_ms, started_ms=now_ms)
        self._written = self._state
        self._written_at = self._certificates_at = float("-inf")
        self._warned_days = float("inf")

    def start(self) -> None:
        """Say that it is there, and clear up what an uplink before it left half done."""
        self._tell_state(force=True)
        self._work.run((self._orders.clear_up,))
        _log.info("uplink of %s to %s port %d", self._config.device, self._mqtt.host, self._mqtt.port)

    def tick(self, timeout_s: float = LOOK_S) -> None:
        """Wait for the network, at most so long, and do what is due."""
        for event in self._link.tick(min(timeout_s, self._patience())):
            self._take(event)
        self._marks.run((self._delivery.ledger.record,))
        self._work.run((self._obey, self._delivery.ask, self._delivery.send, self._tell))
        self._post.tell_status(self._words())
        self._look_around()
        self._tell_state()

    @property
    def line(self) -> str:
        """Return in one line how the connection is, for `systemctl status`."""
        told = self._state
        return f"{told.connection}{f': {told.reason}' if told.reason else ''}; {told.stored} stored"

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Record what is known, say goodbye and disconnect."""
        until = self._clock.monotonic() + timeout_s
        self._delivery.close()
        while self._link.online and self._delivery.flying and self._clock.monotonic() < until - timeout_s / 2:
            for event in self._link.tick(0.1):
                self._take(event)
        self._marks.run((lambda: self._delivery.ledger.record(at_once=True),))
        if not self._post.farewell():
            self._link.drop("the end could not be told")  # so that the broker tells it, with the will
        self._link.close(max(0.0, until - self._clock.monotonic()))
        self._note(connection="waiting", reason="stopped")
        self._tell_state(force=True)
        _log.info("uplink stopped")

    def _patience(self) -> float:
        """Return how long nothing is due."""
        now = self._clock.monotonic()
        marks_at = max(self._delivery.ledger.due_at(), self._marks.due_at)
        work_at = now if self._orders.waiting or self._acks else self._delivery.due_at()
        return max(0.0, min(marks_at, max(work_at, self._work.due_at)) - now)

    # --------------------------------------------------------------------------------------------- what came

    def _take(self, event: Event) -> None:
        if isinstance(event, Acked):
            if not self._delivery.acked(event.mid, event.code):
                self._acks.append(event)
        elif isinstance(event, Message):
            self._read(event)
        elif isinstance(event, Online):
            self._come_online(event)
        else:
            self._go_offline(event)

    def _come_online(self, event: Online) -> None:
        self._post.online()
        self._certificates_at = float("-inf")
        _log.info("connected to %s, connection %d", self._mqtt.host, self._post.session)
        if event.denied:
            self._raise("denied", HOUR_S)
            said = f"the broker does not let this device subscribe to {', '.join(event.denied)}"
            self._note(last_error=said)
            _log.error("%s", said)

    def _go_offline(self, event: Offline) -> None:
        self._delivery.offline(event)
        self._orders.forget()
        self._acks.clear()
        connection = "refused" if event.refused else "waiting"
        if (connection, event.reason) != (self._state.connection, self._state.reason):
            _log.warning("no connection: %s", event.reason)
        if event.code == _TAKEN_OVER:
            self._raise("client_id", HOUR_S)
        self._note(connection=connection, reason=event.reason, last_error=event.reason)

    def _read(self, message: Message) -> None:
        if message.topic == self._topic("command"):
            self._orders.put(message)
            return
        try:
            if message.topic == self._topic("receipt"):
                if not self._delivery.receipt(decode(Receipt, message.body)):
                    raise MessageError("a receipt that cannot be one of this device")
            elif message.topic.startswith(f"{self._mqtt.topic_prefix}/collectors/"):
                self._read_collector(message)  # others are of a prefix that this session was subscribed to before
        except MessageError as error:
            self._note(last_error=f"a message was not understood: {error}")
            self._raise("message", HOUR_S)
        self._link.ack(message)

    def _read_collector(self, message: Message) -> None:
        name = name_in(message.topic, self._mqtt.topic_prefix)
        if not message.body:  # someone cleared what the broker had kept
            self._delivery.heard_collector(name, None)
            return
        state = decode(CollectorState, message.body)
        if state.collector != name:
            raise MessageError("a collector's state on another one's topic")
        self._delivery.heard_collector(name, state.session if state.online else None)

    # -------------------------------------------------------------------------------------------- what is due

    def _obey(self) -> None:
        if self._orders.work():
            self._post.hurry()

    def _tell(self) -> None:
        """Tell what is neither a row nor the status, and note what was told."""
        while self._acks:
            self._post.acked(self._acks[0].mid, self._acks[0].code)
            self._acks.pop(0)
        for reason in self._delivery.take_reasons():
            if reason not in self._alarms:
                self._to_note.add(_ASIDE.get(reason, reason))
                _log.error("%s", _ASIDE.get(reason, reason))
            self._raise(reason, DAY_S)
        while self._to_note:
            self._outbox.add_event("alarm", min(self._to_note))
            self._to_note.discard(min(self._to_note))
            self._post.hurry()
        for _ in range(self._post.tell(tuple(self._orders.replies), self._words(), self._delivery.served)):
            self._orders.replies.popleft()

    def _look_around(self) -> None:
        """Follow the ordered log level, and look at certificates now and then."""
        level = self._post.look().level or self._config.log_level
        if level != self._level:
            self._level = level
            health.set_level(level)
        now = self._clock.monotonic()
        if self._link.online and now - self._certificates_at >= HOUR_S:
            self._certificates_at = now
            self._look_at_certificates()

    def _look_at_certificates(self) -> None:
        name, days = min(self._link.certificate_days().items(), key=lambda item: item[1], default=("", float("inf")))
        if days > WARN_DAYS[0]:
            self._warned_days = float("inf")
            return
        self._raise("certificate", 2 * HOUR_S)
        limit = min(limit for limit in WARN_DAYS if days <= limit) if days > 0 else 0
        if limit < self._warned_days:
            self._warned_days = limit
            said = f"{name} expires in {days:.0f} days: renew it" if days > 0 else f"{name} expired: renew it"
            self._to_note.add(said)
            _log.warning("%s", said)

    def _words(self) -> set[str]:
        """Return the alarms that are on."""
        now = self._clock.monotonic()
        words = {word for word, until in self._alarms.items() if until > now}
        if self._delivery.held:
            words.add(self._delivery.held)
        if self._marks.error or self._work.error:
            words.add("outbox")
        if self._clock.wall_ms() < CLOCK_SET_MS:
            words.add("clock")
        return words

    def _raise(self, word: str, for_s: float) -> None:
        self._alarms = {name: until for name, until in self._alarms.items() if until > self._clock.monotonic()}
        self._alarms[word] = self._clock.monotonic() + for_s

    # ----------------------------------------------------------------------------------------------- the state

    def _note(self, **changes: object) -> None:
        self._state = msgspec.structs.replace(self._state, **changes)

    def _note_connection(self) -> None:
        if not self._link.online:
            return
        if not self._delivery.served:
            topic = collector_topic(self._mqtt.topic_prefix, "+")
            self._note(connection="no collector", reason=_NO_COLLECTOR.format(topic=topic))
        else:
            self._note(connection="online", reason="")
        if held := self._delivery.held:
            self._note(last_error=_HELD[held].format(topic=self._topic("result")))

    def _tell_state(self, *, force: bool = False) -> None:
        """Write the state file: changes at once, numbers no oftener than every second, and now and then anyway."""
        self._note_connection()
        counts = self._delivery.counts
        self._note(
            session=self._post.session,
            collectors=self._delivery.collectors if self._link.online else (),
            alarms=tuple(sorted(self._words())),
            sent=counts.sent,
            brokered=counts.brokered,
            stored=counts.stored,
            refused=counts.refused,
        )
        age_s = self._clock.monotonic() - self._written_at
        news = _words_of(self._state) != _words_of(self._written)
        if not (force or news or age_s >= STATE_S or (age_s >= NOTE_S and self._state != self._written)):
            return
        if self._state.connection != self._written.connection and self._state.connection in ("online", "no collector"):
            _log.info("%s", self._state.reason or f"sending, collectors: {', '.join(self._state.collectors) or '-'}")
        self._written, self._written_at = self._state, self._clock.monotonic()
        told = msgspec.structs.replace(self._state, at_ms=self._clock.wall_ms(), rss_mb=round(health.resident_mb(), 1))
        health.write_state(self._state_dir, "uplink", told)

    def _topic(self, kind: str) -> str:
        return device_topic(self._mqtt.topic_prefix, self._config.device, kind)

    def _will(self) -> Will:
        """Return what the broker tells when this connection breaks; it carries the number of the connection."""
        try:
            self._post.session = self._outbox.next_session()
        except OutboxError:
            self._post.session += 1
        return Will(self._post.presence.topic, encode(self._post.presence.gone(self._post.session)), WILL_DELAY_S)


_TAKEN_OVER = 0x8E


def _words_of(state: health.UplinkState) -> tuple[object, ...]:
    return state.connection, state.reason, state.collectors, state.alarms, state.last_error


def _session(config: AgentConfig, mqtt: MqttConfig) -> Session:
    topics = [device_topic(mqtt.topic_prefix, config.device, "command")] if mqtt.commands else []
    if mqtt.guarantee == "stored":
        topics.append(device_topic(mqtt.topic_prefix, config.device, "receipt"))
        topics.append(collector_topic(mqtt.topic_prefix, "+"))
    return Session(
        client_id=config.device,
        subscriptions=tuple(topics),
        expiry_s=SESSION_S,
        manual_ack=True,
        max_packet_bytes=MAX_SMALL_BYTES + 1024,
        window=mqtt.window,
        retry_max_s=mqtt.retry_max_s,
    )


def run(config: AgentConfig) -> None:
    """Run the uplink until SIGTERM or SIGINT.

    Raises:
        ConfigError: the settings have no [mqtt], or another uplink runs on this state directory.
        InputError: the state directory cannot be used.
    """
    health.set_up_logging("uplink", config.log_level)
    if config.mqtt is None:
        raise ConfigError("mqtt is not in the settings: add [mqtt] with the broker's host, or run no uplink")
    state_dir = Path(config.state_dir)
    ending: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: ending.append(number))
    clock = Clock()
    lock = health.Lock(state_dir, "uplink", clock)
    outbox = Outbox(state_dir, config.outbox, role="uplink", clock=clock)
    uplink = Uplink(config, outbox, clock=clock)
    notifier = notify.connect(clock, beat=lock.heart.beat)
    try:
        uplink.start()
        notifier.ready()  # whether the broker is there or not
        while not ending:
            uplink.tick()
            notifier.progress()
            notifier.status(uplink.line)
        notifier.stopping()
    finally:
        uplink.stop()
        outbox.close()
        lock.close()
