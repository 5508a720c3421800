"""Pages under a camera: each is taken once, and a camera that sees nothing any more is noticed and taken up again."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import cv2
import msgspec
import numpy as np
import pytest

from agent.check import sources
from agent.check.finding import Subject
from agent.clock import Clock
from agent.config import AgentConfig, OutboxConfig, load
from agent.errors import ConfigError, ExitCode
from agent.health import WorkerState, read_state
from agent.openers import open_sources
from agent.outbox import Outbox
from agent.source_config import CameraConfig
from agent.sources.camera import eye, feed
from agent.sources.camera import source as camera
from agent.sources.camera.device import PRESETS, limits_of, needs_mb, task_of, unstable
from agent.sources.camera.gate import Gate
from agent.sources.camera.glance import Task
from agent.sources.camera.source import CameraSource
from agent.worker import Worker
from tests import films
from tests.cameras import Camera, free_port
from tests.command import EDGE_OCR, run
from tests.sources_contract import AMPLE, SourceContract, drained
from tests.stub_worker import StubReader
from tests.system.branch import until

TABLE, A, B = films.table(), films.page(1), films.page(2)
LIMITS = PRESETS["document-camera"]


class PatientClock(Clock):
    """Real time; waiting waits."""

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class CameraRig:
    """A camera source before a server, and what lies under it."""

    def __init__(self, home: Path, kind: str) -> None:
        self.home = home
        self.clock = PatientClock()
        self.camera = Camera(home / "frames", kind)
        self.settings: dict[str, object] = {"still_s": 0.2}
        self.source: CameraSource | None = None

    def open(self, **settings: object) -> CameraSource:
        if self.source is not None:
            self.source.close()
        self.settings.update(settings)
        config = CameraConfig(name="desk", device=self.camera.url, **self.settings)
        self.source = CameraSource(config, self.home / "state", self.clock)
        return self.source

    def put(self, number: int) -> None:
        """Put a page under the camera and leave it there until it is taken; nothing is claimed meanwhile."""
        before = self.waiting()
        self.camera.show(films.page(number))
        assert until(lambda: self.watch() and self.waiting() > before, 20) < 20, self.source.trouble()

    def watch(self) -> bool:
        self.source._watch(self.clock.monotonic())
        return True

    def waiting(self) -> list[str]:
        return sorted(path.name for path in (self.home / "state" / "sources" / "desk").glob("[!.]*.png"))

    def settle(self) -> None:
        """Pages are listed when the system says that they are there."""

    def until(self, what: str, timeout_s: float = 20.0) -> float:
        """Poll until the trouble holds some words, or is none; returns the seconds it took."""

        def happened() -> bool:
            assert self.source.poll() is None
            trouble = self.source.trouble()
            return what in trouble if what else not trouble

        took = until(happened, timeout_s)
        assert took < timeout_s, (what, self.source.trouble())
        return took

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
        self.camera.stop()


@pytest.fixture
def rig(tmp_path):
    made = CameraRig(tmp_path, "http")
    made.camera.start()
    yield made
    made.close()


class TestContract(SourceContract):
    """A camera is a source."""


# ------------------------------------------------------------------------------------------------ the gate


def test_picture_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        eye.write_png(tmp_path / "page.png", np.zeros((9, 9, 3), np.uint8), 1.0)
    assert os.listdir(tmp_path) == []


def test_picture_that_cannot_be_written_is_tried_again_after_a_while(tmp_path, monkeypatch):
    write = Mock(side_effect=[OSError(errno.ENOSPC, "full"), None])
    monkeypatch.setattr(eye, "write_png", write)
    monkeypatch.setattr(eye, "RETRY_S", 0.2)
    looking = eye.Eye(Task(device="", parent=os.getpid(), limits=LIMITS, spool=str(tmp_path)), Mock())
    part, grey = np.zeros((99, 99, 3), np.uint8), np.zeros((99, 99), np.uint8)
    states = [looking._take(part, grey)[0] for _ in range(5)]
    assert (states[0], write.call_count) == ("unwritable", 1)
    time.sleep(0.25)
    assert (looking._take(part, grey)[0], write.call_count) == ("known", 2)


def taken(frames: list[np.ndarray], limits=LIMITS, sigma: float = 6.0) -> list[int]:
    """Return the numbers of the frames that a gate takes, as seen through a noisy sensor and JPEG."""
    gate, found = Gate(limits), []
    for number, frame in enumerate(films.noisy(frames, sigma)):
        if number % 2:
            continue
        packed = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        grey = cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY)
        if gate.look(grey, number / films.FPS).state == "ready":
            gate.take(grey)
            found.append(number)
    return found


LAID = films.still(TABLE, 1) + films.waved(TABLE, A)  # when the page is there, and the hand gone


def test_page_is_taken_once_when_it_is_still():
    frames = LAID + films.still(A, 8)
    (when,) = taken(frames)
    assert LIMITS.still_s * films.FPS <= when - len(LAID) <= 8


def test_page_after_page_is_taken():
    frames = [*LAID, *films.still(A, 2), *films.waved(A, TABLE), *films.waved(TABLE, B), *films.still(B, 2)]
    assert len(taken(frames)) == 2
    assert len(taken([*films.still(A, 2), *films.waved(A, B), *films.still(B, 2)])) == 2  # laid over the other


def test_forms_that_differ_in_two_lines_are_two_pages():
    first, second = films.form(1), films.form(2)
    assert len(taken([*films.still(first, 2), *films.waved(first, second), *films.still(second, 2)])) == 2


@pytest.mark.parametrize(
    ("frames", "pages"),
    [
        pytest.param(films.still(TABLE, 3), 0, id="empty table"),
        pytest.param([*films.still(TABLE, 2), *films.waved(TABLE), *films.still(TABLE, 2)], 0, id="hand on the table"),
        pytest.param([*films.still(A, 2), *films.waved(A), *films.still(A, 2)], 1, id="hand over the page"),
        pytest.param([*LAID, *films.still(A, 2), *films.waved(A, TABLE), *LAID, *films.still(A, 2)], 1, id="same page"),
        pytest.param([*films.still(A, 2), *films.still(films.page(1, at=(3, 2)), 2)], 1, id="nudged"),
        pytest.param([*films.still(A, 1), *films.lit(A, 6, 0.2)], 1, id="sun comes out"),
        pytest.param([*films.still(A, 1), *films.lit(A, 6, -0.4)], 1, id="sun goes down"),
        pytest.param(films.still(cv2.GaussianBlur(A, (0, 0), 5), 3), 0, id="not sharp"),
        pytest.param(films.still(TABLE // 20, 3), 0, id="black"),
        pytest.param([films.page(1, at=(4 * step, 0)) for step in range(30)], 0, id="page that moves"),
        pytest.param([films.hand(A, x) for x in range(100, 900, 20)], 0, id="hand that moves"),
    ],
)
def test_what_is_no_new_page_is_not_taken(frames, pages):
    assert len(taken(frames)) == pages


def test_lens_that_finds_its_focus_is_waited_for():
    blurred = [cv2.GaussianBlur(A, (0, 0), sigma) for sigma in (6, 6, 6, 6, 6, 6, 4, 4, 3, 3, 2, 2, 1, 1)]
    (when,) = taken([*blurred, *films.still(A, 2)])
    assert when >= len(blurred)


@pytest.mark.parametrize("sigma", [0, 2, 12])
def test_noise_is_no_matter(sigma):
    assert len(taken([*LAID, *films.still(A, 8)], sigma=sigma)) == 1


def test_limits_are_the_presets_where_they_are_not_set():
    config = CameraConfig(name="a", device="b", preset="stream", still_s=2.0, min_text=0.0)
    assert limits_of(config) == msgspec.structs.replace(PRESETS["stream"], still_s=2.0, text=0.0)


# ------------------------------------------------------------------------------------------------ films


def played(tmp_path: Path, frames: list[np.ndarray], **settings: object) -> tuple[CameraSource, list]:
    """Return a source that has seen a film to its end, and what it offers."""
    film = films.write(tmp_path / "film.avi", films.noisy(frames, 3.0))
    source = CameraSource(CameraConfig(name="desk", device=str(film), **settings), tmp_path / "state", hurry=True)
    found = []

    def ended() -> bool:
        found.extend(filter(None, [source.poll()]))
        return source.state == "ended"

    assert until(ended, 30) < 30, source.trouble()
    return source, found + drained(source, None)


def test_pages_of_a_film_are_offered_with_the_time_they_were_seen(tmp_path):
    frames = [*LAID, *films.still(A, 2), *films.waved(A, TABLE), *films.waved(TABLE, B), *films.still(B, 2)]
    source, captures = played(tmp_path, frames)
    assert len({capture.key for capture in captures}) == 2
    assert source.trouble() == ""
    frame = captures[0].load(AMPLE)
    assert frame.pixels.shape == (films.HEIGHT, films.WIDTH, 3)
    assert abs(frame.taken_at - time.time()) < 30
    assert cv2.absdiff(frame.pixels, A).mean() < 8
    assert Path(source.done(captures[0])).parent == tmp_path / "state" / "sources" / "desk" / "done"
    source.close()


def test_only_the_region_is_looked_at_and_kept(tmp_path):
    busy = [films.hand(A, 900 if number % 2 else 880) for number in range(30)]
    source, (capture,) = played(tmp_path, busy, right=0.7, top=0.1, bottom=0.9)
    assert capture.load(AMPLE).pixels.shape == (432, 672, 3)
    source.close()


def test_pages_that_are_deleted_afterwards_leave_nothing_behind(tmp_path):
    source, (capture,) = played(tmp_path, films.still(A, 2), when_done="delete")
    assert source.done(capture) == ""
    source.close()
    spool = tmp_path / "state" / "sources" / "desk"
    assert [path for path in spool.rglob("*") if path.is_file() and path.stat().st_size] == []
    assert spool.stat().st_mode & 0o777 == 0o700


def test_page_that_lay_there_before_a_restart_is_not_taken_again(tmp_path):
    for pages in (1, 0):
        source, captures = played(tmp_path, films.still(A, 2))
        assert len(captures) == pages
        for capture in captures:
            source.done(capture)
        source.close()


def test_page_that_was_not_written_to_its_end_is_no_page(tmp_path):
    spool = tmp_path / "state" / "sources" / "desk"
    spool.mkdir(parents=True)
    (spool / ".20260101-000000-000.png.part").write_bytes(b"\x89PNG")  # its process was killed
    source, captures = played(tmp_path, films.still(A, 2))
    assert len(captures) == 1
    assert list(spool.glob(".*.part")) == []
    source.close()


def test_pages_are_left_under_the_camera_while_too_many_wait(tmp_path):
    spool = tmp_path / "state" / "sources" / "desk"
    spool.mkdir(parents=True)
    for number in range(25):
        (spool / f"{number}.png").write_bytes(b"")
    film = films.write(tmp_path / "film.avi", films.noisy(films.still(A, 6), 3.0))
    source = CameraSource(CameraConfig(name="desk", device=str(film)), tmp_path / "state")
    assert until(lambda: source._watch(time.monotonic()) or "20 pages wait" in source.trouble(), 20) < 20
    assert len(list(spool.glob("*.png"))) == 25
    source.close()


# ------------------------------------------------------------------------------------------------ devices


def test_camera_of_the_network_that_goes_and_comes_is_taken_up_again(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rig = CameraRig(tmp_path, "rtsp")
    rig.camera.start()
    try:
        source = rig.open()
        rig.put(1)
        (first,) = drained(source, rig)
        assert cv2.absdiff(first.load(AMPLE).pixels, films.page(1)).mean() < 12
        rig.camera.signal(signal.SIGSTOP)  # blocks in the read
        rig.until("gives no pictures any more")
        rig.camera.signal(signal.SIGCONT)
        rig.until("")
        rig.camera.stop()  # vanishes
        rig.until("refuses port")
        rig.camera.start()
        rig.until("")
        rig.camera.show(films.page(1), noise=False)  # hangs
        rig.until("the same picture")
        rig.camera.show(TABLE // 30)
        rig.until("black")
        rig.camera.show(TABLE)
        rig.until("")
        rig.put(2)
        (second,) = drained(source, rig)
        assert second.key != first.key
    finally:
        rig.close()
    told = [record for record in caplog.records if record.name == "agent.sources.camera.source"]
    words = [record.getMessage() for record in told if record.levelno == logging.WARNING]
    assert all(before != after for before, after in pairwise(words))
    assert any("taken from rtsp" in record.getMessage() for record in told if record.levelno == logging.INFO)


def test_process_that_is_killed_is_replaced_and_takes_no_page_twice(rig):
    source = rig.open()
    rig.put(1)
    (capture,) = drained(source, rig)
    os.kill(source._process.pid, signal.SIGKILL)
    rig.until("has died")
    rig.until("")
    rig.put(2)
    assert [later.key != capture.key for later in drained(source, rig)] == [True]


def test_process_that_hangs_is_killed_and_replaced(rig, monkeypatch):
    monkeypatch.setattr(camera, "SILENT_S", 1.5)
    source = rig.open()
    assert until(lambda: rig.watch() and source.state == "empty") < 20
    pid = source._process.pid
    os.kill(pid, signal.SIGSTOP)
    rig.until("gives no pictures any more")
    rig.until("")
    assert source._process.pid != pid


def test_device_that_never_opens_is_said_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(camera, "LATE_S", 0.3)
    monkeypatch.setattr(camera, "OPEN_S", 1.0)
    os.mkfifo(tmp_path / "pipe.mjpeg")  # nobody writes: opening it blocks, and no timeout of FFmpeg's holds
    source = CameraSource(CameraConfig(name="desk", device=f"{tmp_path}/pipe.mjpeg"), tmp_path / "state")
    pid = source._process.pid
    assert until(lambda: not source.poll() and "does not answer" in source.trouble()) < 10
    assert until(lambda: not source.poll() and "cannot be opened" in source.trouble()) < 10
    assert until(lambda: not source.poll() and source._process is not None and source._process.pid != pid) < 10
    source.close()


def test_process_ends_with_the_one_that_started_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.mjpeg")
    program = f"""
