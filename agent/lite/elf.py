"""Reads as much of an ELF file as tells whether a shared library is whole, and for which processor.

The dynamic linker ends the process over one whose end is missing.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from agent.errors import EngineError

_HEAD = struct.Struct("<4sBB10xHH4xQQQ4xHHHHHH")  # the ELF header of 64 bits, least significant byte first
_SEGMENT = struct.Struct("<4x4xQ16xQ16x")  # of a program header: where its bytes are, and how many
_MAGIC, _64_BITS, _LITTLE, _SHARED = b"\x7fELF", 2, 1, 3
_MACHINES = {62: "x86_64", 183: "aarch64"}  # EM_X86_64, EM_AARCH64


def machine_of(path: Path) -> str:
    """Return which processor a shared library is for, as `platform.machine()` names it.

    Raises:
        EngineError: it is no shared library, damaged, or for a processor that is not supported.
    """
    try:
        with path.open("rb") as file:
            return _machine(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise EngineError(f"{path}: damaged, or not a shared library: {error}") from error


def _machine(file: BinaryIO, size: int) -> str:
    magic, bits, order, kind, machine, _, segments_at, sections_at, _, step, count, width, sections, _ = _HEAD.unpack(
        file.read(_HEAD.size)
    )
    if (magic, bits, order, kind) != (_MAGIC, _64_BITS, _LITTLE, _SHARED) or machine not in _MACHINES:
        raise ValueError(f"not for {' or '.join(_MACHINES.values())}")
    ends = [sections_at + sections * width]
    for index in range(count):
        file.seek(segments_at + index * step)
        begin, length = _SEGMENT.unpack(file.read(_SEGMENT.size))
        ends.append(begin + length)
    if max(ends) > size:
        raise ValueError(f"{size} bytes of {max(ends)}")
    return _MACHINES[machine]
