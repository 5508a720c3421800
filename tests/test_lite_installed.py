"""A build that came with the installation: found behind the user's own, tried once on each machine, never written."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from agent.lite.place import INSTALLED, RECORD
from tests.command import ROOT, Ran, environment, run
from tests.lite_kit import lite, stub_library

HERE = platform.machine()


class Installation:
    """An environment with a build in it, and a user with a cache."""

    def __init__(self, folder: Path, build: Path) -> None:
        self.prefix, self.cache = folder / "venv", folder / "cache"
        self.build = self.prefix / INSTALLED
        (self.prefix / "bin").mkdir(parents=True)
        (self.prefix / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
        (self.prefix / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
        shutil.copytree(build, self.build)

    @property
    def active(self) -> Path:
        return self.cache / "edge-ocr" / "lite" / f"active-{HERE}"

    def python(self, *arguments: str | Path, **more: str) -> Ran:
        """Run its Python, with the packages of this one."""
        paths = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
        given = {"EDGE_OCR_LITE": "", "PYTHONPATH": paths, **more}
        return run((self.prefix / "bin" / "python", *arguments), environment(self.cache, **given))

    def lite(self, *arguments: str | Path, **more: str) -> Ran:
        """Run `edge-ocr lite`."""
        return self.python("-m", "agent", "lite", *arguments, **more)

    def opened(self, before: str = "", **more: str) -> str:
        """Load the library of the chosen build as the engine does; return its version, or what is said."""
        ran = self.python(
            "-c",
            "from agent.errors import EngineError; from agent.lite import attempt, binding, place\n"
            f"{before}\n"
            "try:\n"
            "    print(binding.open_library().version)\n"
            "except EngineError as error:\n"
            "    print(error)\n",
            **more,
        )
        assert ran.status == 0, ran.err
        return ran.out


@pytest.fixture(scope="module")
def stub_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stub")
    ran = lite(folder / "cache", "build", "--lib", stub_library(folder), "--output", folder / "build")
    assert ran.status == 0, ran.err
    return folder / "build"


@pytest.fixture
def box(tmp_path: Path, stub_build: Path) -> Installation:
    return Installation(tmp_path, stub_build)


NO_CHILD = "attempt.version_of = lambda folder: print('a child is started') or 'x'"


def test_it_is_tried_in_a_child_and_that_is_remembered(box):
    record = (box.build / RECORD).read_bytes()
    assert box.opened(NO_CHILD) == "a child is started\nv2.13-rc\n"
    shutil.rmtree(box.cache)
    assert box.opened() == "v2.13-rc\n"
    assert box.opened(NO_CHILD) == "v2.13-rc\n"
    assert (box.build / RECORD).read_bytes() == record and not box.active.exists()


def test_another_package_at_the_same_place_is_tried_anew(box, stub_build):
    assert box.opened() == "v2.13-rc\n"
    shutil.rmtree(box.build)
    shutil.copytree(stub_build, box.build)  # all times of content as before
    assert box.opened(NO_CHILD).startswith("a child is started")


def test_library_that_dies_on_this_machine_is_told_and_ends_nothing(box):
    said = box.opened(LITE_STUB="dies")  # although its record says that it has worked where it was made
    assert "its library dies of the test model (signal 6: " in said and said.count("\n") == 1
    assert box.opened() == "v2.13-rc\n"


def test_a_cache_that_cannot_be_written_does_not_matter(box):
    box.cache.write_text("no folder")
    assert box.opened() == "v2.13-rc\n"


def test_what_was_made_here_and_what_the_environment_names_come_first(box, stub_build):
    chosen = ("-c", "from agent.lite import place; print(place.chosen())")
    assert box.python(*chosen).out == f"{box.build}\n"
    assert box.lite("check", stub_build).status == 0
    assert box.python(*chosen).out == f"{box.active}\n" and box.active.resolve() == stub_build
    assert box.python(*chosen, EDGE_OCR_LITE="/elsewhere").out == "/elsewhere\n"
    assert box.python(*chosen, EDGE_OCR_LITE="off").out == "None\n"


def test_checking_it_makes_it_the_one_in_use_and_leaves_no_link_that_outlives_an_upgrade(box, stub_build):
    assert box.lite("check", stub_build).status == 0
    record = (box.build / RECORD).read_bytes()
    ran = box.lite("check", box.build)
    assert "Paddle Lite v2.13-rc: loads, and calculates what it should; now in use" in ran.out, ran.err
    assert not os.path.lexists(box.active)
    assert (box.build / RECORD).read_bytes() == record
    assert box.opened(NO_CHILD) == "v2.13-rc\n"  # the check was the trial
    assert f"{box.build}: Paddle Lite v2.13-rc" in box.lite("check").out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (RECORD, "build.json: damaged: install the package again"),
        ("binding.so", "binding.so: damaged, or not a shared library"),
        ("libpaddle_light_api_shared.so", "another file than"),
    ],
)
def test_damage_is_told_in_one_line(box, name, said):
    (box.build / name).write_bytes((box.build / name).read_bytes()[:-100])
    told = box.opened()
    assert said in told and told.count("\n") == 1
    assert "lite build" not in told


def test_one_for_another_machine_is_told_and_auto_goes_on_to_the_next_engine(box, portable_path):
    record = (box.build / RECORD).read_text()
    other = "aarch64" if HERE == "x86_64" else "x86_64"
    (box.build / RECORD).write_text(record.replace(f'"{HERE}"', f'"{other}"'))
    said = f"built for {other}, this machine is {HERE}"
    assert said in box.opened()
    ran = box.python(
        "-c",
        "import logging, sys; from pathlib import Path\n"
        "sys.modules['paddlelite'] = None; logging.basicConfig(format='%(message)s')\n"
        "from agent.bundle import ModelBundle; from agent.engines import choose_engine\n"
        "from tests.lite_kit import both\n"
        "print(choose_engine(both(ModelBundle.load(Path(sys.argv[1]))), 'auto'))",
        portable_path,
    )
    assert ran.out == "onnxruntime\n"
    assert ran.err.startswith("paddlelite is not used: ") and said in ran.err
