"""Filters rounded so that each layer's output stays, not each weight; layer by layer, on what int8 has left so far.

For a layer with filters w, inputs x in float and z as the layers before it, already in int8, give them: first the float
filters are moved to those that make w x from z best (least squares, as far as that serves other pictures), then they
are rounded so that the output on z changes least, which is a quadratic form in the rounding error (Nagel et al. 2020,
"Up or Down?"; Frantar et al. 2022, "GPTQ"), by coordinate descent over the integers. What is left of the mean goes into
the bias. Runs in a process of its own (`native`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from converters import child
from converters.calibrate import tensors
from converters.graph import Graph, bias_of, only, result
from converters.network import Network
from converters.params import Array
from converters.places import Floats, look, outputs, parts, patches
from converters.quantize import (
    PAIR,
    STEPS,
    Layer,
    able_layers,
    filter_scales,
    is_thin,
    largest_pairs,
    quantize,
    whole_steps,
)

WIDE = 1500
"""Layers whose filters have more values are not moved by least squares: there are too few places for them."""
DAMPING = 0.01
STRENGTHS = (0.01, 0.1, 1.0, np.inf)
"""How much filters are held to what they were in float; each layer takes the one that serves the last quarter of the
places best, which least squares have not seen. With 0.01 throughout, on 32 lines, the first convolution behind the
recogniser's backbone (1440 values, 1280 places) lost 0.0005 of its output there and 0.054 on real lines; not moved at
all, 0.0026 and 0.046."""
GRID = (1.0, 1.1)
"""Scales that are tried, as multiples of `filter_scales`."""
SWEEPS = 6


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
    after, wanted = Network(coarse), _outputs(plain, layers, inputs)
    saved: dict[str, Array] = {}
    left: dict[str, float] = {}
    for layer in child.counted(layers, grows=2):  # later ones are wider, and further from the input
        op = next(op for op in plain.ops if result(op) == layer.name)
        read = next(only(op, "Input") for op in coarse.ops if result(op) == layer.name)
        seen = look(after, read, op, layer, inputs)
        rounded = round_layer(plain.params[only(op, "Filter")], layer, wanted[layer.name], seen)
        _put(after, coarse, layer, rounded)
        saved |= {f"{layer.name}.{key}": getattr(rounded, key) for key in ("steps", "scales", "shift")}
        left[layer.name] = rounded.left
    np.savez(out, **saved)
    return left


def _outputs(graph: Graph, layers: Sequence[Layer], inputs: Array) -> dict[str, Floats]:
    """Return what layers give in float at the places that are looked at, (places, groups, out per group)."""
    network, ops = Network(graph), {result(op): op for op in graph.ops}
    sources = [*dict.fromkeys(layer.source for layer in layers)]
    found: dict[str, list[Floats]] = {layer.name: [] for layer in layers}
    for part, which in parts(inputs):
        values = dict(zip(sources, network.fetch(sources, part), strict=True))
        for layer in layers:
            op = ops[layer.name]
            seen = patches(values[layer.source], op, layer, **which)
            found[layer.name].append(outputs(graph.params[only(op, "Filter")], seen))
    return {name: np.concatenate(rows) for name, rows in found.items()}


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


def round_layer(filters: Array, layer: Layer, wanted: Floats, after: Floats) -> Rounded:
    """Return a layer's filters in int8.

    Args:
        filters: float32 (out, in / groups, h, w).
        layer: which.
        wanted: what it gives in float, (places, groups, out per group).
        after: what it sees in int8, (places, groups, values).
    """
    groups = after.shape[1]
    flat = filters.reshape(groups, -1, after.shape[2]).astype(np.float64)  # (groups, out per group, values)
    # Filters with zeros have been fitted to them, and would lose them.
    target = flat if after.shape[2] >= WIDE or is_thin(filters) else move(flat, wanted, after)
    moments = _damped(_moments(_centred(after)), DAMPING)
    base = filter_scales(target.reshape(filters.shape).astype(np.float32), layer.kind).astype(np.float64)
    steps, scales = _best(target, base.reshape(groups, -1) / STEPS, moments, layer)
    rounded = steps * scales[:, :, None]
    made = outputs(rounded, after)
    shift = wanted.mean(axis=0) - made.mean(axis=0)
    left = float(((wanted - made - shift) ** 2).mean() / max(1e-12, wanted.var(axis=0).mean()))
    return Rounded(
        steps.reshape(filters.shape).astype(np.int8),
        (scales.reshape(-1) * STEPS).astype(np.float32),
        shift.reshape(-1),
        left,
    )


def move(flat: Floats, wanted: Floats, after: Floats) -> Floats:
    """Return filters moved so that they make the wanted outputs, as far as that serves other pictures too.

    Args:
        flat: (groups, out per group, values).
        wanted: (places, groups, out per group), in the order of pictures.
        after: (places, groups, values).
    """
    last = len(after) * 3 // 4
    fitted = _fit(flat, wanted[:last], after[:last], STRENGTHS)
    best = min(STRENGTHS, key=lambda strength: _error(fitted[strength], wanted[last:], after[last:]))
    return _fit(flat, wanted, after, (best,))[best]


def _fit(flat: Floats, wanted: Floats, after: Floats, strengths: Sequence[float]) -> dict[float, Floats]:
    """Return the filters of least squares, held to the given ones with each of some strengths."""
    finite = [strength for strength in strengths if strength != np.inf]
    if not finite:
        return dict.fromkeys(strengths, flat)
    centred = _centred(after)
    missing = wanted - outputs(flat, after)
    missing -= missing.mean(axis=0)
    cross = centred.transpose(0, 2, 1) @ missing.transpose(1, 0, 2) / len(after)  # (groups, values, out)
    moments = _moments(centred)
    moved = {one: flat + np.linalg.solve(_damped(moments, one), cross).transpose(0, 2, 1) for one in finite}
    return {one: moved.get(one, flat) for one in strengths}


def _error(flat: Floats, wanted: Floats, after: Floats) -> float:
    error = wanted - outputs(flat, after)
    return float(((error - error.mean(axis=0)) ** 2).mean())


def _centred(after: Floats) -> Floats:
    return np.ascontiguousarray((after - after.mean(axis=0)).transpose(1, 0, 2))  # (groups, places, values)


def _moments(centred: Floats) -> Floats:
    found: Floats = centred.transpose(0, 2, 1) @ centred / centred.shape[1]
    return found


def _damped(moments: Floats, strength: float) -> Floats:
    """Return second moments with a share of their mean on the diagonal."""
    mean = np.trace(moments, axis1=1, axis2=2) / moments.shape[1]
    damped: Floats = moments + np.eye(moments.shape[1]) * (strength * mean + 1e-9)[:, None, None]
    return damped


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

    Zeros stay.

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
            new = np.where(target[:, :, value] == 0.0, 0.0, whole_steps(wish))
            move = (new - steps[:, :, value]) * scales
            if move.any():
                changed = True
                steps[:, :, value] = new
                pull -= move[:, :, None] * moments[:, None, value]
        if not changed:
            break
    return steps
