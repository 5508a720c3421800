"""Real packages: installed in a bare box without network they read a page; under a systemd their services come up.

What the installer does when things go wrong is in `test_installer.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.install.package import encode
from tests.command import ROOT
from tests.docs import inline, shell
from tests.pack_kit import Release, build, changed, light
from tests.system import machine as machines
from tests.system.branch import until
from tests.system.installed import INSTALL, SETTINGS, assert_kept, put_own, version
from tests.system.machine import Machine
from tests.system.root import Root

HERE = os.uname().machine
OLD, NEW = "0.1.0", "0.2.0"
SAMPLE = "/opt/edge-ocr/current/sample.png"
WORKER, UPLINK = "edge-ocr-worker.service", "edge-ocr-uplink.service"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, portable_path: Path) -> Release:
    """This checkout's release, in place of the small one that the others try."""
    return build(tmp_path_factory.mktemp("old"), HERE, "3.11", portable_path)


def assert_reads(box: Root) -> None:
    read = box.run("edge-ocr", "read", SAMPLE)
    assert read.status == 0, read
    assert "QINGSHI LANE GROCERY" in read.out


def assert_goes_all_its_ways(box: Root, package: Path, other: Path, broken: Path) -> None:
    """Install, use, upgrade, fail to upgrade, and remove."""
    began = time.monotonic()
    ran = box.run("sh", box.put(package))
    assert ran.status == 0, ran
    print(json.dumps({"package_mb": package.stat().st_size / 1e6, "install_s": round(time.monotonic() - began, 1)}))
    assert box.run("cat", "/proc/net/dev").out.count(":") == 1  # no network but the box's own loopback
    assert_reads(box)
    written = box.run("find", "/opt/edge-ocr", "-newer", SAMPLE, "-name", "*.pyc", "-newer", SETTINGS).out
    assert written == ""  # all modules were compiled when it was installed: the services may not write there
    put_own(box)
    ran = box.run("sh", box.put(broken))
    assert (ran.status, version(box)) == (69, OLD), ran
    assert "cannot read its sample page" in ran.err
    ran = box.run("sh", box.put(other))
    assert (ran.status, version(box)) == (0, NEW), ran
    assert_reads(box)
    assert box.run("python3", INSTALL, "--uninstall").status == 0
    assert not box.path("/opt/edge-ocr").exists()
    assert_kept(box)


def others(release: Release, folder: Path) -> tuple[Path, Path]:
    """Return a newer package, and one that cannot read: without its libraries, as these take long to pack."""
    newer = changed(release, folder / "newer", NEW, {})
    heavy = {name: None for name, entry in release.package.files.items() if entry.bytes > 1_000_000}
    return newer.run_file(folder), changed(release, folder / "broken", "0.3.0", heavy).run_file(folder)


def test_release_is_the_same_each_time(old, portable_path, tmp_path):
    assert encode(build(tmp_path, HERE, "3.11", portable_path).package) == encode(old.package)


def test_package_goes_all_its_ways_in_debian_12(files, old, first, tmp_path):
    with Root(tmp_path / "box", files) as box:
        assert_goes_all_its_ways(box, first, *others(old, tmp_path))


@pytest.mark.skipif(not os.environ.get("EVERY"), reason="packs all anew for another Python: EVERY=1")
def test_package_goes_all_its_ways_with_python_3_10(files, bundle_path, tmp_path):
    """As on Ubuntu 22.04: with Paddle Lite's package, and this machine's Python 3.10 in place of the box's own."""
    release = build(tmp_path, HERE, "3.10", bundle_path)
    python = Path(os.path.realpath(sys.executable)).parent.parent
    with Root(tmp_path / "box", files, python=python) as box:
        assert_goes_all_its_ways(box, release.run_file(tmp_path), *others(release, tmp_path))


# ------------------------------------------------------------------------------------------------ under systemd


