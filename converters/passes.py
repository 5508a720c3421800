"""Rewrites of the Paddle graph that make it smaller and faster on every runtime.

Every pass finds its pattern by operator type and by how tensors are connected, never by node name, and returns how
often it applied. A pass is an identity in exact arithmetic; `converters.export` proves each conversion by running
source and result on the same inputs. A parameter is never changed in place: another operator may share it.

Tried and left out: dropping the recogniser's final softmax (an arg max needs none) gained no time that can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from converters.graph import Graph, Links, Value, all_inputs, all_outputs, attribute, become, names, only, result
from converters.params import Array

CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "depthwise_conv2d_transpose")
MATMULS = ("matmul_v2", "matmul", "mul")
_FLOAT32 = 5  # framework.proto, VarType.Type

Pass = Callable[[Graph], int]

PLAIN_CONVOLUTION: dict[str, Value] = {
    "strides": [1, 1],
    "paddings": [0, 0],
    "dilations": [1, 1],
    "groups": 1,
    "padding_algorithm": "EXPLICIT",
    "data_format": "NCHW",
}
"""Attributes of a convolution of one pixel, with nothing around it."""


def rewrite(graph: Graph, passes: Sequence[Pass]) -> dict[str, int]:
    """Run the passes in order and return how often each applied."""
    counts: dict[str, int] = {}
    for apply in passes:
        counts[apply.__name__] = counts.get(apply.__name__, 0) + apply(graph)
    return counts


def repeat(graph: Graph, attempt: Callable[[Any, Links], bool]) -> int:
    """Try every operator, from the start again after each success, until none succeeds; return the successes."""
    count = 0
    while True:
        links = graph.links()
        if not any(attempt(op, links) for op in graph.ops):
            return count
        count += 1


# ------------------------------------------------------------------------------------------- less to do


def drop_identities(graph: Graph) -> int:
    """Remove operators that do nothing at inference: `dropout`, `assign`, a `scale` by 1."""

    def attempt(op: Any, links: Links) -> bool:
        source = only(op, "X")
        if not _is_identity(op) or source not in links.producers:
            return False
        graph.bypass(op, source)
        return True

    return repeat(graph, attempt)


def _is_identity(op: Any) -> bool:
    if op.type == "dropout":
        return attribute(op, "dropout_implementation") == "upscale_in_train" and bool(attribute(op, "is_test"))
    return op.type == "assign" or affine_of(op) == (1.0, 0.0)


def constant_reshapes(graph: Graph) -> int:
    """Let `reshape2` use its `shape` attribute where its shape tensors say the same.

    Exported attention blocks read one free length with shape + slice and put it back. Where every other length is a
    constant equal to the attribute's (0 copies the input's in both), and the attribute has -1 for the free one, the
    number of elements decides that length: it is the same.
    """
    producers, count = graph.links().producers, 0
    for op in graph.ops:
        tensors, shape = names(op, "ShapeTensor"), attribute(op, "shape", [])
        if op.type != "reshape2" or not tensors or len(tensors) != len(shape) or shape.count(-1) != 1:
            continue
        if all(length in (-1, _filled(producers.get(name))) for name, length in zip(tensors, shape, strict=True)):
            for slot in op.inputs:
                if slot.parameter == "ShapeTensor":
                    del slot.arguments[:]
            count += 1
    return count


def _filled(op: Any) -> float | None:
    """Return the value of a one-element `fill_constant`, or None."""
    if op is None or op.type != "fill_constant" or all_inputs(op) or math.prod(attribute(op, "shape", [0])) != 1:
        return None
    return float(attribute(op, "str_value") or attribute(op, "value", 0.0))


def drop_unused(graph: Graph) -> int:
    """Remove operators whose results nobody reads."""
    total = 0
    while True:
        used = {name for op in graph.ops for name in all_inputs(op)}
        dead = [op for op in graph.ops if op.type not in ("feed", "fetch") and not used & set(all_outputs(op))]
        if not dead:
            return total
        graph.remove(dead)
        total += len(dead)


# ------------------------------------------------------------------------------------------- scalars


def scalars_to_scale(graph: Graph) -> int:
    """Turn arithmetic with a one-element constant into `scale`.

    Paddle Lite's x86 broadcast kernels spend most of PP-OCRv4's time on these (the learnable affine of LCNetV3).
    """
    links, count = graph.links(), 0
    for op in graph.ops:
        found = _scalar_operand(graph, op, links)
        if found is not None:
            make_scale(op, found[0], result(op), *found[1])
            count += 1
    return count


def _scalar_operand(graph: Graph, op: Any, links: Links) -> tuple[str, tuple[float, float]] | None:
    """Return (tensor, (scale, bias)) of an elementwise operator with a one-element constant on either side."""
    x, y = only(op, "X"), only(op, "Y")
    for tensor, constant in ((x, y), (y, x)):
        value = _scalar(graph, links, constant)
        affine = _affine(op.type, value, first=tensor == x) if value is not None else None
        widened = graph.shape(constant)[len(graph.shape(tensor)) :]  # a constant of more axes gives the result more
        if affine is not None and not widened and _scalar(graph, links, tensor) is None:
            return tensor, affine
    return None


def _scalar(graph: Graph, links: Links, name: str) -> float | None:
    """Return the value of a float32 constant of one element, or None."""
    value, op = graph.params.get(name), links.producers.get(name)
    if value is not None:
        return float(value.reshape(())) if value.size == 1 and value.dtype == np.float32 else None
    return _filled(op) if op is not None and attribute(op, "dtype") == _FLOAT32 else None


def _affine(kind: str, value: float, *, first: bool) -> tuple[float, float] | None:
    """Return (scale, bias) of `x op value`, or of `value op x` when the tensor is not first."""
    if kind == "elementwise_mul":
        return value, 0.0
    if kind == "elementwise_add":
        return 1.0, value
    if kind == "elementwise_sub":
        return (1.0, -value) if first else (-1.0, value)
    return (1.0 / value, 0.0) if kind == "elementwise_div" and first and value else None


def make_scale(op: Any, source: str, target: str, scale: float, bias: float) -> None:
    """Turn an operator into `target = scale * source + bias`."""
    inputs = {"X": [source], "ScaleTensor": []}
    become(op, "scale", inputs, {"Out": [target]}, scale=float(scale), bias=float(bias), bias_after_scale=True)


def affine_of(op: Any) -> tuple[float, float] | None:
    """Return (scale, bias) of a `scale` operator with constant values, or None."""
    if op is None or op.type != "scale" or names(op, "ScaleTensor"):
        return None
    scale, bias = attribute(op, "scale", 1.0), attribute(op, "bias", 0.0)
    return (scale, bias) if attribute(op, "bias_after_scale", True) else (scale, bias * scale)


def merge_scales(graph: Graph) -> int:
    """Merge a `scale` that alone reads another into one."""

    def attempt(op: Any, links: Links) -> bool:
        first = links.producers.get(only(op, "X"))
        outer, inner = affine_of(op), affine_of(first)
        if outer is None or inner is None or not links.only_reader(result(first)):
            return False
        make_scale(op, only(first, "X"), result(op), outer[0] * inner[0], outer[0] * inner[1] + outer[1])
        graph.remove([first])
        return True

    return repeat(graph, attempt)


# ------------------------------------------------------------------------------------------- folding into weights


def fold_batch_norm(graph: Graph) -> int:
    """Fold `batch_norm` into the convolution before it, with or without a bias between."""

    def attempt(op: Any, links: Links) -> bool:
        source = only(op, "X")
        found = weights_before(graph, links, source) if op.type == "batch_norm" and _is_frozen(op) else None
        if found is None or found[0].type not in CONVOLUTIONS:
            return False
        if found[1] is not None and not adds_per_channel(graph, found[1], output_channels(graph, found[0])):
            return False
        scale, shift = _batch_norm_affine(graph, op)
        if found[1] is None:
            _become_bias(graph, op, source, only(op, "Y", out=True), shift)
        else:
            _change_bias(graph, found[1], scale, shift)
            graph.bypass(op, source)
        graph.replace_param(found[0], "Filter", _scaled_filter(graph, found[0], scale))
        return True

    return repeat(graph, attempt)


def _is_frozen(op: Any) -> bool:
    frozen = attribute(op, "is_test", False) or attribute(op, "use_global_stats", False)
    return bool(frozen) and attribute(op, "data_layout", "NCHW") in ("NCHW", "AnyLayout")


def _batch_norm_affine(graph: Graph, op: Any) -> tuple[Array, Array]:
    gamma, beta, mean, variance = (graph.params[only(op, slot)] for slot in ("Scale", "Bias", "Mean", "Variance"))
    scale = gamma.astype(np.float64) / np.sqrt(variance.astype(np.float64) + attribute(op, "epsilon", 1e-5))
    return scale, beta - mean * scale


def fold_scale_into_producer(graph: Graph) -> int:
    """Fold a `scale` into the convolution or matmul (with or without a bias) that feeds only it."""

    def attempt(op: Any, links: Links) -> bool:
        affine = affine_of(op)
        found = weights_before(graph, links, only(op, "X")) if affine is not None else None
        return found is not None and affine is not None and _fold_back(graph, op, affine, *found)

    return repeat(graph, attempt)


def _fold_back(graph: Graph, op: Any, affine: tuple[float, float], weights: Any, add: Any) -> bool:
    """Fold `scale` operator `op` into what is before it; False where nothing is gained."""
    (scale, bias), source, target = affine, only(op, "X"), result(op)
    stays = bool(bias) and add is None and weights.type in MATMULS
    if stays and scale == 1.0:
        return False
    if stays:
        make_scale(op, source, target, 1.0, bias)
    elif add is None and bias:
        _become_bias(graph, op, source, target, np.full(output_channels(graph, weights), bias))
    else:
        if add is not None:
            _change_bias(graph, add, np.float64(scale), np.float64(bias))
        graph.bypass(op, source)
    slot = "Filter" if weights.type in CONVOLUTIONS else "Y"
    graph.replace_param(weights, slot, graph.params[only(weights, slot)].astype(np.float64) * scale)
    return True


def fold_scale_into_consumer(graph: Graph) -> int:
    """Fold a `scale` into the convolutions that read it.

    The factor always folds. The shift folds only where no zero padding is mixed in: a padded border is zero, not
    the shift. So a `scale` goes only when each consumer is an unpadded convolution, or its shift is zero.
    """

    def attempt(op: Any, links: Links) -> bool:
        affine, readers = affine_of(op), links.consumers[result(op)]
        if affine is None or not readers:
            return False
        if not all(_takes_affine(graph, links, reader, result(op), affine[1]) for reader in readers):
            return False
        for reader in readers:
            _fold_forward(graph, links, reader, affine)
        graph.bypass(op, only(op, "X"))
        return True

    return repeat(graph, attempt)


def _takes_affine(graph: Graph, links: Links, op: Any, source: str, bias: float) -> bool:
    if op.type not in ("conv2d", "depthwise_conv2d") or only(op, "Input") != source or not has_weights(graph, op):
        return False
    if bias == 0.0:
        return True
    padded = any(attribute(op, "paddings", [0])) or attribute(op, "padding_algorithm", "EXPLICIT") == "SAME"
    after = links.consumers[result(op)]
    added = len(after) == 1 and adds_per_channel(graph, after[0], output_channels(graph, op))
    return not padded and added


def _fold_forward(graph: Graph, links: Links, conv: Any, affine: tuple[float, float]) -> None:
    scale, bias = affine
    weights = graph.params[only(conv, "Filter")].astype(np.float64)
    if bias:
        _change_bias(graph, links.consumers[result(conv)][0], np.float64(1.0), weights.sum(axis=(1, 2, 3)) * bias)
    graph.replace_param(conv, "Filter", weights * scale)


def weights_before(graph: Graph, links: Links, name: str) -> tuple[Any, Any] | None:
    """Return (operator with weights, addition of a parameter or None) that end in a variable read only once."""
    op, add = links.producers.get(name), None
    if op is not None and _is_param_addition(graph, op) and links.only_reader(name):
        name, add = only(op, "X"), op
        op = links.producers.get(name)
    if op is None or not links.only_reader(name) or not has_weights(graph, op):
        return None
    return op, add


def _is_param_addition(graph: Graph, op: Any) -> bool:
    return op.type == "elementwise_add" and only(op, "Y") in graph.params and only(op, "X") not in graph.params


def has_weights(graph: Graph, op: Any) -> bool:
    """Say whether an operator is a planar convolution or a matmul with a parameter, and nothing built in."""
    if op.type in CONVOLUTIONS:
        planar = attribute(op, "data_format", "NCHW") in ("NCHW", "AnyLayout")
        return planar and not names(op, "Bias") and not names(op, "ResidualData") and only(op, "Filter") in graph.params
    return op.type in MATMULS and only(op, "Y") in graph.params


def adds_per_channel(graph: Graph, add: Any, channels: int) -> bool:
    """Say whether an operator adds a parameter of one number per channel to an image."""
    if not _is_param_addition(graph, add):
        return False
    shape = graph.params[only(add, "Y")].shape
    if attribute(add, "axis", -1) == 1:
        return shape == (channels,)
    return attribute(add, "axis", -1) == -1 and shape in ((channels, 1, 1), (1, channels, 1, 1))


def _change_bias(graph: Graph, add: Any, scale: Array | np.float64, shift: Array | np.float64) -> None:
    """Let an addition add scale * bias + shift; both are one number, or one per channel."""
    bias = graph.params[only(add, "Y")]
    changed = bias.astype(np.float64).reshape(-1) * scale + shift
    graph.replace_param(add, "Y", changed.reshape(bias.shape))


def _scaled_filter(graph: Graph, conv: Any, scale: Array) -> Array:
    """Return a convolution's filters times one number per output channel."""
    weights: Array = graph.params[only(conv, "Filter")].astype(np.float64)
    if not conv.type.endswith("transpose"):  # (out, in / groups, kh, kw)
        weights *= scale.reshape(-1, 1, 1, 1)
        return weights
    groups = attribute(conv, "groups", 1)  # (in, out / groups, kh, kw)
    grouped = weights.reshape(groups, -1, *weights.shape[1:])  # a view
    grouped *= scale.reshape(groups, 1, -1, 1, 1)
    return weights


def output_channels(graph: Graph, conv: Any) -> int:
    """Return the number of output channels of a convolution."""
    shape = graph.params[only(conv, "Filter")].shape
    return int(shape[1] * attribute(conv, "groups", 1)) if conv.type.endswith("transpose") else int(shape[0])


def _become_bias(graph: Graph, op: Any, source: str, target: str, bias: Array) -> None:
    name = graph.add_param(f"{target}.bias", bias)
    become(op, "elementwise_add", {"X": [source], "Y": [name]}, {"Out": [target]}, axis=1)
