"""Pages of a scanner, by the real scanimage and the scanner that SANE has for tests."""

from __future__ import annotations

import errno
import logging
import os
import select
import shutil
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from agent.errors import FrameError, InputError
from agent.source_config import ScannerConfig
from agent.sources.scanner import options as scan_options
from agent.sources.scanner import scanimage, spool
from agent.sources.scanner.orders import Answer, folder_of, orders_of
from agent.sources.scanner.source import ScannerSource
from agent.sources.scanner.spool import Spool
from tests import sane
from tests.sources_contract import AMPLE, BentClock, SourceContract, drained

LIMIT_S = 30.0
HANGS_S = 4.0  # after which time passes for a run, so that it is ended
QUICK = {"resolution_dpi": 50, "page_size": sane.PAGE_SIZE, "device": sane.DEVICE}


class ScannerRig:
    """A scanner source on a state directory of its own; its pages come when they are ordered."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = BentClock()
        self.source: ScannerSource | None = None
        self.settings: dict[str, object] = {**QUICK, "trigger": "order", "feeder": "flatbed", "timeout_s": 5.0}

    def open(self, **settings: object) -> ScannerSource:
        self.close()
        self.settings.update(settings)
        self.source = ScannerSource(ScannerConfig(name="desk", **self.settings), self.home, self.clock)
        return self.source

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
            self.source = None

    @property
    def spool(self) -> Path:
        return folder_of(self.home, "desk")

    @property
    def waiting(self) -> list[str]:
        return sorted(path.name for path in self.spool.glob("*.tiff"))

    def step(self) -> None:
        """Let the source do one thing, and no page be claimed; time passes as far as nothing else happens."""
        self.source._step()
        watched = [fd for fd in self.source.filenos() if fd not in self.source._folder.filenos()]
        if watched:
            select.select(watched, [], [], 0.05)
        elif self.source._run is not None:
            time.sleep(0.002)

    def rest(self) -> None:
        """Let the source do what it has begun."""
        begun = time.monotonic()
        self.step()
        while self.source._run is not None or self.source._due <= self.clock.monotonic():
            assert time.monotonic() - begun < LIMIT_S
            if time.monotonic() - begun > HANGS_S:
                self.clock.wait(1.0)
            self.step()

    def rest_until(self, happened: Callable[[], bool]) -> None:
        """Rest until something happened: SANE's scanner for tests itself hangs after one fault in a hundred."""
        for _ in range(4):
            self.rest()
            if happened():
                return
            assert "made no progress" in self.source.trouble()
            self.clock.wait(61)
        raise AssertionError("it does not happen")

    def order(self, pages: int = 0) -> Answer | None:
        """Order pages, let them be scanned, and return the answer."""
        name = orders_of(self.home, "desk").give(pages)
        self.rest()
        return orders_of(self.home, "desk").answer_to(name)

    def put(self, number: int) -> None:
        """Scan a page; its size in mm tells the number."""
        before = self.settings["page_size"]
        self.source._config = ScannerConfig(name="desk", **{**self.settings, "page_size": f"{50 + number}x80"})
        self.source._arguments = None
        assert self.order(1) == Answer(1)
        self.source._config = ScannerConfig(name="desk", **{**self.settings, "page_size": before})

    def settle(self) -> None:
        self.clock.wait(2.0)

    def pages(self) -> list:
        return drained(self.source, self)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    sane.set_up(tmp_path / "sane", monkeypatch)
    made = ScannerRig(tmp_path / "state")
    yield made
    made.close()


class TestContract(SourceContract):
    """A scanner is a source."""


# ------------------------------------------------------------------------------------------------ what is scanned


def test_glass_gives_one_page_and_a_feeder_all_it_has(rig):
    rig.open(feeder="flatbed")
    assert rig.order() == Answer(1)
    assert rig.order(3) == Answer(3)
    rig.open(feeder="adf")
    assert rig.order() == Answer(10)
    assert rig.order(4) == Answer(4)
    assert len(rig.waiting) == 18


