"""`edge-ocr scan` and a running worker: orders, kills, and every page exactly once. Only the models are a stub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import OutboxConfig
from agent.outbox import Outbox
from agent.sources.scanner.orders import folder_of
from tests import sane
from tests.command import EDGE_OCR, ROOT, Ran, run
from tests.system.branch import until

SCANNER = (
    '[[source]]\ntype = "scanner"\nname = "{0}"\ndevice = "test:0"\ntrigger = "order"\nfeeder = "{1}"\n'
    'mode = "color"\nresolution_dpi = 50\npage_size = "100x100"\noptions = {2}\n'
)


def happens(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    assert until(condition, 30.0) < float("inf")


class Box:
    """A worker that a test starts and kills."""

    def __init__(self, home: Path) -> None:
        self.state = home / "state"
        self.config = home / "agent.toml"
        self.worker: subprocess.Popen[bytes] | None = None
        self.set_up(SCANNER.format("desk", "flatbed", "[]"))

    def set_up(self, *sources: str) -> None:
        outbox = "[outbox]\nmin_free_mb = 0\nballast_mb = 0\n"
        self.config.write_text(f'device = "box"\nstate_dir = "{self.state}"\n{"".join(sources)}{outbox}')

    def start(self) -> None:
        command = (sys.executable, "-m", "tests.stub_worker", "-c", self.config)
        self.worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL)
        happens(lambda: (self.state / "worker.json").exists())
        happens(lambda: json.loads((self.state / "worker.json").read_bytes())["pid"] == self.worker.pid)

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.worker is not None:
            self.worker.send_signal(number)
            self.worker.wait(30)
            self.worker = None

    def scan(self, *arguments: str) -> Ran:
        return run((*EDGE_OCR, "scan", "-c", self.config, *arguments))

    def rows(self) -> list[dict[str, object]]:
        outbox = Outbox(self.state, OutboxConfig(), role="tool")
        try:
            return [json.loads(row.result) for row in outbox.rows()]
        finally:
            outbox.close()


@pytest.fixture
def box(tmp_path, monkeypatch):
    sane.set_up(tmp_path / "sane", monkeypatch)
    made = Box(tmp_path)
    yield made
    made.end()


def test_ordered_page_is_scanned_and_read(box):
    box.start()
    ran = box.scan("--wait")
    assert (ran.status, ran.out, ran.err) == (0, "desk: 1 page scanned\n", "")
    assert box.scan("desk", "--pages", "2").out == "desk: ordered\n"
    happens(lambda: len(box.rows()) == 3)
    assert {(row["source"], row["width"], row["height"]) for row in box.rows()} == {("desk", 196, 196)}
    assert len({row["key"] for row in box.rows()}) == 3


def test_fault_is_told_to_who_ordered_and_by_the_exit_status(box):
    box.set_up(SCANNER.format("desk", "Tray", "[]"))
    box.start()
    ran = box.scan("--wait")
    assert (ran.status, ran.out) == (75, "desk: 0 pages scanned\n")
    assert 'feeder = "Tray": this scanner has no such; it has: Flatbed, ' in ran.err


def test_without_a_worker_or_a_scanner_nothing_is_ordered(box):
    ran = box.scan("--wait")
    assert (ran.status, ran.err) == (75, f"edge-ocr: {box.state}: no worker runs here; start `edge-ocr run`\n")
    box.set_up(SCANNER.format("a", "adf", "[]"), SCANNER.format("b", "adf", "[]").replace("test:0", "test:1"))
    assert (box.scan().status, box.scan().err) == (78, "edge-ocr: there are several scanners; name one of: a, b\n")
    assert "no scanner 'c' in the settings; there is: a, b" in box.scan("c").err
    box.set_up()
    assert 'no [[source]] with type = "scanner" in the settings' in box.scan().err


def test_who_stops_waiting_takes_the_order_back(box):
    box.start()
    os.kill(box.worker.pid, signal.SIGSTOP)
    waits = subprocess.Popen((*EDGE_OCR, "scan", "-c", box.config, "--wait"), cwd=ROOT, stderr=subprocess.DEVNULL)
    orders = folder_of(box.state, "desk") / ".orders"
    happens(lambda: any(orders.glob("*.order")))
    waits.send_signal(signal.SIGINT)
    assert waits.wait(30) == 130
    os.kill(box.worker.pid, signal.SIGCONT)
    assert list(orders.iterdir()) == []


def test_worker_that_ends_is_told_to_who_waits(box):
    box.set_up(SCANNER.format("desk", "adf", json.dumps(sane.SLOW)))
    box.start()
    command = (*EDGE_OCR, "scan", "-c", box.config, "--wait")
    waits = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    happens(lambda: any((box.state / "sources/desk").glob(".run-*/0002.*")))
    box.end(signal.SIGKILL)
    _, err = waits.communicate(timeout=30)
    assert waits.returncode == 75
    assert b"the worker has ended meanwhile" in err


@pytest.mark.parametrize("page", [1, 6])
def test_every_page_is_read_once_although_the_worker_is_killed_in_a_batch(box, page):
    box.set_up(SCANNER.format("desk", "adf", json.dumps(sane.SLOW)))
    box.start()
    assert box.scan().status == 0
    spool = folder_of(box.state, "desk")
    happens(lambda: any(spool.glob(f".run-*/{page:04}.*")))
    box.end(signal.SIGKILL)
    box.start()
    happens(lambda: not any(spool.glob(".run-*")) and not any(spool.glob("*.tiff")))
    happens(lambda: len(box.rows()) == len(list((spool / "done").iterdir())) >= page)
    rows = box.rows()
    assert len({row["key"] for row in rows}) == len(rows)
    names = sorted(row["image"] for row in rows)
    assert [name[-9:] for name in names] == [f"{number:04}.tiff" for number in range(1, len(rows) + 1)]
