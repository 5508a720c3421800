"""A box that is stopped anywhere while it takes its settings has the old or the new; sticks as kernels see them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config import AgentConfig, load
from tests.broker import Authority
from tests.command import EDGE_OCR, ROOT, run
from tests.provision_kit import PLAIN, WHOLE, Certificates, Place, certificates, place
from tests.system import machine
from tests.system.branch import until
from tests.system.machine import Machine

EVERY = int(os.environ.get("EVERY", "10"))
"""Each so manieth place is tried; EVERY=1 tries all."""
STRACE = shutil.which("strace")
CALLS = {
    "write": ("signal=SIGKILL", "error=ENOSPC"),
    "fsync": ("signal=SIGKILL", "error=EIO"),
    "rename,renameat,renameat2": ("signal=SIGKILL", "error=EIO"),
    "unlink,unlinkat,link,linkat,mkdir": ("signal=SIGKILL", "error=EROFS"),
}
MOUNTED = "36 24 8:1 / /media/stick rw - vfat /dev/sda1 rw\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("made"))


# ------------------------------------------------------------------------------------------------ cut anywhere


def prepare(home: Path, made: Certificates) -> Place:
    home.mkdir()
    here = place(home)
    here.put_all(WHOLE, made)
    (home / "root/media").mkdir(parents=True)
    (home / "root/media/stick").symlink_to(here.stick)
    (home / "root/proc/self").mkdir(parents=True)
    (home / "root/proc/self/mountinfo").write_text(MOUNTED)
    return here


def take(home: Path, calls: str = "", injection: str = "") -> subprocess.CompletedProcess[str]:
    """Run it, with a fault where one is named."""
    watch = (str(STRACE), "-o", str(home / "trace"), "-e", f"trace={calls}", *(("-e", injection) if injection else ()))
    program = (sys.executable, "-m", "tests.system.one_provision", str(home))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        (*(watch if calls else ()), *program), cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def count(home: Path, calls: str, made: Certificates) -> int:
    """Return how many such calls it makes undisturbed."""
    prepare(home, made)
    ended = take(home, calls)
    assert ended.returncode == 0, ended.stderr
    return sum("(" in line for line in (home / "trace").read_text().splitlines())


def is_whole(here: Place, made: Certificates) -> bool:
    """Tell whether the box has all that is new; without a change that waits it has that or nothing of it."""
    kept = here.changed()
    parts = (
        load(here.box.config, AgentConfig, check_files=False).device == "branch-0042",
        kept.get("etc/keys/key.pem") == made.key.encode(),
        kept.get("etc/keys/cert.pem") == made.certificate.encode(),
        b"key.pem" in kept.get("units/edge-ocr-uplink.service.d/20-keys.conf", b""),
        "etc/provision.json" in kept,
    )
    assert here.box.pending.exists() or all(parts) or not any(parts), parts
    return all(parts)


@pytest.mark.timeout(600)
@pytest.mark.system
@pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt-get install strace")
@pytest.mark.parametrize(("calls", "how"), [(calls, how) for calls, ways in CALLS.items() for how in ways])
def test_box_that_is_cut_anywhere_has_the_old_or_the_new_and_ends_with_the_new(calls, how, tmp_path, made):
    total = count(tmp_path / "whole", calls, made)
    assert total > 2
    for n in range(1, total + 1, EVERY):
        home = tmp_path / f"{n}"
        here = prepare(home, made)
        before = here.box.config.read_bytes()
        cut = take(home, calls, f"inject={calls}:{how}:when={n}")
        where = f"call {n} of {total}: {cut.stderr}"
        if "error" in how:
            assert cut.returncode in (0, 75), where
        is_whole(here, made)
        again = take(home)
        assert again.returncode == 0, where + again.stderr
        assert is_whole(here, made), where
        assert not [name for name in here.changed() if name.endswith(".new") or "pending" in name], where
        assert next(here.box.home.glob("agent.toml.before-*")).read_bytes() == before, where
        if "SIGKILL" in how:
            assert not {"box.key", "edge-ocr.toml"} & set(here.on_it()), where
            assert "edge-ocr.applied.txt" in here.on_it(), where


# ------------------------------------------------------------------------------------------------ a real stick


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A stick's partition, made of a file: FAT where this kernel knows it, else ext4."""
    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    fat = "vfat" in Path("/proc/filesystems").read_text() and shutil.which("mkfs.vfat")
    image = tmp_path / "stick.img"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(("mkfs.vfat", image) if fat else ("mkfs.ext4", "-q", image), check=True, capture_output=True)
    made = subprocess.run(("losetup", "--show", "-f", image), capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(("losetup", "-d", made.stdout.strip()), check=True)


def fill(device: str, folder: Path, place: Place) -> None:
    """Put onto the stick what is in the folder of one."""
    folder.mkdir()
    subprocess.run(("mount", device, folder), check=True)
    for path in place.stick.iterdir():
        shutil.copyfile(path, folder / path.name)  # FAT takes no rights
    subprocess.run(("umount", folder), check=True)


@pytest.mark.system
def test_partition_is_read_and_left_as_it_was(tmp_path, device, made):
    here = place(tmp_path)
    here.put_all(WHOLE, made)
    fill(device, tmp_path / "mnt", here)
    before = (tmp_path / "stick.img").read_bytes()
    done = run((*EDGE_OCR, "provision", "--from", device, "-c", here.box.config, "--units", here.box.units))
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"branch-0042: applied {device}: edge-ocr.toml")
    assert is_whole(here, made)
    assert (tmp_path / "stick.img").read_bytes() == before
    assert device not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.system
