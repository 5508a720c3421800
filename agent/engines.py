"""Inference engines behind one protocol: Paddle Lite, ONNX Runtime, Paddle Inference.

No runtime is imported before it is chosen. Every engine takes any sequence of input shapes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import platform
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from agent.bundle import ModelBundle, ModelName
from agent.errors import EngineError
from agent.lite import binding, place
from agent.lite.nb import check_model
from agent.lite.processor import prepare

_log = logging.getLogger(__name__)

Tensor = npt.NDArray[np.float32]


class Engine(Protocol):
    """One loaded model.

    Attributes:
        name: its key in `ENGINES`.
        uses_threads: whether it spreads one run over `EngineSettings.threads` cores.
    """

    name: str
    uses_threads: bool

    def run(self, x: Tensor) -> Tensor:
        """Return the model's first output for a C-contiguous float32 batch (N, 3, H, W)."""
        ...

    def release(self) -> None:
        """Give back working memory; the next `run` takes it again."""
        ...

    def close(self) -> None:
        """Give back everything. Safe to call twice."""
        ...


class EngineSettings(msgspec.Struct, frozen=True):
    """How to run models.

    Attributes:
        engine: "auto", or a key of `ENGINES`.
        threads: processor threads of one model, where the engine has a say.
        device: "cpu" or "gpu" (Paddle Inference only).
        gpu_memory_mb: memory taken on the GPU at start.
        tensorrt: let Paddle Inference use TensorRT.
        power_mode: which cores the native binding takes on ARM, a key of `agent.lite.binding.POWER_MODES`.
    """

    engine: str = "auto"
    threads: int = 1
    device: str = "cpu"
    gpu_memory_mb: int = 512
    tensorrt: bool = False
    power_mode: str = "any"


class PaddleLite:
    """A `.nb` model on Paddle Lite: by the native binding where it is built and works, else by the wheel's class.

    On x86 a predictor is locked to the height and width of its first run: direct convolutions generate machine code
    for that shape, and a second shape gives wrong numbers without a word, then corrupts the heap. So a new shape gets
    a new predictor (`test_engines.py` runs random shape sequences against a reference). The batch may vary.
    """

    name = "paddlelite"

    def __init__(self, files: tuple[Path, ...], settings: EngineSettings) -> None:
        (self._file,) = files
        check_model(self._file, platform.machine())  # once: it takes as long as a tenth of a load
        self._load = _lite_loader(settings)
        self._locked = platform.machine() in ("x86_64", "AMD64")
        self.uses_threads = self._load.uses_threads
        self._shape: tuple[int, ...] = ()
        self._model: _LiteModel | None = None

    def run(self, x: Tensor) -> Tensor:
        """Return the output for a batch (N, 3, H, W).

        Raises:
            EngineError: it has another shape; the library would end the process, or read beyond the input's end.
        """
        if x.ndim != 4 or x.shape[1] != 3:
            raise EngineError(f"an input of shape {x.shape}, where (N, 3, H, W) is taken")
        if self._model is None or (self._locked and x.shape[2:] != self._shape):
            self._model = None  # first the old one goes, for the memory
            self._model = self._load(self._file)
            self._shape = x.shape[2:]
        return self._model.run(x)

    def release(self) -> None:
        """Drop the predictor and its buffers; loading again takes a few milliseconds."""
        self._model = None

    def close(self) -> None:
        """Drop the predictor."""
        self._model = None


class _LiteModel(Protocol):
    """One predictor of Paddle Lite."""

    def run(self, x: Tensor) -> Tensor: ...


class _LiteLoader(Protocol):
    """One of the two ways to Paddle Lite."""

    uses_threads: bool

    def __call__(self, file: Path) -> _LiteModel: ...


class _Native:
    """Loads models by the native binding."""

    def __init__(self, settings: EngineSettings) -> None:
        self._library = binding.open_library()
        # On x86 a second thread of one model gains nothing (DECISIONS): a second process does the work there.
        self.uses_threads = self._library.machine == "aarch64"
        self._how: dict[str, Any] = {"threads": settings.threads if self.uses_threads else 1}
        self._how["power_mode"] = settings.power_mode

    def __call__(self, file: Path) -> _LiteModel:
        return _NativeModel(binding.Predictor(self._library, file, checked=True, **self._how))


class _NativeModel:
    def __init__(self, predictor: binding.Predictor) -> None:
        self._predictor = predictor

    def run(self, x: Tensor) -> Tensor:
        self._predictor.set_input(0, x)
        self._predictor.run()
        # A copy: the array is the predictor's own buffer, gone with the next run.
        return self._predictor.output(0).copy()


class _Wheel:
    """Loads models by Paddle Lite's own Python class; its published wheels are for Python 3.10 on x86-64."""

    uses_threads = False

    def __init__(self) -> None:
        prepare()
        self._lite = _import("paddlelite.lite", _LITE_ADVICE)

    def __call__(self, file: Path) -> _LiteModel:
        config = self._lite.MobileConfig()
        config.set_model_from_file(str(file))
        return _WheelModel(self._lite.create_paddle_predictor(config))


class _WheelModel:
    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def run(self, x: Tensor) -> Tensor:
        self._predictor.get_input(0).from_numpy(np.ascontiguousarray(x))
        self._predictor.run()
        output: Tensor = self._predictor.get_output(0).numpy().copy()
        return output


_LITE_ADVICE = (
    "run `edge-ocr lite build`, pip install paddlelite==2.13rc0 (Python 3.10, x86-64), or use a portable bundle"
)


