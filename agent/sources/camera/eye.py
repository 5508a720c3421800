"""The process that owns a camera: `python -m agent.sources.camera.eye`, started by `agent.sources.camera.source`.

A driver's read may block for ever, and only the end of its process takes the device back; native code that dies ends
nobody else. It has no queue: pictures are grabbed as they come, a few a second are looked at, and one that the gate
lets through is written into a folder. There it is a page like any other.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import zlib
from collections import deque
from contextlib import suppress
from pathlib import Path

import cv2
import msgspec
import numpy as np

from agent.durable import written
from agent.errors import InputError
from agent.sources.camera.feed import Feed, Picture
from agent.sources.camera.gate import Gate, Grey, Measures
from agent.sources.camera.glance import GLANCE_S, MAX_WAITING, Glance, Region, State, Task

LOOK_S = 0.2
RETRY_S = 2.0  # a picture that cannot be written costs as much as one that can
PART = ".part"
REMEMBERED = 8  # pictures, by their check sums
_SHAPE_BYTES = 8


class Report:
    """Sends glances; one that nobody takes is dropped, so that a busy parent never holds the device up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)

    def send(self, glance: Glance) -> None:
        """Send a glance."""
        with suppress(BlockingIOError):  # shorter than PIPE_BUF: all of it goes, or nothing
            os.write(self._descriptor, msgspec.json.encode(glance) + b"\n")


