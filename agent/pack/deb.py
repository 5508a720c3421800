"""A release as a Debian package. dpkg lays its files down; the installer in it does the rest."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from email.utils import formatdate
from pathlib import Path

from agent.errors import PackageError
from agent.install.package import Package
from agent.install.places import NAME, RELEASES

SCRIPTS = Path(__file__).with_name("debian")
ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}
TIMEOUT_S = 1800
_MAINTAINER = "Edge OCR maintainers <maintainers@localhost>"
_CONTROL = """Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kilobytes}
Depends: python{python}, libc6 (>= 2.35), libstdc++6, libgcc-s1, zlib1g, passwd
Recommends: systemd
Suggests: sane-utils
Section: graphics
Priority: optional
Description: reads pages on small machines, text out
 Takes pages from folders, scanners, cameras and over HTTP, reads them
 without a network and within a memory limit, and sends the text over MQTT.
 .
 This package is for Python {python}, with {engine},
 and models {bundle}.
"""


def write(tree: Path, package: Package, folder: Path, work: Path, *, level: int) -> Path:
    """Write a Debian package into a folder and return its path.

    Args:
        tree: the release.
        package: its manifest.
        folder: where the package goes.
        work: a folder for what is needed meanwhile, on the release's file system.
        level: of the compression, 0 (fast) to 9 (small).

    Raises:
        PackageError: dpkg-deb fails.
    """
    root = work / "deb"
    _lay_out(tree, root, package)
    architecture = ARCHITECTURES[package.target]
    _control(root / "DEBIAN", package, architecture)
    _age(root, package.epoch)
    output = folder / f"{NAME}_{package.version}_{architecture}.deb"
    fresh = output.with_name(f".{output.name}.new")
    command = ("dpkg-deb", "--root-owner-group", "-Zxz", f"-z{level}", "--threads-max=1", "--build", root, fresh)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(package.epoch)}
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=TIMEOUT_S)
    if ran.returncode:
        fresh.unlink(missing_ok=True)
        raise PackageError(f"dpkg-deb: {ran.stderr.decode(errors='replace').strip()}")
    fresh.replace(output)
    return output


def _lay_out(tree: Path, root: Path, package: Package) -> None:
    place = root / str(RELEASES).lstrip("/") / package.version
    shutil.copytree(tree, place, symlinks=True, copy_function=os.link)
    for name, entry in package.files.items():
        (place / name).chmod(0o755 if entry.executable else 0o644)
    documents = root / "usr/share/doc" / NAME
    documents.mkdir(parents=True)
    (documents / "copyright").write_text(_COPYRIGHT)
    changes = _CHANGES.format(
        name=NAME, version=package.version, maintainer=_MAINTAINER, date=formatdate(package.epoch)
    )
    (documents / "changelog.gz").write_bytes(gzip.compress(changes.encode(), mtime=package.epoch))
    overrides = root / "usr/share/lintian/overrides" / NAME
    overrides.parent.mkdir(parents=True)
    overrides.write_text("".join(f"{NAME}: {tag}\n" for tag in _BY_DESIGN))


_CHANGES = """{name} ({version}) unstable; urgency=medium

  * What is new: /opt/edge-ocr/current/README.md and the project's CHANGELOG.

 -- {maintainer}  {date}
"""
_BY_DESIGN = (
    *("dir-or-file-in-opt", "unusual-interpreter", "command-with-path-in-maintainer-script"),  # a release is below /opt
    *("embedded-library", "unstripped-binary-or-object", "shared-library-lacks-prerequisites"),  # wheels, as they come
    *("library-not-linked-against-libc", "national-encoding", "script-not-executable"),  # likewise
    *("bogus-mail-host", "bogus-mail-host-in-debian-changelog"),
)
"""What lintian warns of and is meant so."""
_COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: edge-ocr-agent

Files: *
Copyright: 2026 Edge OCR maintainers
License: Apache-2.0
 On Debian systems the full text of the Apache License, version 2.0, is in
 /usr/share/common-licenses/Apache-2.0. The Python packages below
 site-packages have their licences in their own *.dist-info folders.
"""


def _control(folder: Path, package: Package, architecture: str) -> None:
    folder.mkdir()
    values = {
        "name": NAME,
        "maintainer": _MAINTAINER,
        "version": package.version,
        "architecture": architecture,
        "python": package.python,
    }
    more = {"kilobytes": package.bytes // 1024, "engine": package.engine, "bundle": package.bundle}
    (folder / "control").write_text(_CONTROL.format(**values, **more))
    for script in sorted(SCRIPTS.iterdir()):
        text = script.read_text(encoding="utf-8").replace("@VERSION@", package.version)
        (folder / script.name).write_text(text.replace("@PYTHON@", package.python))
        (folder / script.name).chmod(0o755)


def _age(root: Path, epoch: int) -> None:
    """Give all files and folders one time and folders usual rights, so that the same release gives the same bytes."""
    for folder, _, files in os.walk(root):
        os.chmod(folder, 0o755)
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.utime(path, (epoch, epoch), follow_symlinks=False)
