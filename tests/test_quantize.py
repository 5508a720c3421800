import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converters.graph import Graph, attribute, only
from converters.passes_int8 import convolve_last_matmul, part_hard_swish
from converters.places import outputs, patches
from converters.quantize import STEPS, Layer, filter_scales, largest_pairs, layers_of, quantize
from converters.rounding import Rounded, move, round_layer
from tests.small_graphs import Builder, Paddle, kinds, small_recognizer


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


def chain() -> Graph:
    """Return a stem, a depthwise convolution and a squeeze-and-excitation branch."""
    build = Builder()
    x = build.conv(build.input(-1, 3, 8, 8), build.param(8, 3, 3, 3), paddings=[1, 1])
    x = build.conv(x, build.param(8, 1, 3, 3), kind="depthwise_conv2d", groups=8, paddings=[1, 1])
    pool = {"ksize": [1, 1], "pooling_type": "avg", "global_pooling": False, "adaptive": True, "strides": [1, 1]}
    small = build.op("pool2d", X=x, paddings=[0, 0], data_format="NCHW", dims=(-1, 8, 1, 1), **pool)
    gate = build.op("hard_sigmoid", X=build.conv(small, build.param(8, 8, 1, 1)), slope=0.2, offset=0.5)
    return build.graph(build.mul(x, gate))


FILTERS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    elements=st.floats(-8, 8, width=32),
)


@given(filters=FILTERS)
def test_no_pair_of_filter_steps_can_overflow_sixteen_bits(filters):
    steps = np.rint(filters / filter_scales(filters, "conv2d")[:, None, None, None] * STEPS).reshape(len(filters), -1)
    even = np.pad(steps, ((0, 0), (0, steps.shape[1] % 2))).reshape(len(steps), -1, 2)
    products = np.clip(even, 0, None).sum(axis=2).max() * 255, np.clip(even, None, 0).sum(axis=2).min() * 255
    assert products[0] <= 32767 + 255  # both of a pair may be rounded up by half a step
    assert products[1] >= -32768 - 255


@given(filters=FILTERS)
def test_depthwise_filters_cannot_overflow_in_any_order(filters):
    steps = np.abs(np.rint(filters / filter_scales(filters, "depthwise_conv2d")[:, None, None, None] * STEPS))
    two = np.sort(steps.reshape(len(steps), -1), axis=1)[:, -2:].sum(axis=1)
    assert two.max() <= 129


@given(filters=FILTERS)
def test_scales_are_the_largest_value_or_somewhat_more(filters):
    largest = np.abs(filters).max(axis=(1, 2, 3))
    scales = filter_scales(filters, "conv2d")
    assert (scales >= largest - 1e-6).all()
    assert (scales[largest > 0] <= 2.0 * largest[largest > 0] + 1e-6).all()


def test_branches_that_see_one_pixel_stay_in_float():
    assert [layer.kind for layer in layers_of(chain())] == ["conv2d", "depthwise_conv2d"]


def test_filters_are_stored_as_int8_and_read_back_within_half_a_step(tmp_path):
    graph = chain()
    stem = layers_of(graph)[0]
    wanted = {only(op, "Filter"): graph.params[only(op, "Filter")] for op in graph.ops if op.type == "conv2d"}
    assert quantize(graph, {"x": 2.0}, layers_of(graph)) == 1
    graph.save(tmp_path)
    saved = Graph.load(tmp_path)
    (name,) = (name for name, value in saved.params.items() if value.dtype == np.int8)
    filters = wanted[name.removesuffix(".int8")]
    scales = saved.params[f"{name}@scale"]
    assert saved.params[name].shape == stem.shape
    back = saved.params[name] * scales[:, None, None, None] / STEPS
    assert (np.abs(back - filters) <= scales[:, None, None, None] / STEPS / 2 + 1e-6).all()
    assert name.removesuffix(".int8") not in saved.params
    assert saved.params["x@scale"] == [2.0]


def test_layers_without_a_scale_and_those_not_wanted_stay():
    graph = chain()
    stem, depthwise = layers_of(graph)
    before = kinds(graph)
    assert quantize(graph, {stem.source: 1.0, depthwise.source: 0.0}, [depthwise]) == 0
    assert kinds(graph) == before


