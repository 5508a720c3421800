"""The binding for 64-bit ARM: cross-compiled, linked with a stub of the library, run where an emulator is installed.

`EDGE_OCR_ARM_LITE_LIB` names the real library, or its release archive, for the whole path.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from agent.lite.elf import machine_of
from agent.lite.place import read_build
from tests.command import ROOT, run
from tests.lite_kit import LIBRARY, STUB, lite, refusal, stub_library

COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
SYSTEM = Path("/usr/aarch64-linux-gnu")
MODEL = ROOT / "agent" / "lite" / "selftest-aarch64.nb"
ANSWER = "17 0 3 7 0 23 0 25"

# Every function of Paddle Lite that the binding calls, as c++filt shows it.
CALLED = {
    "ConfigBase::ConfigBase(PowerMode, int)",
    "ConfigBase::set_power_mode(PowerMode)",
    "ConfigBase::set_threads(int)",
    "ConfigBase::set_x86_math_num_threads(int)",
    "MobileConfig::set_model_from_file(std::string const&)",
    "MobileConfig::set_model_from_buffer(std::string&&)",
    "std::shared_ptr<PaddlePredictor> CreatePaddlePredictor<MobileConfig>(MobileConfig const&)",
    "Tensor::Resize(std::vector<long, std::allocator<long> > const&)",
    "Tensor::shape() const",
    "Tensor::precision() const",
    "float const* Tensor::data<float>() const",
    "float* Tensor::mutable_data<float>(TargetType) const",
}
OFFERED = {"close", "error", "input", "interface", "load", "output", "run", "version"}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
emulated = pytest.mark.skipif(
    shutil.which(EMULATOR) is None and platform.machine() != "aarch64", reason=f"{EMULATOR} is not installed"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build for ARM on a stub."""
    folder = tmp_path_factory.mktemp("arm")
    stub = stub_library(folder / "release", compiler=COMPILER)
    ran = lite(folder / "cache", "build", "--target", "aarch64", "--lib", stub, "--output", folder / "build")
    assert ran.status == 0, ran.err
    assert platform.machine() == "aarch64" or "tested    not, this machine is no aarch64" in ran.out
    return folder / "build"


def symbols(path: Path, *options: str) -> set[str]:
    """Return the dynamic symbols of a library, in short."""
    shown = run(("nm", "-D", "-C", *options, path)).out
    long = "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >"
    rows = [row.replace(long, "std::string").replace("paddle::lite_api::", "") for row in shown.splitlines()]
    return {row.split(maxsplit=1 if " U " in row else 2)[-1] for row in rows}


def test_binding_is_for_arm_and_carries_its_library(built):
    assert machine_of(built / "binding.so") == machine_of(built / LIBRARY) == "aarch64"
    record = read_build(built)
    assert (record.machine, record.library, record.library_mtime_ns) == ("aarch64", LIBRARY, 0)


def test_binding_calls_only_what_is_declared(built):
    wanted = {name for name in symbols(built / "binding.so", "--undefined-only") if "(" in name}
    of_lite = {name for name in wanted if any(word in name for word in ("Config", "Tensor", "Predictor"))}
    assert of_lite == CALLED


def test_binding_offers_its_interface_and_nothing_of_paddle_lite(built):
    offered = symbols(built / "binding.so", "--defined-only")
    assert {name for name in offered if name.startswith("edge_ocr")} == {f"edge_ocr_lite_{name}" for name in OFFERED}
    assert not {name for name in offered if "Config" in name or "Predictor" in name}


def test_library_offers_what_the_binding_calls(built):
    assert symbols(built / LIBRARY, "--defined-only") >= CALLED


def driven(build: Path, folder: Path) -> str:
    """Run the test model on a build for ARM, by a program that does what Python does."""
    driver = folder / "driver"
    command = [COMPILER, "-std=c++14", str(STUB / "driver.cpp"), "-o", str(driver), "-ldl"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    emulator = () if platform.machine() == "aarch64" else (EMULATOR, "-L", str(SYSTEM))
    ran = run((*emulator, driver, build / read_build(build).library, build / "binding.so", MODEL))
    assert ran.status == 0, ran.err
    return ran.out.splitlines()[-1]


@emulated
def test_binding_runs_on_arm_with_the_stub(built, tmp_path):
    assert driven(built, tmp_path) == f"v2.13-rc {ANSWER}"


@pytest.mark.parametrize("macro", ["-DSTUB_OLD", "-DSTUB_NEW"])
@emulated
def test_configuration_may_be_smaller_or_larger_on_arm(tmp_path, macro):
    stub = stub_library(tmp_path, macro, compiler=COMPILER)
    assert lite(tmp_path, "build", "--target", "aarch64", "--lib", stub, "--output", tmp_path / "build").status == 0
    assert driven(tmp_path / "build", tmp_path) == f"v2.13-rc {ANSWER}"


@emulated
def test_real_library_runs_the_test_model(tmp_path):
    real = os.environ.get("EDGE_OCR_ARM_LITE_LIB", "")
    if not real:
        pytest.skip("EDGE_OCR_ARM_LITE_LIB does not name Paddle Lite's library for armlinux armv8, or its archive")
    ran = lite(tmp_path, "build", "--target", "aarch64", "--lib", real, "--output", tmp_path / "build")
    assert ran.status == 0, ran.err
    assert driven(tmp_path / "build", tmp_path).endswith(ANSWER)


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this machine is one")
def test_build_for_arm_is_not_loaded_here(built, tmp_path):
    assert "built for aarch64, this machine is x86_64" in refusal(lite(tmp_path, "check", built))


def test_arm_needs_a_library_to_be_named(tmp_path):
    assert "name Paddle Lite's release archive" in refusal(lite(tmp_path, "build", "--target", "aarch64"))


@pytest.mark.skipif(platform.machine() == "aarch64", reason="no cross compiler is needed")
def test_missing_cross_compiler_is_named_with_its_package(tmp_path):
    said = refusal(lite(tmp_path, "build", "--target", "aarch64", "--lib", "x.so", PATH=str(tmp_path)))
    assert f"{COMPILER} is not installed: apt-get install g++-aarch64-linux-gnu" in said
