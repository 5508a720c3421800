"""Stages: work that is skipped while its inputs, its code and its tools are the same and its outputs are untouched."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from agent.bundle import sha256_of
from agent.errors import ConversionError

_PASSES = (
    "passes.py",
    "passes_x86.py",
    "passes_int8.py",
    "activations.py",
    "enlarging.py",
    "gates.py",
    "pointwise.py",
    "targets.py",
)
_INT8 = ("quantize.py", "calibrate.py", "agreement.py", "rounding.py", "compress.py")
CODE = ("framework.py", "params.py", "graph.py", "network.py", "native.py", "export.py", *_PASSES, *_INT8)
TOOLS = ("paddlepaddle", "paddleslim", "paddlelite", "paddle2onnx", "onnxruntime", "numpy")


class Stages:
    """Runs stages in one work directory and remembers what each returned.

    Args:
        work: the directory; each stage leaves one stamp in it.
        say: takes one line of progress per stage.
        force: do everything again.
    """

    def __init__(self, work: Path, say: Callable[[str], None], *, force: bool = False) -> None:
        self._stamps = work / "stamps"
        self._say = say
        self._force = force
        self._setup = _setup()

    def run(
        self, name: str, inputs: object, outputs: Sequence[Path], action: Callable[[], Any], told: Callable[[Any], str]
    ) -> Any:
        """Return the action's result, or that of last time when nothing it depends on has changed.

        Args:
            name: of the stage, unique in the work directory.
            inputs: what the result depends on besides the code; anything JSON can hold.
            outputs: the files the action writes.
            action: returns something JSON can hold.
            told: what to say of the result.
        """
        stamp = self._stamps / f"{name.replace(' ', '-')}.json"
        key = _digest([self._setup, inputs])
        known = None if self._force else _read_stamp(stamp)
        if known is not None and known["key"] == key and known["outputs"] == _digests(outputs):
            self._say(f"{name:<14} up to date   {told(known['result'])}")
            return known["result"]
        stamp.unlink(missing_ok=True)
        began = time.monotonic()
        result = action()
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps({"key": key, "outputs": _digests(outputs), "result": result}), encoding="utf-8")
        self._say(f"{name:<14} {time.monotonic() - began:6.1f} s     {told(result)}")
        return json.loads(json.dumps(result))


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold a work directory for one conversion.

    Raises:
        ConversionError: another process holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConversionError(f"{work}: another conversion works there; wait for it to end") from error
        yield


def tool_versions() -> dict[str, str]:
    """Return the installed version of each tool that a conversion may use."""
    found = {}
    for tool in TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[tool] = importlib.metadata.version(tool)
    return found


def _setup() -> list[object]:
    """Return what every stage depends on: the converter's code and its tools."""
    here = Path(__file__).parent
    return [[sha256_of(here / file) for file in CODE if (here / file).exists()], tool_versions()]


def _read_stamp(stamp: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) and known.keys() == {"key", "outputs", "result"} else None


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _digests(files: Sequence[Path]) -> list[str]:
    return [sha256_of(file) if file.is_file() else "" for file in files]
