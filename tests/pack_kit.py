"""What the tests of packages share: one release, put together once, and others made of it by changing files."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from agent.bundle import sha256_of
from agent.install.package import MANIFEST, FileEntry, Package, encode
from agent.pack import archive, deb, plan, tree

SAMPLE = ("EDGE OCR", "a page", "of four", "lines")
STUB = Path(__file__).with_name("stub_agent.py")
BROKEN_CODE = "raise SystemExit('this release is broken')\n"


class Release(NamedTuple):
    """A release's files and their manifest."""

    folder: Path
    package: Package

    @property
    def site(self) -> str:
        """Its Python packages, below its folder."""
        return f"venv/lib/python{self.package.python}/site-packages"

    def run_file(self, folder: Path) -> Path:
        """Write it as a package that installs itself."""
        output = folder / f"edge-ocr-{self.package.version}.run"
        archive.write_run(self.folder, self.package, output, lambda share: None, level=0)
        return output

    def deb_file(self, folder: Path) -> Path:
        """Write it as a Debian package."""
        work = folder / f"deb-{self.package.version}"
        work.mkdir()
        return deb.write(self.folder, self.package, folder, work, level=0)


def build(folder: Path, target: str, python: str, bundle: Path) -> Release:
    """Put a release together as `edge-ocr pack` does."""
    (folder / "tree").mkdir(parents=True)
    made = tree.build(plan.make(plan.Order(target, python, bundle)), folder / "tree", folder)
    return Release(folder / "tree", made)


def small(folder: Path, target: str = "", python: str = "3.11") -> Release:
    """Return a release with nothing in it but the installer and a few files; it can be unpacked, and not run."""
    site = folder / f"venv/lib/python{python}/site-packages"
    shutil.copytree(tree.CHECKOUT / "agent/install", site / "agent/install", ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("agent/durable.py", "agent/errors.py"):
        shutil.copyfile(tree.CHECKOUT / name, site / name)
    (site / "agent/__init__.py").write_text('__version__ = "1.0.0"\n')
    shutil.copyfile(tree.CHECKOUT / "agent/pack/entry.py", folder / "install.py")
    (folder / "venv/bin").mkdir()
    (folder / "venv/bin/python").symlink_to(f"/usr/bin/python{python}")
    (folder / "zzz.bin").write_bytes(os.urandom(100_000))
    machine = target or os.uname().machine
    about = ("1.0.0", machine, python, "no engine", "no models", tree.EPOCH, tuple(SAMPLE))
    return _described(folder, Package(*about, {}, {}))


def light(folder: Path) -> Release:
    """Return a release whose agent is a stub that tells what it was called for: everything else is real."""
    release = small(folder)
    (folder / "venv/pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (folder / "venv/bin/edge-ocr").write_text(tree.LAUNCHER)
    shutil.copytree(tree.CHECKOUT / "systemd", folder / "systemd")
    shutil.copyfile(folder / "systemd/agent.toml", folder / "agent.toml")
    (folder / "sample.png").write_text("\n".join(SAMPLE))
    (folder / release.site / "agent/__main__.py").write_text(STUB.read_text())
    return _described(folder, release.package)


def changed(release: Release, folder: Path, version: str, changes: Mapping[str, str | bytes | None]) -> Release:
    """Return a release like another: of another version, with some files changed or, by None, taken away."""
    subprocess.run(("cp", "-al", release.folder, folder), check=True)
    for name, content in {f"{release.site}/agent/__init__.py": f'__version__ = "{version}"\n', **changes}.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return _described(folder, release.package._replace(version=version))


def _described(folder: Path, package: Package) -> Release:
    (folder / MANIFEST).unlink(missing_ok=True)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    links = {name: os.readlink(path) for name, path in paths.items() if path.is_symlink()}
    files = {
        name: package.files[name]
        if _same(path, package.files.get(name))
        else FileEntry(sha256_of(path), path.stat().st_size, name.startswith("venv/bin/"))
        for name, path in paths.items()
        if path.is_file() and name not in links
    }
    found = package._replace(files=files, links=links)
    (folder / MANIFEST).write_bytes(encode(found))
    return Release(folder, found)


def _same(path: Path, entry: FileEntry | None) -> bool:
    """Tell whether a file needs no new look: one that is shared with the release that this one was made of."""
    return entry is not None and path.stat().st_nlink > 1
