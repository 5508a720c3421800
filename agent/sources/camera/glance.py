"""What a camera source and the process that owns its device say to each other: JSON lines, a task in, glances out."""

from __future__ import annotations

from typing import Literal

import msgspec

GLANCE_S = 0.5
"""A glance is sent this often, as long as the device gives pictures."""

MAX_WAITING = 20
"""Pages that may wait to be claimed; a page under the camera is not taken while so many do."""

SeenState = Literal["moving", "waiting", "black", "empty", "blurred", "known", "ready"]
"""What the gate makes of a picture: only one that is "ready" is taken."""
State = Literal[SeenState, "opening", "full", "unwritable", "lost", "ended"]
"""And what may be besides."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture must be to be taken.

    Attributes:
        still_s: it has not moved for so long.
        motion: no more of it changed meanwhile, in percent of the picture.
        sharpness: its edges are at least so steep, in grey levels a pixel.
        change: so much of its writing is not where it was on the page taken last, in percent.
        text: so much of it stands out like writing, in percent of the picture.
        black: it is brighter than this on average, in grey levels.
    """

    still_s: float
    motion: float
    sharpness: float
    change: float
    text: float
    black: float


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the picture that is looked at; edges as shares of its width and height."""

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What the process is to do; its first line of standard input, because it may hold a password.

    Attributes:
        device: path or address, with user and password where it needs them.
        parent: number of the process that starts it, with which it ends.
        limits: what is taken.
        region: what is looked at.
        width: asked of a V4L2 device, in pixels.
        height: likewise.
        spool: folder that pages are put into; "" takes none and only measures, everything at every look.
        memory_fd: descriptor of a file for the page taken last, or -1.
        shot: file that the first picture is written to, as PNG; "" none.
        hurry: a video file is played as fast as it can be.
    """

    device: str
    parent: int
    limits: Limits
    region: Region = Region()
    width: int = 1920
    height: int = 1080
    spool: str = ""
    memory_fd: int = -1
    shot: str = ""
    hurry: bool = False


class Glance(msgspec.Struct, frozen=True, kw_only=True):
    """What the process sees.

    Attributes:
        state: what it makes of it.
        at: when, in seconds of the monotonic clock.
        frames: pictures that the device gave so far.
        changes: looks that found a picture that was not there a moment before.
        taken: pages taken so far.
        width: of what is looked at, in pixels.
        height: likewise.
        brightness: mean, in grey levels.
        motion: percent of the picture that moved since it was last still.
        sharpness: grey levels a pixel at the steepest edges; -1 not measured.
        change: percent of the writing that is not as on the page taken last; -1 not measured.
        text: percent of the picture that stands out like writing; -1 not measured.
        said: one line about a trouble.
    """

    state: State
    at: float
    frames: int = 0
    changes: int = 0
    taken: int = 0
    width: int = 0
    height: int = 0
    brightness: float = 0.0
    motion: float = 0.0
    sharpness: float = -1.0
    change: float = -1.0
    text: float = -1.0
    said: str = ""
