"""Building the binding: on libraries that fit, on such as do not, and from archives."""

from __future__ import annotations

import io
import os
import platform
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from agent.errors import EngineError
from agent.lite import library
from agent.lite.elf import machine_of
from agent.lite.place import read_build
from tests.command import run_python
from tests.lite_kit import LIBRARY, STUB, lite, refusal, stub_library

HERE = platform.machine()


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub_library(tmp_path_factory.mktemp("stub"))


@pytest.fixture(scope="module")
def stub_build(tmp_path_factory: pytest.TempPathFactory, stub: Path) -> Path:
    """Return a build on the stub."""
    folder = tmp_path_factory.mktemp("built")
    ran = lite(folder / "cache", "build", "--lib", stub, "--output", folder / "build")
    assert ran.status == 0, ran.err
    return folder / "build"


def test_build_says_where_and_what_it_has_tested(tmp_path, stub):
    ran = lite(tmp_path, "build", "--lib", stub)
    (folder,) = (tmp_path / "edge-ocr" / "lite").glob(f"{HERE}-*")
    assert ran.status == 0, ran.err
    assert f"built     {folder}\nlibrary   {LIBRARY}, " in ran.out
    assert (
        "own declarations\ntested    Paddle Lite v2.13-rc: loads, and calculates what it should; now in use" in ran.out
    )
    assert sorted(path.name for path in folder.iterdir()) == ["binding.so", "build.json", LIBRARY]


def test_what_was_built_last_is_used_and_can_be_checked_again(tmp_path, stub):
    assert lite(tmp_path, "build", "--lib", stub).status == 0
    ran = lite(tmp_path, "check")
    assert (ran.status, ran.err) == (0, "") and "Paddle Lite v2.13-rc: loads" in ran.out


def test_check_without_a_build_says_what_to_do(tmp_path):
    assert "not built: run `edge-ocr lite build`" in refusal(lite(tmp_path, "check"))


def test_build_can_be_moved_and_is_then_checked_by_its_place(tmp_path, stub_build):
    moved = shutil.copytree(stub_build, tmp_path / "elsewhere")
    assert lite(tmp_path / "cache", "check", moved).status == 0
    assert (tmp_path / "cache" / "edge-ocr" / "lite" / f"active-{HERE}").resolve() == moved


@pytest.mark.parametrize("macro", ["-DSTUB_OLD", "-DSTUB_NEW"])
def test_configuration_may_be_smaller_or_larger_without_headers(tmp_path, macro):
    ran = lite(tmp_path, "build", "--lib", stub_library(tmp_path, macro))
    assert "own declarations\ntested    Paddle Lite v2.13-rc" in ran.out, ran.err


def test_other_layout_is_refused_without_headers_and_taken_with_them(tmp_path):
    made = stub_library(tmp_path, "-DSTUB_STRANGE")
    said = refusal(lite(tmp_path, "build", "--lib", made))
    assert "give --lib a release with headers" in said or "lays out its configuration" in said
    include = tmp_path / "cxx" / "include"
    include.mkdir()
    (include / "paddle_api.h").write_text("#define STUB_STRANGE\n" + (STUB / "paddle_api.h").read_text())
    ran = lite(tmp_path, "build", "--lib", tmp_path)
    assert "the release headers\ntested    Paddle Lite v2.13-rc" in ran.out, ran.err


def test_unknown_version_is_refused_with_those_that_work(tmp_path, stub):
    said = refusal(lite(tmp_path, "build", "--lib", stub, LITE_STUB="version"))
    assert f"Paddle Lite 30fe065bc is not known to work on {HERE}; v2.13-rc" in said
    ran = lite(tmp_path, "build", "--lib", stub, "--accept", "30fe065bc", LITE_STUB="version")
    assert "tested    Paddle Lite 30fe065bc" in ran.out, ran.err


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ("wrong", "version v2.13-rc calculates (18.0, 0.0, "),
        ("integers", "Paddle Lite: output 0: the output is not float32"),
        ("throws", "Paddle Lite: cannot load the model: this model is not supported"),
        ("throws an int", "Paddle Lite: cannot load the model: an exception of unknown kind"),
        ("no model", "Paddle Lite: cannot load the model: it makes no predictor of the model"),
        ("throws in run", "Paddle Lite: run: no kernel\n"),
        ("dies", "its library dies of the test model (signal 6: "),
    ],
)
def test_library_that_does_not_work_is_refused_in_one_line(tmp_path, stub, behaviour, said):
    assert said in refusal(lite(tmp_path, "build", "--lib", stub, LITE_STUB=behaviour))
    assert not list((tmp_path / "edge-ocr" / "lite").glob("active-*"))


