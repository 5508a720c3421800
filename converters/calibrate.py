"""Calibration with PaddleSlim: what each activation's 127 steps stand for. Runs in a process of its own (`native`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from converters import child
from converters.graph import MODEL_FILE, PARAMS_FILE
from converters.quantize import QUANTIZED

Tensors = npt.NDArray[np.float32]


def tensors(pictures: npt.NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> Tensors:
    """Return float32 (N, 3, H, W) of (pixel / 255 - mean) / std for uint8 (N, H, W, 3)."""
    scaled = (pictures.astype(np.float32) / 255 - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def random_part(picture: npt.NDArray[np.uint8], size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return a square part of a picture, uint8 (size, size, 3)."""
    top, left = (int(rng.integers(0, max(1, length - size + 1))) for length in picture.shape[:2])
    return picture[top : top + size, left : left + size]


def calibrate(
    source: str, pictures: str, mean: Sequence[float], std: Sequence[float], percentile: float, out: str
) -> int:
    """Write the scale of every activation that a convolution reads, as JSON; returns how many.

    Args:
        source: directory with a Paddle inference model.
        pictures: an `.npy` file, uint8 (N, H, W, 3).
        mean: of pixel / 255, per plane.
        std: likewise.
        percentile: share of an activation's values, in a histogram, that the scale covers.
        out: the file to write.
    """
    import paddle

    inputs = tensors(np.load(pictures), mean, std)
    paddle.enable_static()
    executor = paddle.static.Executor(paddle.CPUPlace())
    program, feeds, _ = load_program(source, executor)
    loader = paddle.io.DataLoader(
        _Inputs(inputs),
        feed_list=[program.global_block().var(feeds[0])],
        batch_size=1,
        return_list=False,
        places=paddle.CPUPlace(),
    )
    with TemporaryDirectory() as work:
        _quantize(executor, source, work, loader, percentile, len(inputs))
        scales = _scales(executor, work)
    Path(out).write_text(json.dumps(scales, sort_keys=True), encoding="utf-8")
    return len(scales)


_SECOND = 4
"""PaddleSlim goes through the pictures twice, for the largest values and for how often each comes: so much longer."""

_REST = 4  # writing the model takes as long as a part of the pictures in the first round


class _Inputs:
    """What Paddle's loader wants of a dataset; it tells how much has been asked for."""

    def __init__(self, inputs: Tensors) -> None:
        self._inputs = inputs
        self._asked = 0

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> Tensors:
        count = len(self._inputs)
        again = max(0, self._asked - count)
        child.tell(self._asked - again + _SECOND * again, (1 + _SECOND) * count + count // _REST)
        self._asked += 1
        picture: Tensors = self._inputs[index]
        return picture


def load_program(directory: str, executor: Any) -> Any:
    """Return a saved model's program, the names of its inputs, and its outputs; parameters go into Paddle's scope."""
    import paddle

    names = {"model_filename": MODEL_FILE, "params_filename": PARAMS_FILE}
    return paddle.static.load_inference_model(directory, executor, **names)


def _quantize(executor: Any, source: str, out: str, loader: Any, percentile: float, count: int) -> None:
    from paddleslim.quant import quant_post_static

    quant_post_static(
        executor,
        model_dir=source,
        quantize_model_path=out,
        data_loader=loader,
        model_filename=MODEL_FILE,
        params_filename=PARAMS_FILE,
        save_model_filename=MODEL_FILE,
        save_params_filename=PARAMS_FILE,
        batch_size=1,
        batch_nums=count,
        algo="hist",
        hist_percent=percentile,
        quantizable_op_type=list(QUANTIZED),
        weight_quantize_type="channel_wise_abs_max",
        activation_quantize_type="moving_average_abs_max",
        onnx_format=True,
    )


def _scales(executor: Any, directory: str) -> dict[str, float]:
    """Return the scales that PaddleSlim has written: of activations that are read, not of those only observed."""
    import paddle

    block, found = load_program(directory, executor)[0].global_block(), {}
    for op in block.ops:
        if op.type == "quantize_linear" and not (op.has_attr("only_observer") and op.attr("only_observer")):
            scale = np.array(paddle.static.global_scope().find_var(op.input("Scale")[0]).get_tensor())
            found[op.input("X")[0]] = float(scale.reshape(-1)[0])
    return found
