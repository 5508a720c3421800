"""A bare arm64 Debian 12 in namespaces of its own, without network; what a test writes goes into a layer of its own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.command import run_watched

PYTHON = "3.11"
SCRIPT = Path(__file__).with_suffix(".sh")
TIMEOUT_S = 1500

BINFMT = Path("/proc/sys/fs/binfmt_misc")
EMULATOR = "qemu-aarch64-static"
ENTRY = "edge-ocr-aarch64"
# An ELF file of 64 bits, little end first, that is a program or a shared object (masked: 2 or 3) for AArch64 (0xb7).
MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
_SETTINGS = ("Forwarding", "DefaultTTL", "RtoAlgorithm", "RtoMin", "RtoMax", "MaxConn")
"""In the tables of /proc/net/snmp, and no traffic."""


class Told(NamedTuple):
    """What a command in a box did.

    Attributes:
        status: its exit status.
        out: what it printed.
        err: what it complained about.
        seconds: that it took.
        peak_mb: most that one of its processes had resident, the emulator's share included, MB of 2**20 bytes.
        network: what it did with the network: names of counters that are not 0, and of devices but lo.
    """

    status: int
    out: str
    err: str
    seconds: float
    peak_mb: float
    network: dict[str, int]


class Box:
    """One system: layers below, and what was written in it above.

    Attributes:
        given: what lies here the box sees below /mnt.
        upper: what was written in it; a test may write here too, while nothing runs.
    """

    def __init__(self, work: Path, layers: tuple[Path, ...]) -> None:
        """Make one that is as its layers are.

        Args:
            work: an empty folder.
            layers: the uppermost first.
        """
        self._work, self._layers = work, layers
        for name in ("upper", "work", "root", "given"):
            (work / name).mkdir(parents=True)
        self.given, self.upper = work / "given", work / "upper"

    def copy(self, work: Path) -> Box:
        """Return another box that begins as this one is now; this one must not be written any more."""
        return Box(work, (self.upper, *self._layers))

    def give(self, file: Path) -> str:
        """Lay a file where the box sees it; return its path there."""
        target = self.given / file.name
        if not target.exists():
            shutil.copy(file, target)
        return f"/mnt/{file.name}"

    def run(self, *command: str | Path, user: str = "root") -> Told:
        """Run a command in the box to its end."""
        layers = ":".join(map(str, self._layers))
        # Emulated programs that abort do not always end.
        limited = ("timeout", "-s", "KILL", str(TIMEOUT_S), "sh", SCRIPT, self._work, layers, self.given, user)
        began = time.monotonic()
        ran, peak_mb = run_watched((*limited, *command), dict(os.environ), self._work / "peak")
        seconds = time.monotonic() - began
        return Told(ran.status, ran.out, ran.err, seconds, peak_mb, _used(self._work))

    def path(self, inside: str) -> Path:
        """Return the uppermost layer's file of a path in the box; links are not followed."""
        layers = (self.upper, *self._layers)
        return next((place for layer in layers if os.path.lexists(place := layer / inside.lstrip("/"))), layers[0])


def _used(work: Path) -> dict[str, int]:
    """Return what was done with the network, by the kernel's own counts: `Ip:OutNoRoutes` is who tried in vain."""
    devices = {
        f"device {name}": sum(map(int, counts.split()))
        for name, _, counts in (line.strip().partition(":") for line in (work / "net-dev").read_text().splitlines()[2:])
    }
    strange = {name: 1 for name in devices if name != "device lo"}
    rows = [line.split() for line in (work / "net-snmp").read_text().splitlines()]
    counts = {
        f"{heads[0]}{name}": int(count)
        for heads, values in zip(rows[::2], rows[1::2], strict=True)
        for name, count in zip(heads[1:], values[1:], strict=True)
        if name not in _SETTINGS
    }
    newer = dict(line.split() for line in (work / "net-snmp6").read_text().splitlines())
    counts |= {name: int(count) for name, count in newer.items() if "Out" in name and "Types" not in name}
    return {name: count for name, count in {**devices, **counts, **strange}.items() if count}


def why_not() -> str:
    """Return why this machine can have no such box; "" where it can."""
    if os.geteuid() != 0:
        return "a root of its own needs root"
    for program, package in (("mmdebstrap", "mmdebstrap"), (EMULATOR, "qemu-user-static"), ("unshare", "util-linux")):
        if shutil.which(program) is None and not (program == EMULATOR and platform.machine() == "aarch64"):
            return f"{program} is not installed: apt-get install {package}"
    tried = subprocess.run(("unshare", "--mount", "--net", "--pid", "--fork", "true"), capture_output=True)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


@contextmanager
def emulation() -> Iterator[None]:
    """Have the kernel hand programs for AArch64 to the emulator, where it does not; end that again.

    Raises:
        OSError: the kernel has no such thing, or does not let it be set.
    """
    with ExitStack() as undo:
        if platform.machine() != "aarch64":
            if not (BINFMT / "register").exists():
                subprocess.run(("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT), check=True, capture_output=True)
                undo.callback(subprocess.run, ("umount", BINFMT), check=True)
            if not any(map(_serves, BINFMT.iterdir())):
                # F: the emulator is opened now, and so is there in every root.
                (BINFMT / "register").write_text(f":{ENTRY}:M::{MAGIC}:{MASK}:{shutil.which(EMULATOR)}:F")
                undo.callback((BINFMT / ENTRY).write_text, "-1")
        yield


def _serves(entry: Path) -> bool:
    """Say whether an entry of the kernel's table is one for AArch64 that works in every root."""
    if entry.name in ("register", "status"):
        return False
    lines = entry.read_text().splitlines()
    flags = next((line.split()[-1] for line in lines if line.startswith("flags:")), "")
    return lines[0] == "enabled" and "F" in flags and any(line.endswith("0200b700") for line in lines)
