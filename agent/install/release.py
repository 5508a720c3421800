"""Releases below /opt/edge-ocr: unpacked, compiled, tried, switched to by one rename, and cleared away."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from agent.durable import synchronize
from agent.errors import ConfigError, InstallError, PackageError
from agent.install import package as packages
from agent.install.package import Package
from agent.install.places import BEFORE_SWITCHING, CURRENT, NOTHING, OPT, PREVIOUS, RELEASES, SETTINGS, SWITCHING, USER
from agent.install.system import run

PYTHON = "venv/bin/python"
SAMPLE = "sample.png"
TRIAL_S = 1800
"""An emulated processor takes minutes; a board a few seconds."""
ENOUGH = 0.9
"""So much of the sample's lines must be read: one or two may be misread by models that work."""


def pointed_at(link: Path) -> Path | None:
    """Return the release that a link leads to; None where there is none."""
    release = OPT / os.readlink(link) if link.is_symlink() else None
    return release if release is not None and release.is_dir() else None


def point(link: Path, release: Path | None) -> None:
    """Have a link lead to a release, or take it away; either is one step, which lasts when this returns."""
    if release is None:
        link.unlink(missing_ok=True)
    else:
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(release, OPT))
        fresh.replace(link)
    synchronize(OPT)


def flush(*folders: Path) -> None:
    """Have all that was written to the file systems of some folders last."""
    run(("sync", "--file-system", *folders))


def begin_switch(old: Path | None, older: Path | None) -> None:
    """Note what ran before a switch, and before that, for whoever comes after a loss of power."""
    point(BEFORE_SWITCHING, older or OPT / NOTHING)
    point(SWITCHING, old or OPT / NOTHING)


def end_switch() -> None:
    """Note that a switch is over."""
    point(SWITCHING, None)
    point(BEFORE_SWITCHING, None)


def recover() -> bool:
    """Have the links as before a switch that was cut off; return whether there was one, which is to be ended then."""
    if not SWITCHING.is_symlink():
        return False
    point(CURRENT, pointed_at(SWITCHING))
    if BEFORE_SWITCHING.is_symlink():  # older installers did not note it
        point(PREVIOUS, pointed_at(BEFORE_SWITCHING))
    return True


def find(package: Package) -> Path | None:
    """Return where exactly this package is unpacked and whole; None where it is not."""
    for folder in sorted(RELEASES.glob("[!.]*")):
        try:
            if packages.read(folder).digest == package.digest:
                packages.verify(folder)
                return folder
        except PackageError:
            continue
    return None


def is_other(release: Path, package: Package) -> bool:
    """Return whether a release is worth going back to from a package: another one, and not a damaged copy of it."""
    try:
        return packages.read(release).digest != package.digest
    except PackageError:
        return False


def place_for(package: Package) -> Path:
    """Return a folder that is free for a package: named by its version, or with a number where that is taken."""
    place = RELEASES / package.version
    number = 2
    while os.path.lexists(place):
        place = RELEASES / f"{package.version}-{number}"
        number += 1
    return place


def unpack(payload: Path, offset: int, place: Path, tell: Callable[[float], None]) -> Package:
    """Unpack a package; the folder gets its name when all of it is on the disk.

    Raises:
        PackageError: it is damaged.
        InstallError: its modules cannot be compiled.
        OSError: it cannot be written.
    """
    fresh = RELEASES / f".new-{place.name}"
    packages.remove(fresh)
    fresh.mkdir(parents=True)
    try:
        with payload.open("rb") as file:
            file.seek(offset)
            package = packages.unpack(file, fresh, tell)
        compile_all(fresh, place)
        flush(fresh)
        fresh.rename(place)
    except BaseException:
        packages.remove(fresh)
        raise
    synchronize(RELEASES)
    return package


def compile_all(folder: Path, place: Path) -> None:
    """Compile a release's modules: the services may not write where they are.

    Args:
        folder: where the release is.
        place: where it will be; tracebacks name files so.

    Raises:
        InstallError: they cannot be compiled.
    """
    command = (folder / PYTHON, "-I", "-m", "compileall", "-q", "-s", folder, "-p", place, folder / "venv" / "lib")
    run(command, timeout_s=TRIAL_S)


def try_out(release: Path, package: Package) -> None:
    """Have a release load the settings of this box and read its sample page, as the services' user.

    Raises:
        ConfigError: it does not take the settings.
        InstallError: it does not read what is on the page.
    """
    with tempfile.TemporaryDirectory(prefix="edge-ocr-trial-") as work:
        os.chown(work, pwd.getpwnam(USER).pw_uid, -1)
        settings = _as_user(release, Path(work), "units", "-c", SETTINGS)
        if settings.returncode:
            raise ConfigError(f"{_last(settings)}; edge-ocr {package.version} is not started with such settings")
        how = ("-c", SETTINGS, "--bundle", release / "bundle")
        said = _as_user(release, Path(work), "read", release / SAMPLE, "--text", *how)
    if said.returncode:
        raise InstallError(f"edge-ocr {package.version} cannot read its sample page: {_last(said)}")
    found = _plain(said.stdout.decode(errors="replace"))
    missing = [line for line in package.sample if _plain(line) not in found]
    if len(missing) > len(package.sample) * (1 - ENOUGH):
        of = f"{len(missing)} of {len(package.sample)} lines"
        raise InstallError(f"edge-ocr {package.version} misreads its sample page: {of} are not found")


def write_drop_ins(release: Path, folder: Path) -> None:
    """Write what the units must be told of the settings.

    Raises:
        InstallError: that fails.
    """
    run((release / PYTHON, "-I", "-m", "agent", "units", "-c", SETTINGS, "--output", folder))


def clear_away() -> None:
    """Delete what is left of interrupted work, and all releases but the current one and the one before."""
    kept = {pointed_at(CURRENT), pointed_at(PREVIOUS)}
    for folder in RELEASES.glob("*"):
        if folder not in kept:
            packages.remove(folder)


def _as_user(release: Path, work: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run the agent of a release as the services' user, with a cache that is thrown away."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(work), "XDG_CACHE_HOME": str(work), "LANG": "C.UTF-8"}
    try:
        return subprocess.run(
            (release / PYTHON, "-I", "-m", "agent", *arguments),
            user=USER,
            group=USER,
            extra_groups=(),
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TRIAL_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InstallError(f"{release / PYTHON} does not start: {error}") from error


def _last(ran: subprocess.CompletedProcess[bytes]) -> str:
    lines = ran.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("edge-ocr: ") if lines else f"status {ran.returncode}, and no message"


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()
