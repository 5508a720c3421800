"""Makes the files of a package from a plan."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from agent.bundle import sha256_of
from agent.errors import InputError, PackageError
from agent.pack import archive, deb, tree
from agent.pack.plan import Plan


class Wanted(msgspec.Struct, frozen=True):
    """Which files are to be made.

    Attributes:
        output: the package that installs itself.
        level: compression, 0 (fast) to 9 (small).
        deb: whether a Debian package is made beside it.
    """

    output: Path
    level: int = archive.LEVEL
    deb: bool = False


def make(plan: Plan, wanted: Wanted, tell: Callable[[str, float], None]) -> Iterator[str]:
    """Make a package and yield a line about each file.

    Raises:
        AgentError: it cannot be made.
    """
    if wanted.deb and shutil.which("dpkg-deb") is None:
        raise PackageError("dpkg-deb is missing: apt-get install dpkg")
    try:
        wanted.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pack-", dir=wanted.output.parent) as work:
            yield from _make(plan, wanted, tell, Path(work).resolve())
    except OSError as error:
        raise InputError(f"{error.filename or wanted.output}: {error.strerror}") from error


def _make(plan: Plan, wanted: Wanted, tell: Callable[[str, float], None], work: Path) -> Iterator[str]:
    folder = work / "tree"
    folder.mkdir()
    tell("collecting", 0.0)
    package = tree.build(plan, folder, work)
    tell("collecting", 1.0)
    yield package.about
    yield f"{len(package.files)} files, {package.bytes / 1e6:.1f} MB installed"
    archive.write_run(folder, package, wanted.output, lambda share: tell("compressing", share), level=wanted.level)
    yield _about(wanted.output)
    if wanted.deb:
        yield _about(deb.write(folder, package, wanted.output.parent, work, level=wanted.level))


def _about(path: Path) -> str:
    return f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(path)}"
