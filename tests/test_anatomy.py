import msgspec
import pytest

from converters import native
from converters.anatomy import Changes, Part, parts
from converters.compress import kernel_counts
from converters.graph import Graph, result
from converters.quantize import layers_of, quantize
from tests.compressed import compressed
from tests.small_graphs import Builder

POOL = {"pooling_type": "avg", "global_pooling": False, "adaptive": True, "data_format": "NCHW"}


def layer(build: Builder, x: str, out: int, read: int) -> str:
    """Add a convolution of 1x1 with a bias."""
    return build.add(build.conv(x, build.param(out, read, 1, 1)), build.param(out), axis=1)


def gated() -> Graph:
    """Return three layers, the middle one with a squeeze branch after it, and a transposed convolution."""
    build = Builder()
    x = layer(build, build.input(-1, 3, -1, -1), 8, 3)
    x = layer(build, build.op("swish", X=x, beta=1.0), 8, 8)
    small = build.op("pool2d", X=x, ksize=[1, 1], strides=[1, 1], paddings=[0, 0], dims=(-1, 8, 1, 1), **POOL)
    gate = build.op("hard_sigmoid", X=layer(build, small, 8, 8), slope=0.2, offset=0.5, dims=(-1, 8, 1, 1))
    x = layer(build, build.mul(x, gate), 8, 8)
    return build.graph(build.conv(x, build.param(8, 4, 2, 2), kind="conv2d_transpose", strides=[2, 2]))


def chained() -> Graph:
    """Return three layers one after the other, with nothing between."""
    build = Builder()
    x = build.input(-1, 3, -1, -1)
    return build.graph(layer(build, layer(build, layer(build, x, 8, 3), 8, 8), 4, 8))


def in_int8(graph: Graph, *left: int) -> Graph:
    """Put all layers of a graph into int8 but some, by number."""
    layers = [layer for number, layer in enumerate(layers_of(graph)) if number not in left]
    quantize(graph, {layer.source: 1.0 for layer in layers}, layers)
    return graph


def found(graph: Graph, work) -> Changes:
    """Return where Paddle Lite changes the type, after a check that this is all of it."""
    graph.save(work / "graph")
    seen = native.run("anatomy.changes", source=work / "graph", out=work / "out")
    counts = kernel_counts(native.run("list_kernels", source=work / "graph", out=work / "again", target="aarch64"))
    assert sum(seen["made"].values()) == counts["calib"]
    return msgspec.convert(seen, Changes)


def test_a_change_is_told_by_the_layer_and_the_operators_that_wrote_the_value(tmp_path):
    made = found(in_int8(gated()), tmp_path).made
    assert made == {"the input": 1, "int8 layer, swish": 1, "elementwise_mul": 1}


def test_layers_in_a_row_hand_on_what_they_have(tmp_path):
    assert found(in_int8(chained()), tmp_path) == Changes({"the input": 1}, handed=2)


def test_a_layer_left_in_float_between_two_makes_one_more_change(tmp_path):
    assert found(in_int8(chained(), 1), tmp_path) == Changes({"the input": 1, "float layer": 1}, handed=0)


def test_a_graph_in_float_has_no_changes(tmp_path):
    chained().save(tmp_path / "graph")
    assert native.run("anatomy.changes", source=tmp_path / "graph", out=tmp_path / "out") == {"made": {}, "handed": 0}


# ------------------------------------------------------------------------------------------------ layers


@pytest.fixture
def rows() -> tuple[Part, ...]:
    """The layers of a graph whose first stays in float for its error, and whose third would but is too large."""
    graph = gated()
    names = [layer.name for layer in layers_of(graph)]
    errors = dict(zip(names, (0.5, 0.1, 0.4), strict=True))
    model = compressed("det", errors=errors, kept={names[0]: 0.5}, left={names[1]: 0.02})
    return parts(model, in_int8(graph, 0), float_share=0.3)


def test_every_operator_with_weights_is_a_layer_in_the_order_of_the_graph(rows):
    convolutions = [op for op in gated().ops if op.type.startswith("conv2d")]
    assert [row.name for row in rows] == [result(op) for op in convolutions]
    assert [row.kind for row in rows] == ["conv2d"] * 4 + ["conv2d_transpose"]
    assert [row.shape for row in rows] == [(8, 3, 1, 1), *[(8, 8, 1, 1)] * 3, (8, 4, 2, 2)]
    assert rows[0].weights == 24


def test_layers_say_why_they_are_in_float(rows):
    assert [row.int8 for row in rows] == [False, True, False, True, False]
    reasons = (
        "it would make 50% of all layers' errors",
        "",
        "it sees one pixel",
        "its weights would show",
        "only conv2d",
    )
    assert all(row.why.startswith(reason) for row, reason in zip(rows, reasons, strict=True))
    assert rows[1].why == ""


def test_shares_are_of_all_layers_and_unknown_where_nothing_was_tried(rows):
    assert [row.share for row in rows] == [pytest.approx(0.5), pytest.approx(0.1), None, pytest.approx(0.4), None]
    assert [row.left for row in rows] == [None, 0.02, None, None, None]


def test_a_layer_without_a_scale_says_that_it_saw_nothing():
    model = compressed("det", errors={"another": 0.1})
    assert "its input is 0" in parts(model, chained(), float_share=0.3)[0].why


def test_layers_of_a_model_that_is_only_stored_say_so():
    assert {row.why for row in parts(compressed("det"), chained(), float_share=0.3)} == {
        "only its weights' storage is in int8, as the recipe says of this model"
    }


def test_a_matmul_with_weights_is_a_layer_and_one_of_two_values_is_not():
    build = Builder()
    x = build.input(-1, 6, 8)
    x = build.op("matmul_v2", X=x, Y=build.param(8, 6), trans_x=False, trans_y=False, dims=(-1, 6, 6))
    graph = build.graph(build.op("matmul_v2", X=x, Y=x, trans_x=False, trans_y=False, dims=(-1, 6, 6)))
    assert [(row.kind, row.shape) for row in parts(compressed("det"), graph, 0.1)] == [("matmul_v2", (8, 6))]