def test_equal_pages_are_pages_of_their_own_in_their_order(rig):
    rig.open(feeder="adf")
    rig.order()
    captures = rig.pages()
    assert len({capture.key for capture in captures}) == 10
    assert len({capture.key.partition(":")[0] for capture in captures}) == 1
    names = [capture.name for capture in captures]
    assert [name[-9:] for name in names] == [f"{number:04}.tiff" for number in range(1, 11)]
    for capture in captures:
        assert rig.source.done(capture) == str(rig.spool / "done" / capture.name)


def test_pages_are_read_in_their_order_although_the_clock_is_set_back(rig):
    rig.open(feeder="flatbed")
    for number in range(3):
        rig.put(number)
        rig.clock.wall_s -= 86_400
    assert [capture.load(AMPLE).width for capture in rig.pages()] == [98, 100, 102]


def test_feeder_is_looked_into_again_and_again(rig, caplog):
    caplog.set_level(logging.INFO)
    rig.open(feeder="adf", trigger="feeder", poll_s=10.0)
    rig.rest()
    assert len(rig.waiting) == 10
    rig.clock.wait(9.0)
    rig.rest()
    assert len(rig.waiting) == 10
    rig.clock.wait(2.0)
    rig.rest()
    assert len(rig.waiting) == 20
    assert rig.source.trouble() == ""
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


def test_empty_feeder_is_no_fault(rig):
    rig.open(feeder="adf", trigger="feeder", options=("--read-return-value=SANE_STATUS_NO_DOCS",))
    rig.rest_until(lambda: rig.source.trouble() == "")
    told = []
    rig.rest_until(lambda: told.append(rig.order()) or told[-1] == Answer(0, "there is no paper in the feeder"))
    assert rig.waiting == []


def test_nothing_is_fed_while_too_many_pages_wait_until_half_of_them_are_read(rig):
    rig.open(feeder="adf", trigger="feeder", max_waiting=4)
    rig.rest()
    counts = [len(rig.waiting)]
    for _ in range(3):
        rig.clock.wait(20)
        rig.rest()
        counts.append(len(rig.waiting))
        rig.source.done(rig.source._folder.poll())
    assert counts == [4, 4, 3, 4]


@pytest.mark.parametrize(
    ("settings", "width", "height"),
    [
        ({"page_size": "a5", "resolution_dpi": 100}, 583, 827),
        ({"page_size": "a6", "resolution_dpi": 150, "mode": "color"}, 620, 874),
        ({"page_size": "60x40", "resolution_dpi": 200, "mode": "lineart"}, 472, 315),
        ({"page_size": "letter", "resolution_dpi": 75, "options": ("--depth=16",)}, 638, 824),
        ({"page_size": "60x40", "mode": "Gray"}, 118, 79),
    ],
)
def test_size_resolution_and_mode_are_in_the_pixels(rig, settings, width, height):
    rig.open(feeder="flatbed", **{"options": ("--test-picture=Color pattern",), **settings})
    assert rig.order() == Answer(1)
    (capture,) = rig.pages()
    frame = capture.load(AMPLE)
    assert abs(frame.width - width) <= 1
    assert abs(frame.height - height) <= 1
    assert is_colourful(frame.pixels) is (settings.get("mode") == "color")


def is_colourful(pixels: np.ndarray) -> bool:
    return pixels.ndim == 3 and bool((pixels.max(axis=2) != pixels.min(axis=2)).any())


@pytest.mark.parametrize("mode", ["gray", "color", "lineart"])
@pytest.mark.parametrize(("picture", "low", "high"), [("Solid white", 255, 255), ("Solid black", 0, 0)])
def test_white_is_white_in_every_mode(rig, mode, picture, low, high):
    rig.open(mode=mode, options=(f"--test-picture={picture}",))
    rig.order()
    (capture,) = rig.pages()
    pixels = capture.load(AMPLE).pixels
    assert (pixels.min(), pixels.max()) == (low, high)


def test_scanner_that_does_not_know_how_long_a_page_is_gives_pages(rig):
    rig.open(feeder="adf", options=("--hand-scanner=yes",))
    assert rig.order(2) == Answer(2)
    assert {capture.load(AMPLE).height for capture in rig.pages()} == {334}


# ------------------------------------------------------------------------------------------------ faults

