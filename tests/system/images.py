"""The image of docker/aarch64: what it is built from, how it is run, and what it takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from agent import __version__
from tests.command import ROOT
from tests.conftest import built
from tests.system.engine import Engine
from tests.test_container import AGENT, of

IMAGE = f"edge-ocr:{__version__}"
BUNDLE = "models/build/ppocr-v4-portable-fp32"
MAX_MB = 450
CLOSED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")


def base() -> str:
    """Return the name of the image that it begins with."""
    return of(AGENT, "ARG")[0].removeprefix("BASE=")


def checkout(home: Path) -> Path:
    """Return a copy of what a build is given: what git has, and a bundle."""
    names = subprocess.run(("git", "ls-files", "-z"), cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in names.rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, home / name)
    shutil.copytree(built(Path(BUNDLE).name), home / BUNDLE)
    return home


_SIZES = """
import os
parts = ("/opt/edge-ocr/current/bundle", "/opt/edge-ocr/current/venv", "/usr/lib/python3", "/")
seen, sizes = set(), dict.fromkeys(parts, 0)
for folder, folders, names in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/proc", "/sys", "/dev", "/run")]
    part = next(part for part in parts if folder.startswith(part))
    for found in (os.lstat(os.path.join(folder, name)) for name in (*names, ".")):
        if found.st_ino not in seen:
            seen.add(found.st_ino)
            sizes[part] += found.st_blocks * 512
print("".join(f"{size / 1e6:.1f} {part}\\n" for part, size in sizes.items()), end="")
"""


def installed_mb(docker: Engine, image: str) -> dict[str, float]:
    """Return what an image takes on the disk, MB, by its parts."""
    able = ("--user=0", "--cap-add=DAC_READ_SEARCH")
    ran = docker.podman("run", "--rm", *CLOSED, *able, "--entrypoint=python3", image, "-c", _SIZES)
    assert ran.status == 0, ran.err
    return {part: float(size) for size, part in (line.split() for line in ran.out.splitlines())}
