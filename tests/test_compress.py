import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.errors import ConfigError, ConversionError, InputError
from converters import compress, export
from converters.compress import kernel_counts
from converters.evaluate import Figures
from converters.export import Request, convert
from converters.graph import Graph
from converters.recipe import Gate, load_recipe
from converters.scores import Scores
from converters.storage import to_steps
from converters.verdict import Pair, failures
from tests.small_graphs import Builder, small_classifier, small_recognizer
from tests.test_export import small_recipe

INT8 = Path(__file__).parents[1] / "models" / "ppocr-v4-int8.toml"
pytestmark = pytest.mark.timeout(300)  # a bundle in int8 takes a minute, and as long again beside other work
SMALL = """
base = "small.toml"
[compress]
method = "ptq"
models = ["det", "rec"]
stored = ["cls"]
smoothed = ["det"]
rounded = ["det"]
rounded_on = 2
seed = 1
windows = 3
window_px = 64
lines = 4
line_px = 64
percentile = 0.9999
float_share = 1.0
max_mismatch = 0.6
pages = 1
[compress.gate]
char_f1 = 1.0
worst_char_f1 = 1.0
car = 1.0
hmean = 1.0
bytes = 1000000
[cls]
folder = "unused"
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
height = 48
width = 192
threshold = 0.9
check_shapes = [[2, 3, 48, 192]]
measure_shape = [1, 3, 48, 192]
"""


