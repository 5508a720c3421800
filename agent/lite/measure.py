"""Times a bundle's models on this machine's library: what threads and power modes are worth here.

A library that does not know a processor takes slower kernels on it (Cortex-A76 in the runtime of March 2024), and its
interface has no word for what the processor can do. So it has to be measured on the board.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from agent.bundle import MODELS, ModelBundle, ModelName
from agent.errors import EngineError
from agent.health import peak_mb
from agent.lite.binding import Library, Predictor

WARM_RUNS = 2
SHAPES: dict[ModelName, tuple[int, ...]] = {"det": (1, 3, 640, 640), "rec": (1, 3, 48, 320), "cls": (1, 3, 48, 192)}


class Timing(msgspec.Struct, frozen=True):
    """Milliseconds of one model's runs; `resident_mb` is that of the process, at its highest until then."""

    model: str
    threads: int
    power_mode: str
    median_ms: float
    fastest_ms: float
    resident_mb: float


def measure(
    library: Library, bundle: ModelBundle, threads: Sequence[int], power_modes: Sequence[str], runs: int
) -> list[Timing]:
    """Return a timing for each model, number of threads and power mode.

    Raises:
        EngineError: the bundle is not for Paddle Lite, or the library refuses a model.
    """
    rows = []
    models = [model for model in MODELS if getattr(bundle.manifest, model) is not None]
    for model, mode, count in itertools.product(models, power_modes, threads):
        (file,) = bundle.model_files(model, "paddlelite") or (None,)
        if file is None:
            raise EngineError(f"{bundle.path}: holds no model for paddlelite")
        predictor = Predictor(library, file, threads=count, power_mode=mode)
        times = _times(predictor, SHAPES[model], runs)
        rows.append(Timing(model, count, mode, statistics.median(times), min(times), peak_mb()))
        predictor.close()
    return rows


def _times(predictor: Predictor, shape: tuple[int, ...], runs: int) -> list[float]:
    x = np.random.default_rng(7).uniform(-1.0, 1.0, shape).astype(np.float32)
    predictor.set_input(0, x)
    for _ in range(WARM_RUNS):
        predictor.run()
    return [_milliseconds(predictor.run) for _ in range(runs)]


def _milliseconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
