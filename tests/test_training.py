"""Training of small models in int8 against the same models in float."""

from pathlib import Path

import numpy as np
import pytest

from converters import native
from converters.graph import Graph
from converters.passes import rewrite
from converters.quantize import PAIR, keep_pairs, largest_pairs, layers_of
from converters.targets import INT8
from converters.training import starting_point
from tests import small_graphs
from tests.small_graphs import Builder, small_recognizer

PLAIN = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module", autouse=True)
def rng():
    """Numbers that do not depend on the tests before."""
    own = np.random.default_rng(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_graphs, "RNG", own)
        yield own


def detector() -> Graph:
    """Return a detector of two convolutions and one that takes each channel by itself."""
    build = Builder()
    dims = (-1, 8, -1, -1)
    x = build.conv(build.input(-1, 3, -1, -1), build.param(8, 3, 3, 3), paddings=[1, 1], dims=dims)
    x = build.op("relu", X=build.add(x, build.param(8), 1), dims=dims)
    x = build.conv(x, build.param(8, 1, 3, 3), "depthwise_conv2d", groups=8, paddings=[1, 1], dims=dims)
    x = build.conv(x, build.param(1, 8, 1, 1, value=0.1), dims=(-1, 1, -1, -1))
    return build.graph(build.op("sigmoid", X=build.add(x, build.param(1), 1), dims=(-1, 1, -1, -1)))


@pytest.fixture(scope="module")
def place(tmp_path_factory, rng):
    """A detector, pictures, the scales of its activations, and filters in int8 with which much is lost."""
    folder = tmp_path_factory.mktemp("training")
    detector().save(folder / "source")
    np.save(folder / "pictures.npy", rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "checked.npy", rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    options = {"source": folder / "source", "pictures": folder / "pictures.npy", **PLAIN}
    native.run("calibrate.calibrate", percentile=0.9999, out=folder / "scales.json", **options)
    graph = Graph.load(folder / "source")
    found = {}
    for name, (filters, shift) in starting_point(graph, layers_of(graph), "").items():
        found |= {f"{name}.steps": filters.steps, f"{name}.scales": filters.scales, f"{name}.shift": shift + 0.5}
    np.savez(folder / "wrong.npz", **found)
    return folder


def trained(place: Path, out: Path, **changed: object) -> tuple[dict, dict[str, np.ndarray]]:
    options = {"source": place / "source", "scales": place / "scales.json", "filters": "", "kept": []}
    options |= {"pictures": place / "pictures.npy", "checked": place / "checked.npy", **PLAIN}
    options |= {"steps": 40, "batch": 4, "size": 16, "rate": 0.03, "out": out}
    told = native.run("training.train", **{**options, **changed})
    return told, dict(np.load(out))


def test_training_brings_int8_nearer_to_float_and_is_the_same_each_time(place, tmp_path):
    wrong = {"filters": place / "wrong.npz"}
    told, found = trained(place, tmp_path / "a.npz", **wrong)
    assert told["after"] < 0.7 * told["before"]
    again, same = trained(place, tmp_path / "b.npz", **wrong)
    assert again == told
    assert all((same[name] == value).all() for name, value in found.items())
    for layer in layers_of(Graph.load(place / "source")):
        steps = found[f"{layer.name}.steps"]
        assert (steps.dtype, steps.shape) == (np.int8, layer.shape)
        assert largest_pairs(steps.reshape(len(steps), -1).astype(float), layer.kind).max() <= PAIR


def test_what_is_no_better_is_not_kept(place, tmp_path):
    told, found = trained(place, tmp_path / "a.npz", rate=1e3, steps=5)
    assert told["after"] == told["before"]
    graph = Graph.load(place / "source")
    for name, (filters, shift) in starting_point(graph, layers_of(graph), "").items():
        assert (found[f"{name}.steps"] == filters.steps).all()
        np.testing.assert_allclose(found[f"{name}.shift"], shift, atol=1e-6)


def test_layers_in_float_are_left_alone(place, tmp_path):
    layers = layers_of(Graph.load(place / "source"))
    _, found = trained(place, tmp_path / "a.npz", kept=[layers[0].name], steps=1)
    assert {name.rpartition(".")[0] for name in found} == {layer.name for layer in layers[1:]}


def test_a_recogniser_learns_whole_lines(place, tmp_path, rng):
    graph = small_recognizer()
    rewrite(graph, INT8)
    graph.save(tmp_path / "source")
    pictures = {name: tmp_path / f"{name}.npy" for name in ("pictures", "checked")}
    for file in pictures.values():
        np.save(file, rng.integers(0, 256, (4, 48, 64, 3), dtype=np.uint8))
    source = {"source": tmp_path / "source", "pictures": pictures["pictures"], **PLAIN}
    native.run("calibrate.calibrate", percentile=0.9999, out=tmp_path / "scales.json", **source)
    options = {**source, **pictures, "scales": tmp_path / "scales.json", "size": 0}
    told, _ = trained(place, tmp_path / "a.npz", **options)
    assert 0 < told["after"] <= told["before"]


def test_pairs_that_are_too_large_are_made_smaller_and_others_are_not():
    steps = np.array([[120, 60, -100, 127], [3, -120, 64, 64]], float).reshape(2, 4, 1, 1)
    kept = keep_pairs(steps, "conv2d")
    assert kept.reshape(2, 4).tolist() == [[68, 60, -100, 127], [3, -120, 64, 64]]
    deep = keep_pairs(np.array([[100, 3, 90, 1]], float).reshape(1, 1, 2, 2), "depthwise_conv2d")
    assert largest_pairs(deep.reshape(1, -1), "depthwise_conv2d").max() == PAIR
