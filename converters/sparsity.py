"""Unstructured pruning: single values of filters of one pixel become zero where the output feels it least.

Layer by layer from the input on, on what the zeros before have left. Of each row of filters those values go whose loss
the others can best make up for, and they make up for it at once (Frantar and Alistarh 2023, "SparseGPT"); then the
values that stay are fitted to the output in float. The size of a value alone, the usual measure, says little on folded
weights. Paddle Lite skips zeros on ARM, in filters of one pixel only. Runs in a process of its own (`native`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters import child
from converters.calibrate import tensors
from converters.filters import shift_bias
from converters.graph import Graph, bias_of, only, result
from converters.network import Network
from converters.places import Floats, look
from converters.quantize import Layer, layers_of

BLOCK = 32
"""Inputs of a layer whose values are chosen together: later ones have then taken over from earlier ones."""
DAMPING = 0.01


def sparsify(
    source: str, pictures: str, mean: Sequence[float], std: Sequence[float], count: int, zeros: float, out: str
) -> dict[str, float]:
    """Write a model with zeros in its filters; returns the share of them by layer.

    Args:
        source: directory of the model in float.
        pictures: an `.npy` file, uint8 (N, H, W, 3); the first `count` are used.
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of pictures.
        zeros: share of the values of filters of one pixel that become zero.
        out: the directory to write.
    """
    graph, inputs = Graph.load(Path(source)), tensors(np.load(pictures)[:count], mean, std)
    before, after, found = Network(graph), Network(graph), {}
    for layer in child.counted([layer for layer in layers_of(graph) if is_pointwise(layer)]):
        op = next(op for op in graph.ops if result(op) == layer.name)
        name, bias = only(op, "Filter"), bias_of(graph, layer.name, layer.shape[0])
        given, seen = (look(network, layer.source, op, layer, inputs)[:, 0] for network in (before, after))
        flat = graph.params[name].reshape(layer.shape[:2]).astype(np.float64)
        thin, shift = thin_out(flat, given @ flat.T, seen, zeros)
        found[layer.name] = float((thin == 0.0).mean())
        graph.params[name] = thin.reshape(layer.shape).astype(np.float32)
        shift_bias(graph, layer, shift)
        for changed in filter(None, (name, bias)):
            after.set(changed, graph.params[changed])
    graph.save(Path(out))
    return found


def is_pointwise(layer: Layer) -> bool:
    """Say whether a layer's filters are of one pixel and mix channels: in these alone Paddle Lite skips zeros."""
    return layer.kind == "conv2d" and layer.shape[1] > 1 and layer.shape[2:] == (1, 1)


def thin_out(flat: Floats, wanted: Floats, seen: Floats, zeros: float) -> tuple[Floats, Floats]:
    """Return filters with zeros that give nearly the same, and what a bias behind them must grow by, (out,).

    Args:
        flat: (out, in).
        wanted: what they give in float, (places, out).
        seen: what they read now, (places, in).
        zeros: share of their values.
    """
    centred = seen - seen.mean(axis=0)
    moments = centred.T @ centred / len(seen)
    hold = DAMPING * np.trace(moments) / len(moments) + 1e-9
    moments += hold * np.eye(len(moments))
    cross = (wanted - wanted.mean(axis=0)).T @ centred / len(seen) + hold * flat
    thin = np.zeros_like(flat)
    for row, stays in enumerate(choose_values(flat, moments, zeros)):
        thin[row, stays] = np.linalg.solve(moments[np.ix_(stays, stays)], cross[row, stays])
    return thin, wanted.mean(axis=0) - thin @ seen.mean(axis=0)


def choose_values(flat: Floats, moments: Floats, zeros: float) -> Floats:
    """Return which values stay, bool (out, in): at least the share of zeros goes.

    Args:
        flat: filters, (out, in).
        moments: second moments of what they read, (in, in).
        zeros: the share.
    """
    # Row i of this factor of the inverse says how the values after i make up for its loss, given those before are set.
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T
    left, stays = flat.copy(), np.ones(flat.shape, bool)
    for start in range(0, flat.shape[1], BLOCK):
        block = slice(start, start + BLOCK)
        costs = (left[:, block] / np.diag(factor)[block]) ** 2
        stays[:, block] = costs > np.quantile(costs, zeros, method="higher")
        for value in range(start, min(start + BLOCK, flat.shape[1])):
            lost = np.where(stays[:, value], 0.0, left[:, value]) / factor[value, value]
            left[:, value:] -= np.outer(lost, factor[value, value:])
    return stays
