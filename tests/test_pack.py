"""Packages: what goes into one, that it is the same each time, and that damage and the wrong machine are told."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from agent.errors import PackageError
from agent.install import package as packages
from agent.install.package import MANIFEST, FileEntry, Package, decode, encode
from agent.pack import archive, plan, tree, wheels
from agent.pack.plan import Order, choose
from tests.command import EDGE_OCR, Ran, run
from tests.pack_kit import Release, small

HERE = os.uname().machine


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("release")
    return small(folder)


@pytest.fixture(scope="module")
def package(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.run_file(tmp_path_factory.mktemp("package"))


def sh(package: Path, *arguments: str | Path) -> Ran:
    return run(("sh", package, *arguments))


# ------------------------------------------------------------------------------------------------ which engine


@pytest.mark.parametrize(
    ("target", "python", "runs_on", "more", "engine"),
    [
        ("aarch64", "3.11", {"onnxruntime"}, {}, "onnxruntime"),
        ("aarch64", "3.11", {"paddlelite"}, {"lite_lib": Path("a")}, "binding"),
        ("aarch64", "3.10", {"paddlelite"}, {"wheel": Path("a")}, "paddlelite"),
        ("x86_64", "3.10", {"paddlelite"}, {}, "paddlelite"),
        ("x86_64", "3.11", {"paddlelite"}, {}, "binding"),
        ("x86_64", "3.10", {"onnxruntime"}, {}, "onnxruntime"),
    ],
)
def test_engine_goes_by_target_and_bundle(target, python, runs_on, more, engine):
    assert choose(Order(target, python, Path("bundle"), **more), runs_on) == engine


@pytest.mark.parametrize(
    ("runs_on", "more", "said"),
    [
        ({"paddlelite"}, {}, "name its C\\+\\+ library with --lite-lib .* or take a portable bundle"),
        ({"onnxruntime"}, {"lite_lib": Path("a")}, "not for Paddle Lite, so --lite-lib has no use"),
        ({"onnxruntime"}, {"wheel": Path("a")}, "not for Paddle Lite, so --wheel has no use"),
        ({"paddlelite"}, {"wheel": Path("a"), "lite_lib": Path("b")}, "name one"),
        ({"paddle"}, {}, "for paddle: convert --target portable"),
    ],
)
def test_bundle_that_no_engine_in_the_package_runs_is_refused(runs_on, more, said):
    with pytest.raises(PackageError, match=said):
        choose(Order("aarch64", "3.11", Path("bundle"), **more), runs_on)


def pack(bundle: Path, output: Path, *more: str | Path) -> Ran:
    common = ("--target", "aarch64", "--python", "3.11", "--bundle", bundle, "--output", output)
    return run((*EDGE_OCR, "pack", *common, *more))


def test_command_refuses_before_any_work(tmp_path, bundle_path, portable_path):
    output = tmp_path / "out" / "a.run"
    wrong = tmp_path / "agent.toml"
    wrong.write_text('devise = "a"\n')
    for ran, status in (
        (pack(bundle_path, output), 74),  # made for x86-64
        (pack(tmp_path, output), 74),
        (pack(portable_path, output, "--wheel", "a.whl"), 74),
        (pack(portable_path, output, "--config", wrong), 78),
    ):
        assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran
    assert not output.parent.exists()


# ------------------------------------------------------------------------------------------------ what is in it


def test_manifest_comes_back_as_it_was():
    files = {"a/b": FileEntry("0" * 64, 3, True)}
    given = Package("1.2.3", "aarch64", "3.11", "x", "y", 0, ("合计",), files, {"c": "d"})
    assert decode(encode(given))._replace(digest="") == given


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "a/../../b", "a//b", ".", "package.json"])
def test_manifest_that_names_files_elsewhere_is_refused(path):
    record = json.loads(encode(Package("1", "a", "3.11", "x", "y", 0, (), {}, {})))
    for key, value in (("files", {"sha256": "0", "bytes": 0}), ("links", "target")):
        with pytest.raises(PackageError, match="leaves the package"):
            decode(json.dumps({**record, key: {path: value}}).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 2}', b"\xff"])
def test_damaged_manifest_is_refused(raw):
    with pytest.raises(PackageError):
        decode(raw)


def test_same_release_gives_the_same_bytes(release, package, tmp_path):
    for name in release.package.files:
        os.utime(release.folder / name)  # the time is that of the package, not of the files
    assert release.run_file(tmp_path).read_bytes() == package.read_bytes()


def test_time_of_files_is_source_date_epoch(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert tree.epoch() == 1_700_000_000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(PackageError, match="SOURCE_DATE_EPOCH"):
        tree.epoch()


def test_installer_comes_first_in_the_archive(release):
    names = archive.order(release.package)
    assert names[:2] == [MANIFEST, "install.py"]
    assert sorted(names[1:]) == sorted([*release.package.files, *release.package.links])
    assert names[-1] == "zzz.bin"


def test_what_a_box_never_uses_is_left_out(tmp_path):
    kept = ("numpy/core/a.so", "a-1.dist-info/METADATA", "a-1.dist-info/licenses/LICENSE", "agent/tests/mine.pyi")
    gone = (
        *("numpy/f2py/a.py", "numpy/core/tests/a.py", "numpy/core/include/a.h", "a/b.pyi", "bin/a", "cv2/data/a.xml"),
        *("a-1.dist-info/RECORD", "a-1.dist-info/direct_url.json", "a/__pycache__/b.pyc", "onnxruntime/tools/a.py"),
        "onnxruntime/capi/libonnxruntime.so.1.2.3",
    )
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    wheels.thin_out(tmp_path)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*kept, "cv2/data/__init__.py"}


def test_installer_needs_nothing_but_the_standard_library(release):
    """On the box it runs before there is anything else."""
    code = "import sys, agent.install.command; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = run(("/usr/bin/python3", "-I", "-c", f"import sys; sys.path.insert(0, {str(site(release))!r}); {code}"))
    assert ran.status == 0, ran.err
    assert not {"msgspec", "click", "numpy"} & set(ran.out.split())


def site(release: Release) -> Path:
    return release.folder / release.site


# ------------------------------------------------------------------------------------------------ the head


def test_package_tells_what_it_is(package):
    said = sh(package, "--info")
    assert said.status == 0
    assert said.out.startswith(f"edge-ocr 1.0.0 for {HERE}, Python 3.11, no engine")
    assert sh(package, "--help").out.startswith("edge-ocr 1.0.0")


def test_package_is_unpacked_with_rights_links_and_times(release, package, tmp_path):
    assert sh(package, "--extract", tmp_path / "out").status == 0
    assert packages.verify(tmp_path / "out") == release.package._replace(digest=packages.read(release.folder).digest)
    assert (tmp_path / "out/install.py").stat().st_mtime == tree.EPOCH
    assert os.readlink(tmp_path / "out/venv/bin/python") == "/usr/bin/python3.11"
    again = sh(package, "--extract", tmp_path / "out")
    assert (again.status, again.err) == (69, f"edge-ocr: {tmp_path}/out: is not empty\n")


def test_whole_package_is_verified(package):
    assert re.fullmatch(r"whole: \d+ files, 0 MB as package.json says\n", sh(package, "--verify").out)


def test_modules_that_lie_where_the_caller_is_are_not_taken(package, tmp_path):
    for module in ("tarfile", "lzma", "sys"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('a stranger')\n")
    ran = run(("sh", package, "--verify"), cwd=tmp_path)
    assert (ran.status, ran.err) == (0, ""), ran


def offset(package: Path) -> int:
    return int(re.search(rb"offset=(\d+)", package.read_bytes())[1])


@pytest.mark.parametrize("where", ["first", "middle", "last", "short", "long"])
def test_damage_to_the_payload_is_noticed(package, tmp_path, where):
    content = bytearray(package.read_bytes())
    start = offset(package)
    at = {"first": start, "middle": (start + len(content)) // 2, "last": len(content) - 1}.get(where)
    if at is not None:
        content[at] ^= 1
    damaged = tmp_path / "damaged.run"
    damaged.write_bytes(content[:-1] if where == "short" else content + b"x" if where == "long" else content)
    for option in ((), ("--verify",), ("--extract", tmp_path / "out")):
        said = sh(damaged, *option)
        assert (said.status, said.err) == (74, f"edge-ocr: {damaged} is damaged or cut short: copy it again\n")
    assert not (tmp_path / "out").exists()


def test_wrong_machine_is_told(release, tmp_path):
    other = "aarch64" if HERE == "x86_64" else "x86_64"
    said = sh(small(tmp_path / "tree", target=other).run_file(tmp_path))
    assert (said.status, said.err) == (
        69,
        f"edge-ocr: this package is for {other}, and this machine is {HERE}: take the one for it\n",
    )


def test_missing_python_is_told_with_what_to_install(tmp_path):
    said = sh(small(tmp_path / "tree", python="3.99").run_file(tmp_path))
    assert said.status == 69
    assert "Python 3.99 is needed as /usr/bin/python3.99" in said.err
    assert "apt-get install python3.99" in said.err
    assert "--python 3." in said.err


def test_file_that_is_not_as_the_manifest_says_is_refused(tmp_path):
    """A payload that is whole and holds something else than its manifest: made wrong, or by somebody."""
    release = small(tmp_path / "tree")
    (release.folder / "zzz.bin").write_bytes(os.urandom(100_000))
    said = sh(release.run_file(tmp_path), "--verify")
    assert said.status == 74
    assert "zzz.bin: damaged" in said.err


def test_release_with_a_changed_or_missing_file_is_not_whole(tmp_path):
    release = small(tmp_path / "tree")
    packages.verify(release.folder)
    (release.folder / "zzz.bin").unlink()
    with pytest.raises(PackageError, match=r"zzz.bin: No such file"):
        packages.verify(release.folder)
    (release.folder / "zzz.bin").write_text("x")
    with pytest.raises(PackageError, match=r"zzz.bin: damaged"):
        packages.verify(release.folder)


def test_unknown_option_is_refused_with_those_there_are(package):
    said = sh(package, "--instal")
    assert said.status == 2
    assert "--rollback" in said.err and said.err.endswith("edge-ocr: not known: --instal\n")


def test_only_root_installs(package):
    with tempfile.TemporaryDirectory() as folder:  # those of pytest are open to nobody else
        os.chmod(folder, 0o755)
        copy = shutil.copy(package, folder)
        other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") if os.geteuid() == 0 else ()
        said = run((*other, "sh", copy))
        assert (said.status, said.err) == (69, "edge-ocr: only root can do this: begin the command with sudo\n")
        assert run((*other, "sh", copy, "--verify")).status == 0


def test_plan_names_what_is_in_the_package(portable_path):
    made = plan.make(Order("aarch64", "3.11", portable_path))
    assert (made.engine, plan.NAMES[made.engine]) == ("onnxruntime", "ONNX Runtime")
