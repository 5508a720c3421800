import os
import stat
from pathlib import Path

import cv2
import msgspec
import pytest

from converters.anatomy import Changes, Part
from converters.compress import Compressed
from converters.evaluate import Figures
from converters.recipe import load_recipe
from converters.report import Report, markdown, sizes, suspects, told, write_report
from converters.scores import Scores
from converters.verdict import Cost, Pair, Verdict

INT8 = Path(__file__).parents[1] / "models" / "ppocr-v4-int8.toml"


def figures(char_f1: float, car: float | None, hmean: float | None) -> Figures:
    return Figures("a", Scores(17, 0, char_f1, 0.0, car, hmean, None, None, 0.0), 1.0, 1.0)


PAGES = (
    Pair("drawn", figures(0.9111, 0.8111, 0.7111), figures(0.9333, 0.8333, 0.7333), figures(0.9222, 0.8222, 0.7222)),
    Pair("1: mine", figures(0.6111, None, None), figures(0.6033, None, None), figures(0.6022, None, None)),
)
COSTS = (
    Cost("det", "float", 4_000_001, 61.17, 160.4),
    Cost("det", "pruned", 3_000_002, 47.28, 140.6),
    Cost("det", "int8", 1_000_003, 122.34, 301.7),
    Cost("rec", "float", 9_000_004, 20.46, 96.1),
    Cost("rec", "int8", 3_000_005, 30.69, 150.2),
    Cost("cls", "float", 800_006, 1.53, 76.3),
)
DET = Compressed(
    model="det",
    layers=3,
    kept={"stem.out": 0.21},
    error=0.00123,
    built=0.00789,
    mismatch=0.000456,
    kernels={"calib": 8, "conv2d int8": 3},
    int8_weights=700_011,
    float_weights=70_012,
    twin="det.nb",
    errors={},
    left={},
    channels={"w1": (64, 41), "w2": (128, 90)},
    multiply_adds=(500_100_000, 300_100_000),
)
REC = msgspec.structs.replace(DET, model="rec", layers=2, kept={}, channels={}, multiply_adds=None)
LAYERS = {
    "det": (
        Part("stem.out", "conv2d", (16, 3, 3, 3), False, 0.21, None, "it would make 21% of all layers' errors"),
        Part("neck.out", "conv2d", (32, 16, 1, 1), True, 0.082, 0.0137, ""),
        Part("deep.out", "depthwise_conv2d", (32, 1, 3, 3), True, 0.071, None, ""),
        Part("gate.out", "conv2d", (8, 32, 1, 1), False, None, None, "it sees one pixel"),
        Part("wide.out", "conv2d", (64, 32, 1, 1), True, 0.19, None, "its weights would show in the size"),
        Part("last.out", "conv2d", (1, 64, 1, 1), True, 0.013, None, ""),
    ),
    "rec": (
        Part("first.out", "conv2d", (16, 3, 3, 3), True, 0.4, None, ""),
        Part("linear.out", "matmul_v2", (120, 360), False, None, None, "only conv2d and depthwise_conv2d"),
    ),
}
CHANGES = {
    "det": Changes({"int8 layer, hard_swish, scale": 5, "the input": 1, "int8 layer": 2}, handed=4),
    "rec": Changes({"elementwise_mul": 6}, handed=0),
}


PLOTS = ["errors-det.png", "errors-rec.png", "pages.png", "sizes.png"]


@pytest.fixture(scope="module")
def report() -> Report:
    settings = load_recipe(INT8).compress
    return Report(
        bundle="ppocr-v4 9 for aarch64",
        target="aarch64",
        machine="A Processor, 2 cores",
        written="2026-01-02T03:04:05+00:00",
        versions={"paddlelite": "2.13rc0"},
        settings=settings,
        models=(DET, REC),
        layers=LAYERS,
        changes=CHANGES,
        pages=PAGES,
        costs=COSTS,
        bytes=4_800_014,
        failures=(),
        look_at=(),
    )


