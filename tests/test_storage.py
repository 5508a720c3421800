import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from converters.graph import Graph, only
from converters.nbcontent import NbFile, Parameter
from converters.nbfile import read_nb, write_nb
from converters.params import DTYPES, NUMBERS
from converters.quantize import STEPS, layers_of
from converters.storage import LEAST, compact, from_steps, round_stored, store, to_steps
from tests.small_graphs import Builder, small_classifier
from tests.test_nbfile import GRAPHS, SHAPES, Kit, in_int8

FLOAT32 = np.finfo(np.float32)
WEIGHTS = arrays.arrays(
    np.float32,
    st.sampled_from([(2, 3), (3, 2, 2, 1), (4, 1, 3, 3)]),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return Kit(tmp_path_factory.mktemp("storage"))


# ------------------------------------------------------------------------------------------------ steps


@given(weights=WEIGHTS, axis=st.sampled_from([0, 1]))
@example(weights=np.array([[FLOAT32.max, 1.0], [-FLOAT32.max, 0.0]], np.float32), axis=0)
@example(weights=np.array([[FLOAT32.tiny, 127 * FLOAT32.tiny], [FLOAT32.smallest_subnormal, -0.0]], np.float32), axis=0)
@example(weights=np.array([[126.99999, 1.0], [-128.0, 0.50000006]], np.float32), axis=1)
def test_what_was_rounded_gives_the_same_steps_and_floats_again(weights, axis):
    steps = to_steps(weights, axis)
    assert (steps.whole.dtype, steps.sizes.dtype) == (np.int8, np.float32)
    floats = from_steps(steps, axis)
    assert floats.dtype == np.float32
    assert np.isfinite(floats).all()
    again = to_steps(floats, axis)
    assert again.whole.tobytes() == steps.whole.tobytes()
    assert again.sizes.tobytes() == steps.sizes.tobytes()
    assert from_steps(again, axis).tobytes() == floats.tobytes()


def test_steps_are_exact_for_many_sizes_of_every_kind():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**31, (200_000, 2), np.uint32) | (rng.integers(0, 2, (200_000, 2), np.uint32) << 31)
    weights = bits.view(np.float32)
    weights = weights[np.isfinite(weights).all(axis=1)]
    steps = to_steps(weights, 0)
    exact = steps.whole.astype(np.float64) * steps.sizes.astype(np.float64)[:, None]
    assert (from_steps(steps, 0) == exact).all(), "no product is rounded"
    again = to_steps(from_steps(steps, 0), 0)
    assert (again.whole == steps.whole).all()
    assert (again.sizes == steps.sizes).all()


@given(weights=arrays.arrays(np.float32, (3, 8), elements=st.floats(-8, 8, width=32)))
def test_values_are_within_half_a_step_and_the_largest_is_127(weights):
    steps, largest = to_steps(weights, 0), np.abs(weights).max(axis=1)
    assert (np.abs(from_steps(steps, 0) - weights) <= steps.sizes[:, None] * 0.502).all()
    assert (np.abs(steps.whole).max(axis=1)[largest > 1e-30] == STEPS).all()
    assert np.allclose(steps.sizes[largest > 1e-30] * STEPS, largest[largest > 1e-30], rtol=2e-5)


def test_channels_of_zeros_stay_zeros():
    steps = to_steps(np.zeros((2, 300), np.float32), 0)
    assert (from_steps(steps, 0) == 0.0).all()
    assert (steps.sizes == 1.0).all()


# ------------------------------------------------------------------------------------------------ in a graph


def test_weights_of_convolutions_and_matmuls_are_rounded_by_output_channel():
    graph = small_classifier()
    before = {name: value.copy() for name, value in graph.params.items()}
    sizes = [value.size for value in before.values() if value.ndim > 1]
    assert round_stored(graph) == sum(sizes)
    for op in graph.ops:
        name = only(op, "Y") if op.type == "matmul_v2" else only(op, "Filter")
        if name in before:
            axis = int(op.type == "matmul_v2")
            assert (graph.params[name] == from_steps(to_steps(before[name], axis), axis)).all()
            assert (graph.params[name] != before[name]).any()


def test_small_shared_turned_and_unbounded_weights_are_left_alone():
    build = Builder()
    x = build.input(-1, 20, 8, 8)
    shared, small, odd = build.param(20, 20, 1, 1), build.param(15, 17, 1, 1), build.param(17, 20, 1, 1)
    build.params[odd][3] = np.inf
    x = build.conv(build.conv(x, shared), shared)
    x = build.conv(build.conv(x, odd), small)
    turned = build.op("matmul_v2", X=x, Y=build.param(40, 8), trans_x=False, trans_y=True)
    enlarged = build.conv(build.conv(turned, build.param(20, 20, 2, 2), kind="conv2d_transpose"), build.param(1))
    graph = build.graph(enlarged)
    before = {name: value.copy() for name, value in graph.params.items()}
    assert before[small].size < LEAST
    assert round_stored(graph) == 0
    assert all(np.array_equal(graph.params[name], value) for name, value in before.items())


def test_filters_that_are_int8_already_are_left_alone():
    graph = in_int8(small_classifier())
    assert round_stored(graph) == 32 * 32 + 128 * 2, "the squeeze branch and the matmul"
    assert [op.type for op in graph.ops].count("dequantize_linear") == 2 * len(layers_of(small_classifier()))


# ------------------------------------------------------------------------------------------------ in a file


def dtypes(content: NbFile) -> dict[str, np.dtype]:
    return {parameter.name: DTYPES[parameter.values.dtype] for parameter in content.parameters}


