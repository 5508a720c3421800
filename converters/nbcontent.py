"""The content of Paddle Lite's `.nb` file: its tables, and what the fields of each are.

The classes and their attributes are the tables and fields of lite/model_parser/flatbuffers/framework.fbs and param.fbs
of Paddle Lite 2.13, in the same order; vectors of numbers are bytes. A field that is not in a file has its default, or
None.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from flatbuffers import number_types

from agent.errors import ConversionError
from converters.params import DTYPES, Array


class Attribute(msgspec.Struct, frozen=True):
    """An operator's attribute: which of the other fields holds its value, its kind says."""

    name: str
    kind: int
    i: int = 0
    f: float = 0.0
    s: str | None = None
    ints: bytes | None = None
    floats: bytes | None = None
    strings: tuple[str, ...] | None = None
    b: bool = False
    bools: bytes | None = None
    block: int = 0
    long: int = 0
    blocks: bytes | None = None
    longs: bytes | None = None


INT, STRING, FLOATS = 0, 2, 4
"""Kinds of attributes (AttrType)."""


class Slot(msgspec.Struct, frozen=True):
    """The variables that an operator reads or writes in one role."""

    name: str
    variables: tuple[str, ...] | None = None


class Operator(msgspec.Struct, frozen=True):
    """One step of the program; its attributes are found by halving, so that they must be sorted by name."""

    kind: str
    inputs: tuple[Slot, ...] | None = None
    outputs: tuple[Slot, ...] | None = None
    attributes: tuple[Attribute, ...] | None = None
    is_target: bool = False


class TensorType(msgspec.Struct, frozen=True):
    """Kind of numbers, a key of `params.DTYPES`, and shape."""

    dtype: int
    shape: bytes | None = None


class LodTensorType(msgspec.Struct, frozen=True):
    """A tensor, and how deep its rows are grouped."""

    tensor: TensorType | None = None
    lod_level: int = 0


class VariableType(msgspec.Struct, frozen=True):
    """What a variable holds; only tensors are described further."""

    kind: int
    selected_rows: None = None
    tensor: LodTensorType | None = None


class Variable(msgspec.Struct, frozen=True):
    """A variable's declaration."""

    name: str
    type: VariableType | None = None
    persistable: bool = False
    check_feed: bool = False


class Block(msgspec.Struct, frozen=True):
    """Variables and the operators on them."""

    index: int
    parent: int
    variables: tuple[Variable, ...] | None = None
    operators: tuple[Operator, ...] | None = None
    forward: int = -1


class Version(msgspec.Struct, frozen=True):
    """The Paddle release that wrote the source model."""

    number: int


class Program(msgspec.Struct, frozen=True):
    """All that a model does."""

    blocks: tuple[Block, ...] | None = None
    version: Version | None = None


class Revision(msgspec.Struct, frozen=True):
    """Versions of a parameter's layout."""

    version: int
    model_version: int


class Values(msgspec.Struct, frozen=True):
    """A parameter's numbers; `dtype` is a key of `params.DTYPES`, `shape` holds eight bytes for each axis."""

    lod_level: int
    lod: bytes | None
    shape: bytes | None
    dtype: int
    data: bytes | None


class Parameter(msgspec.Struct, frozen=True):
    """A stored tensor; `union` is 1, the only kind there is."""

    revision: Revision | None
    name: str
    union: int
    values: Values

    def array(self) -> Array:
        """Return its numbers, in their shape.

        Raises:
            ConversionError: their kind is unknown, or there are more or fewer than the shape says.
        """
        shape = np.frombuffer(self.values.shape or b"", "<i8")
        try:
            return np.frombuffer(self.values.data or b"", DTYPES[self.values.dtype]).reshape(shape)
        except (KeyError, ValueError) as error:
            raise ConversionError(
                f"parameter {self.name}: {len(self.values.data or b'')} bytes of kind {self.values.dtype} are not "
                f"{'x'.join(map(str, shape))} numbers"
            ) from error


class NbFile(msgspec.Struct, frozen=True):
    """The content of a `.nb` file; `optimizer` is the version of what has made it."""

    optimizer: str
    program: Program
    parameters: tuple[Parameter, ...]


Kind = str | type | tuple[type]
"""Of a field: a key of `NUMBERS`, "name" (which must be there), "text", "texts", "*" and the bytes of each number of a
vector, "none" for what is not read here, a class, or several of one."""

NUMBERS: dict[str, tuple[Any, Any]] = {
    "int": (number_types.Int32Flags, 0),
    "forward": (number_types.Int32Flags, -1),
    "long": (number_types.Int64Flags, 0),
    "byte": (number_types.Uint8Flags, 0),
    "float": (number_types.Float32Flags, 0.0),
    "bool": (number_types.BoolFlags, False),
}
FIELDS: dict[type, tuple[Kind, ...]] = {
    Attribute: ("name", "int", "int", "float", "text", "*4", "*4", "texts", "bool", "*1", "int", "long", "*4", "*8"),
    Slot: ("name", "texts"),
    Operator: ("name", (Slot,), (Slot,), (Attribute,), "bool"),
    TensorType: ("int", "*8"),
    LodTensorType: (TensorType, "int"),
    VariableType: ("int", "none", LodTensorType),
    Variable: ("name", VariableType, "bool", "bool"),
    Block: ("int", "int", (Variable,), (Operator,), "forward"),
    Version: ("long",),
    Program: ((Block,), Version),
    Revision: ("int", "int"),
    Values: ("int", "*8", "*8", "int", "*1"),
    Parameter: (Revision, "name", "byte", Values),
}
