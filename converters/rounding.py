"""Filters rounded so that each layer's output stays, not each weight; layer by layer, on what int8 has left so far.

For a layer with filters w, inputs x in float and z as the layers before it, already in int8, give them: first the float
filters are moved to those that make w x from z best (least squares), then they are rounded so that the output on z
changes least, which is a quadratic form in the rounding error (Nagel et al. 2020, "Up or Down?"; Frantar et al. 2022,
"GPTQ"), by coordinate descent over the integers. What is left of the mean goes into the bias. Runs in a process of its
own (`native`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from converters import child
from converters.calibrate import tensors
from converters.graph import Graph, bias_of, only, result
from converters.network import Network, windows
from converters.params import Array
from converters.quantize import PAIR, STEPS, Layer, able_layers, filter_scales, largest_pairs, quantize, whole_steps

PATCHES = 8000
"""Places of a layer's input that are looked at."""
WIDE = 1500
"""Layers whose filters have more values are not moved by least squares: there are too few places for them."""
DAMPING = 0.01
GRID = (1.0, 1.1)
"""Scales that are tried, as multiples of `filter_scales`."""
SWEEPS = 6

Floats = npt.NDArray[np.float64]


class Rounded(msgspec.Struct, frozen=True):
    """A layer's filters in int8.

    Attributes:
        steps: int8 (out, in / groups, h, w).
        scales: float32 (out,), what 127 steps stand for.
        shift: float64 (out,), what its bias must grow by.
        left: variance of the output's error, as a share of the output's.
    """

    steps: Array
    scales: Array
    shift: Array
    left: float


def round_layers(
    source: str,
    scales: str,
    pictures: str,
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    kept: Sequence[str],
    out: str,
) -> dict[str, float]:
    """Round every layer that is not kept in float; returns what is left of error in each.

    Args:
        source: directory of the model in float.
        scales: file of the activations' scales.
        pictures: an `.npy` file, uint8 (N, H, W, 3); the first `count` are used.
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of pictures.
        kept: names of the layers that stay in float.
        out: an `.npz` file; for each layer `NAME.steps`, `NAME.scales` and `NAME.shift`.
    """
    activations = msgspec.json.decode(Path(scales).read_bytes(), type=dict[str, float])
    inputs = tensors(np.load(pictures)[:count], mean, std)
    plain = Graph.load(Path(source))
    layers = able_layers(plain, activations, kept)
    coarse = Graph.load(Path(source))
    quantize(coarse, activations, layers)
    before, after = Network(plain), Network(coarse)
    saved: dict[str, Array] = {}
    left: dict[str, float] = {}
    for layer in child.counted(layers, grows=2):  # later ones are wider, and further from the input
        op = next(op for op in plain.ops if result(op) == layer.name)
        read = next(only(op, "Input") for op in coarse.ops if result(op) == layer.name)
        pairs = ((before, layer.source), (after, read))
        rows = [patches(network.fetch([name], inputs)[0], op, layer) for network, name in pairs]
        rounded = round_layer(plain.params[only(op, "Filter")], layer, *rows)
        _put(after, coarse, layer, rounded)
        saved |= {f"{layer.name}.{key}": getattr(rounded, key) for key in ("steps", "scales", "shift")}
        left[layer.name] = rounded.left
    np.savez(out, **saved)
    return left


def _put(network: Network, graph: Graph, layer: Layer, rounded: Rounded) -> None:
    """Give a layer of an int8 graph other filters, and another bias."""
    op = next(op for op in graph.ops if result(op) == layer.name)
    reader = next(other for other in graph.ops if only(other, "Y", out=True) == only(op, "Filter"))
    network.set(only(reader, "X"), rounded.steps)
    network.set(only(reader, "Scale"), rounded.scales)
    bias = bias_of(graph, layer.name, layer.shape[0])
    if bias:
        value = network.get(bias)
        network.set(bias, value + rounded.shift.reshape(value.shape))


