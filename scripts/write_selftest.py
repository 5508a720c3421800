"""Writes agent/lite/selftest-*.nb, with which the binding tries a library: `python -m scripts.write_selftest`.

One convolution with small whole numbers, so that every sum is exact in float32 in whatever order it is taken. Its
stride of 2 keeps kernels away that calculate in other numbers (Winograd).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from converters import native
from converters.framework import schema
from converters.graph import Graph, become

PLACE = Path(__file__).parent.parent / "agent" / "lite"
SHAPES = {"x": (1, 3, 4, 4), "weights": (2, 3, 3, 3), "sums": (1, 2, 2, 2), "y": (1, 2, 2, 2)}
_FLOAT32, _LOD_TENSOR, _FEED, _FETCH = 5, 7, 9, 10  # framework.proto, VarType.Type


def weights() -> np.ndarray:
    """Return the convolution's weights, float32 (2, 3, 3, 3) in -2..2."""
    return (np.arange(54) * 3 % 5 - 2).reshape(SHAPES["weights"]).astype(np.float32)


def graph() -> Graph:
    """Return the model: float32 (1, 3, 4, 4) -> convolution 3x3 with stride 2 and ReLU -> float32 (1, 2, 2, 2)."""
    program = schema().ProgramDesc()
    block = program.blocks.add(idx=0, parent_idx=-1)
    for name, kind in (("feed", _FEED), ("fetch", _FETCH)):
        block.vars.add(name=name, persistable=True).type.type = kind
    for name, shape in SHAPES.items():
        variable = block.vars.add(name=name, persistable=name == "weights")
        variable.type.type = _LOD_TENSOR
        variable.type.lod_tensor.tensor.data_type = _FLOAT32
        variable.type.lod_tensor.tensor.dims.extend(shape)
    window = {"strides": [2, 2], "paddings": [1, 1], "dilations": [1, 1], "groups": 1}
    become(block.ops.add(), "feed", {"X": ["feed"]}, {"Out": ["x"]}, col=0)
    become(
        block.ops.add(),
        "conv2d",
        {"Input": ["x"], "Filter": ["weights"]},
        {"Output": ["sums"]},
        padding_algorithm="EXPLICIT",
        data_format="NCHW",
        **window,
    )
    become(block.ops.add(), "relu", {"X": ["sums"]}, {"Out": ["y"]})
    become(block.ops.add(), "fetch", {"X": ["y"]}, {"Out": ["fetch"]}, col=0)
    return Graph(program, {"weights": weights()})


def models() -> dict[str, bytes]:
    """Return the content of each file by its name."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        graph().save(Path(folder))
        for machine in native.LITE_TARGETS:
            out = f"{folder}/{machine}"
            native.run("build_lite", source=folder, out=out, target=machine, plan=False, compacted=True)
            made[f"selftest-{machine}.nb"] = Path(f"{out}.nb").read_bytes()
    return made


if __name__ == "__main__":
    for file, content in models().items():
        (PLACE / file).write_bytes(content)
