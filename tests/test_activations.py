import copy
import math

import numpy as np
import pytest

from converters.activations import fuse_gelu, fuse_hard_swish
from converters.passes import drop_identities, drop_unused, merge_scales, rewrite
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


def relu6(build, x, shift=3.0):
    return build.op("relu6", X=build.scale(x, 1.0, shift), threshold=6.0)


@pytest.mark.parametrize("divide", ["after", "before", "inside", "never"])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_spelled_out_hard_swish_is_recognised(paddle, divide, clipped):
    build = Builder()
    x = build.op("tanh", X=build.scale(build.input(1, 2, 6, 6), 4.0))
    gate = build.op("clip", X=build.scale(x, 1.0, 3.0), min=0.0, max=6.0) if clipped else relu6(build, x)
    gate = build.scale(gate, 1 / 6) if divide == "inside" else gate
    y = build.mul(gate, x) if divide == "before" else build.mul(x, gate)
    y = build.scale(y, 1 / 6) if divide in ("after", "before") else y
    passes = [fuse_hard_swish, drop_unused, merge_scales, drop_identities]
    graph = build.graph(y)
    changed = copy.deepcopy(graph)
    rewrite(changed, passes)
    expected = ["scale", "tanh", "hard_swish"] + ["scale"] * (divide == "never")
    assert kinds(changed) == expected
    given = image(1, 2, 6, 6) * 4
    np.testing.assert_allclose(paddle.run(changed, given), paddle.run(graph, given), atol=1e-5)


@pytest.mark.parametrize(("slope", "applied"), [(1 / 6, 1), (0.2, 0)])
def test_a_hard_sigmoid_times_its_own_input_is_a_hard_swish_with_the_right_slope(paddle, slope, applied):
    build = Builder()
    x = build.op("relu", X=build.input(1, 2, 6, 6))
    y = build.mul(x, build.op("hard_sigmoid", X=x, slope=slope, offset=0.5))
    check(paddle, build.graph(y), [fuse_hard_swish], image(1, 2, 6, 6) * 4, applied=applied)


def test_a_gate_from_another_tensor_is_no_hard_swish(paddle):
    build = Builder()
    x = build.op("tanh", X=build.input(1, 2, 6, 6))
    other = build.op("sigmoid", X=x)
    check(paddle, build.graph(build.mul(x, relu6(build, other))), [fuse_hard_swish], image(1, 2, 6, 6), applied=0)


def test_relu6_with_another_shift_is_no_hard_swish():
    build = Builder()
    x = build.op("tanh", X=build.input(1, 2, 6, 6))
    assert fuse_hard_swish(build.graph(build.mul(x, relu6(build, x, shift=2.0)))) == 0


@pytest.mark.parametrize("half", ["on x", "on gate", "after", "none"])
def test_a_spelled_out_gelu_is_recognised(paddle, half):
    build = Builder()
    x = build.op("tanh", X=build.scale(build.input(1, 2, 6, 6), 3.0))
    erf = build.op("erf", X=build.scale(x, math.sqrt(0.5)))
    gate = build.scale(erf, 0.5, 0.5) if half == "on gate" else build.scale(erf, 1.0, 1.0)
    y = build.mul(build.scale(x, 0.5) if half == "on x" else x, gate)
    y = build.scale(y, 0.5) if half == "after" else y
    graph = build.graph(y)
    changed = copy.deepcopy(graph)
    rewrite(changed, [fuse_gelu, drop_unused, merge_scales, drop_identities])
    assert kinds(changed) == ["scale", "tanh", "gelu"] + ["scale"] * (half == "none")
    given = image(1, 2, 6, 6) * 3
    np.testing.assert_allclose(paddle.run(changed, given), paddle.run(graph, given), atol=1e-5)


def test_erf_of_a_number_not_divided_by_root_two_is_no_gelu():
    build = Builder()
    x = build.op("tanh", X=build.input(1, 2, 6, 6))
    erf = build.op("erf", X=build.scale(x, 0.5))
    assert fuse_gelu(build.graph(build.mul(x, build.scale(erf, 0.5, 0.5)))) == 0
