"""Paddle Lite's C++ library by ctypes: load, set input, run, look at output. The other half is `binding.cpp`.

ctypes lets go of the interpreter's lock during each call, so that models run in several threads at once.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import EngineError
from agent.lite.attempt import ensure_tried
from agent.lite.elf import machine_of
from agent.lite.nb import check_model
from agent.lite.place import BINDING, Build, chosen, is_installed, read_build, remedy, stamp
from agent.lite.processor import prepare

Tensor = npt.NDArray[np.float32]

INTERFACE = 1
"""Number of the C interface, as `binding.cpp` says it too."""

KNOWN_VERSIONS: dict[str, tuple[str, ...]] = {"x86_64": ("v2.13-rc",), "aarch64": ("v2.13-rc", "v2.14-rc")}
"""Versions of the library that the declarations are for. That for x86-64 has passed the tests; those for ARM have the
same interface by their headers, and still wait for `tests/test_lite_arm.py` with a real library."""

POWER_MODES = {"high": 0, "low": 1, "full": 2, "any": 3, "some-high": 4, "some-low": 5}
"""Which cores an ARM library binds its threads to: big ones, small ones, all, none in particular, or one big or small
in turn (`PowerMode` of lite/api/paddle_place.h). Without effect on x86."""

MAX_AXES = 8
_SELFTEST_SHAPE = (1, 3, 4, 4)
_SELFTEST_OUTPUT = (17.0, 0.0, 3.0, 7.0, 0.0, 23.0, 0.0, 25.0)
_VERSION_BYTES = 64
_LAZY = os.RTLD_LAZY | os.RTLD_LOCAL


class Library:
    """The C++ library with the binding on it, loaded and tried.

    Attributes:
        version: what the library calls itself.
        machine: it runs on.
    """

    def __init__(self, functions: ctypes.CDLL, build: Build) -> None:
        """Take a loaded binding and try it on a small model.

        Raises:
            EngineError: its version is unknown, or it does not calculate what it should.
        """
        self.functions = _declare(functions)
        self.machine = build.machine
        if functions.edge_ocr_lite_interface() != INTERFACE:
            raise EngineError("the binding has another interface than this version's: build or install it again")
        model = Predictor(self, Path(__file__).with_name(f"selftest-{self.machine}.nb"))
        self.version = model.version()
        known = (*KNOWN_VERSIONS.get(self.machine, ()), *build.accepted)
        if self.version not in known:
            raise EngineError(
                f"Paddle Lite {self.version} is not known to work on {self.machine}; {', '.join(known)} does, "
                f"and `edge-ocr lite build --accept {self.version}` takes it nevertheless"
            )
        _try(model, self.version)
        model.close()

    def check(self, status: int, what: str) -> None:
        """Turn a function's status into an exception.

        Raises:
            EngineError: it is not 0.
        """
        if status:
            said = self.functions.edge_ocr_lite_error().decode(errors="replace").strip().splitlines()
            raise EngineError(f"Paddle Lite: {what}: {said[0] if said else 'no message'}")


def open_library(folder: Path | None = None, *, untried: bool = False) -> Library:
    """Load the library of a build, by default of the one that is chosen (`place`).

    A build that came with the installation is tried here first, once, in a child process.

    Args:
        folder: the build's directory.
        untried: load it although it has not worked yet; it may end the process.

    Raises:
        EngineError: there is no build, it is not for this machine or its library has changed, or it does not work.
    """
    folder = folder or chosen()
    if folder is None:
        raise EngineError("the native binding is not built: run `edge-ocr lite build`")
    return _open(folder.resolve(), untried, stamp(folder))


@functools.cache  # once a process: each model would try the library again
def _open(folder: Path, untried: bool, _stamp: str) -> Library:
    build = read_build(folder)
    library = folder / build.library
    _check_build(folder, build, library)
    if not untried and is_installed(folder):
        ensure_tried(folder)
    elif not (build.version or untried):
        raise EngineError(f"{folder}: not tried on this machine yet: run `edge-ocr lite check {folder}`")
    prepare()
    _load_lazily(library)
    try:
        functions = ctypes.CDLL(str(folder / BINDING))
    except OSError as error:
        raise EngineError(f"{folder / BINDING} cannot be loaded ({error}): {remedy(folder)}") from error
    try:
        return Library(functions, build)
    except EngineError as error:
        raise EngineError(f"{library}: {error}") from error


def _check_build(folder: Path, build: Build, library: Path) -> None:
    if build.machine != platform.machine():
        raise EngineError(f"{folder}: built for {build.machine}, this machine is {platform.machine()}")
    if build.interface != INTERFACE:
        raise EngineError(f"{folder}: built by another version: {remedy(folder)}")
    try:
        found = library.stat()
    except OSError as error:
        raise EngineError(f"{library}: {error.strerror}: {remedy(folder)}") from error
    if found.st_size != build.library_bytes or build.library_mtime_ns not in (0, found.st_mtime_ns):
        raise EngineError(f"{library}: another file than {folder} was built for: {remedy(folder)}")
    for path in (library, folder / BINDING):
        machine_of(path)  # the dynamic linker dies of a file whose end is missing


def _load_lazily(library: Path) -> None:
    """Load a library so that a function is looked for when it is first called.

    The x86 wheel's is a Python extension, and asks for functions that newer Pythons do not have. ctypes asks for all of
    them at once. The binding finds the library by its name because it is there already.
    """
    linker = ctypes.CDLL(None)
    linker.dlopen.restype, linker.dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    linker.dlerror.restype = ctypes.c_char_p
    if not linker.dlopen(os.fsencode(library.resolve()), _LAZY):
        said = (linker.dlerror() or b"no message").decode(errors="replace")
        raise EngineError(f"{library} cannot be loaded: {said}")


def _declare(functions: Any) -> Any:
    """Declare what the functions of `binding.cpp` take and give."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    functions.edge_ocr_lite_error.restype = ctypes.c_char_p
    functions.edge_ocr_lite_load.argtypes = [ctypes.c_char_p, ctypes.c_size_t, number, number, pointer]
    functions.edge_ocr_lite_version.argtypes = [pointer, ctypes.c_char_p, ctypes.c_size_t]
    functions.edge_ocr_lite_input.argtypes = [pointer, number, pointer, pointer, number]
    functions.edge_ocr_lite_run.argtypes = [pointer]
    functions.edge_ocr_lite_output.argtypes = [pointer, number, pointer, pointer, pointer]
    functions.edge_ocr_lite_close.argtypes, functions.edge_ocr_lite_close.restype = [pointer], None
    return functions