def patches(values: Array, op: Any, layer: Layer) -> Floats:
    """Return what a layer's filters see at some places of its input, always the same ones for one shape.

    Args:
        values: float32 (N, C, H, W).
        op: the convolution.
        layer: the same.

    Returns:
        float64 (places, C, h * w) for depthwise layers, (places, 1, C * h * w) for others.
    """
    view = windows(values, op, layer.shape[2:])
    places = view.shape[0] * view.shape[2] * view.shape[3]
    chosen = np.sort(np.random.default_rng(0).choice(places, min(places, PATCHES), replace=False))
    picture, row, column = np.unravel_index(chosen, (view.shape[0], *view.shape[2:4]))
    seen: Floats = view[picture, :, row, column].astype(np.float64)
    return seen.reshape(len(seen), seen.shape[1] if layer.kind == "depthwise_conv2d" else 1, -1)


def round_layer(filters: Array, layer: Layer, before: Floats, after: Floats) -> Rounded:
    """Return a layer's filters in int8.

    Args:
        filters: float32 (out, in / groups, h, w).
        layer: which.
        before: what it sees in float, (places, groups, values).
        after: what it sees in int8.
    """
    groups = before.shape[1]
    flat = filters.reshape(groups, -1, after.shape[2]).astype(np.float64)  # (groups, out per group, values)
    wanted = np.einsum("pgv,gov->pgo", before, flat)
    middle = after.mean(axis=0)
    centred = np.ascontiguousarray((after - middle).transpose(1, 0, 2))  # (groups, places, values)
    moments = centred.transpose(0, 2, 1) @ centred / len(after)
    moments += (
        np.eye(moments.shape[1])
        * (DAMPING * np.trace(moments, axis1=1, axis2=2) / moments.shape[1] + 1e-9)[:, None, None]
    )
    target = flat
    if after.shape[2] < WIDE:
        missing = wanted - np.einsum("pgv,gov->pgo", after, flat)
        missing -= missing.mean(axis=0)
        cross = centred.transpose(0, 2, 1) @ missing.transpose(1, 0, 2) / len(after)  # (groups, values, out)
        target = flat + np.linalg.solve(moments, cross).transpose(0, 2, 1)
    base = filter_scales(target.reshape(filters.shape).astype(np.float32), layer.kind).astype(np.float64)
    steps, scales = _best(target, base.reshape(groups, -1) / STEPS, moments, layer)
    rounded = steps * scales[:, :, None]
    made = np.einsum("pgv,gov->pgo", after, rounded)
    shift = wanted.mean(axis=0) - made.mean(axis=0)
    left = float(((wanted - made - shift) ** 2).mean() / max(1e-12, wanted.var(axis=0).mean()))
    return Rounded(
        steps.reshape(filters.shape).astype(np.int8),
        (scales.reshape(-1) * STEPS).astype(np.float32),
        shift.reshape(-1),
        left,
    )


def _best(target: Floats, base: Floats, moments: Floats, layer: Layer) -> tuple[Floats, Floats]:
    """Return the integers and step sizes with the smallest error, of those whose pairs cannot overflow."""
    steps, scales = whole_steps(target / base[:, :, None]), base.copy()
    least = np.full(base.shape, np.inf)
    for factor in GRID:
        tried = descend(target, factor * base, moments)
        error = target - tried * (factor * base)[:, :, None]
        cost = np.einsum("gov,gvw,gow->go", error, moments, error, optimize=True)
        pairs = largest_pairs(tried.reshape(-1, tried.shape[2]), layer.kind).reshape(base.shape)
        better = np.where(pairs > PAIR, np.inf, cost) < least
        steps[better], scales[better], least[better] = tried[better], (factor * base)[better], cost[better]
    return steps, scales


def descend(target: Floats, scales: Floats, moments: Floats) -> Floats:
    """Return integers near target / scales that make the quadratic form of the error small: one value at a time.

    Args:
        target: (groups, out, values).
        scales: (groups, out), the size of a step.
        moments: (groups, values, values), second moments of the inputs.
    """
    steps = whole_steps(target / scales[:, :, None])
    pull = (target - steps * scales[:, :, None]) @ moments  # (groups, out, values)
    for _ in range(SWEEPS):
        changed = False
        for value in range(target.shape[2]):
            wish = steps[:, :, value] + pull[:, :, value] / moments[:, value, value, None] / scales
            new = whole_steps(wish)
            move = (new - steps[:, :, value]) * scales
            if move.any():
                changed = True
                steps[:, :, value] = new
                pull -= move[:, :, None] * moments[:, None, value]
        if not changed:
            break
    return steps
