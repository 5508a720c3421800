"""One page through the worker, killed or failed at each single system call: it has one result in the end.

strace stops the worker before the n-th call, or makes the call fail, for every n of the cycle.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.config import OutboxConfig
from agent.outbox import Outbox
from tests.command import ROOT
from tests.stub_worker import draw

EVERY = int(os.environ.get("EVERY", "8"))
"""Each so manieth place is tried; EVERY=1 tries all, in nine minutes."""
STRACE = shutil.which("strace")
CALLS = {
    "pwrite64": ("signal=SIGKILL", "error=EIO", "error=ENOSPC"),
    "fdatasync,fsync": ("signal=SIGKILL", "error=EIO"),
    "rename,renameat,renameat2": ("signal=SIGKILL", "error=EIO"),
    "ftruncate,unlink,link,mkdir": ("signal=SIGKILL", "error=ENOSPC"),
}


def strace(calls: str, injection: str, home: Path) -> subprocess.CompletedProcess[bytes]:
    command = (
        str(STRACE),
        "-f",
        "-o",
        str(home / "trace"),
        "-e",
        f"trace={calls}",
        *(("-e", injection) if injection else ()),
    )
    worker = (sys.executable, "-m", "tests.system.one_cycle", str(home))
    return subprocess.run((*command, *worker), cwd=ROOT, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)


def count(calls: str, home: Path) -> int:
    """Return how many such calls one undisturbed cycle makes."""
    prepare(home)
    ended = strace(calls, "", home)
    assert ended.returncode == 0, ended.stderr
    return sum("(" in line for line in (home / "trace").read_text(errors="replace").splitlines())


def prepare(home: Path) -> None:
    (home / "inbox").mkdir(parents=True)
    draw(home / "inbox" / "scan.png", 7)


def results(home: Path) -> list[str]:
    outbox = Outbox(home / "state", OutboxConfig(), role="tool")
    try:
        return [json.loads(row.result)["lines"][0]["text"] for row in outbox.rows(None, 100, 0)]
    finally:
        outbox.close()


@pytest.mark.timeout(600)
@pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt-get install strace")
@pytest.mark.parametrize(("calls", "how"), [(calls, how) for calls, ways in CALLS.items() for how in ways])
def test_cycle_that_is_cut_anywhere_ends_with_one_result(calls, how, tmp_path):
    total = count(calls, tmp_path / "whole")
    assert total > 0
    for n in range(1, total + 1, EVERY if total > 2 * EVERY else 1):
        home = tmp_path / f"{n}"
        prepare(home)
        strace(calls, f"inject={calls}:{how}:when={n}", home)
        again = subprocess.run(
            (sys.executable, "-m", "tests.system.one_cycle", str(home)), cwd=ROOT, capture_output=True, timeout=60
        )
        assert again.returncode == 0, again.stderr
        assert results(home) == ["page-00000007"], f"call {n} of {total}"
        assert (home / "inbox" / "done" / "scan.png").exists(), f"call {n} of {total}"
