"""What can go wrong while a conversion runs, done to the real command with small models."""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import tomli
import tomli_w

from agent.bundle import ModelBundle
from agent.errors import ConfigError, ConversionError, EngineError, InputError
from converters import export, native
from converters.export import Request, convert
from converters.graph import only
from tests.command import EDGE_OCR, ROOT, Ran, environment, run
from tests.small_graphs import Builder, small_recognizer
from tests.test_compress import SMALL, detector
from tests.test_export import small_recipe
from tests.test_native import is_running, wait_for

pytestmark = pytest.mark.timeout(300)

BUILD = Path("models") / "build"
WORK = BUILD / ".work" / "ppocr-v4-aarch64-int8"
OPTIONS = ("int8.toml", "--target", "aarch64", "--source", "own", "--images", "scans", "--no-measure")
CONVERT = (*EDGE_OCR, "convert", *OPTIONS)
SECRET = "patient-4711"
"""Part of the names of the user's pictures, which nobody else is to learn."""


def detector_alone(recipe):
    """Return a recipe in which the detector is compressed and nothing else."""
    whole = tomli.loads(recipe)
    compress = whole["compress"]
    for key, value in compress.items():
        if isinstance(value, list) and {*value} <= {"det", "rec", "cls"}:
            compress[key] = [name for name in value if name == "det"]
    return tomli_w.dumps({"base": whole["base"], "compress": compress})


def write_place(folder):
    """Write recipes, two small models of the user's own, and a scan."""
    graph = detector()
    graph.params[only(graph.ops[-3], "Y")] -= 50  # it finds nothing: reading a page takes no time
    graph.save(folder / "own" / "finder")
    small_recognizer().save(folder / "own" / "reader")
    (folder / "own" / "reader" / "dict.txt").write_text("\n".join("0123456789") + "\n", encoding="utf-8")
    small_recipe(folder)
    (folder / "int8.toml").write_text(detector_alone(SMALL), encoding="utf-8")
    (folder / "scans").mkdir()
    page = np.full((80, 120, 3), 255, np.uint8)
    cv2.putText(page, "42.50", (10, 50), cv2.FONT_HERSHEY_SIMPLEX, 1, (0, 0, 0), 2)
    cv2.imwrite(str(folder / "scans" / f"{SECRET}.png"), page)
    (folder / "scans" / "broken.jpg").write_bytes(b"no picture")


def settled(cache):
    """Return the environment of a conversion, whose temporary files nobody has to look for."""
    return environment(cache, TMPDIR=str(cache))


