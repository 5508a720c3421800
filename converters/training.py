"""Quantisation-aware training: int8 filters and biases moved on by the gradient of what the float model would say.

No labels: the teacher is the same model in float, on drawn pictures and the user's own. Training begins at the filters
that rounding has found, with their scales, so that it cannot end worse than without it: what is kept is what stands
best on pictures that are not trained on, and that may be the beginning. Rounding has no gradient; the one of what is
rounded is taken instead (Bengio et al. 2013). Runs in a process of its own (`native`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from converters import child
from converters.agreement import distance
from converters.calibrate import Tensors, random_part, tensors
from converters.filters import shift_bias
from converters.graph import Graph, bias_of, only, result
from converters.network import Network, trainable
from converters.params import Array
from converters.quantize import (
    LINEAR,
    STEPS,
    Filters,
    Layer,
    able_layers,
    is_thin,
    keep_pairs,
    nearest,
    quantize,
    whole_steps,
)

LOOKS = 5
"""Times that the model is looked at on pictures it is not trained on."""
BRIGHT, FAINT = 5.0, 0.05
"""Pixels to which the teacher gives more than `FAINT` count so many times: most of a page is background."""
SQUARES = 20.0
"""Weight of the squared difference of probability maps beside their relative entropy."""
WARM_SHARE = 0.05
"""Of the steps, in which the rate rises."""
_EDGE = 1e-6
_MOVES = ("reshape2", "transpose2", "squeeze2", "unsqueeze2", "flatten2")


def train(
    source: str,
    scales: str,
    filters: str,
    kept: Sequence[str],
    pictures: str,
    checked: str,
    mean: Sequence[float],
    std: Sequence[float],
    steps: int,
    batch: int,
    size: int,
    rate: float,
    out: str,
) -> dict[str, float]:
    """Train a model's int8 layers; returns how far its output was from the float one's, before and after.

    Args:
        source: directory of the model in float.
        scales: file of the activations' scales.
        filters: file that `rounding` has left, or "" to begin at the nearest steps.
        kept: names of the layers that stay in float.
        pictures: an `.npy` file to train on, uint8 (N, H, W, 3).
        checked: another, of pictures that are not trained on.
        mean: of pixel / 255, per plane.
        std: likewise.
        steps: of the optimiser.
        batch: pictures in each.
        size: of the sides of the crops that the detector is trained on, in pixels; 0 for whole pictures.
        rate: by which parameters change in a step at most, as a share of their usual size.
        out: an `.npz` file like that of `rounding`.
    """
    activations = msgspec.json.decode(Path(scales).read_bytes(), type=dict[str, float])
    graph = Graph.load(Path(source))
    layers = able_layers(graph, activations, kept)
    start = starting_point(graph, layers, filters)
    student = _Student(graph, activations, layers, start)
    lessons = _Lessons(np.load(pictures), Network(graph), batch, size, (mean, std))
    exam = tensors(np.load(checked), mean, std)
    wanted = np.concatenate([lessons.teacher.run(picture[None]) for picture in exam])
    before = distance(wanted, student.answers(exam))
    best, taken = before, student.parameters()
    student.prepare(rate, steps)
    for step in range(steps):
        child.tell(step, steps)
        student.learn(*lessons.draw(step))
        if (step + 1) % max(1, steps // LOOKS) == 0:
            found = distance(wanted, student.answers(exam))
            if found < best:
                best, taken = found, student.parameters()
    np.savez(out, **_saved(graph, layers, start, taken))
    return {"before": before, "after": best}


def starting_point(graph: Graph, layers: Sequence[Layer], file: str) -> dict[str, tuple[Filters, Array]]:
    """Return filters in int8, and what the bias has grown by, for each layer."""
    found = {}
    by_name = {result(op): op for op in graph.ops}
    archive = dict(np.load(file)) if file else {}
    for layer in layers:
        if f"{layer.name}.steps" in archive:
            filters = Filters(archive[f"{layer.name}.steps"], archive[f"{layer.name}.scales"])
            found[layer.name] = (filters, archive[f"{layer.name}.shift"])
        else:
            values = graph.params[only(by_name[layer.name], "Filter")]
            found[layer.name] = (nearest(values, layer.kind), np.zeros(layer.shape[0]))
    return found


def soften(graph: Graph) -> dict[str, str]:
    """Let a graph in int8 round filters of float32 each time it runs, in place; returns their parameters' names.

    The names are those of the convolutions that read them.
    """
    found, ops = {}, []
    readers = {only(op, "Filter"): result(op) for op in graph.ops}
    for op in list(graph.ops):
        steps = only(op, "X")
        if op.type == "dequantize_linear" and steps in graph.params:
            scales = graph.params[only(op, "Scale")]
            value = graph.params[steps].astype(np.float32) * (scales / STEPS)[:, None, None, None]
            param = graph.add_param(f"{steps}.soft", value)
            whole = graph.add_variable(f"{steps}.whole", value.shape, like=graph.outputs()[0])
            numbers = {slot: [only(op, slot)] for slot in ("Scale", "ZeroPoint")}
            slots = {"X": [param], **numbers}
            ops.append(graph.new_op("quantize_linear", slots, {"Y": [whole]}, quant_axis=0, **LINEAR))
            slots, back = {"X": [whole], **numbers}, only(op, "Y", out=True)
            op = graph.new_op("dequantize_linear", slots, {"Y": [back]}, quant_axis=0, **LINEAR)
            found[readers[only(op, "Y", out=True)]] = param
        ops.append(op)
    graph.replace_ops(ops)
    return found


def remember_shapes(graph: Graph) -> None:
    """Add the output by which operators that only change a shape find their way back, where a graph lacks it."""
    for op in graph.ops:
        if op.type in _MOVES and not only(op, "XShape", out=True):
            source = only(op, "X")
            name = graph.add_variable(f"{result(op)}.xshape", [0, *graph.shape(source)], like=source)
            op.outputs.add(parameter="XShape", arguments=[name])


class _Lessons:
    """Pictures with the teacher's answers, always the same ones for the same step."""

    def __init__(
        self, pictures: Array, teacher: Network, batch: int, size: int, numbers: tuple[Sequence[float], Sequence[float]]
    ) -> None:
        self._pictures, self.teacher = pictures, teacher
        self._batch, self._size, self._numbers = batch, size, numbers

    def draw(self, step: int) -> tuple[Tensors, Tensors]:
        """Return a batch of inputs, and the teacher's outputs."""
        rng = np.random.default_rng(step)
        chosen = [self._pictures[index] for index in rng.integers(len(self._pictures), size=self._batch)]
        if self._size:
            chosen = [random_part(picture, self._size, rng) for picture in chosen]
        inputs = tensors(np.stack(chosen), *self._numbers)
        return inputs, self.teacher.run(inputs)


