"""Convolutions of a changed model fitted, one after the other, to the outputs they had in the whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from converters import child
from converters.calibrate import Tensors
from converters.channels import FULL
from converters.graph import Graph, attribute, bias_of, only, result
from converters.network import Network, windows
from converters.params import Array

RIDGE = 1e-2
"""Pull towards the filters as they were, as a share of each value's second moment."""
PLACES = 2500
"""Of a crop's output, that the fit looks at."""

Floats = npt.NDArray[np.float64]


def refit(whole: Graph, slim: Graph, crops: Tensors, left: Mapping[str, Sequence[int]]) -> None:
    """Solve the full convolutions of a smaller graph again, in place, by least squares, in their order.

    Args:
        whole: the graph before it became smaller.
        slim: the graph after.
        crops: inputs, float32 (N, 3, H, W).
        left: channels of the whole that the smaller filters stand for, where there are fewer.
    """
    fitting = _Fitting(whole, slim, crops, left)
    done: set[str] = set()
    for number, op in enumerate(slim.ops):
        child.tell(len(slim.ops) + number, 2 * len(slim.ops))
        filters = only(op, "Filter")
        if op.type in FULL and filters in slim.params and filters not in done and fitting.can(op):
            done.add(filters)
            fitting.fit(op)
    fitting.save(slim)


class _Fitting:
    """Two models side by side."""

    def __init__(self, whole: Graph, slim: Graph, crops: Tensors, left: Mapping[str, Sequence[int]]) -> None:
        self._graph, self._whole = slim, whole
        self._teacher, self._student = Network(whole), Network(slim)
        self._crops = crops
        self._left = left
        self._changed = self._find_changed()

    def can(self, op: Any) -> bool:
        """Say whether an operator's input has changed, and is a picture."""
        return only(op, "Input") in self._changed

    def _find_changed(self) -> set[str]:
        """Return what full convolutions read, of more than one pixel, that is not what it was in the whole model."""
        names = sorted({only(op, "Input") for op in self._graph.ops if op.type in FULL})
        pairs = zip(*(network.fetch(names, self._crops[:1]) for network in (self._student, self._teacher)), strict=True)
        found = set()
        for name, (now, before) in zip(names, pairs, strict=True):
            same = now.shape == before.shape and np.abs(now - before).max() < 1e-4 * np.abs(before).max()
            if now.shape[2:] != (1, 1) and not same:
                found.add(name)
        return found

    def fit(self, op: Any) -> None:
        """Give an operator the filters, and the bias, that come closest to what it gave in the whole model."""
        bias = bias_of(self._graph, result(op), self._channels(op))
        squares, products = self._sums(op, bias)
        before = _matrix(op, self._student.get(only(op, "Filter")))
        taps = before.shape[1] // self._channels(op)
        if bias:
            before = np.vstack([before, np.repeat(self._student.get(bias).reshape(-1), taps)])
        scale = np.diag(squares)
        pull = np.diag(RIDGE * (scale + 1e-6 * scale.mean()))
        solved = np.linalg.solve(squares + pull, products + pull @ before)
        if bias:
            value = self._student.get(bias)
            self._student.set(bias, solved[-1].reshape(-1, taps).mean(axis=1).reshape(value.shape))
            solved = solved[:-1]
        self._student.set(only(op, "Filter"), _filters(op, solved, self._student.get(only(op, "Filter")).shape))

    def _channels(self, op: Any) -> int:
        shape = self._graph.params[only(op, "Filter")].shape
        return int(shape[1] if op.type.endswith("transpose") else shape[0])

    def _sums(self, op: Any, bias: str) -> tuple[Floats, Floats]:
        """Return X'X and X'Y over all crops: X what the filters see now, Y what they gave before."""
        size = _matrix(op, self._student.get(only(op, "Filter"))).shape
        squares, products = np.zeros((size[0] + bool(bias),) * 2), np.zeros((size[0] + bool(bias), size[1]))
        rng = np.random.default_rng(1)
        for crop in self._crops:
            seen = _seen(op, self._student.fetch([only(op, "Input")], crop[None])[0], self._kernel(op))
            wanted = _wanted(op, self._target(op, bias, crop[None]))
            chosen = rng.permutation(len(seen))[:PLACES]
            rows = seen[chosen].astype(np.float64)
            if bias:
                rows = np.hstack([rows, np.ones((len(rows), 1))])
            squares += rows.T @ rows
            products += rows.T @ wanted[chosen]
        return squares, products

    def _kernel(self, op: Any) -> int:
        return int(self._graph.params[only(op, "Filter")].shape[2])

    def _target(self, op: Any, bias: str, crop: Tensors) -> Array:
        """Return what the operator gave in the whole model, with its bias, for the channels that are left."""
        value = self._teacher.fetch([result(op)], crop)[0]
        if bias:
            value = value + self._whole.params[bias].reshape(1, -1, 1, 1)
        left = self._left.get(only(op, "Filter"))
        return value if left is None else value[:, list(left)]

    def save(self, graph: Graph) -> None:
        """Give a graph the student's parameters."""
        graph.params = {name: self._student.get(name).astype(np.float32) for name in graph.params}


def _matrix(op: Any, filters: Array) -> Floats:
    """Return filters as (values a place sees, outputs a place makes)."""
    rows = filters.reshape(len(filters), -1)
    return (rows if op.type.endswith("transpose") else rows.T).astype(np.float64)


def _filters(op: Any, matrix: Floats, shape: tuple[int, ...]) -> Array:
    return (matrix if op.type.endswith("transpose") else matrix.T).reshape(shape)


def _seen(op: Any, value: Array, kernel: int) -> Array:
    """Return what the filters see at each place of one picture, (places, values)."""
    if op.type.endswith("transpose"):
        return value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
    view = windows(value, op, (kernel, kernel))
    rows: Array = view.transpose(0, 2, 3, 1, 4, 5).reshape(view.shape[2] * view.shape[3], -1)
    return rows


def _wanted(op: Any, value: Array) -> Array:
    """Return the outputs of each place, (places, outputs); of a transposed convolution, a square of them."""
    if not op.type.endswith("transpose"):
        return value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1])
    height, width = attribute(op, "strides")
    rows, columns = value.shape[2] // height, value.shape[3] // width
    squares = value.reshape(1, -1, rows, height, columns, width).transpose(0, 2, 4, 1, 3, 5)
    return squares.reshape(rows * columns, -1)
