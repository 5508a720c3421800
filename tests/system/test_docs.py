"""The commands in docs/, run as they stand there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from agent.collect.collector import Collector
from agent.collect.stores import open_store
from agent.config import BrokerConfig, CollectorConfig
from tests.broker import Broker, free_port
from tests.centre import Site, broker_settings, closing
from tests.command import ROOT
from tests.docs import blocks, shell


def run_commands(text: str, where: Path) -> str:
    """Return what commands print; all of them must succeed, and nothing of them may go on."""
    path = where / "commands.sh"
    path.write_text(f"set -euo pipefail\nPATH=$PATH:/usr/sbin\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{text}")
    ran = subprocess.run(
        ("bash", path), cwd=where, stdin=subprocess.DEVNULL, capture_output=True, timeout=110, start_new_session=True
    )
    assert ran.returncode == 0, f"{ran.stdout.decode()}\n{ran.stderr.decode()}"
    return ran.stdout.decode()


def test_protocol_can_be_tried_as_it_says(tmp_path, bundle_path):
    for name in (".venv", "samples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = shell("docs/PROTOCOL.md").replace("18830", str(free_port()))
    said = [json.loads(line) for line in run_commands(text, tmp_path).splitlines() if line.startswith("{")]
    row, status, answer = said
    assert row["device"] == "branch-0042"
    assert len(row["result"]["lines"]) > 20
    assert status["online"] is True
    assert (answer["id"], answer["ok"]) == ("by-hand-1", True)


def test_broker_rules_let_devices_and_collectors_do_what_they_must_and_no_more(tmp_path):
    (rules,) = [block.text for block in blocks("docs/PROTOCOL.md") if block.said == "acl"]
    (tmp_path / "acl").write_text(rules)
    (tmp_path / "password").write_text("secret")
    users = dict.fromkeys(("branch-0042", "branch-0043", "centre-1"), "secret")
    with Broker(tmp_path / "broker", passwords=users, more=f"acl_file {tmp_path / 'acl'}") as broker:
        known = {"password": f"file:{tmp_path / 'password'}", "topic_prefix": "ocr/v1"}
        site = Site(
            tmp_path / "state", broker_settings(broker.port, username="branch-0042", **known), device="branch-0042"
        )
        mqtt = BrokerConfig(host="127.0.0.1", port=broker.port, tls=False, username="centre-1", **known)
        config = CollectorConfig(name="centre-1", store=f"sqlite:{tmp_path}/centre.db", mqtt=mqtt)
        collector = Collector(config, open_store(config.store))
        collector.start()
        with closing(site):
            site.add(3)
            for _ in range(200):
                collector.tick(0.05)
                site.uplink.tick(0.05)
                left = site.outbox.stats()
                if not left.pending + left.brokered:
                    break
            assert (left.pending, left.brokered) == (0, 0)  # all were confirmed
            assert site.state["alarms"] == []
        collector.stop()
        forged = ("mosquitto_pub", "-V", "5", "-p", str(broker.port), "-q", "1", "-u", "branch-0043", "-P", "secret")
        said = [
            subprocess.run((*forged, "-t", f"ocr/v1/{topic}", "-m", "{}"), capture_output=True).stderr.decode()
            for topic in ("devices/branch-0042/result", "devices/branch-0043/command", "collectors/centre-1/state")
        ]
        assert ["Not authorized" in line for line in said] == [True] * 3, said
        allowed = subprocess.run((*forged, "-t", "ocr/v1/devices/branch-0043/check", "-n"), capture_output=True)
        assert allowed.stderr == b""
