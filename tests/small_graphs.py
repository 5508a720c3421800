"""Small Paddle graphs for the tests of the rewrites, and a way to run them."""

import copy
import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from converters.framework import schema
from converters.graph import Graph, become
from converters.passes import Pass, rewrite

RNG = np.random.default_rng(3)
CONV = {
    "strides": [1, 1], "paddings": [0, 0], "dilations": [1, 1], "groups": 1,
    "padding_algorithm": "EXPLICIT", "data_format": "NCHW",
}  # fmt: skip
NORM = {"epsilon": 1e-3, "is_test": True, "momentum": 0.9, "data_layout": "NCHW"}


class Builder:
    """Writes a graph operator by operator; variables are named by the operator's type and a number."""

    def __init__(self) -> None:
        self.program = schema().ProgramDesc()
        self.block = self.program.blocks.add(idx=0, parent_idx=-1)
        self.params: dict[str, np.ndarray] = {}
        self.count = itertools.count()
        for name, kind in (("feed", 9), ("fetch", 10)):
            self.block.vars.add(name=name, persistable=True).type.type = kind

    def variable(self, name: str, shape: list[int], dtype: int = 5) -> str:
        var = self.block.vars.add(name=name)
        var.type.type = 7
        var.type.lod_tensor.tensor.data_type = dtype
        var.type.lod_tensor.tensor.dims.extend(shape)
        return name

    def declare(self, name: str, dims: list[int]) -> None:
        """Declare another shape for a variable."""
        next(var for var in self.block.vars if var.name == name).type.lod_tensor.tensor.dims[:] = dims

    def input(self, *shape: int) -> str:
        become(self.block.ops.add(), "feed", {"X": ["feed"]}, {"Out": [self.variable("x", list(shape))]}, col=0)
        return "x"

    def param(self, *shape: int, value: object = None, positive: bool = False) -> str:
        name = self.variable(f"w{next(self.count)}", list(shape))
        self.block.vars[-1].persistable = True
        array = RNG.normal(size=shape) if value is None else np.full(shape, value)
        self.params[name] = (np.abs(array) + 0.5 if positive else array).astype(np.float32)
        return name

    def op(self, kind: str, out: str = "Out", dims: tuple[int, ...] = (-1, -1, -1, -1), **slots: object) -> str:
        """Add an operator; capitalised arguments are inputs, the others attributes. Returns its output's name."""
        inputs = {k: [v] if isinstance(v, str) else v for k, v in slots.items() if k[0].isupper()}
        name = self.variable(f"{kind}_{next(self.count)}", list(dims), 3 if slots.get("dtype") == 3 else 5)
        attributes = {k: v for k, v in slots.items() if not k[0].isupper()}
        become(self.block.ops.add(), kind, inputs, {out: [name]}, **attributes)
        return name

    def conv(self, x: str, filters: str, kind: str = "conv2d", **changed: object) -> str:
        return self.op(kind, "Output", Input=x, Filter=filters, **{**CONV, **changed})

    def norm(self, x: str, channels: int, **changed: object) -> str:
        slots = {
            slot: self.param(channels, positive=slot == "Variance") for slot in ("Scale", "Bias", "Mean", "Variance")
        }
        name = self.op("batch_norm", "Y", X=x, **slots, **{**NORM, **changed})
        for slot in ("MeanOut", "VarianceOut", "SavedMean", "SavedVariance"):
            target = slots[slot[:-3]] if slot.endswith("Out") else self.variable(f"{name}.{slot}", [channels])
            self.block.ops[-1].outputs.add(parameter=slot, arguments=[target])
        return name

    def add(self, x: str, y: str, axis: int = -1) -> str:
        return self.op("elementwise_add", X=x, Y=y, axis=axis)

    def mul(self, x: str, y: str, axis: int = -1) -> str:
        return self.op("elementwise_mul", X=x, Y=y, axis=axis)

    def scale(self, x: str, scale: float, bias: float = 0.0, *, after: bool = True) -> str:
        return self.op("scale", X=x, scale=scale, bias=bias, bias_after_scale=after)

    def graph(self, *outputs: str) -> Graph:
        for col, name in enumerate(outputs):
            become(self.block.ops.add(), "fetch", {"X": [name]}, {"Out": ["fetch"]}, col=col)
        return Graph(self.program, self.params)


def kinds(graph: Graph) -> list[str]:
    """Return the types of a graph's operators, without its ends."""
    return [op.type for op in graph.ops if op.type not in ("feed", "fetch")]


def small_detector() -> Graph:
    """Return a detector with the affine of LCNetV3: (N, 3, H, W) -> (N, 1, H, W)."""
    build = Builder()
    x = build.norm(build.conv(build.input(-1, 3, -1, -1), build.param(8, 3, 3, 3), paddings=[1, 1]), 8)
    x = build.op("hard_swish", X=x, threshold=6.0, scale=6.0, offset=3.0)
    x = build.add(build.mul(x, build.param(1)), build.param(1))
    x = build.add(build.conv(x, build.param(1, 8, 1, 1)), build.param(1), axis=1)
    return build.graph(build.op("sigmoid", X=x, dims=(-1, 1, -1, -1)))


