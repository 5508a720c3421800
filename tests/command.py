"""Runs `edge-ocr` and other Python programs as children, and tells what they said and took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
EDGE_OCR = (sys.executable, "-m", "agent")

# A child's peak memory begins at the size of the process that starts it (Linux, exec_mmap), and pytest's is large: a
# small process stands between.
_WATCH = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
open(sys.argv[1], "w").write(f"{os.waitstatus_to_exitcode(status)} {usage.ru_maxrss}")
"""


class Ran(NamedTuple):
    """What a program did: exit status (negative for a signal), output, complaints."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The output as JSON rows."""
        return [json.loads(row) for row in self.out.splitlines()]


def environment(cache: Path, **more: str) -> dict[str, str]:
    """Return this process's environment with a cache of its own, threads as a user's shell leaves them."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "EDGE_OCR_BUNDLE")}
    return {**kept, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **more}


def run(command: tuple[str | Path, ...], env: dict[str, str] | None = None, cwd: Path = ROOT) -> Ran:
    """Run a program to its end."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, cwd=cwd)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_python(code: str, *arguments: str | Path, env: dict[str, str] | None = None) -> Ran:
    """Run Python source in a process of its own."""
    return run((sys.executable, "-c", code, *arguments), env)


def run_watched(command: tuple[str | Path, ...], env: dict[str, str], note: Path) -> tuple[Ran, float]:
    """Run a program to its end; also return its peak resident memory in MB of 2**20 bytes.

    Args:
        command: the program and its arguments.
        env: its environment.
        note: a file that may be written.
    """
    ran = run((sys.executable, "-S", "-c", _WATCH, note, *command), env)
    status, peak_kb = map(int, note.read_text().split())
    return Ran(status, ran.out, ran.err), peak_kb / 1024
