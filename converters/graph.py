"""The Paddle inference graph: read it, edit it, write it back. The rewrites are in `passes.py` and `passes_x86.py`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import ConversionError
from converters.framework import parse, schema
from converters.params import NUMBERS, Array, read_params, write_params

MODEL_FILE = "inference.pdmodel"
PARAMS_FILE = "inference.pdiparams"

_LOD_TENSOR = 7  # framework.proto, VarType.Type
# framework.proto, AttrType: the field that holds a value of each type.
_STRINGS = 5
_ATTR_FIELDS = {
    0: "i",
    1: "f",
    2: "s",
    3: "ints",
    4: "floats",
    5: "strings",
    6: "b",
    9: "l",
    11: "longs",
    15: "float64",
}

Value = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]


class Links:
    """Who writes and who reads each variable. Valid until the graph is changed.

    Attributes:
        producers: the operator that writes a variable.
        consumers: those that read it, one entry per use; the graph's outputs are read by `fetch`.
    """

    def __init__(self, ops: Iterable[Any]) -> None:
        self.producers: dict[str, Any] = {}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for op in ops:
            self.producers.update(dict.fromkeys(all_outputs(op), op))
            for name in all_inputs(op):
                self.consumers[name].append(op)

    def only_reader(self, name: str) -> bool:
        """Say whether a variable is read exactly once."""
        return len(self.consumers[name]) == 1


class Graph:
    """One block of Paddle operators and its parameters, held in memory and edited in place.

    Attributes:
        program: the `ProgramDesc` protobuf; edited directly because removing operators through Paddle's own
            `Block` interface crashes (paddlepaddle 2.6.2).
        params: parameter name to array.
    """

    def __init__(self, program: Any, params: dict[str, Array]) -> None:
        self.program = program
        self.params = params

    @classmethod
    def load(cls, directory: Path) -> Graph:
        """Read `inference.pdmodel` and `inference.pdiparams` of a directory.

        Raises:
            ConversionError: a file is missing, is not a Paddle inference model, or has more than one block.
        """
        program = schema().ProgramDesc()
        parse(program, _read(directory, MODEL_FILE), directory / MODEL_FILE)
        if len(program.blocks) != 1 or not program.blocks[0].ops:
            raise ConversionError(
                f"{directory / MODEL_FILE}: expected one block of operators, found {len(program.blocks)}"
            )
        graph = cls(program, read_params(_read(directory, PARAMS_FILE), _saved_names(program), directory / PARAMS_FILE))
        graph._check_single_assignment(directory / MODEL_FILE)
        return graph

    def save(self, directory: Path) -> None:
        """Write the graph as `inference.pdmodel` and `inference.pdiparams`; unused variables and parameters go."""
        used = {name for op in self.ops for name in (*all_inputs(op), *all_outputs(op))} | {"feed", "fetch"}
        kept = [v for v in self.program.blocks[0].vars if v.name in used]
        del self.program.blocks[0].vars[:]
        self.program.blocks[0].vars.extend(kept)
        self.params = {name: value for name, value in self.params.items() if name in used}
        directory.mkdir(parents=True, exist_ok=True)
        (directory / MODEL_FILE).write_bytes(self.program.SerializeToString())
        (directory / PARAMS_FILE).write_bytes(write_params(self.params))

    def copy(self) -> Graph:
        """Return a graph of its own; the arrays of parameters are the same ones."""
        program = type(self.program)()
        program.CopyFrom(self.program)
        return Graph(program, dict(self.params))

    @property
    def ops(self) -> Any:
        """The operators in execution order (a protobuf list)."""
        return self.program.blocks[0].ops

    def shape(self, name: str) -> list[int]:
        """Return a variable's declared shape, -1 where it varies; empty when it has none."""
        var = self._var(name)
        return list(var.type.lod_tensor.tensor.dims) if var is not None else []

    def length(self, name: str, axis: int) -> int:
        """Return a variable's declared length along an axis; -1 where it varies or is not declared."""
        shape = self.shape(name)
        return shape[axis] if axis < len(shape) else -1

    def inputs(self) -> list[str]:
        """Return the names of the graph's inputs, in order."""
        return [only(op, "Out", out=True) for op in self.ops if op.type == "feed"]

    def outputs(self) -> list[str]:
        """Return the names of the graph's outputs, in order."""
        return [only(op, "X") for op in self.ops if op.type == "fetch"]

    def links(self) -> Links:
        """Return who writes and who reads each variable, as the graph is now."""
        return Links(self.ops)

    def add_param(self, name: str, value: Array) -> str:
        """Add a parameter under a name that is not yet taken and return that name; float64 becomes float32."""
        name = self.add_variable(name, value.shape, like=self.outputs()[0])
        self.params[name] = value.astype(np.float32) if value.dtype == np.float64 else value
        var = self._var(name)
        var.persistable, var.type.lod_tensor.tensor.data_type = True, NUMBERS[self.params[name].dtype]
        return name

    def add_variable(self, name: str, shape: Sequence[int], *, like: str) -> str:
        """Declare a variable under a name that is not yet taken and return that name.

        Args:
            name: wanted.
            shape: with -1 where a length varies.
            like: the variable it is like in everything else.
        """
        taken = {v.name for v in self.program.blocks[0].vars}
        while name in taken:
            name += "_"
        var = self.program.blocks[0].vars.add()
        var.CopyFrom(self._var(like))
        var.name = name
        var.type.lod_tensor.tensor.dims[:] = shape
        return name

    def replace_param(self, op: Any, slot: str, value: Array) -> None:
        """Give an operator its own changed copy of a parameter, which others may share."""
        name = self.add_param(f"{only(op, slot)}.folded", value)
        for entry in op.inputs:
            if entry.parameter == slot:
                entry.arguments[:] = [name]

    def replace_ops(self, kept: Iterable[Any]) -> None:
        """Make `kept` the operators of the graph. Operators held before are then copies of no effect."""
        copies = []
        for op in kept:
            copy = type(op)()
            copy.CopyFrom(op)
            copies.append(copy)
        del self.ops[:]
        self.ops.extend(copies)

    def remove(self, dead: Sequence[Any]) -> None:
        """Remove operators, told apart by the variables they write."""
        written = {tuple(all_outputs(op)) for op in dead}
        for index in reversed(range(len(self.ops))):
            if self.ops[index].type != "fetch" and tuple(all_outputs(self.ops[index])) in written:
                del self.ops[index]

    def replace(self, op: Any, added: Sequence[Any]) -> None:
        """Put operators in the place of one, which is told by the variables it writes."""
        ops, written = list(self.ops), all_outputs(op)
        at = next(index for index, other in enumerate(ops) if all_outputs(other) == written)
        self.replace_ops([*ops[:at], *added, *ops[at + 1 :]])

    def bypass(self, op: Any, source: str) -> None:
        """Remove an operator and let those that read its result read `source`."""
        old = result(op)
        for reader in self.ops:
            for slot in reader.inputs:
                slot.arguments[:] = [source if name == old else name for name in slot.arguments]
        self.remove([op])

    def new_op(
        self, kind: str, inputs: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[str]], **attributes: Value
    ) -> Any:
        """Return an operator that is not yet in the graph; see `become`."""
        op = type(self.ops[0])()
        become(op, kind, inputs, outputs, **attributes)
        return op

    def _var(self, name: str) -> Any:
        return next((v for v in self.program.blocks[0].vars if v.name == name), None)

    def _check_single_assignment(self, path: Path) -> None:
        seen: set[str] = set()
        for op in self.ops:
            written = set(all_outputs(op)) - self.params.keys() - {"fetch"}
            if seen & written:
                raise ConversionError(f"{path}: operator {op.type} assigns {min(seen & written)} again; not supported")
            seen |= written


