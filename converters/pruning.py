"""Structured pruning: fewer channels where the output feels it least, with the filters that stay solved again.

No labels and no training. For each group of channels (`converters.channels`), the one whose loss the filters that read
it can best make up for with the others goes first; they make up for it at once (Hassibi and Stork 1992, "Optimal brain
surgeon", with the channels' second moments as the Hessian). How much each group can lose follows from the sensitivity
of the output and from the work it saves. At the end every convolution whose input has changed is fitted to the
output it had in the whole model (`converters.refit`). Runs in a process of its own (`native`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from converters import child
from converters.calibrate import Tensors, random_part, tensors
from converters.channels import Group, Reader, areas_of, cut, cut_shapes, find_groups, multiply_adds
from converters.graph import Graph, only
from converters.network import Network
from converters.refit import refit

STEP = 8
"""Channels go in steps of so many, so that what stays is a multiple of what a vector register of x86 and ARM holds."""
SMALLEST = 24
"""Groups with fewer channels, or with a number that is no multiple of `STEP`, lose them in steps of two."""
SHARES = (0.1, 0.25, 0.5, 0.75)
"""Of a group's channels, at whose loss the output is looked at."""
POOLED_WEIGHT = 0.1
"""A filter that reads a mean over the picture counts so much beside one that reads every pixel."""
PIXELS = 6400
"""Of a crop, that second moments are taken from."""
NEAR = 0.98
"""A step that would leave less than this share of the work that may stay is taken only where there is no other."""
RIDGE = 1e-3
SENSED = 6
"""Crops on which sensitivity is looked at."""

Floats = npt.NDArray[np.float64]


class Moments(msgspec.Struct, frozen=True):
    """What is known of a variable's channels: mean (C,) and second moments (C, C)."""

    mean: Floats
    second: Floats


def prune(
    source: str,
    pictures: str,
    mean: Sequence[float],
    std: Sequence[float],
    count: int,
    size: int,
    share: float,
    most: float,
    whole: int,
    shape: Sequence[int],
    out: str,
) -> dict[str, object]:
    """Write a model with fewer channels; returns channels before and after by layer, sensitivities and multiply-adds.

    Args:
        source: directory of the model in float.
        pictures: an `.npy` file, uint8 (N, H, W, 3).
        mean: of pixel / 255, per plane.
        std: likewise.
        count: of crops of the pictures that are looked at.
        size: of their sides in pixels.
        share: of the source model's multiply-adds that may stay.
        most: share of a group's channels that may go.
        whole: multiply-adds of the source model.
        shape: of the input that multiply-adds are counted for, (N, 3, H, W).
        out: the directory to write.
    """
    graph = Graph.load(Path(source))
    crops = tensors(cut_crops(np.load(pictures), count + SENSED, size), mean, std)
    pruning = _Pruning(graph, crops[:-SENSED], crops[-SENSED:], shape)
    felt = pruning.sensitivities()
    kept = pruning.allocate(felt, share * whole, most)
    slim, keep = pruning.remove(kept)
    refit(graph, slim, crops[:-SENSED], keep)
    slim.save(Path(out))
    channels = {group.name: (group.channels, kept[group.name]) for group in pruning.groups}
    return {
        "channels": {name: pair for name, pair in channels.items() if pair[0] != pair[1]},
        "sensitivities": felt,
        "multiply_adds": multiply_adds(slim, pruning.areas),
    }


def count_multiply_adds(source: str, shape: Sequence[int]) -> int:
    """Return the multiply-adds of a model's convolutions for an input of a shape.

    Args:
        source: directory of the model.
        shape: (N, 3, H, W).
    """
    graph = Graph.load(Path(source))
    return multiply_adds(graph, areas_of(Network(graph), graph, np.zeros(tuple(shape), np.float32)))


def cut_crops(pictures: npt.NDArray[np.uint8], count: int, size: int) -> npt.NDArray[np.uint8]:
    """Return square parts of pictures, always the same ones, uint8 (count, size, size, 3)."""
    rng = np.random.default_rng(0)
    return np.stack([random_part(pictures[index % len(pictures)], size, rng) for index in range(count)])


