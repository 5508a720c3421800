"""The broker: its name, its port, TLS, user, rights and limits, each told apart from the others.

The check is a client of its own beside a running uplink: it has another client id, keeps no session, and publishes one
empty message, which nobody is told of, to a topic that has no meaning (`devices/DEVICE/check`).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from agent import health
from agent.check import credentials
from agent.check.finding import Finding, Subject
from agent.config import MqttConfig
from agent.errors import ConfigError, MessageError
from agent.protocol import MAX_RESULT_BYTES, MAX_SMALL_BYTES, collector_topic, device_topic

LIMIT_S = 7.0
NAME_S = 2.5
PORT_S = 2.5
SESSION_S = 7 * 86_400
"""What the uplink asks for: commands and receipts wait so long for a device that is away."""
FEW = 5
WARN_DAYS = 30
_NO_RIGHT = 0x87

_SLOW = "it works, but a backlog is sent slowly: raise max_inflight_messages at the broker"
_KEEPS = "commands and receipts for a device that is away longer are lost, and asked for again: raise it at the broker"
_LARGE = "larger results are put aside as too_large: raise max_packet_size at the broker"
_RETAIN = "devices do not learn which collectors are online: let the broker keep retained messages"
_ACL = "the broker's ACL: allow what docs/PROTOCOL.md lists below {topic}, and to read {collectors}"


def look(subject: Subject) -> Iterator[Finding]:
    """Go the way to the broker, as far as it leads."""
    if subject.config.mqtt is None:
        yield Finding("ok", "broker", "no [mqtt]: results stay here")
        return
    mqtt, hidden = credentials.seen(subject, subject.config.mqtt)
    addresses = yield from _name(mqtt)
    if not addresses or not (yield from _port(mqtt, addresses)):
        return
    if hidden:
        said = f"{mqtt.host} port {mqtt.port} answers; no more is known without {', '.join(hidden)}"
        yield Finding("warn", "broker", said, f"check as root; {_of_uplink(subject)}")
        return
    yield from _talk(subject, mqtt)


def _name(mqtt: MqttConfig) -> Generator[Finding, None, list[Any]]:
    """Return the broker's addresses; a thread that waits for a name server that does not answer is left behind."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(mqtt.host, mqtt.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="getaddrinfo", daemon=True)
    thread.start()
    thread.join(NAME_S)
    if not found:
        said = f"the name server does not answer within {NAME_S:g} s for {mqtt.host}"
        yield Finding("fail", "broker", said, "see /etc/resolv.conf and the network; or give an address as mqtt.host")
        return []
    if isinstance(found[0], Exception):
        said = f"the name mqtt.host = {mqtt.host} cannot be resolved"
        yield Finding("fail", "broker", said, "check the name, the network and its name server: `getent hosts NAME`")
        return []
    return [entry[4] for entry in found[0]]


def _port(mqtt: MqttConfig, addresses: list[Any]) -> Generator[Finding, None, bool]:
    """Return whether something listens there, at one of the addresses."""
    until, why = time.monotonic() + PORT_S, "does not answer"
    for address in addresses:
        try:
            socket.create_connection(address[:2], max(0.2, until - time.monotonic())).close()
            return True
        except ConnectionRefusedError:
            why = "nothing listens there"
        except OSError as error:
            why = error.strerror or "does not answer"
    refused = why == "nothing listens there"
    advice = (
        "is the broker running, and mqtt.port right?" if refused else "check the network, the address and firewalls"
    )
    said = f"{mqtt.host} port {mqtt.port} ({addresses[0][0]}): {why}"
    yield Finding("fail", "broker", said, f"{advice} Results wait in the outbox until then.")
    return False


def _talk(subject: Subject, mqtt: MqttConfig) -> Iterator[Finding]:
    from agent.mqtt import Offline, Session

    until = time.monotonic() + LIMIT_S - NAME_S
    client = f"{subject.config.device}-check"
    # Asked for once as the uplink does, for the broker's answer; the second connection then keeps no session.
    first = _meet(mqtt, Session(client_id=client, expiry_s=SESSION_S, window=mqtt.window), until)
    if first is None or isinstance(first[1], Offline):
        yield _refused(subject, mqtt, None if first is None else first[1].reason)
        return
    link, online = first
    days = link.certificate_days()
    link.close()
    yield from _limits(mqtt, online.limits)
    yield from _peer(days)
    yield from _rights(subject, mqtt, client, until)


