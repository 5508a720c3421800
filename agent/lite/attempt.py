"""Tries a build in a child process: a library that does not fit ends the process that loads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agent import __version__
from agent.errors import EngineError
from agent.lite import place

TIMEOUT_S = 120


def ensure_tried(folder: Path) -> None:
    """Make sure that a build has worked on this machine; once for each.

    What it was tried on where its package was made says little: another processor may lack what it was compiled for.

    Raises:
        EngineError: it does not work here.
    """
    if not _mark(folder).exists():
        version_of(folder)
        note(folder)


def note(folder: Path) -> None:
    """Note that a build has worked on this machine."""
    place.remember(_mark(folder))


def _mark(folder: Path) -> Path:
    return place.mark(f"binding {place.stamp(folder)} {__version__}")


def version_of(folder: Path) -> str:
    """Load a build in a child process and return its library's version.

    Raises:
        EngineError: it does not work here.
    """
    command = [sys.executable, "-m", "agent.lite.binding", str(folder.resolve())]
    home_of_agent = Path(__file__).resolve().parents[2]  # `-m` looks there first, and not where the user stands
    try:
        child = subprocess.run(
            command, cwd=home_of_agent, capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{folder}: its library does not answer within {TIMEOUT_S} s") from error
    lines = child.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if child.returncode < 0:
        said = f"signal {-child.returncode}: {lines[0]}"
        raise EngineError(f"{folder}: its library dies of the test model ({said}): give --lib a release with headers")
    if child.returncode:
        raise EngineError(lines[-1])
    # The library may have printed before: the version is what stands last.
    return child.stdout.decode(errors="replace").splitlines()[-1]
