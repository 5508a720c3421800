"""Models take pixels and give maps, readings and directions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bundle import ModelBundle
from agent.engines import EngineSettings
from agent.image import crop, pad, scaled
from agent.models import Models, to_tensor
from agent.recognize import Reading
from tests import bad_inputs as bad

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FIRST_LINE = ((58.0, 20.0), (322.0, 20.0), (322.0, 66.0), (58.0, 66.0))


@pytest.fixture(scope="module")
def models(portable: ModelBundle) -> Iterator[Models]:
    opened = Models(portable, EngineSettings())
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    """The top of the sample receipt, BGR."""
    return cv2.cvtColor(np.asarray(bad.page()), cv2.COLOR_GRAY2BGR)


@given(st.integers(1, 30), st.integers(1, 30), st.booleans(), st.integers(0, 99))
def test_tensor_is_the_plain_formula(width, height, grey, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width) if grey else (height, width, 3), np.uint8)
    tensor = to_tensor(pixels, MEAN, STD)
    assert tensor.shape == (1, 3, height, width)
    assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
    coloured = np.stack([pixels] * 3, axis=2) if grey else pixels
    plain = (coloured.astype(np.float64) / 255 - MEAN) / STD
    assert np.allclose(tensor[0], plain.transpose(2, 0, 1), atol=1e-5)


def test_tensor_takes_read_only_and_sliced_pixels():
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    pixels.flags.writeable = False
    assert np.array_equal(to_tensor(pixels[:, ::-1], MEAN, STD), to_tensor(pixels, MEAN, STD)[..., ::-1])


def test_text_map_is_bright_where_text_is(models, page):
    found = models.text_map(scaled(page, 384, 288))
    assert found.shape == (288, 384) and found.dtype == np.uint8
    assert found[30:52, 80:300].mean() > 128
    assert found[:10].max() < 80


def test_line_is_read(models, page):
    strip = crop(page, FIRST_LINE, 48, 3200)
    reading = models.reading(pad(strip, 320))
    assert reading.text == bad.TEXT
    assert len(reading.character_scores) == len(bad.TEXT) and reading.score > 0.9


def test_grey_line_is_read_as_the_coloured_one_is(models, page):
    strip = pad(crop(page, FIRST_LINE, 48, 3200), 320)
    assert models.reading(np.ascontiguousarray(strip[:, :, 0])) == models.reading(strip)


def test_upside_down_line_is_told(models, page):
    strip = pad(crop(page, FIRST_LINE, 48, 192), 192)
    assert models.upside_down(strip) < 0.5 < models.upside_down(cv2.rotate(strip, cv2.ROTATE_180))


def test_bundle_without_a_classifier_cannot_tell(portable):
    manifest = msgspec.structs.replace(portable.manifest, cls=None)
    models = Models(ModelBundle(portable.path, manifest, portable.characters, portable.digest), EngineSettings())
    assert models.upside_down(np.zeros((48, 192, 3), np.uint8)) == 0.5
    models.release()
    models.close()


def test_run_finds_a_model_by_its_name(models, page):
    assert models.run("det", scaled(page, 64, 32)).shape == (32, 64)
    assert isinstance(models.run("rec", np.zeros((48, 320, 3), np.uint8)), Reading)
    assert isinstance(models.run("cls", np.zeros((48, 192, 3), np.uint8)), float)


def test_blank_line_reads_as_nothing(models):
    assert models.reading(np.full((48, 320, 3), 255, np.uint8)).text.strip() == ""


def test_models_work_again_after_their_memory_was_given_back(models, page):
    strips = [pad(crop(page, FIRST_LINE, 48, 3200), width) for width in (320, 352, 320)]
    readings = []
    for strip in strips:
        readings.append(models.reading(strip))
        models.release()
    assert all(a.text == b.text for a, b in pairwise(readings))