import time
from itertools import pairwise
from pathlib import Path
from agent.source_config import CameraConfig
from agent.sources.camera.source import CameraSource
source = CameraSource(CameraConfig(name="desk", device="{tmp_path}/pipe.mjpeg"), Path("{tmp_path}/state"))
while source._process.glances() == []:
    time.sleep(0.05)
print(source._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen((*EDGE_OCR[:1], "-c", program), stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    assert until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()) < 10


def lost(tmp_path: Path, device: str, **settings: object) -> str:
    """Return what is said of a device that cannot be opened."""
    source = CameraSource(CameraConfig(name="desk", device=device, **settings), tmp_path / "state")
    assert until(lambda: not source.poll() and source.trouble() != "", 20) < 20
    said = source.trouble()
    source.close()
    return said


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("/dev/v4l/by-id/usb-none-video-index0", "no such device; no camera is plugged in"),
        ("/dev/null", "gives no pictures; is it a camera"),
        ("/dev", "not a video that can be read"),
        ("rtsp://no-such-name.invalid/desk", "the name no-such-name.invalid is not known"),
    ],
)
def test_device_that_cannot_be_opened_is_explained(tmp_path, device, said):
    assert said in lost(tmp_path, device)


def test_stream_that_refuses_the_user_says_so_without_the_password(tmp_path, rig, caplog, monkeypatch):
    monkeypatch.setenv("CAMERA", "hun/ter:2@")
    said = lost(tmp_path / "other", f"rtsp://127.0.0.1:{free_port()}/desk", username="u", password="env:CAMERA")
    assert "refuses port" in said
    assert "hun" not in said + caplog.text
    config = CameraConfig(name="a", device="rtsp://h/d", username="a@b", password="env:CAMERA")
    assert task_of(config).device == "rtsp://a%40b:hun%2Fter%3A2%40@h/d"
    assert feed.shown(task_of(config).device) == "rtsp://h/d"


