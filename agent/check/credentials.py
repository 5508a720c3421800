"""Keys and passwords that systemd gives to one unit: where the unit has them from, which root may look at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.check.finding import Subject
from agent.config import MqttConfig

UPLINK = "edge-ocr-uplink.service"
_FOLDERS = ("usr/lib/systemd/system", "usr/local/lib/systemd/system", "etc/systemd/system", "run/systemd/system")
_RUN = f"/run/credentials/{UPLINK}/"
_FILES = ("ca_file", "cert_file", "key_file")


def seen(subject: Subject, mqtt: MqttConfig) -> tuple[MqttConfig, tuple[str, ...]]:
    """Return the settings with what this user can read in the place of credentials, and the names of those it cannot.

    A unit's own folder of credentials is closed to everybody else, and what `LoadCredential=` names usually to all but
    root.
    """
    given = dict(_given(subject.root))
    changes: dict[str, str | None] = {}
    hidden = []
    for key in _FILES:
        path = getattr(mqtt, key)
        if path.startswith(_RUN) and not os.access(path, os.R_OK):
            name = path.removeprefix(_RUN)
            changes[key] = _readable(given.get(name, ""))
            if not changes[key]:
                hidden.append(path)
    if mqtt.password and mqtt.password.startswith("credential:") and "CREDENTIALS_DIRECTORY" not in os.environ:
        path = _readable(given.get(mqtt.password.removeprefix("credential:"), ""))
        changes["password"] = f"file:{path}" if path else None
        if not path:
            hidden.append(mqtt.password)
    return msgspec.structs.replace(mqtt, **changes), tuple(hidden)


def _readable(path: str) -> str:
    return path if path and os.access(path, os.R_OK) else ""


def _given(root: Path) -> Iterator[tuple[str, str]]:
    """Yield names and paths of `LoadCredential=`, those of drop-ins last."""
    for folder in _FOLDERS:
        place = root / folder
        for file in (place / UPLINK, *sorted((place / f"{UPLINK}.d").glob("*.conf"))):
            try:
                rows = file.read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                continue
            for row in rows:
                key, _, value = row.partition("=")
                name, colon, path = value.strip().partition(":")
                if key.strip() == "LoadCredential" and colon:
                    yield name, path
