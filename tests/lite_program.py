"""What the native binding is put through, each job in a process of its own: `python -m tests.lite_program JOB BUNDLE`.

A process of its own, because what goes wrong in the library ends it. Prints JSON.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from agent.errors import EngineError
from agent.lite.binding import Library, Predictor, open_library
from tests.engine_contract import SEED, shapes

CYCLES = 1000
SELFTEST = Path(__file__).parent.parent / "agent" / "lite" / "selftest-x86_64.nb"
ROUNDS = 6


def noise(shape: tuple[int, ...], seed: int = SEED) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def result(library: Library, model: Path | bytes, x: np.ndarray) -> np.ndarray:
    predictor = Predictor(library, model)
    predictor.set_input(0, x)
    predictor.run()
    return predictor.output(0).copy()


def wheel_result(model: Path, x: np.ndarray) -> np.ndarray:
    import paddlelite.lite as lite

    config = lite.MobileConfig()
    config.set_model_from_file(str(model))
    predictor = lite.create_paddle_predictor(config)
    predictor.get_input(0).from_numpy(x)
    predictor.run()
    return predictor.get_output(0).numpy().copy()


def equal(library: Library, bundle: Path) -> dict[str, Any]:
    """Run every model at many shapes by binding, from file and memory, and by the wheel's class."""
    told: dict[str, Any] = {}
    for model in ("det", "rec", "cls"):
        file, rng, same = bundle / f"{model}.nb", random.Random(SEED), []
        for _ in range(ROUNDS):
            for shape in shapes(model, rng):
                x = noise(shape)
                reference = wheel_result(file, x)
                own = [result(library, file, x), result(library, file.read_bytes(), x)]
                same.append(all(np.array_equal(y, reference) and y.dtype == reference.dtype for y in own))
        told[model] = [sum(same), len(same)]
    return told


def threads(library: Library, bundle: Path) -> dict[str, Any]:
    """Run two models in each of two threads at once, at shapes that change."""
    jobs = [(bundle / f"{name}.nb", noise(shape, seed)) for seed, (name, shape) in enumerate(_JOBS)]
    wanted = [result(library, *job) for job in jobs]
    wrong: list[int] = []

    def work(order: list[int]) -> None:
        for index in order:
            if not np.array_equal(result(library, *jobs[index]), wanted[index]):
                wrong.append(index)

    both = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3] * 4, [3, 1, 0, 2] * 4)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return {"wrong": wrong}


_JOBS = (("rec", (1, 3, 48, 320)), ("det", (1, 3, 160, 160)), ("rec", (2, 3, 48, 96)), ("cls", (3, 3, 48, 192)))


def resident_kb() -> int:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])


def growth(library: Library, bundle: Path) -> dict[str, Any]:
    """Load, run and close a small model many times, from file and memory; failures between."""
    content, x, seen = SELFTEST.read_bytes(), noise((1, 3, 4, 4)), []
    for cycle in range(2 * CYCLES):
        predictor = Predictor(library, SELFTEST if cycle % 2 else content)
        predictor.set_input(0, x)
        predictor.run()
        view = predictor.output(0)
        predictor.close()
        del view, predictor
        if cycle % CYCLES == CYCLES - 1:
            gc.collect()
            seen.append(resident_kb())
    return {"grown_kb": seen[1] - seen[0]}


def views(library: Library, bundle: Path) -> dict[str, Any]:
    """Look at an output beyond what the model lets; tell what is said."""
    told: dict[str, Any] = {}
    predictor = Predictor(library, SELFTEST)
    told["before a run"] = refusal(lambda: predictor.output(0))
    predictor.set_input(0, noise((1, 3, 4, 4)))
    predictor.run()
    view = predictor.output(0)
    part = view[0, 1]
    told["writeable"], told["own memory"] = view.flags.writeable, bool(view.base is not None)
    kept = part.copy()
    del view
    told["run"], told["input"] = refusal(predictor.run), refusal(lambda: predictor.set_input(0, noise((1, 3, 4, 4))))
    predictor.close()
    predictor.close()
    Predictor(library, SELFTEST)
    told["kept beyond close"] = bool(np.array_equal(part, kept))
    told["closed"] = refusal(predictor.run)
    return told


def refusal(call: Any) -> str:
    try:
        call()
    except EngineError as error:
        return str(error)
    return "accepted"


def inputs(library: Library, bundle: Path) -> dict[str, Any]:
    """Give inputs that are none."""
    predictor = Predictor(library, SELFTEST)
    good = noise((1, 3, 4, 4))
    told = {
        "index": refusal(lambda: predictor.set_input(1, good)),
        "negative": refusal(lambda: predictor.set_input(-1, good)),
        "output": refusal(lambda: predictor.output(1)),
        "kind": refusal(lambda: predictor.set_input(0, good.astype(np.float64))),
        "empty": refusal(lambda: predictor.set_input(0, good[:0])),
        "axes": refusal(lambda: predictor.set_input(0, good.reshape((1,) * 5 + good.shape))),
    }
    predictor.set_input(0, np.asfortranarray(good))
    predictor.run()
    told["strided is the same"] = bool(np.array_equal(predictor.output(0), result(library, SELFTEST, good)))
    return told


def one_at_a_time(library: Library, bundle: Path) -> dict[str, Any]:
    """Use one predictor from two threads at once."""
    predictor = Predictor(library, bundle / "det.nb")
    predictor.set_input(0, noise((1, 3, 640, 640)))
    thread = threading.Thread(target=predictor.run)
    thread.start()
    said = [refusal(predictor.run) for _ in iter(thread.is_alive, False)]
    thread.join()
    return {"said": sorted({*said} - {"accepted"}), "refused": len(said)}


JOBS = {job.__name__: job for job in (equal, threads, growth, views, inputs, one_at_a_time)}

if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](open_library(), Path(sys.argv[2]))))