def _meet(mqtt: MqttConfig, session: Any, until: float) -> Any:
    """Return a link and its first word, Online or Offline; None without one in time."""
    from agent.mqtt import Link, Offline, Online

    link = Link(mqtt, session)
    link.retry_now()
    while time.monotonic() < until:
        for event in link.tick(0.1):
            if isinstance(event, (Online, Offline)):
                return link, event
    link.close()
    return None


def _refused(subject: Subject, mqtt: MqttConfig, reason: str | None) -> Finding:
    said = reason or f"{mqtt.host} port {mqtt.port} takes the connection and does not answer"
    state = health.read_state(subject.state_dir, "uplink", health.UplinkState)
    if subject.runs("uplink") and state is not None and state.connection in ("online", "no collector"):
        advice = "the uplink itself is connected; the broker may take no second client of this device"
        return Finding("warn", "broker", said, advice)
    return Finding("fail", "broker", said, "do what it says; results wait in the outbox until then")


def _of_uplink(subject: Subject) -> str:
    state = health.read_state(subject.state_dir, "uplink", health.UplinkState)
    if not subject.runs("uplink") or state is None:
        return "no uplink runs"
    return f"the uplink says: {state.connection}{f': {state.reason}' if state.reason else ''}"


def _limits(mqtt: MqttConfig, limits: Any) -> Iterator[Finding]:
    """Hold what the broker allows against what the uplink needs."""
    most = limits.max_packet_bytes
    said = f"{mqtt.host} port {mqtt.port} lets this device in; {limits.window} messages on their way at a time"
    said += f", packets up to {most >> 10} kB" if most else ""
    yield Finding(
        "ok", "broker", f"{said}, keep-alive {limits.keepalive_s} s" + ("" if mqtt.tls else ", not encrypted")
    )
    if limits.window < min(FEW, mqtt.window):
        yield Finding("warn", "broker", f"takes {limits.window} messages at a time", _SLOW)
    if most and most < MAX_RESULT_BYTES:
        said = f"takes packets up to {most} bytes, results have up to {MAX_RESULT_BYTES}"
        yield Finding("fail" if most < MAX_SMALL_BYTES else "warn", "broker", said, _LARGE)
    if not limits.retain:
        yield Finding("fail" if mqtt.guarantee == "stored" else "warn", "broker", "keeps no retained messages", _RETAIN)
    if 0 <= limits.expiry_s < SESSION_S:
        yield Finding("warn", "broker", f"keeps a session for {limits.expiry_s / 3600:.1f} hours only", _KEEPS)


def _peer(days: dict[str, float]) -> Iterator[Finding]:
    left = days.get("the broker's certificate")
    if left is None:
        return
    said = f"its certificate: {left:.0f} days left"
    if left >= WARN_DAYS:
        yield Finding("ok", "broker", said)
    else:
        yield Finding("warn", "broker", said, "renew it at the broker; once it has expired no device gets in")


def _rights(subject: Subject, mqtt: MqttConfig, client: str, until: float) -> Iterator[Finding]:
    """Subscribe and publish as the device does, with nothing that means anything."""
    from agent.mqtt import Offline, Session

    own = device_topic(mqtt.topic_prefix, subject.config.device, "")
    collectors = collector_topic(mqtt.topic_prefix, "+")
    wanted = (f"{own}receipt", f"{own}command", collectors) if mqtt.guarantee == "stored" else (f"{own}command",)
    met = _meet(mqtt, Session(client_id=client, subscriptions=wanted, clean_start=True, manual_ack=True), until)
    if met is None or isinstance(met[1], Offline):
        return  # it was there a moment ago
    link, online = met
    advice = _ACL.format(topic=own, collectors=collectors)
    code = _publish(link, f"{own}check", until)
    link.close()
    if online.denied:
        yield Finding("fail", "broker", f"this device may not read {', '.join(online.denied)}", advice)
    if code == _NO_RIGHT:
        said = (
            f"this device may not write {own}check; if only result, status, event, answer and resync are open to it, ok"
        )
        yield Finding("warn", "broker", said, advice)
    elif not online.denied:
        yield Finding("ok", "broker", f"this device may read and write below {own[:-1]}")


def _publish(link: Any, topic: str, until: float) -> int:
    """Return the broker's answer to an empty message; 0 when it took it, or gave none in time."""
    from agent.mqtt import Acked

    with contextlib.suppress(ConfigError, MessageError):
        mid = link.publish(topic, b"", expiry_s=1)
        while mid is not None and time.monotonic() < until:
            for event in link.tick(0.1):
                if isinstance(event, Acked) and event.mid == mid:
                    return event.code
    return 0
