"""A job in a process of its own: it says how far it is, it leaves nothing behind, and it never outlives its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeVar

Progress = Callable[[int, int], None]
"""Takes how much of a job is done, and how much there is in all."""

T = TypeVar("T")

_ROWS, _PARENT = "EDGE_OCR_PROGRESS", "EDGE_OCR_PARENT"
"""In a job's environment: the file descriptor for rows "done total", and the process that waits for it."""

_PR_SET_PDEATHSIG = 1  # prctl(2)


_LITTLE_BYTES = 1 << 20


class Ended(NamedTuple):
    """How a process ended: exit status (negative for a signal), all it wrote, and which disks it has left full."""

    status: int
    out: bytes
    err: bytes
    full: tuple[Path, ...]


def run(
    command: Sequence[str], env: Mapping[str, str], timeout_s: float, progress: Progress, places: Sequence[Path] = ()
) -> Ended:
    """Run a program to its end; it is killed when the time is over or the user interrupts.

    Args:
        command: the program and its arguments.
        env: its environment, to which what this module needs is added.
        timeout_s: it must be done by then.
        progress: takes what the program says with `tell`, in another thread than the caller's.
        places: it writes there; a native library says nothing that a user understands when a disk is full.

    Raises:
        TimeoutExpired: it was not done in time.
    """
    with TemporaryDirectory(prefix="edge-ocr-") as scratch:  # a job that is killed removes no temporary files
        reading, writing = os.pipe()
        child = subprocess.Popen(
            command,
            env={**env, _ROWS: str(writing), _PARENT: str(os.getpid()), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writing,),
        )
        os.close(writing)
        listener = threading.Thread(target=_listen, args=(reading, progress), daemon=True)
        listener.start()
        with child, killed_unless_done(child):
            out, err = child.communicate(timeout=timeout_s)
        listener.join()
        full = tuple(place for place in (*places, Path(scratch)) if child.returncode and _is_full(place))
    return Ended(child.returncode, out, err, full)


@contextlib.contextmanager
def killed_unless_done(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process when what is done with it is interrupted or fails."""
    try:
        yield
    except BaseException:
        child.kill()
        child.wait()
        raise


def _is_full(place: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(place).free < _LITTLE_BYTES
    return False


def _listen(reading: int, progress: Progress) -> None:
    with os.fdopen(reading, "rb") as rows:
        for row in rows:
            done, total = map(int, row.split())
            progress(done, total)


# ------------------------------------------------------------------------------------------------ in the child


def end_with_parent() -> None:
    """Let the kernel end this process when the one that waits for it ends, however that happens (Linux, prctl(2)).

    Else a job would go on writing files that the next conversion has taken over.
    """
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it has ended before that call
        sys.exit("the process that started this one has ended")


def tell(done: int, total: int) -> None:
    """Say how far this process's job is; nothing happens where nobody listens."""
    rows = os.environ.get(_ROWS)
    if rows is not None:
        with contextlib.suppress(OSError):  # the listener is gone: the job goes on
            os.write(int(rows), b"%d %d\n" % (done, total))


def counted(items: Sequence[T], *, grows: int = 0) -> Iterator[T]:
    """Yield the items of a job's main loop and say how many are done.

    Args:
        items: what the loop goes through.
        grows: 0 when all take the same time; else the n-th takes as long as n to this power.
    """
    done, total = 0, sum(number**grows for number in range(1, len(items) + 1))
    for number, item in enumerate(items, 1):
        tell(done, total)
        yield item
        done += number**grows
    tell(done, total)
