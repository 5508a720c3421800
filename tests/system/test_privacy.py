"""What sees pictures has no network, what has the network sees no picture: of the running programs, by the kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests import stub_worker
from tests.agent_settings import agent_toml, broker_here
from tests.command import EDGE_OCR, ROOT, run
from tests.notify_kit import internet_sockets
from tests.system.branch import Branch, until
from tests.tcp_proxy import Proxy

CARD, CITIZEN = "6222021234567890123", "11010519491231002X"
PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"%PDF", b"RIFF", b"/9j/", b"iVBOR", b"JVBER", b"UklGR")
"""How pictures and documents begin, and how they do in base64."""


def unshare() -> tuple[str, ...]:
    """Return what starts a program in a network without any interface; without rights as a user of its own."""
    return ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-r", "-n")


def test_worker_reads_a_page_without_any_network_and_asks_for_none(tmp_path, bundle_path):
    assert run((*unshare(), "true")).status == 0, "no network namespaces here"
    settings, trace = tmp_path / "agent.toml", tmp_path / "trace"
    settings.write_text(agent_toml(tmp_path, reader={"bundle": str(bundle_path)}))
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


def planted(path: Path) -> None:
    """Draw a page with numbers that must not leave, and a word that does."""
    page = Image.new("L", (1000, 400), 255)
    font = ImageFont.truetype("DejaVuSans.ttf", 40)
    for row, text in enumerate(("Invoice", f"Card {CARD}", f"Id {CITIZEN}")):
        ImageDraw.Draw(page).text((60, 50 + 110 * row), text, 0, font)
    page.save(path)


def rows_at_the_centre(branch: Branch) -> int:
    with contextlib.closing(sqlite3.connect(branch.store.removeprefix("sqlite:"), timeout=10)) as database:
        return int(database.execute("SELECT count(*) FROM results").fetchone()[0])


@pytest.mark.timeout(120)
def test_no_picture_and_no_planted_number_is_in_any_byte_that_leaves_nor_in_state_and_log(tmp_path, bundle_path):
    branch = Branch(tmp_path / "branch")
    (tmp_path / "inbox").mkdir()
    planted(tmp_path / "inbox" / "page.png")
    try:
        branch.start("broker")
        assert until(lambda: branch.is_ready("broker"), 10) < 10
        branch.start("collector")
        assert until(lambda: branch.is_ready("collector"), 20) < 20
        with Proxy(branch.port) as proxy:
            proxy.keep = True
            settings, reader = tmp_path / "agent.toml", {"bundle": str(bundle_path)}
            settings.write_text(agent_toml(tmp_path, reader=reader, mqtt=broker_here(proxy.port)))
            command = (*EDGE_OCR, "run", "-c", str(settings))
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as agent:
                stored = until(lambda: rows_at_the_centre(branch) == 1, 60)
                kept = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file())
                os.killpg(agent.pid, signal.SIGTERM)
                said = agent.communicate(timeout=30)[1]
            assert stored < 60, said.decode()
            sent = bytes(proxy.sent)
    finally:
        branch.close()
    assert b"Invoice" in sent  # the text was read, and went this way
    assert b"Invoice" in kept
    assert [mark for mark in PICTURES if mark in sent or mark in kept or mark in said] == []
    for number in (CARD, CITIZEN):
        for part in (number, number[:12], number[-12:]):
            assert part.encode() not in sent + kept + said
    assert b"Invoice" not in said