class _Pruning:
    """One model on its way to fewer channels."""

    def __init__(self, graph: Graph, crops: Tensors, sensed: Tensors, shape: Sequence[int]) -> None:
        self._graph = graph
        self._network = Network(graph)
        self._sensed = sensed
        self.areas = areas_of(self._network, graph, np.zeros(tuple(shape), np.float32))
        self.groups = find_groups(self._network, graph, self.areas)
        self._moments = self._measure(crops)
        self._removed: dict[str, set[int]] = {}

    def _measure(self, crops: Tensors) -> dict[str, Moments]:
        """Return the moments of all that readers read."""
        names = sorted({reader.source for group in self.groups for reader in group.readers})
        sums: dict[str, tuple[int, Floats, Floats]] = {}
        rng = np.random.default_rng(0)
        for crop in crops:
            for name, value in zip(names, self._network.fetch(names, crop[None]), strict=True):
                rows = value.transpose(0, 2, 3, 1).reshape(-1, value.shape[1]).astype(np.float64)
                rows = rows[rng.permutation(len(rows))[:PIXELS]]
                size = rows.shape[1]
                number, first, second = sums.get(name, (0, np.zeros(size), np.zeros((size, size))))
                sums[name] = number + len(rows), first + rows.sum(axis=0), second + rows.T @ rows
        return {name: Moments(first / number, second / number) for name, (number, first, second) in sums.items()}

    def sensitivities(self) -> dict[str, list[float]]:
        """Return, for each group, how far the output moves on average when `SHARES` of its channels go."""
        wanted, found = self._network.run(self._sensed), {}
        for done, group in enumerate(self.groups):
            child.tell(done, 2 * len(self.groups))  # the first half of the work; `refit` is the second
            found[group.name] = self._sense(group, wanted)
        return found

    def _sense(self, group: Group, wanted: Tensors) -> list[float]:
        names = {name for reader in group.readers for name in (reader.filters, reader.bias) if name}
        before = {name: self._network.get(name) for name in names}
        counts, moved = [max(1, round(share * group.channels)) for share in SHARES], []
        for solved in self._eliminate(group, counts):
            self._put(solved)
            moved.append(float(np.abs(self._network.run(self._sensed) - wanted).mean()))
            for name, value in before.items():
                self._network.set(name, value)
        return moved

    def _eliminate(self, group: Group, counts: Sequence[int]) -> Iterator[list[Reconstruction]]:
        """Take channels away one by one; yields the state at each count."""
        solved = [self._reconstruction(reader, group.channels) for reader in group.readers]
        alive = np.ones(group.channels, bool)
        for number in range(1, max(counts) + 1):
            costs = np.sum([reader.costs() for reader in solved], axis=0)
            costs[~alive] = np.inf
            worst = int(np.argmin(costs))
            alive[worst] = False
            for reader in solved:
                reader.remove(worst)
            if number in counts:
                yield solved

    def _reconstruction(self, reader: Reader, channels: int) -> Reconstruction:
        removed = self._removed.get(reader.source, set())
        moments = self._moments[reader.source]
        return Reconstruction(reader, channels, self._network.get(reader.filters), moments, removed)

    def _put(self, solved: Sequence[Reconstruction]) -> None:
        """Give readers the filters, and the biases, that make up for what is gone."""
        for state in solved:
            self._network.set(state.reader.filters, state.filters())
            if state.reader.bias:
                bias = self._network.get(state.reader.bias)
                self._network.set(state.reader.bias, bias + state.shift().reshape(bias.shape))

    def allocate(self, felt: Mapping[str, Sequence[float]], target: float, most: float) -> dict[str, int]:
        """Return how many channels each group keeps: again and again the cheapest step per multiply-add saved."""
        kept = {group.name: group.channels for group in self.groups}
        work = self._work(kept)
        while work > target:
            steps = [
                (self._price(group, felt, kept[group.name], fewer) / (work - left), group.name, fewer, left)
                for group in self.groups
                for fewer in _fewer(group, kept[group.name], most)
                if (left := self._work({**kept, group.name: fewer})) < work
            ]
            if not steps:
                break
            near = [step for step in steps if step[-1] > target * NEAR]
            _, name, fewer, work = min(near or steps)
            kept[name] = fewer
        return kept

    def _price(self, group: Group, felt: Mapping[str, Sequence[float]], before: int, after: int) -> float:
        """Return how much farther the output moves."""
        curve = np.maximum.accumulate([0.0, *felt[group.name]])
        now, then = (float(np.interp(1 - count / group.channels, (0.0, *SHARES), curve)) for count in (before, after))
        return then - now + 1e-6

    def _work(self, kept: Mapping[str, int]) -> int:
        shapes: dict[str, list[int]] = {}
        for group in self.groups:
            cut_shapes(self._graph, group, group.channels - kept[group.name], shapes)
        return multiply_adds(self._graph, self.areas, shapes)

    def remove(self, kept: Mapping[str, int]) -> tuple[Graph, dict[str, list[int]]]:
        """Return the smaller graph, and the channels that are left of each parameter that has lost some."""
        gone: dict[str, list[int]] = {}
        for group in self.groups:
            count = group.channels - kept[group.name]
            if count:
                solved = next(self._eliminate(group, [count]))
                self._put(solved)
                gone[group.name] = solved[0].gone
                for state in solved:
                    start = state.reader.start
                    self._removed.setdefault(state.reader.source, set()).update(start + one for one in state.gone)
        outputs = self._outputs()
        left = {
            part.param: [index for index in range(group.channels) if index not in gone[group.name]]
            for group in self.groups
            if group.name in gone
            for part in group.parts
            if part.axis == 0 and part.param in outputs
        }
        return cut(self._network, self._graph, gone), left

    def _outputs(self) -> set[str]:
        """Return the filters whose first axis is that of the output's channels."""
        return {only(op, "Filter") for op in self._graph.ops if op.type in ("conv2d", "depthwise_conv2d")}


