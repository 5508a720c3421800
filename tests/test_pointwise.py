import pytest

from converters.graph import Graph
from converters.pointwise import merge_pointwise
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    running = Paddle(tmp_path_factory.mktemp("pointwise"))
    yield running
    running.close()


def pair(middle: int, *, biased: bool = True, read_twice: bool = False, **changed: object) -> Graph:
    """Return 3 -> middle -> 4 channels by two convolutions of one pixel."""
    build = Builder()
    x = build.conv(build.input(-1, 3, -1, -1), build.param(middle, 3, 1, 1), **changed)
    x = build.add(x, build.param(middle), axis=1) if biased else x
    y = build.add(build.conv(x, build.param(4, middle, 1, 1)), build.param(4), axis=1)
    return build.graph(build.add(y, build.conv(x, build.param(4, middle, 1, 1))) if read_twice else y)


@pytest.mark.parametrize("biased", [True, False])
def test_two_convolutions_of_one_pixel_become_one(paddle, biased):
    changed = check(paddle, pair(8, biased=biased), (merge_pointwise,), image(1, 3, 5, 4), applied=1)
    assert kinds(changed).count("conv2d") == 1


def test_three_become_one(paddle):
    build = Builder()
    x = build.input(-1, 3, -1, -1)
    for wide, narrow in ((8, 3), (8, 8), (4, 8)):
        x = build.conv(x, build.param(wide, narrow, 1, 1))
    changed = check(paddle, build.graph(x), (merge_pointwise,), image(1, 3, 5, 4), applied=2)
    assert kinds(changed) == ["conv2d"]


def test_a_narrow_middle_stays_because_the_product_would_be_more_to_do(paddle):
    check(paddle, pair(1), (merge_pointwise,), image(1, 3, 5, 4), applied=0)


def test_what_others_read_stays(paddle):
    check(paddle, pair(8, read_twice=True), (merge_pointwise,), image(1, 3, 5, 4), applied=0)


def test_a_border_of_zeros_stays_before_the_bias_of_the_second(paddle):
    check(paddle, pair(8, paddings=[1, 1]), (merge_pointwise,), image(1, 3, 5, 4), applied=0)


def test_strides_stay(paddle):
    check(paddle, pair(8, strides=[2, 2]), (merge_pointwise,), image(1, 3, 5, 4), applied=0)


def test_filters_that_others_share_are_not_changed(paddle):
    build = Builder()
    x, shared = build.input(-1, 4, -1, -1), build.param(4, 4, 1, 1)
    first = build.conv(build.conv(x, shared), build.param(4, 4, 1, 1))
    graph = build.graph(build.add(first, build.op("relu", X=build.conv(x, shared))))
    check(paddle, graph, (merge_pointwise,), image(1, 4, 5, 4), applied=1)