class _Student:
    """The model in int8, whose filters and biases can be trained."""

    def __init__(
        self,
        graph: Graph,
        activations: Mapping[str, float],
        layers: Sequence[Layer],
        start: Mapping[str, tuple[Filters, Array]],
    ) -> None:
        import paddle

        self._paddle = paddle
        coarse = graph.copy()
        for layer in layers:
            shift_bias(coarse, layer, start[layer.name][1])
        quantize(coarse, activations, layers, {name: filters for name, (filters, _) in start.items()})
        self.filters = soften(coarse)
        own = {result(op): graph.params.get(only(op, "Filter")) for op in graph.ops}
        self._stay = {self.filters[name]: own[name] != 0.0 for name in self.filters if is_thin(own[name])}
        remember_shapes(coarse)
        self._network = Network(coarse)
        self._output = coarse.outputs()[0]
        self._input = coarse.inputs()[0]
        self._program = trainable(self._network)
        for op in self._program.global_block().ops:
            if op.type == "quantize_linear":  # else it looks for moving averages that a graph with scales does not have
                op._set_attr("is_test", True)
        biases = {bias_of(coarse, layer.name, layer.shape[0]) for layer in layers}
        names = {*self.filters.values(), *biases}
        self._learned = [param for param in self._program.all_parameters() if param.name in names]
        self._test = self._program.clone(for_test=True)
        self._executor = paddle.static.Executor(paddle.CPUPlace())

    def prepare(self, rate: float, steps: int) -> None:
        """Add the loss and the optimiser."""
        paddle, startup = self._paddle, self._paddle.static.Program()
        # Without names of their own new variables would take those that the graph has.
        own_names = paddle.utils.unique_name.guard("training_")
        with paddle.static.program_guard(self._program, startup), own_names, self._scope():
            learned = {param.name for param in self._learned}
            for param in self._program.all_parameters():
                param.trainable = param.name in learned
                param.stop_gradient = not param.trainable
            for param in self._learned:
                # Folded parameters differ in size by orders of magnitude, and Adam's steps do not: each its own rate.
                usual = float(np.sqrt((self._network.get(param.name) ** 2).mean()))
                param.optimize_attr = {"learning_rate": usual + 1e-6}
            output = self._program.global_block().var(self._output)
            wanted = paddle.static.data("teacher", [-1, *output.shape[1:]], "float32")
            self._loss = _loss(paddle, output, wanted)
            warm = max(1, round(steps * WARM_SHARE))
            falling = paddle.optimizer.lr.CosineAnnealingDecay(rate, max(1, steps - warm))
            self._rate = paddle.optimizer.lr.LinearWarmup(falling, warm, rate * 0.05, rate)
            paddle.optimizer.Adam(self._rate, parameters=self._learned).minimize(self._loss, parameters=self._learned)
            self._executor.run(startup)

    def learn(self, inputs: Tensors, wanted: Tensors) -> None:
        """Take one step."""
        with self._scope():
            self._executor.run(self._program, feed={self._input: inputs, "teacher": wanted}, fetch_list=[self._loss])
        self._rate.step()
        for name, stays in self._stay.items():
            self._network.set(name, self._network.get(name) * stays)

    def answers(self, inputs: Tensors) -> Tensors:
        """Return the outputs for inputs."""
        with self._scope():
            found = [
                self._executor.run(self._test, feed={self._input: one[None]}, fetch_list=[self._output])[0]
                for one in inputs
            ]
        return np.concatenate(found)

    def parameters(self) -> dict[str, Array]:
        """Return copies of what is trained: filters by the name of their layer, other parameters by their own."""
        layers = {param: layer for layer, param in self.filters.items()}
        return {layers.get(param.name, param.name): self._network.get(param.name) for param in self._learned}

    def _scope(self) -> Any:
        return self._paddle.static.scope_guard(self._network.scope)


