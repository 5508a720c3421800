"""Pruning of small graphs whose channels are known to be worth something or nothing."""

import copy
from pathlib import Path

import numpy as np
import pytest

from converters import native
from converters.graph import Graph, only
from converters.pruning import cut_crops
from tests import small_graphs
from tests.small_graphs import Builder, Paddle, image

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
pytestmark = pytest.mark.usefixtures("rng")
SHAPE = (1, 3, 32, 32)
WHOLE = 10**9
"""Multiply-adds of the source; shares of it are given as numbers of multiply-adds."""


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    running = Paddle(tmp_path_factory.mktemp("pruning"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "pictures.npy"
    rng = np.random.default_rng(2)
    smooth = np.kron(rng.uniform(0, 255, (4, 16, 16, 3)), np.ones((1, 4, 4, 1)))
    np.save(file, (smooth + rng.uniform(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8))
    return file


def pruned(graph: Graph, work: Path, pictures: Path, target: int, most: float = 0.75) -> tuple[Graph, dict]:
    graph.save(work / "source")
    options = {"count": 4, "size": 32, "share": target / WHOLE, "most": most, "whole": WHOLE, "shape": SHAPE}
    out = work / "slim"
    told = native.run("pruning.prune", source=work / "source", pictures=pictures, out=out, **options, **PLAIN)
    return Graph.load(out), told


def repeated(build: Builder, wide: int, narrow: int, real: int) -> str:
    """Return filters of which only `real` are independent: the others are mixtures of them."""
    name = build.param(wide, narrow, 3, 3)
    filters = build.params[name]
    mixed = np.einsum("ab,bchw->achw", small_graphs.RNG.normal(size=(wide - real, real)), filters[:real])
    build.params[name] = np.concatenate([filters[:real], mixed]).astype(np.float32)
    return name


def chain(real: int) -> Graph:
    """Return 3 -> 32 channels, `real` of them independent -> 4."""
    build = Builder()
    x = build.conv(build.input(-1, 3, -1, -1), repeated(build, 32, 3, real), paddings=[1, 1], dims=(-1, 32, -1, -1))
    x = build.add(x, build.param(32), axis=1)
    y = build.conv(x, build.param(4, 32, 3, 3), paddings=[1, 1], dims=(-1, 4, -1, -1))
    return build.graph(build.add(y, build.param(4), axis=1))


def widths(graph: Graph) -> list[tuple[int, ...]]:
    return [graph.params[only(op, "Filter")].shape[:2] for op in graph.ops if only(op, "Filter") in graph.params]


def work_of(graph: Graph) -> int:
    return sum(int(np.prod(graph.params[only(op, "Filter")].shape)) for op in graph.ops if only(op, "Filter")) * 32 * 32


def test_channels_that_others_can_stand_for_go_without_loss(paddle, pictures, tmp_path):
    graph = chain(real=8)
    slim, told = pruned(copy.deepcopy(graph), tmp_path, pictures, work_of(graph) // 3)
    (name,) = told["channels"]
    assert told["channels"][name] == [32, 8]
    assert widths(slim) == [(8, 3), (4, 8)]
    assert told["multiply_adds"] == work_of(slim)
    x = image(1, 3, 24, 40)
    whole, less = paddle.run(graph, x), paddle.run(slim, x)
    inner = (..., slice(2, -2), slice(2, -2))  # at the border the bias of a channel that went meets fewer taps
    assert np.abs(whole - less)[inner].max() < 0.25 * whole.std()


def test_no_more_goes_than_is_wanted_or_allowed(pictures, tmp_path):
    graph = chain(real=32)
    _, told = pruned(copy.deepcopy(graph), tmp_path / "a", pictures, work_of(graph) * 7 // 10)
    assert list(told["channels"].values()) == [[32, 16]], "24 of 32 channels are 0.75 of the work"
    _, told = pruned(copy.deepcopy(graph), tmp_path / "b", pictures, 0, most=0.5)
    assert list(told["channels"].values()) == [[32, 16]]
    _, told = pruned(copy.deepcopy(graph), tmp_path / "c", pictures, work_of(graph) + 1)
    assert told["channels"] == {}


def test_a_sum_takes_the_same_channels_from_both_sides_and_depthwise_filters_follow(paddle, pictures, tmp_path):
    build = Builder()
    x = build.input(-1, 3, -1, -1)
    sides = [build.conv(x, build.param(24, 3, 3, 3), paddings=[1, 1], dims=(-1, 24, -1, -1)) for _ in range(2)]
    deep = build.conv(
        build.add(*sides),
        build.param(24, 1, 3, 3),
        "depthwise_conv2d",
        groups=24,
        paddings=[1, 1],
        dims=(-1, 24, -1, -1),
    )
    graph = build.graph(build.conv(build.op("relu", X=deep, dims=(-1, 24, -1, -1)), build.param(4, 24, 1, 1)))
    slim, _ = pruned(graph, tmp_path, pictures, 0, most=0.67)
    assert widths(slim) == [(8, 3), (8, 3), (8, 1), (4, 8)]
    assert paddle.run(slim, image(1, 3, 16, 16)).shape == (1, 4, 16, 16)


def test_parts_of_a_concat_lose_channels_each_by_itself(paddle, pictures, tmp_path):
    build = Builder()
    x = build.input(-1, 3, -1, -1)
    parts = [
        build.conv(x, filters, paddings=[1, 1], dims=(-1, count, -1, -1))
        for filters, count in ((build.param(24, 3, 3, 3), 24), (repeated(build, 32, 3, 8), 32))
    ]
    whole = build.op("concat", X=parts, axis=1, dims=(-1, 56, -1, -1))
    graph = build.graph(build.conv(whole, build.param(4, 56, 1, 1), dims=(-1, 4, -1, -1)))
    slim, told = pruned(copy.deepcopy(graph), tmp_path, pictures, work_of(graph) * 6 // 10)
    assert list(told["channels"].values()) == [[32, 8]], "the part whose channels are mixtures of eight"
    assert widths(slim) == [(24, 3), (8, 3), (4, 32)]
    x = image(1, 3, 16, 16)
    wanted = paddle.run(graph, x)
    assert np.abs(paddle.run(slim, x) - wanted).max() < 0.25 * wanted.std()


def test_what_cannot_be_followed_keeps_its_channels(pictures, tmp_path):
    build = Builder()
    x = build.conv(build.input(-1, 3, 32, 32), build.param(32, 3, 3, 3), paddings=[1, 1], dims=(-1, 32, 32, 32))
    x = build.op("reshape2", X=x, shape=[0, 8, 64, 64], dims=(-1, 8, 64, 64))
    graph = build.graph(build.conv(x, build.param(4, 8, 1, 1), dims=(-1, 4, 64, 64)))
    slim, told = pruned(graph, tmp_path, pictures, 0)
    assert told["channels"] == {}
    assert widths(slim) == [(32, 3), (4, 8)]


def test_crops_are_the_same_each_time_and_inside():
    rows = np.arange(3 * 40 * 50 * 3, dtype=np.uint32).reshape(3, 40, 50, 3).astype(np.uint8)
    crops = cut_crops(rows, 5, 32)
    assert crops.shape == (5, 32, 32, 3)
    assert (crops == cut_crops(rows, 5, 32)).all()
    assert not (crops[0] == crops[3]).all(), "another part of the same picture"
