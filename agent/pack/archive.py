"""Writes a release as one archive, and that behind a shell script as a package that installs itself."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from agent.install.package import MANIFEST, Package

HEAD = Path(__file__).with_name("head.sh")
LEVEL = 9
_INSTALLER = ("agent/__init__.py", "agent/durable.py", "agent/errors.py", "agent/install/")
_WIDTH = 8  # digits of the head's length, which stands in the head


Tell = Callable[[float], None]


def write_run(tree: Path, package: Package, output: Path, tell: Tell, *, level: int = LEVEL) -> None:
    """Write a package that installs itself; the file takes its name when it is whole.

    Args:
        tree: the release.
        package: its manifest.
        output: the file.
        tell: is called with the share that is done, 0 to 1.
        level: of the compression, 0 (fast) to 9 (small).
    """
    fresh = output.with_name(f".{output.name}.new")
    payload = output.with_name(f".{output.name}.payload")
    try:
        with payload.open("w+b") as archive:
            sha256 = _write_payload(archive, tree, package, level, tell)
            with fresh.open("wb") as file:
                file.write(_head(package, archive.seek(0, io.SEEK_END), sha256))
                archive.seek(0)
                while piece := archive.read(1 << 20):
                    file.write(piece)
                os.fchmod(file.fileno(), 0o755)
        fresh.replace(output)
    finally:
        payload.unlink(missing_ok=True)
        fresh.unlink(missing_ok=True)


def _write_payload(archive: IO[bytes], tree: Path, package: Package, level: int, tell: Tell) -> str:
    """Write the compressed archive and return its sha256."""
    done = 0
    with (
        lzma.open(archive, "wb", preset=level) as content,
        tarfile.open(fileobj=content, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in order(package):
            _add(tar, tree, name, package)
            done += package.files[name].bytes if name in package.files else 0
            tell(done / package.bytes)
    archive.seek(0)
    digest = hashlib.sha256()
    while piece := archive.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def order(package: Package) -> list[str]:
    """Return the names in the archive: the manifest, the installer, and then the rest."""
    names = sorted([*package.files, *package.links])
    first = [name for name in names if _of_installer(name)]
    return [MANIFEST, "install.py", *first, *(name for name in names if name not in (*first, "install.py"))]


def _of_installer(name: str) -> bool:
    below = name.partition("/site-packages/")[2]
    return below in _INSTALLER or below.startswith(_INSTALLER[-1])


def _add(tar: tarfile.TarFile, tree: Path, name: str, package: Package) -> None:
    member = tarfile.TarInfo(name)
    member.mtime = package.epoch
    if name in package.links:
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, package.links[name], 0o777
        tar.addfile(member)
        return
    member.mode = 0o755 if name in package.files and package.files[name].executable else 0o644
    member.size = (tree / name).stat().st_size
    with (tree / name).open("rb") as file:
        tar.addfile(member, file)


def _head(package: Package, length: int, sha256: str) -> bytes:
    """Return the script before the archive."""
    names = order(package)
    last = next(name for name in names[2:] if not _of_installer(name))
    words = {
        "VERSION": package.version,
        "TARGET": package.target,
        "PYTHON": package.python,
        "ABOUT": package.about,
        "BYTES": str(length),
        "SHA256": sha256,
        "LAST": last,
        "OFFSET": "@" * _WIDTH,
    }
    text = HEAD.read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text.replace("@" * _WIDTH, str(len(text.encode())).ljust(_WIDTH)).encode()