# ------------------------------------------------------------------------------------------------- operators


def all_inputs(op: Any) -> list[str]:
    """Return every input name of an operator."""
    return [name for slot in op.inputs for name in slot.arguments]


def all_outputs(op: Any) -> list[str]:
    """Return every output name of an operator."""
    return [name for slot in op.outputs for name in slot.arguments]


def names(op: Any, slot: str, *, out: bool = False) -> list[str]:
    """Return the names in one input (or output) slot."""
    for entry in op.outputs if out else op.inputs:
        if entry.parameter == slot:
            return list(entry.arguments)
    return []


def only(op: Any, slot: str, *, out: bool = False) -> str:
    """Return the single name in a slot, or "" when there is not exactly one."""
    found = names(op, slot, out=out)
    return found[0] if len(found) == 1 else ""


def result(op: Any) -> str:
    """Return the name of an operator's main output."""
    return only(op, "Out", out=True) or only(op, "Output", out=True) or only(op, "Y", out=True)


def bias_of(graph: Graph, name: str, channels: int) -> str:
    """Return the parameter that is added to a convolution's output per channel and to nothing else; "" for none."""
    readers = [op for op in graph.ops if name in all_inputs(op)]
    bias = only(readers[0], "Y") if len(readers) == 1 and readers[0].type == "elementwise_add" else ""
    shared = sum(bias in all_inputs(op) for op in graph.ops) > 1
    per_channel = bias in graph.params and graph.params[bias].size == channels
    return bias if per_channel and not shared else ""