class _Handle:
    """Owns a model in the library; gives it back when the last that looks at it has gone."""

    def __init__(self, library: Library, address: int) -> None:
        self.address = address
        self._close = library.functions.edge_ocr_lite_close

    def __del__(self) -> None:
        self._close(self.address)


class _Output:
    """Memory of a model, in the form that numpy takes without a copy; keeps the model alive."""

    def __init__(self, handle: _Handle, address: int, shape: tuple[int, ...]) -> None:
        self.handle = handle
        self.__array_interface__ = {"version": 3, "typestr": "<f4", "shape": shape, "data": (address, True)}


class Predictor:
    """One loaded model. Several run at once in several threads; one of them is for one thread at a time.

    On x86 a predictor is locked to the height and width of its first run: make a new one for another shape.
    """

    def __init__(
        self,
        library: Library,
        model: Path | bytes,
        *,
        threads: int = 1,
        power_mode: str = "any",
        checked: bool = False,
    ) -> None:
        """Load a model.

        Args:
            library: it runs on.
            model: a `.nb` file, or its content.
            threads: processor threads of one run. On x86 the library's mathematics may take them; it gains nothing.
            power_mode: a key of `POWER_MODES`.
            checked: `check_model` has passed it already.

        Raises:
            EngineError: the model is damaged or not for this machine, or the library refuses it.
        """
        if power_mode not in POWER_MODES:
            raise EngineError(f"power mode {power_mode!r} is unknown; one of {', '.join(POWER_MODES)}")
        if not checked:
            check_model(model, library.machine)
        content, size = (model, len(model)) if isinstance(model, bytes) else (os.fsencode(model), 0)
        address = ctypes.c_void_p()
        self._library = library
        status = library.functions.edge_ocr_lite_load(
            content, size, threads, POWER_MODES[power_mode], ctypes.byref(address)
        )
        library.check(status, "cannot load the model")
        assert address.value is not None  # the status says so
        self._handle: _Handle | None = _Handle(library, address.value)
        self._views: weakref.WeakSet[_Output] = weakref.WeakSet()
        self._lock = threading.Lock()

    def version(self) -> str:
        """Return what the library calls itself."""
        text = ctypes.create_string_buffer(_VERSION_BYTES)
        with self._alone() as model:
            self._check(self._library.functions.edge_ocr_lite_version(model, text, len(text)), "version")
        return text.value.decode(errors="replace")

    def set_input(self, index: int, x: Tensor) -> None:
        """Copy an input in: float32, of the shape that the model takes.

        Raises:
            EngineError: there is no such input, or the array is empty, of another kind or has too many axes.
        """
        if x.dtype != np.float32 or x.size == 0 or x.ndim > MAX_AXES:
            raise EngineError(f"input {index}: {x.dtype} {x.shape}, where float32 is taken")
        x = np.ascontiguousarray(x)
        shape = (ctypes.c_int64 * x.ndim)(*x.shape)
        with self._alone() as model:
            self._no_views()
            status = self._library.functions.edge_ocr_lite_input(model, index, x.ctypes.data, shape, x.ndim)
            self._check(status, f"input {index}")

    def run(self) -> None:
        """Calculate outputs from inputs.

        Raises:
            EngineError: it failed, or an output of the last run is still looked at.
        """
        with self._alone() as model:
            self._no_views()
            self._check(self._library.functions.edge_ocr_lite_run(model), "run")

    def output(self, index: int) -> Tensor:
        """Return an output without a copy: read-only float32, the model's own memory.

        It may be kept beyond `close`; before the next input or run it must be gone.

        Raises:
            EngineError: there is no such output, or it is not float32.
        """
        data, axes = ctypes.c_void_p(), ctypes.c_int(MAX_AXES)
        shape = (ctypes.c_int64 * MAX_AXES)()
        with self._alone() as model:
            status = self._library.functions.edge_ocr_lite_output(
                model, index, ctypes.byref(data), shape, ctypes.byref(axes)
            )
            self._check(status, f"output {index}")
            if data.value is None or self._handle is None:
                raise EngineError(f"output {index}: there is none before a run")
            view = _Output(self._handle, data.value, tuple(shape[: axes.value]))
        self._views.add(view)
        return np.asarray(view)

    def close(self) -> None:
        """Give the model back, when no output of it is looked at any more. Safe to call twice."""
        self._handle = None

    @contextmanager
    def _alone(self) -> Iterator[int]:
        """Give the model's address to one thread, and refuse a second one: the library would die of it."""
        if not self._lock.acquire(blocking=False):
            raise EngineError("a model is used by two threads at once")
        try:
            if self._handle is None:
                raise EngineError("the model is closed")
            handle = self._handle  # another thread may close while this one runs
            yield handle.address
        finally:
            self._lock.release()

    def _no_views(self) -> None:
        # A larger shape moves the memory: who looked on would read what is no longer there.
        if self._views:
            raise EngineError("an output of the last run is still looked at: copy it first")

    def _check(self, status: int, what: str) -> None:
        self._library.check(status, what)


def _try(model: Predictor, version: str) -> None:
    """Compare the small model's output with what was calculated by hand (`scripts/write_selftest.py`)."""
    x = (np.arange(48) % 7 - 3).reshape(_SELFTEST_SHAPE).astype(np.float32)
    model.set_input(0, x)
    model.run()
    found = tuple(map(float, model.output(0).ravel()))
    if found != _SELFTEST_OUTPUT:
        raise EngineError(f"version {version} calculates {found} on the test model, not {_SELFTEST_OUTPUT}")


if __name__ == "__main__":  # a library that is not known to work may end the process
    try:
        sys.stdout.write(open_library(Path(sys.argv[1]), untried=True).version)
    except EngineError as problem:
        sys.exit(str(problem))
