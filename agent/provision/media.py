"""Where a technician's files may be: the boot partition, media that are mounted, sticks that are not."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from agent.errors import InputError
from agent.provision import folder
from agent.provision.request import COMMON, box_files

BOOT = ("boot", "boot/firmware", "boot/efi")
MOUNTED = ("/media/", "/run/media/", "/mnt/")
MAX_DEVICES = 16
TIMEOUT_S = 20.0
_SAFE = "nosuid,nodev,noexec"
_KINDS = {
    "vfat": (("vfat", ""),),
    "exfat": (("exfat", ""),),
    "ntfs": (("ntfs3", ""), ("ntfs", "")),
    "ext2": (("ext2", ""), ("ext4", "")),
    "ext3": (("ext3", ",noload"), ("ext4", ",noload")),
    "ext4": (("ext4", ",noload"),),  # or reading would write to it, after an unclean end
}
"""By the word of `blkid`: the kernel's names, each tried in turn, and options."""
_CLONE_NEWNS = 0x00020000

Kind = Literal["boot", "stick", "given"]


class Medium(Struct, frozen=True):
    """A place that may hold files for this box.

    Attributes:
        path: its folder.
        kind: "boot" belongs to this box, a "stick" goes around, a "given" one is the administrator's own.
        label: how it is called in messages.
        device: that it was mounted from, "" where somebody else has mounted it.
    """

    path: Path
    kind: Kind
    label: str
    device: str = ""

    def asks(self) -> bool:
        """Tell whether there is anything for a box on it."""
        return folder.exists(self.path, COMMON) or bool(box_files(self.path))

    @contextlib.contextmanager
    def writable(self) -> Iterator[None]:
        """Let it be written to for a while, where it was mounted here."""
        if self.device:
            _run("mount", "-o", f"remount,rw,{_SAFE}", str(self.path))
        try:
            yield
        finally:
            if self.device:
                with contextlib.suppress(OSError):
                    _run("mount", "-o", f"remount,ro,{_SAFE}", str(self.path))


class _Mount(Struct, frozen=True):
    number: str
    point: str
    kind: str
    source: str


@contextlib.contextmanager
def found(root: Path = Path("/")) -> Iterator[list[Medium]]:
    """Give the media that hold something for a box; what was mounted for that is unmounted again."""
    with contextlib.ExitStack() as opened:
        mounts = _mounts(root)
        known = [Medium(root / name, "boot", f"/{name}") for name in BOOT]
        known += [Medium(root / mount.point[1:], "stick", mount.point) for mount in mounts if _is_medium(mount)]
        media = [medium for medium in known if medium.asks()]
        for device in removable(root, {mount.number for mount in mounts}):
            with contextlib.suppress(OSError):  # no file system that is known here
                medium = opened.enter_context(mounted(device, "stick"))
                media += [medium] if medium.asks() else []
        yield media


@contextlib.contextmanager
def mounted(device: str, kind: Kind) -> Iterator[Medium]:
    """Mount a partition, for reading and for this process only.

    Raises:
        OSError: it cannot be mounted.
    """
    _keep_mounts_to_oneself()
    place = Path(tempfile.mkdtemp(prefix="edge-ocr-provision-"))
    try:
        _mount(device, place)
        try:
            yield Medium(place, kind, device, device)
        finally:
            with contextlib.suppress(OSError):  # pulled out: what is mounted goes with this process
                _run("umount", str(place))
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()


def given(path: Path) -> contextlib.AbstractContextManager[Medium]:
    """Give the medium that a user has named: a folder, or a partition.

    Raises:
        InputError: it is neither.
    """
    if path.is_block_device():
        return _named(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder, and no partition")
    return contextlib.nullcontext(Medium(path, "given", str(path)))


@contextlib.contextmanager
def _named(path: Path) -> Iterator[Medium]:
    try:
        with mounted(str(path), "given") as medium:
            yield medium
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; as root, and with the name of a partition") from error


def _is_medium(mount: _Mount) -> bool:
    """Tell whether something is mounted where media are; shares in a network and users' own are none."""
    beside = mount.point == "/mnt" or mount.point.startswith(MOUNTED)
    return beside and mount.source.startswith("/dev/") and not mount.kind.startswith("fuse.")


def _mounts(root: Path) -> list[_Mount]:
    """Return what is mounted (proc(5), mountinfo)."""
    found = []
    for line in (root / "proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, behind = before.split(), after.split()
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        found.append(_Mount(fields[2], point, behind[0], behind[1]))
    return found


def removable(root: Path, taken: set[str]) -> list[str]:
    """Return the partitions of sticks and cards that nobody has mounted, by sysfs.

    Args:
        root: where the system's files are.
        taken: numbers of devices that are mounted, as "8:1".
    """
    found = []
    for entry in sorted((root / "sys/class/block").glob("*")):
        home = Path(os.path.realpath(entry))
        node = Path("/dev", entry.name.replace("!", "/"))
        if (
            _can_be_taken_out(home)
            and not list(home.glob("*/partition"))  # its partitions come by themselves
            and not list(home.glob("holders/*"))
            and _line(home / "size") not in ("", "0")  # a reader without a card
            and _line(home / "dev") not in taken
            and (root / node.relative_to("/")).exists()
        ):
            found.append(str(node))
    return found[:MAX_DEVICES]


def _can_be_taken_out(home: Path) -> bool:
    disk = home.parent if (home / "partition").exists() else home
    return "/virtual/" not in str(home) and (_line(disk / "removable") == "1" or "/usb" in str(home))


def _line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _keep_mounts_to_oneself() -> None:
    """Have what is mounted here be seen by this process only, and gone with it, whatever ends it.

    In its unit it is so already, and a further namespace is not allowed.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) == 0:
        _run("mount", "--make-rprivate", "/")


def _mount(device: str, place: Path) -> None:
    kind = _kind(device)
    failure = OSError(0, f"no file system that is known here ({kind or 'none'})")
    for name, options in _KINDS.get(kind, ()):
        try:
            _run("mount", "-i", "-t", name, "-o", f"ro,{_SAFE}{options}", device, str(place))
        except OSError as error:
            failure = error
        else:
            return
    raise failure


def _kind(device: str) -> str:
    """Return the file system of a partition, "" where there is none.

    Raises:
        OSError: that cannot be told.
    """
    asked = _ask("blkid", "-p", "-s", "TYPE", "-o", "value", device)
    if asked.returncode not in (0, 2):  # blkid(8): 2 is for nothing found
        raise _failure(asked)
    if not os.access(device, os.R_OK):  # which is 2 too
        raise OSError(0, "Permission denied")
    return asked.stdout.strip()


def _run(*command: str) -> None:
    """Run a program of the system.

    Raises:
        OSError: it is missing or fails; with what it says.
    """
    done = _ask(*command)
    if done.returncode:
        raise _failure(done)


def _failure(done: subprocess.CompletedProcess[str]) -> OSError:
    said = done.stderr.strip().splitlines()
    return OSError(0, said[0] if said else f"{Path(done.args[0]).name}: status {done.returncode}")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise OSError(0, f"{command[0]} is missing")
    try:
        return subprocess.run(
            (program, *command[1:]), stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, text=True
        )
    except subprocess.TimeoutExpired:
        raise OSError(0, f"{command[0]} takes too long") from None