def test_password_is_on_no_command_line(rig, monkeypatch):
    monkeypatch.setenv("CAMERA", "hunter2")
    source = rig.open(username="u", password="env:CAMERA")
    assert "hunter2" not in Path(f"/proc/{source._process.pid}/cmdline").read_text()
    rig.put(1)  # a camera that asks for none does not mind


def test_what_the_process_needs_is_taken_from_the_workers_limit(tmp_path):
    large = {"width": 3840, "height": 2160}
    needs = []
    for size in ({}, large):
        source = CameraSource(CameraConfig(name="desk", device=str(tmp_path / "none"), **size), tmp_path / "state")
        needs.append(source.needs_mb())
        source.close()
    assert 60 < needs[0] < needs[1] < 200


def test_password_that_is_not_there_is_said_at_the_start(tmp_path):
    config = CameraConfig(name="desk", device="rtsp://h/d", password=f"file:{tmp_path}/none")
    with pytest.raises(ConfigError, match="No such file"):
        CameraSource(config, tmp_path / "state")


def test_device_by_number_is_warned_of():
    assert "look for it below /dev/v4l/by-id" in unstable("/dev/video0")
    assert unstable("/dev/v4l/by-id/usb-x") == unstable("rtsp://h/d") == ""


# ------------------------------------------------------------------------------------------------ worker, command