def echoed(build: Path, arguments: str) -> list[float]:
    """Return threads, power mode, threads on x86, whether from memory, and lengths of model and old field."""
    ran = run_python(
        "import sys; from pathlib import Path; import numpy as np\n"
        "from agent.lite import binding\n"
        "model = Path(binding.__file__).with_name(f'selftest-{sys.argv[2]}.nb')\n"
        f"one = binding.Predictor(binding.open_library(Path(sys.argv[1])), {arguments})\n"
        "one.set_input(0, np.zeros((1, 1), np.float32)); one.run(); print(*one.output(0)[0])",
        build,
        HERE,
    )
    assert ran.status == 0, ran.err
    return [float(word) for word in ran.out.split()]


def test_threads_power_mode_and_model_reach_the_library(stub_build):
    from agent.lite import binding

    model = Path(binding.__file__).with_name(f"selftest-{HERE}.nb")
    name, size = len(str(model)), model.stat().st_size
    assert echoed(stub_build, "model") == [1, 3, 1, 0, name, 0]
    assert echoed(stub_build, "model, threads=2, power_mode='high'") == [2, 0, 2, 0, name, 0]
    assert echoed(stub_build, "model.read_bytes(), power_mode='low'") == [1, 1, 1, 1, size, 0]


@pytest.mark.parametrize(
    ("behaviour", "taken"), [("", "paddlelite"), ("wrong", "onnxruntime"), ("version", "onnxruntime")]
)
def test_auto_without_the_wheel_takes_a_binding_that_works(stub_build, portable_path, behaviour, taken):
    ran = run_python(
        "import sys; from pathlib import Path\n"
        "sys.modules['paddlelite'] = None\n"
        "from agent.bundle import ModelBundle; from agent.engines import choose_engine\n"
        "from tests.lite_kit import both\n"
        "print(choose_engine(both(ModelBundle.load(Path(sys.argv[1]))), 'auto'))",
        portable_path,
        env={**os.environ, "EDGE_OCR_LITE": str(stub_build), "LITE_STUB": behaviour},
    )
    assert ran.out == f"{taken}\n", ran.err


def test_missing_compiler_is_named_with_its_package(tmp_path, stub):
    said = refusal(lite(tmp_path, "build", "--lib", stub, CXX="no-such-compiler -O2"))
    assert "no-such-compiler is not installed: apt-get install g++, or name a compiler in CXX" in said


def test_error_of_the_compiler_is_shown_in_one_line(tmp_path, stub):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo mine && exit\necho "x.cpp:1: error: no" >&2; exit 1\n')
    compiler.chmod(stat.S_IRWXU)
    assert "compiler fails: x.cpp:1: error: no" in refusal(lite(tmp_path, "build", "--lib", stub, CXX=str(compiler)))


def test_cache_that_cannot_be_written_is_told(tmp_path, stub):
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(lite(tmp_path / "file", "build", "--lib", stub))


def shortened(path: Path, length: int, to: Path) -> Path:
    to.write_bytes(path.read_bytes()[:length])
    return to


def test_damaged_and_foreign_libraries_are_refused_before_they_are_loaded(tmp_path, stub):
    other = bytearray(stub.read_bytes())
    other[18] = 183 if HERE == "x86_64" else 62
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(other)
    assert "foreign.so: a library for " in refusal(lite(tmp_path, "build", "--lib", foreign))
    for length in (0, 10, 64, 4096, stub.stat().st_size - 1):
        short = shortened(stub, length, tmp_path / "short.so")
        assert "short.so: damaged, or not a shared library" in refusal(lite(tmp_path, "build", "--lib", short))
    (tmp_path / "text.so").write_text("not a library at all\n" * 100)
    assert "text.so: damaged, or not a shared library" in refusal(
        lite(tmp_path, "build", "--lib", tmp_path / "text.so")
    )