def _loss(paddle: Any, output: Any, wanted: Any) -> Any:
    """Return how far probabilities are from the teacher's."""
    found, given = (paddle.clip(value, _EDGE, 1 - _EDGE) for value in (output, wanted))
    entropy = given * (paddle.log(given) - paddle.log(found))
    if len(output.shape) == 3:  # the recogniser's, of characters in each step
        return paddle.mean(paddle.sum(entropy, axis=-1))
    entropy += (1 - given) * (paddle.log(1 - given) - paddle.log(1 - found))
    weight = 1.0 + (BRIGHT - 1.0) * paddle.cast(wanted > FAINT, "float32")
    return paddle.mean(weight * (entropy + SQUARES * (output - wanted) ** 2))


def _saved(
    graph: Graph,
    layers: Sequence[Layer],
    start: Mapping[str, tuple[Filters, Array]],
    taken: Mapping[str, Array],
) -> dict[str, Array]:
    """Return the trained filters in int8 and what biases have grown by, under the names that `rounding` gives them."""
    saved = {}
    for layer in layers:
        scales, shift = start[layer.name][0].scales, start[layer.name][1]
        steps = keep_pairs(whole_steps(taken[layer.name] / scales[:, None, None, None] * STEPS), layer.kind)
        bias = bias_of(graph, layer.name, layer.shape[0])
        if bias:
            shift = taken[bias].astype(np.float64).reshape(-1) - graph.params[bias].reshape(-1)
        saved |= {f"{layer.name}.steps": steps.astype(np.int8), f"{layer.name}.scales": scales}
        saved[f"{layer.name}.shift"] = shift
    return saved
