"""A connection to a broker that comes back by itself and that one thread owns: nothing runs beside `Link.tick`.

A new client is made for every connection, so that a reconnect and a new start are the same.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import time
from collections.abc import Callable

import msgspec

from agent.clock import Clock
from agent.config import BrokerConfig
from agent.errors import ConfigError, MessageError
from agent.mqtt import tls
from agent.mqtt.connection import (
    FOREIGN,
    RETAIN_REFUSED,
    SILENT,
    SILENT_TLS,
    Acked,
    Connection,
    Event,
    Limits,
    Message,
    Offline,
    Online,
    Session,
    Will,
    meaning,
)

__all__ = ["Acked", "Event", "Limits", "Link", "Message", "Offline", "Online", "Session", "Will"]

NEVER_EXPIRES_S = 0xFFFFFFFF
"""Session expiry of a session that the broker keeps for ever."""

ANSWER_S = 10.0
"""The longest wait for CONNACK and SUBACK."""
FIRST_PAUSE_S = 1.0
STABLE_S = 60.0
"""A connection that lived so long makes the pauses short again."""
SHORT_S = 10.0
"""Lost sooner than this again and again, it is not the network's weather."""
LOOK_S = 20.0
"""Certificate files are looked at this often."""
_OVERHEAD_BYTES = 32
"""More than the head of a PUBLISH without its topic."""
# mosquitto 2.0 does not tell a client that another one took its session.
_AGAIN = (
    "the connection is lost again and again within seconds; is there another machine named {client}? Or a bad network"
)


