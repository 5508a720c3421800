"""Paddle Lite's `.nb` file: read it, and write it in one way, so that the same content has the same bytes.

The layout is that of Paddle Lite 2.13 (lite/model_parser/model_parser.cc and lite/model_parser/flatbuffers): 2 bytes
with the layout's version, 16 with the optimiser's, 8 with the length of the program; the program; the parameters, each
with its length before it. Program and parameters are FlatBuffers tables (`nbcontent`).

Paddle Lite writes every name, type and attribute anew wherever it occurs; here equal parts are written once and pointed
at, which FlatBuffers allows. And it fills the 16 bytes up with what happens to be in memory; here they end in zeros.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from flatbuffers.builder import Builder
from flatbuffers.table import Table

from agent.errors import ConversionError
from converters.nbcontent import FIELDS, NUMBERS, Kind, NbFile, Parameter, Program, Values

_LAYOUT = 2
_HEAD = struct.Struct("<H16sQ")  # version of the layout and of the optimiser, bytes of the program
_PARAMS = struct.Struct("<HHHHI")  # version, reserved, bytes of the rest of this head; parameters, bytes of the largest
_PARAM = struct.Struct("<II")  # bytes from here to its end but the first four; bytes from there to the table


# ------------------------------------------------------------------------------------------------ reading


def read_nb(path: Path) -> NbFile:
    """Return the content of a file.

    Raises:
        ConversionError: it is missing, damaged, or holds what is not known here.
    """
    try:
        return _parse(path.read_bytes())
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror}") from error
    except (struct.error, ValueError, IndexError, TypeError, OverflowError) as error:
        raise ConversionError(f"{path}: damaged, or not a file of Paddle Lite: {error}") from error


def _parse(raw: bytes) -> NbFile:
    layout, optimizer, length = _HEAD.unpack_from(raw)
    if layout != _LAYOUT:
        raise ValueError(f"layout {layout}")
    at = _HEAD.size + length
    version, reserved, rest, count, _ = _PARAMS.unpack_from(raw, at)
    if (version, reserved, rest) != (0, 0, _PARAMS.size - 6):
        raise ValueError(f"parameters of version {version}")
    program, at = _decode(raw[_HEAD.size : at], Program), at + _PARAMS.size
    parameters = []
    for _ in range(count):
        total, offset = _PARAM.unpack_from(raw, at)
        end = at + 4 + total
        parameters.append(_decode(raw[at + 4 + offset : end], Parameter))
        at = end
    if at != len(raw):
        raise ValueError(f"{len(raw)} bytes, not {at}")
    return NbFile(optimizer.split(b"\0")[0].decode(), program, tuple(parameters))


def _decode(raw: bytes, kind: type) -> Any:
    (start,) = struct.unpack_from("<I", raw)
    return _read(Table(raw, start), kind)


def _read(table: Table, kind: type) -> Any:
    """Return a table as its class."""
    fields = FIELDS[kind]
    behind = table.Offset(4 + 2 * len(fields))
    if behind:
        raise ValueError(f"{kind.__name__} with an unknown field")
    return kind(*(_field(table, table.Offset(4 + 2 * slot), field) for slot, field in enumerate(fields)))


def _field(table: Table, offset: int, kind: Kind) -> Any:
    """Return a field's value; `offset` is 0 when it is not there."""
    if isinstance(kind, str) and kind in NUMBERS:
        flags, default = NUMBERS[kind]
        return table.Get(flags, table.Pos + offset) if offset else default
    if not offset:
        if kind in ("name", Values):
            raise ValueError(f"{kind} is missing")
        return None
    if kind in ("name", "text"):
        return table.String(table.Pos + offset).decode()
    if isinstance(kind, type):
        return _read(Table(table.Bytes, table.Indirect(table.Pos + offset)), kind)
    return _vector(table, offset, kind)


