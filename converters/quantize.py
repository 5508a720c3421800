"""Convolutions in int8: scales in, a graph with QuantizeLinear and DequantizeLinear around each of them out.

The arithmetic is symmetric: an activation has one scale, filters have one per output channel. Paddle writes such graphs
itself after calibration or training; this module does it from the scales alone, so that the same scales serve graphs
with another choice of layers, and so that the filters' scales suit the kernels (`filter_scales`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from converters.graph import Graph, Value, only, result
from converters.params import Array
from converters.passes import has_weights

STEPS = 127
"""An int8 value is -127..127 of a scale's steps; -128 is not used."""

PAIR = 128
"""Two neighbouring filter values add up to no more than this: see `filter_scales`."""

QUANTIZED = ("conv2d", "depthwise_conv2d")
"""Operators that can run in int8."""
_THIN = 0.02
"""Share of zeros that filters do not have by chance."""
LINEAR: dict[str, Value] = {"bit_length": 8, "round_type": 0, "qmin": -128, "qmax": 127, "is_test": True}
"""Attributes of an operator that rounds to int8, or back."""


class Layer(msgspec.Struct, frozen=True):
    """A convolution that can run in int8.

    Attributes:
        name: the variable it writes.
        kind: its operator.
        source: the variable it reads.
        shape: of its filters, (out, in / groups, h, w).
    """

    name: str
    kind: str
    source: str
    shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of its filters' values."""
        return int(np.prod(self.shape))


class Filters(msgspec.Struct, frozen=True):
    """A layer's filters: int8 (out, in / groups, h, w), and float32 (out,), what 127 steps stand for."""

    steps: Array
    scales: Array


def layers_of(graph: Graph) -> tuple[Layer, ...]:
    """Return the convolutions that can run in int8, in order.

    Those that read a picture of one pixel, as in squeeze-and-excitation, are left out: Paddle Lite's int8 kernel for
    x86 gives wrong numbers there, and they have next to no share in the time.
    """
    return tuple(
        Layer(result(op), op.type, only(op, "Input"), graph.params[only(op, "Filter")].shape)
        for op in graph.ops
        if op.type in QUANTIZED and has_weights(graph, op) and not _is_pixel(graph, only(op, "Input"))
    )


def _is_pixel(graph: Graph, name: str) -> bool:
    return graph.shape(name)[2:] == [1, 1]


def is_thin(filters: Array) -> bool:
    """Say whether filters have lost single values (`converters.sparsity`); their zeros are to stay."""
    return bool((filters == 0.0).mean() > _THIN)


def able_layers(graph: Graph, activations: Mapping[str, float], kept: Collection[str]) -> list[Layer]:
    """Return those of `layers_of` that are not kept in float and whose input has a scale."""
    return [layer for layer in layers_of(graph) if layer.name not in kept and activations.get(layer.source)]


def filter_scales(filters: Array, kind: str) -> npt.NDArray[np.float32]:
    """Return the scale of each output channel: what 127 steps stand for.

    Not simply the largest value. Paddle Lite's int8 kernels for x86 multiply activations, moved up to 0..255, with
    two neighbouring filter values and add the products in 16 bits, which overflow without a word when the two values
    are together above 128 steps. Scales that keep every pair below that make both machines compute the same integers,
    and cost a quarter of a bit. Pairs are neighbours in memory; depthwise kernels pair values in another order, so
    that there the two largest count.

    Args:
        filters: float32 (out, in / groups, h, w).
        kind: the operator.
    """
    largest = np.abs(filters).max(axis=(1, 2, 3)).astype(np.float64)
    largest[largest == 0.0] = 1.0
    steps = filters.reshape(len(filters), -1) / largest[:, None] * STEPS
    pairs = largest_pairs(steps, kind)
    scales: npt.NDArray[np.float32] = (largest * np.maximum(1.0, pairs / PAIR)).astype(np.float32)
    return scales


def whole_steps(steps: Array) -> Array:
    """Return the nearest whole numbers of steps that int8 holds, still as floats."""
    whole: Array = np.clip(np.rint(steps), -STEPS, STEPS)
    return whole


def largest_pairs(steps: Array, kind: str) -> Array:
    """Return the largest sum of two values that a kernel adds up, for each row of (out, values)."""
    return _two_largest(steps) if kind.startswith("depthwise") else _largest_pair(steps)


def keep_pairs(steps: Array, kind: str) -> Array:
    """Return filters in which no pair is above `PAIR`: of one that is, the larger value is moved towards 0.

    Args:
        steps: whole numbers, (out, in / groups, h, w).
        kind: the operator.
    """
    rows = steps.reshape(len(steps), -1).copy()
    while (over := np.flatnonzero(largest_pairs(rows, kind) > PAIR)).size:
        for index in over:
            row = rows[index]
            first = _where_largest(row, kind)
            row[first] -= np.sign(row[first])
    return rows.reshape(steps.shape)


