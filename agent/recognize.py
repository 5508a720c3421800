"""Line pictures -> recogniser inputs in width buckets; CTC probabilities -> text and scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32]


class Reading(msgspec.Struct, frozen=True):
    """The text of one line.

    Attributes:
        text: the characters, blanks and repeats removed.
        character_scores: probability of each class that was read, 0..1, in reading order.
    """

    text: str
    character_scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean probability of the characters; 0 for no text."""
        return sum(self.character_scores) / len(self.character_scores) if self.character_scores else 0.0


def bucket(width: int, step: int, max_width: int) -> int:
    """Return the input width of a line `width` pixels wide: the next multiple of `step`, at most `max_width`."""
    return max(step, min(math.ceil(width / step) * step, max_width))


# What a new input width costs, in pixels of width of one line: rebuilding the predictor takes 6 ms, a pixel 0.06 ms.
REBUILD_PX = 100


def plan_widths(widths: Sequence[int], step: int) -> tuple[int, ...]:
    """Return an input width for each line: few different ones, where that is cheaper than the padding it costs.

    Each is a multiple of `step` and no less than the line's own. The choice is the cheapest one, by dynamic
    programming over the sorted widths.

    Args:
        widths: natural widths in pixels, multiples of `step`.
        step: what input widths are multiples of.
    """
    rounded = [max(step, math.ceil(width / step) * step) for width in widths]
    distinct = sorted(set(rounded))
    counts = [rounded.count(width) for width in distinct]
    best: list[tuple[int, int]] = []  # for the first n distinct widths: least cost, and where its last group begins
    for end in range(len(distinct)):
        lines, options = 0, []
        for begin in range(end, -1, -1):
            lines += counts[begin]
            before = best[begin - 1][0] if begin else 0
            options.append((before + REBUILD_PX + lines * distinct[end], begin))
        best.append(min(options))
    chosen: dict[int, int] = {}
    end = len(distinct) - 1
    while end >= 0:
        begin = best[end][1]
        chosen.update(dict.fromkeys(distinct[begin : end + 1], distinct[end]))
        end = begin - 1
    return tuple(chosen[width] for width in rounded)


def decode(probabilities: Tensor, characters: tuple[str, ...]) -> Reading:
    """Decode one line greedily: best class of each step, repeats merged, blanks dropped (Graves et al. 2006).

    Args:
        probabilities: float32 (T, classes), class 0 is the blank.
        characters: the text of each class.
    """
    best = probabilities.argmax(axis=1)
    kept = best != 0
    kept[1:] &= best[1:] != best[:-1]
    steps = np.flatnonzero(kept)
    scores = np.clip(probabilities[steps, best[steps]], 0.0, 1.0)
    return Reading("".join(characters[i] for i in best[steps]), tuple(float(s) for s in scores))
