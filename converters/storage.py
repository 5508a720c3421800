"""Weights stored in one byte that are computed with in float: squeeze branches, matmuls, the direction classifier.

Paddle Lite's loader multiplies such weights with the size of a step, one for each output channel, when it loads a
model (`LightPredictor::DequantizeWeight` in lite/api/light_api.cc). It is the storage of its own `quant_dynamic`, but
decided here: first the weights of a graph are rounded (`round_stored`), so that whatever runs the graph shows what that
costs; in the file that is built from it, those weights that whole steps give back bit by bit become int8 (`store`). The
second never changes a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters.graph import Graph, all_inputs, attribute, only
from converters.nbcontent import FLOATS, INT, STRING, Attribute, NbFile, Operator, Parameter
from converters.nbfile import read_nb, write_nb
from converters.params import NUMBERS, Array
from converters.quantize import STEPS

LEAST = 256
"""Weights with fewer values stay as they are: steps and names would take what is saved."""

STORED: dict[str, tuple[str, int]] = {
    "conv2d": ("Filter", 0),
    "depthwise_conv2d": ("Filter", 0),
    "fc": ("W", 1),
    "mul": ("Y", 1),
}
"""Operators whose weights the loader multiplies: where these are read, and the axis of output channels."""

ROUNDED = {**STORED, "matmul_v2": ("Y", 1)}
"""Operators of a graph that become these: for ARM, a matmul with a parameter becomes `fc`."""

_BITS = 17
"""Significant bits of a step. With 7 of a whole number they are the 24 of float32: products and quotients are exact."""

_SMALLEST = float(np.finfo(np.float32).tiny)


class Steps(msgspec.Struct, frozen=True):
    """Weights as whole numbers of steps: int8, and float32 (out,), the size of a step of each output channel."""

    whole: Array
    sizes: Array


def to_steps(weights: Array, axis: int) -> Steps:
    """Return weights rounded to the nearest step: 127 steps are the largest value of an output channel.

    The size of a step is shortened to `_BITS`. So `from_steps` is exact in float32, the largest value that it returns
    is 127 steps, and rounding its values again finds the same sizes and whole numbers. A channel of values too small
    for that becomes 0.

    Args:
        weights: float32.
        axis: of output channels.
    """
    largest = np.abs(weights).max(axis=tuple({*range(weights.ndim)} - {axis})).astype(np.float64)
    mantissas, exponents = np.frexp(largest / STEPS)
    sizes = np.ldexp(np.floor(np.ldexp(mantissas, _BITS)), exponents - _BITS)
    sizes[sizes < _SMALLEST] = 1.0
    whole = np.clip(np.rint(weights / _along(sizes, axis, weights.ndim)), -STEPS, STEPS)
    return Steps(whole.astype(np.int8), sizes.astype(np.float32))


def from_steps(steps: Steps, axis: int) -> Array:
    """Return float32 weights as Paddle Lite's loader makes them: whole numbers times the size of a step."""
    weights: Array = _along(steps.sizes, axis, steps.whole.ndim) * steps.whole.astype(np.float32)
    return weights


def _along(sizes: Array, axis: int, axes: int) -> Array:
    """Return numbers of channels in a shape that goes with weights."""
    shape = [1] * axes
    shape[axis] = -1
    return sizes.reshape(shape)


def is_able(weights: Array) -> bool:
    """Say whether weights are worth it, and numbers."""
    return weights.dtype == np.float32 and weights.size >= LEAST and bool(np.isfinite(weights).all())


# ------------------------------------------------------------------------------------------------ in a graph


def round_stored(graph: Graph) -> int:
    """Round the weights that a file can hold in one byte, in place; returns how many values these are.

    Weights that two operators read are left alone: the loader would multiply them twice.
    """
    readers, count = Counter(name for op in graph.ops for name in all_inputs(op)), 0
    for op in graph.ops:
        name, axis = _weights_of(op)
        if name in graph.params and readers[name] == 1 and is_able(graph.params[name]):
            graph.params[name] = from_steps(to_steps(graph.params[name], axis), axis)
            count += graph.params[name].size
    return count


def _weights_of(op: Any) -> tuple[str, int]:
    """Return the name of an operator's weights, "" for none, and their axis of output channels."""
    slot, axis = ROUNDED.get(op.type, ("", 0))
    turned = any(attribute(op, name, False) for name in ("trans_x", "trans_y"))
    return ("" if turned or not slot else only(op, slot)), axis


# ------------------------------------------------------------------------------------------------ in a file


def compact(path: Path) -> None:
    """Write a `.nb` file again, smaller and with the same numbers once it is loaded.

    Raises:
        ConversionError: the file cannot be read.
    """
    write_nb(store(read_nb(path)), path)


def store(content: NbFile) -> NbFile:
    """Return a file in which weights that whole steps give back exactly are int8.

    Raises:
        ConversionError: a parameter does not hold what it says.
    """
    found = _find_steps(content)
    parameters = tuple(_shrunk(parameter, found) for parameter in content.parameters)
    blocks = tuple(
        msgspec.structs.replace(block, operators=tuple(_told(op, found) for op in block.operators or ()))
        for block in content.program.blocks or ()
    )
    program = msgspec.structs.replace(content.program, blocks=blocks)
    return msgspec.structs.replace(content, program=program, parameters=parameters)


def _find_steps(content: NbFile) -> dict[str, Steps]:
    """Return the steps of weights that are to be stored, by name."""
    operators = [op for block in content.program.blocks or () for op in block.operators or ()]
    readers = Counter(name for op in operators for slot in op.inputs or () for name in slot.variables or ())
    arrays = {parameter.name: parameter.array() for parameter in content.parameters}
    found = {}
    for op in operators:
        name = _stored_in(op)
        if readers[name] == 1 and name in arrays and is_able(arrays[name]):
            axis = STORED[op.kind][1]
            steps = to_steps(arrays[name], axis)
            if from_steps(steps, axis).tobytes() == arrays[name].tobytes():
                found[name] = steps
    return found


def _stored_in(op: Operator) -> str:
    """Return the name of the weights that the loader multiplies for an operator; "" for none."""
    wanted, _ = STORED.get(op.kind, ("", 0))
    return next((slot.variables[0] for slot in op.inputs or () if slot.name == wanted and slot.variables), "")


def _shrunk(parameter: Parameter, found: Mapping[str, Steps]) -> Parameter:
    if parameter.name not in found:
        return parameter
    whole = found[parameter.name].whole
    values = msgspec.structs.replace(parameter.values, dtype=NUMBERS[whole.dtype], data=whole.tobytes())
    return msgspec.structs.replace(parameter, values=values)


def _told(op: Operator, found: Mapping[str, Steps]) -> Operator:
    """Return an operator with the attributes by which the loader knows its weights."""
    name = _stored_in(op)
    if name not in found:
        return op
    told = {known.name: known for known in op.attributes or ()}
    for new in (
        Attribute("quantization_type", STRING, s="post_weight_channel_wise_abs_max"),
        Attribute("quantize_weight_bits", INT, i=8),
        Attribute(f"{name}_quant_scale", FLOATS, floats=found[name].sizes.tobytes()),
    ):
        told[new.name] = new
    # By bytes: the loader finds attributes by halving.
    attributes = tuple(sorted(told.values(), key=lambda known: known.name.encode()))
    return msgspec.structs.replace(op, attributes=attributes)
