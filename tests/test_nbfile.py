import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flatbuffers.builder import Builder

from agent.errors import ConversionError
from converters import native
from converters.graph import Graph
from converters.nbcontent import FLOATS, Attribute, Block, NbFile, Operator, Parameter, Program, Values
from converters.nbfile import end_in_zeros, read_nb, write_nb
from converters.quantize import layers_of, quantize
from converters.storage import round_stored
from tests.small_graphs import small_classifier, small_detector, small_recognizer

SHAPES = {"det": (1, 3, 64, 64), "rec": (1, 3, 48, 64), "cls": (2, 3, 48, 192)}


def in_int8(graph: Graph) -> Graph:
    """Return a graph with its convolutions in int8 and the rest rounded to what a file can store."""
    layers = layers_of(graph)
    quantize(graph, {layer.source: 3.0 for layer in layers}, layers)
    round_stored(graph)
    return graph


GRAPHS = {"det": small_detector, "rec": small_recognizer, "cls": small_classifier}


class Kit:
    """Builds and runs files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self, graph: Graph, name: str, target: str = "x86_64", *, plan: bool = False, compacted: bool = False):
        graph.save(self.folder / name)
        out = self.folder / f"{name}-{target}"
        how = {"target": target, "plan": plan, "compacted": compacted}
        native.run("build_lite", name, source=self.folder / name, out=out, **how)
        return out.with_name(f"{out.name}.nb")

    def run(self, file: Path, shape) -> np.ndarray:
        """Return what the real predictor answers on noise."""
        out = self.folder / "outputs.npz"
        native.run("infer", file.name, engine="paddlelite", files=[file], shapes=[shape], out=out)
        with np.load(out) as archive:
            return archive[archive.files[0]]


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    return Kit(tmp_path_factory.mktemp("nb"))


@pytest.fixture(scope="module")
def file(kit):
    return kit.build(small_detector(), "whole")


# ------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("int8", [False, True])
def test_a_file_written_again_is_smaller_and_answers_bit_by_bit_the_same(kit, name, int8):
    graph = in_int8(GRAPHS[name]()) if int8 else GRAPHS[name]()
    file = kit.build(graph, f"{name}{int8}")
    again = file.with_suffix(".again.nb")
    write_nb(read_nb(file), again)
    assert read_nb(again) == read_nb(file)
    assert again.stat().st_size < file.stat().st_size
    assert kit.run(again, SHAPES[name]).tobytes() == kit.run(file, SHAPES[name]).tobytes()


def test_writing_does_not_depend_on_how_often_a_file_went_round(file, tmp_path):
    once, twice = tmp_path / "once.nb", tmp_path / "twice.nb"
    write_nb(read_nb(file), once)
    write_nb(read_nb(once), twice)
    assert once.read_bytes() == twice.read_bytes()


def test_what_a_file_says_is_what_the_graph_says(kit):
    graph = small_classifier()
    content = read_nb(kit.build(graph, "said", "aarch64"))
    (block,) = content.program.blocks
    assert content.optimizer == "v2.13-rc"
    assert [op.kind for op in block.operators][:2] == ["feed", "conv2d"]
    arrays = {parameter.name: parameter.array() for parameter in content.parameters}
    filters = {name: value for name, value in graph.params.items() if value.ndim == 4}
    assert len(filters) == 5
    assert all(np.array_equal(arrays[name], value) for name, value in filters.items())


# ------------------------------------------------------------------------------------------------ the same bytes


@pytest.mark.parametrize("target", ["x86_64", "aarch64"])
@pytest.mark.parametrize(("int8", "plan"), [(False, False), (False, True), (True, False)])
def test_two_builds_have_the_same_bytes(kit, target, int8, plan):
    found = set()
    for _ in range(3):
        graph = small_classifier()
        graph.params = {
            name: np.cos(np.arange(v.size, dtype=np.float32)).reshape(v.shape) for name, v in graph.params.items()
        }
        graph = in_int8(graph) if int8 else graph
        found.add(kit.build(graph, "twice", target, plan=plan, compacted=int8).read_bytes())
    assert len(found) == 1


def test_zeros_follow_the_version(file, tmp_path):
    raw = file.read_bytes()
    assert raw[2:18] == b"v2.13-rc".ljust(16, b"\0")
    other = tmp_path / "other.nb"
    other.write_bytes(raw[:11] + b"garbage" + raw[18:])
    assert read_nb(other) == read_nb(file)
    end_in_zeros(other)
    assert other.read_bytes() == raw


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("length", [0, 1, 17, 25, 26, 40, 500, -1, -300])
def test_a_cut_file_is_refused(file, tmp_path, length):
    cut = tmp_path / "cut.nb"
    cut.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ConversionError, match=r"cut\.nb: damaged, or not a file of Paddle Lite"):
        read_nb(cut)


def test_a_longer_file_and_another_kind_are_refused(file, tmp_path):
    other = tmp_path / "other.nb"
    for raw in (file.read_bytes() + b"\0", b"PK\3\4" + bytes(500), b"\1\0" + file.read_bytes()[2:]):
        other.write_bytes(raw)
        with pytest.raises(ConversionError, match="not a file of Paddle Lite"):
            read_nb(other)
    with pytest.raises(ConversionError, match=r"none\.nb: No such file"):
        read_nb(tmp_path / "none.nb")
    other.write_bytes(b"short")
    with pytest.raises(ConversionError, match="not a file of Paddle Lite"):
        end_in_zeros(other)


def test_changed_bytes_are_refused_or_read_but_nothing_else_happens(file, tmp_path):
    raw, dice, other = file.read_bytes(), random.Random(4), tmp_path / "other.nb"
    refused = 0
    for _ in range(1500):
        changed = bytearray(raw)
        for _ in range(dice.choice([1, 4])):
            changed[dice.randrange(len(raw))] = dice.choice([0, 1, 127, 255, dice.randrange(256)])
        other.write_bytes(changed)
        try:
            for parameter in read_nb(other).parameters:
                parameter.array()
        except ConversionError:
            refused += 1
    assert 300 < refused < 1500


def test_a_field_that_is_not_known_is_refused(file, tmp_path):
    content, other = read_nb(file), tmp_path / "other.nb"
    write_nb(content, other)
    builder = Builder(64)
    builder.StartObject(3)
    builder.PrependInt32Slot(2, 7, 0)  # a program's map of operators' versions
    builder.Finish(builder.EndObject())
    table, raw = bytes(builder.Output()), other.read_bytes()
    length = int.from_bytes(raw[18:26], "little")
    other.write_bytes(raw[:18] + len(table).to_bytes(8, "little") + table + raw[26 + length :])
    with pytest.raises(ConversionError, match="Program with an unknown field"):
        read_nb(other)


def test_a_parameter_with_too_few_numbers_is_refused():
    shape = np.array([2, 3], "<i8").tobytes()
    for dtype, data in ((5, bytes(20)), (99, bytes(24)), (5, None)):
        with pytest.raises(ConversionError, match=r"parameter w: \d+ bytes of kind \d+ are not 2x3 numbers"):
            Parameter(None, "w", 1, Values(0, None, shape, dtype, data)).array()
    assert Parameter(None, "w", 1, Values(0, None, shape, 5, bytes(24))).array().shape == (2, 3)


def test_files_can_be_read_without_paddle():
    code = "import sys, converters.nbfile; sys.exit(bool({'paddle', 'paddlelite'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_attributes_are_written_once(tmp_path):
    attribute = Attribute("numbers", FLOATS, floats=np.arange(1000, dtype=np.float32).tobytes())
    sizes = []
    for count in (1, 50):
        block = Block(0, -1, operators=(Operator("conv2d", attributes=(attribute,)),) * count)
        write_nb(NbFile("v1", Program((block,)), ()), tmp_path / "many.nb")
        sizes.append((tmp_path / "many.nb").stat().st_size)
        assert read_nb(tmp_path / "many.nb").program.blocks == (block,)
    assert sizes[1] - sizes[0] == 4 * 50 - 4, "pointers only"
