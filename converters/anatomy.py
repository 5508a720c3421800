"""What an int8 model is made of: its layers, which of them stayed in float and why, and where values change to int8."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters import native
from converters.compress import Compressed
from converters.framework import schema
from converters.graph import Graph, Links, all_inputs, all_outputs, attribute, only, result
from converters.passes import CONVOLUTIONS, MATMULS
from converters.quantize import QUANTIZED, layers_of

_INT8 = "2"  # paddle::lite_api::PrecisionType
_LAYER = re.compile("((depthwise|sparse)_)?conv2d|fc|mul|matmul")
"""Begins the names of operators with weights, where only one of their values is computed."""


class Part(msgspec.Struct, frozen=True):
    """An operator with weights.

    Attributes:
        name: the variable it writes.
        kind: its operator.
        shape: of its filters, (out, in / groups, h, w), or of a matmul's weights, (in, out).
        int8: it is in int8.
        share: of all layers' errors, each in int8 alone; None where that was not tried.
        left: variance of its error after rounding by effect, as a share of its output's; None where it was not.
        why: it stayed in float, or did not.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    int8: bool
    share: float | None
    left: float | None
    why: str

    @property
    def weights(self) -> int:
        """Number of its weights."""
        return int(np.prod(self.shape))


class Changes(msgspec.Struct, frozen=True):
    """Where values change to int8 on ARM.

    Attributes:
        made: how many, by what wrote the value: a layer or a join of values, and the operators after it, with commas.
        handed: results that go from one int8 layer to the next without a change.
    """

    made: dict[str, int]
    handed: int


def parts(model: Compressed, graph: Graph, float_share: float) -> tuple[Part, ...]:
    """Return the operators with weights of a model's int8 graph, in order.

    Args:
        model: what became of it.
        graph: its int8 graph for ARM.
        float_share: of the recipe.
    """
    links, total = graph.links(), sum(model.errors.values()) or 1.0
    able = {layer.name for layer in layers_of(graph)}  # of those that are still in float
    found = []
    for op in graph.ops:
        shape, int8 = _weights(graph, links, op)
        if shape:
            name = result(op)
            share = model.errors[name] / total if name in model.errors else None
            why = _why_int8(share, float_share) if int8 else _why_float(op, share, name in able)
            why = why if model.errors else "only its weights' storage is in int8, as the recipe says of this model"
            found.append(Part(name, op.type, shape, int8, share, model.left.get(name), why))
    return tuple(found)


def _weights(graph: Graph, links: Links, op: Any) -> tuple[tuple[int, ...], bool]:
    """Return the shape of an operator's weights, empty when it has none, and whether they are int8."""
    name = only(op, "Filter") if op.type in CONVOLUTIONS else only(op, "Y") if op.type in MATMULS else ""
    reader = links.producers.get(name)
    if reader is not None and reader.type == "dequantize_linear" and only(reader, "X") in graph.params:
        return graph.params[only(reader, "X")].shape, True
    return (graph.params[name].shape if name in graph.params else ()), False


def _why_int8(share: float | None, float_share: float) -> str:
    return "its weights would show in the size" if share is not None and share > float_share else ""


def _why_float(op: Any, share: float | None, able: bool) -> str:
    if op.type not in QUANTIZED:
        return f"only {' and '.join(QUANTIZED)} are put into int8"
    if not able:
        return "it sees one pixel, where int8 gives wrong numbers on x86; next to no time"
    return "its input is 0 on all pictures" if share is None else f"it would make {share:.0%} of all layers' errors"


# ------------------------------------------------------------------------------------------------ changes


def changes(source: str, out: str, sparse_from: float = 0.0) -> dict[str, Any]:
    """Return the `Changes` of an int8 graph as builtins. Runs in a process of its own (`native`).

    Args:
        source: directory of the graph for ARM.
        out: a directory that Paddle Lite's optimised program goes to.
        sparse_from: as given to `native.build_lite`.
    """
    native.list_kernels(source, out, "aarch64", sparse_from)
    program = schema().ProgramDesc.FromString(Path(out, "model").read_bytes())
    found: dict[str, Any] = msgspec.to_builtins(follow(program.blocks[0].ops))
    return found


def follow(ops: Iterable[Any]) -> Changes:
    """Return where values change to int8 in an optimised program; its variables are written more than once."""
    made: Counter[str] = Counter()
    trails: dict[str, tuple[str, ...]] = {}
    handed = 0
    for op in ops:
        alias, precision = _kernel(op)
        known = [trails[name] for name in all_inputs(op) if name in trails]
        if op.type == "calib":
            made[", ".join(known[0])] += 1
        handed += alias == "int8_out"
        trails.update(dict.fromkeys(all_outputs(op), known[0] if op.type == "calib" else _trail(op, precision, known)))
    return Changes(dict(made.most_common()), handed)


def _kernel(op: Any) -> tuple[str, str]:
    """Return alias and precision of the kernel that was picked; see `native.list_kernels`."""
    _, alias, _, precision, *_ = [*str(attribute(op, "__@kernel_type_attr@__", "")).split("/"), "", "", "", ""]
    return alias, precision


def _trail(op: Any, precision: str, known: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return what wrote a value, as far back as the last layer, join of values or input."""
    if op.type == "feed":
        return ("the input",)
    if len(known) != 1:
        return (op.type,)
    if _LAYER.match(op.type):
        return ("int8 layer" if precision == _INT8 else "float layer",)
    return (*known[0], op.type)
