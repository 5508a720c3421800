"""Rewrites for Paddle Lite on x86 only: its ARM kernels do these operators well as they are."""

from __future__ import annotations

from typing import Any

from converters.graph import Graph, Links, attribute, become, names, only, result, set_attribute
from converters.passes import repeat


def split_uneven_strides(graph: Graph) -> int:
    """Give `depthwise_conv2d` with unequal strides the strides (1, 1) and keep each second row or column after it.

    Lite's x86 kernels know equal strides; the others go through im2col and one matrix-vector product per channel.
    """

    def attempt(op: Any, links: Links) -> bool:
        strides = attribute(op, "strides", [1, 1])
        if op.type != "depthwise_conv2d" or strides[0] == strides[1]:
            return False
        out = result(op)
        dense = graph.add_variable(f"{out}.dense", [*graph.shape(out)[:2], -1, -1], like=out)
        for slot in op.outputs:
            slot.arguments[:] = [dense]
        set_attribute(op, "strides", [1, 1])
        graph.insert(op, [_subsample(graph, dense, out, strides)], after=True)
        return True

    return repeat(graph, attempt)


def _subsample(graph: Graph, source: str, target: str, strides: list[int]) -> Any:
    """Return the operator that keeps rows and columns 0, stride, 2 * stride ...: a pool of one element."""
    return graph.new_op(
        "pool2d",
        {"X": [source]},
        {"Out": target},
        pooling_type="max",
        ksize=[1, 1],
        strides=strides,
        paddings=[0, 0],
        padding_algorithm="EXPLICIT",
        data_format="NCHW",
        adaptive=False,
        ceil_mode=False,
        exclusive=True,
        global_pooling=False,
    )


def shuffle_upsampling(graph: Graph) -> int:
    """Turn nearest-neighbour enlargement by a whole number s into s * s copies and a `pixel_shuffle`.

    Lite's x86 `nearest_interp` computes an index for each pixel and takes 13 % of the detector's time; this takes half.
    """

    def attempt(op: Any, links: Links) -> bool:
        source, out = only(op, "X"), result(op)
        factor = _whole_factor(op)
        shape = graph.shape(source)
        if factor < 2 or len(shape) != 4 or shape[1] < 1:
            return False
        copies = factor * factor
        one = graph.add_variable(f"{out}.one", [*shape[:2], 1, *shape[2:]], like=out)
        many = graph.add_variable(f"{out}.many", [*shape[:2], copies, *shape[2:]], like=out)
        flat = graph.add_variable(f"{out}.flat", [shape[0], shape[1] * copies, *shape[2:]], like=out)
        become(op, "pixel_shuffle", {"X": [flat]}, {"Out": [out]}, upscale_factor=factor)
        added = [
            _reshaping(graph, "unsqueeze2", source, one, axes=[2]),
            graph.new_op("concat", {"X": [one] * copies}, {"Out": many}, axis=2),
            _reshaping(graph, "flatten_contiguous_range", many, flat, start_axis=1, stop_axis=2),
        ]
        graph.insert(op, added)
        return True

    return repeat(graph, attempt)


def _reshaping(graph: Graph, kind: str, source: str, target: str, **attributes: int | list[int]) -> Any:
    """Return an operator with the second output `XShape`, which nobody reads at inference."""
    shape = graph.add_variable(f"{target}.shape", [0, *graph.shape(source)], like=target)
    return graph.new_op(kind, {"X": [source]}, {"Out": target, "XShape": shape}, **attributes)


def _whole_factor(op: Any) -> int:
    """Return s for an enlargement by the same whole number s in height and width, else 0."""
    scale = attribute(op, "scale", [])
    sized = any(names(op, slot) for slot in ("OutSize", "SizeTensor", "Scale"))
    plain = attribute(op, "align_corners") is False and attribute(op, "data_layout", "NCHW") == "NCHW"
    if op.type != "nearest_interp_v2" or sized or not plain or len(scale) != 2 or scale[0] != scale[1]:
        return 0
    return int(scale[0]) if scale[0] == int(scale[0]) else 0
