"""One life of a paho client, the values that pass through it, and what an end of it means.

paho's own thread, queue, retries and back-off are not used: they lose errors, forget at a restart and know no limit.
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any, Union

import msgspec
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.config import BrokerConfig, secret
from agent.mqtt import tls

CONNECT_S = 5.0
"""The longest wait for the other side to take a connection, and again for its TLS handshake."""
RETAIN_REFUSED = 0x9A

FOREIGN = (OSError, ValueError, LookupError, struct.error, MQTTException)
"""What paho raises, or lets through, when the network or the other side misbehaves."""


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes, retained, when the connection ends without a DISCONNECT.

    Attributes:
        topic: where to.
        body: payload.
        delay_s: the broker waits so long for a new connection; it needs a session that lives as long.
    """

    topic: str
    body: bytes
    delay_s: int = 0


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What one side asks of the broker, the same at every connection.

    Attributes:
        client_id: name of the session at the broker; two connections with one id throw each other out.
        subscriptions: topic filters, subscribed with QoS 1 at every connection.
        clean_start: whether what the broker kept is thrown away.
        expiry_s: so long the broker keeps the session without a connection.
        receive_maximum: messages that the broker delivers before one is acknowledged, at most.
        manual_ack: whether `Link.ack` acknowledges messages; otherwise paho does it on arrival.
        max_packet_bytes: the largest message that the broker delivers.
        window: messages published before one is acknowledged, at most; the broker may allow fewer.
        retry_max_s: the longest pause between attempts to connect.
    """

    client_id: str
    subscriptions: tuple[str, ...] = ()
    clean_start: bool = False
    expiry_s: int = 0
    receive_maximum: int = 100
    manual_ack: bool = False
    max_packet_bytes: int = 1 << 17
    window: int = 20
    retry_max_s: float = 300.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker said in CONNACK.

    Attributes:
        window: messages published before one is acknowledged: the session's, or the Receive Maximum if that is less.
        max_packet_bytes: the largest packet the broker takes; 0 when it set none.
        keepalive_s: the configured one, or the broker's.
        retain: whether the broker keeps retained messages.
        session_present: it had kept the session.
        expiry_s: so long it keeps a session, where it named another time than was asked for; else -1.
    """

    window: int
    max_packet_bytes: int = 0
    keepalive_s: int = 0
    retain: bool = True
    session_present: bool = False
    expiry_s: int = -1


class Online(msgspec.Struct, frozen=True):
    """The broker took the connection and has answered every subscription. `Link.publish` works from now on.

    Attributes:
        limits: what the broker said.
        denied: filters it does not let this client subscribe to.
    """

    limits: Limits
    denied: tuple[str, ...] = ()


class Offline(msgspec.Struct, frozen=True):
    """The connection ended, or an attempt failed; what was on its way may or may not have arrived.

    Attributes:
        reason: one line: what happened and what to do.
        refused: the other side answered and said no (user, certificate, limit), so that waiting alone will not help.
        code: of the broker's CONNACK or DISCONNECT; 0 when it sent none.
        retry_s: the next attempt is after so long.
    """

    reason: str
    refused: bool = False
    code: int = 0
    retry_s: float = 0.0


class Acked(msgspec.Struct, frozen=True):
    """The broker's PUBACK. `mid` is what `Link.publish` returned; `code` is the MQTT 5 reason code, 0 for taken."""

    mid: int
    code: int


class Message(msgspec.Struct, frozen=True):
    """A message from the broker. Hand it to `Link.ack` as it is when the session has `manual_ack`."""

    topic: str
    body: bytes
    retain: bool
    mid: int


Event = Union[Online, Offline, Acked, Message]  # noqa: UP007  isinstance and Python 3.10

_NO_SUPPORT = "the broker speaks no MQTT 5; it needs one that does, such as mosquitto 2"
_CODES = {  # MQTT 5, 2.4: reason codes of CONNACK and DISCONNECT
    0x81: "the broker says a packet was malformed",
    0x82: "the broker says the protocol was violated",
    0x84: _NO_SUPPORT,
    0x85: "the broker does not accept the client id {client}; choose another name",
    0x86: "the broker refused user name or password; check mqtt.username and mqtt.password",
    0x87: "the broker does not let this client in; check mqtt.username and mqtt.password, or the certificate, and what"
    " the broker allows them",
    0x88: "the broker is not available",
    0x89: "the broker is busy",
    0x8A: "the broker has banned this client",
    0x8B: "the broker was shut down",
    0x8D: "the broker heard nothing for the keep-alive time",
    0x8E: "another client connected as {client}; two machines have one name: give each its own",
    0x90: "the broker refuses a topic name; check mqtt.topic_prefix and the broker's ACL",
    0x93: "the broker says too many messages were on their way",
    0x95: "the broker says a packet was too large",
    0x96: "the broker says messages came too fast",
    0x97: "a quota of the broker is used up",
    0x98: "the broker's administrator ended the connection",
    0x99: "the broker says a payload has the wrong form",
    0x9A: "the broker keeps no retained messages",
    0x9B: "the broker does not support QoS 1",
    0x9C: "the broker says to use another server; correct mqtt.host",
    0x9D: "the broker has moved; correct mqtt.host",
    0x9F: "the broker says connections came too fast",
}
_REFUSALS = {0x84, 0x85, 0x86, 0x87, 0x8A, 0x8E, 0x9B, 0x9C, 0x9D}
SILENT = (
    "{host} port {port} closed the connection without an answer; if this listener is for TLS set mqtt.tls = true,"
    " otherwise see the broker's log"
)
SILENT_TLS = (
    "{host} port {port} closed the connection right after the TLS handshake; it may want a certificate of this side"
    " (mqtt.cert_file) or not like the one it got; see the broker's log"
)


