"""Rewrites that int8 wants: exact, as those of `passes.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.graph import Graph, Links, attribute, names, only, result
from converters.passes import PLAIN_CONVOLUTION, repeat


def convolve_last_matmul(graph: Graph) -> int:
    """Turn matmul + bias over the steps of a picture of one row into a convolution of 1x1 before the reshaping.

    The recogniser ends so, with a quarter of its weights there; Paddle Lite has int8 convolutions on every machine, but
    no int8 `matmul_v2` on x86.
    """

    def attempt(op: Any, links: Links) -> bool:
        found = _steps_before(graph, op, links)
        after = links.consumers[result(op)]
        if found is None or len(after) != 1 or not _adds_row(graph, op, after[0]):
            return False
        graph.replace(after[0], _convolution(graph, op, after[0], only(found, "X")))
        graph.remove([op])
        return True

    return repeat(graph, attempt)


def _steps_before(graph: Graph, op: Any, links: Links) -> Any:
    """Return the `squeeze2` of (N, C, 1, T) that a matmul with weights reads as (N, T, C), or None."""
    if op.type != "matmul_v2" or only(op, "Y") not in graph.params or graph.params[only(op, "Y")].ndim != 2:
        return None
    turned = links.producers.get(only(op, "X"))
    if attribute(op, "trans_x") or attribute(op, "trans_y") or turned is None or turned.type != "transpose2":
        return None
    squeezed = links.producers.get(only(turned, "X"))
    if attribute(turned, "axis") != [0, 2, 1] or squeezed is None or squeezed.type != "squeeze2":
        return None
    return squeezed if attribute(squeezed, "axes") == [2] and graph.length(only(squeezed, "X"), 2) == 1 else None


def _adds_row(graph: Graph, matmul: Any, add: Any) -> bool:
    bias = graph.params.get(only(add, "Y"))
    return (
        add.type == "elementwise_add"
        and bias is not None
        and bias.shape == (graph.params[only(matmul, "Y")].shape[1],)
        and attribute(add, "axis", -1) in (-1, 2)
    )


def _convolution(graph: Graph, matmul: Any, add: Any, source: str) -> list[Any]:
    """Return the operators that do a matmul and its addition on (N, C, 1, T), and bring the result into its shape."""
    weights, target = graph.params[only(matmul, "Y")], result(add)
    filters = graph.add_param(f"{only(matmul, 'Y')}.filters", np.ascontiguousarray(weights.T)[:, :, None, None])
    wide = [-1, weights.shape[1], 1, -1]
    summed, biased = (graph.add_variable(f"{target}.{word}", wide, like=source) for word in ("row", "biased"))
    flat = graph.add_variable(f"{target}.flat", [-1, weights.shape[1], -1], like=source)
    shapes = [graph.add_variable(f"{target}.{word}", [0], like=source) for word in ("shape", "turn")]
    return [
        graph.new_op("conv2d", {"Input": [source], "Filter": [filters]}, {"Output": [summed]}, **PLAIN_CONVOLUTION),
        graph.new_op("elementwise_add", {"X": [summed], "Y": names(add, "Y")}, {"Out": [biased]}, axis=1),
        graph.new_op("squeeze2", {"X": [biased]}, {"Out": [flat], "XShape": shapes[:1]}, axes=[2]),
        graph.new_op("transpose2", {"X": [flat]}, {"Out": [target], "XShape": shapes[1:]}, axis=[0, 2, 1]),
    ]


def part_hard_swish(graph: Graph) -> int:
    """Write `hard_swish` as x times its gate.

    Paddle Lite fuses it into the convolution before, and its int8 convolutions on x86 then give wrong numbers.
    """

    def attempt(op: Any, _: Links) -> bool:
        if op.type != "hard_swish":
            return False
        source, target = only(op, "X"), result(op)
        scale, offset = attribute(op, "scale", 6.0), attribute(op, "offset", 3.0)
        if scale != attribute(op, "threshold", 6.0):
            return False
        gate = graph.add_variable(f"{target}.gate", graph.shape(source), like=source)
        sigmoid = {"slope": 1.0 / scale, "offset": offset / scale}
        graph.replace(
            op,
            [
                graph.new_op("hard_sigmoid", {"X": [source]}, {"Out": [gate]}, **sigmoid),
                graph.new_op("elementwise_mul", {"X": [source], "Y": [gate]}, {"Out": [target]}, axis=-1),
            ],
        )
        return True

    return repeat(graph, attempt)
