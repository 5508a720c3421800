"""Rewrites of squeeze-and-excitation gates: one number per channel, from the average of an image, times the image."""

from __future__ import annotations

from typing import Any

from converters.graph import Graph, Links, attribute, become, only, result
from converters.passes import has_weights, make_scale, repeat


def gate_residuals(graph: Graph) -> int:
    """Turn x + x * g into x * (g + 1) where g is a squeeze-and-excitation gate of one number per channel.

    One pass over the large tensor instead of two.
    """

    def attempt(op: Any, links: Links) -> bool:
        x, y = only(op, "X"), only(op, "Y")
        mul = links.producers.get(y)
        if op.type != "elementwise_add" or mul is None or mul.type != "elementwise_mul" or not links.only_reader(y):
            return False
        gate = only(mul, "Y")
        if only(mul, "X") != x or gate in graph.params or graph.shape(gate)[2:] != [1, 1]:
            return False
        plus_one = graph.add_variable(f"{gate}.plus_one", graph.shape(gate), like=gate)
        make_scale(mul, gate, plus_one, 1.0, 1.0)
        become(op, "elementwise_mul", {"X": [x], "Y": [plus_one]}, {"Out": [result(op)]}, axis=-1)
        return True

    return repeat(graph, attempt)


def pool_before_expanding(graph: Graph) -> int:
    """Let a squeeze-and-excitation gate average the input of a 1x1 convolution, not its output of more channels.

    The average of a linear map is the map of the average: the convolution is done once more, on one pixel.
    """

    def attempt(op: Any, links: Links) -> bool:
        conv = links.producers.get(only(op, "X"))
        if conv is None or not _averages_all(op) or not _expands(graph, conv):
            return False
        source, out = only(conv, "Input"), result(op)
        few = graph.add_variable(f"{out}.few", [*graph.shape(source)[:2], 1, 1], like=out)
        again = type(conv)()
        again.CopyFrom(conv)
        for changed, ends in ((again, {"Input": few, "Output": out}), (op, {"X": source, "Out": few})):
            for slot in (*changed.inputs, *changed.outputs):
                slot.arguments[:] = [ends[slot.parameter]] if slot.parameter in ends else list(slot.arguments)
        graph.replace(op, [op, again])
        return True

    return repeat(graph, attempt)


def _averages_all(op: Any) -> bool:
    """Say whether an operator averages each channel over the whole image."""
    if op.type != "pool2d" or attribute(op, "pooling_type") != "avg":
        return False
    return bool(attribute(op, "global_pooling")) or bool(attribute(op, "adaptive") and attribute(op, "ksize") == [1, 1])


def _expands(graph: Graph, conv: Any) -> bool:
    """Say whether an operator is a plain 1x1 convolution to more channels."""
    if conv.type != "conv2d" or not has_weights(graph, conv):
        return False
    filters = graph.params[only(conv, "Filter")].shape
    plain = attribute(conv, "strides", [1, 1]) == [1, 1] and not any(attribute(conv, "paddings", [0]))
    return plain and filters[2:] == (1, 1) and filters[0] > filters[1] and attribute(conv, "groups", 1) == 1
