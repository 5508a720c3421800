"""The commands in docs/, run as they stand there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.broker import free_port
from tests.command import ROOT
from tests.docs import shell


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