def _lite_loader(settings: EngineSettings) -> _LiteLoader:
    """Return the native binding where it works, else the wheel's class where there is one."""
    if place.chosen() is None:
        return _Wheel()
    try:
        return _Native(settings)
    except EngineError as error:
        if not _has_lite_wheel():
            raise
        _warn_once(f"the native binding is not used: {error}")
        return _Wheel()


@functools.cache  # not for each of the models
def _warn_once(message: str) -> None:
    _log.warning(message)


def _has_lite_wheel() -> bool:
    return importlib.util.find_spec("paddlelite") is not None


class OnnxRuntime:
    """An `.onnx` model on ONNX Runtime, with its memory arena off: the arena keeps the largest shape ever seen."""

    name = "onnxruntime"
    uses_threads = True

    def __init__(self, files: tuple[Path, ...], settings: EngineSettings) -> None:
        onnxruntime = _import("onnxruntime", "pip install onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        (file,) = files
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, x: Tensor) -> Tensor:
        """Return the output for a batch (N, 3, H, W)."""
        output: Tensor = self._session.run(None, {self._input: x})[0]
        return output

    def release(self) -> None:
        """Nothing is kept between runs."""

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class PaddleInference:
    """A Paddle inference program on Paddle's full runtime: for machines with a GPU; on a CPU it is the heaviest."""

    name = "paddle"
    uses_threads = True

    def __init__(self, files: tuple[Path, ...], settings: EngineSettings) -> None:
        inference = _import("paddle.inference", "pip install paddlepaddle (or paddlepaddle-gpu)")
        program, params = files
        config = inference.Config(str(program), str(params))
        config.disable_glog_info()
        config.enable_memory_optim()
        # It forgets the bounds of a `clip` that gets them as inputs (paddlepaddle 2.6.2).
        config.delete_pass("elementwise_act_onednn_fuse_pass")
        if settings.device == "gpu":
            _use_gpu(config, inference, settings)
        else:
            config.disable_gpu()
            config.set_cpu_math_library_num_threads(settings.threads)
        self._predictor = inference.create_predictor(config)
        self._input = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._output = self._predictor.get_output_handle(self._predictor.get_output_names()[0])

    def run(self, x: Tensor) -> Tensor:
        """Return the output for a batch (N, 3, H, W)."""
        self._input.copy_from_cpu(np.ascontiguousarray(x))
        self._predictor.run()
        output: Tensor = self._output.copy_to_cpu()
        return output

    def release(self) -> None:
        """Give intermediate buffers back to the system."""
        self._predictor.clear_intermediate_tensor()
        self._predictor.try_shrink_memory()

    def close(self) -> None:
        """Drop the predictor."""
        self._predictor = self._input = self._output = None


def _use_gpu(config: Any, inference: Any, settings: EngineSettings) -> None:
    import paddle

    if not paddle.device.is_compiled_with_cuda():
        raise EngineError("device = gpu: this paddlepaddle has no CUDA; install paddlepaddle-gpu or use device = cpu")
    config.enable_use_gpu(settings.gpu_memory_mb, 0)
    if settings.tensorrt:
        config.enable_tensorrt_engine(precision_mode=inference.PrecisionType.Float32, max_batch_size=8)


ENGINES: dict[str, Any] = {"paddlelite": PaddleLite, "onnxruntime": OnnxRuntime, "paddle": PaddleInference}
"""Config word to engine, in the order "auto" tries them."""


def choose_engine(bundle: ModelBundle, wanted: str) -> str:
    """Return the engine to use: the one asked for, or the first that the bundle has files for and that imports.

    Raises:
        EngineError: none fits; the message says what to install or convert.
    """
    held = [name for name in ENGINES if bundle.model_files("det", name)]
    if wanted != "auto":
        if wanted not in ENGINES:
            raise EngineError(f"engine {wanted!r} is unknown; one of auto, {', '.join(ENGINES)}")
        if wanted not in held:
            raise EngineError(f"{bundle.path}: holds no model for {wanted}, only for {', '.join(held) or 'no engine'}")
        return wanted
    refused = []
    for name in held:
        try:
            if _is_installed(name):
                return name
        except EngineError as error:
            _warn_once(f"{name} is not used: {error}")
            refused.append(f" ({error})")
    raise EngineError(
        f"{bundle.path}: runs on {' or '.join(held)}, which is not installed: pip install {held[0]}{''.join(refused)}"
    )


def _is_installed(name: str) -> bool:
    """Say whether a runtime is there.

    Raises:
        EngineError: it is there, but does not work.
    """
    if name != "paddlelite":
        return importlib.util.find_spec(name) is not None
    if _has_lite_wheel():
        return True
    if place.chosen() is None:
        return False
    binding.open_library()
    return True


def open_engine(bundle: ModelBundle, model: ModelName, settings: EngineSettings) -> Engine:
    """Load one model of a verified bundle.

    Raises:
        BundleError: the bundle has no such model.
        EngineError: the runtime is missing or refuses the model.
    """
    name = choose_engine(bundle, settings.engine)
    return open_files(name, bundle.model_files(model, name), settings)


def open_files(name: str, files: tuple[Path, ...], settings: EngineSettings) -> Engine:
    """Load model files on a named engine.

    A damaged `.nb` aborts the process inside Paddle Lite: verify its hash first and load unknown ones in a child
    (`agent.trial`).

    Raises:
        EngineError: the runtime is missing or refuses the model.
    """
    try:
        engine: Engine = ENGINES[name](files, settings)
    except EngineError:
        raise
    except Exception as error:  # every runtime has exception types of its own, all reduced to one here
        raise EngineError(f"{name} cannot load {files[0]}: {str(error).splitlines()[0]}") from error
    return engine


def _import(module: str, advice: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"{module} cannot be imported ({error}): {advice}") from error
