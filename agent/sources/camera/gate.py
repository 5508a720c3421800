"""The still gate: tells which picture of a camera is a new page, once, when it is still, sharp and different.

Each measure has a plain unit, so that a technician can see it with `edge-ocr camera` and set its limit.
"""

from __future__ import annotations

from typing import Any, cast

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from agent.sources.camera.glance import Limits, SeenState

Grey = npt.NDArray[np.uint8]

SMALL = 160  # longest side that motion is looked for in: noise is gone, a finger is not
MIDDLE = 960  # longest side that writing is looked at in: a line of print on A4 is four pixels high
MOVED = 10  # grey levels; what noise and JPEG leave in a small picture is a third of it
STANDS_OUT = 16  # grey levels between writing and what surrounds it
AROUND = 15  # pixels of the middle picture: what surrounds
BLOCK, SHIFT = 32, 4  # pixels of the middle picture: a place of writing, and how far it may have been nudged
INKED = 12.0  # grey levels, standard deviation in a place of writing; noise leaves it at 6
SAME = 0.75  # correlation of two pictures of one place; another line of print in its place has about a half
AGAIN_S = 5.0  # what was found not to be a new page is judged again this often, though nothing moved
STEEP = 0.005  # of all pixels lie on edges at least as steep as the sharpness says
SETTLED = 1.1  # a lens that still makes it sharper by this factor between two looks is waited for


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured in a picture; -1 what was not needed. Units as in `Glance`."""

    state: SeenState
    brightness: float
    motion: float
    sharpness: float = -1.0
    change: float = -1.0
    text: float = -1.0


class Gate:
    """Looks at pictures in turn."""

    def __init__(self, limits: Limits, last: Grey | None = None, *, thorough: bool = False) -> None:
        """Make a gate.

        Args:
            limits: what is taken.
            last: the page taken last, as `middle` made it.
            thorough: whether everything is measured at every look.
        """
        self._limits = limits
        self._last = last
        self._thorough = thorough
        self._anchor: Grey | None = None  # the picture as it was when it came to rest
        self._since = self._judged_at = float("-inf")
        self._verdict: Measures | None = None
        self._sharpness = 0.0

    def look(self, picture: Grey, now: float) -> Measures:
        """Return what a picture is.

        Args:
            picture: uint8 (height, width), grey.
            now: seconds.
        """
        small = cast(Grey, cv2.blur(_shrunk(picture, SMALL), (3, 3)))
        brightness = float(small.mean())
        motion = self._motion(small)
        if motion > self._limits.motion:
            self._anchor, self._since, self._verdict = small, now, None
        if self._thorough:
            return self._judge(picture, brightness, motion, now)
        if brightness <= self._limits.black:
            return Measures(state="black", brightness=brightness, motion=motion)
        if motion > self._limits.motion or now - self._since < self._limits.still_s:
            state: SeenState = "moving" if motion > self._limits.motion else "waiting"
            self._sharpness = sharpness_of(picture) if state == "waiting" else 0.0
            return Measures(state=state, brightness=brightness, motion=motion, sharpness=self._sharpness)
        if self._verdict is None or now - self._judged_at >= AGAIN_S:
            self._judged_at = now
            found = self._judge(picture, brightness, motion, now)
            self._verdict = found if found.state in ("empty", "known") else None
            return found
        return msgspec.structs.replace(self._verdict, brightness=brightness, motion=motion)

    def take(self, picture: Grey) -> Grey:
        """Note that a picture was taken; returns what to give the next gate as `last`."""
        self._last = middle(picture)
        return self._last

    def _motion(self, small: Grey) -> float:
        """Return how much of the picture is not as it was, in percent; brighter or darker as a whole is as it was."""
        if self._anchor is None or self._anchor.shape != small.shape:
            return 100.0
        difference = small.astype(np.int16) - self._anchor
        difference -= np.int16(np.median(difference))
        return 100.0 * np.count_nonzero(np.abs(difference) > MOVED) / difference.size

    def _judge(self, picture: Grey, brightness: float, motion: float, now: float) -> Measures:
        seen = middle(picture)
        written = writing(seen)
        text = 100.0 * np.count_nonzero(written) / written.size
        before, self._sharpness = self._sharpness, sharpness_of(picture)
        change = self._change(seen, written) if self._thorough or text >= self._limits.text else -1.0
        state = self._state(brightness, motion, text, change, before, now)
        return Measures(
            state=state, brightness=brightness, motion=motion, sharpness=self._sharpness, change=change, text=text
        )

    def _state(
        self, brightness: float, motion: float, text: float, change: float, before: float, now: float
    ) -> SeenState:
        limits = self._limits
        if brightness <= limits.black:
            return "black"
        if motion > limits.motion:
            return "moving"
        if now - self._since < limits.still_s:
            return "waiting"
        if text < limits.text:
            return "empty"
        if change < limits.change:
            return "known"
        if self._sharpness < limits.sharpness:
            return "blurred"
        return "waiting" if self._sharpness > SETTLED * max(before, limits.sharpness) else "ready"

    def _change(self, seen: Grey, written: npt.NDArray[np.bool_]) -> float:
        """Return which share of the writing is not as on the page taken last, in percent."""
        if self._last is None or self._last.shape != seen.shape:
            return 100.0
        likeness = [_likeness(seen, self._last, x, y) for x, y in _places(written | writing(self._last))]
        inked = [alike for alike in likeness if alike is not None]
        return 100.0 * sum(alike < SAME for alike in inked) / len(inked) if inked else 0.0


def middle(picture: Grey) -> Grey:
    """Return a picture at the scale that writing is looked at in."""
    return cast(Grey, cv2.GaussianBlur(_shrunk(picture, MIDDLE), (3, 3), 0))


def writing(seen: Grey) -> npt.NDArray[np.bool_]:
    """Return where a middle picture stands out from what surrounds it, as writing does and a shadow does not."""
    return cast("npt.NDArray[np.bool_]", cv2.absdiff(seen, cv2.blur(seen, (AROUND, AROUND))) > STANDS_OUT)


def sharpness_of(picture: Grey) -> float:
    """Return how steep the steepest edges of a picture are, in grey levels a pixel, noise left out."""
    smooth = cv2.blur(picture, (3, 3))
    across = cv2.absdiff(smooth[:, 1:], smooth[:, :-1])
    down = cv2.absdiff(smooth[1:], smooth[:-1])
    counts = cv2.calcHist([across], [0], None, [256], [0, 256]) + cv2.calcHist([down], [0], None, [256], [0, 256])
    above = np.cumsum(counts[::-1, 0])[::-1]
    return float(np.count_nonzero(above >= STEEP * above[0]) - 1)


def _shrunk(picture: Grey, longest: int) -> Grey:
    height, width = picture.shape
    scale = longest / max(height, width)
    if scale >= 1.0:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast(Grey, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _places(written: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the corners (x, y) of the blocks that hold writing."""
    height, width = (side // BLOCK * BLOCK for side in written.shape)
    blocks = written[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).sum(axis=(1, 3))
    return [(int(x) * BLOCK, int(y) * BLOCK) for y, x in np.argwhere(blocks > BLOCK * BLOCK // 50)]


def _likeness(seen: Grey, last: Grey, x: int, y: int) -> float | None:
    """Return how well a block is found again, a nudge away at most: a correlation, or None where nothing is in it."""
    inside = slice(y, y + BLOCK), slice(x, x + BLOCK)
    ink = seen[inside].std(), last[inside].std()
    if max(ink) < INKED:
        return None
    if ink[0] < ink[1]:
        seen, last = last, seen  # nothing is found anywhere
    left, top = max(0, x - SHIFT), max(0, y - SHIFT)
    found: Any = cv2.matchTemplate(
        last[top : y + BLOCK + SHIFT, left : x + BLOCK + SHIFT], seen[inside], cv2.TM_CCOEFF_NORMED
    )
    return float(found.max())
