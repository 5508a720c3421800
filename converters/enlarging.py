"""Rewrites for Paddle Lite on x86 of nearest-neighbour enlargement, and of convolutions that read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from converters.graph import Graph, Links, attribute, names, only, result, set_attribute
from converters.params import Array
from converters.passes import has_weights, repeat

# Of a doubled row or column the first and the second of two output pixels, moved by one: which of two source pixels
# each of three taps reads. See `convolve_before_enlarging`.
_TAPS = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float64)


class _Part(NamedTuple):
    """Channels that a convolution reads: `source` enlarged by `factor`, or as it is (factor 1)."""

    name: str
    source: str
    factor: int
    channels: int


def convolve_before_enlarging(graph: Graph) -> int:
    """Do a 3x3 convolution of a doubled image at its own size, as a 2x2 convolution for each pixel of a square.

    An output pixel of conv3x3(double(x)) sees two rows and two columns of x: 16 products for each pixel of x do what
    36 did. The first pixel of a square looks back and the second ahead, so the squares are one pixel off: computed
    with a border of one and shuffled in that order, they lie one pixel too far, and the border is cut.

    PP-OCR's detector reads images enlarged by 8, 4, 2 and not at all: the convolution becomes a sum over the enlarged
    ones, which are doubled last and together, and over the others.
    """

    def attempt(op: Any, links: Links) -> bool:
        parts = _parts(graph, links, op)
        enlarged, others = ([p for p in parts if (p.factor > 1) is big] for big in (True, False))
        if not enlarged:
            return False
        out, weights = result(op), _weights_of(graph, op, parts)
        target = graph.add_variable(f"{out}.doubled", graph.shape(out), like=out) if others else out
        added = _convolve_doubled(graph, op, enlarged, weights, target)
        if others:
            plain = graph.add_variable(f"{out}.plain", graph.shape(out), like=out)
            added += _convolve_plain(graph, op, others, weights, plain)
            added.append(graph.new_op("elementwise_add", {"X": [target], "Y": [plain]}, {"Out": [out]}, axis=-1))
        graph.replace(op, added)
        return True

    return repeat(graph, attempt)


def _parts(graph: Graph, links: Links, op: Any) -> list[_Part]:
    """Return what a plain 3x3 convolution reads, or nothing for any other operator."""
    if op.type != "conv2d" or not has_weights(graph, op) or graph.params[only(op, "Filter")].shape[2:] != (3, 3):
        return []
    wanted = {"strides": [1, 1], "paddings": [1, 1], "dilations": [1, 1], "groups": 1, "padding_algorithm": "EXPLICIT"}
    source = only(op, "Input")
    if any(attribute(op, name, value) != value for name, value in wanted.items()) or not links.only_reader(source):
        return []
    concat = links.producers.get(source)
    joined = concat is not None and concat.type == "concat" and attribute(concat, "axis") == 1
    return [_part(graph, links, name) for name in (names(concat, "X") if joined else [source])]


def _part(graph: Graph, links: Links, name: str) -> _Part:
    op = links.producers.get(name)
    factor = whole_factor(op) if op is not None and links.only_reader(name) else 0
    channels = graph.length(name, 1)
    if factor % 2 or factor < 2 or channels < 1:
        return _Part(name, name, 1, channels)
    return _Part(name, only(op, "X"), factor, channels)


def _weights_of(graph: Graph, op: Any, parts: Sequence[_Part]) -> dict[str, Array]:
    """Return the filters of each part of a convolution's input, by name."""
    ends = np.cumsum([part.channels for part in parts])[:-1]
    split = np.split(graph.params[only(op, "Filter")].astype(np.float64), ends, axis=1)
    return {part.name: weights for part, weights in zip(parts, split, strict=True)}


