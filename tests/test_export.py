import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.bundle import ModelBundle
from agent.errors import ConfigError, ConversionError, EngineError
from converters import export, native, sources, writing
from converters.conversion import check_arm
from converters.export import Request, convert
from converters.graph import Graph
from converters.passes import rewrite
from converters.recipe import load_recipe
from converters.sources import collect
from converters.targets import COMMON, X86
from tests.small_graphs import RNG, Builder, Paddle, small_detector, small_recognizer

RECIPE = Path(__file__).parents[1] / "models" / "ppocr-v4.toml"
TARGETS = ("x86_64", "aarch64")


def small_recipe(folder, **changed):
    """Write a recipe for small models: few small shapes, and no classifier."""
    text = RECIPE.read_text(encoding="utf-8").split("[cls]")[0]
    text = text.replace("[[1, 3, 640, 640], [2, 3, 320, 416], [1, 3, 736, 192], [1, 3, 32, 96]]", "[[2, 3, 32, 64]]")
    text = text.replace("[1, 3, 640, 640]", "[1, 3, 64, 64]").replace(", [1, 3, 48, 960]", "")
    for old, new in changed.values():
        assert old in text
        text = text.replace(old, new)
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe and two small models of the user's own, where bundles are built."""
    folder = tmp_path_factory.mktemp("place")
    small_detector().save(folder / "own" / "finder")
    small_recognizer().save(folder / "own" / "reader")
    (folder / "own" / "reader" / "dict.txt").write_text("\n".join("0123456789") + "\n", encoding="utf-8")
    small_recipe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BUILD", folder / "build")
        yield folder


def converted(place, **changed):
    """Convert and return (bundle, lines of progress)."""
    lines = []
    defaults = {"recipe": place / "small.toml", "target": "x86_64", "source": place / "own", "measured": False}
    return convert(Request(**{**defaults, **changed}), lines.append), lines


@pytest.fixture(scope="module")
def bundle(place):
    return converted(place)[0]


def redone(lines):
    return [" ".join(line.split()[:2]) for line in lines if " s  " in line]


# ------------------------------------------------------------------------------------------- the bundle


def test_a_bundle_holds_what_its_recipe_and_models_say(place, bundle):
    manifest, recipe = bundle.manifest, load_recipe(place / "small.toml")
    assert (manifest.name, manifest.version, manifest.target, manifest.precision) == ("ppocr-v4", "1", "x86_64", "fp32")
    assert (manifest.det.mean, manifest.det.box_threshold) == (recipe.det.mean, recipe.det.box_threshold)
    assert (manifest.rec.classes, manifest.rec.height, manifest.cls) == (12, 48, None)
    assert manifest.det.files == {"paddlelite": ("det.nb",)}
    assert bundle.characters == ("", *"0123456789", " ")
    assert "paddlelite 2.13rc0" in manifest.made_by