def rounded(graph: Graph) -> Graph:
    round_stored(graph)
    return graph


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_with_stored_weights_answers_as_the_one_with_floats(kit, name):
    graph = rounded(GRAPHS[name]())
    floats, stored = kit.build(graph, "floats"), kit.build(graph, "stored", compacted=True)
    assert stored.stat().st_size < floats.stat().st_size
    assert kit.run(stored, SHAPES[name]).tobytes() == kit.run(floats, SHAPES[name]).tobytes()


def test_weights_are_in_the_file_as_int8(kit):
    graph = rounded(small_classifier())
    for target in ("x86_64", "aarch64"):
        file = kit.build(graph, "bytes", target, compacted=True)
        content, raw = read_nb(file), file.read_bytes()
        for name in ("w0", "w3"):
            steps = to_steps(graph.params[name], 0)
            assert steps.whole.tobytes() in raw
            assert steps.sizes.tobytes() in raw
            assert graph.params[name].tobytes() not in raw
            assert dtypes(content)[name] == np.int8


def test_the_loader_is_told_in_attributes_sorted_by_name(kit):
    content = read_nb(kit.build(rounded(small_classifier()), "told", compacted=True))
    told = next(op for block in content.program.blocks for op in block.operators if op.kind == "conv2d")
    names = [attribute.name for attribute in told.attributes]
    assert names == sorted(names)
    found = {attribute.name: attribute for attribute in told.attributes}
    assert found["quantization_type"].s == "post_weight_channel_wise_abs_max"
    assert found["quantize_weight_bits"].i == 8
    assert len(found["w0_quant_scale"].floats) == 4 * 16


def test_a_matmul_is_stored_where_it_is_fc_and_stays_float_where_it_is_a_matmul(kit):
    build = Builder()
    x = build.conv(build.input(-1, 3, 1, -1), build.param(8, 3, 1, 1))
    build.declare(x, [-1, 8, 1, -1])
    x = build.op(
        "transpose2", X=build.op("squeeze2", X=x, axes=[2], dims=(-1, 8, -1)), axis=[0, 2, 1], dims=(-1, -1, 8)
    )
    x = build.op("matmul_v2", X=x, Y=build.param(8, 40), trans_x=False, trans_y=False, dims=(-1, -1, 40))
    name = build.block.ops[-1].inputs[1].arguments[0]
    graph = rounded(build.graph(build.add(x, build.param(40))))
    kinds = {}
    for target in ("x86_64", "aarch64"):
        content = read_nb(kit.build(graph, "matmul", target, compacted=True))
        (reader,) = (
            op.kind for block in content.program.blocks for op in block.operators for slot in op.inputs
            if name in slot.variables
        )  # fmt: skip
        kinds[reader] = dtypes(content)[name]
    assert kinds == {"matmul_v2": np.float32, "fc": np.int8}


def test_the_loader_multiplies_the_weights_of_fc_likewise(kit):
    graph = rounded(small_classifier())
    # On x86 a matmul becomes the `fc` that it is on ARM in builds with the memory plan only.
    floats, stored = (kit.build(graph, f"fc{c}", plan=True, compacted=c) for c in (False, True))
    (block,) = read_nb(stored).program.blocks
    (fc,) = (op for op in block.operators if op.kind == "fc")
    names = [name for slot in fc.inputs if slot.name == "W" for name in slot.variables]
    assert [dtypes(read_nb(stored))[name] for name in names] == [np.int8]
    assert kit.run(stored, SHAPES["cls"]).tobytes() == kit.run(floats, SHAPES["cls"]).tobytes()


def test_weights_that_steps_do_not_give_back_stay_float(kit):
    file = kit.build(small_classifier(), "unrounded", compacted=True)
    assert set(dtypes(read_nb(file)).values()) == {np.dtype(np.float32)}


def test_weights_that_two_operators_read_stay_float(kit):
    content = read_nb(kit.build(rounded(small_classifier()), "shared"))
    assert dtypes(store(content))["w3"] == np.int8
    (block,) = content.program.blocks
    reader = next(op for op in block.operators if any("w3" in slot.variables for slot in op.inputs))
    block = msgspec.structs.replace(block, operators=(*block.operators, reader))
    twice = msgspec.structs.replace(content, program=msgspec.structs.replace(content.program, blocks=(block,)))
    assert dtypes(store(twice))["w3"] == np.float32
    assert dtypes(store(twice))["w0"] == np.int8


def test_storing_again_changes_nothing(kit):
    file = kit.build(rounded(small_classifier()), "again", compacted=True)
    before = file.read_bytes()
    compact(file)
    assert file.read_bytes() == before


def test_storing_changes_only_the_weights_it_names(kit, tmp_path):
    content = read_nb(kit.build(rounded(small_classifier()), "named"))
    small = store(content)
    for old, new in zip(content.parameters, small.parameters, strict=True):
        if old != new:
            assert floats_of(new, small).tobytes() == old.array().tobytes()
    assert sum(old != new for old, new in zip(content.parameters, small.parameters, strict=True)) == 5
    write_nb(small, tmp_path / "small.nb")
    assert read_nb(tmp_path / "small.nb") == small


def floats_of(parameter: Parameter, content: NbFile) -> np.ndarray:
    """Return stored filters as the loader makes them."""
    assert parameter.values.dtype == NUMBERS[np.dtype(np.int8)]
    (block,) = content.program.blocks
    found = (attribute for op in block.operators for attribute in op.attributes)
    told = next(attribute for attribute in found if attribute.name == f"{parameter.name}_quant_scale")
    sizes, whole = np.frombuffer(told.floats, np.float32), parameter.array()
    return sizes.reshape(-1, 1, 1, 1) * whole.astype(np.float32)
