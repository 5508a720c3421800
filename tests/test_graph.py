import copy
import math

import numpy as np
import pytest

from agent.errors import ConversionError
from converters.activations import fuse_gelu, fuse_hard_swish
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph, attribute, only, read_params, write_params
from converters.passes import (
    constant_reshapes,
    drop_identities,
    drop_unused,
    fold_batch_norm,
    fold_scale_into_consumer,
    fold_scale_into_producer,
    gate_residuals,
    merge_scales,
    rewrite,
    scalars_to_scale,
)
from converters.passes_x86 import shuffle_upsampling, split_uneven_strides
from converters.targets import X86
from tests.small_graphs import RNG, Builder, Paddle, kinds


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


def image(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def check(paddle, graph, passes, x, *, applied):
    """Run passes on a copy; they apply so often in all, and the output stays the same."""
    changed = copy.deepcopy(graph)
    assert sum(rewrite(changed, passes).values()) == applied
    before, after = paddle.run(graph, x), paddle.run(changed, x)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    return changed


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


# ------------------------------------------------------------------------------------------- activations


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


# ------------------------------------------------------------------------------------------- x86


@pytest.mark.parametrize("strides", [[2, 1], [1, 2], [3, 1]])
@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 8)])
def test_uneven_strides_keep_the_same_rows_and_columns(paddle, strides, height, width):
    build = Builder()
    y = build.conv(
        build.input(2, 4, height, width),
        build.param(4, 1, 3, 3),
        "depthwise_conv2d",
        strides=strides,
        groups=4,
        paddings=[1, 1],
    )
    changed = check(paddle, build.graph(y), [split_uneven_strides], image(2, 4, height, width), applied=1)
    assert attribute(next(op for op in changed.ops if op.type == "depthwise_conv2d"), "strides") == [1, 1]


def test_even_strides_and_full_convolutions_stay():
    build = Builder()
    x = build.input(1, 4, 6, 6)
    y = build.conv(x, build.param(4, 1, 3, 3), "depthwise_conv2d", strides=[2, 2], groups=4)
    y = build.conv(y, build.param(4, 4, 3, 3), strides=[2, 1])
    assert split_uneven_strides(build.graph(y)) == 0


NEAREST = {
    "scale": [2.0, 2.0],
    "align_corners": False,
    "align_mode": 1,
    "interp_method": "nearest",
    "data_layout": "NCHW",
}


def upsampled(build, x, **changed):
    return build.op("nearest_interp_v2", X=x, out_h=-1, out_w=-1, out_d=-1, **{**NEAREST, **changed})


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlargement_by_a_whole_number_becomes_copies(paddle, factor):
    build = Builder()
    y = build.op("relu", X=upsampled(build, build.input(2, 3, 4, 5), scale=[float(factor)] * 2))
    changed = check(paddle, build.graph(y), [shuffle_upsampling], image(2, 3, 4, 5), applied=1)
    assert kinds(changed) == ["unsqueeze2", "concat", "flatten_contiguous_range", "pixel_shuffle", "relu"]


@pytest.mark.parametrize(
    "changed", [{"scale": [2.0, 4.0]}, {"scale": [1.5, 1.5]}, {"align_corners": True}, {"scale": [1.0, 1.0]}]
)
def test_other_enlargements_stay(changed):
    build = Builder()
    assert shuffle_upsampling(build.graph(upsampled(build, build.input(2, 3, 4, 5), **changed))) == 0


# ------------------------------------------------------------------------------------------- files


def a_model():
    build = Builder()
    x = build.norm(build.conv(build.input(-1, 3, -1, -1), build.param(4, 3, 3, 3), paddings=[1, 1]), 4)
    return build.graph(build.op("sigmoid", X=x, dims=(-1, 4, -1, -1)))


def test_a_graph_survives_saving_and_loading(tmp_path):
    graph = a_model()
    graph.save(tmp_path)
    loaded = Graph.load(tmp_path)
    assert loaded.program.SerializeToString() == graph.program.SerializeToString()
    assert loaded.params.keys() == graph.params.keys()
    assert all(np.array_equal(loaded.params[name], value) for name, value in graph.params.items())


def test_rewritten_parameters_that_nobody_uses_are_not_saved(tmp_path):
    graph = a_model()
    rewrite(graph, X86)
    graph.save(tmp_path)
    assert sorted(Graph.load(tmp_path).params) == sorted(n for n in graph.params if ".folded" in n or ".bias" in n)


def damaged(raw, how):
    middle = len(raw) // 2
    return {
        "cut": raw[:middle],
        "empty": b"",
        "long": raw + b"\0",
        "zeros": bytes(len(raw)),
        "noise": b"\xff" * len(raw),
    }[how]


@pytest.mark.parametrize("file", [MODEL_FILE, PARAMS_FILE])
@pytest.mark.parametrize("how", ["cut", "empty", "zeros", "noise"])
def test_a_damaged_file_is_a_conversion_error_that_names_it(tmp_path, file, how):
    a_model().save(tmp_path)
    (tmp_path / file).write_bytes(damaged((tmp_path / file).read_bytes(), how))
    with pytest.raises(ConversionError, match=r"inference\.pd"):
        Graph.load(tmp_path)


def test_a_parameter_file_with_more_than_its_program_says_is_refused(tmp_path):
    a_model().save(tmp_path)
    (tmp_path / PARAMS_FILE).write_bytes(damaged((tmp_path / PARAMS_FILE).read_bytes(), "long"))
    with pytest.raises(ConversionError, match="1 bytes more"):
        Graph.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    a_model().save(tmp_path)
    (tmp_path / PARAMS_FILE).unlink()
    with pytest.raises(ConversionError, match=r"inference\.pdiparams: No such file"):
        Graph.load(tmp_path)


def test_a_length_larger_than_the_file_allocates_nothing(tmp_path):
    raw = bytearray(write_params({"w": np.zeros(3, np.float32)}))
    at = raw.index(bytes([16, 3]))  # field 2 of TensorDesc: dims = 3
    raw[at + 1] = 127
    with pytest.raises(ConversionError, match="ends inside"):
        read_params(bytes(raw), ["w"], tmp_path)


def test_parameters_of_a_type_that_is_not_handled_are_refused(tmp_path):
    raw = write_params({"w": np.zeros(3, np.float32)})
    with pytest.raises(ConversionError, match="data type 4"):
        read_params(raw.replace(bytes([8, 5]), bytes([8, 4]), 1), ["w"], tmp_path)


def test_a_variable_that_is_assigned_twice_is_refused(tmp_path):
    build = Builder()
    x = build.input(1, 2, 3, 3)
    y = build.op("relu", X=x)
    build.op("tanh", X=x)
    build.block.ops[-1].outputs[0].arguments[:] = [y]
    build.graph(y).save(tmp_path)
    with pytest.raises(ConversionError, match="tanh assigns relu_0 again"):
        Graph.load(tmp_path)