def test_library_without_the_interface_is_refused(tmp_path):
    import ctypes.util

    libc = Path(next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc" in line))
    assert ctypes.util.find_library("c") and machine_of(libc) == HERE
    said = refusal(lite(tmp_path, "build", "--lib", shutil.copy(libc, tmp_path / "lite.so")))
    assert "does not offer Paddle Lite's light interface in C++" in said


def test_folder_without_a_library_is_refused(tmp_path):
    assert f"holds neither {LIBRARY} nor lite.so" in refusal(lite(tmp_path, "build", "--lib", tmp_path))


def packed(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar archive, or with the name of a wheel a zip archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


RELEASE = "inference_lite_lib.armlinux.armv8"


def test_release_archive_is_built_with_its_own_headers(tmp_path, stub):
    members = {
        f"{RELEASE}/cxx/lib/{LIBRARY}": stub.read_bytes(),
        f"{RELEASE}/cxx/include/paddle_api.h": (STUB / "paddle_api.h").read_bytes(),
        f"{RELEASE}/demo/large.bin": bytes(1000),
    }
    ran = lite(tmp_path, "build", "--lib", packed(tmp_path / "release.tar.gz", members), "--output", tmp_path / "out")
    assert "the release headers\ntested    Paddle Lite v2.13-rc" in ran.out, ran.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["binding.so", "build.json", LIBRARY]
    assert read_build(tmp_path / "out").headers


def test_wheel_is_unpacked_with_the_libraries_that_its_own_needs(tmp_path, stub):
    members = {"paddlelite/lite.so": stub.read_bytes(), "paddlelite/libs/libmore.so": b"more", "paddlelite/x.py": b""}
    ran = lite(tmp_path, "build", "--lib", packed(tmp_path / "some.whl", members), "--output", tmp_path / "out")
    assert "library   lite.so" in ran.out, ran.err
    assert (tmp_path / "out" / "libs" / "libmore.so").read_bytes() == b"more"


@pytest.mark.parametrize("archive", ["release.tar.gz", "release.whl"])
@pytest.mark.parametrize("name", ["../../lite.so", "/lite.so"])
def test_archive_that_leaves_its_directory_is_refused(tmp_path, archive, name):
    with pytest.raises(EngineError, match="leaves the archive"):
        library.unpack(packed(tmp_path / archive, {name: b"x"}), tmp_path / "work")


@pytest.mark.parametrize("archive", ["release.tar.gz", "release.whl"])
def test_archive_that_is_too_large_is_refused(tmp_path, monkeypatch, archive):
    monkeypatch.setattr(library, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(EngineError, match="larger than any release"):
        library.unpack(packed(tmp_path / archive, {"lite.so": bytes(1001)}), tmp_path / "work")
    monkeypatch.setattr(library, "MAX_MEMBERS", 2)
    with pytest.raises(EngineError, match="larger than any release"):
        library.unpack(packed(tmp_path / archive, {f"{n}.so": b"" for n in range(3)}), tmp_path / "work")


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", np.random.default_rng(1).bytes(5000)])
def test_damaged_archive_is_refused(tmp_path, content):
    (tmp_path / "release.tar.gz").write_bytes(content)
    with pytest.raises(EngineError, match="damaged, or not an archive"):
        library.unpack(tmp_path / "release.tar.gz", tmp_path / "work")


def test_shortened_archive_is_refused(tmp_path, stub):
    whole = packed(tmp_path / "release.tar.gz", {f"lib/{LIBRARY}": stub.read_bytes()})
    short = shortened(whole, whole.stat().st_size // 2, tmp_path / "short.tar.gz")
    assert "short.tar.gz: damaged, or not an archive" in refusal(lite(tmp_path, "build", "--lib", short))


def pip(folder: Path, script: str) -> str:
    """Return a PYTHONPATH on which `python -m pip` is a script."""
    (folder / "pip").mkdir(parents=True)
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(script)
    return str(folder)


def test_wheel_of_another_content_is_not_unpacked(tmp_path):
    place = pip(tmp_path / "fake", "import pathlib, sys; d = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
                "d.mkdir(parents=True); (d / 'paddlelite-2.13rc0-cp310.whl').write_bytes(b'other')")  # fmt: skip
    said = refusal(lite(tmp_path / "cache", "fetch", PYTHONPATH=f"{place}:{STUB.parents[1]}"))
    assert "paddlelite-2.13rc0-cp310.whl: sha256 is " in said and "nothing of it is used" in said
    assert list((tmp_path / "cache" / "edge-ocr" / "lite").iterdir()) == []


def test_failure_of_pip_is_told(tmp_path):
    place = pip(tmp_path / "fake", "import sys; sys.exit('ERROR: no matching distribution')")
    said = refusal(lite(tmp_path / "cache", "fetch", PYTHONPATH=f"{place}:{STUB.parents[1]}"))
    assert "pip cannot fetch paddlelite==2.13rc0: ERROR: no matching distribution" in said
