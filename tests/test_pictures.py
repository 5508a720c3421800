import json
import os

import cv2
import numpy as np
import pytest

from agent.bundle import ModelBundle
from agent.errors import InputError
from converters import native, pictures
from converters.dataset import Dataset
from converters.drawing import find_fonts
from converters.pictures import Own, OwnFolder, Pictures, check, checked, draw, open_dataset, teaching
from converters.recipe import load_recipe
from converters.stages import Stages
from tests.command import ROOT

RED = (30, 20, 220)
QUAD = [[100.0, 100.0], [400.0, 100.0], [400.0, 130.0], [100.0, 130.0]]
SAMPLES = ROOT / "samples"


@pytest.fixture
def own(tmp_path):
    """The user's own pictures: one, with a red line on it."""
    pixels = np.full((300, 500, 3), 200, np.uint8)
    pixels[100:130, 100:400] = RED
    (tmp_path / "scans").mkdir()
    cv2.imwrite(str(tmp_path / "scans" / "page.png"), pixels)
    file = tmp_path / "own.json"
    file.write_text(json.dumps([[str(tmp_path / "scans" / "page.png"), [QUAD]]]))
    return Own(str(file), "digest", 1)


# ------------------------------------------------------------------------------------------------ drawing


@pytest.mark.parametrize(("kind", "height"), [("det", 64), ("rec", 48), ("cls", 48)])
def test_a_file_of_pictures_holds_the_inputs_in_turn(tmp_path, kind, height):
    out = tmp_path / "out.npy"
    assert draw(kind, 3, 4, 64, str(out), first=5) == 4
    found, dataset = np.load(out), Dataset(3, find_fonts())
    assert (found.shape, found.dtype) == ((4, height, 64, 3), np.uint8)
    take = dataset.det_input if kind == "det" else dataset.rec_input
    assert all((found[index] == take(5 + index, 64)).all() for index in range(4))


def test_one_picture_in_four_is_the_users(own, tmp_path):
    out = tmp_path / "out.npy"
    draw("rec", 3, 8, 64, str(out), own=own.file)
    red = np.abs(np.load(out).astype(int) - RED).max(axis=3).mean(axis=(1, 2)) < 30
    assert red.tolist() == [False, False, False, True] * 2


class Named:
    """What drawing asks of a model."""

    def __init__(self, name, work):
        self.name, self.work, self.section = name, work, None


def test_pictures_are_drawn_again_when_the_users_have_changed(tmp_path, own, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures.native, "run", lambda job, *_, out, **given: drawn.append(out) or out.write_text(job))
    settings, model = load_recipe(ROOT / "models" / "ppocr-v4-int8.toml").compress, Named("det", tmp_path)
    for given in (Own(), Own(), own, Own("other file", own.digest), Own(own.file, "other")):
        Pictures(settings, Stages(tmp_path, lambda line: None), given).draw(model)
    assert drawn == [teaching(model), checked(model)] * 3


# ------------------------------------------------------------------------------------------------ the user's folder


def test_bad_pictures_are_left_out_and_said(own, tmp_path):
    for number in range(11):
        (tmp_path / "scans" / f"{number:02d}.jpg").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "scans" / "11.jpg")
    count, problems = check(str(tmp_path / "scans"), str(tmp_path / "good.json"))
    assert (count, json.loads((tmp_path / "good.json").read_text())) == (1, [str(tmp_path / "scans" / "page.png")])
    assert problems.startswith("12 of 13 files are left out: ")
    assert "00.jpg" in problems and "09.jpg" in problems and "10.jpg" not in problems
    assert problems.endswith("; and others")


def test_names_that_are_no_text_can_be_said(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / b"\xff.png".decode(errors="surrogateescape")).write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "scans" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    assert "\\udcff.png" in check(str(tmp_path / "scans"), str(tmp_path / "good.json"))[1]


def test_a_folder_is_looked_at_again_when_a_picture_in_it_has_changed(own, tmp_path):
    lines = []
    os.mkfifo(tmp_path / "scans" / "pipe.png")  # nobody writes to it
    for changed in (False, False, True):
        if changed:
            cv2.imwrite(str(tmp_path / "scans" / "page.png"), np.zeros((9, 9, 3), np.uint8))
        OwnFolder(tmp_path / "scans", tmp_path / "work", Stages(tmp_path / "work", lines.append)).check(lines.append)
    assert ["up to date" in line for line in lines if line.startswith("own")] == [False, True, False]


def test_a_folder_without_a_good_picture_is_refused(own, tmp_path):
    (tmp_path / "scans" / "page.png").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"--images .*scans: holds no picture that can be read \(.*page\.png: "):
        check(str(tmp_path / "scans"), str(tmp_path / "good.json"))


@pytest.mark.models
def test_lines_are_found_as_they_are_read_also_on_a_page_upside_down(bundle_path, tmp_path):
    turned = cv2.rotate(cv2.imread(str(SAMPLES / "receipt.png")), cv2.ROTATE_180)
    cv2.imwrite(str(tmp_path / "turned.png"), turned)
    known = tmp_path / "known.json"
    known.write_text(json.dumps([str(tmp_path / "turned.png"), str(SAMPLES / "receipt.png")]))
    out = tmp_path / "own.json"
    # As a conversion does: what this process of the tests holds would be missing from the reader's limit.
    pages, lines = native.run(
        "pictures.find_lines", timeout_s=120, pictures=str(known), bundle=str(bundle_path), out=str(out)
    )
    assert pages == 2 and lines > 40
    (first, second) = (quads for _, quads in json.loads(out.read_text()))
    assert np.mean([quad[0][0] > quad[1][0] for quad in first]) > 0.9, "they begin on the right"
    assert np.mean([quad[0][0] < quad[1][0] for quad in second]) > 0.9
    dataset = open_dataset(1, str(out))
    assert dataset.rec_input(3, 320).shape == (48, 320, 3)


@pytest.mark.models
def test_what_has_read_the_pictures_is_part_of_what_they_are(own, bundle_path, tmp_path):
    stages = Stages(tmp_path / "work", lambda line: None)
    folder = OwnFolder(tmp_path / "scans", tmp_path / "work", stages)
    folder.check(lambda line: None)
    found = folder.find_lines(ModelBundle.load(bundle_path))
    assert found.count == 1
    assert found == folder.find_lines(ModelBundle.load(bundle_path))
    cv2.imwrite(str(tmp_path / "scans" / "more.png"), np.full((60, 60, 3), 200, np.uint8))
    other = OwnFolder(tmp_path / "scans", tmp_path / "work", stages)
    other.check(lambda line: None)
    assert other.find_lines(ModelBundle.load(bundle_path)).digest != found.digest
