"""Compiles the binding for a library, into the cache or a directory, and tries it in a child process."""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.bundle import sha256_of
from agent.errors import EngineError
from agent.lite import library as libraries
from agent.lite.attempt import note, version_of
from agent.lite.binding import INTERFACE
from agent.lite.elf import machine_of
from agent.lite.library import NEEDED, Found
from agent.lite.place import BINDING, Build, choose, home, is_installed, read_build, write_build

SOURCE = Path(__file__).with_name("binding.cpp")
FLAGS = ("-std=c++14", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra")
CROSS = {
    "aarch64": ("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"),
    "x86_64": ("x86_64-linux-gnu-g++", "g++-x86-64-linux-gnu"),
}
"""Cross compilers and the Debian packages they are in."""
COMPILE_TIMEOUT_S = 600

# How a name is spelt in a library that was compiled with either of libstdc++'s two kinds of strings.
_NEW_STRINGS = b"MobileConfig19set_model_from_fileERKNSt7__cxx1112basic_string"
_OLD_STRINGS = b"MobileConfig19set_model_from_fileERKSs"


def build(lib: Path | None, target: str, output: Path | None, accepted: Sequence[str] = ()) -> Path:
    """Build the binding; where it is for this machine, try it and make it the one that is used.

    Args:
        lib: a release archive, a directory with one unpacked, or a library; None for the x86 wheel's.
        target: `platform.machine()` of what it is for.
        output: directory to build in; None for one in the cache.
        accepted: versions of the library that the user answers for.

    Returns:
        The directory of the build.

    Raises:
        EngineError: library or compiler are missing or do not fit, or what was built does not work.
    """
    compiler, about = find_compiler(target)
    place = output or home()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix=".build-") as work:
            found = _find_library(lib, target, Path(work))
            folder = output or home() / f"{target}-{_key(found, about)}"
            folder.mkdir(exist_ok=True)
            _build(found, [*compiler, *_strings_flag(found.path)], folder)
            write_build(folder, _record(found, folder, target, about, accepted))
    except OSError as error:
        raise EngineError(f"{error.filename or place}: {error.strerror}") from error
    if target == platform.machine():
        check(folder)
    return folder


def check(folder: Path) -> str:
    """Try a build in a child process, note its version, and make it the one that is used; return the version.

    Raises:
        EngineError: it does not work here.
    """
    version = version_of(folder)
    if is_installed(folder):  # its record is the package's
        note(folder)
        choose(folder)
        return version
    noted = msgspec.structs.replace(read_build(folder), version=version)
    if noted != read_build(folder):
        write_build(folder, noted)
    choose(folder)
    return version


def find_compiler(target: str) -> tuple[list[str], str]:
    """Return the compiler's command and its first line about itself.

    Raises:
        EngineError: it is not installed; the message names the Debian package.
    """
    native = target == platform.machine()
    program, package = ("g++", "g++") if native else CROSS[target]
    command = shlex.split(os.environ.get("CXX", "") if native else "") or [program]
    if shutil.which(command[0]) is None:
        raise EngineError(f"{command[0]} is not installed: apt-get install {package}, or name a compiler in CXX")
    return command, _run([*command, "--version"]).splitlines()[0]


def _find_library(lib: Path | None, target: str, work: Path) -> Found:
    found = libraries.find_in(lib, work) if lib is not None else _installed(target)
    machine = machine_of(found.path)
    if machine != target:
        raise EngineError(f"{lib or found.path}: a library for {machine}, not for {target}")
    return found


def _installed(target: str) -> Found:
    found = libraries.installed() if target == "x86_64" else None
    if found is not None:
        return found
    if target == "x86_64":
        raise EngineError(
            f"{libraries.REQUIREMENT} is not installed: run `edge-ocr lite fetch`, or name one with --lib"
        )
    raise EngineError("name Paddle Lite's release archive for armlinux armv8, gcc (inference_lite_lib...) with --lib")


def _key(found: Found, compiler: str) -> str:
    """Return a name for what is built of this source, library and compiler."""
    parts = (sha256_of(SOURCE), sha256_of(found.path), compiler, *FLAGS, str(found.headers is not None))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _strings_flag(library: Path) -> list[str]:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_NEW_STRINGS) >= 0:
            return []
        if content.find(_OLD_STRINGS) >= 0:
            return ["-D_GLIBCXX_USE_CXX11_ABI=0"]
    raise EngineError(f"{library}: does not offer Paddle Lite's light interface in C++")


def _build(found: Found, compiler: Sequence[str], folder: Path) -> None:
    """Compile into a file that takes its name when it is done; copy the library beside it."""
    library, binding = found.path, folder / f".{BINDING}"
    if not found.installed:
        library = folder / found.path.name
        shutil.copyfile(found.path, folder / f".{library.name}")
        (folder / f".{library.name}").replace(library)
        if (found.path.parent / NEEDED).is_dir():
            shutil.copytree(found.path.parent / NEEDED, folder / NEEDED, dirs_exist_ok=True)
    headers = ["-DEDGE_OCR_LITE_HEADERS", f"-I{found.headers}"] if found.headers else []
    # The library's own needs are for the dynamic linker of the machine that it runs on.
    linking = [f"-L{library.parent.resolve()}", f"-l:{library.name}", "-Wl,--allow-shlib-undefined,-rpath,$ORIGIN"]
    _run([*compiler, *FLAGS, *headers, str(SOURCE), "-o", str(binding), *linking])
    binding.replace(folder / BINDING)


def _record(found: Found, folder: Path, target: str, compiler: str, accepted: Sequence[str]) -> Build:
    library = found.path if found.installed else folder / found.path.name
    about = library.stat()
    return Build(
        interface=INTERFACE,
        machine=target,
        library=str(library.resolve()) if found.installed else library.name,
        library_bytes=about.st_size,
        library_mtime_ns=about.st_mtime_ns if found.installed else 0,
        compiler=compiler,
        headers=found.headers is not None,
        accepted=tuple(accepted),
    )


def _run(command: Sequence[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, timeout=COMPILE_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{command[0]}: {error}") from error
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").splitlines()
        said = next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
        raise EngineError(f"{command[0]} fails: {said.strip()}")
    return ran.stdout.decode(errors="replace")