SETTINGS = """\
device = "box-1"
state_dir = "{home}/state"
[[source]]
type = "camera"
name = "desk"
device = "{device}"
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('device = "rtsp://u:hunter2@h/d"', "device: holds a user or a password; they belong in username and password"),
        ('device = "x"\nleft = 0.5\nright = 0.5', "source.right = 0.5: must be more than left, 0.5, by 0.01"),
        ('device = "x"\ntop = 0.9\nbottom = 0.2', "source.bottom = 0.2: must be more than top, 0.9"),
        ('device = "x"\nmax_motion = 200', "source.max_motion = 200: must be a number from 0 to 100"),
        ('device = "x"\npreset = "desk"', 'must be one of "document-camera", "stream"'),
        ('device = "x"\n[[source]]\ntype = "camera"\nname = "b"\ndevice = "x"', "another source has this device"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, line, said):
    (tmp_path / "agent.toml").write_text(f'device = "a"\n[[source]]\ntype = "camera"\nname = "a"\n{line}\n')
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "agent.toml", AgentConfig)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_trouble_reaches_the_centre_and_the_status(tmp_path):
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path, device=tmp_path / "none.avi"))
    config = load(tmp_path / "agent.toml", AgentConfig)
    outbox = Outbox(tmp_path / "state", OutboxConfig(min_free_mb=0, ballast_mb=0), role="worker")
    worker = Worker(config, outbox, open_sources(config, Clock()), lambda: (StubReader(), "stub"))
    worker.start()

    def told() -> tuple[str, ...]:
        worker.tick()
        state = read_state(tmp_path / "state", "worker", WorkerState)
        return state.troubles if state is not None else ()

    assert until(lambda: told() != ()) < 20
    assert told()[0].startswith(f"desk: {tmp_path}/none.avi: no such device")
    (event,) = outbox.events(10)
    assert (event.kind, event.detail) == ("alarm", told()[0])
    films.write(tmp_path / "none.avi", films.noisy(films.still(A, 3)))
    assert until(lambda: told() == (), 20) < 20
    assert until(lambda: not worker.tick() and worker.state.accepted == 1, 20) < 20
    worker.close()
    outbox.close()


def test_command_shows_each_measure_beside_its_limit(tmp_path):
    film = films.write(tmp_path / "film.avi", films.noisy([*films.still(TABLE, 1), *films.still(A, 2)]))
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path, device=film))
    shot = tmp_path / "shot.png"
    ran = run((*EDGE_OCR, "camera", "desk", "-c", tmp_path / "agent.toml", "--shot", shot))
    assert (ran.status, ran.err) == (0, "")
    states = [line.split(":")[0].split()[-1] for line in ran.out.splitlines()[1:]]
    assert [state for state in states if state in ("empty", "ready", "ended")] == ["empty", "ready", "ended"]
    assert cv2.imread(str(shot)).shape == (films.HEIGHT, films.WIDTH, 3)
    assert not list((tmp_path / "state").rglob("*.png")) if (tmp_path / "state").exists() else True


def test_check_opens_the_camera(tmp_path):
    film = films.write(tmp_path / "film.avi", films.noisy(films.still(A, 1)))
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path, device=film))
    config = load(tmp_path / "agent.toml", AgentConfig)
    subject = Subject(config, tmp_path / "agent.toml", time.time())
    found, *_ = sources.look(subject)
    assert (found.level, found.said) == ("ok", f"{film}: {films.WIDTH}x{films.HEIGHT}")
    film.unlink()
    found, *_ = sources.look(subject)
    assert (found.level, found.said.split(";")[0]) == ("fail", f"{film}: no such device")
    assert needs_mb(config.source[0]) > 60


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("other",), ExitCode.CONFIG, "no camera other in the settings; there is: desk"),
        (("desk",), ExitCode.NO_INPUT, "no such device"),
        (("desk", "--shot", "x.jpg"), ExitCode.NO_INPUT, "must end with .png"),
    ],
)
def test_command_that_cannot_show_anything_says_why(tmp_path, arguments, status, said):
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path, device="/dev/v4l/by-id/none"))
    ran = run((*EDGE_OCR, "camera", *arguments, "-c", tmp_path / "agent.toml"))
    assert ran.status == status
    assert said in ran.err
