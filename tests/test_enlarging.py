import pytest

from converters.enlarging import convolve_before_enlarging, shuffle_upsampling
from converters.graph import attribute
from converters.passes import drop_unused
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


NEAREST = {"align_corners": False, "align_mode": 1, "interp_method": "nearest", "data_layout": "NCHW"}


def upsampled(build, x, channels=3, **changed):
    slots = {"out_h": -1, "out_w": -1, "out_d": -1, "scale": [2.0, 2.0], **NEAREST, **changed}
    return build.op("nearest_interp_v2", X=x, dims=(2, channels, -1, -1), **slots)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlargement_by_a_whole_number_becomes_copies(paddle, factor):
    build = Builder()
    y = build.op("relu", X=upsampled(build, build.input(2, 3, 4, 5), scale=[float(factor)] * 2))
    changed = check(paddle, build.graph(y), [shuffle_upsampling], image(2, 3, 4, 5), applied=1)
    assert kinds(changed) == ["unsqueeze2", "concat", "flatten_contiguous_range", "pixel_shuffle", "relu"]


OTHER_ENLARGEMENTS = [{"scale": [2.0, 4.0]}, {"scale": [1.5, 1.5]}, {"align_corners": True}, {"scale": [1.0, 1.0]}]


@pytest.mark.parametrize("changed", OTHER_ENLARGEMENTS)
def test_other_enlargements_stay(changed):
    build = Builder()
    assert shuffle_upsampling(build.graph(upsampled(build, build.input(2, 3, 4, 5), **changed))) == 0


SAME = {"paddings": [1, 1]}


@pytest.mark.parametrize("factors", [(2,), (4,), (2, 1), (1, 2), (8, 4, 2, 1), (4, 1, 2, 1)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 24)])
def test_a_convolution_of_enlarged_images_is_done_at_their_own_size(paddle, factors, height, width):
    build = Builder()
    x = build.op("relu", X=build.input(2, 3, height, width), dims=(2, 3, height, width))
    parts = []
    for factor in factors:
        window = {"ksize": [factor] * 2, "strides": [factor] * 2, "paddings": [0, 0], "pooling_type": "avg"}
        small = build.op("pool2d", X=x, dims=(2, 3, -1, -1), padding_algorithm="EXPLICIT", **window)
        parts.append(upsampled(build, small, scale=[float(factor)] * 2) if factor > 1 else small)
    joined = build.op("concat", X=parts, axis=1) if len(parts) > 1 else parts[0]
    y = build.conv(joined, build.param(5, 3 * len(parts), 3, 3), **SAME)
    build.declare(y, [2, 5, -1, -1])
    changed = check(paddle, build.graph(y), [convolve_before_enlarging], image(2, 3, height, width), applied=1)
    drop_unused(changed)
    wide = [attribute(op, "scale")[0] for op in changed.ops if op.type == "nearest_interp_v2"]
    assert wide == [factor / 2 for factor in factors if factor > 2]


def test_an_enlarged_image_that_others_read_is_convolved_as_it_is(paddle):
    build = Builder()
    wide = upsampled(build, build.op("relu", X=build.input(2, 3, 4, 5), dims=(2, 3, 4, 5)))
    y = build.add(build.conv(wide, build.param(3, 3, 3, 3), **SAME), wide)
    check(paddle, build.graph(y), [convolve_before_enlarging], image(2, 3, 4, 5), applied=0)


@pytest.mark.parametrize(
    "changed",
    [{"paddings": [0, 0]}, {"strides": [2, 2], **SAME}, {"dilations": [2, 2], **SAME}, {"padding_algorithm": "SAME"}],
)
def test_other_convolutions_of_enlarged_images_stay(changed):
    build = Builder()
    y = build.conv(upsampled(build, build.input(2, 3, 4, 5)), build.param(3, 3, 3, 3), **changed)
    assert convolve_before_enlarging(build.graph(y)) == 0


@pytest.mark.parametrize("changed", [*OTHER_ENLARGEMENTS, {"scale": [3.0, 3.0]}])
def test_convolutions_of_other_enlargements_stay(changed):
    build = Builder()
    y = build.conv(upsampled(build, build.input(2, 3, 4, 5), **changed), build.param(3, 3, 3, 3), **SAME)
    assert convolve_before_enlarging(build.graph(y)) == 0
