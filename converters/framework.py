"""Paddle's own file format: its protobuf module, and messages read with it."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

from agent.errors import ConversionError


def schema() -> Any:
    """Return Paddle's protobuf module, loaded by its file: importing paddle takes a second and 300 MB.

    Raises:
        ConversionError: paddlepaddle is not installed, or is not the version that has it.
    """
    found = importlib.util.find_spec("paddle")
    folders = list(found.submodule_search_locations or []) if found else []
    file = Path(*folders[:1], "base", "proto", "framework_pb2.py")
    if not folders or not file.is_file():
        raise ConversionError("models are read with paddlepaddle's own file format: pip install paddlepaddle==2.6.2")
    return _load_module("paddle.base.proto.framework_pb2", file)


@functools.cache
def _load_module(name: str, file: Path) -> Any:
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # it is a file that exists
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(message: Any, raw: bytes, what: object) -> None:
    """Read a protobuf message.

    Raises:
        ConversionError: it is damaged, or another format.
    """
    from google.protobuf.message import DecodeError

    try:
        message.ParseFromString(raw)
    except (DecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{what}: not in Paddle's format, or damaged") from error