class Link:
    """A connection that comes back by itself. One thread calls everything.

    Between `Offline` and the next `Online` no `Acked` and no `Message` is handed out. Message ids are never used
    again while the process runs, so that an acknowledgement cannot meet another connection's message.
    """

    def __init__(
        self,
        config: BrokerConfig,
        session: Session,
        *,
        will: Callable[[], Will | None] = lambda: None,
        clock: Clock | None = None,
        chance: random.Random | None = None,
    ) -> None:
        """Make a link; the first `tick` begins to connect, after a short random pause.

        Args:
            config: where the broker is and how to reach it.
            session: what is asked of it.
            will: called before each attempt to connect.
            clock: time.
            chance: spreads the attempts of many devices.
        """
        self._broker = config
        self._session = session
        self._will = will
        self._clock = clock or Clock()
        self._chance = chance or random.Random()
        self._connection: Connection | None = None
        self._generation = 0
        self._limits = Limits(window=session.window)
        self._events: list[Event] = []
        self._retain_will = True
        self._failures = self._short = 0
        self._began = self._clock.monotonic()
        self._next_try = self._began + self._pause()
        self._dropped = ""
        self._stamp = tls.stamp(config)
        self._looked = self._began

    @property
    def online(self) -> bool:
        """Whether `publish` may be called: between `Online` and `Offline`."""
        return self._connection is not None and self._connection.ready and not self._dropped

    @property
    def limits(self) -> Limits:
        """What the broker said last."""
        return self._limits

    @property
    def room(self) -> int:
        """How many messages may be published now; 0 when offline or when the window is full."""
        if self._connection is None or not self.online:
            return 0
        return max(0, self._limits.window - len(self._connection.unacked))

    def fits(self, topic: str, body: bytes) -> bool:
        """Return whether the broker takes a packet of this size."""
        most = self._limits.max_packet_bytes
        return not most or len(topic.encode()) + len(body) + _OVERHEAD_BYTES <= most

    def publish(self, topic: str, body: bytes, *, retain: bool = False, expiry_s: int | None = None) -> int | None:
        """Publish with QoS 1.

        Args:
            topic: where to.
            body: payload.
            retain: the broker keeps it; left out where the broker keeps none.
            expiry_s: the broker throws it away when it could not deliver it for so long.

        Returns:
            The id that `Acked` will carry; None when nothing was sent because the link is offline or its window is
            full: the caller keeps the message and tries again.

        Raises:
            MessageError: larger than the broker takes, now and later.
        """
        connection = self._connection
        if connection is None or not self.room:
            return None
        if not self.fits(topic, body):
            raise MessageError(f"{len(body)} bytes are more than the broker takes ({self._limits.max_packet_bytes})")
        mid = connection.publish(topic, body, retain and self._limits.retain, expiry_s)
        if mid is None:
            return None
        connection.unacked[mid] = self._clock.monotonic()
        return self._lasting(mid)

    def ack(self, message: Message) -> None:
        """Acknowledge a message. One of an earlier connection is passed over: the broker sends it again."""
        generation, mid = divmod(message.mid, 1 << 16)
        if mid and generation == self._generation and self._connection is not None:
            self._connection.client.ack(mid, 1)

    def tick(self, timeout_s: float) -> list[Event]:
        """Do what is due, wait for the network at most `timeout_s`, and return what happened, in order.

        Connecting blocks for some seconds at most. Nothing is raised for anything the network or the other side does.
        """
        self._look_at_files()
        if self._connection is not None:
            self._work(self._connection, timeout_s)
        else:
            pause = self._next_try - self._clock.monotonic()
            if pause > timeout_s:
                time.sleep(timeout_s)
            else:
                time.sleep(max(0.0, pause))
                self._connect()
        events, self._events = self._events, []
        return events

    def drop(self, reason: str) -> None:
        """End the connection as if it had broken; the next `tick` says `Offline`. The will is published."""
        self._dropped = reason

    def retry_now(self) -> None:
        """Forget the pause: the next `tick` tries to connect."""
        self._next_try = self._clock.monotonic()
        self._failures = 0

    def close(self, timeout_s: float = 2.0) -> None:
        """End for good with a DISCONNECT, so that no will is published; waits for acknowledgements until then.

        After `drop` there is no DISCONNECT.
        """
        until = self._clock.monotonic() + timeout_s
        while self.online and self._connection is not None and self._connection.unacked:
            left = until - self._clock.monotonic()
            if left <= 0:
                break
            self._work(self._connection, left)
        if self._connection is not None:
            if not self._dropped:
                with contextlib.suppress(*FOREIGN):
                    self._connection.client.disconnect()
            self._connection.close()
            self._connection = None

    def certificate_days(self) -> dict[str, float]:
        """Return for how many days the certificates of the broker and of this side are valid, as far as known."""
        now_s = self._clock.wall_ms() / 1000
        own = tls.days_left(self._broker.cert_file, now_s) if self._broker.cert_file else None
        peer = tls.peer_days_left(self._connection.client.socket(), now_s) if self._connection is not None else None
        found = {"mqtt.cert_file": own, "the broker's certificate": peer}
        return {name: days for name, days in found.items() if days is not None}

    # ---------------------------------------------------------------------------------------- one connection

    def _connect(self) -> None:
        self._began = self._clock.monotonic()
        self._generation += 1
        self._dropped = ""
        try:
            will = self._will()
            self._connection = Connection(self._broker, self._session, will, self._retain_will)
            self._connection.open()
        except (ConfigError, *FOREIGN) as error:
            reason, refused = tls.explain(error, self._broker, self._clock.wall_ms() / 1000)
            self._end(reason, refused)

    def _work(self, connection: Connection, timeout_s: float) -> None:
        """Let paho work, and look at what its callbacks noted."""
        try:
            if not self._dropped:
                connection.client.loop(timeout_s)
        except FOREIGN as error:
            self._dropped = f"the broker sent something that is not MQTT 5 ({type(error).__name__}); see its log"
        if connection.connack is not None and connection.connack[0] < 0x80 and connection.ended is None:
            self._get_ready(connection)
        if connection.ready:
            self._hand_out(connection)
        if self._dropped:
            self._end(self._dropped)
        elif connection.ended is not None or connection.client.socket() is None:
            self._end(*self._why_ended(connection))
        else:
            self._check_alive(connection)

    def _get_ready(self, connection: Connection) -> None:
        assert connection.connack is not None
        if not connection.subscribed:
            connection.subscribe()
        if connection.ready or (connection.suback is None and self._session.subscriptions):
            return
        connection.ready = True
        self._limits = connection.connack[1]
        answers = zip(self._session.subscriptions, connection.suback or (), strict=False)
        self._events.append(Online(self._limits, tuple(name for name, code in answers if code >= 0x80)))

    def _hand_out(self, connection: Connection) -> None:
        events, connection.events = connection.events, []
        for event in events:
            mid = self._lasting(event.mid) if event.mid else 0
            self._events.append(msgspec.structs.replace(event, mid=mid))
            if isinstance(event, Message) and event.mid and not self._session.manual_ack:
                connection.client.ack(event.mid, 1)

    def _lasting(self, mid: int) -> int:
        return self._generation << 16 | mid

    def _check_alive(self, connection: Connection) -> None:
        """Give up a connection whose other side takes packets and answers nothing."""
        now = self._clock.monotonic()
        if not connection.ready:
            if now - self._began > ANSWER_S:
                self._end(f"{self._broker.host} port {self._broker.port} takes the connection and does not answer")
            return
        patience = 2 * (self._limits.keepalive_s or self._broker.keepalive_s)
        oldest = next(iter(connection.unacked.values()), now)
        if now - oldest > patience:
            self._end(f"the broker has not acknowledged a message for {patience} s")

    def _why_ended(self, connection: Connection) -> tuple[str, bool, int]:
        """Return reason, refusal and code for a connection that is gone."""
        by_broker, code = connection.ended or (False, 0)
        if connection.connack is not None and connection.connack[0] >= 0x80:
            by_broker, code = True, connection.connack[0]
            self._retain_will = self._retain_will and code != RETAIN_REFUSED
        if by_broker and code:
            return (*meaning(code, self._session.client_id), code)
        failure = connection.context.failure if connection.context is not None else None
        if isinstance(failure, ssl.SSLError) and not isinstance(failure, ssl.SSLEOFError):
            return (*tls.explain(failure, self._broker, self._clock.wall_ms() / 1000), 0)
        if connection.connack is None:
            said = SILENT_TLS if self._broker.tls else SILENT
            return said.format(host=self._broker.host, port=self._broker.port), True, 0
        if not by_broker and code == 0x8D:
            return "the broker does not answer pings any more", False, 0
        self._short = self._short + 1 if self._clock.monotonic() - self._began < SHORT_S else 0
        if self._short >= 3:
            return _AGAIN.format(client=self._session.client_id), False, 0
        return "the connection to the broker was lost", False, 0

    def _end(self, reason: str, refused: bool = False, code: int = 0) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._dropped = ""
        now = self._clock.monotonic()
        self._failures = 0 if now - self._began >= STABLE_S else self._failures
        pause = self._pause()
        self._failures += 1
        self._next_try = now + pause
        self._events.append(Offline(reason, refused, code, pause))

    def _pause(self) -> float:
        """Return a random pause below a limit that doubles: "full jitter", which spreads many devices best."""
        return self._chance.uniform(0.0, min(self._session.retry_max_s, FIRST_PAUSE_S * 2.0 ** min(self._failures, 30)))

    def _look_at_files(self) -> None:
        """Connect anew when a certificate was replaced and the new ones are whole."""
        now = self._clock.monotonic()
        if not self._stamp or now - self._looked < LOOK_S:
            return
        self._looked = now
        if (stamp := tls.stamp(self._broker)) == self._stamp:
            return
        try:
            tls.make_context(self._broker)
        except ConfigError:
            return  # they are being replaced; looked at again
        self._stamp = stamp
        if self._connection is not None:
            self.drop("certificates were replaced")
        self.retry_now()