class Memory:
    """Keeps the page taken last beyond this process, so that a new one does not take it again."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def load(self) -> Grey | None:
        """Return it, or None."""
        if self._descriptor < 0:
            return None
        data = os.pread(self._descriptor, 1 << 24, 0)
        height, width = (int.from_bytes(data[at : at + 4], "big") for at in (0, 4))
        if not height or len(data) != _SHAPE_BYTES + height * width:
            return None
        return np.frombuffer(data, np.uint8, offset=_SHAPE_BYTES).reshape(height, width)

    def save(self, seen: Grey) -> None:
        """Keep it; where the disk is full, the next process takes the page once more, and no harm is done."""
        if self._descriptor >= 0:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, b"".join(side.to_bytes(4, "big") for side in seen.shape) + seen.data, 0)


class Eye:
    """Looks at one device until it ends."""

    def __init__(self, task: Task, report: Report) -> None:
        self._task = task
        self._report = report
        self._memory = Memory(task.memory_fd)
        self._gate = Gate(task.limits, self._memory.load(), thorough=not task.spool)
        self._glance = Glance(state="opening", at=time.monotonic())
        self._sent_at = self._write_at = float("-inf")
        self._unwritten = ""  # why a page could not be taken
        self._sums: deque[int] = deque(maxlen=REMEMBERED)
        self._shot = task.shot

    def run(self) -> None:
        """Open the device and look at it until it gives no more."""
        self._tell("opening")
        try:
            feed = Feed(self._task)
            looked_at = float("-inf")
            while feed.grab():
                self._glance = msgspec.structs.replace(self._glance, frames=self._glance.frames + 1)
                if feed.now() - looked_at >= LOOK_S:
                    looked_at = feed.now()
                    picture = feed.picture()
                    if picture is not None:
                        self._look(picture, looked_at)
            if not feed.is_file:
                raise feed.lost()
            self._tell("ended")
        except InputError as error:
            self._tell("lost", str(error))

    def _look(self, picture: Picture, now: float) -> None:
        self._compare(picture)
        part = cut(picture, self._task.region)
        grey: Grey = cv2.cvtColor(part, cv2.COLOR_BGR2GRAY)
        if self._shot:
            write_png(Path(self._shot), part, time.time())
            self._shot = ""
        found = self._gate.look(grey, now)
        state, said = self._take(part, grey) if found.state == "ready" else (found.state, "")
        self._note(found, part)
        if state != self._glance.state or time.monotonic() - self._sent_at >= GLANCE_S:
            self._tell(state, said)

    def _compare(self, picture: Picture) -> None:
        """Count pictures that were not there before: a camera that hangs sends the same few again and again.

        Few and not one, because an encoder that is fed one picture gives another at each key frame, always the same.
        """
        total = zlib.crc32(picture.data)
        if total in self._sums:
            self._sums.remove(total)
        elif self._sums:
            self._glance = msgspec.structs.replace(self._glance, changes=self._glance.changes + 1)
        self._sums.append(total)

    def _take(self, part: Picture, grey: Grey) -> tuple[State, str]:
        """Put a page into the folder; when it cannot be, it stays under the camera and is tried again."""
        if not self._task.spool:
            self._gate.take(grey)
            return "ready", ""
        if time.monotonic() < self._write_at:
            return "unwritable", self._unwritten
        spool = Path(self._task.spool)
        try:
            if sum(not name.startswith(".") for name in os.listdir(spool)) >= MAX_WAITING + len(("done", "failed")):
                return "full", f"{MAX_WAITING} pages wait to be read"
            write_png(_free_name(spool), part, time.time())
        except OSError as error:
            self._write_at = time.monotonic() + RETRY_S
            self._unwritten = f"{spool}: {error.strerror}: a page cannot be taken"
            return "unwritable", self._unwritten
        self._memory.save(self._gate.take(grey))
        self._glance = msgspec.structs.replace(self._glance, taken=self._glance.taken + 1)
        return "known", ""

    def _note(self, found: Measures, part: Picture) -> None:
        height, width = part.shape[:2]
        self._glance = msgspec.structs.replace(
            self._glance,
            width=width,
            height=height,
            brightness=round(found.brightness, 1),
            motion=round(found.motion, 1),
            sharpness=round(found.sharpness, 1),
            change=round(found.change, 1),
            text=round(found.text, 2),
        )

    def _tell(self, state: State, said: str = "") -> None:
        self._sent_at = time.monotonic()
        self._glance = msgspec.structs.replace(self._glance, state=state, at=self._sent_at, said=said[:1000])
        self._report.send(self._glance)


def cut(picture: Picture, region: Region) -> Picture:
    """Return a region of a picture; uint8 (height, width, 3), contiguous where all of it is meant."""
    height, width = picture.shape[:2]
    top, bottom = round(region.top * height), round(region.bottom * height)
    left, right = round(region.left * width), round(region.right * width)
    return picture[top : max(top + 1, bottom), left : max(left + 1, right)]


def write_png(path: Path, picture: Picture, taken_at: float) -> None:
    """Write a picture so that it is there whole or not at all, with its time as the file's.

    Raises:
        OSError: it cannot be written.
    """
    done, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OSError(0, "the picture cannot be encoded")
    fresh = path.with_name(f".{path.name}{PART}")
    fresh.unlink(missing_ok=True)
    with written(fresh, path) as file:
        file.write(data.data)
        file.flush()  # what is written later would make it younger
        os.utime(file.fileno(), (taken_at, taken_at))


def _free_name(spool: Path) -> Path:
    """Return a path named for the moment, UTC; the clock may have gone back to one that was there before."""
    seconds, ms = divmod(time.time_ns() // 1_000_000, 1000)
    name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(seconds)) + f"-{ms:03d}"
    numbers = ("", *(f"-{number}" for number in range(2, 2 + 2 * MAX_WAITING)))
    return next(path for number in numbers if not (path := spool / f"{name}{number}.png").exists())


def _end_with(parent: int) -> None:
    """Have the system end this process with the one that started it; prctl(2), PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended before
        sys.exit(1)


def main() -> None:
    """Do the task that the first line of standard input holds."""
    report = Report(os.dup(1))
    os.dup2(2, 1)  # what native code prints is no glance
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    _end_with(task.parent)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))  # the worker's own fence is not for this process
    cv2.setNumThreads(1)
    if task.spool:
        for left in Path(task.spool).glob(f".*{PART}"):
            left.unlink(missing_ok=True)
    Eye(task, report).run()


if __name__ == "__main__":
    main()
