"""A container engine for tests: podman, with storage, namespaces and settings of its own, gone when it is closed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.command import Ran
from tests.system.branch import until

SCRIPT = Path(__file__).with_suffix(".sh")
SETTINGS = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_backend = "netavark"
network_config_dir = "{home}/networks"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "/run/containers/storage"
"""
TIMEOUT_S = 1800
"""Of a build that is emulated."""
TRUST = ("/usr/local/share/ca-certificates", "/etc/pip.conf")
"""What this machine's own clients trust and ask, for the steps of a build."""
TRUSTS = "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
"""uv, unlike the others, looks there only when it is told to."""


def why_not() -> str:
    """Return why this machine can have none; "" when it can."""
    if os.geteuid() != 0:
        return "a container engine of the tests' own needs root"
    if shutil.which("podman") is None:
        return "podman is not installed: apt-get install podman"
    tried = subprocess.run(("unshare", "--mount", "--net", "--pid", "--fork", "true"), capture_output=True)
    return "" if tried.returncode == 0 else f"no namespaces here: {tried.stderr.decode().strip()}"


class Engine:
    """Builds images and runs containers until it is closed."""

    def __init__(self, home: Path) -> None:
        """Start it.

        Args:
            home: an empty folder.
        """
        self._home = home
        (home / "networks").mkdir()
        (home / "containers.conf").write_text(SETTINGS.format(home=home))
        (home / "storage.conf").write_text(STORAGE.format(home=home))
        ready = home / "ready"
        self._holder = subprocess.Popen(("sh", SCRIPT, ready), stdin=subprocess.DEVNULL)
        if until(ready.exists, 10) == float("inf"):
            self.close()
            raise AssertionError("no namespaces for the engine")
        self._inside = int(ready.read_text())

    def run(self, *command: str | Path, online: bool = False, timeout_s: float = 120) -> Ran:
        """Run a program where the engine is; `podman` there is this engine.

        Args:
            command: the program and its arguments.
            online: it has this machine's network, and not one that leads nowhere.
            timeout_s: it is killed after so long.
        """
        settings = {
            "CONTAINERS_CONF": str(self._home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self._home / "storage.conf"),
            "TMPDIR": str(self._home),
        }
        done = subprocess.run(
            ("nsenter", "-t", str(self._inside), "-m", *([] if online else ["-n"]), *command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **settings},
            timeout=timeout_s,
        )
        return Ran(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def podman(self, *arguments: str | Path) -> Ran:
        """Run podman."""
        return self.run("podman", *arguments)

    def take(self, archive: Path, tag: str, architecture: str = "amd64") -> None:
        """Make an image of an archive of files."""
        ran = self.podman("import", "--change", TRUSTS, "--os=linux", f"--arch={architecture}", archive, tag)
        assert ran.status == 0, ran.err

    def build(self, dockerfile: Path, context: Path, tag: str, *more: str) -> Ran:
        """Build an image by a Dockerfile, from images that are there; its steps have the network.

        Args:
            dockerfile: how.
            context: what it copies from.
            tag: the image's name.
            more: options of `podman build`.
        """
        trusted = [f"--volume={path}:{path}:ro" for path in TRUST if os.path.exists(path)]
        return self.run(
            *("podman", "build", "--network=host", "--pull=never", "--layers=false", "--format=docker", *trusted),
            *(*more, "-f", dockerfile, "-t", tag, context),
            online=True,
            timeout_s=TIMEOUT_S,
        )

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what the engine knows of an image or a container."""
        ran = self.podman("inspect", name)
        assert ran.status == 0, ran.err
        found: dict[str, Any] = json.loads(ran.out)[0]
        return found

    def inspect_volume(self, name: str) -> str:
        """Return the folder of a volume."""
        return self.podman("volume", "inspect", "--format", "{{.Mountpoint}}", name).out.strip()

    def close(self) -> None:
        """End it, and all containers."""
        if hasattr(self, "_inside"):
            self.podman("rm", "--all", "--force", "--time=0")
            self.podman("network", "prune", "--force")
        self._holder.kill()
        self._holder.wait()
        until(self._no_groups, 10)

    def _no_groups(self) -> bool:
        """Remove what podman leaves of control groups, as soon as their last processes are gone."""
        left = [group for home in Path("/sys/fs/cgroup").glob("*/libpod_parent") for group in home.glob("**/")]
        for group in sorted(left, reverse=True):
            with contextlib.suppress(OSError):
                group.rmdir()
        return not left
