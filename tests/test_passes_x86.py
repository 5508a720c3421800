import pytest

from converters.graph import attribute
from converters.passes_x86 import delay_shuffles, shuffle_transposed_convolutions, split_uneven_strides
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


@pytest.mark.parametrize("strides", [[2, 1], [1, 2], [3, 1]])
@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 8), (-1, -1)])
@pytest.mark.parametrize("window", [3, 5])
def test_uneven_strides_keep_the_same_rows_and_columns(paddle, strides, height, width, window):
    build = Builder()
    x = build.op("relu", X=build.input(2, 4, height, width), dims=(2, 4, height, width))
    slots = {"strides": strides, "groups": 4, "paddings": [window // 2] * 2}
    y = build.conv(x, build.param(4, 1, window, window), "depthwise_conv2d", **slots)
    rows = -1 if height < 0 else -(-height // strides[0])
    build.declare(y, [2, 4, rows, -1])
    given = image(2, 4, abs(height) + 5 * (height < 0), abs(width) + 5 * (width < 0))
    changed = check(paddle, build.graph(y), [split_uneven_strides], given, applied=1)
    assert attribute(next(op for op in changed.ops if op.type == "depthwise_conv2d"), "strides") == [1, 1]
    assert kinds(changed)[-1] == ("split" if strides == [2, 1] and height == 6 else "pool2d")


def test_even_strides_and_full_convolutions_stay():
    build = Builder()
    x = build.input(1, 4, 6, 6)
    y = build.conv(x, build.param(4, 1, 3, 3), "depthwise_conv2d", strides=[2, 2], groups=4)
    y = build.conv(y, build.param(4, 4, 3, 3), strides=[2, 1])
    assert split_uneven_strides(build.graph(y)) == 0


@pytest.mark.parametrize("size", [2, 3])
def test_a_transposed_convolution_without_overlap_becomes_a_shuffle_after_its_bias_and_relu(paddle, size):
    build = Builder()
    y = build.conv(build.input(2, 4, 5, 6), build.param(4, 3, size, size), "conv2d_transpose", strides=[size] * 2)
    build.declare(y, [2, 3, -1, -1])
    y = build.add(y, build.param(3), axis=1)
    build.declare(y, [2, 3, -1, -1])
    y = build.op("relu", X=y, dims=(2, 3, -1, -1))
    passes = [shuffle_transposed_convolutions, delay_shuffles]
    changed = check(paddle, build.graph(y), passes, image(2, 4, 5, 6), applied=3)
    assert kinds(changed) == ["conv2d", "elementwise_add", "relu", "pixel_shuffle"]


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": [1, 1]},
        {"strides": [3, 3]},
        {"strides": [2, 2], "paddings": [1, 1]},
        {"strides": [2, 2], "groups": 2},
        {"strides": [2, 2], "output_padding": [1, 1]},
        {"strides": [2, 2], "padding_algorithm": "SAME"},
    ],
)
def test_other_transposed_convolutions_stay(changed):
    build = Builder()
    y = build.conv(build.input(2, 4, 5, 6), build.param(4, 3, 2, 2), "conv2d_transpose", **changed)
    assert shuffle_transposed_convolutions(build.graph(y)) == 0


def test_a_shuffle_that_others_read_and_an_addition_of_images_stay(paddle):
    build = Builder()
    x = build.input(2, 4, 5, 6)
    wide = build.op("pixel_shuffle", X=x, upscale_factor=2, dims=(2, 1, 10, 12), data_format="NCHW")
    y = build.add(build.op("relu", X=wide), wide)
    check(paddle, build.graph(y), [delay_shuffles], image(2, 4, 5, 6), applied=0)
