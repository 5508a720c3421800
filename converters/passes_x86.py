"""Rewrites for Paddle Lite on x86 only: its ARM kernels do these operators well as they are."""

from __future__ import annotations

from typing import Any

from converters.enlarging import reshaping
from converters.graph import Graph, Links, Value, attribute, become, names, only, result, set_attribute
from converters.passes import PLAIN_CONVOLUTION, adds_per_channel, has_weights, repeat


def split_uneven_strides(graph: Graph) -> int:
    """Give `depthwise_conv2d` with unequal strides the strides (1, 1) and keep each second row or column after it.

    Lite's x86 kernels know equal strides; the others go through im2col and one matrix-vector product per channel.
    """

    def attempt(op: Any, links: Links) -> bool:
        strides = attribute(op, "strides", [1, 1])
        if op.type != "depthwise_conv2d" or strides[0] == strides[1]:
            return False
        out, rows = result(op), _rows_in_pairs(graph, op)
        dense = graph.add_variable(f"{out}.dense", [*graph.shape(out)[:2], -1, -1], like=out)
        for slot in op.outputs:
            slot.arguments[:] = [dense]
        set_attribute(op, "strides", [1, 1])
        kept = _first_of_pairs(graph, dense, out) if rows else [_subsample(graph, dense, out, strides)]
        graph.replace(op, [op, *kept])
        return True

    return repeat(graph, attempt)


def _rows_in_pairs(graph: Graph, op: Any) -> bool:
    """Say whether a convolution keeps each second of a known, even number of rows, and every column."""
    height, kept = (graph.length(name, 2) for name in (only(op, "Input"), result(op)))
    reach = graph.params[only(op, "Filter")].shape[2] // 2
    same = attribute(op, "paddings") == [reach, reach] and attribute(op, "dilations", [1, 1]) == [1, 1]
    return attribute(op, "strides") == [2, 1] and same and kept > 0 and height == 2 * kept


def _first_of_pairs(graph: Graph, source: str, target: str) -> list[Any]:
    """Return the operators that keep rows 0, 2, 4 ...: two rows side by side, cut in the middle.

    These are copies of whole rows, where `_subsample` steps through single elements: 7 % of the recogniser's time.
    """
    _, channels, rows, _ = graph.shape(target)
    pairs = graph.add_variable(f"{target}.pairs", [-1, channels, rows, -1], like=target)
    odd = graph.add_variable(f"{target}.odd", graph.shape(target), like=target)
    split = graph.new_op("split", {"X": [pairs]}, {"Out": [target, odd]}, axis=3, num=2, sections=[])
    return [reshaping(graph, "reshape2", source, pairs, shape=[0, channels, rows, -1]), split]


def _subsample(graph: Graph, source: str, target: str, strides: list[int]) -> Any:
    """Return the operator that keeps rows and columns 0, stride, 2 * stride ...: a pool of one element."""
    return graph.new_op("pool2d", {"X": [source]}, {"Out": [target]}, strides=strides, **_POOL_OF_ONE)


_POOL_OF_ONE: dict[str, Value] = {
    "pooling_type": "max",
    "ksize": [1, 1],
    "paddings": [0, 0],
    "padding_algorithm": "EXPLICIT",
    "data_format": "NCHW",
    "global_pooling": False,
    "adaptive": False,
    "ceil_mode": False,
    "exclusive": True,
}


def shuffle_transposed_convolutions(graph: Graph) -> int:
    """Turn `conv2d_transpose` whose strides are its window into a 1x1 convolution and a `pixel_shuffle`.

    The windows do not overlap: each input pixel gives one square of the output.
    """

    def attempt(op: Any, links: Links) -> bool:
        size, source, out = _square_window(graph, op), only(op, "Input"), result(op)
        if size < 2:
            return False
        weights = graph.params[only(op, "Filter")]  # (in, out, kh, kw)
        filters = weights.transpose(1, 2, 3, 0).reshape(-1, weights.shape[0], 1, 1)
        name = graph.add_param(f"{out}.filters", filters)
        flat = graph.add_variable(f"{out}.flat", [graph.length(out, 0), len(filters), -1, -1], like=out)
        slots = {"Input": [source], "Filter": [name]}
        conv = graph.new_op("conv2d", slots, {"Output": [flat]}, **PLAIN_CONVOLUTION)
        graph.replace(op, [conv, graph.new_op("pixel_shuffle", {"X": [flat]}, {"Out": [out]}, upscale_factor=size)])
        return True

    return repeat(graph, attempt)


def _square_window(graph: Graph, op: Any) -> int:
    """Return the window of a transposed convolution that has nothing else to it, else 0."""
    if op.type != "conv2d_transpose" or not has_weights(graph, op) or names(op, "OutputSize"):
        return 0
    height, width = graph.params[only(op, "Filter")].shape[2:]
    plain = attribute(op, "groups", 1) == 1 and attribute(op, "dilations", [1, 1]) == [1, 1]
    sized = any(any(attribute(op, name, [])) for name in ("paddings", "output_padding", "output_size"))
    same = attribute(op, "padding_algorithm", "EXPLICIT") == "SAME"
    return (
        int(height) if attribute(op, "strides") == [height, width] == [height] * 2 and plain and not sized | same else 0
    )


def delay_shuffles(graph: Graph) -> int:
    """Do a bias or a `relu` before the `pixel_shuffle` that it follows, where Lite does it inside a convolution."""

    def attempt(op: Any, links: Links) -> bool:
        shuffle = links.producers.get(only(op, "X"))
        if shuffle is None or shuffle.type != "pixel_shuffle" or not links.only_reader(result(shuffle)):
            return False
        if op.type != "relu" and not adds_per_channel(graph, op, graph.length(result(shuffle), 1)):
            return False
        size, source, out = attribute(shuffle, "upscale_factor"), only(shuffle, "X"), result(op)
        flat = graph.add_variable(f"{out}.flat", graph.shape(source), like=out)
        if op.type == "relu":
            become(shuffle, "relu", {"X": [source]}, {"Out": [flat]})
        else:
            bias = graph.add_param(f"{out}.bias", graph.params[only(op, "Y")].reshape(-1).repeat(size * size))
            become(shuffle, "elementwise_add", {"X": [source], "Y": [bias]}, {"Out": [flat]}, axis=1)
        become(op, "pixel_shuffle", {"X": [flat]}, {"Out": [out]}, upscale_factor=size)
        return True

    return repeat(graph, attempt)
