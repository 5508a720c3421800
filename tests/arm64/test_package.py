"""A package on a bare arm64 Debian 12 that has no network: installed, read with, upgraded, removed.

Emulated, so slow. What only the emulator needs is the memory limit (`packages.LIMIT_MB`).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from agent.pack.tree import SAMPLE
from tests.arm64.box import Box, Told
from tests.arm64.conftest import Installed
from tests.arm64.packages import cut_short, unpacked
from tests.pack_kit import Release, changed

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(1800)]

SETTINGS = "/etc/edge-ocr/agent.toml"
PAGE = "/var/lib/edge-ocr/inbox/page.png"
LINES = SAMPLE.with_suffix(".txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def release(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The package, unpacked."""
    return unpacked(installed.package, tmp_path_factory.mktemp("release") / "tree")


@pytest.fixture
def used(installed: Installed, tmp_path: Path) -> Box:
    """A copy of the box in which somebody has changed settings and left a page."""
    box = installed.box.copy(tmp_path / "box")
    script = f"echo '# changed' >> {SETTINGS}; echo page > {PAGE}; chown edge-ocr:edge-ocr {PAGE}"
    assert box.run("sh", "-c", script).status == 0
    return box


def plain(text: str) -> str:
    return "".join(text.split())


def kept(box: Box) -> bool:
    """Say whether settings and data are as they were."""
    return box.path(SETTINGS).read_text().endswith("\n# changed\n") and box.path(PAGE).read_text() == "page\n"


def running(box: Box) -> str:
    """Return which release is the current one, and see that it starts."""
    told = box.run("edge-ocr", "--version", user="edge-ocr")
    assert told.status == 0, told.err
    return os.readlink(box.path("/opt/edge-ocr/current"))


def show(what: str, told: Told) -> None:
    print(f"\narm64, emulated: {what}: {told.seconds:.0f} s, {told.peak_mb:.0f} MB at most", end="")


def size_mb(box: Box) -> str:
    return box.run("du", "-sm", "/opt/edge-ocr/releases").out.split()[0]


def test_network_that_is_tried_is_seen(bare, tmp_path):
    box = bare.copy(tmp_path / "box")
    for address in ("('192.0.2.1', 9)", "('127.0.0.1', 9)"):
        told = box.run("python3", "-c", f"import socket; socket.socket().connect_ex({address})")
        assert told.status == 0 and told.network, told
    told = box.run("python3", "-c", "import socket; socket.getaddrinfo('example.org', 80)")
    assert told.status == 1 and told.network
    assert box.run("python3", "-c", "print()").network == {}


def test_package_installs_without_network(installed):
    told = installed.told
    assert told.status == 0, told.err
    assert told.network == {}
    assert installed.box.path(SETTINGS).exists()
    assert installed.box.run("stat", "-c", "%U", "/var/lib/edge-ocr").out == "edge-ocr\n"
    show(f"install, {size_mb(installed.box)} MB on the disk", told)


def test_installed_program_reads_a_page_without_network(installed, tmp_path):
    box = installed.box.copy(tmp_path / "box")
    prepared = box.run("install", "-d", "-o", "edge-ocr", "/var/cache/edge-ocr")  # systemd would
    assert prepared.status == 0, prepared.err
    told = box.run("edge-ocr", "read", "-c", SETTINGS, "--text", box.give(SAMPLE), user="edge-ocr")
    assert told.status == 0, told.err
    assert [plain(line) for line in told.out.splitlines()] == [plain(line) for line in LINES]
    assert told.network == {}
    show("read, models tried first", told)


def test_check_says_which_engine_runs_what_it_takes_and_that_it_reads(installed, tmp_path):
    box = installed.box.copy(tmp_path / "box")
    # The part of `edge-ocr check` that loads the models. Check gives it 8 s; only the emulator needs more.
    told = box.run("/opt/edge-ocr/current/venv/bin/python", "-I", "-m", "agent.check.reading", SETTINGS, "/")
    findings = {row["about"]: row for row in map(json.loads, told.out.splitlines())}
    assert {row["level"] for row in findings.values()} == {"ok"}, told
    assert "ppocr-v4-1-portable-fp32" in findings["models"]["said"]
    assert re.search(r"^onnxruntime [\d.]+, by its package, \d+ MB with the models loaded", findings["engine"]["said"])
    assert "100% of a known page are as expected" in findings["trial read"]["said"]
    show("check's trial", told)
    for row in findings.values():
        print(f"\n    {row['about']:<11} {row['said']}", end="")


def test_upgrade_keeps_settings_and_data(used, release, tmp_path):
    package = changed(release, tmp_path / "tree", "9.0.0", {}).run_file(tmp_path)
    before = running(used)
    told = used.run("sh", used.give(package))
    assert told.status == 0, told.err
    assert (before, running(used)) == ("releases/0.1.0", "releases/9.0.0")
    assert told.network == {} and kept(used)
    show("upgrade", told)


def test_upgrade_that_cannot_read_here_leaves_the_old_version(used, release, tmp_path):
    package = changed(release, tmp_path / "tree", "9.0.1", cut_short(release, "rec.onnx")).run_file(tmp_path)
    told = used.run("sh", used.give(package))
    assert told.status != 0 and "cannot read its sample page" in told.err, told
    assert running(used) == "releases/0.1.0" and kept(used)
    assert used.run("ls", "/opt/edge-ocr/releases").out == "0.1.0\n"
    show("upgrade that fails", told)


def test_uninstall_leaves_settings_and_data_and_nothing_else(used):
    told = used.run("python3", "/opt/edge-ocr/current/install.py", "--uninstall")
    assert told.status == 0, told.err
    assert kept(used)
    left = used.run("sh", "-c", "ls -d /opt/edge-ocr /usr/local/bin/edge-ocr /usr/local/lib/systemd/system/edge* 2>&-")
    assert left.out == ""
