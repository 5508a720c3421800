"""Where builds of the binding are, and which one is used.

A build is a directory with the binding, a record of what it was built from and, unless that is a Python package's, the
library. `EDGE_OCR_LITE` names the one to use, or is "off"; else it is the one that was last built or checked here; else
the one that came with the installation.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import msgspec

from agent.errors import EngineError

VARIABLE = "EDGE_OCR_LITE"
BINDING = "binding.so"
RECORD = "build.json"
INSTALLED = "share/edge-ocr/lite"
"""Below the environment's own folder: the build of a package (`edge-ocr pack`), which may not be written."""
MAX_RECORD_BYTES = 1 << 16


class Build(msgspec.Struct, frozen=True):
    """What a binding was built from, and whether it has worked.

    Attributes:
        interface: number of its C interface.
        machine: it runs on, as `platform.machine()` names it.
        library: file name beside it, or absolute path.
        library_bytes: its length.
        library_mtime_ns: its time, where it is not beside; 0 where it is.
        compiler: its first line about itself.
        headers: whether the release's own were taken.
        version: what the library has called itself when it was tried; "" before.
        accepted: versions that the user answers for.
    """

    interface: int
    machine: str
    library: str
    library_bytes: int
    library_mtime_ns: int
    compiler: str
    headers: bool = False
    version: str = ""
    accepted: tuple[str, ...] = ()


def cache() -> Path:
    """Return the directory of what the agent can make again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "edge-ocr"


def home() -> Path:
    """Return the cache's directory of builds."""
    return cache() / "lite"


def _active() -> Path:
    return home() / f"active-{platform.machine()}"


def chosen() -> Path | None:
    """Return the directory of the build to use; None where there is none or it is off."""
    said = os.environ.get(VARIABLE, "")
    if said:
        return None if said == "off" else Path(said)
    active, own = _active(), installed()
    if active.is_absolute() and active.exists():
        return active
    return own if os.path.lexists(own / RECORD) else None


def installed() -> Path:
    """Return where a build is that came with the installation, if one did."""
    return Path(sys.prefix) / INSTALLED


def is_installed(folder: Path) -> bool:
    """Say whether a build came with the installation."""
    return folder.resolve() == installed().resolve()


def remedy(folder: Path) -> str:
    """Return what helps against a build that is damaged, or another version's."""
    return "install the package again" if is_installed(folder) else "run `edge-ocr lite build` again"


def choose(folder: Path) -> None:
    """Make a build the one that is used; the installation's own is, where no other was made so.

    Raises:
        EngineError: the cache cannot be written.
    """
    active = _active()
    new = active.with_name(f".{active.name}-{os.getpid()}")
    try:
        if is_installed(folder):  # a link to it would outlive an upgrade
            active.unlink(missing_ok=True)
            return
        active.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        new.symlink_to(folder.resolve())
        new.replace(active)
    except OSError as error:
        raise EngineError(f"{active}: {error.strerror}; set {VARIABLE}={folder} instead") from error


def stamp(folder: Path | None) -> str:
    """Return what changes when a build does; that of none is "none"."""
    try:
        # Not the time of its content: that is the same in all packages. This one is of its arrival here.
        return f"{folder.resolve()} {(folder / RECORD).stat().st_ctime_ns}" if folder else "none"
    except OSError:
        return "none"


def mark(what: str) -> Path:
    """Return the file that says that something has run on this machine."""
    return cache() / "tried" / hashlib.sha256(what.encode(errors="surrogateescape")).hexdigest()


def remember(mark: Path) -> None:
    """Note that something has run on this machine."""
    if not mark.is_absolute():  # no home directory: `~` would be made here
        return
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        # No place to remember (read-only root): the next start tries again, a second slower.
        return


def read_build(folder: Path) -> Build:
    """Return a build's record.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    try:
        with (folder / RECORD).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_RECORD_BYTES), type=Build)
    except OSError as error:
        raise EngineError(f"{folder}: no build of the binding: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise EngineError(f"{folder / RECORD}: damaged: {remedy(folder)}") from error


def write_build(folder: Path, build: Build) -> None:
    """Write a build's record."""
    new = folder / f".{RECORD}"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(build)) + b"\n")
    new.replace(folder / RECORD)
