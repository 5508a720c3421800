import pytest

from converters.graph import only
from converters.passes import (
    constant_reshapes,
    drop_identities,
    drop_unused,
    fold_batch_norm,
    fold_scale_into_consumer,
    fold_scale_into_producer,
    merge_scales,
    scalars_to_scale,
)
from tests.small_graphs import Builder, Paddle, check, image, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


# ------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize(
    ("kind", "first"), [("add", True), ("mul", True), ("sub", True), ("div", True), ("add", False)]
)
def test_arithmetic_with_a_one_element_parameter_becomes_scale(paddle, kind, first):
    build = Builder()
    x, w = build.input(1, 4, 5, 5), build.param(1, positive=True)
    y = build.op(f"elementwise_{kind}", X=x if first else w, Y=w if first else x, axis=-1)
    changed = check(paddle, build.graph(y), [scalars_to_scale], image(1, 4, 5, 5), applied=1)
    assert kinds(changed) == ["scale"]


def test_a_constant_minus_a_tensor_keeps_its_sign(paddle):
    build = Builder()
    y = build.op("elementwise_sub", X=build.param(1), Y=build.input(1, 2, 3, 3), axis=-1)
    check(paddle, build.graph(y), [scalars_to_scale], image(1, 2, 3, 3), applied=1)


def test_a_filled_constant_counts_as_a_parameter(paddle):
    build = Builder()
    x = build.input(1, 2, 3, 3)
    half = build.op("fill_constant", dims=(1,), shape=[1], dtype=5, value=0.5, str_value="0.5")
    changed = check(
        paddle, build.graph(build.mul(x, half)), [scalars_to_scale, drop_unused], image(1, 2, 3, 3), applied=2
    )
    assert kinds(changed) == ["scale"]


def test_a_constant_over_a_tensor_stays():
    build = Builder()
    y = build.op("elementwise_div", X=build.param(1, positive=True), Y=build.input(1, 2, 3, 3), axis=-1)
    assert scalars_to_scale(build.graph(y)) == 0


def test_a_parameter_per_channel_is_no_scalar():
    build = Builder()
    assert scalars_to_scale(build.graph(build.mul(build.input(1, 4, 5, 5), build.param(4), axis=1))) == 0


def test_scales_in_a_row_merge_in_either_order_of_bias(paddle):
    build = Builder()
    y = build.scale(build.scale(build.scale(build.input(1, 2, 3, 3), 2.0, 0.5), 3.0, -1.0, after=False), 0.5, 4.0)
    changed = check(paddle, build.graph(y), [merge_scales], image(1, 2, 3, 3), applied=2)
    assert kinds(changed) == ["scale"]


def test_a_scale_that_others_read_does_not_merge(paddle):
    build = Builder()
    first = build.scale(build.input(1, 2, 3, 3), 2.0, 0.5)
    y = build.add(build.scale(first, 3.0), first)
    check(paddle, build.graph(y), [merge_scales], image(1, 2, 3, 3), applied=0)


# ------------------------------------------------------------------------------------------- batch norm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "filters", "changed"),
    [
        ("conv2d", (6, 4, 3, 3), {"paddings": [1, 1]}),
        ("conv2d", (6, 2, 1, 1), {"groups": 2}),
        ("depthwise_conv2d", (4, 1, 3, 3), {"groups": 4, "paddings": [1, 1]}),
        ("conv2d_transpose", (4, 6, 2, 2), {"strides": [2, 2]}),
        ("conv2d_transpose", (4, 3, 2, 2), {"strides": [2, 2], "groups": 2}),
    ],
)
def test_batch_norm_folds_into_each_kind_of_convolution(paddle, kind, filters, changed, bias):
    channels = 4 if kind == "depthwise_conv2d" else 6
    build = Builder()
    x = build.conv(build.input(1, 4, 6, 6), build.param(*filters), kind, **changed)
    x = build.add(x, build.param(channels), axis=1) if bias else x
    result = check(paddle, build.graph(build.norm(x, channels)), [fold_batch_norm], image(1, 4, 6, 6), applied=1)
    assert kinds(result) == [kind, "elementwise_add"]


