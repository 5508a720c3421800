"""Debian's smallest systems as archives, made once by mmdebstrap and kept below build/."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from tests.command import ROOT

HOME = ROOT / "build" / "roots"
LEFT_OUT = ("doc/*", "info/*", "lintian/*", "locale/*", "man/*")
"""What Debian's slim image leaves out below /usr/share; of doc it keeps who has the rights."""

_WITHOUT_PERL = (
    'chroot "$1" apt-get install -qq -y usr-is-merged usrmerge-'
    ' && chroot "$1" apt-get purge -qq -y perl libperl5.36 perl-modules-5.36'
    ' && chroot "$1" apt-get autoremove -qq -y --purge'
)
"""mmdebstrap takes usrmerge, which brings 50 MB of Perl; debootstrap, and so Debian's image, what has no needs."""


def slim(architecture: str = "amd64", release: str = "bookworm") -> Path:
    """Return the archive of a system like Debian's slim image; it is made when it is missing, in a minute or two."""
    HOME.mkdir(parents=True, exist_ok=True)
    archive = HOME / f"{release}-slim-{architecture}.tar"
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            _make(archive, architecture, release)
    return archive


def _make(archive: Path, architecture: str, release: str) -> None:
    fresh = archive.with_name(f"new-{archive.name}")
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{path}" for path in LEFT_OUT]
    command = (
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={architecture}"),
        *(*excluded, "--dpkgopt=path-include=/usr/share/doc/*/copyright", f"--customize-hook={_WITHOUT_PERL}"),
        *(release, str(fresh)),
    )
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=500)
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    fresh.rename(archive)
