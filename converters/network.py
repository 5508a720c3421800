"""A graph in Paddle, of which any variable can be had and whose parameters can be changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from converters.calibrate import load_program
from converters.graph import Graph, attribute
from converters.params import Array

_BATCH = 16


class Network:
    """Runs a graph on the CPU, with parameters of its own.

    Attributes:
        program: as Paddle has loaded it.
        scope: Paddle's, with the parameters.
    """

    def __init__(self, graph: Graph) -> None:
        import paddle

        paddle.enable_static()
        self._paddle = paddle
        self.scope, self._executor = paddle.static.Scope(), paddle.static.Executor(paddle.CPUPlace())
        with TemporaryDirectory() as work, paddle.static.scope_guard(self.scope):
            graph.save(Path(work))
            self.program, self._feeds, self._fetches = load_program(work, self._executor)

    def run(self, inputs: Array) -> Array:
        """Return the output for a batch of inputs, float32 (N, 3, H, W)."""
        return self.fetch([self._fetches[0].name], inputs)[0]

    def fetch(self, names: Sequence[str], inputs: Array) -> list[Array]:
        """Return variables for a batch of inputs; no more is computed than they need."""
        parts = []
        with self._paddle.static.scope_guard(self.scope):
            for start in range(0, len(inputs), _BATCH):
                feed = {self._feeds[0]: inputs[start : start + _BATCH]}
                parts.append(self._executor.run(self.program, feed=feed, fetch_list=list(names), use_prune=True))
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def get(self, name: str) -> Array:
        """Return a copy of a parameter."""
        return np.array(self._tensor(name))

    def set(self, name: str, value: Array) -> None:
        """Replace a parameter; its type stays, its shape need not."""
        kept: Array = np.ascontiguousarray(value, dtype=self.get(name).dtype)
        self._tensor(name).set(kept, self._paddle.CPUPlace())

    def _tensor(self, name: str) -> Any:
        return self.scope.find_var(name).get_tensor()


def trainable(network: Network) -> Any:
    """Return a copy of a network's program whose parameters are parameters again, without its feeds and fetches."""
    import paddle
    from paddleslim.common.recover_program import recover_inference_program

    clean = paddle.static.program_guard(paddle.static.Program(), paddle.static.Program())
    with paddle.static.scope_guard(network.scope), clean:
        program = recover_inference_program(network.program.clone())
    block = program.global_block()
    for index, op in reversed(list(enumerate(block.ops))):
        if op.type in ("feed", "fetch"):
            block._remove_op(index)
    return program


def windows(values: Array, op: Any, sides: tuple[int, ...]) -> Array:
    """Return what a convolution's filters see in each place, a view (N, C, rows, columns, *sides).

    Args:
        values: float32 (N, C, H, W).
        op: the convolution.
        sides: height and width of its filters.
    """
    pads, strides = attribute(op, "paddings"), attribute(op, "strides")
    top, side = (pads[0], pads[1]) if len(pads) == 2 else (pads[0], pads[2])
    wide = np.pad(values, ((0, 0), (0, 0), (top, top), (side, side)))
    view: Array = np.lib.stride_tricks.sliding_window_view(wide, sides, axis=(2, 3))  # type: ignore[call-overload]
    return view[:, :, :: strides[0], :: strides[1]]