def test_batch_norm_folds_through_a_bias_shaped_for_broadcasting(paddle):
    build = Builder()
    x = build.add(build.conv(build.input(1, 4, 6, 6), build.param(6, 4, 1, 1)), build.param(1, 6, 1, 1))
    check(paddle, build.graph(build.norm(x, 6)), [fold_batch_norm], image(1, 4, 6, 6), applied=1)


def test_batch_norm_does_not_fold_through_an_addition_along_the_width(paddle):
    build = Builder()
    x = build.add(build.conv(build.input(1, 4, 6, 6), build.param(6, 4, 1, 1)), build.param(6), axis=-1)
    check(paddle, build.graph(build.norm(x, 6)), [fold_batch_norm], image(1, 4, 6, 6), applied=0)


def test_batch_norm_of_a_convolution_that_others_read_stays(paddle):
    build = Builder()
    x = build.conv(build.input(1, 4, 6, 6), build.param(6, 4, 1, 1))
    check(paddle, build.graph(build.add(build.norm(x, 6), x)), [fold_batch_norm], image(1, 4, 6, 6), applied=0)


def test_batch_norm_in_training_mode_stays():
    build = Builder()
    x = build.conv(build.input(1, 4, 6, 6), build.param(6, 4, 1, 1))
    assert fold_batch_norm(build.graph(build.norm(x, 6, is_test=False))) == 0


def test_a_filter_that_two_convolutions_share_is_folded_for_each_alone(paddle):
    build = Builder()
    x, shared = build.input(1, 4, 6, 6), build.param(4, 4, 1, 1)
    y = build.conv(build.norm(build.conv(x, shared), 4), shared)
    changed = check(paddle, build.graph(y), [fold_batch_norm], image(1, 4, 6, 6), applied=1)
    assert len({only(op, "Filter") for op in changed.ops if op.type == "conv2d"}) == 2


def test_a_bias_that_two_additions_share_is_folded_for_each_alone(paddle):
    build = Builder()
    x, shared = build.input(1, 4, 6, 6), build.param(4)
    first = build.norm(build.add(build.conv(x, build.param(4, 4, 1, 1)), shared, axis=1), 4)
    y = build.add(build.conv(first, build.param(4, 4, 1, 1)), shared, axis=1)
    check(paddle, build.graph(y), [fold_batch_norm], image(1, 4, 6, 6), applied=1)


# ------------------------------------------------------------------------------------------- scales and weights


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_a_scale_folds_into_the_convolution_before_it(paddle, bias, shift):
    build = Builder()
    x = build.conv(build.input(1, 4, 6, 6), build.param(6, 4, 3, 3), paddings=[1, 1])
    x = build.add(x, build.param(6), axis=1) if bias else x
    changed = check(
        paddle, build.graph(build.scale(x, 0.3, shift)), [fold_scale_into_producer], image(1, 4, 6, 6), applied=1
    )
    assert "scale" not in kinds(changed)


def test_a_scale_folds_into_a_matmul_and_its_bias(paddle):
    build = Builder()
    x = build.op("matmul_v2", X=build.input(1, 2, 3, 4), Y=build.param(4, 5), trans_x=False, trans_y=False)
    y = build.scale(build.add(x, build.param(5)), 0.3, 2.0)
    changed = check(paddle, build.graph(y), [fold_scale_into_producer], image(1, 2, 3, 4), applied=1)
    assert kinds(changed) == ["matmul_v2", "elementwise_add"]


def test_a_shift_after_a_matmul_without_bias_stays_and_its_factor_goes_once(paddle):
    build = Builder()
    x = build.op("matmul_v2", X=build.input(1, 2, 3, 4), Y=build.param(4, 5), trans_x=False, trans_y=False)
    changed = check(
        paddle, build.graph(build.scale(x, 0.3, 2.0)), [fold_scale_into_producer], image(1, 2, 3, 4), applied=1
    )
    assert kinds(changed) == ["matmul_v2", "scale"]


def test_a_scale_of_a_tensor_that_others_read_does_not_fold_back(paddle):
    build = Builder()
    x = build.conv(build.input(1, 4, 6, 6), build.param(4, 4, 1, 1))
    y = build.add(build.scale(x, 0.3, 0.1), x)
    check(paddle, build.graph(y), [fold_scale_into_producer], image(1, 4, 6, 6), applied=0)