class Running:
    """A conversion in a process group of its own, as a shell starts it."""

    def __init__(self, place, cache):
        self.place = place
        self.program = subprocess.Popen(
            CONVERT, cwd=place, env=settled(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def jobs(self):
        """Return the processes of the group besides the conversion itself, and their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getpgid(int(entry.name)) == self.program.pid:
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode()
            except (OSError, UnicodeDecodeError):
                continue
        return {pid: command for pid, command in found.items() if pid != self.program.pid and is_running(pid)}

    def job(self, name):
        """Return the process that does a job, once there is one."""

        def found():
            assert self.program.poll() is None, self.end()
            return next((pid for pid, command in self.jobs().items() if name in command), None)

        return wait_for(found, 100.0)

    def end(self):
        """Return what the conversion said and how it ended."""
        out, err = self.program.communicate(timeout=60)
        return Ran(self.program.returncode, out, err)


@pytest.fixture(scope="module")
def fault_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, fault_cache):
    """A place where Ctrl-C was pressed while the detector was calibrated; what was said; what went on running."""
    place = tmp_path_factory.mktemp("stopped")
    write_place(place)
    running = Running(place, fault_cache)
    running.job("calibrate.calibrate")
    os.killpg(running.program.pid, signal.SIGINT)
    return place, running.end(), running.jobs()


def stamps(place):
    return {path.stem for path in (place / WORK / "stamps").iterdir()}


def test_a_conversion_that_is_told_to_end_leaves_nothing_behind(stopped, fault_cache):
    place, *_ = stopped
    before = set(fault_cache.iterdir())
    running = Running(place, fault_cache)
    running.job("calibrate.calibrate")
    running.program.terminate()  # not its group: a service manager may tell the first process alone
    ran = running.end()
    assert (ran.status, ran.out.count("Traceback")) == (130, 0)
    # A job that was being started sees a moment later that nobody waits for it (`child.end_with_parent`).
    assert wait_for(lambda: not running.jobs())
    assert set(fault_cache.iterdir()) == before


def test_an_interrupted_conversion_says_that_it_goes_on_from_there(stopped):
    place, ran, left = stopped
    assert ran.status == 130
    assert "stopped; stages that are done are kept: the same command goes on from there" in ran.err
    assert "Traceback" not in ran.err
    assert left == {}
    assert {"own-lines", "fold-det", "draw-det"} <= stamps(place)
    assert "calibrate-det" not in stamps(place)
    assert not (place / BUILD / "ppocr-v4-aarch64-int8").exists()


def test_pictures_that_cannot_be_read_are_named_and_left_out(stopped):
    _, ran, _ = stopped
    assert "--images scans: 1 of 2 files are left out: scans/broken.jpg: " in ran.out


def test_a_killed_conversion_leaves_no_job_that_goes_on_writing(stopped, fault_cache):
    place, *_ = stopped
    running = Running(place, fault_cache)
    running.job("calibrate.calibrate")
    running.program.kill()
    running.program.communicate()
    wait_for(lambda: not running.jobs(), 5.0)
    assert "calibrate-det" not in stamps(place)


def test_a_job_that_is_killed_is_an_error_and_keeps_earlier_stages(stopped, fault_cache):
    place, *_ = stopped
    before = stamps(place)
    running = Running(place, fault_cache)
    os.kill(running.job("calibrate.calibrate"), signal.SIGKILL)
    ran = running.end()
    assert (ran.status, stamps(place)) == (65, before)
    assert ran.err.splitlines()[-1].startswith("edge-ocr: calibrate.calibrate det: killed from outside, ")


def test_a_file_that_finds_no_room_is_an_error_and_the_next_run_goes_on(stopped, fault_cache):
    place, *_ = stopped

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # pictures to calibrate on have 37 kB

    (place / WORK / "stamps" / "draw-det.json").unlink()
    ran = subprocess.run(CONVERT, cwd=place, env=settled(fault_cache), preexec_fn=limit, capture_output=True, text=True)
    assert ran.returncode == 78
    assert ran.stderr.splitlines()[-1] == (
        f"edge-ocr: {WORK}/det/pictures.npy: File too large: make room and start again; stages that are done are kept"
    )
    assert "draw-det" not in stamps(place)


@pytest.fixture(scope="module")
def resumed(stopped, tmp_path_factory, fault_cache):
    """The same conversion, gone on with to its end."""
    place = tmp_path_factory.mktemp("resumed") / "place"
    shutil.copytree(stopped[0], place)
    return place, run(CONVERT, settled(fault_cache), place)


def result(place):
    """Return all that an int8 model consists of."""
    work = place / WORK / "det"
    files = [work / "scales.json", work / "pictures.npy", *sorted((work / "int8").rglob("inference.*"))]
    assert len(files) == 6
    return [file.read_bytes() for file in files]


def test_a_conversion_that_was_stopped_ends_like_one_that_was_not(resumed, tmp_path, fault_cache):
    place, ran = resumed
    assert ran.status == 0, ran.err
    assert "fold det       up to date" in ran.out
    other = tmp_path / "place"
    shutil.copytree(place, other)
    shutil.rmtree(other / WORK)  # the float bundle may stay: it was finished before
    running = Running(other, fault_cache)
    wait_for(lambda: (other / WORK / "stamps" / "quantise-det.json").exists(), 100.0)
    running.program.kill()  # the rest is not compared
    running.end()
    assert result(place) == result(other)


def test_nothing_of_the_users_pictures_is_in_the_bundle_or_the_report(resumed):
    place, _ = resumed
    bundle = ModelBundle.load(place / BUILD / "ppocr-v4-aarch64-int8", machine="aarch64")
    assert {path.name for path in bundle.path.iterdir()} == {"bundle.toml", *bundle.manifest.files}
    report = place / BUILD / "ppocr-v4-aarch64-int8-report"
    said = [path for folder in (bundle.path, report) for path in folder.rglob("*") if path.is_file()]
    assert {"report.md", "report.json"} <= {path.name for path in said}
    assert not [path for path in said if SECRET.encode() in path.read_bytes()]
    assert not [path for path in said if path.suffix in {".png", ".jpg", ".npy"} and path.parent != report]


# ------------------------------------------------------------------------------------------------ before any work


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_place(tmp_path)
    monkeypatch.setattr(export, "BUILD", tmp_path / BUILD)
    return tmp_path


def converted(place, **changed):
    defaults = {"recipe": place / "int8.toml", "target": "aarch64", "source": place / "own", "measured": False}
    lines = []
    convert(Request(**{**defaults, **changed}), lines.append)
    return lines


@pytest.mark.parametrize("option", ["images", "labels"])
@pytest.mark.parametrize("changed", [{"target": "x86_64"}, {"precision": "fp32"}, {"recipe": "small.toml"}])
def test_pictures_for_a_conversion_that_looks_at_none_are_refused(place, option, changed):
    if "recipe" in changed:
        changed = {"recipe": place / changed["recipe"]}
    given = place / "scans" if option == "images" else (place / "labels.jsonl",)
    with pytest.raises(ConfigError, match=rf"--{option}: only a conversion to int8 looks at pictures.* makes fp32"):
        converted(place, **changed, **{option: given})


def test_a_folder_that_is_missing_or_has_no_picture_is_said_at_once(place):
    with pytest.raises(InputError, match=r"--images .*none: not a directory"):
        converted(place, images=place / "none")
    with pytest.raises(InputError, match=r"--images .*own: holds no picture that can be read$"):
        converted(place, images=place / "own")


def test_a_folder_with_bad_pictures_only_is_refused_before_models_are_made(place):
    (place / "scans" / f"{SECRET}.png").write_bytes(b"no picture either")
    with pytest.raises(InputError, match=rf"holds no picture that can be read \(.*broken.jpg: .*; .*{SECRET}"):
        converted(place, images=place / "scans")
    assert not (place / BUILD / ".work" / "ppocr-v4-x86_64-fp32").exists()


def test_an_operator_that_paddle_lite_lacks_is_named_for_int8_too(place):
    build = Builder()
    x = build.op("determinant", "Out", Input=build.input(-1, 3, -1, -1))
    x = build.conv(x, build.param(1, 3, 1, 1))
    build.block.vars[-1].type.lod_tensor.tensor.dims[:] = [-1, 1, -1, -1]
    build.graph(x).save(place / "own" / "finder")
    with pytest.raises(ConversionError, match="Paddle Lite has no operator determinant on x86_64"):
        converted(place)
    assert not list((place / BUILD).glob("*-fp32"))


# ------------------------------------------------------------------------------------------------ in a job


def test_missing_fonts_are_named_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "from converters import drawing\n"
        "from converters.drawing import fonts\n"
        f"drawing.find_fonts = lambda: fonts.find_fonts([fonts.Path({str(tmp_path)!r})])\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    with pytest.raises(EngineError, match=r"^no font is installed .*: sudo apt-get install -y fonts-"):
        native.run("pictures.draw", kind="det", seed=1, count=1, size=64, out=tmp_path / "out.npy")
    assert not (tmp_path / "out.npy").exists()


@pytest.fixture
def full_disk(tmp_path):
    """A file system in memory with room for almost nothing."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = run(("mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", path))
    if mounted.status:
        pytest.skip(f"only root can mount a small disk: {mounted.err.strip()}")
    yield path
    assert run(("umount", path)).status == 0, "someone has left a file open"


def test_a_library_that_dies_of_a_full_disk_is_explained(full_disk, tmp_path):
    source = tmp_path / "model"
    detector().save(source)
    (full_disk / "hog").write_bytes(bytes(8192))
    with pytest.raises(ConfigError, match=rf"build_lite det: {full_disk}: the disk is full: make room"):
        native.run("build_lite", "det", source=source, out=full_disk / "det", target="aarch64", plan=False)