def _fewer(group: Group, kept: int, most: float) -> list[int]:
    """Return the next smaller numbers of channels that a group may have."""
    step = STEP if group.channels >= SMALLEST and group.channels % STEP == 0 else 2
    smallest = max(group.channels * (1 - most), 4)
    return [fewer for times in (1, 2, 3) if (fewer := (kept - 1) // step * step - (times - 1) * step) >= smallest]


class Reconstruction:
    """A reader's filters while channels of its input go one by one.

    Attributes:
        reader: which.
        gone: indices in the group, in the order in which they went.
    """

    def __init__(self, reader: Reader, channels: int, filters: Tensors, moments: Moments, removed: set[int]) -> None:
        """Prepare.

        Args:
            reader: which.
            channels: of the group.
            filters: its filters now.
            moments: of what it reads.
            removed: channels of that which have gone before; they cannot make up for others.
        """
        self.reader = reader
        self.gone: list[int] = []
        self._shape = np.moveaxis(filters, reader.axis, 0).shape
        self._rows = np.moveaxis(filters, reader.axis, 0).reshape(self._shape[0], -1).astype(np.float64)
        self._before = self._rows.copy()
        self._mean = moments.mean
        centred = moments.second - np.outer(moments.mean, moments.mean)
        # With a bias behind it the mean is made up for by that.
        self._inverse = _inverse(centred if reader.bias else moments.second, removed)
        self._scale = max(1e-12, float(np.einsum("io,ij,jo->", self._rows, centred, self._rows, optimize=True)))
        self._own = np.arange(reader.start, reader.start + channels)
        self._weight = POOLED_WEIGHT if reader.pooled else 1.0

    def costs(self) -> Floats:
        """Return what the loss of each of the group's channels costs, as a share of the output's variance."""
        own, least = self._rows[self._own], np.maximum(self._inverse[self._own, self._own], 1e-12)
        costs: Floats = (own**2).sum(axis=1) / least / self._scale * self._weight
        return costs

    def remove(self, channel: int) -> None:
        """Take a channel of the group away and let the others make up for it."""
        at = channel + self.reader.start
        column = self._inverse[:, at].copy()
        self._rows -= np.outer(column / column[at], self._rows[at])
        self._inverse -= np.outer(column, column) / column[at]
        self._rows[at] = 0.0
        self._inverse[at, :] = self._inverse[:, at] = 0.0
        self._inverse[at, at] = 1.0
        self.gone.append(channel)

    def filters(self) -> Tensors:
        """Return the filters as they are now, in their own order of axes, float32."""
        return np.moveaxis(self._rows.reshape(self._shape), 0, self.reader.axis).astype(np.float32)

    def shift(self) -> Floats:
        """Return what the bias must grow by, (out,)."""
        lost = (self._mean @ (self._before - self._rows)).reshape(self._shape[1:])
        # Every tap of a filter meets the mean; of a transposed one with stride and side of two, one tap a pixel does.
        shift: Floats = lost.sum(axis=(1, 2)) if self.reader.axis == 1 else lost.mean(axis=(1, 2))
        return shift


def _inverse(moments: Floats, removed: set[int]) -> Floats:
    damped = moments + np.eye(len(moments)) * (RIDGE * np.trace(moments) / len(moments) + 1e-10)
    live = np.setdiff1d(np.arange(len(moments)), sorted(removed))
    inverse = np.zeros_like(damped)
    inverse[np.ix_(live, live)] = np.linalg.inv(damped[np.ix_(live, live)])
    return inverse