def rows_with(report: Report, *cells: str) -> list[str]:
    """Return the lines of the report's tables that hold cells."""
    return [line for line in markdown(report) if all(f"| {cell} |" in line for cell in cells)]


def test_pages_stand_side_by_side_in_float_pruned_and_in_int8(report):
    (row,) = rows_with(report, "drawn")
    assert row.startswith("| drawn | 17 | 0.9111 | 0.9222 | 0.9333 | -0.0222 | 0.8111 | 0.8222 | 0.8333 | -0.0222 | ")
    assert row.endswith("| 0.7111 | 0.7222 | 0.7333 | -0.0222 |")
    (row,) = rows_with(report, "1: mine")
    assert row == "| 1: mine | 17 | 0.6111 | 0.6022 | 0.6033 | +0.0078 | - | - | - | - | - | - | - | - |"
    assert "0.9222" in told(report)[1]


def test_without_a_pruned_model_there_is_no_column_for_one(report):
    pages = tuple(msgspec.structs.replace(pair, slim=None) for pair in PAGES)
    plain = msgspec.structs.replace(report, pages=pages, costs=tuple(c for c in COSTS if c.variant != "pruned"))
    (row,) = rows_with(plain, "drawn")
    assert row.startswith("| drawn | 17 | 0.9111 | 0.9333 | -0.0222 | 0.8111 |")
    assert not rows_with(plain, "pruned")


def test_every_cost_is_told_and_the_sums_count_models_that_were_left_alone(report):
    assert rows_with(report, "det", "pruned", "3000002", "47.3") == ["| det | pruned | 3000002 | 47.3 | 141 |"]
    assert rows_with(report, "rec", "int8") == ["| rec | int8 | 3000005 | 30.7 | 150 |"]
    assert rows_with(report, "together", "float", str(4_000_001 + 9_000_004 + 800_006))
    assert rows_with(report, "together", "pruned", str(3_000_002 + 9_000_004 + 800_006))
    assert rows_with(report, "together", "int8", str(1_000_003 + 3_000_005 + 800_006))
    assert [*sizes(COSTS)] == ["float", "pruned", "int8"]


def test_text_says_what_x86_shows_and_what_arm_would(report):
    text = "\n".join(markdown(report))
    assert "det takes 2.00 times as long as in float, rec takes 1.50 times" in text
    assert "float stays the default there" in text
    assert "edge-ocr bench --no-peers --data DIR --bundle BUNDLE" in text
    quick = tuple(msgspec.structs.replace(cost, ms=1.0) for cost in COSTS)
    assert "stays the default" not in "\n".join(markdown(msgspec.structs.replace(report, costs=quick)))
    unknown = tuple(msgspec.structs.replace(cost, ms=None, peak_mb=None) for cost in COSTS)
    told = markdown(msgspec.structs.replace(report, costs=unknown, target="x86_64"))
    assert "| det | float | 4000001 | - | - |" in told
    assert not [line for line in told if line.startswith(("ARM:", "On x86"))]


def test_what_pruning_took_is_told_where_something_was_pruned(report):
    text = "\n".join(markdown(report))
    assert text.count("million multiply-adds") == 1
    assert "500.1 -> 300.1 million multiply-adds (60%)" in text
    assert rows_with(report, "w1", "64", "41")
    assert rows_with(report, "w2", "128", "90")


def test_every_layer_is_told_with_its_number_its_figures_and_why(report):
    assert rows_with(report, "neck.out") == ["| 2 | neck.out | conv2d | 32x16x1x1 | int8 | 8.2% | 1.37% |  |"]
    assert rows_with(report, "gate.out") == ["| 4 | gate.out | conv2d | 8x32x1x1 | float | - | - | it sees one pixel |"]
    assert all(rows_with(report, row.name, row.why) for rows in LAYERS.values() for row in rows if row.why)


