"""Finds Paddle Lite's C++ library: in a release archive, in a directory, in the x86 wheel, installed or fetched."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from agent.bundle import sha256_of
from agent.errors import EngineError
from agent.lite.place import home

PACKAGE = "paddlelite"
REQUIREMENT = "paddlelite==2.13rc0"
WHEEL_SHA256 = "b1e6081c4154e50479426df9c7390c0d1d99dd9d832a270d1fe925894768fb62"
WHEEL_PYTHON = "3.10"
FETCH_TIMEOUT_S = 1800

NAMES = ("libpaddle_light_api_shared.so", "lite.so")
"""What the library is called in release archives for ARM, and in the x86 wheel."""
NEEDED = "libs"
"""Directory beside the x86 wheel's library with those that it needs itself."""
HEADER = "paddle_api.h"
MAX_MEMBERS = 10_000
MAX_UNPACKED_BYTES = 1 << 30


class Found(msgspec.Struct, frozen=True):
    """A library to build on.

    Attributes:
        path: the library.
        headers: directory of the release's headers; None to use the binding's own declarations.
        installed: it stays where it is; else it is copied beside the binding.
    """

    path: Path
    headers: Path | None = None
    installed: bool = False


def installed() -> Found | None:
    """Return the x86 wheel's library without importing it: the installed one, or the one that was fetched."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec is not None else []
    for place in (*places, home() / WHEEL_SHA256[:16] / PACKAGE):
        if (place / NAMES[1]).is_file():
            return Found(place / NAMES[1], installed=True)
    return None


def find_in(place: Path, work: Path) -> Found:
    """Return the library of a directory or an archive, or the library that a path names itself.

    Args:
        place: what the user named.
        work: an empty directory to unpack in.

    Raises:
        EngineError: there is no library in it, or it is damaged.
    """
    if place.suffix == ".so" and place.is_file():
        return Found(place, _headers(place.parent))
    folder = place
    if place.is_file():
        unpack(place, work)
        folder = work
    found = [path for name in NAMES for path in sorted(folder.rglob(name))]
    if not found:
        raise EngineError(
            f"{place}: holds neither {NAMES[0]} nor {NAMES[1]}: a release's inference_lite_lib archive does"
        )
    return Found(found[0], _headers(folder))


def _headers(folder: Path) -> Path | None:
    return next((path.parent for path in sorted(folder.rglob(HEADER))), None)


def unpack(archive: Path, work: Path) -> None:
    """Unpack the libraries and headers of an archive or wheel.

    Raises:
        EngineError: it is damaged, too large, or holds names that leave its directory.
    """
    try:
        with _opened(archive) as members:
            left = MAX_UNPACKED_BYTES
            for number, (name, size, stream) in enumerate(members):
                left -= size
                if number >= MAX_MEMBERS or left < 0:
                    raise EngineError(f"{archive}: larger than any release of Paddle Lite")
                _write(stream, size, work / _inside(name))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        said = str(error).splitlines() or ["it ends early"]  # tarfile tells what each of its readers says
        raise EngineError(f"{archive}: damaged, or not an archive: {said[0].rstrip(':')}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[str, int, IO[bytes]]]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel:
            infos = [info for info in wheel.infolist() if _wanted(info.filename)]
            yield ((info.filename, info.file_size, wheel.open(info)) for info in infos)
        return
    with tarfile.open(archive) as tar:
        files = (member for member in tar if member.isfile() and _wanted(member.name))
        yield ((member.name, member.size, stream) for member in files if (stream := tar.extractfile(member)))


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".so" or (path.suffix == ".h" and path.name.startswith("paddle_"))


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leaves the archive")
    return path


def _write(stream: IO[bytes], size: int, path: Path) -> None:
    """Write a member, and no more of it than it has said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with stream, path.open("wb") as file:
        left = size
        while chunk := stream.read(min(left, 1 << 20)):
            file.write(chunk)
            left -= len(chunk)
    if left:
        raise ValueError(f"{path.name} ends early")


def fetch() -> Path:
    """Fetch the x86 wheel with pip, for Pythons that pip would not install it on; return where its library is.

    Raises:
        EngineError: pip fails, or the wheel is another one.
    """
    target = home() / WHEEL_SHA256[:16]
    library = target / PACKAGE / NAMES[1]
    if library.is_file():
        return library
    work = target.with_name(f".{target.name}")
    shutil.rmtree(work, ignore_errors=True)
    try:
        wheel = _download(work / "wheel")
        unpack(wheel, work / "content")
        shutil.rmtree(target, ignore_errors=True)
        (work / "content").replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return library


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--python-version", WHEEL_PYTHON, "--dest", str(folder)]
    try:
        ran = subprocess.run(
            [*command, REQUIREMENT], capture_output=True, timeout=FETCH_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"pip has not fetched {REQUIREMENT} within {FETCH_TIMEOUT_S} s: try again") from error
    wheels = sorted(folder.glob("*.whl"))
    if ran.returncode or not wheels:
        said = ran.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise EngineError(f"pip cannot fetch {REQUIREMENT}: {said[-1]}")
    found = sha256_of(wheels[0])
    if found != WHEEL_SHA256:
        raise EngineError(f"{wheels[0].name}: sha256 is {found}, and not {WHEEL_SHA256}: nothing of it is used")
    return wheels[0]