def test_partition_without_a_file_system_is_said(tmp_path, device):
    here = place(tmp_path)
    subprocess.run(("wipefs", "-qa", device), check=True)
    done = run((*EDGE_OCR, "provision", "--from", device, "-c", here.box.config, "--units", here.box.units))
    assert (done.status, done.out) == (66, "")
    assert "no file system that is known here (none)" in done.err


@pytest.mark.system
def test_stick_that_nobody_mounted_is_tidied_up(tmp_path, device, made):
    """The program looks at what can be taken out, which a loop device cannot: the root that it is given says so."""
    here = place(tmp_path)
    here.put_all(WHOLE, made)
    fill(device, tmp_path / "mnt", here)
    root = tmp_path / "root"
    home = root / "sys/devices/usb1/block" / Path(device).name
    home.mkdir(parents=True)
    for name, line in {"size": "1", "dev": "8:1", "removable": "1"}.items():
        (home / name).write_text(line)
    (root / "sys/class/block").mkdir(parents=True)
    (root / "sys/class/block" / home.name).symlink_to(home)
    (root / "dev").mkdir()
    (root / "dev" / home.name).touch()
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").touch()
    done = take(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert is_whole(here, made)
    subprocess.run(("mount", "-o", "ro", device, tmp_path / "mnt"), check=True)
    try:
        left = {path.name for path in (tmp_path / "mnt").iterdir()} - {"lost+found"}
        told = (tmp_path / "mnt/edge-ocr.applied.txt").read_text()
    finally:
        subprocess.run(("umount", tmp_path / "mnt"), check=True)
    assert left == {"box.pem", "ca.pem", "edge-ocr.applied.txt", "edge-ocr.toml.applied-branch-0042"}
    assert "applied to branch-0042" in told


# ------------------------------------------------------------------------------------------------ the whole box

TARGET, UPLINK, WORKER, PROVISION = (
    f"edge-ocr{name}" for name in (".target", "-uplink.service", "-worker.service", "-provision.service")
)
BROKER = """
listener 8883 127.0.0.1
user root
allow_anonymous true
certfile /etc/broker/localhost.pem
keyfile /etc/broker/localhost.key
cafile /etc/broker/ca.pem
require_certificate true
use_identity_as_username true
"""
FOR_MACHINE = """
device = "branch-0042"
[[source]]
type = "folder"
name = "inbox"
path = "/srv/scans"
[[source]]
type = "upload"
name = "upload"
listen = "systemd"
[mqtt]
host = "localhost"
[provision]
ca = "ca.pem"
certificate = "box.pem"
key = "box.key"
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Machine]:
    """One with a broker, and with files on its boot partition, after its first start."""
    if reason := machine.why_not():
        pytest.skip(reason)
    authority = Authority(tmp_path_factory.mktemp("authority"))
    files = {"localhost": authority.issue("localhost"), "box": authority.issue("branch-0042", "client")}
    box = Machine(tmp_path_factory.mktemp("machine"), bundle_path)
    try:
        for name, home in (("localhost", "/etc/broker"), ("box", "/boot")):
            box.write(f"{home}/ca.pem", authority.file.read_text())
            for path, ending in zip(files[name], ("pem", "key"), strict=True):
                box.write(f"{home}/{name}.{ending}", path.read_text())
        box.write("/etc/broker/mosquitto.conf", BROKER)
        box.write("/etc/edge-ocr/agent.toml", (ROOT / "systemd/agent.toml").read_text())
        box.write("/boot/edge-ocr.toml", FOR_MACHINE)
        box.run("mkdir", "-p", "/srv/scans")
        box.run("chown", "edge-ocr", "/srv/scans")
        box.run("systemd-run", "--unit=broker", "mosquitto", "-c", "/etc/broker/mosquitto.conf")
        # Not the uplink: on a box whose first settings named no broker provisioning does that.
        assert box.run("systemctl", "enable", TARGET, WORKER, PROVISION).status == 0
        box.run("systemctl", "start", "--no-block", TARGET)
        waited = until(lambda: all(box.show(unit, "ActiveState") == "active" for unit in (WORKER, UPLINK)), 90)
        assert waited < 90, box.journal("edge-ocr*")
        yield box
    finally:
        box.close()


def connection(box: Machine) -> str:
    said = box.run("cat", "/var/lib/edge-ocr/uplink.json").out
    return str(json.loads(said).get("connection")) if said else ""


@pytest.mark.system
def test_box_starts_with_what_is_on_its_boot_partition(started):
    box = started
    assert until(lambda: connection(box) == "no collector", 60) < 60, box.journal("edge-ocr*") + box.journal("broker")
    assert "branch-0042: applied /boot: edge-ocr.toml" in box.journal(PROVISION)
    assert box.show(PROVISION, "Result") == "success"
    assert box.show("edge-ocr.socket", "ActiveState") == "active"
    assert box.run("ls", "/srv/scans").status == 0
    assert "as 'branch-0042'" in box.journal("broker") or "u'branch-0042'" in box.journal("broker")
    assert "/srv/scans" in box.show(WORKER, "ReadWritePaths")
    assert box.run("ls", "/boot").out.split() == ["box.pem", "ca.pem", "edge-ocr.applied.txt", APPLIED]


APPLIED = "edge-ocr.toml.applied-branch-0042"


@pytest.mark.system
def test_box_that_has_its_settings_starts_no_program_for_it(started):
    box = started
    box.write("/boot/edge-ocr.toml", PLAIN.replace("0042", "0666"))
    box.run("systemctl", "restart", PROVISION)
    assert box.show(PROVISION, "ConditionResult") == "no"
    assert device_of(box) == "branch-0042"


@pytest.mark.system
def test_administrator_changes_the_settings_of_a_box_that_runs(started):
    box = started
    number = box.show(WORKER, "MainPID")
    box.write("/tmp/new/edge-ocr.toml", FOR_MACHINE.partition("[mqtt]")[0].replace("0042", "0043"))
    program = ("env", "LD_LIBRARY_PATH=/opt/edge-ocr/python/lib", "/opt/edge-ocr/current/venv/bin/edge-ocr")
    done = box.run(*program, "provision", "--from", "/tmp/new")
    assert (done.status, done.err) == (0, "")
    assert device_of(box) == "branch-0043"
    assert until(lambda: box.show(WORKER, "MainPID") not in ("0", number), 60) < 60
    assert until(lambda: box.show(WORKER, "ActiveState") == "active", 60) < 60, box.journal(WORKER)


@pytest.mark.system
def test_unit_takes_what_is_on_a_mounted_stick_and_writes_to_it(started, tmp_path, device, made):
    box = started
    given(box, tmp_path, device, made)
    box.run("mkdir", "-p", "/media/stick")
    mounted = box.run("mount", device, "/media/stick")
    assert mounted.status == 0, mounted.err
    try:
        box.run("rm", "-f", "/boot/edge-ocr.toml")
        assert box.run("systemctl", "restart", PROVISION).status == 0, box.journal(PROVISION)
        left = set(box.run("ls", "/media/stick").out.split()) - {"lost+found"}
    finally:
        box.run("umount", "/media/stick")
    assert device_of(box) == "branch-0042"
    assert left == {"box.pem", "ca.pem", "edge-ocr.applied.txt", APPLIED}


@pytest.mark.system
def test_unit_can_mount_a_stick_for_itself_alone(started, tmp_path, device, made):
    """By its name: this machine's sysfs has no stick, and loop devices cannot be taken out."""
    box = started
    given(box, tmp_path, device, made)
    start = f"/opt/edge-ocr/current/venv/bin/edge-ocr provision --from {device}"
    box.write(f"/run/systemd/system/{PROVISION}.d/device.conf", f"[Service]\nExecStart=\nExecStart={start}\n")
    box.run("systemctl", "daemon-reload")
    assert box.run("systemctl", "restart", PROVISION).status == 0, box.journal(PROVISION)
    assert device_of(box) == "branch-0042"
    assert device not in box.run("cat", "/proc/mounts").out


def given(box: Machine, home: Path, device: str, made: Certificates) -> None:
    """Make the machine one that was given to nobody, and a stick for it in a device that it has."""
    here = place(home)
    here.put_all(WHOLE, made)
    fill(device, home / "mnt", here)
    number = os.stat(device).st_rdev
    box.run("mknod", device, "b", str(os.major(number)), str(os.minor(number)))
    box.run("rm", "/etc/edge-ocr/provision.json")
    box.write("/etc/edge-ocr/agent.toml", (ROOT / "systemd/agent.toml").read_text())
    assert device_of(box) == "box-1"


def device_of(box: Machine) -> str:
    return box.run("sed", "-n", 's/^device = "\\([^"]*\\)".*/\\1/p', "/etc/edge-ocr/agent.toml").out.strip()
