"""How far a conversion is and how long it still takes, for a person who waits."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from typing import TextIO

from converters.recipe import Compression

AFTER_S = 3.0
"""Nothing is shown of stages that are done sooner."""

LINE_EVERY_S = 30.0
"""So often a line is written where it cannot be written anew."""

_ANEW_EVERY_S = 0.3


USUAL_S = {
    "prune det": 138.0,
    "thin det": 200.0,
    "calibrate det": 77.0,
    "weigh det": 27.0,
    "thin rec": 250.0,
    "smooth rec": 80.0,
    "calibrate rec": 121.0,
    "weigh rec": 40.0,
    "round rec": 413.0,
    "agree rec": 7.0,
    "train det": 1000.0,
    "train rec": 1000.0,
    "draw pages": 3.0,
    "read drawn": 213.0,
}
"""Seconds of the stages of models/ppocr-v4-int8.toml that take longest: AMD EPYC, two cores, other work beside,
2026-11-22. The pace of this machine corrects them: see `Stages`."""


def usual_times(settings: Compression) -> dict[str, float]:
    """Return the seconds that the long stages of a compression usually take, by name."""
    wanted = {"prune": settings.prune.models if settings.prune else (), "smooth": settings.smoothed}
    wanted["thin"] = settings.thin.models if settings.thin else ()
    wanted |= {"round": settings.rounded, "train": settings.train.models if settings.train else ()}
    if settings.method != "qat":
        wanted["train"] = ()
    about = {*settings.models, "pages", "drawn"}
    found = {}
    for name, time_s in USUAL_S.items():
        stage, what = name.split()
        if what in wanted.get(stage, about):
            found[name] = time_s
    return found


class Meter:
    """Shows what share of a stage is done and the time left: on a terminal in one line that is written anew.

    Args:
        stream: to write to; None for silence.
        clock: monotonic seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._anew = stream is not None and stream.isatty()
        self._shown = False
        self.begin("", 0.0)

    def begin(self, stage: str, rest_s: float) -> None:
        """Start a stage.

        Args:
            stage: its name.
            rest_s: what the stages after it will take; 0 where nobody knows.
        """
        self._stage, self._rest_s = stage, rest_s
        self._first: tuple[int, float] | None = None
        self._next = self._clock() + (AFTER_S if self._anew else LINE_EVERY_S)

    def show(self, done: int, total: int) -> None:
        """Take how far the stage is; the first call starts its clock, so that loading what it needs is not counted."""
        now = self._clock()
        first, began = self._first = self._first or (done, now)
        if self._stream is None or now < self._next or done <= first or total <= 0:
            return
        self._next = now + (_ANEW_EVERY_S if self._anew else LINE_EVERY_S)
        left_s = (now - began) / (done - first) * (total - done)
        text = f"{self._stage:<14} {done / total:5.0%}       {told_time(left_s)} left"
        if self._rest_s > left_s / 10:
            text += f", {told_time(left_s + self._rest_s)} for all stages"
        self._write(text)

    def end(self) -> None:
        """Remove what is shown."""
        if self._shown:
            self._put("\r\033[K")
            self._shown = False

    def _write(self, text: str) -> None:
        if self._anew:
            columns = shutil.get_terminal_size().columns or 80  # a terminal may not know
            self._put(f"\r\033[K{text[: columns - 1]}")
            self._shown = True
        else:
            self._put(f"{text}\n")

    def _put(self, text: str) -> None:
        assert self._stream is not None  # else nothing is written
        with contextlib.suppress(OSError, ValueError):  # whoever read it has gone: no reason to stop working
            self._stream.write(text)
            self._stream.flush()


def told_time(seconds: float) -> str:
    """Return a time as a person would say it of one that is guessed."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 100 else f"about {round(minutes / 60)} h"
