"""The native binding in a package for arm64: compiled where it was packed, found and tried where it is installed.

The library is the stub; `EDGE_OCR_ARM_LITE_LIB` names the real one, or its release archive, for the whole path.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from agent.pack.tree import SAMPLE
from tests.arm64.box import Box
from tests.arm64.packages import pack, unpacked
from tests.conftest import built
from tests.lite_kit import stub_library

COMPILER = "aarch64-linux-gnu-g++"
RELEASE = "/opt/edge-ocr/releases/0.1.0"
BUILD = f"{RELEASE}/venv/share/edge-ocr/lite"
BUNDLE = "ppocr-v4-aarch64-fp32"

pytestmark = [
    pytest.mark.arm64,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed"),
]


@pytest.fixture(scope="module")
def box(bare: Box, tmp_path_factory: pytest.TempPathFactory) -> Box:
    """A box with a package on Paddle Lite unpacked: the stub reads nothing, so the installer would refuse it."""
    work = tmp_path_factory.mktemp("lite")
    stub = stub_library(work / "stub", compiler=COMPILER)
    package = pack(work, built(BUNDLE), "--lite-lib", stub)
    box = bare.copy(work / "box")
    home = box.upper / "opt" / "edge-ocr"
    unpacked(package, home / "releases" / "0.1.0")
    (home / "current").symlink_to("releases/0.1.0")
    return box


def opened(box: Box, *environment: str) -> str:
    """Open a model of the installation's own bundle as the reader does; return by what, or what is said."""
    told = box.run(
        "env",
        *environment,
        "/opt/edge-ocr/current/venv/bin/python",
        "-c",
        "from pathlib import Path; from agent.bundle import ModelBundle; from agent.errors import EngineError\n"
        "from agent.engines import EngineSettings, choose_engine, open_engine\n"
        f"bundle = ModelBundle.load(Path('{RELEASE}/bundle'))\n"
        "try:\n"
        "    engine = open_engine(bundle, 'det', EngineSettings())\n"
        "    print(choose_engine(bundle, 'auto'), type(engine._load).__name__, engine._load._library.version)\n"
        "except EngineError as error:\n"
        "    print(error)\n",
    )
    assert told.status == 0, told.err
    return told.out


def test_binding_of_the_package_is_found_and_works(box, tmp_path):
    here = box.copy(tmp_path / "box")
    told = here.run("/opt/edge-ocr/current/venv/bin/edge-ocr", "lite", "check")
    assert (told.status, told.network) == (0, {}), told.err
    assert "share/edge-ocr/lite: Paddle Lite v2.13-rc: loads, and calculates what it should" in told.out


def test_engine_takes_the_binding_at_its_first_use_and_writes_nothing_beside_it(box, tmp_path):
    here = box.copy(tmp_path / "box")
    record = here.path(f"{BUILD}/build.json").read_bytes()
    assert b'"version":""' in record.replace(b" ", b"")  # nobody has tried it: it was made on another machine
    assert opened(here) == "paddlelite _Native v2.13-rc\n"
    assert here.path(f"{BUILD}/build.json").read_bytes() == record


def test_library_that_calculates_wrongly_here_is_told_in_one_line(box, tmp_path):
    said = opened(box.copy(tmp_path / "box"), "LITE_STUB=wrong")
    assert "calculates (18.0, 0.0, " in said and said.count("\n") == 1


def test_package_with_the_real_library_reads(bare, tmp_path):
    real = os.environ.get("EDGE_OCR_ARM_LITE_LIB", "")
    if not real:
        pytest.skip("EDGE_OCR_ARM_LITE_LIB does not name Paddle Lite's library for armlinux armv8, or its archive")
    package = pack(tmp_path, built(BUNDLE), "--lite-lib", Path(real))
    box = bare.copy(tmp_path / "box")
    told = box.run("sh", box.give(package))  # reads its sample page, or refuses
    assert told.status == 0, told.err
    told = box.run("edge-ocr", "read", "-c", "/etc/edge-ocr/agent.toml", "--text", box.give(SAMPLE))
    assert (told.status, told.network) == (0, {}), told.err
    assert "".join(told.out.split()) == "".join(SAMPLE.with_suffix(".txt").read_text(encoding="utf-8").split())
    print(f"\narm64, emulated, Paddle Lite: read: {told.seconds:.0f} s, {told.peak_mb:.0f} MB at most", end="")
