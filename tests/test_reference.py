"""What a source model gives: also where Paddle Inference, left alone, forgets a bound."""

from pathlib import Path

import numpy as np

from converters import native
from converters.graph import Graph
from tests.small_graphs import Builder

SHAPE = [1, 3, 8, 12]


def bounded() -> Graph:
    """Return x + 3, held between 0 and 1.5 by a `clip` that gets its bounds as inputs, times a parameter."""
    build = Builder()
    x = build.add(build.input(-1, 3, -1, -1), build.param(1, value=3.0))
    low, high = (build.op("fill_constant", shape=[1], value=bound, dtype=5, dims=(1,)) for bound in (0.0, 1.5))
    x = build.op("clip", X=x, Min=low, Max=high, min=-3e38, max=3e38)
    return build.graph(build.mul(x, build.param(1, value=2.0)))


def answer(job: str, work: Path, **arguments: object) -> np.ndarray:
    native.run(job, shapes=[SHAPE], out=work / "out.npz", **arguments)
    with np.load(work / "out.npz") as archive:
        return archive["arr_0"]


def test_a_clip_with_bounds_as_inputs_keeps_them(tmp_path):
    bounded().save(tmp_path / "model")
    wanted = 2.0 * np.clip(native.sample_input(SHAPE) + 3.0, 0.0, 1.5)
    assert wanted.max() == 3.0, "4 without the upper bound"
    files = [tmp_path / "model" / name for name in ("inference.pdmodel", "inference.pdiparams")]
    for found in (
        answer("refer", tmp_path, source=tmp_path / "model"),
        answer("infer", tmp_path, engine="paddle", files=files),
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
