"""The models, looked at by a process of its own (`agent.check.reading`): how it is started, heard and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.check.finding import Finding, Subject
from agent.heap import plain_environment

LIMIT_S = 8.0
BESIDE_MB = 200
"""So much must be free for the models to be loaded beside those of a worker that runs."""


def look(subject: Subject) -> Iterator[Finding]:
    """Load the models and have them read a page."""
    if subject.runs("worker") and (free := free_mb(subject.root)) < BESIDE_MB:
        said = f"not tried: a worker runs, and {free} MB of memory are free"
        advice = "`systemctl stop edge-ocr.socket edge-ocr-worker`, check again, `systemctl start edge-ocr.target`"
        yield Finding("warn", "models", said, advice)
        return
    with _start(subject) as process:
        timer = threading.Timer(LIMIT_S, _end, (process,))
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield msgspec.json.decode(line, type=Finding)
            status = process.wait()
        finally:
            timer.cancel()
            _end(process)
    if status != 0:
        yield _broken(status)


def free_mb(root: Path) -> int:
    """Return what the system can still give to programs, in MB; a lot where it does not say."""
    with suppress(OSError, StopIteration, ValueError, IndexError):
        rows = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(row.split()[1]) >> 10 for row in rows if row.startswith("MemAvailable:"))
    return 1 << 20


def _start(subject: Subject) -> subprocess.Popen[bytes]:
    # -m looks in the working directory first, and the user's may hold an `agent` of its own.
    home = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        (sys.executable, "-m", "agent.check.reading", subject.path.absolute(), os.getcwd()),
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**plain_environment(), "OPENBLAS_NUM_THREADS": "1", "NUMPY_MADVISE_HUGEPAGE": "0"},
        start_new_session=True,  # the trial of a new bundle is a child of it
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _broken(status: int) -> Finding:
    if status == -signal.SIGKILL:
        said = f"no answer within {LIMIT_S:g} s, or the system ended it for want of memory"
        return Finding("fail", "models", said, "`dmesg` tells of memory; a first start on a slow board: check again")
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return Finding(
        "fail", "models", f"the process that tries them ended with {how}", "`edge-ocr read` a page: it says why"
    )
