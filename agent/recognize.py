"""Line pictures -> recogniser inputs in width buckets; CTC probabilities -> text and scores."""

from __future__ import annotations

import math

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