def test_a_shift_folds_into_the_unpadded_convolution_after_it(paddle):
    build = Builder()
    x = build.scale(build.input(1, 4, 6, 6), 0.3, 0.7)
    y = build.add(build.conv(x, build.param(6, 2, 1, 1), groups=2), build.param(6), axis=1)
    changed = check(paddle, build.graph(y), [fold_scale_into_consumer], image(1, 4, 6, 6), applied=1)
    assert "scale" not in kinds(changed)


@pytest.mark.parametrize("padding", [{"paddings": [1, 1]}, {"padding_algorithm": "SAME"}])
def test_a_shift_does_not_fold_into_a_padded_convolution(paddle, padding):
    build = Builder()
    x = build.scale(build.input(1, 4, 6, 6), 0.3, 0.7)
    y = build.add(build.conv(x, build.param(6, 4, 3, 3), **padding), build.param(6), axis=1)
    check(paddle, build.graph(y), [fold_scale_into_consumer], image(1, 4, 6, 6), applied=0)


def test_a_factor_alone_folds_into_padded_convolutions_that_share_a_filter(paddle):
    build = Builder()
    x, shared = build.scale(build.input(1, 4, 6, 6), 0.3), build.param(4, 4, 3, 3)
    y = build.add(build.conv(x, shared, paddings=[1, 1]), build.conv(x, shared, paddings=[1, 1]))
    changed = check(paddle, build.graph(y), [fold_scale_into_consumer], image(1, 4, 6, 6), applied=1)
    assert "scale" not in kinds(changed)


def test_a_scale_that_something_else_reads_too_does_not_fold_forward(paddle):
    build = Builder()
    x = build.scale(build.input(1, 4, 6, 6), 0.3)
    y = build.add(build.conv(x, build.param(4, 4, 1, 1)), x)
    check(paddle, build.graph(y), [fold_scale_into_consumer], image(1, 4, 6, 6), applied=0)


# ------------------------------------------------------------------------------------------- less to do


def test_what_does_nothing_is_removed_even_as_the_output(paddle):
    build = Builder()
    x = build.op("relu", X=build.input(1, 2, 3, 3))
    x = build.op("assign", X=x)
    y = build.scale(build.op("relu", X=x), 1.0)
    changed = check(paddle, build.graph(y), [drop_identities], image(1, 2, 3, 3), applied=2)
    assert kinds(changed) == ["relu", "relu"]


def test_dropout_that_scales_at_inference_stays():
    build = Builder()
    x = build.op("relu", X=build.input(1, 2, 3, 3))
    y = build.op("dropout", X=x, dropout_implementation="downgrade_in_infer", is_test=True, dropout_prob=0.5)
    assert drop_identities(build.graph(y)) == 0


def reshaped(lengths, shape):
    build = Builder()
    x = build.op("relu", X=build.input(1, 4, 2, -1))
    tensors = []
    for n in lengths:
        if n is None:
            size = build.op("shape", Input=x)
            tensors.append(build.op("slice", Input=size, axes=[0], starts=[3], ends=[4], infer_flags=[1]))
        else:
            tensors.append(build.op("fill_constant", dims=(1,), shape=[1], dtype=3, value=float(n), str_value=str(n)))
    return build.graph(build.op("reshape2", X=x, ShapeTensor=tensors, shape=shape))


@pytest.mark.parametrize(
    ("lengths", "shape", "applied"),
    [
        ((1, 8, None), [1, 8, -1], 1),
        ((0, 8, None), [0, 8, -1], 1),
        ((1, 4, None), [1, 8, -1], 0),  # a constant that is not the attribute's
        ((1, None, None), [1, 2, -1], 0),  # a free length where the attribute has a number
        ((None, 8, None), [-1, 8, -1], 0),  # two free lengths
        ((1, 8), [1, 8, -1], 0),
    ],
)
def test_shape_tensors_go_only_where_the_attribute_says_the_same(lengths, shape, applied):
    graph = reshaped(lengths, shape)
    assert constant_reshapes(graph) == applied
    drop_unused(graph)
    assert ("fill_constant" in kinds(graph)) is not bool(applied)


def test_operators_that_nobody_reads_are_removed_with_what_fed_them():
    build = Builder()
    x = build.input(1, 2, 3, 3)
    build.op("relu", X=build.op("sigmoid", X=x))
    graph = build.graph(build.op("tanh", X=x))
    assert drop_unused(graph) == 2
    assert kinds(graph) == ["tanh"]
