"""A bare Debian 12 to install packages in: its own files, no network, no systemd that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.command import Ran
from tests.system.branch import until

SCRIPT = Path(__file__).with_suffix(".sh")


def why_not() -> str:
    """Return why this machine can have none; "" when it can."""
    if os.geteuid() != 0:
        return "a box of its own needs root"
    if shutil.which("mmdebstrap") is None:
        return "mmdebstrap is missing: apt-get install mmdebstrap"
    tried = subprocess.run(("unshare", "--mount", "--pid", "--fork", "--net", "true"), capture_output=True)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


@contextmanager
def unpacked(folder: Path, archive: Path) -> Iterator[Path]:
    """Give a system's files; in memory, as an installation waits for its disk, and others write to this machine's."""
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", folder), check=True)
    try:
        # The script brings devices.
        subprocess.run(("tar", "-xf", archive, "-C", folder, "--exclude=./dev/*"), check=True, stdin=subprocess.DEVNULL)
        yield folder
    finally:
        subprocess.run(("umount", "--lazy", folder), check=True)


class Root:
    """A box over files that stay as they are. Runs until it is closed."""

    def __init__(self, work: Path, files: Path, *, keep: bool = False, python: Path | None = None) -> None:
        """Start it.

        Args:
            work: an empty folder.
            files: a box's files.
            keep: whether what is written goes into them, and not into memory.
            python: folder of an interpreter that takes the place of its own.
        """
        work.mkdir()
        environment = {**os.environ, "keep": "yes" if keep else ""}
        command = ("sh", SCRIPT, work, files, *((python,) if python else ()))
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
        assert until(lambda: self.init and self.path("/run/ready").exists(), 30) < 30

    @property
    def init(self) -> int:
        """Its first process, by this machine's number."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def path(self, inside: str) -> Path:
        """Return one of its files, seen from here; links that lead from / on are not followed right."""
        return Path(f"/proc/{self.init}/root{inside}")

    def command(self, *command: str) -> tuple[str, ...]:
        """Return a command that runs a program in it, as root."""
        inside = ("nsenter", "-t", str(self.init), "-m", "-u", "-i", "-n", "-p", "-r", "-w")
        return (*inside, "env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *command)

    def run(self, *command: str) -> Ran:
        """Run a program in it, as root, to its end."""
        done = subprocess.run(self.command(*command), stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
        return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def put(self, file: Path) -> str:
        """Bring a file into it, and return where it is there."""
        shutil.copyfile(file, self.path("/root") / file.name)
        return f"/root/{file.name}"

    def files(self) -> set[str]:
        """Return all files in it by their names, without those that any program leaves."""
        listed = self.run("find", "/", "-xdev", "-not", "-type", "d", "-not", "-path", "/root/*").out.splitlines()
        passing = ("/var/log/", "/var/lib/dpkg/", "/var/cache/ldconfig/", "/etc/.pwd.lock", "/var/lib/systemd/")
        return {name for name in listed if not name.startswith(passing) and not name.endswith("-")}

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
