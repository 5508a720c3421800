"""Certificates of the connection to the broker: days left, a pair with the key, readable by whoever needs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agent.check import credentials, whose
from agent.check.finding import Finding, Subject
from agent.config import MqttConfig
from agent.errors import ConfigError

WARN_DAYS = 30
_NAMES = ("ca_file", "cert_file", "key_file")
_ROOT = "as root the check finds them by LoadCredential= of the unit; else see `journalctl -u edge-ocr-uplink`"


def look(subject: Subject) -> Iterator[Finding]:
    """Look at each file that the settings name."""
    if subject.config.mqtt is None or not subject.config.mqtt.tls:
        return
    mqtt, hidden = credentials.seen(subject, subject.config.mqtt)
    if hidden:
        yield Finding("warn", "certificates", f"{', '.join(hidden)}: given by systemd, and not to be seen here", _ROOT)
    for key in _NAMES:
        if name := getattr(mqtt, key):
            yield from _file(subject, f"mqtt.{key}", Path(name))
    if hidden:
        return
    from agent.mqtt import tls

    try:
        tls.make_context(mqtt)
    except ConfigError as error:
        yield Finding("fail", "certificates", str(error), "get a pair that belongs together, or correct the path")
        return
    yield from _days(subject, mqtt)


def _file(subject: Subject, key: str, path: Path) -> Iterator[Finding]:
    """Say when the uplink's user cannot read a file; those that systemd gives are read by root."""
    user = whose.owner(subject.state_dir)
    if str(path) not in (getattr(subject.config.mqtt, name) for name in _NAMES):
        user = ""  # a credential
    if not whose.may(user, path, "r"):
        said = f"{key} = {path}: missing, or not readable{f' for {user}' if user else ''}"
        advice = "give the path, and let the uplink read it: LoadCredential=, or chgrp edge-ocr and chmod 640"
        yield Finding("fail", "certificates", said, advice)


def _days(subject: Subject, mqtt: MqttConfig) -> Iterator[Finding]:
    from agent.mqtt import tls

    for key in ("ca_file", "cert_file"):
        name = getattr(mqtt, key)
        days = tls.days_left(name, subject.now_s) if name else None
        if days is None:
            continue
        said = f"mqtt.{key}: {days:.0f} days left"
        if days <= 0:
            said = f"mqtt.{key}: expired {-days:.0f} days ago, by this machine's clock"
            yield Finding("fail", "certificates", said, "get a new one, or set the clock; see the line about it")
        elif days < WARN_DAYS:
            yield Finding(
                "warn", "certificates", said, "get a new one; the uplink takes it up when the file is replaced"
            )
        else:
            yield Finding("ok", "certificates", said)
    if not mqtt.ca_file and not mqtt.cert_file:
        yield Finding("ok", "certificates", "those of the system")