STATUSES = [
    ("DEVICE_BUSY", "the scanner is busy"),
    ("CANCELLED", "cancelled at the scanner"),
    ("INVAL", "the scanner refuses a setting"),
    ("JAMMED", "paper is jammed: take it out"),
    ("COVER_OPEN", "cover is open: close it"),
    ("IO_ERROR", "look at its cable and power"),
    ("NO_MEM", "lower resolution_dpi"),
    ("ACCESS_DENIED", "this user may not use the scanner"),
]


@pytest.mark.parametrize(("status", "said"), STATUSES)
def test_fault_is_told_once_and_gone_when_the_scanner_works_again(rig, caplog, status, said):
    rig.open(feeder="adf", trigger="feeder", options=(f"--read-return-value=SANE_STATUS_{status}",))
    for _ in range(3):
        rig.rest_until(lambda: said in rig.source.trouble())
        rig.clock.wait(61)
    messages = [record.getMessage() for record in caplog.records]
    assert all(one != other for one, other in pairwise(messages))
    assert rig.waiting == []
    rig.settings["options"] = ()
    rig.source._config = ScannerConfig(name="desk", **rig.settings)
    rig.rest()
    assert rig.source.trouble() == ""
    assert len(rig.waiting) == 10


def test_who_ordered_is_told_the_fault_and_it_passes_when_the_scanner_can_be_opened(rig):
    rig.open(options=("--read-return-value=SANE_STATUS_COVER_OPEN",))
    told = []
    rig.rest_until(lambda: told.append(rig.order()) or told[-1] == Answer(0, "the scanner's cover is open: close it"))
    assert rig.source.trouble()
    rig.clock.wait(11)
    rig.rest()
    assert rig.source.trouble() == ""
    rig.clock.wait(100)
    rig.rest()
    assert rig.waiting == []


def test_order_waits_for_a_busy_scanner_and_not_for_ever(rig, monkeypatch, tmp_path):
    stand_in(tmp_path, monkeypatch, f'case "$*" in *--batch*) exit 3 ;; esac; exec {shutil.which("scanimage")} "$@"')
    rig.open()
    assert rig.order() is None
    assert "the scanner is busy" in rig.source.trouble()
    rig.clock.wait(5.1)
    rig.rest()
    assert not any((rig.spool / ".orders").glob("*.answer"))
    for _ in range(12):
        rig.clock.wait(5.1)
        rig.rest()
    (answer,) = (rig.spool / ".orders").glob("*.answer")
    assert b"the scanner is busy" in answer.read_bytes()


def stand_in(tmp_path, monkeypatch, script: str) -> None:
    """Put a program in scanimage's place."""
    program = tmp_path / "bin" / "scanimage"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_pages_before_a_fault_are_kept_and_half_a_page_is_none(rig, caplog):
    rig.open(feeder="adf", trigger="feeder", options=(*sane.SLOW, "--test-picture=Grid"))
    end_in_page(rig, 3, lambda run: run.signal(signal.SIGKILL))
    rig.rest()
    assert [capture.name[-9:] for capture in rig.pages()] == ["0001.tiff", "0002.tiff"]
    assert "ended by signal 9" in rig.source.trouble()
    assert "a page was cut off and is not read" in caplog.text
    assert list(rig.spool.glob(".run-*")) == []


def end_in_page(rig, number, end) -> None:
    """Let a batch come to a page, and do something while that is written."""
    part, begun = f".run-*/{number:04}.tiff.part", time.monotonic()
    while not any(rig.spool.glob(part)):
        assert time.monotonic() - begun < LIMIT_S
        rig.step()
    end(rig.source._run)


@pytest.mark.parametrize(("deaf", "signalled"), [("", signal.SIGTERM), ("trap '' TERM PIPE\n", signal.SIGKILL)])
def test_scan_that_hangs_is_asked_to_end_and_then_killed(rig, monkeypatch, tmp_path, deaf, signalled):
    rig.open(feeder="adf", trigger="feeder")
    stand_in(tmp_path, monkeypatch, f"{deaf}while :; do sleep 0.02; done")
    rig.step()
    child = rig.source._run._process
    begun = time.monotonic()
    while not rig.source.trouble():
        assert time.monotonic() - begun < LIMIT_S
        rig.step()
        rig.clock.wait(0.2)
    assert "made no progress and was ended" in rig.source.trouble()
    assert child.returncode == -signalled