def test_two_readers_of_one_variable_share_its_rounding():
    build = Builder()
    x = build.input(-1, 4, 8, 8)
    graph = build.graph(*(build.conv(x, build.param(2, 4, 1, 1)) for _ in range(2)))
    assert quantize(graph, {"x": 1.0}, layers_of(graph)) == 2
    assert kinds(graph).count("quantize_linear") == 1


def test_simulation_is_the_integer_arithmetic(paddle):
    build = Builder()
    x = build.input(2, 3, 9, 7)
    graph = build.graph(build.conv(x, build.param(5, 3, 3, 3), paddings=[1, 1]))
    filters = next(iter(graph.params.values()))
    scales = filter_scales(filters, "conv2d")
    quantize(graph, {"x": 1.5}, layers_of(graph))
    picture = np.random.default_rng(1).uniform(-2, 2, (2, 3, 9, 7)).astype(np.float32)
    found = paddle.run(graph, picture)
    # Paddle takes -128 too; it clips nothing that the kernels keep.
    steps = np.clip(np.rint(np.pad(picture, ((0, 0), (0, 0), (1, 1), (1, 1))) / 1.5 * STEPS), -128, 127)
    whole = np.rint(filters / scales[:, None, None, None] * STEPS)
    windows = np.lib.stride_tricks.sliding_window_view(steps, (3, 3), axis=(2, 3))
    sums = np.einsum("nchwij,ocij->nohw", windows, whole)
    expected = sums * (scales / STEPS)[None, :, None, None] * (1.5 / STEPS)
    assert np.abs(found - expected).max() < 1e-4


# ------------------------------------------------------------------------------------------------ rewrites


def last_matmul(axis: int = 2) -> Graph:
    build = Builder()
    x = build.conv(build.input(-1, 3, 1, -1), build.param(8, 3, 1, 1))
    build.declare(x, [-1, 8, 1, -1])
    x = build.op("squeeze2", X=x, axes=[2], dims=(-1, 8, -1))
    x = build.op("transpose2", X=x, axis=[0, 2, 1], dims=(-1, -1, 8))
    x = build.op("matmul_v2", X=x, Y=build.param(8, 11), trans_x=False, trans_y=False, dims=(-1, -1, 11))
    return build.graph(build.add(x, build.param(11), axis=axis))


@pytest.mark.parametrize("axis", [2, -1])
def test_last_matmul_becomes_a_convolution_with_the_same_result(paddle, axis):
    graph = last_matmul(axis)
    x = np.random.default_rng(1).normal(size=(2, 3, 1, 10)).astype(np.float32)
    before = paddle.run(graph, x)
    assert convolve_last_matmul(graph) == 1
    assert "matmul_v2" not in kinds(graph)
    assert np.abs(paddle.run(graph, x) - before).max() < 1e-5


def test_matmul_without_a_bias_or_over_higher_pictures_stays():
    assert convolve_last_matmul(small_recognizer()) == 0
    graph = last_matmul()
    squeezed = next(op for op in graph.ops if op.type == "squeeze2")
    next(v for v in graph.program.blocks[0].vars if v.name == only(squeezed, "X")).type.lod_tensor.tensor.dims[2] = 2
    assert convolve_last_matmul(graph) == 0


def test_hard_swish_in_parts_is_the_same(paddle):
    build = Builder()
    x = build.conv(build.input(-1, 3, 8, 8), build.param(8, 3, 1, 1))
    graph = build.graph(build.op("hard_swish", X=x, threshold=6.0, scale=6.0, offset=3.0))
    picture = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32) * 3
    before = paddle.run(graph, picture)
    assert part_hard_swish(graph) == 1
    assert kinds(graph) == ["conv2d", "hard_sigmoid", "elementwise_mul"]
    gate = next(op for op in graph.ops if op.type == "hard_sigmoid")
    assert attribute(gate, "slope") == pytest.approx(1 / 6)
    assert np.abs(paddle.run(graph, picture) - before).max() < 1e-5


# ------------------------------------------------------------------------------------------------ rounding


def layer_of(filters: np.ndarray, kind: str = "conv2d") -> Layer:
    return Layer("y", kind, "x", filters.shape)


