"""A machine with a systemd of its own, for the units: namespaces over this machine's files, which stay as they are."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from tests.command import ROOT, Ran
from tests.system.branch import until

SCRIPT = Path(__file__).with_suffix(".sh")


def why_not() -> str:
    """Return why this machine can have none within it; "" when it can."""
    if os.geteuid() != 0:
        return "a systemd of its own needs root"
    tried = subprocess.run(("unshare", "--mount", "--pid", "--fork", "--cgroup", "--net", "true"), capture_output=True)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


class Machine:
    """Runs until it is closed."""

    def __init__(self, work: Path, bundle: Path | None) -> None:
        """Start it.

        Args:
            work: an empty folder.
            bundle: where the models are; None for a machine without the agent.
        """
        self._groups = work / "groups"
        python = Path(os.path.realpath(sys.executable)).parent.parent
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        site = sysconfig.get_path("purelib")
        command = ("sh", SCRIPT, work, ROOT, bundle.resolve() if bundle else "none", python, site, version)
        self._log = (work.parent / "machine.log").open("wb")
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        took = until(lambda: self.run("systemctl", "is-active", "machine.target").out == "active\n", 30)
        if took == float("inf"):
            self.close()
            raise AssertionError(f"no systemd started: {Path(self._log.name).read_text(errors='replace')}")

    @property
    def init(self) -> int:
        """Its first process, by this machine's number."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def run(self, *command: str, timeout_s: float = 60) -> Ran:
        """Run a program in it, as root, to its end."""
        inside = ("nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
        done = subprocess.run(
            (*inside, *command), stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=timeout_s
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def write(self, path: str, text: str) -> None:
        """Write one of its files."""
        inside = Path(f"/proc/{self.init}/root{path}")
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.write_text(text)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).out.strip()

    def journal(self, unit: str) -> str:
        """Return what a unit's program and systemd have said about it."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).out

    def inside(self, unit: str, code: str) -> Ran:
        """Run Python where a unit's main process is: its user, its files, its network."""
        number = self.show(unit, "MainPID")
        user = self.run("id", "-u", "edge-ocr").out.strip()
        return self.run(
            *("nsenter", "-t", number, "-U", "-m", "-n", "-S", user, "-G", user, "--"),
            *("env", "LD_LIBRARY_PATH=/opt/edge-ocr/python/lib", "/opt/edge-ocr/current/venv/bin/python", "-c", code),
        )

    def close(self) -> None:
        """End it, and everything in it."""
        self._process.kill()  # its first process goes with it, and all others with that
        self._process.wait()
        self._log.close()
        for group in self._groups.read_text().split() if self._groups.exists() else ():
            for _ in range(100):
                folders = sorted((str(path) for path in Path(group).rglob("*") if path.is_dir()), reverse=True)
                try:
                    for folder in (*folders, group):
                        os.rmdir(folder)
                    break
                except OSError:  # the last processes are still ending
                    time.sleep(0.05)
