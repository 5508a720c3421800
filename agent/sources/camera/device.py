"""The process that owns a camera's device, seen from outside: what it is told, and how it is heard and ended."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.config import secret
from agent.heap import plain_environment
from agent.source_config import CameraConfig
from agent.sources.camera.glance import Glance, Limits, Region, Task

BASE_MB, PIXEL_BYTES = 35, 18
"""Memory of the process that owns the device, over sizes of its pictures (`python -m tests.bench.camera`, own_mb).

Without the 31 MB of libraries that it has in common with the worker, where they are counted already.
"""

PRESETS = {
    "document-camera": Limits(still_s=0.4, motion=1.0, sharpness=15.0, change=3.0, text=0.2, black=10.0),
    "stream": Limits(still_s=0.8, motion=3.0, sharpness=10.0, change=5.0, text=0.1, black=10.0),
}
"""Found with pages held under cameras in films that `tests/films.py` draws, noise and compression included."""


def limits_of(config: CameraConfig) -> Limits:
    """Return what a picture must be to be taken: the preset, with what is set besides."""
    preset = PRESETS[config.preset]
    return Limits(
        still_s=preset.still_s if config.still_s is None else config.still_s,
        motion=preset.motion if config.max_motion is None else config.max_motion,
        sharpness=preset.sharpness if config.min_sharpness is None else config.min_sharpness,
        change=preset.change if config.min_change is None else config.min_change,
        text=preset.text if config.min_text is None else config.min_text,
        black=config.max_black,
    )


def task_of(config: CameraConfig) -> Task:
    """Return what a process is to do that only measures.

    Raises:
        ConfigError: the password is not where it is said to be.
    """
    return Task(
        device=_with_user(config),
        parent=os.getpid(),
        limits=limits_of(config),
        region=Region(left=config.left, top=config.top, right=config.right, bottom=config.bottom),
        width=config.width,
        height=config.height,
    )


def needs_mb(config: CameraConfig) -> int:
    """Return what the process may have for itself, in MB."""
    return BASE_MB + round(PIXEL_BYTES * config.width * config.height / (1 << 20))


def first_glance(config: CameraConfig, timeout_s: float) -> Glance:
    """Open the device for a moment; returns the first sight of a picture, or the last word without one.

    Raises:
        ConfigError: the password is not where it is said to be.
        OSError: the system has no process left.
    """
    process, glance = Process(task_of(config)), Glance(state="opening", at=time.monotonic())
    try:
        while time.monotonic() - glance.at < timeout_s and not process.ended():
            select.select([process.fileno()], [], [], 0.2)
            for told in process.glances():
                if told.state != "opening":
                    return told
    finally:
        process.close()
    return glance


def unstable(device: str) -> str:
    """Return what to say of a path that may lead to another camera after the next start, "" for others."""
    if re.fullmatch(r"/dev/video\d+", device) is None:
        return ""
    with suppress(OSError):
        for path in sorted(Path("/dev/v4l/by-id").iterdir()):
            if os.path.realpath(path) == device:
                return f"{device} may be another camera after the next start; write {path}"
    return f"{device} may be another camera after the next start; look for it below /dev/v4l/by-id or by-path"


class Process:
    """The process that owns the device, started, heard and ended without waiting for it."""

    def __init__(self, task: Task) -> None:
        """Start it.

        Raises:
            OSError: the system has no process or memory left.
        """
        kept = () if task.memory_fd < 0 else (task.memory_fd,)
        # Its words are thrown away: FFmpeg prints addresses with their passwords.
        self._process = subprocess.Popen(
            (sys.executable, "-m", "agent.sources.camera.eye"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=kept,
            env={**plain_environment(), "OPENBLAS_NUM_THREADS": "1", "OPENCV_LOG_LEVEL": "SILENT"},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._out, False)
        self._rest = b""
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(msgspec.json.encode(task) + b"\n")

    @property
    def pid(self) -> int:
        """Return its number."""
        return self._process.pid

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are glances."""
        return self._out

    def glances(self) -> list[Glance]:
        """Return what it has said since the last time."""
        with suppress(BlockingIOError):
            while data := os.read(self._out, 1 << 16):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        return [msgspec.json.decode(line, type=Glance) for line in lines]

    def ended(self) -> bool:
        """Return whether it is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """End it; a driver that does not let go of it may delay that."""
        self._process.kill()

    def close(self, timeout_s: float = 2.0) -> None:
        """End it and give the descriptors back."""
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _with_user(config: CameraConfig) -> str:
    """Return the device, with user and password in an address.

    Raises:
        ConfigError: the password is not where it is said to be.
    """
    password = secret(config.password)
    scheme, separator, rest = config.device.partition("://")
    if not separator or not (config.username or password):
        return config.device
    user = _quoted(config.username) + (f":{_quoted(password)}" if password else "")
    return f"{scheme}://{user}@{rest}"


def _quoted(text: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in text)