def attribute(op: Any, name: str, default: Any = None) -> Any:
    """Return an attribute's value as a Python value; `default` where it is absent or of a kind not read here."""
    for attr in op.attrs:
        if attr.name == name and attr.type in _ATTR_FIELDS:
            value = getattr(attr, _ATTR_FIELDS[attr.type])
            return value if isinstance(value, (int, float, str, bool)) else list(value)
    return default


def set_attribute(op: Any, name: str, value: Value) -> None:
    """Set or add an attribute; its type is that of the Python value."""
    for attr in list(op.attrs):
        if attr.name == name:
            op.attrs.remove(attr)
    attr, (number, field) = op.attrs.add(), _field_of(value)
    attr.name, attr.type = name, number
    if number in (3, 4, _STRINGS):
        getattr(attr, field).extend(value)
    else:
        setattr(attr, field, value)


def _field_of(value: Value) -> tuple[int, str]:
    """Return the type number and field of a value; an empty list counts as one of integers."""
    kinds = {bool: (6, "b"), int: (0, "i"), float: (1, "f"), str: (2, "s")}
    if isinstance(value, (bool, int, float, str)):
        return kinds[type(value)]
    lists = {int: (3, "ints"), float: (4, "floats"), str: (_STRINGS, "strings")}
    return lists[type(value[0]) if value else int]


def become(
    op: Any, kind: str, inputs: Mapping[str, Sequence[str]], outputs: Mapping[str, Sequence[str]], **attributes: Value
) -> None:
    """Turn an operator into another type in place, with the attributes every operator must carry.

    PaddleSlim's program clone fails with "Attribute op_role is not found" on operators without them.
    """
    op.type = kind
    del op.inputs[:], op.outputs[:], op.attrs[:]
    for table, slots in ((op.inputs, inputs), (op.outputs, outputs)):
        for parameter, arguments in slots.items():
            slot = table.add()
            slot.parameter = parameter
            slot.arguments.extend(arguments)
    every: dict[str, Value] = {
        "op_role": 0,
        "op_role_var": [],
        "op_namescope": "/",
        "op_device": "",
        "with_quant_attr": False,
    }
    for name, value in {**every, **attributes}.items():
        set_attribute(op, name, value)
    op.attrs.add(name="op_role_var", type=_STRINGS)


# ------------------------------------------------------------------------------------------- files


def _saved_names(program: Any) -> list[str]:
    return sorted(v.name for v in program.blocks[0].vars if v.persistable and v.type.type == _LOD_TENSOR)


def _read(directory: Path, file: str) -> bytes:
    try:
        return (directory / file).read_bytes()
    except OSError as error:
        raise ConversionError(
            f"{directory / file}: {error.strerror}; a model is {MODEL_FILE} and {PARAMS_FILE}"
        ) from error