def test_a_bundle_names_its_sources_by_hash(place, bundle):
    files = [place / "own" / "reader" / name for name in ("inference.pdmodel", "inference.pdiparams")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert (bundle.manifest.rec.source.name, bundle.manifest.rec.source.sha256) == ("reader", digest)


def test_every_file_of_a_bundle_is_in_its_manifest_and_nothing_else(bundle):
    assert {path.name for path in bundle.path.iterdir()} == {"bundle.toml", *bundle.manifest.files}


def test_a_second_conversion_does_nothing_again_and_gives_the_same_bundle(place, bundle):
    again, lines = converted(place)
    assert redone(lines) == []
    assert again.digest == bundle.digest


def test_a_changed_threshold_writes_a_new_bundle_without_building(place, bundle, tmp_path):
    recipe = small_recipe(tmp_path, x=("threshold = 0.3", "threshold = 0.25"))
    changed, lines = converted(place, recipe=recipe, output=tmp_path / "out")
    assert redone(lines) == []
    assert changed.manifest.det.threshold == 0.25


def test_a_damaged_file_between_stages_is_made_again(place, bundle):
    built = place / "build" / ".work" / "ppocr-v4-x86_64-fp32" / "rec" / "rec.nb"
    built.write_bytes(b"damaged")
    again, lines = converted(place)
    assert redone(lines) == ["build rec"]
    assert again.digest == bundle.digest


def test_the_table_has_a_row_before_and_after_for_each_model(place, tmp_path):
    measured, lines = converted(place, measured=True, output=tmp_path / "out")
    rows = measured.manifest.measured
    assert [(row.model, row.variant) for row in rows] == [(m, v) for m in ("det", "rec") for v in ("source", "bundle")]
    assert all(row.ms > 0 and row.resident_mb > 10 and row.max_difference <= 1e-4 for row in rows)
    assert lines[-5].startswith("model  variant  engine")


# ------------------------------------------------------------------------------------------- replacement


def test_a_result_that_differs_leaves_the_old_bundle_and_is_named(place, bundle, tmp_path):
    recipe = small_recipe(tmp_path, x=("max_difference = 1e-4", "max_difference = 1e-12"))
    before = (bundle.path / "bundle.toml").read_bytes()
    with pytest.raises(ConversionError, match=r"det: output at input \(.*differs .* max_difference = 1e-12"):
        converted(place, recipe=recipe)
    assert (bundle.path / "bundle.toml").read_bytes() == before
    assert ModelBundle.load(bundle.path).path == bundle.path


def test_a_folder_that_is_no_bundle_is_not_replaced(place, tmp_path):
    (tmp_path / "letters.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="not a bundle; it is not replaced"):
        converted(place, output=tmp_path)
    assert (tmp_path / "letters.txt").read_text(encoding="utf-8") == "mine"


def test_a_swap_that_fails_half_way_puts_the_old_bundle_back(tmp_path, monkeypatch):
    new, old = tmp_path / "new", tmp_path / "bundle"
    for folder in (new, old):
        folder.mkdir()
        (folder / "name").write_text(folder.name, encoding="utf-8")
    rename = os.rename

    def failing(source, target):
        if source == new:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(writing.os, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        writing.swap(new, old)
    assert (old / "name").read_text(encoding="utf-8") == "bundle"


def test_an_output_that_cannot_be_written_is_named(place, bundle, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--output .*Not a directory"):
        converted(place, output=tmp_path / "file" / "bundle")


def test_two_conversions_in_one_place_do_not_mix(place, bundle):
    with (
        export.locked(place / "build" / ".work" / "ppocr-v4-x86_64-fp32"),
        pytest.raises(ConversionError, match="another conversion works there"),
    ):
        converted(place)


# ------------------------------------------------------------------------------------------- refusals


def test_an_operator_that_paddle_lite_lacks_is_named(place, tmp_path):
    build = Builder()
    x = build.op("determinant", "Out", Input=build.input(-1, 3, -1, -1))
    x = build.conv(x, build.param(1, 3, 1, 1))
    build.block.vars[-1].type.lod_tensor.tensor.dims[:] = [-1, 1, -1, -1]
    build.graph(x).save(tmp_path / "det")
    shutil.copytree(place / "own" / "reader", tmp_path / "rec")
    with pytest.raises(
        ConversionError, match="Paddle Lite has no operator determinant on x86_64; try --target portable"
    ):
        converted(place, source=tmp_path)


def test_a_missing_package_is_named_with_what_to_install(place, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs paddlepaddle paddlelite.*pip install"):
        converted(place)


def test_an_abort_of_a_native_library_is_an_error_with_its_last_line(tmp_path):
    with pytest.raises(ConversionError, match=r"build_lite det: .*inference\.pdmodel.*signal 6"):
        native.run("build_lite", "det", source=tmp_path, out=tmp_path / "det", target="x86_64", plan=True)


# ------------------------------------------------------------------------------------------- aarch64


@pytest.fixture(scope="module")
def arm(place):
    return converted(place, target="aarch64")[0]


def test_an_arm_bundle_is_written_on_x86_and_refused_by_its_reader(arm):
    assert arm.manifest.target == "aarch64"
    assert ModelBundle.load(arm.path, machine="aarch64").digest == arm.digest


def test_an_arm_model_without_its_weights_is_refused(place, arm, tmp_path):
    folded = place / "build" / ".work" / "ppocr-v4-aarch64-fp32" / "rec" / "folded"
    (tmp_path / "rec.nb").write_bytes((arm.path / "rec.nb").read_bytes()[:300])
    with pytest.raises(ConversionError, match="300 bytes cannot hold"):
        check_arm(folded, tmp_path / "rec.nb", tmp_path / "arm")


def test_an_arm_model_with_kernels_of_another_processor_is_refused(place, arm, tmp_path, monkeypatch):
    kernels = ["feed/def/1/4/2", "conv2d/def/2/1/1"]
    monkeypatch.setattr(native, "run", lambda *a, **k: kernels)
    with pytest.raises(ConversionError, match="conv2d/def/2/1/1 has no kernel for ARM"):
        check_arm(tmp_path, arm.path / "rec.nb", tmp_path / "arm")


# ------------------------------------------------------------------------------------------- the real models


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The published models, from the cache that `make test` fills."""
    recipe = load_recipe(RECIPE)
    if not (sources.cache_dir() / recipe.package.wheel).is_file():
        pytest.skip(f"{recipe.package.wheel} is not in {sources.cache_dir()}: run edge-ocr convert")
    return collect(recipe, tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    worker = Paddle(tmp_path_factory.mktemp("paddle"))
    yield worker
    worker.close()


@pytest.mark.models
@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("det", [(1, 3, 96, 160), (2, 3, 64, 32), (1, 3, 160, 96)]),
        ("rec", [(1, 3, 48, 100), (3, 3, 48, 48), (1, 3, 48, 250)]),
        ("cls", [(2, 3, 48, 192)]),
    ],
)
@pytest.mark.parametrize("passes", [COMMON, X86], ids=["common", "x86"])
def test_a_rewritten_model_equals_its_source_at_shapes_the_recipe_does_not_name(
    real, paddle, tmp_path, kind, shapes, passes
):
    source = real.models[kind].directory
    graph = Graph.load(source)
    assert sum(rewrite(graph, passes).values()) > 30
    graph.save(tmp_path)
    for shape in shapes:
        x = native.sample_input(shape)
        difference = np.abs(paddle.run_directory(tmp_path, x) - paddle.run_directory(source, x)).max()
        assert difference <= 1e-4


@pytest.mark.models
@pytest.mark.parametrize("kind", ["det", "rec"])
def test_the_rewrites_leave_no_scalar_arithmetic_and_few_norms(real, kind):
    graph = Graph.load(real.models[kind].directory)
    rewrite(graph, X86)
    ones = {name for name, value in graph.params.items() if value.size == 1}
    used = [op.type for op in graph.ops for slot in op.inputs for name in slot.arguments if name in ones]
    assert [kind for kind in used if kind == "elementwise_mul"] == []
    assert "batch_norm" not in [op.type for op in graph.ops]


# ------------------------------------------------------------------------------------------- the command


def test_the_command_turns_an_error_into_one_line_and_its_exit_status(tmp_path):
    command = [sys.executable, "-m", "converters", str(tmp_path / "none.toml"), "--target", "x86_64"]
    ended = subprocess.run(command, cwd=RECIPE.parents[1], capture_output=True, text=True)
    assert ended.returncode == 78
    assert ended.stderr.count("\n") == 1
    assert "none.toml: No such file" in ended.stderr


def test_peak_memory_is_of_the_process_and_not_of_the_one_that_started_it():
    ballast = RNG.random(30_000_000)  # 240 MB here
    answer = subprocess.run(
        [sys.executable, "-c", "from converters.native import peak_resident_mb as p; print(p())"],
        cwd=RECIPE.parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(answer.stdout) < 200 < ballast.nbytes / 1e6