def detector() -> Graph:
    """Return a detector with two convolutions and the activation that x86 does not fuse well."""
    build = Builder()
    x = build.add(build.conv(build.input(-1, 3, -1, -1), build.param(8, 3, 3, 3), paddings=[1, 1]), build.param(8), 1)
    x = build.op("hard_swish", X=x, threshold=6.0, scale=6.0, offset=3.0)
    x = build.add(build.conv(x, build.param(1, 8, 1, 1)), build.param(1), axis=1)
    return build.graph(build.op("sigmoid", X=x, dims=(-1, 1, -1, -1)))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with recipes and two small models of the user's own, where bundles are built."""
    folder = tmp_path_factory.mktemp("place")
    detector().save(folder / "own" / "finder")
    small_recognizer().save(folder / "own" / "reader")
    small_classifier().save(folder / "own" / "turner")
    (folder / "own" / "reader" / "dict.txt").write_text("\n".join("0123456789") + "\n", encoding="utf-8")
    small_recipe(folder)
    (folder / "int8.toml").write_text(SMALL, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BUILD", folder / "build")
        yield folder


def converted(place, **changed):
    lines = []
    defaults = {"recipe": place / "int8.toml", "target": "aarch64", "source": place / "own", "measured": False}
    return convert(Request(**{**defaults, **changed}), lines.append), lines


@pytest.fixture(scope="module")
def bundle(place):
    return converted(place)


def test_arm_gets_int8_by_default_and_x86_float(place, bundle):
    made, _ = bundle
    assert (made.manifest.precision, made.manifest.target) == ("int8", "aarch64")
    assert converted(place, target="x86_64")[0].manifest.precision == "fp32"


def test_weights_are_int8_in_the_graph_and_in_the_file(place, bundle):
    made, _ = bundle
    work = place / "build" / ".work" / "ppocr-v4-aarch64-int8"
    graph = Graph.load(work / "det" / "int8" / "aarch64")
    stored = [value for value in graph.params.values() if value.dtype == np.int8]
    assert sorted(value.shape for value in stored) == [(1, 8, 1, 1), (8, 3, 3, 3)]
    file = (made.path / "det.nb").read_bytes()
    assert all(value.tobytes() in file for value in stored)


def test_a_stored_model_is_float_in_the_graph_int8_in_the_file_and_judged(place, bundle):
    made, _ = bundle
    work = place / "build" / ".work" / "ppocr-v4-aarch64-int8"
    params = Graph.load(work / "cls" / "int8" / "aarch64").params
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    files = {"bundle": (made.path / "cls.nb").read_bytes(), "judged": (work / "twin" / "cls.nb").read_bytes()}
    for name in ("w0", "w3", "w6", "w11"):
        whole = to_steps(params[name], 0).whole.tobytes()
        assert all(whole in file for file in files.values())
    assert len(files["bundle"]) < (place / "build" / "ppocr-v4-x86_64-fp32" / "cls.nb").stat().st_size / 2


def test_conversions_from_scratch_give_the_same_bundle(place, bundle, tmp_path):
    made, _ = bundle
    again = converted(place, force=True, output=tmp_path / "out")[0]
    assert again.digest == made.digest


def test_report_says_what_was_done(place, bundle):
    report = json.loads((place / "build" / "ppocr-v4-aarch64-int8-report" / "report.json").read_text())
    (det, _, cls) = report["models"]
    assert (det["model"], det["layers"], det["kept"]) == ("det", 2, {})
    assert det["kernels"]["conv2d int8"] == 2
    assert det["int8_weights"] == 8 * 3 * 3 * 3 + 8
    assert (cls["model"], cls["layers"], cls["errors"], cls["left"]) == ("cls", 0, {}, {})
    assert cls["int8_weights"] == 16 * 27 + 32 * 16 + 32 * 9 + 32 * 32 + 128 * 32 + 128 * 2
    assert {row["why"] for row in report["layers"]["cls"]} == {
        "only its weights' storage is in int8, as the recipe says of this model"
    }
    assert cls["error"] > 100 * cls["mismatch"], "it is computed with in float"
    assert report["failures"] == []
    assert report["pages"][0]["name"] == "drawn"
    assert "paddleslim" in report["versions"]
    text = (place / "build" / "ppocr-v4-aarch64-int8-report" / "report.md").read_text()
    assert "2 convolutions in int8" in text


def test_a_second_conversion_does_nothing_again(place, bundle):
    _, lines = converted(place)
    assert not [line for line in lines if " s  " in line]


def test_int8_for_x86_on_request_holds_the_same_integers(place, bundle, tmp_path):
    made, _ = converted(place, target="x86_64", precision="int8", output=tmp_path / "out")
    assert (made.manifest.precision, made.manifest.target) == ("int8", "x86_64")
    works = [place / "build" / ".work" / f"ppocr-v4-{target}-int8" / "det" for target in ("x86_64", "aarch64")]
    stored = [
        {
            name: value.tobytes()
            for name, value in Graph.load(work / "int8" / target).params.items()
            if value.itemsize == 1
        }
        for work in works
        for target in ("x86_64", "aarch64")
    ]
    assert stored[0]
    assert all(other == stored[0] for other in stored)


def test_a_layer_that_makes_most_of_the_error_stays_in_float(place, bundle, tmp_path, monkeypatch):
    recipe = place / "careful.toml"
    recipe.write_text(SMALL.replace("float_share = 1.0", "float_share = 0.4"), encoding="utf-8")
    monkeypatch.setattr(compress, "_MOST_WEIGHTS", 1.0)
    converted(place, recipe=recipe, output=tmp_path / "out")
    report = json.loads((place / "build" / "ppocr-v4-aarch64-int8-report" / "report.json").read_text())
    kept = report["models"][0]["kept"]
    assert len(kept) >= 1
    assert min(kept.values()) > 0.4


def test_a_layer_with_much_of_the_weights_is_in_int8_all_the_same(place, bundle, tmp_path):
    recipe = place / "bold.toml"
    recipe.write_text(SMALL.replace("float_share = 1.0", "float_share = 0.0"), encoding="utf-8")
    converted(place, recipe=recipe, output=tmp_path / "out")
    report = json.loads((place / "build" / "ppocr-v4-aarch64-int8-report" / "report.json").read_text())
    kept = report["models"][0]["kept"]
    assert list(kept) == [name for name in kept if "conv" in name][:1], "the last one has 8 of 224 weights"


def test_a_bundle_above_a_limit_is_not_written_and_the_report_says_why(place, bundle, tmp_path):
    recipe = place / "strict.toml"
    recipe.write_text(SMALL.replace("bytes = 1000000", "bytes = 10"), encoding="utf-8")
    with pytest.raises(ConversionError, match="bytes, more than 10: no bundle is written"):
        converted(place, recipe=recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text = (place / "build" / "ppocr-v4-aarch64-int8-report" / "report.md").read_text()
    assert "refused: the models have" in text


def test_kernels_that_do_not_follow_the_simulation_are_refused(place, bundle, tmp_path):
    recipe = place / "exact.toml"
    recipe.write_text(SMALL.replace("max_mismatch = 0.6", "max_mismatch = 0.0"), encoding="utf-8")
    twin = place / "build" / ".work" / "ppocr-v4-aarch64-int8" / "det" / "twin" / "det.nb"
    plain = place / "build" / "ppocr-v4-x86_64-fp32" / "det.nb"
    with pytest.MonkeyPatch.context() as patch:
        # A model in float in the place of the twin: it differs from the simulation by all that int8 changes.
        patch.setattr(compress.Compressor, "_build_twin", lambda *_: twin.write_bytes(plain.read_bytes()))
        with pytest.raises(ConversionError, match="differs from its simulation"):
            converted(place, recipe=recipe, output=tmp_path / "out")


def test_labels_that_are_not_there_are_said_before_any_work(place, tmp_path):
    lines = []
    request = Request(recipe=place / "int8.toml", target="aarch64", labels=(tmp_path / "none.jsonl",))
    with pytest.raises(InputError, match=r"none\.jsonl: No such file"):
        convert(request, lines.append)
    assert lines == []


def test_int8_needs_a_recipe_and_a_target_that_can(place, tmp_path):
    with pytest.raises(ConfigError, match=r"small.toml has no \[compress\]"):
        converted(place, recipe=place / "small.toml", precision="int8")
    both = place / "both.toml"
    both.write_text(SMALL.replace('stored = ["cls"]', 'stored = ["cls", "rec"]'), encoding="utf-8")
    with pytest.raises(ConfigError, match="rec in models and in stored"):
        converted(place, recipe=both)
    with pytest.raises(ConfigError, match="for aarch64 and x86_64 only, not portable"):
        converted(place, target="portable", precision="int8")


# ------------------------------------------------------------------------------------------------ in parts


def test_the_shipped_recipe_takes_its_models_from_the_float_one():
    recipe, base = load_recipe(INT8), load_recipe(INT8.with_name("ppocr-v4.toml"))
    assert (recipe.det, recipe.rec, recipe.package) == (base.det, base.rec, base.package)
    assert recipe.compress is not None
    assert base.compress is None


def figures(char_f1: float, car: float | None) -> Figures:
    return Figures("a", Scores(1, 0, char_f1, 0.0, car, None, None, None, 0.0), 1.0, 1.0)


@pytest.mark.parametrize(
    ("after", "total", "said"),
    [
        ((0.9, 0.8), 100, ()),
        ((0.95, 0.9), 100, ()),
        ((0.88, 0.8), 100, ("char_f1 falls by 0.0200 in the mean", "char_f1 falls by 0.0200 on a")),
        ((0.888, 0.8), 100, ("char_f1 falls by 0.0120 in the mean",)),
        ((0.9, 0.7), 100, ("CAR falls by 0.1000",)),
        ((0.9, None), 100, ()),
        ((0.9, 0.8), 101, ("the models have 101 bytes, more than 100",)),
    ],
)
def test_the_gate_names_what_it_does_not_let_through(after, total, said):
    gate = Gate(char_f1=0.01, worst_char_f1=0.015, car=0.05, hmean=0.05, bytes=100)
    settings = msgspec.structs.replace(load_recipe(INT8).compress, gate=gate)
    found = failures((Pair("a", figures(0.9, 0.8), figures(*after)),), total, settings)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_kernels_are_counted_by_operator_and_precision():
    kernels = ["conv2d/def/4/2/1", "conv2d/def/4/1/1", "calib/fp32_to_int8/4/2/1", "elementwise_mul/def/4/1/1"]
    assert kernel_counts(kernels) == {"calib": 1, "conv2d float": 1, "conv2d int8": 1, "elementwise_mul": 1}
