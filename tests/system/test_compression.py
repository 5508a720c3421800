"""The whole way to int8 with the official detector, on a budget of a few pictures and steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.errors import ConversionError
from converters import compress, export
from converters.export import Request, convert
from converters.graph import Graph
from converters.quantize import layers_of
from converters.recipe import load_recipe
from converters.sources import collect

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "models"
TINY = """
base = "base.toml"
[compress]
method = "qat"
models = ["det"]
smoothed = ["det"]
rounded = ["det"]
rounded_on = 2
seed = 1
windows = 3
window_px = 160
lines = 4
line_px = 64
percentile = 0.9999
float_share = 0.5
max_mismatch = 0.9
pages = 2
[compress.prune]
models = ["det"]
multiply_adds = 0.8
most = 0.5
crops = 3
crop_px = 160
[compress.train]
models = ["det"]
steps = 2
batch = 1
crop_px = 96
rate = 2e-4
[compress.gate]
char_f1 = 0.03
worst_char_f1 = 0.03
car = 0.05
hmean = 0.05
bytes = 20_000_000
"""

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the official models and a recipe of few pictures, where bundles are built."""
    folder = tmp_path_factory.mktemp("chain")
    collect(load_recipe(RECIPES / "ppocr-v4.toml"), folder / "own", None, None)
    shutil.copyfile(RECIPES / "ppocr-v4.toml", folder / "base.toml")
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BUILD", folder / "build")
        yield folder


def converted(place, recipe="tiny.toml", **changed):
    lines = []
    options = {"recipe": place / recipe, "target": "aarch64", "source": place / "own", "measured": False, **changed}
    return convert(Request(**options), lines.append), lines


@pytest.fixture(scope="module")
def bundle(place):
    return converted(place)[0]


@pytest.fixture(scope="module")
def work(place, bundle):
    return place / "build" / ".work" / "ppocr-v4-aarch64-int8" / "det"


def report(place):
    return json.loads((place / "build" / "ppocr-v4-aarch64-int8-report" / "report.json").read_text())


def test_channels_are_really_fewer(work, place):
    whole, slim = Graph.load(work / "folded"), Graph.load(work / "slim")
    (det,) = report(place)["models"]
    assert det["channels"]
    for name, (before, after) in det["channels"].items():
        assert (whole.params[name].shape[0], slim.params[name].shape[0]) == (before, after)
        assert after < before
    before, after = det["multiply_adds"]
    assert 0.75 * before < after <= 0.8 * before
    assert sum(v.size for v in slim.params.values()) < sum(v.size for v in whole.params.values())


def test_weights_are_really_int8_and_pairs_do_not_overflow(work, bundle):
    graph = Graph.load(work / "int8" / "aarch64")
    stored = {name: value for name, value in graph.params.items() if value.dtype == np.int8}
    assert len(stored) >= len(layers_of(Graph.load(work / "smooth"))) - 5
    file = (bundle.path / "det.nb").read_bytes()
    assert all(value.tobytes() in file for value in stored.values())


def test_outputs_stay_close_to_the_teacher(place, bundle):
    (det,) = report(place)["models"]
    assert det["error"] < 0.02
    assert det["mismatch"] < 0.9 * det["error"]
    assert det["trained"]["after"] <= det["trained"]["before"]
    (drawn,) = report(place)["pages"]
    assert drawn["after"]["scores"]["char_f1"] > 0.6


def test_the_gate_bites_on_scales_that_are_sixteen_times_too_large(place, bundle, tmp_path, monkeypatch):
    # Four times too large, a quarter of the steps are left, and rounding makes up for that on these pages.
    scale = compress.Compressor._scale

    def ruin(compressor, model):
        scale(compressor, model)
        scales = json.loads(model.scales.read_text())
        model.scales.write_text(json.dumps({name: 16 * value for name, value in scales.items()}))

    monkeypatch.setattr(compress.Compressor, "_scale", ruin)
    with pytest.raises(ConversionError, match=r"char_f1 falls by .*hmean falls by"):
        converted(place, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert any("hmean" in failure for failure in report(place)["failures"])
