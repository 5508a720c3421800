"""The combined parameter file of a Paddle inference model."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import ConversionError
from converters.framework import parse, schema

Array = npt.NDArray[Any]

DTYPES = {
    0: np.dtype(bool),
    2: np.dtype(np.int32),
    3: np.dtype(np.int64),
    5: np.dtype(np.float32),
    21: np.dtype(np.int8),
}
"""The kinds a parameter may have, by their number in framework.proto, VarType.Type."""
NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def read_params(raw: bytes, order: Sequence[str], path: Path) -> dict[str, Array]:
    """Parse a combined parameter file: one serialised LoDTensor per name, in this order.

    Raises:
        ConversionError: it is damaged, or holds more or less than the names.
    """
    params, at = {}, 0
    for name in order:
        params[name], at = _read_tensor(raw, at, f"{path}: parameter {name}")
    if at != len(raw):
        raise ConversionError(f"{path}: holds {len(raw) - at} bytes more than its program says")
    return params


def _read_tensor(raw: bytes, at: int, what: str) -> tuple[Array, int]:
    """Return the tensor at an offset and the offset after it.

    Layout (paddle/fluid/framework/lod_tensor.cc): u32 version, u64 LoD levels, u32 tensor version, i32 length,
    TensorDesc protobuf, raw data.
    """
    try:
        version, levels, tensor_version, length = struct.unpack_from("<IQIi", raw, at)
    except struct.error as error:
        raise ConversionError(f"{what}: the file ends before it") from error
    if version or levels or tensor_version or length < 0:
        raise ConversionError(f"{what}: unknown layout, or damaged")
    data = at + 20 + length
    desc = schema().VarType.TensorDesc()
    parse(desc, raw[at + 20 : data], what)
    if desc.data_type not in DTYPES:
        raise ConversionError(f"{what}: data type {desc.data_type} is not float32, int32, int64, int8 or bool")
    dtype = DTYPES[desc.data_type]
    count = int(np.prod(desc.dims, dtype=np.float64))
    if count < 0 or data + count * dtype.itemsize > len(raw):
        raise ConversionError(f"{what}: the file ends inside it")
    value = np.frombuffer(raw, dtype, count, data).reshape(tuple(desc.dims)).copy()
    return value, data + value.nbytes


def write_params(params: Mapping[str, Array]) -> bytes:
    """Return a combined parameter file: the tensors sorted by name, as Paddle saves them."""
    chunks = []
    for name in sorted(params):
        value = np.ascontiguousarray(params[name]).reshape(params[name].shape)
        desc = schema().VarType.TensorDesc(data_type=NUMBERS[value.dtype], dims=value.shape).SerializeToString()
        chunks.append(struct.pack("<IQIi", 0, 0, 0, len(desc)) + desc + value.tobytes())
    return b"".join(chunks)
