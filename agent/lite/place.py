"""Where builds of the binding are, and which one is used.

A build is a directory with the binding, a record of what it was built from and, unless that is a Python package's, the
library. `EDGE_OCR_LITE` names the one to use, or is "off"; else it is the one that was last built or checked here.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec

from agent.errors import EngineError

VARIABLE = "EDGE_OCR_LITE"
BINDING = "binding.so"
RECORD = "build.json"
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
    active = _active()
    return active if active.is_absolute() and active.exists() else None


def choose(folder: Path) -> None:
    """Make a build the one that is used.

    Raises:
        EngineError: the cache cannot be written.
    """
    active = _active()
    new = active.with_name(f".{active.name}-{os.getpid()}")
    try:
        active.parent.mkdir(parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        new.symlink_to(folder.resolve())
        new.replace(active)
    except OSError as error:
        raise EngineError(f"{active}: {error.strerror}; set {VARIABLE}={folder} instead") from error


def stamp(folder: Path | None) -> str:
    """Return what changes when a build does; that of none is "none"."""
    try:
        return f"{folder.resolve()} {(folder / RECORD).stat().st_mtime_ns}" if folder else "none"
    except OSError:
        return "none"


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
        raise EngineError(f"{folder / RECORD}: damaged: run `edge-ocr lite build` again") from error


def write_build(folder: Path, build: Build) -> None:
    """Write a build's record."""
    new = folder / f".{RECORD}"
    new.write_bytes(msgspec.json.format(msgspec.json.encode(build)) + b"\n")
    new.replace(folder / RECORD)