def test_page_that_takes_long_is_no_hanging_scan(rig):
    rig.open(timeout_s=1.0, resolution_dpi=200, options=sane.SLOW)
    orders_of(rig.home, "desk").give(1)
    begun = time.monotonic()
    while not rig.waiting:
        assert time.monotonic() - begun < LIMIT_S
        rig.step()
        rig.clock.wait(0.05)
    assert rig.source.trouble() == ""


def test_program_that_is_missing_is_named_with_its_package(rig, monkeypatch):
    rig.open()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert rig.order() == Answer(0, "scanimage is missing: apt-get install sane-utils")


def test_unplugged_scanner_is_told_from_one_that_cannot_be_opened(rig, tmp_path):
    rig.open(device="test:7")
    assert "no scanner is found: switch it on" in rig.order().fault
    rig.open(device="test:0")
    assert rig.order() == Answer(1)
    sane.tear_out(tmp_path / "sane")
    rig.source._arguments = None
    assert "no scanner is found: switch it on" in rig.order().fault


def test_only_scanner_is_taken_without_its_name_and_of_several_one_must_be_named(rig, tmp_path, monkeypatch):
    rig.open(device="")
    assert rig.order() == Answer(1)
    sane.set_up(tmp_path / "sane", monkeypatch, devices=2)
    rig.open()
    assert rig.order().fault == "there are several scanners; set device to one of: test:0, test:1"
    sane.tear_out(tmp_path / "sane")
    rig.clock.wait(61)
    assert "no scanner is found" in rig.order().fault


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"feeder": "adf-duplex"},
            'feeder = "adf-duplex": this scanner has no such; it has: Flatbed, Automatic Document Feeder',
        ),
        ({"feeder": "Tray 2"}, 'feeder = "Tray 2": this scanner has no such; it has: Flatbed, '),
        ({"mode": "Halftone"}, 'mode = "Halftone": this scanner has no such; it has: Gray, Color'),
        ({"options": ("--no-such=1",)}, "cannot be opened: another program has it, or this user has no right to it (s"),
        ({"feeder": "FLATBED", "trigger": "feeder"}, "it would be scanned for ever"),
    ],
)
def test_setting_that_the_scanner_does_not_have_is_named(rig, settings, said):
    rig.open(**settings)
    assert said in rig.order().fault


