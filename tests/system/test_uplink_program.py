"""The uplink as a program: over TLS, in little memory, idle and ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent import health
from agent.config import MqttConfig, OutboxConfig
from agent.outbox import Outbox
from agent.protocol import Status
from tests.broker import Authority, Broker
from tests.centre import Centre, closing, page, pair, run, step
from tests.command import ROOT


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path / "broker") as broker:
        yield broker


def statuses(centre: Centre) -> list[Status]:
    return centre.heard["status"]


def settings_file(tmp_path: Path, port: int, **more: Any) -> Path:
    config = {
        "device": "dev-1",
        "state_dir": str(tmp_path / "state"),
        "mqtt": {"host": "localhost", "port": port, **more},
    }
    path = tmp_path / "agent.toml"
    path.write_bytes(msgspec.toml.encode(config))
    return path


PROGRAM = """
import sys, pathlib
from agent import config
from agent.uplink import uplink
uplink.run(config.load(pathlib.Path(sys.argv[1]), config.AgentConfig))
"""


def test_program_sends_over_tls_in_little_memory_and_ends_at_sigterm(tmp_path):
    authority = Authority(tmp_path / "ca")
    with Broker(tmp_path / "b", authority=authority) as broker:
        path = settings_file(tmp_path, broker.port, ca_file=str(authority.file), topic_prefix="p")
        state_dir = tmp_path / "state"
        filler = Outbox(state_dir, OutboxConfig(), role="worker")
        for number in range(200):
            filler.accept(f"key-{number}", page(f"key-{number}", *["Invoice"] * 20))
        config = MqttConfig(host="localhost", port=broker.port, ca_file=str(authority.file), topic_prefix="p")
        centre = Centre(config)
        child = subprocess.Popen((sys.executable, "-c", PROGRAM, path), cwd=ROOT, stderr=subprocess.PIPE)
        with closing(centre):
            run(centre, until=lambda: len(centre.rows) == 200)
            run(centre, until=lambda: filler.stats().brokered == 0)
            state = health.read_state(state_dir, "uplink", health.UplinkState)
            assert state is not None and state.rss_mb <= 45.0
            second = subprocess.run((sys.executable, "-c", PROGRAM, path), cwd=ROOT, capture_output=True)
            assert b"another uplink runs" in second.stderr
            child.send_signal(signal.SIGTERM)
            run(centre, until=lambda: not statuses(centre)[-1].online)
        said = child.communicate(timeout=10)[1].decode()
        assert child.returncode == 0, said
        assert "Invoice" not in said
        filler.close()


def test_idle_uplink_sleeps(broker, tmp_path):
    with pair(broker.port, tmp_path / "s") as (site, centre):
        run(site, centre, until=lambda: site.state["connection"] == "online")
        step(site, centre, for_s=0.5)
        began, ticks = time.monotonic(), 0
        while time.monotonic() < began + 1.5:
            site.uplink.tick()
            ticks += 1
        assert ticks <= 3
