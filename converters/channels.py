"""Channels of convolutions that can only go together, and what reads them; found and cut with PaddleSlim.

Where a sum or a product joins two convolutions, a channel must go from both, from the bias behind them, from the
depthwise filters on the way and from every filter that reads the result. PaddleSlim follows a filter's output to find
all of that; who reads it, and what can be done about the loss, is added here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from converters.graph import Graph, all_inputs, attribute, bias_of, only, result, set_attribute
from converters.network import Network, trainable
from converters.params import Array

FULL = ("conv2d", "conv2d_transpose")
"""Convolutions that mix channels."""

_LOST = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What PaddleSlim 2.6.0 ends with at an operator that it cannot follow, besides saying so."""

_SAME = {"repeat": 1}
"""How PaddleSlim says that a depthwise convolution makes one channel of each."""


class Part(msgspec.Struct, frozen=True):
    """A stretch of a parameter's axis that holds a group's channels.

    Attributes:
        param: its name.
        axis: along which the channels lie.
        start: index of the first of them.
    """

    param: str
    axis: int
    start: int


class Reader(msgspec.Struct, frozen=True):
    """A convolution that mixes channels of a group.

    Attributes:
        filters: the name of its filters.
        axis: of the filters, along which its input's channels lie.
        start: index of the group's first channel in its input.
        source: the variable whose channels tell what a channel is worth to it: what it reads; before pooling, where
            it reads the mean over a picture.
        pooled: whether it reads a mean.
        bias: the parameter that takes up what the missing channels held on average; "" for none.
    """

    filters: str
    axis: int
    start: int
    source: str
    pooled: bool
    bias: str


class Group(msgspec.Struct, frozen=True):
    """Channels that go together, told by the filters that make the first of them.

    Attributes:
        name: of these filters.
        channels: how many there are.
        parts: what loses a channel with the group.
        readers: what must do without it.
    """

    name: str
    channels: int
    parts: tuple[Part, ...]
    readers: tuple[Reader, ...]


def find_groups(network: Network, graph: Graph, areas: Mapping[str, int]) -> tuple[Group, ...]:
    """Return the groups of a graph that can lose channels; each parameter's axis is in one of them.

    Args:
        network: the graph as Paddle has loaded it.
        graph: the same.
        areas: of the convolutions' outputs in pixels (`areas_of`); those of one pixel, as in squeeze-and-excitation,
            have next to no share in the work and keep their channels.
    """
    found: dict[frozenset[str], Group] = {}
    covered: set[str] = set()
    wrapped = _wrap(network)
    for op in graph.ops:
        filters = only(op, "Filter")
        if filters in covered:
            continue
        if op.type == "conv2d" and areas.get(result(op), 0) > 1 and graph.params[filters].shape[0] > 1:
            parts = _parts(wrapped, graph, filters)
            key = frozenset(part.param for part in parts)
            if parts and key not in found:
                readers = _readers(graph, parts)
                found[key] = Group(filters, graph.params[filters].shape[0], parts, readers)
                covered |= {part.param for part in parts if part.axis == 0}
    return tuple(group for group in found.values() if group.readers)


def cut(network: Network, graph: Graph, gone: Mapping[str, Sequence[int]]) -> Graph:
    """Return the graph without some channels; the network's parameters are cut with it.

    Args:
        network: the graph as Paddle has loaded it, with the parameters that the smaller graph takes over.
        graph: the same.
        gone: the channels' indices, by the name of their group.
    """
    slim, place = _slim(), _place()
    program = trainable(network)
    # One call per group: in one call PaddleSlim goes once only through what follows a concat, and misses the others.
    for name, channels in gone.items():
        share = len(channels) / network.get(name).shape[0]
        program, _, _ = slim.Pruner(_scores({name: channels})).prune(
            program, network.scope, [name], [share], place=place
        )
    block = program.global_block()
    params = {name: network.get(name) for name in graph.params}
    shapes = {name: list(block.var(name).shape) for name in _variables(graph) if block.has_var(name)}
    return _smaller(graph, params, shapes)


def areas_of(network: Network, graph: Graph, inputs: Array) -> dict[str, int]:
    """Return how many pixels the output of each convolution has, by its name.

    Args:
        network: the graph as Paddle has loaded it.
        graph: the same.
        inputs: one input, float32 (1, 3, H, W).
    """
    outputs = [result(op) for op in graph.ops if only(op, "Filter") in graph.params]
    values = network.fetch(outputs, inputs)
    return {name: int(np.prod(value.shape[2:])) for name, value in zip(outputs, values, strict=True)}


def multiply_adds(graph: Graph, areas: Mapping[str, int], shapes: Mapping[str, Sequence[int]] | None = None) -> int:
    """Return the multiplications of a graph's convolutions, each with its addition.

    Args:
        graph: whose convolutions count.
        areas: of their outputs in pixels (`areas_of`).
        shapes: of filters that are to have another shape than in the graph, by name.
    """
    total = 0
    for op in graph.ops:
        filters = only(op, "Filter")
        if filters in graph.params:
            area = areas[result(op)]
            if op.type.endswith("transpose"):  # each value of the input meets every filter value once
                area //= int(np.prod(attribute(op, "strides")))
            shape = (shapes or {}).get(filters, graph.params[filters].shape)
            total += area * int(np.prod(shape))
    return total


