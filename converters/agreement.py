"""How far models are from each other on the same pictures. Runs in a process of its own (`native`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from agent.engines import EngineSettings, open_files
from converters import child
from converters.calibrate import Tensors, tensors
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph
from converters.params import Array
from converters.quantize import layers_of, quantize


def layer_errors(
    source: str, scales: str, pictures: str, mean: Sequence[float], std: Sequence[float], count: int
) -> dict[str, float]:
    """Return, for each layer, how far the output moves when this layer alone is in int8.

    Args:
        source: directory of the model in float.
        scales: file of the activations' scales.
        pictures: an `.npy` file, uint8 (N, H, W, 3); the first `count` are used.
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of pictures.
    """
    inputs = tensors(np.load(pictures)[:count], mean, std)
    known = json.loads(Path(scales).read_text(encoding="utf-8"))
    wanted, found = _outputs(Path(source), inputs), {}
    with TemporaryDirectory() as work:
        for layer in child.counted(layers_of(Graph.load(Path(source)))):
            graph = Graph.load(Path(source))
            if quantize(graph, known, [layer]):
                graph.save(Path(work))
                found[layer.name] = distance(wanted, _outputs(Path(work), inputs))
    return found


def agreement(
    source: str, simulated: str, twin: str, pictures: str, mean: Sequence[float], std: Sequence[float], count: int
) -> dict[str, float]:
    """Return how far the simulated and the built int8 model are from the float one, and the built from the simulated.

    Args:
        source: directory of the model in float.
        simulated: directory of the int8 model.
        twin: the `.nb` file for x86 that was built from it.
        pictures: an `.npy` file, uint8 (N, H, W, 3); the first `count` are used.
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of pictures.
    """
    inputs = tensors(np.load(pictures)[:count], mean, std)
    plain, expected = _outputs(Path(source), inputs), _outputs(Path(simulated), inputs)
    built = open_files("paddlelite", (Path(twin),), EngineSettings(engine="paddlelite"))
    found = np.concatenate([built.run(picture[None]).copy() for picture in inputs])
    return {
        "error": distance(plain, expected),
        "built": distance(plain, found),
        "mismatch": distance(expected, found),
    }


def distance(a: Array, b: Array) -> float:
    """Return the mean absolute difference of probability maps, or of the recogniser's probabilities, per step."""
    difference = np.abs(a.astype(np.float64) - b)
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.mean() if a.ndim == 4 else difference.sum(axis=-1).mean())


def _outputs(directory: Path, inputs: Tensors) -> Array:
    files = (directory / MODEL_FILE, directory / PARAMS_FILE)
    engine = open_files("paddle", files, EngineSettings(engine="paddle", threads=2))
    outputs: Array = np.concatenate([engine.run(picture[None]).copy() for picture in inputs])
    engine.close()
    return outputs