def test_changes_of_type_are_counted_and_explained(report):
    text = "\n".join(markdown(report))
    assert "Changes to int8 on ARM (`calib`): 8, one for each layer" in text
    assert "from one int8 layer to the next as they are: 4." in text
    assert rows_with(report, "5", "int8 layer, hard_swish, scale", "Paddle Lite runs hard_swish, scale in float")
    assert rows_with(report, "1", "the input", "pictures come in float")
    assert rows_with(report, "2", "int8 layer", "an operator in float reads it too")
    assert rows_with(report, "6", "elementwise_mul", "Paddle Lite runs elementwise_mul in float")


def test_what_was_done_where_when_and_with_what_is_told(report):
    text = "\n".join(markdown(report))
    wanted = ("ppocr-v4 9 for aarch64", "A Processor, 2 cores", "2026-01-02T03:04:05", "paddlelite 2.13rc0")
    more = ("the gate lets it through", "3 convolutions in int8: 700011 weights", "70012", "0.00123", "0.000456", "21%")
    assert [part for part in (*wanted, *more) if part not in text] == []
    gate = report.settings.gate
    assert all(f"{limit:g}" in text for limit in (gate.char_f1, gate.worst_char_f1, gate.car, gate.hmean))


# ------------------------------------------------------------------------------------------------ refusal


def looked_at(report: Report, size: int, *failures: str) -> tuple[str, ...]:
    return suspects(LAYERS, Verdict(PAGES, COSTS, size, failures), report.settings)


def test_a_refused_bundle_names_the_layers_in_int8_that_lose_most(report):
    assert looked_at(report, 1, "CAR falls") == (
        "det: wide.out makes 19% of the error, neck.out makes 8% of the error, deep.out makes 7% of the error",
        "rec: first.out makes 40% of the error",
    )


def test_a_bundle_that_is_too_large_names_what_is_large_in_float(report):
    size = report.settings.gate.bytes + 1
    assert looked_at(report, size, "too large") == (
        "det: stem.out has 432 weights in float, gate.out has 256 weights in float",
        "rec: linear.out has 43200 weights in float",
    )
    assert len(looked_at(report, size, "CAR falls", "too large")) == 4


def test_a_refused_report_names_what_failed_and_what_to_look_at(report):
    refused = msgspec.structs.replace(report, failures=("CAR falls by 1",), look_at=("det: wide.out makes 19%",))
    lines = markdown(refused)
    assert "- refused: CAR falls by 1" in lines
    assert "- look at det: wide.out makes 19%" in lines
    assert "- the gate lets it through" not in lines


# ------------------------------------------------------------------------------------------------ files


@pytest.fixture(scope="module")
def written(report, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, report)
    return folder


def test_json_holds_all_of_it(report, written):
    assert msgspec.json.decode((written / "report.json").read_bytes(), type=Report) == report
    assert (written / "report.md").read_text(encoding="utf-8").splitlines() == markdown(report)


def test_plots_are_pictures_with_something_on_them_and_the_text_shows_each(report, written):
    plots = sorted(file.name for file in written.glob("*.png"))
    assert plots == PLOTS
    for name in plots:
        pixels = cv2.imread(str(written / name))
        assert min(pixels.shape[:2]) > 300
        assert pixels.std() > 10, f"{name} is blank"
        assert f"]({name})" in "\n".join(markdown(report))


def test_plots_need_neither_a_display_nor_a_home_directory(report, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for name in ("DISPLAY", "MPLBACKEND", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    write_report(tmp_path / "out", report)
    assert os.listdir(home) == []


def test_the_plots_follow_the_figures(report, written, tmp_path):
    worse = msgspec.structs.replace(PAGES[0], after=figures(0.1, None, None))
    write_report(tmp_path, msgspec.structs.replace(report, pages=(worse, PAGES[1])))
    before, after = ([cv2.imread(str(place / name)) for name in PLOTS] for place in (written, tmp_path))
    assert [name for name, a, b in zip(PLOTS, before, after, strict=True) if (a != b).any()] == ["pages.png"]