def _convolve_doubled(
    graph: Graph, op: Any, parts: Sequence[_Part], weights: dict[str, Array], target: str
) -> list[Any]:
    """Return the operators for the enlarged parts of a convolution."""
    added, halves = [], []
    for part in parts:
        half, more = _enlarged(graph, part, part.factor // 2)
        halves.append(half)
        added += more
    small, more = _joined(graph, halves, sum(part.channels for part in parts), f"{target}.small")
    filters = np.concatenate([weights[part.name] for part in parts], axis=1)
    phases = np.einsum("iyk,jxl,ockl->oijcyx", _TAPS, _TAPS, filters)
    phases = phases.reshape(-1, *phases.shape[3:])
    four = graph.add_variable(f"{target}.four", [-1, len(phases), -1, -1], like=target)
    wide = graph.add_variable(f"{target}.wide", [-1, len(filters), -1, -1], like=target)
    return [
        *added,
        *more,
        _convolution(graph, op, small, phases, four),
        graph.new_op("pixel_shuffle", {"X": [four]}, {"Out": [wide]}, upscale_factor=2),
        graph.new_op(
            "slice", {"Input": [wide]}, {"Out": [target]}, axes=[2, 3], starts=[1, 1], ends=[-1, -1], infer_flags=[1, 1]
        ),
    ]


def _convolve_plain(graph: Graph, op: Any, parts: Sequence[_Part], weights: dict[str, Array], target: str) -> list[Any]:
    """Return the operators for the parts of a convolution that are read as they are."""
    joined, added = _joined(graph, [p.name for p in parts], sum(p.channels for p in parts), f"{target}.joined")
    filters = np.concatenate([weights[part.name] for part in parts], axis=1)
    return [*added, _convolution(graph, op, joined, filters, target)]


def _convolution(graph: Graph, like: Any, source: str, filters: Array, target: str) -> Any:
    """Return a convolution like another, with other filters and ends."""
    op = type(like)()
    op.CopyFrom(like)
    named = {"Input": source, "Filter": graph.add_param(f"{target}.filters", filters), "Output": target}
    for slot in (*op.inputs, *op.outputs):
        slot.arguments[:] = [named[slot.parameter]] if slot.parameter in named else []
    return op


def _enlarged(graph: Graph, part: _Part, factor: int) -> tuple[str, list[Any]]:
    """Return a part's source enlarged by another factor, and the operators for it."""
    if factor == 1:
        return part.source, []
    op = next(op for op in graph.ops if result(op) == part.name)
    copy, name = type(op)(), graph.add_variable(f"{part.name}.half", graph.shape(part.name), like=part.name)
    copy.CopyFrom(op)
    copy.outputs[0].arguments[:] = [name]
    set_attribute(copy, "scale", [float(factor)] * 2)
    return name, [copy]


def _joined(graph: Graph, parts: Sequence[str], channels: int, wanted: str) -> tuple[str, list[Any]]:
    """Return images side by side as channels, and the operators for it."""
    if len(parts) == 1:
        return parts[0], []
    name = graph.add_variable(wanted, [-1, channels, -1, -1], like=parts[0])
    return name, [graph.new_op("concat", {"X": parts}, {"Out": [name]}, axis=1)]


def shuffle_upsampling(graph: Graph) -> int:
    """Turn nearest-neighbour enlargement by a whole number s into s * s copies and a `pixel_shuffle`.

    Lite's x86 `nearest_interp` computes an index for each pixel and takes 13 % of the detector's time; this takes half.
    """

    def attempt(op: Any, links: Links) -> bool:
        source, out = only(op, "X"), result(op)
        factor = whole_factor(op)
        shape = graph.shape(source)
        if factor < 2 or len(shape) != 4 or shape[1] < 1:
            return False
        copies = factor * factor
        one = graph.add_variable(f"{out}.one", [*shape[:2], 1, *shape[2:]], like=out)
        many = graph.add_variable(f"{out}.many", [*shape[:2], copies, *shape[2:]], like=out)
        flat = graph.add_variable(f"{out}.flat", [shape[0], shape[1] * copies, *shape[2:]], like=out)
        added = [
            reshaping(graph, "unsqueeze2", source, one, axes=[2]),
            graph.new_op("concat", {"X": [one] * copies}, {"Out": [many]}, axis=2),
            reshaping(graph, "flatten_contiguous_range", many, flat, start_axis=1, stop_axis=2),
            graph.new_op("pixel_shuffle", {"X": [flat]}, {"Out": [out]}, upscale_factor=factor),
        ]
        graph.replace(op, added)
        return True

    return repeat(graph, attempt)


def reshaping(graph: Graph, kind: str, source: str, target: str, **attributes: int | list[int]) -> Any:
    """Return an operator with the second output `XShape`, which nobody reads at inference."""
    shape = graph.add_variable(f"{target}.shape", [0, *graph.shape(source)], like=target)
    return graph.new_op(kind, {"X": [source]}, {"Out": [target], "XShape": [shape]}, **attributes)


def whole_factor(op: Any) -> int:
    """Return s for a nearest-neighbour enlargement by the same whole number s in height and width, else 0."""
    scale = attribute(op, "scale", [])
    sized = any(names(op, slot) for slot in ("OutSize", "SizeTensor", "Scale"))
    plain = attribute(op, "align_corners") is False and attribute(op, "data_layout", "NCHW") == "NCHW"
    if op.type != "nearest_interp_v2" or sized or not plain or len(scale) != 2 or scale[0] != scale[1]:
        return 0
    return int(scale[0]) if scale[0] == int(scale[0]) else 0
