"""Opens what a camera gives: a V4L2 device, a network stream, a named pipe or a video file. See `eye`."""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from agent.errors import InputError
from agent.sources.camera.glance import Task

Picture = npt.NDArray[np.uint8]

OPEN_MS, READ_MS = 6000, 5000  # FFmpeg's own patience; for what does not keep to it the parent ends the process
CONNECT_S = 2.0

_ADDRESS = re.compile(r"(rtsps?|https?)://(?:[^/@]*@)?(\[[^\]]+\]|[^/:?#@]+)(?::(\d+))?")
_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
# A stream must not lead FFmpeg to files of this machine, nor a file into the network.
_FROM_NETWORK = "rtsp,rtsps,rtp,tcp,udp,http,https,httpproxy,tls,crypto"
_FROM_HERE = "file,crypto"


def is_address(device: str) -> bool:
    """Return whether a device is a network stream."""
    return _ADDRESS.match(device) is not None


class Feed:
    """An open device. `grab` goes on to the next picture cheaply, `picture` returns it."""

    def __init__(self, task: Task) -> None:
        """Open a device.

        Raises:
            InputError: it cannot be opened; the message says what to do.
        """
        self.is_file = False
        self._device = task.device
        self._began = time.monotonic()
        if is_address(task.device):
            self._open_stream(_FROM_NETWORK)
        else:
            mode = _mode(task.device)
            if stat.S_ISCHR(mode):
                self._open_v4l2(task)
            else:
                self.is_file = stat.S_ISREG(mode)
                self._open_stream(_FROM_HERE)
        self._fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        self._count = 0
        self._hurry = task.hurry

    def _open_stream(self, protocols: str) -> None:
        # RTP over UDP loses packets, and pages with them. OpenCV hands these options to FFmpeg.
        os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = (
            f"rtsp_transport;tcp|fflags;nobuffer|analyzeduration;500000|protocol_whitelist;{protocols}"
        )
        settings = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS),
            *(cv2.CAP_PROP_N_THREADS, 1),
        ]
        self._capture = cv2.VideoCapture(self._device, cv2.CAP_FFMPEG, settings)
        if not self._capture.isOpened():
            raise InputError(why_not(self._device))

    def _open_v4l2(self, task: Task) -> None:
        # Uncompressed, USB carries few large pictures a second; a device without MJPEG keeps what it has.
        settings = [
            *(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG")),
            *(cv2.CAP_PROP_FRAME_WIDTH, task.width),
            *(cv2.CAP_PROP_FRAME_HEIGHT, task.height),
            *(cv2.CAP_PROP_BUFFERSIZE, 1),
        ]
        self._capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2, settings)
        if not self._capture.isOpened():
            self._capture = cv2.VideoCapture(self._device, cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise InputError(why_not(self._device))

    def grab(self) -> bool:
        """Go on to the next picture; false at the end of a file, or when the device is gone. May block for ever."""
        if not self._capture.grab():
            return False
        self._count += 1
        if self.is_file and not self._hurry:
            time.sleep(max(0.0, self._began + self._count / self._fps - time.monotonic()))
        return True

    def now(self) -> float:
        """Return the time of the picture in seconds: of the film for a file, of the clock for a device."""
        return self._count / self._fps if self.is_file else time.monotonic()

    def picture(self) -> Picture | None:
        """Return the newest picture: uint8 (height, width, 3), BGR; None when it is damaged."""
        done, picture = self._capture.retrieve()
        return cast(Picture, picture) if done and picture is not None and picture.ndim == 3 else None

    def lost(self) -> InputError:
        """Return what to say when no more pictures come."""
        if is_address(self._device):
            return InputError(f"{shown(self._device)}: the stream ended; is the camera on, and its network?")
        return InputError(f"{self._device}: the device gives no more pictures; is it plugged in?")


def shown(device: str) -> str:
    """Return a device for people: without user and password."""
    return re.sub(r"(?<=://)[^/@]*@", "", device)


def why_not(device: str) -> str:
    """Return why a device cannot be opened, as well as can be told, and what to do."""
    if is_address(device):
        return _why_no_stream(device)
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return _refusal(device, error)
    if stat.S_ISCHR(os.stat(device).st_mode):
        return f"{device}: gives no pictures; is it a camera, and has no other program opened it?"
    return f"{device}: not a video that can be read"


def _mode(device: str) -> int:
    try:
        return os.stat(device).st_mode
    except OSError as error:
        raise InputError(_refusal(device, error)) from error


def _refusal(device: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{device}: no such device; {_present()}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{device}: {error.strerror}: add this user to the group video"
    if error.errno == errno.EBUSY:
        return f"{device}: another program has opened it; end that one"
    return f"{device}: {error.strerror}"


def _present() -> str:
    """Return which cameras are plugged in, by their stable paths."""
    found = sorted(str(path) for path in Path("/dev/v4l/by-id").glob("*index0"))
    return f"plugged in: {', '.join(found)}" if found else "no camera is plugged in"


def _why_no_stream(address: str) -> str:
    import socket  # in the process that owns the device, and only when something is wrong

    found = _ADDRESS.match(address)
    assert found is not None
    host, port = found[2].strip("[]"), int(found[3] or _PORTS[found[1]])
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except socket.gaierror:
        return f"{shown(address)}: the name {host} is not known in this network"
    except ConnectionRefusedError:
        return f"{shown(address)}: {host} refuses port {port}: is the camera's stream on, and the port right?"
    except OSError as error:
        return f"{shown(address)}: {host} port {port}: {error.strerror or 'no answer'}: is the camera on?"
    return (
        f"{shown(address)}: {host} answers and gives no video: are path, username and password right? If so, restart it"
    )
