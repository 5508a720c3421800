"""Cameras on loopback: an RTSP server (GStreamer) and an HTTP MJPEG stream (FFmpeg) that see what a test shows."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import cv2
import numpy as np

from tests import films
from tests.command import ROOT
from tests.system.branch import until

FRAMES = 19  # more than are remembered by who looks whether the camera hangs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    """Return whether someone listens on a port; asking by connecting would be FFmpeg's one client."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


class Camera:
    """A server that a test starts, stops, freezes and kills."""

    def __init__(self, folder: Path, kind: str, fps: int = 10) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.port = free_port()
        self.kind = kind
        self.fps = fps
        self.url = f"{kind}://127.0.0.1:{self.port}/desk"
        self.process: subprocess.Popen[bytes] | None = None
        self.show(films.table())

    def show(self, picture: np.ndarray, *, noise: bool = True) -> None:
        """Put something before the camera."""
        frames = films.noisy([picture] * FRAMES, 4.0) if noise else [picture] * FRAMES
        for number, frame in enumerate(frames):
            fresh = self.folder / "fresh"
            fresh.write_bytes(cv2.imencode(".jpg", frame)[1].tobytes())
            fresh.rename(self.folder / f"{number}.jpg")

    def start(self) -> None:
        self.process = subprocess.Popen(
            self._rtsp() if self.kind == "rtsp" else self._http(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert until(lambda: is_open(self.port)) < 30

    def _rtsp(self) -> tuple[str, ...]:
        return (
            "/usr/bin/python3",
            str(ROOT / "tests" / "rtsp_server.py"),
            str(self.port),
            str(self.folder),
            str(self.fps),
        )

    def _http(self) -> tuple[str, ...]:
        # FFmpeg serves one client and ends with it. It must not look ahead, or pictures come seconds late.
        pictures = f"-re -probesize 32 -analyzeduration 0 -fpsprobesize 0 -f image2 -loop 1 -framerate {self.fps}"
        stream = "-c:v copy -f mpjpeg -content_type 'multipart/x-mixed-replace;boundary=ffmpeg' -listen 1"
        serve = f"ffmpeg -loglevel quiet {pictures} -i '{self.folder}/%d.jpg' {stream} '{self.url}'"
        return ("/bin/sh", "-c", f"while :; do {serve}; done")

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None
