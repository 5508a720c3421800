"""A rewrite of two convolutions of one pixel, one after the other, into one."""

from __future__ import annotations

from typing import Any

import numpy as np

from converters.graph import Graph, Links, attribute, only, result
from converters.passes import PLAIN_CONVOLUTION, adds_per_channel, output_channels, repeat, weights_before


def merge_pointwise(graph: Graph) -> int:
    """Merge a convolution of one pixel into the one of one pixel that alone reads it, where that leaves less to do.

    Between them may be a bias and nothing else: two linear maps are one. PP-OCRv4's detector ends its backbone in one
    and begins each level of its neck with the other.
    """

    def attempt(op: Any, links: Links) -> bool:
        source = only(op, "Input")
        found = weights_before(graph, links, source) if _is_pointwise(graph, op) else None
        if found is None or not _is_pointwise(graph, found[0]):
            return False
        first, add = found
        if add is not None and not adds_per_channel(graph, add, output_channels(graph, first)):
            return False
        inner, outer = (graph.params[only(conv, "Filter")] for conv in (first, op))
        if outer.shape[0] * inner.shape[1] > inner.size + outer.size:
            return False
        _merge(graph, first, add, op)
        return True

    return repeat(graph, attempt)


def _merge(graph: Graph, first: Any, add: Any, second: Any) -> None:
    """Put the product in the place of the second, and behind it what the bias between them has become."""
    inner, outer = (graph.params[only(conv, "Filter")][:, :, 0, 0].astype(np.float64) for conv in (first, second))
    target = result(second)
    middle = target if add is None else graph.add_variable(f"{target}.merged", graph.shape(target), like=target)
    filters = graph.add_param(f"{only(second, 'Filter')}.merged", (outer @ inner)[:, :, None, None])
    slots = {"Input": [only(first, "Input")], "Filter": [filters]}
    added = [graph.new_op("conv2d", slots, {"Output": [middle]}, **PLAIN_CONVOLUTION)]
    if add is not None:
        bias = outer @ graph.params[only(add, "Y")].astype(np.float64).reshape(-1)
        terms = {"X": [middle], "Y": [graph.add_param(f"{only(add, 'Y')}.merged", bias)]}
        added.append(graph.new_op("elementwise_add", terms, {"Out": [target]}, axis=1))
    dead = [first] if add is None else [first, add]
    graph.replace(second, added)
    graph.remove(dead)


def _is_pointwise(graph: Graph, op: Any) -> bool:
    filters = graph.params.get(only(op, "Filter"))
    return (
        op.type == "conv2d"
        and filters is not None
        and filters.shape[2:] == (1, 1)
        and attribute(op, "groups") == 1
        and attribute(op, "strides") == [1, 1]
        and attribute(op, "paddings") == [0, 0]
    )
