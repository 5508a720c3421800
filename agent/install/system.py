"""What the installer asks of the system: processor, disk, packages, user, groups and directories."""

from __future__ import annotations

import grp
import os
import platform
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from agent.errors import InstallError
from agent.install.package import Package
from agent.install.places import NAME, OPT

SPARE_BYTES = 64 << 20
"""What must stay free beside a release: its compiled modules, and room for the outbox to work on."""
COMPILED = 0.15
"""Compiled modules take so much of a release's size."""


def require_root() -> None:
    """Refuse to work for another user than root.

    Raises:
        InstallError: it is another.
    """
    if os.geteuid() != 0:
        raise InstallError("only root can do this: begin the command with sudo")


def require_machine(package: Package) -> None:
    """Refuse a machine that the package is not for.

    Raises:
        InstallError: it has another processor, or not the Python that is needed.
    """
    here = platform.machine()
    if here != package.target:
        raise InstallError(f"this package is for {package.target}, and this machine is {here}: take the one for {here}")
    if not os.access(package.interpreter, os.X_OK):
        raise InstallError(
            f"this package needs Python {package.python} as {package.interpreter}: apt-get install"
            f" python{package.python}, or take a package that was made with --python for this system's"
        )


def require_space(package: Package) -> None:
    """Refuse a disk that is too full for another release.

    Raises:
        InstallError: it is.
    """
    place = next(path for path in (OPT, *OPT.parents) if path.exists())
    free = shutil.disk_usage(place).free
    needed = int(package.bytes * (1 + COMPILED)) + SPARE_BYTES
    if free < needed:
        raise InstallError(f"{place}: {free >> 20} MB are free, and {needed >> 20} MB are needed: make room")


def installed_by_dpkg() -> bool:
    """Return whether the Debian package is installed, be it halfway."""
    if shutil.which("dpkg-query") is None:
        return False
    said = run(("dpkg-query", "-W", "-f", "${db:Status-Status}", NAME), check=False)
    return said.strip() not in ("", "not-installed", "config-files")


def run(command: Sequence[str | Path], *, check: bool = True, timeout_s: float = 600) -> str:
    """Run a program to its end and return what it printed.

    Raises:
        InstallError: it is missing, fails, or takes longer; the message has its last line. Not with check=False.
    """
    name = " ".join(str(word) for word in command[:3])
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        if not check:
            return ""
        raise InstallError(f"{name}: no end within {timeout_s:g} s") from error
    except OSError as error:
        if not check:
            return ""
        raise InstallError(f"{name}: {error.strerror}") from error
    if check and ran.returncode:
        lines = (ran.stderr + ran.stdout).decode(errors="replace").strip().splitlines() or [f"status {ran.returncode}"]
        raise InstallError(f"{name}: {lines[-1]}")
    return ran.stdout.decode(errors="replace")


def make_user(file: Path) -> None:
    """Make the user and the groups that a file of systemd-sysusers names, where they are missing.

    Raises:
        InstallError: they cannot be made.
    """
    if shutil.which("systemd-sysusers"):
        run(("systemd-sysusers", file))
        return
    for kind, name, *more in _words(file):
        if kind == "g" and not _known(grp.getgrnam, name):
            run(("groupadd", "--system", name))
        if kind == "u" and not _known(pwd.getpwnam, name):
            home, shell = more[-2:]
            run(("useradd", "--system", "--user-group", "--home-dir", home, "--no-create-home", "--shell", shell, name))


def make_directories(file: Path, say: Callable[[str], None]) -> None:
    """Make the directories that a file of systemd-tmpfiles names; what is there keeps its owner and rights."""
    for kind, path, mode, user, group, *_ in _words(file):
        if kind == "d" and not os.path.lexists(path):
            _make_directory(Path(path), int(mode, 8), pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid)
        elif kind == "d" and not os.path.isdir(path):
            say(f"{path}: is no directory, and is left alone: move it away and install again")


def _make_directory(path: Path, mode: int, user: int, group: int) -> None:
    """Make a directory; who may write beside it cannot have another one's owner and rights changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened:
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        opened.callback(os.close, parent)
        try:
            os.mkdir(path.name, 0o700, dir_fd=parent)
        except FileExistsError:  # somebody was quicker: it is theirs
            return
        made = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
        opened.callback(os.close, made)
        os.fchown(made, user, group)
        os.fchmod(made, mode)  # behind fchown, which takes the set-group-id bit away


def require_no_other_disk(*folders: Path) -> None:
    """Refuse to delete folders that lead to another place, or have a disk mounted in them.

    Raises:
        InstallError: one does.
    """
    for folder in folders:
        if folder.is_symlink():
            raise InstallError(f"{folder} leads to {os.readlink(folder)}: remove both yourself; nothing is removed")
        for point in _mounts():
            if point == folder or folder in point.parents:
                raise InstallError(f"{point} is a mount: unmount it first; nothing is removed")


def _mounts() -> list[Path]:
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no /proc, as where an image is built
        return []
    return [Path(line.split()[4]) for line in lines]  # blanks are \\040 there, and no folder of ours has any


def remove_all(folders: Sequence[Path]) -> list[str]:
    """Remove folders with all that is in them; return what cannot be, and why. A disk's own folder stays, empty."""
    left: list[str] = []

    def failed(what: object, path: str, raised: tuple[object, BaseException, object]) -> None:
        own_disk = Path(path) in folders and os.path.ismount(path) and not os.listdir(path)
        if not own_disk and not isinstance(raised[1], FileNotFoundError):
            left.append(f"{path} ({getattr(raised[1], 'strerror', '') or raised[1]})")

    for folder in folders:
        shutil.rmtree(folder, onerror=failed)
    return left


def ignore_signals() -> None:
    """Go on to the end whoever wants to stop this, and have programs that are started from now on do so too."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _words(file: Path) -> Iterator[list[str]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.split()


def _known(find: object, name: str) -> bool:
    assert callable(find)
    try:
        find(name)
    except KeyError:
        return False
    return True
