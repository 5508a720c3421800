"""Places of pictures at which a layer's input is looked at: some of each, always the same ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from converters.network import Network, windows
from converters.params import Array
from converters.quantize import Layer

PLACES = 8000
"""Of all pictures together."""
_BATCH = 16

Floats = npt.NDArray[np.float64]


def parts(inputs: Array, places: int = PLACES) -> Iterator[tuple[Array, dict[str, int]]]:
    """Yield pictures some at a time, with how many places of them to look at and the seed that chooses them.

    Args:
        inputs: (N, 3, H, W).
        places: of all pictures together.
    """
    for start in range(0, len(inputs), _BATCH):
        part = inputs[start : start + _BATCH]
        yield part, {"count": -(-places * len(part) // len(inputs)), "seed": start}


def choose(shape: tuple[int, ...], count: int, seed: int) -> tuple[Array, ...]:
    """Return indices of places in an array of a shape, in order, fewer where there are not so many."""
    size = int(np.prod(shape))
    chosen = np.sort(np.random.default_rng(seed).choice(size, min(size, count), replace=False))
    return np.unravel_index(chosen, shape)


def patches(values: Array, op: Any, layer: Layer, count: int = PLACES, seed: int = 0) -> Floats:
    """Return what a layer's filters see at some places of its input, always the same ones for one shape.

    Args:
        values: float32 (N, C, H, W).
        op: the convolution.
        layer: the same.
        count: places.
        seed: other ones for another.

    Returns:
        float64 (places, C, h * w) for depthwise layers, (places, 1, C * h * w) for others.
    """
    view = windows(values, op, layer.shape[2:])
    picture, row, column = choose((view.shape[0], *view.shape[2:4]), count, seed)
    seen: Floats = view[picture, :, row, column].astype(np.float64)
    return seen.reshape(len(seen), seen.shape[1] if layer.kind == "depthwise_conv2d" else 1, -1)


def look(network: Network, name: str, op: Any, layer: Layer, inputs: Array) -> Floats:
    """Return what a layer's filters see at some places of a variable; see `patches`.

    Args:
        network: that computes it.
        name: of the variable.
        op: the convolution.
        layer: the same.
        inputs: (N, 3, H, W).
    """
    return np.concatenate(
        [patches(network.fetch([name], part)[0], op, layer, **which) for part, which in parts(inputs)]
    )


def outputs(filters: Array, seen: Floats) -> Floats:
    """Return what filters give, without a bias.

    Args:
        filters: (out, in / groups, h, w).
        seen: (places, groups, values).

    Returns:
        float64 (places, groups, out per group).
    """
    flat = filters.reshape(seen.shape[1], -1, seen.shape[2]).astype(np.float64)
    given: Floats = np.einsum("pgv,gov->pgo", seen, flat, optimize=True)
    return given
