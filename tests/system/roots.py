"""Debian's smallest systems as archives, made once by mmdebstrap and kept below build/."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from tests.command import ROOT

HOME = ROOT / "build" / "roots"
RELEASE = "bookworm"
LEFT_OUT = ("doc/*", "info/*", "lintian/*", "locale/*", "man/*")
"""What Debian's slim image leaves out below /usr/share; of doc it keeps who has the rights."""

_WITHOUT_PERL = (
    'chroot "$1" apt-get install -qq -y usr-is-merged usrmerge-'
    ' && chroot "$1" apt-get purge -qq -y perl libperl5.36 perl-modules-5.36'
    ' && chroot "$1" apt-get autoremove -qq -y --purge'
)
"""mmdebstrap takes usrmerge, which brings 50 MB of Perl; debootstrap, and so Debian's image, what has no needs."""
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--propagation", "private", "--kill-child")
"""Its mounts are its own: what is killed in the middle leaves none of this machine's devices below."""
_TIMEOUT_S = 1800
"""Of an emulated system."""


class NoRoot(AssertionError):
    """A system cannot be made here, for instance without a network."""


def slim(architecture: str = "amd64") -> Path:
    """Return the archive of a Debian 12 like Debian's slim image."""
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{path}" for path in LEFT_OUT]
    kept = "--dpkgopt=path-include=/usr/share/doc/*/copyright"
    return _archive("slim", architecture, *excluded, kept, f"--customize-hook={_WITHOUT_PERL}")


def with_python(architecture: str = "amd64") -> Path:
    """Return the archive of a bare Debian 12: `python3` is all that is in it beside the least."""
    return _archive("python3", architecture, "--include=python3")


def _archive(name: str, architecture: str, *options: str) -> Path:
    """Return an archive; it is made when it is missing: in a minute or two, emulated in ten.

    Raises:
        NoRoot: it cannot be made.
    """
    HOME.mkdir(parents=True, exist_ok=True)
    archive = HOME / f"{RELEASE}-{name}-{architecture}.tar"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            fresh = archive.with_name(f"new-{archive.name}")
            what = ("--quiet", "--variant=minbase", f"--architectures={architecture}", *options, RELEASE, str(fresh))
            command = (*_ALONE, "mmdebstrap", *what)
            ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S)
            if ran.returncode != 0:
                raise NoRoot(ran.stderr.decode(errors="replace")[-2000:])
            fresh.rename(archive)
    return archive
