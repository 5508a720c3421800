import numpy as np
import pytest

from agent.errors import ConversionError
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph
from converters.params import read_params, write_params
from converters.passes import rewrite
from converters.targets import X86
from tests.small_graphs import Builder


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
