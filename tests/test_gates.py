import pytest

from converters.gates import gate_residuals, pool_before_expanding
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


def test_a_gated_residual_takes_one_multiplication(paddle):
    build = Builder()
    x = build.op("relu", X=build.input(1, 4, 6, 6))
    pooled = build.op("pool2d", X=x, dims=(1, 4, 1, 1), pooling_type="avg", ksize=[1, 1], global_pooling=True)
    gate = build.op("sigmoid", X=pooled, dims=(1, 4, 1, 1))
    changed = check(
        paddle, build.graph(build.add(x, build.mul(x, gate))), [gate_residuals], image(1, 4, 6, 6), applied=1
    )
    assert kinds(changed).count("elementwise_mul") == 1
    assert "elementwise_add" not in kinds(changed)


def test_a_product_of_two_images_is_no_gate(paddle):
    build = Builder()
    x = build.op("relu", X=build.input(1, 4, 6, 6))
    other = build.op("sigmoid", X=x)
    check(paddle, build.graph(build.add(x, build.mul(x, other))), [gate_residuals], image(1, 4, 6, 6), applied=0)


@pytest.mark.parametrize("averaging", [{"global_pooling": True, "ksize": [2, 2]}, {"adaptive": True, "ksize": [1, 1]}])
def test_an_average_of_an_expanding_convolution_is_taken_before_it(paddle, averaging):
    build = Builder()
    x = build.op("relu", X=build.input(2, 3, 6, 6), dims=(2, 3, 6, 6))
    wide = build.conv(x, build.param(8, 3, 1, 1))
    pooled = build.op("pool2d", X=wide, dims=(2, 8, 1, 1), pooling_type="avg", **averaging)
    y = build.mul(wide, build.op("sigmoid", X=pooled, dims=(2, 8, 1, 1)))
    changed = check(paddle, build.graph(y), [pool_before_expanding], image(2, 3, 6, 6), applied=1)
    assert kinds(changed) == ["relu", "conv2d", "pool2d", "conv2d", "sigmoid", "elementwise_mul"]


@pytest.mark.parametrize(
    ("filters", "conv", "pool"),
    [
        ((8, 3, 3, 3), {"paddings": [1, 1]}, {}),
        ((8, 3, 1, 1), {"strides": [2, 2]}, {}),
        ((8, 3, 1, 1), {"paddings": [1, 1]}, {}),
        ((3, 3, 1, 1), {}, {}),
        ((8, 3, 1, 1), {}, {"pooling_type": "max"}),
        ((8, 3, 1, 1), {}, {"global_pooling": False, "strides": [2, 2]}),
    ],
)
def test_other_averages_are_taken_where_they_are(filters, conv, pool):
    build = Builder()
    x = build.op("relu", X=build.input(2, 3, 6, 6), dims=(2, 3, 6, 6))
    slots = {"pooling_type": "avg", "global_pooling": True, "ksize": [2, 2], **pool}
    y = build.op("pool2d", X=build.conv(x, build.param(*filters), **conv), **slots)
    assert pool_before_expanding(build.graph(y)) == 0