def _two_largest(steps: Array) -> Array:
    if steps.shape[1] < 2:
        return np.zeros(len(steps))
    two: Array = np.sort(np.abs(steps), axis=1)[:, -2:].sum(axis=1)
    return two


def _largest_pair(steps: Array) -> Array:
    """Return the largest sum, of one sign, of values 2 i and 2 i + 1."""
    even = np.pad(steps, ((0, 0), (0, steps.shape[1] % 2))).reshape(len(steps), -1, 2)
    up, down = (np.clip(sign * even, 0, None).sum(axis=2) for sign in (1, -1))
    largest: Array = np.maximum(up, down).max(axis=1)
    return largest


def _where_largest(row: Array, kind: str) -> int:
    """Return the index of the larger value of the pair that is the largest."""
    if kind.startswith("depthwise"):
        return int(np.abs(row).argmax())
    even = np.pad(row, (0, len(row) % 2)).reshape(-1, 2)
    sums = np.maximum(np.clip(even, 0, None).sum(axis=1), np.clip(-even, 0, None).sum(axis=1))
    pair = int(sums.argmax())
    return 2 * pair + int(np.abs(even[pair]).argmax())


def quantize(
    graph: Graph,
    activations: Mapping[str, float],
    layers: Collection[Layer],
    filters: Mapping[str, Filters] | None = None,
) -> int:
    """Put convolutions of a graph into int8, in place; returns how many.

    Args:
        graph: a graph of float32.
        activations: for the variables that layers read, what 127 steps stand for. Layers that read others stay.
        layers: which of `layers_of`.
        filters: of layers, by name, where they are not simply to be rounded.
    """
    wanted = {layer.name for layer in layers if activations.get(layer.source, 0.0) > 0.0}
    ready: dict[str, str] = {}
    ops: list[Any] = []
    for op in list(graph.ops):
        if op.type in QUANTIZED and result(op) in wanted:
            source = only(op, "Input")
            if source not in ready:
                ready[source] = _add_activation(graph, ops, source, activations[source])
            given = (filters or {}).get(result(op)) or nearest(graph.params[only(op, "Filter")], op.type)
            rounded = _add_filter(graph, ops, op, given)
            for slot in op.inputs:
                if slot.parameter in ("Input", "Filter"):
                    slot.arguments[:] = [ready[source] if slot.parameter == "Input" else rounded]
        ops.append(op)
    graph.replace_ops(ops)
    return len(wanted)


def _add_activation(graph: Graph, ops: list[Any], name: str, scale: float) -> str:
    """Add the operators that round an activation to int8 and back; returns the rounded one."""
    numbers = _numbers(graph, name, np.array([scale], np.float32))
    whole, rounded = (graph.add_variable(f"{name}.{word}", graph.shape(name), like=name) for word in ("int8", "back"))
    ops.append(graph.new_op("quantize_linear", {"X": [name], **numbers}, {"Y": [whole]}, quant_axis=-1, **LINEAR))
    ops.append(graph.new_op("dequantize_linear", {"X": [whole], **numbers}, {"Y": [rounded]}, quant_axis=-1, **LINEAR))
    return rounded


def nearest(filters: Array, kind: str) -> Filters:
    """Return filters with each value at the nearest step."""
    scales = filter_scales(filters, kind)
    steps = whole_steps(filters / scales[:, None, None, None] * STEPS)
    return Filters(steps.astype(np.int8), scales)


def _add_filter(graph: Graph, ops: list[Any], op: Any, filters: Filters) -> str:
    """Store an operator's filters as int8 and add the operator that reads them; returns what it writes."""
    whole = graph.add_param(f"{only(op, 'Filter')}.int8", filters.steps)
    numbers = _numbers(graph, whole, filters.scales)
    rounded = graph.add_variable(f"{whole}.back", filters.steps.shape, like=graph.outputs()[0])
    ops.append(graph.new_op("dequantize_linear", {"X": [whole], **numbers}, {"Y": [rounded]}, quant_axis=0, **LINEAR))
    return rounded


def _numbers(graph: Graph, name: str, scales: Array) -> dict[str, list[str]]:
    """Add scales and zero points, which are 0, as parameters; returns the slots that take them."""
    zero = graph.add_param(f"{name}{ZERO}", np.zeros(len(scales), np.int32))
    return {"Scale": [graph.add_param(f"{name}{SCALE}", scales)], "ZeroPoint": [zero]}


SCALE, ZERO = "@scale", "@zero"
"""Ends of the names of scales and zero points."""