@pytest.fixture(scope="module")
def machine(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a systemd of its own, in which the package was installed."""
    if reason := machines.why_not():
        pytest.skip(reason)
    if not os.path.exists("/usr/bin/python3.11"):
        pytest.skip("this machine's systemd is tried with its own files, and they have no Python 3.11")
    machine = Machine(tmp_path_factory.mktemp("machine"), None)
    try:
        ran = install(machine, first)
        assert ran[0] == 0, ran
        machine.write(f"/etc/systemd/system/{WORKER}.d/soon.conf", "[Service]\nTimeoutStartSec=3\n")
        machine.run("systemctl", "daemon-reload")
        yield machine
    finally:
        machine.close()


def install(machine: Machine, package: Path) -> tuple[int, str, str]:
    inside = f"/tmp/{package.name}"
    shutil.copyfile(package, f"/proc/{machine.init}/root{inside}")
    return machine.run("sh", inside, timeout_s=300)


def active(machine: Machine) -> list[str]:
    return [machine.show(unit, "ActiveState") for unit in (WORKER, UPLINK, "edge-ocr.target")]


def test_services_come_up_and_read(machine):
    assert active(machine) == ["active"] * 3
    inbox = Path(f"/proc/{machine.init}/root/var/lib/edge-ocr/inbox")
    shutil.copyfile(ROOT / "samples" / "form.png", inbox / ".form.part")
    (inbox / ".form.part").rename(inbox / "form.png")
    assert until(lambda: (inbox / "done" / "form.png").exists(), 60) < 60, machine.journal(WORKER)
    assert machine.run("systemctl", "is-enabled", WORKER, UPLINK, "edge-ocr.target").out == "enabled\n" * 3


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("mute", "does not get ready"),
        ("ends", "does not get ready: edge-ocr: the worker ends"),
        ("brief", "ends right"),
    ],
)
def test_upgrade_whose_worker_does_not_come_up_is_taken_back(machine, tmp_path, file, said):
    bad = changed(light(tmp_path / "light"), tmp_path / "bad", NEW, {file: ""})
    status, out, err = install(machine, bad.run_file(tmp_path))
    assert (status, said in err) == (69, True), (out, err)
    assert f"going back to {OLD}" in out
    assert NEW in machine.journal(UPLINK)  # it was there, for a moment
    assert (version(machine), active(machine)) == (OLD, ["active"] * 3)
    assert os.listdir(f"/proc/{machine.init}/root/opt/edge-ocr/releases") == [OLD]


def test_service_that_could_not_start_before_holds_up_neither_the_way_there_nor_back(machine, tmp_path):
    fails = f"/etc/systemd/system/{UPLINK}.d/fails.conf"
    machine.write(fails, "[Service]\nExecStart=\nExecStart=/bin/false\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "--no-block", UPLINK)
    assert until(lambda: active(machine)[1] == "activating", 20) < 20
    good = light(tmp_path / "light")
    bad = changed(good, tmp_path / "bad", NEW, {"ends": ""})
    status, out, err = install(machine, bad.run_file(tmp_path))
    assert (status, version(machine), active(machine)[0]) == (69, OLD, "active"), (out, err)
    assert "on the way back" not in out
    status, out, err = install(machine, changed(good, tmp_path / "new", NEW, {}).run_file(tmp_path))
    assert (status, version(machine), active(machine)[0]) == (0, NEW, "active"), (out, err)
    assert machine.run("python3", INSTALL, "--rollback", timeout_s=300).status == 0
    machine.run("rm", fails)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", UPLINK)
    assert active(machine) == ["active"] * 3


def test_service_that_was_stopped_stays_so(machine, tmp_path):
    machine.run("systemctl", "stop", UPLINK)
    status, out, err = install(
        machine, changed(light(tmp_path / "light"), tmp_path / "new", NEW, {}).run_file(tmp_path)
    )
    assert status == 0, (out, err)
    assert (version(machine), active(machine)[:2]) == (NEW, ["active", "inactive"])
    assert machine.run("python3", INSTALL, "--rollback", timeout_s=300).status == 0
    assert (version(machine), active(machine)[:2]) == (OLD, ["active", "inactive"])
    machine.run("systemctl", "start", UPLINK)  # as the tests after this one expect it


@pytest.mark.parametrize(("runs", "stays"), [("/bin/sleep 1000", True), ("/bin/false", False)])
def test_service_that_a_release_brings_is_started_or_all_is_taken_back(machine, tmp_path, runs, stays):
    unit = f"[Service]\nExecStart={runs}\n[Install]\nWantedBy=edge-ocr.target\n"
    more = changed(light(tmp_path / "light"), tmp_path / "more", NEW, {"systemd/edge-ocr-more.service": unit})
    status, out, err = install(machine, more.run_file(tmp_path))
    link = f"/proc/{machine.init}/root/etc/systemd/system/edge-ocr.target.wants/edge-ocr-more.service"
    assert (status, version(machine)) == ((0, NEW) if stays else (69, OLD)), (out, err)
    assert os.path.lexists(link) == stays
    assert machine.show("edge-ocr-more.service", "ActiveState") == ("active" if stays else "inactive")
    assert stays or "edge-ocr-more.service ends right after its start" in err
    if stays:
        assert machine.run("python3", INSTALL, "--rollback", timeout_s=300).status == 0
        assert machine.show("edge-ocr-more.service", "ActiveState") == "inactive"
    assert active(machine) == ["active"] * 3


def failed(machine: Machine, commands: str) -> tuple[list[str], str]:
    """Run a document's commands; returns those that failed, each with its status, and all that they printed."""
    told = "PATH=$PATH:/usr/local/bin\ncd /tmp\ntrap 'echo \"FAILED $? $BASH_COMMAND\"' ERR\n"
    machine.write("/tmp/commands.sh", told + commands)
    ran = machine.run("bash", "/tmp/commands.sh", timeout_s=300)
    out = ran.out + ran.err
    return [line.removeprefix("FAILED ") for line in out.splitlines() if line.startswith("FAILED ")], out


def test_commands_for_operators_work(machine):
    commands = shell("docs/OPERATIONS.md") + shell("docs/SECURITY.md")
    wrong, out = failed(machine, commands)
    # There is no broker, as both say; and no row is dead.
    assert {line.split(" -c")[0] for line in wrong} <= {"1 edge-ocr status", "1 edge-ocr check"}, out
    assert "broker.example" in out
    assert Path(f"/proc/{machine.init}/root/var/lib/edge-ocr/ticket.tar.gz").exists()


def test_uninstalling_stops_the_services(machine):
    assert machine.run("python3", INSTALL, "--uninstall", timeout_s=300).status == 0
    assert machine.run("systemctl", "list-units", "--all", "--no-legend", "edge-ocr*").out.strip() == ""
    assert machine.run("pgrep", "-f", "/opt/edge-ocr").out == ""


def test_commands_of_installing_work(machine, first):
    """Last: they begin with the package, and end with its removal."""
    shutil.copyfile(first, f"/proc/{machine.init}/root/tmp/edge-ocr.run")
    for user in ("teller", "frontend"):
        assert machine.run("useradd", user).status == 0
    wrong, out = failed(machine, shell("docs/INSTALL.md", "box") + "".join(inline("docs/INSTALL.md", "systemctl ")))
    assert set(wrong) <= {"1 edge-ocr status", "1 edge-ocr check"}, out
    assert re.search(r"pending .* scans +10 ", out), out  # the row
    assert "edge-ocr-upload" in machine.run("id", "frontend").out
