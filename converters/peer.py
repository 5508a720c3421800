"""Runs RapidOCR, the peer, in an environment of its own: a script for that environment's Python, not a module of ours.

  peer.py read PACKAGE THREADS WARM IMAGE...     one JSON row per picture, as `edge-ocr read --json` writes them
  peer.py model PACKAGE THREADS det|rec N C H W RUNS     median milliseconds of its own model on ONNX Runtime

PACKAGE is `rapidocr` (newest) or `rapidocr_onnxruntime` (PP-OCRv4). WARM is 1 to read the first picture once unseen.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def open_peer(package: str, threads: int) -> Any:
    """Return RapidOCR's reader with that many threads of ONNX Runtime and OpenCV."""
    import cv2

    cv2.setNumThreads(threads)
    if package == "rapidocr":
        from rapidocr import RapidOCR

        settings = {"EngineConfig.onnxruntime.intra_op_num_threads": threads, "Global.log_level": "error"}
        return RapidOCR(params=settings)
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=threads)


def found_lines(package: str, result: Any) -> list[dict[str, object]]:
    """Return lines as rows; the two packages answer in different forms, and with None for a blank page."""
    if package == "rapidocr":
        triples = zip(result.boxes, result.txts, result.scores, strict=True) if result.boxes is not None else ()
    else:
        triples = result[0] or ()
    return [
        {"text": text, "score": float(score), "quad": [[float(x), float(y)] for x, y in quad]}
        for quad, text, score in triples
    ]


def read(package: str, threads: str, warm: str, *images: str) -> None:
    """Read pictures and write a row for each as it is done."""
    engine = open_peer(package, int(threads))
    if int(warm):
        engine(images[0])
    for image in images:
        began = time.perf_counter()
        lines = found_lines(package, engine(image))
        row = {"image": image, "lines": lines, "seconds": time.perf_counter() - began}
        print(json.dumps(row, ensure_ascii=False), flush=True)


def model(package: str, threads: str, kind: str, *numbers: str) -> None:
    """Time one of the package's models on ONNX Runtime, with the options it uses itself."""
    import numpy as np
    import onnxruntime

    *shape, runs = map(int, numbers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(str(_model_file(package, kind)), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(7).uniform(-1.0, 1.0, shape).astype(np.float32)
    name, times = session.get_inputs()[0].name, []
    for _ in range(2 + runs):
        began = time.perf_counter()
        session.run(None, {name: x})
        times.append(time.perf_counter() - began)
    print(statistics.median(times[2:]) * 1e3)


def _model_file(package: str, kind: str) -> Path:
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(path for folder in folders for path in Path(folder).rglob("*.onnx") if f"_{kind}_" in path.name)
    if not found:
        sys.exit(f"{package} has no {kind} model")
    return found[0]


if __name__ == "__main__":
    {"read": read, "model": model}[sys.argv[1]](*sys.argv[2:])
