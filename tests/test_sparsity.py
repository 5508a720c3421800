"""Unstructured pruning: zeros in filters of one pixel, whose loss the other values make up for."""

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ConfigError
from converters import native
from converters.graph import Graph, only, result
from converters.places import outputs
from converters.quantize import Layer, is_thin, layers_of, quantize
from converters.recipe import load_recipe
from converters.rounding import round_layer
from converters.sparsity import choose_values, thin_out
from tests.small_graphs import Builder, Paddle, image, mean_of

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
pytestmark = pytest.mark.usefixtures("rng")
INT8 = Path(__file__).parents[1] / "models" / "ppocr-v4-int8.toml"


@pytest.fixture(scope="module")
def paddle(tmp_path_factory):
    running = Paddle(tmp_path_factory.mktemp("sparsity"))
    yield running
    running.close()


def related(rng: np.random.Generator, places: int, channels: int, real: int) -> np.ndarray:
    """Return channels that are mixtures of fewer ones, with a little of their own: (places, channels)."""
    mixed = rng.normal(size=(places, real)) @ rng.normal(size=(real, channels))
    return mixed + 0.3 * rng.normal(size=(places, channels)) + 1.0


def error_of(thin: np.ndarray, shift: np.ndarray, wanted: np.ndarray, seen: np.ndarray) -> float:
    return float(((seen @ thin.T + shift - wanted) ** 2).mean() / wanted.var(axis=0).mean())


def test_values_go_with_less_loss_than_the_smallest_ones(rng):
    flat, seen = rng.normal(size=(24, 64)), related(rng, 2000, 64, 12)
    wanted = seen @ flat.T
    thin, shift = thin_out(flat, wanted, seen, 0.5)
    smallest = np.where(np.abs(flat) > np.quantile(np.abs(flat), 0.5), flat, 0.0)
    plain = error_of(smallest, (wanted - seen @ smallest.T).mean(axis=0), wanted, seen)
    assert error_of(thin, shift, wanted, seen) < 0.15 * plain
    assert error_of(thin, shift, wanted, seen) < 0.01


