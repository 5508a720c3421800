"""What a device tells about itself: its retained status, and how Home Assistant finds it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__, health
from agent.clock import Clock
from agent.config import AgentConfig, MqttConfig
from agent.outbox import Stats
from agent.protocol import Status, device_topic

CHANGE_S = 5.0
"""A change is told so long after the last at the earliest."""
REPEAT_S = 60.0
WILL_DELAY_S = 30
"""A link that comes back sooner was never away."""


class Presence:
    """Makes the status of a device, and says when it is to be told again."""

    def __init__(self, config: AgentConfig, mqtt: MqttConfig, clock: Clock) -> None:
        """Make the presence of a device."""
        self.topic = device_topic(mqtt.topic_prefix, config.device, "status")
        self._device = config.device
        self._state_dir = Path(config.state_dir)
        self._clock = clock
        self._told: Status | None = None
        self._told_at = float("-inf")

    def gone(self, session: int) -> Status:
        """Return the status that says the device is offline."""
        return Status(
            device=self._device, online=False, session=session, at_ms=self._clock.wall_ms(), version=__version__
        )

    def status(self, session: int, stats: Stats, alarms: set[str]) -> Status:
        """Return the status of a device that is online."""
        worker = health.read_state(self._state_dir, "worker", health.WorkerState)
        silent = worker is not None and health.silent_s(worker, self._clock.wall_ms()) > health.STALE_S
        return Status(
            device=self._device,
            online=True,
            session=session,
            at_ms=self._clock.wall_ms(),
            pending=stats.pending,
            brokered=stats.brokered,
            dead=stats.dead,
            oldest_s=round(stats.oldest_s, 1),
            paused=stats.paused,
            alarms=tuple(sorted({*stats.alarms, *alarms, *(("worker",) if silent else ())})),
            pages_per_minute=worker.pages_per_minute if worker is not None and not silent else 0.0,
            bundle=worker.bundle if worker is not None else "",
            version=__version__,
        )

    @property
    def may_be_due(self) -> bool:
        """Whether a status would be told now if it were another."""
        return self._told is None or self._clock.monotonic() - self._told_at >= CHANGE_S

    def is_due(self, status: Status) -> bool:
        """Tell whether a status is to be told now: at once when the device comes online, later only now and then."""
        if self._told is None or self._clock.monotonic() - self._told_at >= REPEAT_S:
            return True
        return self.may_be_due and _lasting(status) != _lasting(self._told)

    def told(self, status: Status) -> None:
        """Note that a status was published."""
        self._told, self._told_at = status, self._clock.monotonic()

    def forget(self) -> None:
        """Note that the link is gone: the next status is a birth."""
        self._told = None


def _lasting(status: Status) -> Status:
    """Return a status without what changes all the time."""
    return msgspec.structs.replace(status, at_ms=0, oldest_s=0.0, pages_per_minute=0.0)


def discovery(config: AgentConfig, mqtt: MqttConfig) -> tuple[str, bytes]:
    """Return topic and retained payload that let Home Assistant (2024.11 or newer) find a device.

    https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
    """
    name = re.sub("[^A-Za-z0-9_-]", "_", config.device)
    if name != config.device:  # so that "a.b" and "a_b" stay two
        name = f"{name}_{hashlib.sha256(config.device.encode()).hexdigest()[:6]}"
    topic = device_topic(mqtt.topic_prefix, config.device, "status")
    availability = {
        "topic": topic,
        "value_template": "{{ 'online' if value_json.online else 'offline' }}",
    }

    def sensor(of: str, label: str, **more: Any) -> dict[str, Any]:
        return {
            "platform": "sensor",
            "unique_id": f"edge_ocr_{name}_{of}",
            "name": label,
            "value_template": f"{{{{ value_json.{of} }}}}",
            "availability": [availability],
            "state_class": "measurement",
            **more,
        }

    payload = {
        "device": {
            "identifiers": [f"edge_ocr_{name}"],
            "name": config.device,
            "manufacturer": "edge-ocr-agent",
            "model": "edge-ocr",
            "sw_version": __version__,
        },
        "origin": {"name": "edge-ocr-agent", "sw_version": __version__},
        "state_topic": topic,
        "qos": 1,
        "components": {
            "online": {
                "platform": "binary_sensor",
                "unique_id": f"edge_ocr_{name}_online",
                "name": "Connection",
                "device_class": "connectivity",
                "entity_category": "diagnostic",
                "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
            },
            "pending": sensor("pending", "Pages waiting"),
            "oldest": sensor("oldest_s", "Oldest page waiting", device_class="duration", unit_of_measurement="s"),
            "rate": sensor("pages_per_minute", "Pages per minute", unit_of_measurement="pages/min"),
            "dead": sensor("dead", "Pages refused", entity_category="diagnostic"),
        },
    }
    return f"{mqtt.home_assistant_prefix}/device/{name}/config", msgspec.json.encode(payload)
