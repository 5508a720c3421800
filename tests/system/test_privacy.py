"""What sees pictures has no network, what has the network sees no picture: of the running programs, by the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stub_worker
from tests.command import EDGE_OCR, ROOT, run
from tests.notify_kit import internet_sockets
from tests.system.branch import Branch, until

SETTINGS = """
device = "box-1"
state_dir = "{home}/state"
[reader]
bundle = "{bundle}"
[[source]]
type = "folder"
name = "inbox"
path = "{home}/inbox"
stable_s = 0.05
poll_s = 0.1
[outbox]
min_free_mb = 0
"""


def unshare() -> tuple[str, ...]:
    """Return what starts a program in a network without any interface; without rights as a user of its own."""
    return ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-r", "-n")


def test_worker_reads_a_page_without_any_network_and_asks_for_none(tmp_path, bundle_path):
    assert run((*unshare(), "true")).status == 0, "no network namespaces here"
    settings, trace = tmp_path / "agent.toml", tmp_path / "trace"
    settings.write_text(SETTINGS.format(home=tmp_path, bundle=bundle_path))
    (tmp_path / "inbox").mkdir()
    picture = (ROOT / "samples" / "form.png").read_bytes()
    (tmp_path / "inbox" / "form.png").write_bytes(picture)
    command = (
        *unshare(),
        *("strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace)),
        *EDGE_OCR,
        *("worker", "-c", str(settings)),
    )
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as process:
        done = until((tmp_path / "inbox" / "done" / "form.png").exists, 90)
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=30)[1].decode()
    assert done < 90, said
    rows = run((*EDGE_OCR, "outbox", "export", "-c", settings)).rows
    assert len(rows) == 1
    assert len(rows[0]["result"]["lines"]) > 20
    assert internet_sockets(trace) == []


def test_trace_shows_a_socket_where_there_is_one(tmp_path):
    trace = tmp_path / "trace"
    run(("strace", "-f", "-e", "trace=network", "-o", trace, sys.executable, "-c", "import socket; socket.socket()"))
    assert len(internet_sockets(trace)) == 1


@pytest.mark.timeout(120)
def test_uplink_opens_nothing_in_the_folders_of_pictures(tmp_path):
    branch = Branch(tmp_path)
    trace = tmp_path / "trace"
    command = (
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=/^open",
        "-o",
        trace,
        *EDGE_OCR,
        "uplink",
        "-c",
        tmp_path / "agent.toml",
    )
    try:
        branch.start("broker")
        assert until(lambda: branch.is_ready("broker"), 10) < 10
        branch.start("collector", "worker")
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as uplink:
            branch.submit(3, stub_worker.READS)
            branch.drain(60)
            os.killpg(uplink.pid, signal.SIGTERM)
            uplink.wait(30)
        assert len(branch.stored()) == 3
    finally:
        branch.close()
    calls = [line for line in trace.read_text(errors="replace").splitlines() if f"{tmp_path}/" in line]
    assert any("outbox.db" in line for line in calls)
    assert [line for line in calls if f"{tmp_path}/inbox" in line] == []
    assert not [line for line in calls if Path(line.split('"')[1]).suffix in (".png", ".jpg", ".nb")]