def small_recognizer(classes: int = 12) -> Graph:
    """Return a recogniser: (N, 3, 48, W) -> (N, W / 4, classes)."""
    build = Builder()
    x = build.norm(build.conv(build.input(-1, 3, 48, -1), build.param(8, 3, 3, 3), paddings=[1, 1]), 8)
    window = {"ksize": [48, 4], "strides": [48, 4], "paddings": [0, 0], "padding_algorithm": "EXPLICIT"}
    kind = {"pooling_type": "avg", "global_pooling": False, "adaptive": False, "ceil_mode": False, "exclusive": True}
    x = build.op("pool2d", X=x, data_format="NCHW", **kind, **window)
    x = build.op("squeeze2", X=x, axes=[2], dims=(-1, 8, -1))
    x = build.op("transpose2", X=x, axis=[0, 2, 1], dims=(-1, -1, 8))
    x = build.op("matmul_v2", X=x, Y=build.param(8, classes), trans_x=False, trans_y=False, dims=(-1, -1, classes))
    return build.graph(build.op("softmax", X=x, axis=-1, dims=(-1, -1, classes)))


def small_classifier() -> Graph:
    """Return a direction classifier with a squeeze branch: (N, 3, 48, 192) -> (N, 2).

    Parameters of 256 values and more: w0, w3 and w15 of convolutions, w6 of a depthwise one, w11 of the branch, w21 of
    a matmul.
    """
    build, swish = Builder(), {"threshold": 6.0, "scale": 6.0, "offset": 3.0}
    x = build.conv(build.input(-1, 3, 48, 192), build.param(16, 3, 3, 3), paddings=[1, 1], strides=[2, 2])
    x = build.op("hard_swish", X=x, **swish)
    x = build.op("hard_swish", X=build.conv(x, build.param(32, 16, 1, 1)), **swish)
    x = build.conv(x, build.param(32, 1, 3, 3), kind="depthwise_conv2d", groups=32, paddings=[1, 1])
    x = build.add(x, build.param(32), axis=1)  # without a bias, Paddle Lite's int8 kernel for x86 dies
    gate = build.conv(mean_of(build, x, 32), build.param(32, 32, 1, 1))
    x = build.mul(x, build.op("hard_sigmoid", X=gate, slope=0.2, offset=0.5, dims=(-1, 32, 1, 1)))
    x = build.op("hard_swish", X=build.conv(x, build.param(128, 32, 1, 1)), **swish)
    x = build.op("squeeze2", X=build.scale(mean_of(build, x, 128), 0.001), axes=[2, 3], dims=(-1, 128))
    x = build.op("matmul_v2", X=x, Y=build.param(128, 2), trans_x=False, trans_y=False, dims=(-1, 2))
    return build.graph(build.op("softmax", X=build.add(x, build.param(2)), axis=-1, dims=(-1, 2)))


def mean_of(build: Builder, x: str, channels: int) -> str:
    """Add the mean of each channel."""
    window = {"ksize": [1, 1], "strides": [1, 1], "paddings": [0, 0], "padding_algorithm": "EXPLICIT"}
    kind = {"pooling_type": "avg", "global_pooling": False, "adaptive": True, "ceil_mode": False, "exclusive": True}
    return build.op("pool2d", X=x, data_format="NCHW", dims=(-1, channels, 1, 1), **kind, **window)


def _with_parameter(graph: Graph) -> Graph:
    """Return a copy that has a parameter: Paddle loads no model without one."""
    copied = copy.deepcopy(graph)
    one, out = copied.add_param("one", np.ones(1)), copied.outputs()[0]
    scaled = copied.add_variable("scaled", copied.shape(out), like=out)
    fetch = copied.ops[-1]
    fetch.inputs[0].arguments[:] = [scaled]
    product = copied.new_op("elementwise_mul", {"X": [out], "Y": [one]}, {"Out": [scaled]}, axis=-1)
    copied.replace_ops([*copied.ops[:-1], product, fetch])
    return copied


class Paddle:
    """Runs graphs on Paddle Inference without its own optimisations."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.count = itertools.count()
        self.child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("paddle_worker.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def run(self, graph: Graph, x: np.ndarray) -> np.ndarray:
        directory = self.work / str(next(self.count))
        _with_parameter(graph).save(directory)
        return self.run_directory(directory, x)

    def run_directory(self, directory: Path, x: np.ndarray) -> np.ndarray:
        given, out = self.work / "given.npy", self.work / "out.npy"
        np.save(given, x)
        self.child.stdin.write(f"{directory}\t{given}\t{out}\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline().strip()
        assert answer == "done", answer
        return np.load(out)

    def close(self) -> None:
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait(10)


def image(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def check(paddle: Paddle, graph: Graph, passes: Sequence[Pass], x: np.ndarray, *, applied: int) -> Graph:
    """Run passes on a copy and return it: they apply so often in all, and the output stays the same."""
    changed = copy.deepcopy(graph)
    assert sum(rewrite(changed, passes).values()) == applied
    np.testing.assert_allclose(paddle.run(changed, x), paddle.run(graph, x), rtol=1e-4, atol=1e-5)
    return changed