def cut_shapes(graph: Graph, group: Group, count: int, shapes: dict[str, list[int]]) -> None:
    """Take a number of a group's channels from shapes of parameters, in place.

    Args:
        graph: where parameters not yet in `shapes` have their shape from.
        group: which.
        count: of channels that go.
        shapes: by parameter.
    """
    for part in group.parts:
        shape = shapes.setdefault(part.param, list(graph.params[part.param].shape))
        if shape[part.axis] > 1:  # depthwise filters have one input each
            shape[part.axis] -= count


# ------------------------------------------------------------------------------------------------ PaddleSlim


def _slim() -> Any:
    """Return PaddleSlim's pruning package, with what it lacks added."""
    from paddleslim import prune
    from paddleslim.prune import prune_worker

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("paddleslim"):
            logging.getLogger(name).setLevel(logging.ERROR)
    if prune_worker.PRUNE_WORKER.get("concat") is None:
        prune_worker.PRUNE_WORKER.register(_concat(prune_worker))
    return prune


def _concat(workers: Any) -> Any:
    """Return a worker for `concat`, which PaddleSlim 2.6.0 does not have."""

    class concat(workers.PruneWorker):  # type: ignore[misc,name-defined]
        """Channels of a part are channels of the whole, moved by the parts before it."""

        def _prune(self, var: Any, axis: int, transforms: list[dict[str, int]]) -> None:
            parts, whole = self.op.inputs("X"), self.op.outputs("Out")[0]
            if axis != self.op.attr("axis") or var not in parts:
                raise workers.UnsupportOpError("concat: only a part of it can lose channels")
            lengths = [part.shape()[axis] for part in parts]
            start, length = sum(lengths[: parts.index(var)]), lengths[parts.index(var)]
            moved = {"src_start": 0, "src_end": length, "target_start": start, "target_end": start + length}
            self._visit_and_search(whole, axis, [*transforms, moved])

    return concat


def _place() -> Any:
    import paddle

    return paddle.CPUPlace()


def _wrap(network: Network) -> Any:
    from paddleslim.core import GraphWrapper

    return GraphWrapper(trainable(network))


def _parts(wrapped: Any, graph: Graph, filters: str) -> tuple[Part, ...]:
    """Return what loses a channel with the filters; nothing where PaddleSlim cannot follow their output."""
    from paddleslim.prune.collections import StaticPruningCollections

    _slim()
    try:
        collections = list(StaticPruningCollections([filters], wrapped))
    except _LOST:
        return ()
    found = []
    for detail in (detail for collection in collections for detail in collection.all_pruning_details()):
        if detail.name not in graph.params:
            continue
        if any("target_start" not in move and move != _SAME for move in detail.transform):
            return ()  # channels that are repeated or flattened
        found.append(Part(detail.name, detail.axis, sum(move.get("target_start", 0) for move in detail.transform)))
    return tuple(dict.fromkeys(found))


def _scores(gone: Mapping[str, Sequence[int]]) -> Any:
    """Return a criterion by which PaddleSlim finds the given channels the least."""

    def score(group: Any, values: Mapping[str, Array], _: Any) -> dict[str, dict[int, Array | None]]:
        found: dict[str, dict[int, Array | None]] = {}
        for detail in group.all_pruning_details():
            if detail.name in values:
                found.setdefault(detail.name, {})[detail.axis] = None
        name, axis = group.master["name"], group.master["axis"]
        worth = np.ones(values[name].shape[axis])
        worth[list(gone[name])] = 0.0
        found[name][axis] = worth
        return found

    return score


# --------------------------------------------------------------------------------------------------- graphs


def _readers(graph: Graph, parts: Sequence[Part]) -> tuple[Reader, ...]:
    found = []
    for part in parts:
        for op in graph.ops:
            axis = 0 if op.type.endswith("transpose") else 1
            if op.type in FULL and only(op, "Filter") == part.param and part.axis == axis:
                source, pooled = _seen(graph, only(op, "Input"))
                channels = graph.params[part.param].shape[1 - axis]
                bias = bias_of(graph, result(op), channels)
                found.append(Reader(part.param, axis, part.start, source, pooled, bias))
                break  # filters that two convolutions share are one reader
    return tuple(found)


def _seen(graph: Graph, name: str) -> tuple[str, bool]:
    """Return the variable with the channels of what a convolution reads in every pixel, and whether it reads a mean."""
    producers = graph.links().producers
    op = producers.get(name)
    if op is not None and op.type == "pool2d":
        return only(op, "X"), True
    before = producers.get(only(op, "Input")) if op is not None and op.type == "conv2d" else None
    if before is not None and before.type == "pool2d":
        # `pool_before_expanding` has given the filters to two convolutions, one of them of the mean alone.
        twins = [other for other in graph.ops if only(other, "Filter") == only(op, "Filter") and other != op]
        if twins:
            return result(twins[0]), True
    return name, False


def _variables(graph: Graph) -> set[str]:
    return {name for op in graph.ops for name in (*all_inputs(op), result(op)) if name} - {"feed", "fetch"}


def _smaller(graph: Graph, params: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> Graph:
    """Return a copy of a graph with other parameters and shapes."""
    slim = graph.copy()
    slim.params = {name: value.astype(np.float32) for name, value in params.items()}
    for var in slim.program.blocks[0].vars:
        shape = slim.params[var.name].shape if var.name in slim.params else shapes.get(var.name)
        if shape is not None:
            var.type.lod_tensor.tensor.dims[:] = shape
    for op in slim.ops:
        if op.type == "depthwise_conv2d":
            set_attribute(op, "groups", int(slim.params[only(op, "Filter")].shape[0]))
    return slim