def meaning(code: int, client: str) -> tuple[str, bool]:
    """Return what a reason code of CONNACK or DISCONNECT means for a client, and whether it is a refusal."""
    said = _CODES.get(code, f"the broker ended the connection with code 0x{code:02X}")
    return said.format(client=client), code in _REFUSALS


def _properties(packet: int, **values: int) -> Properties:
    made: Any = Properties  # paho has no types for it
    properties: Properties = made(packet)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


class Connection:
    """One life of a paho client. Its callbacks only note; everything is done from `Link.tick`.

    Attributes:
        connack: reason code and limits, when it has come.
        suback: reason codes, when it has come.
        ended: whether by the broker's DISCONNECT, and its reason code.
        subscribed: nothing is left to subscribe to.
        ready: it was said to be online.
        events: acknowledgements and messages not handed out yet, with paho's ids.
        unacked: paho's ids of messages on their way, oldest first, and when they were sent.
        client: paho's.
        context: TLS, or None.
    """

    def __init__(self, broker: BrokerConfig, session: Session, will: Will | None, retain: bool) -> None:
        self.connack: tuple[int, Limits] | None = None
        self.suback: list[int] | None = None
        self.ended: tuple[bool, int] | None = None
        self.subscribed = not session.subscriptions
        self.ready = False
        self.events: list[Acked | Message] = []
        self.unacked: dict[int, float] = {}
        self._session = session
        self._broker = broker
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=session.client_id,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self.context = tls.make_context(broker) if broker.tls else None
        self._set_up(will, retain)

    def _set_up(self, will: Will | None, retain: bool) -> None:
        client = self.client
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages = 0  # the window is `Link.room`
        if self.context is not None:
            client.tls_set_context(self.context)
        password = secret(self._broker.password)
        if self._broker.username or password is not None:
            client.username_pw_set(self._broker.username or None, password)
        if will is not None:
            delay = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay_s)
            client.will_set(will.topic, will.body, qos=1, retain=retain, properties=delay)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        client.on_disconnect = self._on_disconnect

    def open(self) -> None:
        """Connect and send CONNECT. Raises what is in `FOREIGN`."""
        properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=self._session.expiry_s,
            ReceiveMaximum=self._session.receive_maximum,
            MaximumPacketSize=self._session.max_packet_bytes,
        )
        self.client.connect(
            self._broker.host,
            self._broker.port,
            self._broker.keepalive_s,
            clean_start=self._session.clean_start,
            properties=properties,
        )

    def subscribe(self) -> None:
        """Send the session's subscriptions."""
        self.subscribed = True
        self.client.subscribe([(name, SubscribeOptions(qos=1)) for name in self._session.subscriptions])

    def publish(self, topic: str, body: bytes, retain: bool, expiry_s: int | None) -> int | None:
        """Publish with QoS 1; returns paho's id, or None when the connection has just ended."""
        properties = None if expiry_s is None else _properties(PacketTypes.PUBLISH, MessageExpiryInterval=expiry_s)
        sent = self.client.publish(topic, body, qos=1, retain=retain, properties=properties)
        return sent.mid if sent.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else None

    def close(self) -> None:
        """Close the socket, and let go of the client at once: its callbacks would keep it until the next collection."""
        client = self.client
        client.on_connect = client.on_subscribe = client.on_publish = client.on_message = client.on_disconnect = None
        connection = client.socket()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()
        if self.context is not None:
            self.context.failure = None  # its traceback leads to the client

    # ------------------------------------------------------------------------------------- paho's callbacks

    def _on_connect(self, _: Client, __: Any, flags: ConnectFlags, code: ReasonCode, said: Properties | None) -> None:
        limits = Limits(
            window=min(self._session.window, getattr(said, "ReceiveMaximum", 65_535)),
            max_packet_bytes=getattr(said, "MaximumPacketSize", 0),
            keepalive_s=getattr(said, "ServerKeepAlive", self._broker.keepalive_s),
            retain=bool(getattr(said, "RetainAvailable", 1)),
            session_present=flags.session_present,
            expiry_s=getattr(said, "SessionExpiryInterval", -1),
        )
        lacks_qos = not code.is_failure and getattr(said, "MaximumQoS", 1) < 1
        self.connack = (0x9B if lacks_qos else code.value, limits)

    def _on_subscribe(self, _: Client, __: Any, mid: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        self.suback = [code.value for code in codes]

    def _on_publish(self, _: Client, __: Any, mid: int, code: ReasonCode, ___: Properties | None) -> None:
        if self.unacked.pop(mid, None) is not None:
            self.events.append(Acked(mid, code.value))

    def _on_message(self, _: Client, __: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""  # of no protocol
        mid = message.mid if message.qos else 0
        self.events.append(Message(topic, bytes(message.payload), bool(message.retain), mid))

    def _on_disconnect(
        self, _: Client, __: Any, flags: DisconnectFlags, code: ReasonCode | None, ___: Properties | None
    ) -> None:
        by_broker = flags.is_disconnect_packet_from_server
        self.ended = self.ended or (by_broker, code.value if code is not None else 0)
