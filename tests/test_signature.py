import pytest

from agent.errors import ConversionError, InputError
from converters.signature import check_characters, check_output, signature
from tests.small_graphs import Builder


def with_output(*dims, **names):
    build = Builder()
    x = build.input(-1, names.get("channels", 3), -1, -1)
    return build.graph(build.op("relu", X=x, dims=dims))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (with_output(-1, 7, -1, -1), r"output has shape \(\?, 7, \?, \?\); expected"),
        (with_output(-1, -1), None),
        (with_output(-1, 5), r"output has shape \(\?, 5\)"),
        (with_output(-1, -1, -1), "declares its number of classes"),
        (with_output(-1, 1, -1, -1, channels=1), r"input x has shape \(\?, 1, \?, \?\), expected \(N, 3, H, W\)"),
    ],
)
def test_a_graph_that_is_no_ocr_model_is_refused_with_its_shape(graph, message):
    if message is None:
        assert signature(graph, "model").kind == "cls"
        return
    with pytest.raises(ConversionError, match=message):
        signature(graph, "model")


def test_several_inputs_or_outputs_are_refused():
    build = Builder()
    x = build.input(-1, 3, -1, -1)
    y = build.op("relu", X=x, dims=(-1, 1, -1, -1))
    graph = build.graph(y, y)
    with pytest.raises(ConversionError, match="has 2 outputs"):
        signature(graph, "model")
    graph.ops[0].outputs[0].arguments[:] = ["a"]
    graph.ops.add().CopyFrom(graph.ops[0])
    with pytest.raises(ConversionError, match="has 2 inputs"):
        signature(graph, "model")


@pytest.mark.parametrize("count", [9, 12])
def test_a_dictionary_that_does_not_fit_is_refused(tmp_path, count):
    path = tmp_path / "dict.txt"
    path.write_text("x\n" * count, encoding="utf-8")
    with pytest.raises(ConversionError, match=f"{count} characters do not fit a recogniser of 12 classes"):
        check_characters(path, 12)


@pytest.mark.parametrize(("count", "end"), [(10, "\n"), (11, "\n"), (10, ""), (11, "\r\n")])
def test_a_dictionary_fits_with_and_without_the_space(tmp_path, count, end):
    path = tmp_path / "dict.txt"
    path.write_text("\n".join("x" * count) + end, encoding="utf-8")
    check_characters(path, 12)


def test_a_dictionary_that_is_missing_or_not_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        check_characters(tmp_path / "none.txt", 12)
    (tmp_path / "dict.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConversionError, match="not UTF-8"):
        check_characters(tmp_path / "dict.txt", 12)


@pytest.mark.parametrize(
    ("kind", "out"),
    [("det", (2, 1, 32, 60)), ("det", (1, 1, 32, 64)), ("rec", (1, 16, 12)), ("rec", (2, 12)), ("cls", (2, 3))],
)
def test_an_output_of_another_shape_than_its_kind_promises_is_refused(kind, out):
    with pytest.raises(ConversionError, match=r"input \(2, 3, 32, 64\) gives output"):
        check_output(kind, (2, 3, 32, 64), out, "model")


@pytest.mark.parametrize(("kind", "out"), [("det", (2, 1, 32, 64)), ("rec", (2, 16, 12)), ("cls", (2, 2))])
def test_an_output_of_the_right_shape_passes(kind, out):
    check_output(kind, (2, 3, 32, 64), out, "model")