def seen(rng: np.random.Generator, groups: int, values: int) -> np.ndarray:
    """Return correlated inputs, (places, groups, values)."""
    mix = rng.normal(size=(groups, values, values))
    return np.einsum("pgv,gvw->pgw", rng.normal(size=(400, groups, values)), mix) + 1.0


def output_error(filters: np.ndarray, kind: str, groups: int, x: np.ndarray, rounded: Rounded) -> tuple[float, float]:
    """Return the mean squared error of the output: rounded to the nearest, and as given."""
    flat = filters.reshape(groups, -1, x.shape[2]).astype(np.float64)
    wanted = np.einsum("pgv,gov->pgo", x, flat)
    errors = []
    scales = filter_scales(filters, kind)
    nearest = np.rint(filters / scales[:, None, None, None] * STEPS), scales
    for steps, scale in (nearest, (rounded.steps, rounded.scales)):
        made = np.einsum("pgv,gov->pgo", x, (steps * scale[:, None, None, None] / STEPS).reshape(flat.shape))
        error = wanted - made
        errors.append(float(((error - error.mean(axis=0)) ** 2).mean()))
    return errors[0], errors[1]


@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d"])
def test_rounding_by_effect_keeps_the_output_better_than_the_nearest(kind):
    rng = np.random.default_rng(5)
    groups, shape = (6, (6, 1, 3, 3)) if kind == "depthwise_conv2d" else (1, (6, 4, 3, 3))
    filters = rng.normal(size=shape).astype(np.float32)
    x = seen(rng, groups, shape[1] * 9)
    rounded = round_layer(filters, layer_of(filters, kind), outputs(filters, x), x)
    nearest, own = output_error(filters, kind, groups, x, rounded)
    assert own < 0.8 * nearest
    assert rounded.left < 0.01
    assert largest_pairs(rounded.steps.reshape(len(filters), -1).astype(float), kind).max() <= 129


def test_bias_takes_what_the_mean_has_lost():
    rng = np.random.default_rng(5)
    filters = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    x = seen(rng, 1, 3)
    rounded = round_layer(filters, layer_of(filters), outputs(filters, x), x + 0.5)
    made = np.einsum("pgv,ov->po", x + 0.5, (rounded.steps * rounded.scales[:, None, None, None] / STEPS)[:, :, 0, 0])
    wanted = np.einsum("pgv,ov->po", x, filters[:, :, 0, 0])
    assert np.abs((made + rounded.shift - wanted).mean(axis=0)).max() < 1e-6


def test_filters_move_to_make_up_for_what_the_input_has_lost():
    rng = np.random.default_rng(5)
    filters = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    x = seen(rng, 1, 3)
    rounded = round_layer(filters, layer_of(filters), outputs(filters, x), 0.8 * x)
    back = (rounded.steps * rounded.scales[:, None, None, None] / STEPS).reshape(4, 3)
    wanted, made = np.einsum("pgv,ov->po", x, filters[:, :, 0, 0]), np.einsum("pgv,ov->po", 0.8 * x, back)
    assert (wanted - made).std(axis=0).max() < 0.05 * wanted.std(axis=0).min()
    assert rounded.left < 0.002, "0.04 without"


def test_filters_stay_where_moving_them_serves_only_the_places_looked_at():
    rng = np.random.default_rng(5)
    flat = rng.normal(size=(1, 4, 30))
    after = rng.normal(size=(40, 1, 30))
    wanted = np.einsum("pgv,gov->pgo", after, flat) + rng.normal(size=(40, 1, 4))
    assert np.abs(move(flat, wanted, after) - flat).max() < 0.3, "2.4 with a strength of 0.01"


def test_patches_are_what_the_convolution_sees():
    build = Builder()
    conv = build.conv(build.input(1, 2, 6, 5), build.param(3, 2, 3, 3), paddings=[1, 1], strides=[2, 1])
    graph = build.graph(conv)
    (layer,) = layers_of(graph)
    picture = np.arange(60, dtype=np.float32).reshape(1, 2, 6, 5)
    found = patches(picture, graph.ops[1], layer)
    assert found.shape == (3 * 5, 1, 18)
    wide = np.pad(picture, ((0, 0), (0, 0), (1, 1), (1, 1)))
    assert (found[7, 0] == wide[0, :, 2:5, 2:5].reshape(-1)).all()
