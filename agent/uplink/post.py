"""Everything an uplink publishes besides rows: status, events, answers, and how Home Assistant finds the device."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig, MqttConfig
from agent.errors import MessageError, OutboxError
from agent.mqtt import Link
from agent.outbox import EventRow, Finished, Outbox, Stats
from agent.protocol import Answer, Event, Status, device_topic, encode
from agent.uplink.orders import Reply
from agent.uplink.presence import Presence, discovery

_log = logging.getLogger(__name__)

LOOK_S = 2.0
"""The outbox is asked this often for what is to be told."""
AGAIN_S = 60.0
"""What the broker did not take, or nobody heard, is told again."""
ANSWER_EXPIRY_S = 3600
AT_ONCE = 20

_NOTHING = Stats(0, 0, 0, 0, 0.0, 0, 0, "", 0, (), False, "")


class _Sent(msgspec.Struct, frozen=True):
    """An event, or an answer, on its way."""

    event: int = 0
    answer: str = ""


class Post:
    """Publishes what the device tells about itself. Events and answers stay in the outbox until they were taken."""

    def __init__(self, config: AgentConfig, mqtt: MqttConfig, link: Link, outbox: Outbox, clock: Clock) -> None:
        """Make the post of a device."""
        self.presence = Presence(config, mqtt, clock)
        self.session = 0
        self.stats = _NOTHING
        self._config = config
        self._mqtt = mqtt
        self._link = link
        self._outbox = outbox
        self._clock = clock
        self._on_way: dict[int, _Sent] = {}
        self._busy: set[_Sent] = set()
        self._too_large: set[str] = set()
        self._look_at = self._forget_at = self._stats_at = 0.0
        self._discovery_due = mqtt.home_assistant

    def online(self) -> None:
        """Note that the link is up: everything is told once more."""
        self.presence.forget()
        self._on_way.clear()
        self._busy.clear()
        self._look_at = self._stats_at = 0.0
        self._discovery_due = self._mqtt.home_assistant

    def hurry(self) -> None:
        """Note that there is something to tell."""
        self._look_at = self._stats_at = 0.0

    def acked(self, mid: int, code: int) -> None:
        """Take the broker's answer to a message. An event that nobody heard is told again, an answer is not."""
        sent = self._on_way.pop(mid, None)
        if sent is None or (code != 0 and sent.event) or code >= 0x80:
            return
        if sent.event:
            self._outbox.event_sent((sent.event,))
        else:
            self._outbox.answered((sent.answer,))

    # -------------------------------------------------------------------------------------------------- status

    def look(self) -> Stats:
        """Return the outbox in numbers: as they are, or as they were when the outbox gives no answer."""
        now = self._clock.monotonic()
        if now >= self._stats_at:
            self._stats_at = now + LOOK_S
            try:
                self.stats = self._outbox.stats()
            except OutboxError:
                return self.stats  # the owner has met the same error, and raised an alarm
        return self.stats

    def tell_status(self, alarms: set[str]) -> None:
        """Publish the status when it is due."""
        if not self.presence.may_be_due or not self._link.room:
            return
        status = self.presence.status(self.session, self.look(), alarms)
        if self.presence.is_due(status) and self._publish(self.presence.topic, status, retain=True) is not None:
            self.presence.told(status)

    def farewell(self) -> bool:
        """Publish that the device goes offline, as a planned end; false when it could not be sent."""
        return bool(self._publish(self.presence.topic, self.presence.gone(self.session), retain=True))

    # ---------------------------------------------------------------------------------------------- the others

    def tell(self, replies: Iterable[Reply], alarms: set[str], served: bool) -> int:
        """Publish answers, refusals and, when somebody is there to note them, events.

        Returns:
            How many of the refusals were told.

        Raises:
            OutboxError: the outbox gives no answer now.
        """
        if self._discovery_due and self._link.room:
            topic, body = discovery(self._config, self._mqtt)
            self._discovery_due = self._send("discovery", topic, body, retain=True) is None
        told = 0
        for reply in replies:
            if self._answer(reply, alarms) is None:
                break
            told += 1
        now = self._clock.monotonic()
        if now >= self._look_at and self._link.online:
            self._look_at = now + LOOK_S
            if now >= self._forget_at:
                self._forget_at = now + AGAIN_S
                self._busy = set(self._on_way.values())
            self._tell_kept(alarms, served)
        return told

    def _tell_kept(self, alarms: set[str], served: bool) -> None:
        for finished in self._outbox.answers()[:AT_ONCE]:
            sent = _Sent(answer=finished.id)
            if sent not in self._busy:
                self._remember(sent, self._answer(finished, alarms))
        for event in self._outbox.events(AT_ONCE) if served else ():
            sent = _Sent(event=event.id)
            if sent not in self._busy:
                self._remember(sent, self._event(event))

    def _remember(self, sent: _Sent, mid: int | None) -> None:
        if mid is None:
            self._look_at = 0.0  # as soon as there is room
        else:
            self._on_way[mid] = sent
            self._busy.add(sent)

    def _answer(self, what: Reply | Finished, alarms: set[str]) -> int | None:
        self._stats_at = 0.0 if isinstance(what, Finished) else self._stats_at  # it may have changed the state
        status = self.presence.status(self.session, self.look(), alarms)
        answer = Answer(id=what.id, ok=what.ok, detail=what.detail, status=status)
        return self._publish(self._topic("answer"), answer, expiry_s=ANSWER_EXPIRY_S)

    def _event(self, event: EventRow) -> int | None:
        message = Event(
            device=self._config.device,
            kind=event.kind,  # type: ignore[arg-type]  # the outbox has no others
            at_ms=event.at_ms,
            detail=event.detail[:2000],
            epoch=event.epoch,
            rows=event.ranges,
        )
        return self._publish(self._topic("event"), message)

    def _topic(self, kind: str) -> str:
        return device_topic(self._mqtt.topic_prefix, self._config.device, kind)

    def _publish(
        self, topic: str, message: Status | Answer | Event, *, retain: bool = False, expiry_s: int | None = None
    ) -> int | None:
        return self._send(type(message).__name__.lower(), topic, encode(message), retain=retain, expiry_s=expiry_s)

    def _send(
        self, what: str, topic: str, body: bytes, *, retain: bool = False, expiry_s: int | None = None
    ) -> int | None:
        """Return the id of a message on its way, None when there is no room; 0 when it is too large for this broker."""
        try:
            return self._link.publish(topic, body, retain=retain, expiry_s=expiry_s)
        except MessageError as error:
            if what not in self._too_large:
                _log.error("the %s cannot be sent: %s", what, error)
            self._too_large.add(what)
            return 0
