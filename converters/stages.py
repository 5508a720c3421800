"""Stages: work that is skipped while its inputs, its code and its tools are the same and its outputs are untouched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.bundle import sha256_of
from agent.errors import ConfigError, ConversionError
from converters.meter import Meter

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
_FILES = ("nbcontent.py", "nbfile.py", "storage.py")
_INT8 = ("quantize.py", "calibrate.py", "places.py", "agreement.py", "pictures.py", "compress.py")
_PRUNING = ("channels.py", "pruning.py", "refit.py", "sparsity.py", "slimming.py")
_FILTERS = ("filters.py", "smoothing.py", "rounding.py", "training.py")
CODE = (
    "framework.py",
    "params.py",
    "graph.py",
    "network.py",
    "native.py",
    "conversion.py",
    "export.py",
    *_PASSES,
    *_PRUNING,
    *_FILTERS,
    *_INT8,
    *_FILES,
)
TOOLS = ("paddlepaddle", "paddleslim", "paddlelite", "paddle2onnx", "onnxruntime", "numpy")


ROOM = "make room and start again; stages that are done are kept"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stages:
    """Runs stages in one work directory and remembers what each returned.

    Args:
        work: the directory; each stage leaves one stamp in it.
        say: takes one line of progress per stage.
        force: do everything again.
        meter: shows how far a stage is.
        usual: stages that take long, and how many seconds each takes where nothing better is known.
    """

    def __init__(
        self,
        work: Path,
        say: Callable[[str], None],
        *,
        force: bool = False,
        meter: Meter | None = None,
        usual: Mapping[str, float] | None = None,
    ) -> None:
        self._stamps = work / "stamps"
        self._say = say
        self._force = force
        self._setup = _setup()
        self._meter = meter or Meter()
        self._times = _Times({name: (usual_s, self._last_s(name)) for name, usual_s in (usual or {}).items()})
        self.progress = self._meter.show

    def run(
        self, name: str, inputs: object, outputs: Sequence[Path], action: Callable[[], Any], told: Callable[[Any], str]
    ) -> Any:
        """Return the action's result, or that of last time when nothing it depends on has changed.

        Args:
            name: of the stage, unique in the work directory.
            inputs: what the result depends on besides the code; anything JSON can hold.
            outputs: the files the action writes.
            action: returns something JSON can hold; it may say how far it is through `progress`.
            told: what to say of the result.

        Raises:
            ConfigError: the disk is full.
            ConversionError: an output is missing after the action.
        """
        stamp, key = self._stamp(name), _digest([self._setup, inputs])
        known = None if self._force else _read_stamp(stamp)
        if known is not None and known["key"] == key and known["outputs"] == _digests(outputs):
            self._times.skip(name)
            self._say(f"{name:<14} up to date   {told(known['result'])}")
            return known["result"]
        with room(f"{name} in {self._stamps.parent}"):
            stamp.unlink(missing_ok=True)
            result, took_s = self._do(name, action)
            missing = [file for file in outputs if not file.is_file()]
            if missing:
                raise ConversionError(f"{name}: has not written {missing[0]}")
            _write_stamp(stamp, {"key": key, "outputs": _digests(outputs), "result": result, "seconds": took_s})
        self._say(f"{name:<14} {took_s:6.1f} s     {told(result)}")
        return json.loads(json.dumps(result))

    def _do(self, name: str, action: Callable[[], Any]) -> tuple[Any, float]:
        """Return an action's result and the seconds it took."""
        began = time.monotonic()
        self._meter.begin(name, self._times.begin(name))
        try:
            result = action()
        finally:
            self._meter.end()
        took_s = time.monotonic() - began
        self._times.end(name, took_s)
        return result, took_s

    def _stamp(self, name: str) -> Path:
        return self._stamps / f"{name.replace(' ', '-')}.json"

    def _last_s(self, name: str) -> float | None:
        known = _read_stamp(self._stamp(name))
        return None if known is None else float(known["seconds"])


class _Times:
    """What the long stages that are still to come will take.

    Args:
        known: by stage, the seconds it usually takes, and those it took here the last time.
    """

    def __init__(self, known: dict[str, tuple[float, float | None]]) -> None:
        self._known, self._coming = known, dict(known)
        self._usual_s = self._took_s = 0.0

    def skip(self, name: str) -> None:
        """Take note that a stage need not be done."""
        self._coming.pop(name, None)

    def begin(self, name: str) -> float:
        """Return the seconds that the stages after this one will take, at the pace this machine has shown so far."""
        self.skip(name)
        pace = self._took_s / self._usual_s if self._usual_s else 1.0
        return sum(usual_s * pace if last_s is None else last_s for usual_s, last_s in self._coming.values())

    def end(self, name: str, took_s: float) -> None:
        """Take note of how long a stage took."""
        if name in self._known:
            self._usual_s += self._known[name][0]
            self._took_s += took_s


@contextlib.contextmanager
def room(what: object) -> Iterator[None]:
    """Say of a full disk what the user can do.

    Args:
        what: is done, and where.

    Raises:
        ConfigError: there is no room for a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise ConfigError(f"{what}: {error.strerror}: {ROOM}") from error


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
    return known if isinstance(known, dict) and known.keys() == {"key", "outputs", "result", "seconds"} else None


def _write_stamp(stamp: Path, known: dict[str, Any]) -> None:
    """Write a stamp whole or not at all."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    partial = stamp.with_suffix(".partial")
    partial.write_text(json.dumps(known), encoding="utf-8")
    os.replace(partial, stamp)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _digests(files: Sequence[Path]) -> list[str]:
    return [sha256_of(file) if file.is_file() else "" for file in files]
