"""Checks a `.nb` file's outside before Paddle Lite sees it, which ends the process over one that it cannot load.

Whole and for this processor is what can be told cheaply: 26 bytes of head with the length of the program; the program;
a head with the number of parameters; the parameters, each with its length before it. Numbers that have changed in
their place are for a bundle's sha256 to find.
"""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from agent.errors import EngineError

LAYOUT = 2
MAX_PROGRAM_BYTES = 64 << 20
MAX_PARAMETERS = 1 << 16

_HEAD = struct.Struct("<H16sQ")  # version of the layout and of the optimiser, bytes of the program
_PARAMETERS = struct.Struct("<HHHHI")  # version, reserved, bytes of the rest of this head; parameters, largest
_LENGTH = struct.Struct("<I")
_KERNEL = re.compile(rb"/(\d{1,2})/\d{1,2}/\d{1,2}\0")  # operator/alias/processor/numbers/order of what runs a step
_HOST = 1
_PROCESSORS = {"x86_64": 2, "aarch64": 4}  # TargetType of lite/api/paddle_place.h


def check_model(model: Path | bytes, machine: str) -> None:
    """Check that a model is whole and made for a processor.

    Args:
        model: a file, or its content.
        machine: a key of `_PROCESSORS`, as `platform.machine()` names it.

    Raises:
        EngineError: it is not, or cannot be read.
    """
    if isinstance(model, bytes):
        _check(io.BytesIO(model), len(model), "the model", machine)
        return
    try:
        with model.open("rb") as file:
            _check(file, os.fstat(file.fileno()).st_size, str(model), machine)
    except OSError as error:
        raise EngineError(f"{model}: {error.strerror}") from error


def _check(file: BinaryIO, size: int, name: str, machine: str) -> None:
    try:
        program = _read_program(file, size)
        end = _end_of_parameters(file, size)
    except (struct.error, ValueError) as error:
        raise EngineError(f"{name}: damaged, or not a model of Paddle Lite: {error}") from error
    if end != size:
        raise EngineError(f"{name}: {size} bytes, where its parts take {end}: copy or convert it again")
    _check_processor({int(number) for number in _KERNEL.findall(program)}, name, machine)


def _read_program(file: BinaryIO, size: int) -> bytes:
    layout, _, length = _HEAD.unpack(file.read(_HEAD.size))
    if layout != LAYOUT:
        raise ValueError(f"layout {layout}, not {LAYOUT}")
    if length > min(size, MAX_PROGRAM_BYTES):
        raise ValueError(f"a program of {length} bytes")
    return file.read(length)


def _end_of_parameters(file: BinaryIO, size: int) -> int:
    """Return where the last parameter ends."""
    version, reserved, rest, count, _ = _PARAMETERS.unpack(file.read(_PARAMETERS.size))
    if (version, reserved, rest) != (0, 0, _PARAMETERS.size - 6) or count > MAX_PARAMETERS:
        raise ValueError(f"parameters of version {version}")
    at = file.tell()
    for _ in range(count):
        file.seek(at)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        at += _LENGTH.size + length
        if at > size:
            raise ValueError(f"{size} bytes, and more should follow")
    return at


def _check_processor(wanted: set[int], name: str, machine: str) -> None:
    if _HOST not in wanted:  # it feeds and fetches in every model
        raise EngineError(f"{name}: damaged, or not a model of Paddle Lite: it names no kernels")
    foreign = wanted - {_HOST, _PROCESSORS.get(machine)}
    if foreign:
        made_for = [known for known, number in _PROCESSORS.items() if number in foreign] or ["another processor"]
        raise EngineError(f"{name}: made for {made_for[0]}, this machine is {machine}: convert with --target {machine}")