def _vector(table: Table, offset: int, kind: Kind) -> Any:
    start, count = table.Vector(offset), table.VectorLen(offset)
    if kind == "texts":
        return tuple(table.String(start + 4 * index).decode() for index in range(count))
    if isinstance(kind, tuple):
        return tuple(_read(Table(table.Bytes, table.Indirect(start + 4 * index)), kind[0]) for index in range(count))
    if not (isinstance(kind, str) and kind.startswith("*")):
        raise ValueError("a variable that is no tensor")
    end = start + count * int(kind[1:])
    if end > len(table.Bytes):
        raise ValueError(f"{count} numbers, beyond the end")
    return bytes(table.Bytes[start:end])


# ------------------------------------------------------------------------------------------------ writing


def write_nb(content: NbFile, path: Path) -> None:
    """Write a file; the same content gives the same bytes."""
    program = _encode(content.program)
    sizes = [len(parameter.values.data or b"") for parameter in content.parameters]
    chunks = [_HEAD.pack(_LAYOUT, content.optimizer.encode(), len(program)), program]
    chunks.append(_PARAMS.pack(0, 0, _PARAMS.size - 6, len(sizes), max(sizes, default=0)))
    for parameter in content.parameters:
        table = _encode(parameter)
        chunks += [_PARAM.pack(len(table) + 4, 4), table]
    path.write_bytes(b"".join(chunks))


def end_in_zeros(path: Path) -> None:
    """Put zeros after the optimiser's version, where Paddle Lite leaves what was in memory: seven bytes of 18 in 2..17.

    Raises:
        ConversionError: not a file of Paddle Lite.
    """
    with path.open("r+b") as file:
        raw = file.read(_HEAD.size)
        if len(raw) < _HEAD.size or raw[:2] != struct.pack("<H", _LAYOUT):
            raise ConversionError(f"{path}: damaged, or not a file of Paddle Lite")
        layout, optimizer, length = _HEAD.unpack(raw)
        file.seek(0)
        file.write(_HEAD.pack(layout, optimizer.split(b"\0")[0], length))


def _encode(value: Any) -> bytes:
    writer = _Writer()
    writer.builder.Finish(writer.place(type(value), value))
    return bytes(writer.builder.Output())


class _Writer:
    """Writes tables; one that is equal to another is not written again."""

    def __init__(self) -> None:
        self.builder = Builder(1 << 16)
        self._known: dict[tuple[Kind, Any], int] = {}

    def place(self, kind: Kind, value: Any) -> int:
        """Return where a value is in the buffer."""
        if (kind, value) not in self._known:
            self._known[kind, value] = self._write(kind, value)
        return self._known[kind, value]

    def _write(self, kind: Kind, value: Any) -> int:
        if isinstance(kind, type):
            return self._table(kind, value)
        if kind in ("name", "text"):
            return int(self.builder.CreateString(value))
        if isinstance(kind, str) and kind.startswith("*"):
            return int(self.builder.CreateNumpyVector(np.frombuffer(value, f"<u{kind[1:]}")))
        return self._pointers([self.place("name" if kind == "texts" else kind[0], item) for item in value])

    def _pointers(self, places: list[int]) -> int:
        self.builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self.builder.PrependUOffsetTRelative(place)
        return int(self.builder.EndVector())

    def _table(self, kind: type, value: Any) -> int:
        fields = [*zip(FIELDS[kind], (getattr(value, name) for name in value.__struct_fields__), strict=True)]
        ready = [item if item is None or field in NUMBERS else self.place(field, item) for field, item in fields]
        self.builder.StartObject(len(fields))
        for slot, ((field, item), made) in enumerate(zip(fields, ready, strict=True)):
            if field in NUMBERS:
                self.builder.PrependSlot(NUMBERS[field][0], slot, item, NUMBERS[field][1])
            elif item is not None:
                self.builder.PrependUOffsetTRelativeSlot(slot, made, 0)
        return int(self.builder.EndObject())
