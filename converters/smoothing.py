"""Smoothing: channels of an activation brought to similar ranges before int8 gives all of them one scale.

In PP-OCRv4's recogniser the largest channel before a depthwise convolution is ten times the median one, so that most
channels use a tenth of the 255 steps. A factor on each channel before a convolution, and its filters divided by the
same, change nothing in float (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction"; Xiao et al. 2022, "SmoothQuant"). A depthwise convolution has a scale for each channel's filter and takes
all of the factor; in others the filters' channels share a scale, and the factor is its square root, as in SmoothQuant.

The factor goes into the weights before where only biases, `relu`, poolings and enlargings are between; a `scale` on the
way becomes one number per channel, as a `batch_norm`, which costs the same; elsewhere, as behind `hard_swish`, a
`batch_norm` is added where the ranges are far apart. Runs in a process of its own (`native`).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters import child
from converters.calibrate import tensors
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph, Links, Value, only, result
from converters.network import Network
from converters.params import Array
from converters.passes import adds_per_channel, affine_of, has_weights
from converters.places import Floats, choose, parts
from converters.quantize import QUANTIZED, layers_of

UNEVEN = 2.0
"""An activation whose largest channel is less than this many times the median one stays as it is."""
WORTH = 6.0
"""Likewise where an operator would have to be added."""
MOST = 64.0
"""Largest factor: a channel that is silent in the pictures seen may not be so in others."""
PLACES = 100_000
"""Values of a channel that are looked at, spread over all pictures."""
_TOGETHER = 3  # variables that are had in one run of the network: more take gigabytes

_HOMOGENEOUS = ("relu", "pool2d", "nearest_interp_v2", "bilinear_interp_v2")
"""Operators on one tensor that give k times as much for k times as much, k > 0, in each channel alone."""


def smooth(
    source: str, pictures: str, mean: Sequence[float], std: Sequence[float], count: int, percentile: float, out: str
) -> dict[str, int]:
    """Write a graph that computes the same with channels of similar ranges; returns what `level` does.

    Args:
        source: directory of the model in float.
        pictures: an `.npy` file, uint8 (N, H, W, 3); the first `count` are used.
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of pictures.
        percentile: share of a channel's values that its range covers.
        out: directory to write; it gets the same files where there is nothing to do.
    """
    graph, inputs = Graph.load(Path(source)), tensors(np.load(pictures)[:count], mean, std)
    network, found = Network(graph), {}
    sources = [*dict.fromkeys(layer.source for layer in layers_of(graph))]
    for names in child.counted([sources[start : start + _TOGETHER] for start in range(0, len(sources), _TOGETHER)]):
        found |= {name: ranges(rows, percentile) for name, rows in _look(network, names, inputs).items()}
    counts = level(graph, found)
    if counts:
        graph.save(Path(out))
    else:
        Path(out).mkdir(parents=True, exist_ok=True)
        for file in (MODEL_FILE, PARAMS_FILE):
            shutil.copyfile(Path(source, file), Path(out, file))
    return dict(counts)


def _look(network: Network, names: Sequence[str], inputs: Array) -> dict[str, Array]:
    """Return variables at some places, float32 (places, C)."""
    seen: dict[str, list[Array]] = {name: [] for name in names}
    for part, which in parts(inputs, PLACES):
        for name, values in zip(names, network.fetch(names, part), strict=True):
            picture, row, column = choose((values.shape[0], *values.shape[2:]), **which)
            seen[name].append(values[picture, :, row, column])
    return {name: np.concatenate(rows) for name, rows in seen.items()}


def ranges(values: Array, percentile: float) -> Floats:
    """Return each channel's range: what a share of its absolute values does not exceed.

    Args:
        values: float32 (places, C).
        percentile: the share.
    """
    found: Floats = np.quantile(np.abs(values), percentile, axis=0).astype(np.float64)
    return found


def level(graph: Graph, found: Mapping[str, Floats]) -> Counter[str]:
    """Bring channels to the largest one's range, in place; returns how often a factor was "folded" into weights.

    Besides those, how often it was "turned" from a `scale` into a `batch_norm`, and how often one was "added".

    Args:
        graph: a graph of float32.
        found: ranges by the variable that convolutions read.
    """
    counts: Counter[str] = Counter()
    for name, channels in found.items():
        counts[_level(graph, name, channels)] += 1
    del counts[""]
    return counts


def _level(graph: Graph, name: str, channels: Floats) -> str:
    """Return what was done to what convolutions read of one variable; "" for nothing."""
    links, uneven = graph.links(), channels.max() / max(np.median(channels), 1e-9)
    readers = [op for op in links.consumers[name] if _takes(graph, op, len(channels))]
    trail = _trail(graph, links, name, len(channels)) if len(readers) == len(links.consumers[name]) else []
    if not readers or uneven < (UNEVEN if trail else WORTH):
        return ""
    factors = channels.max() / np.maximum(channels, channels.max() / MOST)
    if not all(map(_is_depthwise, readers)):
        factors = np.sqrt(factors)
    for op in readers:
        shape = (-1, 1, 1, 1) if _is_depthwise(op) else (1, -1, 1, 1)
        graph.replace_param(op, "Filter", graph.params[only(op, "Filter")] / factors.reshape(shape))
    if not trail:
        return _add(graph, name, readers, factors)
    for op in trail[:-1]:
        _pass_on(graph, op, factors)
    return _take(graph, trail[-1], factors)


def _takes(graph: Graph, op: Any, channels: int) -> bool:
    """Say whether an operator is a convolution whose filters can be divided by one factor per channel it reads."""
    if op.type not in QUANTIZED or not has_weights(graph, op):
        return False
    shape = graph.params[only(op, "Filter")].shape
    return shape[:2] == (channels, 1) if _is_depthwise(op) else shape[1] == channels


def _is_depthwise(op: Any) -> bool:
    return bool(op.type == "depthwise_conv2d")


def _trail(graph: Graph, links: Links, name: str, channels: int) -> list[Any]:
    """Return the operators that a factor passes on its way up, the one that takes it last; empty where none does."""
    trail: list[Any] = []
    while True:
        op = links.producers.get(name)
        if op is None:
            return []
        trail.append(op)
        if affine_of(op) is not None or (op.type in QUANTIZED and has_weights(graph, op)):
            return trail
        name = only(op, "X")
        if not links.only_reader(name) or not (op.type in _HOMOGENEOUS or adds_per_channel(graph, op, channels)):
            return []


def _pass_on(graph: Graph, op: Any, factors: Floats) -> None:
    """Let an operator on the way compute its result times the factors, when it is given its input times them."""
    if op.type == "elementwise_add":
        bias = graph.params[only(op, "Y")]
        graph.replace_param(op, "Y", (bias.reshape(-1) * factors).reshape(bias.shape))


def _take(graph: Graph, op: Any, factors: Floats) -> str:
    """Let an operator compute its result times the factors."""
    affine = affine_of(op)
    if affine is None:
        graph.replace_param(op, "Filter", graph.params[only(op, "Filter")] * factors[:, None, None, None])
        return "folded"
    scale, bias = affine
    graph.replace(op, [_affine(graph, only(op, "X"), result(op), scale * factors, bias * factors)])
    return "turned"


def _add(graph: Graph, name: str, readers: Sequence[Any], factors: Floats) -> str:
    """Give readers of a variable one of their own, times the factors."""
    smoothed = graph.add_variable(f"{name}.smoothed", graph.shape(name), like=name)
    for op in readers:
        next(slot for slot in op.inputs if slot.parameter == "Input").arguments[:] = [smoothed]
    ops, first = list(graph.ops), result(readers[0])
    at = next(index for index, op in enumerate(ops) if result(op) == first)
    graph.replace_ops([*ops[:at], _affine(graph, name, smoothed, factors, np.zeros(len(factors))), *ops[at:]])
    return "added"


def _affine(graph: Graph, source: str, target: str, scale: Floats, bias: Floats) -> Any:
    """Return an operator for scale * source + bias per channel.

    It is a `batch_norm` because Paddle Lite has that everywhere, and runs it in one go over the activation; multiplying
    and adding would be two, and `affine_channel` is for ARM only.
    """
    values = {"Scale": scale, "Bias": bias, "Mean": np.zeros(len(scale)), "Variance": np.ones(len(scale))}
    slots = {slot: [graph.add_param(f"{target}.{slot.lower()}", value)] for slot, value in values.items()}
    saved = {slot: [graph.add_variable(f"{target}.{slot.lower()}", [len(scale)], like=source)] for slot in _SAVED}
    outputs = {"Y": [target], "MeanOut": slots["Mean"], "VarianceOut": slots["Variance"], **saved}
    return graph.new_op("batch_norm", {"X": [source], **slots}, outputs, **_NORM)


_SAVED = ("SavedMean", "SavedVariance")
_NORM: dict[str, Value] = {
    "epsilon": 0.0,
    "momentum": 0.9,
    "is_test": True,
    "use_global_stats": False,
    "data_layout": "NCHW",
}