def test_full_disk_is_told_and_the_page_is_kept_for_later(rig, monkeypatch):
    rig.open()
    real = os.rename

    def fails(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", lambda path, to: fails() if to.parent == rig.spool else real(path, to))
    rig.order()
    assert rig.source.trouble() == f"{rig.spool}: No space left on device"
    assert rig.waiting == []
    monkeypatch.undo()
    rig.clock.wait(11)
    rig.rest()
    assert len(rig.waiting) == 1


# ------------------------------------------------------------------------------------------------ ends and starts


@pytest.fixture
def killed(rig):
    """A source whose process was killed while its third page was written: nothing was closed or waited for."""
    rig.open(feeder="adf", trigger="feeder", options=sane.SLOW)
    process = []

    def vanish(run) -> None:
        process.append(run._process)
        run._out.close()
        os.close(run._words)
        rig.source._folder.close()
        rig.source = None

    end_in_page(rig, 3, vanish)
    return process[0]


def test_what_a_killed_worker_left_is_read_after_the_restart(rig, killed, caplog):
    caplog.set_level(logging.INFO)
    rig.open(trigger="order")
    rig.rest()
    assert scanimage.is_running(next(rig.spool.glob(".run-*")))  # it is waited for
    begun = time.monotonic()
    killed.wait(LIMIT_S)
    while rig.spool.glob(".run-*") and any(rig.spool.glob(".run-*")):
        assert time.monotonic() - begun < LIMIT_S
        rig.clock.wait(1)
        rig.rest()
    names = [capture.name[-9:] for capture in rig.pages()]
    assert names == [f"{number:04}.tiff" for number in range(1, len(names) + 1)]
    assert len(names) >= 3  # that at hand too
    assert "pages from before a restart" in caplog.text


def test_what_hangs_from_before_a_restart_is_killed(rig, killed):
    killed.send_signal(signal.SIGSTOP)
    rig.open(trigger="order")
    rig.rest()
    for _ in range(8):
        rig.clock.wait(1)
        rig.rest()
    assert killed.wait(LIMIT_S) == -signal.SIGKILL
    rig.clock.wait(1)
    rig.rest()
    assert len(rig.waiting) == 2
    assert list(rig.spool.glob(".run-*")) == []


def test_closing_ends_a_scan_after_the_page_at_hand(rig):
    rig.open(feeder="adf", options=sane.SLOW)
    name = orders_of(rig.home, "desk").give(0)
    end_in_page(rig, 2, lambda run: rig.close())
    assert 2 <= len(rig.waiting) < 10
    answer = orders_of(rig.home, "desk").answer_to(name)
    assert "was told to end" in answer.fault
    assert 2 <= answer.pages < 10


def test_page_that_lost_its_end_with_the_power_is_none(rig, caplog):
    rig.open()
    rig.close()
    run = rig.spool / ".run-20260101-000000-abcdef"
    run.mkdir()
    (run / "0001.tiff").write_bytes(b"II*\0\x08\0\0\0")
    (run / "0002.tiff").write_bytes(b"")
    rig.open()
    rig.rest()
    assert (rig.waiting, list(rig.spool.glob(".run-*"))) == ([], [])
    assert "cut off" in caplog.text


def test_order_that_was_begun_is_not_carried_out_again_after_a_restart(rig):
    rig.open(feeder="adf", options=sane.SLOW)
    name = orders_of(rig.home, "desk").give(0)
    rig.step()
    rig.source._order = None  # nobody answers it
    rig.open(options=())
    assert "started anew" in orders_of(rig.home, "desk").answer_to(name).fault
    rig.rest()
    assert rig.waiting == []


def test_order_waits_for_a_worker_and_can_be_taken_back(rig):
    rig.open()
    rig.close()
    orders = orders_of(rig.home, "desk")
    waits, back = orders.give(1), orders.give(1)
    assert orders.withdraw(back)
    rig.open()
    rig.rest()
    assert orders.answer_to(waits) == Answer(1)
    assert orders.answer_to(waits) is None
    assert not orders.withdraw(waits)
    assert len(rig.waiting) == 1


def test_answers_that_nobody_takes_are_deleted_after_a_day(rig):
    rig.open()
    orders_of(rig.home, "desk").give(1)
    rig.rest()
    rig.source.tidy()
    assert len(list((rig.spool / ".orders").iterdir())) == 1
    rig.clock.wait(90_000)
    rig.source.tidy()
    assert list((rig.spool / ".orders").iterdir()) == []


def test_refused_page_lies_with_its_reason(rig):
    rig.open()
    rig.order()
    (capture,) = rig.pages()
    place = Path(rig.source.done(capture, FrameError("damaged", "x: damaged")))
    assert place.parent.name == "failed"
    assert place.with_name(place.name + ".reason.txt").read_text() == "damaged: x: damaged\n"


def test_pages_are_for_this_user_alone(rig):
    rig.open()
    assert rig.spool.stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------------------------ words of backends

BROTHER = [
    "    --mode Black & White|Gray[Error Diffusion]|True Gray|24bit Color|24bit Color[Fast] [24bit Color[Fast]]",
    "    --resolution 100|150|200|300|400|600|1200|2400|4800|9600dpi [200]",
    "    --source FlatBed|Automatic Document Feeder(left aligned)|Automatic Document Feeder(left aligned,Duplex) [Au]",
    "    --brightness -50..50% (in steps of 1) [inactive]",
    "    -x 0..215.9mm (in steps of 0.0999908) [215.88]",
    "    -y 0..355.6mm (in steps of 0.0999908) [355.567]",
]
FUJITSU = [
    "    --source ADF Front|ADF Back|ADF Duplex [ADF Front]",
    "    --mode Lineart|Gray|Color [Lineart]",
    "    --page-width 0..221.121mm (in steps of 0.0211639) [215.872]",
    "    --page-height 0..876.695mm (in steps of 0.0211639) [279.364]",
]
EPSON = [
    "    --source Flatbed|Automatic Document Feeder [Flatbed]",
    "    --adf-mode Simplex|Duplex [Simplex]",
    "    --mode Binary|Gray|Color [Binary]",
    "    --depth 8|16 [8]",
    "    --duplex[=(yes|no)] [inactive]",
]
A4 = ("-x", "210", "-y", "297")
BOTH = "Automatic Document Feeder(left aligned,Duplex)"
LIDE = ["    --mode Color|Gray|Lineart [Gray]", "    --resolution 75|150|300dpi [75]"]


@pytest.mark.parametrize(
    ("backend", "settings", "arguments"),
    [
        (
            BROTHER,
            {},
            ["--source=Automatic Document Feeder(left aligned)", "--mode=True Gray", "--resolution=300", *A4],
        ),
        (
            BROTHER,
            {"feeder": "adf-duplex", "mode": "color", "page_size": "letter"},
            [f"--source={BOTH}", "--mode=24bit Color", "--resolution=300", "-x", "216", "-y", "279"],
        ),
        (
            BROTHER,
            {"feeder": "flatbed", "trigger": "order", "mode": "lineart"},
            ["--source=FlatBed", "--mode=Black & White", "--resolution=300", *A4],
        ),
        (FUJITSU, {}, ["--source=ADF Front", "--mode=Gray", "--page-width=210", "--page-height=297"]),
        (
            FUJITSU,
            {"feeder": "adf back", "page_size": "a6"},
            ["--source=ADF Back", "--mode=Gray", "--page-width=105", "--page-height=148"],
        ),
        (
            EPSON,
            {"feeder": "adf-duplex", "mode": "lineart"},
            ["--source=Automatic Document Feeder", "--adf-mode=Duplex", "--mode=Binary"],
        ),
        (EPSON, {"mode": "gray"}, ["--source=Automatic Document Feeder", "--mode=Gray", "--depth=8"]),
        (LIDE, {"trigger": "order"}, ["--mode=Gray", "--resolution=300"]),
        ([], {"trigger": "order", "options": ("--a=b",)}, ["--a=b"]),
    ],
)
def test_common_words_become_the_backends_own(backend, settings, arguments):
    options = scan_options.options_in(backend)
    assert list(scan_options.settings(ScannerConfig(name="a", **settings), options)) == arguments


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        (FUJITSU, {"feeder": "flatbed", "trigger": "order"}),
        (LIDE, {"feeder": "adf-duplex", "trigger": "order"}),
        (LIDE, {"feeder": "adf"}),
        (LIDE, {"feeder": "Flatbed", "trigger": "order"}),
        (EPSON, {"mode": "halftone"}),
    ],
)
def test_words_without_a_backends_own_are_refused(backend, settings):
    fault = scan_options.settings(ScannerConfig(name="a", **settings), scan_options.options_in(backend))
    assert fault.word == scanimage.REFUSED


def test_memory_of_the_program_is_taken_from_the_limit(rig):
    assert rig.open().needs_mb() == scan_options.PROGRAM_MB
    duplex = ScannerConfig(name="a", feeder="adf-duplex", mode="color", page_size="210x297")
    assert scan_options.needs_mb(duplex) == scan_options.PROGRAM_MB + 25


def test_page_that_cannot_be_opened_for_a_moment_stays(tmp_path, monkeypatch):
    """The paper is out of the feeder: what scanimage wrote is its only picture."""
    clock = BentClock()
    made = Spool(tmp_path / "spool", clock)
    run = made.begin_run()
    assert cv2.imwrite(str(run / "0001.tiff"), np.full((40, 40), 255, np.uint8))
    opened = spool.open_regular

    def fails(path: Path) -> object:
        raise InputError(f"{path}: Input/output error") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(spool, "open_regular", fails)
    with pytest.raises(OSError):
        made.collect(run)
    assert os.listdir(run) == ["0001.tiff"]
    monkeypatch.setattr(spool, "open_regular", opened)
    assert made.collect(run) == (1, 0)