def test_what_earlier_zeros_have_lost_is_made_up_for(rng):
    flat, given = rng.normal(size=(8, 32)), related(rng, 2000, 32, 8)
    seen = given * rng.uniform(0.5, 1.0, 32)
    wanted = given @ flat.T
    thin, shift = thin_out(flat, wanted, seen, 0.25)
    kept = np.where(thin == 0.0, 0.0, flat)
    assert error_of(thin, shift, wanted, seen) < 0.2 * error_of(kept, shift, wanted, seen)


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(2, 70), zeros=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_at_least_the_share_asked_for_goes_and_not_much_more(rows, columns, zeros, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(columns, columns))
    stays = choose_values(rng.normal(size=(rows, columns)), root @ root.T + np.eye(columns), zeros)
    gone, blocks = int((~stays).sum()), -(-columns // 32)
    assert zeros * rows * columns - 1e-6 <= gone + blocks
    assert gone <= zeros * rows * columns + 2 * blocks


def sparse_graph() -> Graph:
    """Return 3 -> 32 (3x3) -> 32 (depthwise) -> 40 (one pixel) -> 4 (one pixel) channels, with a squeeze branch."""
    build = Builder()
    x = build.conv(build.input(-1, 3, -1, -1), build.param(32, 3, 3, 3), paddings=[1, 1], dims=(-1, 32, -1, -1))
    x = build.op("relu", X=build.add(x, build.param(32), axis=1), dims=(-1, 32, -1, -1))
    x = build.conv(x, build.param(32, 1, 3, 3), "depthwise_conv2d", paddings=[1, 1], groups=32, dims=(-1, 32, -1, -1))
    gate = build.conv(mean_of(build, x, 32), build.param(32, 32, 1, 1), dims=(-1, 32, 1, 1))
    gate = build.op("sigmoid", X=gate, dims=(-1, 32, 1, 1))
    x = build.op("elementwise_mul", X=x, Y=gate, axis=-1, dims=(-1, 32, -1, -1))
    x = build.add(build.conv(x, build.param(40, 32, 1, 1), dims=(-1, 40, -1, -1)), build.param(40), axis=1)
    x = build.op("relu", X=x, dims=(-1, 40, -1, -1))
    return build.graph(build.add(build.conv(x, build.param(4, 40, 1, 1), dims=(-1, 4, -1, -1)), build.param(4), axis=1))


def sparse(graph: Graph, work: Path, zeros: float) -> tuple[Graph, dict[str, float]]:
    rng = np.random.default_rng(2)
    pictures = np.kron(rng.uniform(0, 255, (4, 16, 16, 3)), np.ones((1, 4, 4, 1))) + rng.uniform(0, 20, (4, 64, 64, 3))
    np.save(work / "pictures.npy", pictures.clip(0, 255).astype(np.uint8))
    graph.save(work / "source")
    options = {"count": 4, "zeros": zeros, "out": work / "thin", **PLAIN}
    found = native.run("sparsity.sparsify", source=work / "source", pictures=work / "pictures.npy", **options)
    return Graph.load(work / "thin"), found


def filters_of(graph: Graph) -> list[np.ndarray]:
    return [graph.params[only(op, "Filter")] for op in graph.ops if only(op, "Filter") in graph.params]


def test_only_filters_of_one_pixel_that_see_a_picture_get_zeros(paddle, tmp_path):
    graph = sparse_graph()
    thin, found = sparse(graph, tmp_path, 0.25)
    shares = [float((filters == 0.0).mean()) for filters in filters_of(thin)]
    assert [share > 0.0 for share in shares] == [False, False, False, True, True]
    assert list(found.values()) == [share for share in shares if share]
    assert all(0.25 <= share < 0.3 for share in found.values())
    x = image(1, 3, 64, 64)
    wanted, got = paddle.run(graph, x), paddle.run(thin, x)
    assert np.abs(got - wanted).mean() < 0.1 * wanted.std(), "the smallest values gone: 0.3"


def rounded_thin(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    filters = rng.normal(size=(16, 32, 1, 1)).astype(np.float32)
    filters[rng.uniform(size=filters.shape) < 0.5] = 0.0
    layer = Layer("y", "conv2d", "x", filters.shape)
    x = related(rng, 500, 32, 8)[:, None]
    return filters, round_layer(filters, layer, outputs(filters, x), x * 0.9).steps


def test_rounding_keeps_zeros(rng):
    filters, steps = rounded_thin(rng)
    assert is_thin(filters)
    assert (steps[filters == 0.0] == 0).all()
    assert (steps[filters != 0.0] != 0).mean() > 0.9


def scales_of(graph: Graph) -> dict[str, float]:
    return {layer.source: 4.0 for layer in layers_of(graph)}


def test_training_keeps_zeros(tmp_path):
    thin, _ = sparse(sparse_graph(), tmp_path, 0.5)
    (tmp_path / "scales.json").write_bytes(msgspec.json.encode(scales_of(thin)))
    options = {"steps": 4, "batch": 1, "size": 32, "rate": 0.5, "kept": [], "filters": "", **PLAIN}
    pictures = tmp_path / "pictures.npy"
    files = {"source": tmp_path / "thin", "scales": tmp_path / "scales.json", "pictures": pictures, "checked": pictures}
    native.run("training.train", out=tmp_path / "trained.npz", **files, **options)
    with np.load(tmp_path / "trained.npz") as archive:
        for op in thin.ops:
            if f"{result(op)}.steps" in archive:
                assert (archive[f"{result(op)}.steps"][thin.params[only(op, "Filter")] == 0.0] == 0).all()


def test_lite_skips_the_zeros_in_int8_on_arm(tmp_path):
    thin, _ = sparse(sparse_graph(), tmp_path, 0.75)
    assert quantize(thin, scales_of(thin), layers_of(thin))
    thin.save(tmp_path / "int8")
    sizes = {}
    for sparse_from in (0.0, 0.7, 0.95):
        how = {"source": tmp_path / "int8", "target": "aarch64", "sparse_from": sparse_from}
        kernels = native.run("list_kernels", out=tmp_path / f"kernels{sparse_from}", **how)
        found = [kernel for kernel in kernels if re.match("sparse_conv2d/int8", kernel)]
        assert len(found) == (2 if sparse_from == 0.7 else 0)
        native.run("build_lite", out=tmp_path / f"m{sparse_from}", plan=False, compacted=True, **how)
        sizes[sparse_from] = (tmp_path / f"m{sparse_from}.nb").stat().st_size
    assert sizes[0.95] == sizes[0.0] != sizes[0.7]


def test_a_recipe_says_which_models_and_how_much(tmp_path):
    text = INT8.read_text(encoding="utf-8").replace('base = "ppocr-v4.toml"', f'base = "{INT8.parent}/ppocr-v4.toml"')
    recipe = tmp_path / "thin.toml"
    recipe.write_text(f'{text}\n[compress.thin]\nmodels = ["rec"]\nzeros = 0.5\n', encoding="utf-8")
    compress = load_recipe(recipe).compress
    assert (compress.sparse_from("rec"), compress.sparse_from("det")) == (0.45, 0.0)
    recipe.write_text(f'{text}\n[compress.thin]\nmodels = ["rec"]\nzeros = 1.0\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"compress\.thin\.zeros = 1\.0"):
        load_recipe(recipe)
    assert load_recipe(INT8).compress.sparse_from("rec") == 0.0
