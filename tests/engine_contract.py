"""Runs one engine through random shapes against a reference, in a process of its own.

    python -m tests.engine_contract ENGINE BUNDLE PORTABLE_BUNDLE

One engine object per model takes every shape; each shape's reference is a fresh ONNX Runtime session of the portable
bundle. A process of its own, because a wrong predictor may corrupt the heap, and because Paddle Inference does not
bear Paddle Lite beside it. Prints JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent.bundle import ModelBundle, ModelName
from agent.engines import EngineSettings, open_engine

SAMPLE = Path(__file__).parent.parent / "samples" / "receipt.png"
SEED = 20261121
SHAPES = {"det": 7, "rec": 7, "cls": 2}


def shapes(model: ModelName, rng: random.Random) -> Iterator[tuple[int, int, int, int]]:
    """Yield input shapes that a page may need, large and small mixed, some again."""
    seen = []
    for _ in range(SHAPES[model]):
        if model == "det":
            seen.append((1, 3, 32 * rng.randint(1, 9), 32 * rng.randint(1, 9)))
        elif model == "rec":
            seen.append((rng.randint(1, 3), 3, 48, 32 * rng.randint(1, 14)))
        else:
            seen.append((rng.randint(1, 4), 3, 48, 192))
        yield seen[-1]
        if rng.random() < 0.3:
            yield rng.choice(seen)


def print_like(shape: tuple[int, int, int, int], rng: random.Random) -> np.ndarray:
    """Return pieces of a printed page, float32 -1..1, so that the models have something to find."""
    batch, _, height, width = shape
    with Image.open(SAMPLE) as page:
        pieces = []
        for _ in range(batch):
            left, top = rng.randint(0, page.width - 200), rng.randint(0, page.height - 100)
            pieces.append(np.asarray(page.convert("RGB").crop((left, top, left + width, top + height))))
    return np.stack(pieces).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def follow(engine: Any, model: ModelName, portable: ModelBundle) -> dict[str, Any]:
    """Run a model through its shapes and tell how far off it was, and whether it kept to the contract."""
    rng, noise = random.Random(SEED), np.random.default_rng(SEED)
    off: list[tuple[float, tuple[int, ...]]] = []
    kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number, shape in enumerate(shapes(model, rng)):
        x = print_like(shape, rng) + noise.uniform(-0.1, 0.1, shape).astype(np.float32)
        before = x.copy()
        output = engine.run(x)
        reference = open_engine(portable, model, EngineSettings("onnxruntime")).run(x)
        assert output.shape == reference.shape and output.dtype == np.float32, (shape, output.shape, reference.shape)
        assert np.array_equal(x, before), "the input was changed"
        off.append((float(np.abs(output - reference).max()), shape))
        kept.append((output, output.copy(), x))
        if number % 4 == 3:
            engine.release()
    strided = np.asfortranarray(kept[0][2])
    off.append((float(np.abs(engine.run(strided) - kept[0][1]).max()), ()))
    engine.release()
    engine.release()
    unchanged = all(np.array_equal(now, then) for now, then, _ in kept)
    engine.close()
    engine.close()
    peak = max(float(then.max()) for _, then, _ in kept)
    return {"worst": max(off), "outputs_are_kept": unchanged, "shapes": len(off), "peak": peak}


def no_gpu(bundle: ModelBundle) -> str:
    """Return what asking for a GPU says where there is none."""
    try:
        open_engine(bundle, "det", EngineSettings("paddle", device="gpu"))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "opened"


def main() -> None:
    name, bundle, portable = sys.argv[1], ModelBundle.load(Path(sys.argv[2])), ModelBundle.load(Path(sys.argv[3]))
    told: dict[str, Any] = {}
    for model in ("det", "rec", "cls"):
        engine = open_engine(bundle, model, EngineSettings(name))
        assert engine.name == name
        told[model] = follow(engine, model, portable)
    if name == "paddle":
        told["gpu"] = no_gpu(bundle)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
