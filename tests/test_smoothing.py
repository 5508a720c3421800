import copy

import numpy as np
import pytest

from converters.calibrate import tensors
from converters.graph import Graph, only, result
from converters.model import graph_files
from converters.quantize import layers_of, quantize
from converters.smoothing import MOST, UNEVEN, level, ranges, smooth
from tests.small_graphs import Builder, Paddle, kinds

CHANNELS = 8
LOUD = 3
"""The channel that is a hundred times larger than the others."""


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


def before(build: Builder, *between: str) -> str:
    """Return a convolution with one loud channel, its bias, and operators of these types behind it."""
    x = build.conv(build.input(-1, 3, 12, 12), build.param(CHANNELS, 3, 3, 3), paddings=[1, 1])
    x = build.add(x, build.param(CHANNELS), axis=1)
    for name in ("w0", "w2"):
        build.params[name][LOUD] *= 100.0
    build.declare(x, [-1, CHANNELS, 12, 12])
    for kind in between:
        attributes = {"hard_swish": {"threshold": 6.0, "scale": 6.0, "offset": 3.0}, "scale": SCALE}.get(kind, {})
        x = build.op(kind, X=x, dims=(-1, CHANNELS, 12, 12), **attributes)
    return x


SCALE = {"scale": 0.5, "bias": -0.25, "bias_after_scale": True}


def depthwise(build: Builder, x: str) -> str:
    return build.conv(x, build.param(CHANNELS, 1, 3, 3), kind="depthwise_conv2d", groups=CHANNELS, paddings=[1, 1])


def chain(*between: str) -> Graph:
    build = Builder()
    return build.graph(depthwise(build, before(build, *between)))


def pictures() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (6, 12, 12, 3), np.uint8)


def inputs() -> np.ndarray:
    return tensors(pictures(), [0.5] * 3, [0.5] * 3)


def reading(graph: Graph, name: str) -> Graph:
    """Return a copy of a graph with a variable as its output."""
    cut = copy.deepcopy(graph)
    cut.ops[-1].inputs[0].arguments[:] = [name]
    return cut


def found(paddle: Paddle, graph: Graph) -> dict[str, np.ndarray]:
    """Return the channels' ranges of what convolutions read."""
    names = dict.fromkeys(layer.source for layer in layers_of(graph) if layer.source != "x")
    values = {name: paddle.run(reading(graph, name), inputs()) for name in names}
    return {
        name: ranges(found.transpose(0, 2, 3, 1).reshape(-1, found.shape[1]), 1.0) for name, found in values.items()
    }


def spread(channels: np.ndarray) -> float:
    return float(channels.max() / channels.min())


def check(paddle: Paddle, graph: Graph, *, power: float = 1.0, **expected: int) -> Graph:
    """Smooth a copy and return it: it does so much, channels are alike then, and the output stays the same.

    The factors are those of depthwise convolutions, to a power.
    """
    changed, uneven = copy.deepcopy(graph), found(paddle, graph)
    assert all(channels.max() > 20 * np.median(channels) for channels in uneven.values())
    assert level(changed, uneven) == expected
    even, worst = found(paddle, changed), max(spread(channels) for channels in uneven.values())
    assert all(spread(channels) < 1.01 * worst / min(worst, MOST) ** power for channels in even.values())
    wanted, got = paddle.run(graph, inputs()), paddle.run(changed, inputs())
    assert np.abs(got - wanted).max() < 1e-5 * np.abs(wanted).max()
    return changed


@pytest.mark.parametrize("between", [(), ("relu",)])
def test_factors_go_into_the_weights_behind_linear_operators_and_relu(paddle, between):
    graph = chain(*between)
    assert kinds(check(paddle, graph, folded=1)) == kinds(graph)


def test_a_scale_on_the_way_becomes_one_number_per_channel(paddle):
    changed = check(paddle, chain("hard_swish", "scale"), turned=1)
    assert kinds(changed) == ["conv2d", "elementwise_add", "hard_swish", "batch_norm", "depthwise_conv2d"]


def test_behind_hard_swish_an_operator_is_added(paddle):
    graph = chain("hard_swish")
    changed = check(paddle, graph, added=1)
    assert kinds(changed) == [*kinds(graph)[:-1], "batch_norm", "depthwise_conv2d"]


def test_other_convolutions_take_the_square_root_of_the_factors(paddle):
    build = Builder()
    check(paddle, build.graph(build.conv(before(build, "relu"), build.param(4, CHANNELS, 1, 1))), power=0.5, folded=1)


def test_an_operator_is_added_only_where_ranges_are_far_apart():
    channels = np.array([4.0, *[1.0] * (CHANNELS - 1)])
    for between, expected in (("relu", {"folded": 1}), ("hard_swish", {})):
        graph = chain(between)
        name = layers_of(graph)[1].source
        assert level(graph, {name: channels}) == expected


def test_two_depthwise_readers_share_the_factors(paddle):
    build = Builder()
    x = before(build, "relu")
    check(paddle, build.graph(build.add(depthwise(build, x), depthwise(build, x))), folded=1)


@pytest.mark.parametrize("where", ["what is read", "on the way"])
def test_other_readers_keep_what_they_read(paddle, where):
    build = Builder()
    x = before(build)
    y = build.op("relu", X=x, dims=(-1, CHANNELS, 12, 12))
    other = build.op("sigmoid", X=y if where == "what is read" else x)
    changed = check(paddle, build.graph(build.add(depthwise(build, y), other)), added=1)
    assert only(next(op for op in changed.ops if op.type == "sigmoid"), "X") in (x, y)


def test_channels_alike_stay(paddle, tmp_path):
    build = Builder()
    x = build.conv(build.input(-1, 3, 12, 12), build.param(CHANNELS, 3, 1, 1, value=0.1))
    build.graph(depthwise(build, x)).save(tmp_path / "even")
    np.save(tmp_path / "pictures.npy", pictures())
    assert UNEVEN > 1.0
    assert smooth_files(tmp_path, tmp_path / "even") == {}
    pairs = zip(graph_files(tmp_path / "even"), graph_files(tmp_path / "out"), strict=True)
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def smooth_files(tmp_path, source):
    numbers = {"mean": [0.5] * 3, "std": [0.5] * 3, "count": 4, "percentile": 1.0}
    return smooth(str(source), str(tmp_path / "pictures.npy"), out=str(tmp_path / "out"), **numbers)


def test_int8_is_nearer_to_float_behind_it(paddle, tmp_path):
    graph = chain("hard_swish", "scale")
    graph.save(tmp_path / "graph")
    np.save(tmp_path / "pictures.npy", pictures())
    assert smooth_files(tmp_path, tmp_path / "graph") == {"turned": 1}
    wanted = paddle.run(graph, inputs())
    errors = [int8_error(paddle, Graph.load(tmp_path / name), wanted) for name in ("graph", "out")]
    assert errors[1] < 0.1 * errors[0]


def int8_error(paddle: Paddle, graph: Graph, wanted: np.ndarray) -> float:
    """Return the error of the depthwise convolution in int8, as a share of each channel's largest output; the mean."""
    (layer,) = (layer for layer in layers_of(graph) if layer.kind == "depthwise_conv2d")
    largest = float(np.abs(paddle.run(reading(graph, layer.source), inputs())).max())
    quantize(graph, {layer.source: largest}, [layer])
    error = np.abs(paddle.run(graph, inputs()) - wanted).max(axis=(0, 2, 3)) / np.abs(wanted).max(axis=(0, 2, 3))
    assert result(graph.ops[-2]) == layer.name
    return float(error.mean())
