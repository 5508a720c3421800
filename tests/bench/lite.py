"""Measures the native binding beside the x86 wheel's Python class: `python -m tests.bench.lite [BUNDLE]`.

Both use the same library. Each figure is of a process of its own; the two ways take turns, ratios are medians of
the pairs' ratios. Prints JSON on the last line.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.lite.build import build

BUNDLE = Path(f"models/build/ppocr-v4-{platform.machine()}-fp32")
SHAPES = {"det": (1, 3, 640, 640), "rec": (1, 3, 48, 320), "cls": (1, 3, 48, 192)}
PAIRS = 7
RUNS = {"det": 7, "rec": 20, "cls": 60}
LOADS = 40
WAYS: dict[str, dict[str, str]] = {"binding": {}, "wheel": {"EDGE_OCR_LITE": "off"}}
"""What the environment of a child has besides; the build that is measured goes into the first."""


def resident() -> dict[str, float]:
    """Return resident memory of this process in MB: now, and at its highest."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return {name: int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")}


def timed(work: Callable[[], object], runs: int) -> float:
    """Return the median time of some runs in ms."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def measure(bundle: str) -> dict[str, Any]:
    """Import, load and run the three models, and tell what each step takes."""
    import cv2
    import numpy as np

    from agent.bundle import ModelBundle
    from agent.engines import EngineSettings, open_engine

    cv2.setNumThreads(1)
    told: dict[str, Any] = {"MB imported": resident()["VmRSS"]}
    verified, engines = ModelBundle.load(Path(bundle)), {}
    settings = EngineSettings("paddlelite")
    for name in SHAPES:
        engines[name] = open_engine(verified, name, settings)
    told["MB engine open"] = resident()["VmRSS"]
    for name, engine in engines.items():  # which load at the first run: here it is done apart
        told[f"ms load {name}"] = timed(lambda engine=engine: engine._load(engine._file), LOADS)
        engine._model, engine._shape = engine._load(engine._file), SHAPES[name][2:]
    told["MB loaded"] = resident()["VmRSS"]
    for name, engine in engines.items():
        x = np.random.default_rng(7).uniform(-1, 1, SHAPES[name]).astype(np.float32)
        engine.run(x)
        told[f"ms run {name}"] = timed(lambda engine=engine, x=x: engine.run(x), RUNS[name])
    told["MB run"], told["MB peak"] = resident()["VmRSS"], resident()["VmHWM"]
    return told


def two_threads(bundle: str) -> dict[str, float]:
    """Run two recognisers one after the other, then at once in two threads."""
    import numpy as np

    from agent.bundle import ModelBundle
    from agent.engines import EngineSettings, open_engine

    verified = ModelBundle.load(Path(bundle))
    engines = [open_engine(verified, "rec", EngineSettings("paddlelite")) for _ in range(2)]
    x = np.random.default_rng(7).uniform(-1, 1, SHAPES["rec"]).astype(np.float32)

    def work(engine: Any) -> None:
        for _ in range(RUNS["rec"]):
            engine.run(x)

    def at_once() -> None:
        threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for engine in engines:
        engine.run(x)
    alone = timed(lambda: [work(engine) for engine in engines], 3)
    return {"two at once / one after the other": timed(at_once, 3) / alone}


def one_model(bundle: str, threads: str) -> dict[str, float]:
    """Run the detector with so many threads of the library's own."""
    import numpy as np

    from agent.lite import binding

    os.environ["OMP_NUM_THREADS"] = threads
    binding.prepare = lambda: None  # type: ignore[attr-defined]
    x = np.random.default_rng(7).uniform(-1, 1, SHAPES["det"]).astype(np.float32)
    model = binding.Predictor(binding.open_library(), Path(bundle) / "det.nb", threads=int(threads))

    def work() -> None:
        model.set_input(0, x)
        model.run()

    work()
    return {"ms det": timed(work, 9)}


def child(job: str, way: str, *arguments: object) -> dict[str, float]:
    """Do a job in a process of its own."""
    env = {**os.environ, **WAYS[way]}
    command = [sys.executable, "-m", "tests.bench.lite", job, *map(str, arguments)]
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL).stdout
    told: dict[str, float] = json.loads(out.splitlines()[-1])
    return told


def median(rows: list[dict[str, float]], name: str) -> float:
    """Return the median of one figure."""
    return statistics.median(row[name] for row in rows)


def main(bundle: str) -> None:
    """Build the binding, measure everything and print it."""
    with tempfile.TemporaryDirectory() as work:
        os.environ["XDG_CACHE_HOME"] = work  # the developer's own build stays the one in use
        WAYS["binding"]["EDGE_OCR_LITE"] = str(build(None, platform.machine(), Path(work, "build")))
        _main(bundle)


def _main(bundle: str) -> None:
    pairs = [{way: child("measure", way, bundle) for way in WAYS} for _ in range(PAIRS)]
    report: dict[str, Any] = {}
    for name in pairs[0]["binding"]:
        own = median([pair["binding"] for pair in pairs], name)
        other = median([pair["wheel"] for pair in pairs], name)
        ratio = statistics.median(pair["binding"][name] / pair["wheel"][name] for pair in pairs)
        report[name] = {"binding": round(own, 2), "wheel": round(other, 2), "ratio": round(ratio, 3)}
        print(f"{name:18} binding {own:8.2f}   wheel {other:8.2f}   ratio {ratio:.3f}")
    for way in WAYS:
        report[f"two threads, {way}"] = rows = [child("two_threads", way, bundle) for _ in range(3)]
        print(way, *rows)
    own = [{n: child("one_model", "binding", bundle, n)["ms det"] for n in (1, 2)} for _ in range(3)]
    report["two threads of the library / one"] = round(statistics.median(row[2] / row[1] for row in own), 3)
    print("two threads of the library / one:", report["two threads of the library / one"])
    print(json.dumps(report))


JOBS = {"measure": measure, "two_threads": two_threads, "one_model": one_model}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in JOBS:
        print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))
    else:
        main(*(sys.argv[1:] or [str(BUNDLE)]))
