"""The native binding on the x86 wheel's library: the numbers of the wheel's class, and nothing kills the process."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from agent.config import ReaderConfig
from agent.engines import EngineSettings
from agent.lite.binding import POWER_MODES
from agent.lite.place import RECORD, read_build, write_build
from tests.command import EDGE_OCR, run, run_python

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the wheel's library is for x86-64")


def with_build(build: Path) -> dict[str, str]:
    return {**os.environ, "EDGE_OCR_LITE": str(build)}


@pytest.fixture
def told(request: pytest.FixtureRequest, lite_build: Path, bundle_path: Path) -> dict[str, Any]:
    """What one job of `lite_program` has printed."""
    ran = run((sys.executable, "-m", "tests.lite_program", request.param, bundle_path), with_build(lite_build))
    assert ran.status == 0, ran.err
    return json.loads(ran.out.splitlines()[-1])


@pytest.mark.parametrize("told", ["equal"], indirect=True)
def test_every_bit_is_that_of_the_wheels_class(told):
    assert all(same == tried > 10 for same, tried in told.values()), told


@pytest.mark.parametrize("told", ["threads"], indirect=True)
def test_two_threads_run_models_at_once(told):
    assert told["wrong"] == []


@pytest.mark.parametrize("told", ["growth"], indirect=True)
def test_a_thousand_loads_runs_and_closes_leave_nothing_behind(told):
    assert told["grown_kb"] < 1024


@pytest.mark.parametrize("told", ["views"], indirect=True)
def test_output_is_the_models_own_memory_and_cannot_be_looked_at_too_long(told):
    assert (told["writeable"], told["own memory"], told["kept beyond close"]) == (False, True, True)
    assert told["run"] == told["input"] == "an output of the last run is still looked at: copy it first"
    assert told["before a run"] == "output 0: there is none before a run"
    assert told["closed"] == "the model is closed"


@pytest.mark.parametrize("told", ["inputs"], indirect=True)
def test_inputs_and_outputs_that_are_none_are_refused(told):
    assert told["strided is the same"]
    assert told["index"] == "Paddle Lite: input 1: the model has no such input"
    assert told["negative"] == "Paddle Lite: input -1: the model has no such input"
    assert told["output"] == "Paddle Lite: output 1: the model has no such output"
    assert told["kind"] == "input 0: float64 (1, 3, 4, 4), where float32 is taken"
    assert "where float32" in told["empty"] and "where float32" in told["axes"]


@pytest.mark.parametrize("told", ["one_at_a_time"], indirect=True)
def test_a_predictor_is_for_one_thread_at_a_time_and_other_threads_go_on_meanwhile(told):
    assert told["said"] == ["a model is used by two threads at once"]
    assert told["refused"] > 100  # with the interpreter's lock held it would be none or one


def opened(build: Path, model: Path) -> str:
    """Open and run a model as the engine does; return what is said."""
    ran = run_python(
        "import logging, sys; from pathlib import Path\n"
        "from agent.engines import EngineSettings, open_files\n"
        "from agent.errors import EngineError\n"
        "logging.basicConfig(format='%(message)s')\n"
        "try:\n"
        "    engine = open_files('paddlelite', (Path(sys.argv[1]),), EngineSettings())\n"
        "    print(type(engine._load).__name__)\n"
        "except EngineError as error:\n"
        "    print(error)\n",
        model,
        env=with_build(build),
    )
    assert ran.status == 0, ran.err
    return ran.err + ran.out


def copied(build: Path, to: Path, **changes: Any) -> Path:
    """Return a copy of a build with a changed record."""
    import msgspec

    shutil.copytree(build, to)
    write_build(to, msgspec.structs.replace(read_build(to), **changes))
    return to


def test_engine_takes_the_binding_where_it_is_built(lite_build, bundle_path):
    assert opened(lite_build, bundle_path / "cls.nb") == "_Native\n"


def test_engine_takes_the_wheels_class_where_it_is_not(tmp_path, bundle_path):
    assert opened(Path("off"), bundle_path / "cls.nb") == "_Wheel\n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interface": 0}, "built by another version: run `edge-ocr lite build` again"),
        ({"machine": "aarch64"}, "built for aarch64, this machine is x86_64"),
        ({"version": ""}, "not tried on this machine yet: run `edge-ocr lite check"),
        ({"library": "gone.so"}, "gone.so: No such file or directory: run `edge-ocr lite build` again"),
        ({"library_bytes": 1}, "another file than"),
        ({"library_mtime_ns": 1}, "another file than"),
    ],
)
def test_build_that_does_not_fit_is_told_and_the_wheels_class_taken(tmp_path, lite_build, bundle_path, changes, said):
    told = opened(copied(lite_build, tmp_path / "build", **changes), bundle_path / "cls.nb")
    assert told.startswith("the native binding is not used: ") and said in told
    assert told.endswith("\n_Wheel\n") and told.count("\n") == 2


@pytest.mark.parametrize("damage", [b"", b"{", b'{"interface": 1}', b"\x7fELF"])
def test_damaged_record_is_told(tmp_path, lite_build, bundle_path, damage):
    build = copied(lite_build, tmp_path / "build")
    (build / RECORD).write_bytes(damage)
    assert "build.json: damaged: run `edge-ocr lite build` again" in opened(build, bundle_path / "cls.nb")


def test_missing_build_is_told(tmp_path, bundle_path):
    assert "gone: no build of the binding" in opened(tmp_path / "gone", bundle_path / "cls.nb")


@pytest.mark.parametrize("length", [0, 63, 64, 1000, -1])
def test_shortened_binding_is_told_and_not_loaded(tmp_path, lite_build, bundle_path, length):
    build = copied(lite_build, tmp_path / "build")
    content = (build / "binding.so").read_bytes()
    (build / "binding.so").write_bytes(content[:length])
    assert "binding.so: damaged, or not a shared library" in opened(build, bundle_path / "cls.nb")


@pytest.mark.parametrize("build", ["native", "off"])
def test_wrong_models_are_refused_before_the_library_sees_them(tmp_path, lite_build, bundle_path, build):
    chosen = lite_build if build == "native" else Path(build)
    whole, bad = (bundle_path / "cls.nb").read_bytes(), tmp_path / "bad.nb"
    foreign = (Path(__file__).parent.parent / "agent" / "lite" / "selftest-aarch64.nb").read_bytes()
    for content, said in (
        (b"", "damaged, or not a model"),
        (os.urandom(1000), "damaged, or not a model"),
        (whole[:-1], "more should follow"),
        (whole[: len(whole) // 2], "more should follow"),
        (whole[:100], "damaged, or not a model"),
        (foreign, "made for aarch64, this machine is x86_64"),
    ):
        bad.write_bytes(content)
        told = opened(chosen, bad)
        assert f"{bad}: " in told and said in told and told.count("\n") == 1


def test_bench_has_a_row_for_each_model_threads_and_power_mode(lite_build, bundle_path):
    arguments = ("--bundle", bundle_path, "--threads", "1,2", "--power", "any,high", "--runs", "1")
    ran = run((*EDGE_OCR, "lite", "bench", *arguments), with_build(lite_build))
    assert (ran.status, ran.err) == (0, "")
    rows = [tuple(row.split()[:3]) for row in ran.out.splitlines()[2:]]
    models, modes = ("det", "rec", "cls"), ("any", "high")
    assert rows == [(model, count, mode) for model in models for mode in modes for count in ("1", "2")]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--threads", "1,x"), 78, "--threads 1,x: numbers from 1 to 64 with commas between are accepted"),
        (("--threads", "65"), 78, "--threads 65: numbers from 1 to 64"),
        (("--power", "warp"), 69, "power mode 'warp' is unknown; one of high, low, full, any"),
    ],
)
def test_bench_refuses_what_is_no_number_or_mode(lite_build, bundle_path, arguments, status, said):
    ran = run((*EDGE_OCR, "lite", "bench", "--bundle", bundle_path, *arguments), with_build(lite_build))
    assert (ran.status, ran.out) == (status, "") and said in ran.err


@pytest.mark.parametrize("version", ["3.11", "3.13"])
def test_newer_pythons_load_the_same_build(lite_build, tmp_path, version):
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(root.glob(f"{version}.*/bin/python"))
    if not found:
        pytest.skip(f"Python {version} is not installed")
    assert run((found[-1], "-m", "venv", tmp_path / "venv")).status == 0
    python = tmp_path / "venv" / "bin" / "python"
    installed = run((python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "numpy", "msgspec"))
    if installed.status:
        pytest.skip(f"pip cannot install numpy and msgspec for Python {version}: {installed.err.splitlines()[-1]}")
    ran = run((python, "-m", "agent.lite.binding", lite_build))
    assert (ran.status, ran.out) == (0, "v2.13-rc"), ran.err


def test_settings_and_binding_know_the_same_power_modes():
    assert set(get_args(get_type_hints(ReaderConfig)["power_mode"])) == set(POWER_MODES)
    assert EngineSettings().power_mode == ReaderConfig().power_mode == "any"
