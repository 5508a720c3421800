import cv2
import numpy as np
import pytest

from agent import image
from agent.errors import ConfigError, InputError
from converters import dataset
from converters.dataset import (
    FIRST_EVALUATION,
    Dataset,
    OwnPicture,
    find_user_images,
    load_pixels,
    problem_of,
    usual_scale,
    write_evaluation,
)
from converters.drawing import draw_line, draw_page, find_fonts
from converters.scores import load_labels

FONTS = find_fonts()
BLUE, RED = (200, 60, 20), (30, 20, 220)
QUAD = ((100.0, 100.0), (400.0, 100.0), (400.0, 130.0), (100.0, 130.0))


@pytest.fixture
def own(tmp_path):
    """Return a folder with one blue picture that has a red line."""
    folder = tmp_path / "own"
    folder.mkdir()
    pixels = np.full((300, 500, 3), BLUE, np.uint8)
    pixels[100:130, 100:400] = RED
    cv2.imwrite(str(folder / "page.png"), pixels)
    return folder


def pictures(own, *quads):
    """Return the folder's pictures, with these lines on each."""
    return tuple(OwnPicture(path, quads) for path in find_user_images(own))


def share_of(colour, pixels):
    return (np.abs(pixels.astype(int) - colour).max(axis=2) < 12).mean()


# ------------------------------------------------------------------------------------------- inputs


def test_inputs_have_the_asked_shape_and_follow_from_seed_and_index_alone():
    first, again = Dataset(1, FONTS), Dataset(1, FONTS)
    for make in ("det_input", "rec_input"):
        inputs = [getattr(first, make)(index, 320) for index in (0, 5, 9)]
        assert {pixels.shape for pixels in inputs} == {(320 if make == "det_input" else 48, 320, 3)}
        assert {pixels.dtype for pixels in inputs} == {np.dtype(np.uint8)}
        assert len({pixels.tobytes() for pixels in inputs}) == 3
        assert getattr(again, make)(9, 320).tobytes() == inputs[2].tobytes()
        assert getattr(Dataset(2, FONTS), make)(9, 320).tobytes() != inputs[2].tobytes()


def test_a_line_is_padded_as_the_reader_pads():
    index = next(i for i in range(50) if draw_line(1, i, FONTS, max_width=320).pixels.shape[1] < 250)
    strip, pixels = draw_line(1, index, FONTS, max_width=320).pixels, Dataset(1, FONTS).rec_input(index, 320)
    assert (pixels[:, : strip.shape[1]] == strip).all()
    assert (pixels[:, strip.shape[1] :] == strip[:, -1:]).all()


def test_detector_inputs_show_text():
    data = Dataset(4, FONTS)
    contrasts = [np.ptp(cv2.GaussianBlur(data.det_input(index, 256), (0, 0), 1)) for index in range(12)]
    assert min(contrasts) > 25


def test_lines_get_a_height_that_the_detector_is_used_to():
    rng = np.random.default_rng(0)
    for index in range(8):
        quads = [line.box for line in draw_page(2, index, FONTS).lines]
        heights = np.array([min(image.side_lengths(quad)) for quad in quads]) * usual_scale(quads, rng)
        assert 8 <= np.median(heights) <= 64
        assert np.mean((heights >= 11.9) & (heights <= 64.1)) > 0.75


def test_a_page_smaller_than_the_window_is_continued_by_its_edge(own):
    pixels = Dataset(1, FONTS, pictures(own)).det_input(3, 1200)
    assert pixels.shape == (1200, 1200, 3)
    assert share_of(BLUE, pixels) + share_of(RED, pixels) > 0.9


# ------------------------------------------------------------------------------------------- the user's own pictures


def test_one_input_in_four_is_of_the_users_own_pictures(own):
    data = Dataset(1, FONTS, pictures(own, QUAD))
    plain = Dataset(1, FONTS)
    for index in range(8):
        det, rec = data.det_input(index, 160), data.rec_input(index, 160)
        if index % 4 == 3:
            assert share_of(BLUE, det) + share_of(RED, det) > 0.8
            assert share_of(RED, rec) > 0.8
        else:
            assert (det == plain.det_input(index, 160)).all()
            assert (rec == plain.rec_input(index, 160)).all()


def test_where_no_line_is_found_lines_are_drawn(own):
    data, plain = Dataset(1, FONTS, pictures(own)), Dataset(1, FONTS)
    assert (data.rec_input(3, 160) == plain.rec_input(3, 160)).all()


def test_a_long_line_of_the_user_is_cut_and_not_squeezed(own):
    seen = []
    long = ((0.0, 100.0), (500.0, 100.0), (500.0, 110.0), (0.0, 110.0))
    data = Dataset(1, FONTS, pictures(own, long))
    for index in (3, 7, 11, 15):
        part = data.rec_input(index, 96)
        seen.append(share_of(RED, part))
    assert len(set(seen)) > 1, "parts from different places"


def test_pictures_are_found_below_a_folder_and_bad_ones_have_a_problem(own):
    (own / "more").mkdir()
    cv2.imwrite(str(own / "more" / "grey.jpg"), np.full((40, 60), 90, np.uint8))
    (own / "broken.png").write_bytes((own / "page.png").read_bytes()[:200])
    (own / "notes.txt").write_text("no picture")
    found = find_user_images(own)
    assert [path.name for path in found] == ["broken.png", "page.png", "grey.jpg"]
    assert [problem_of(path) is None for path in found] == [False, True, True]
    assert "broken.png" in problem_of(found[0])
    assert load_pixels(found[2]).shape == (40, 60, 3)


def test_of_very_many_pictures_some_are_chosen_the_same_each_time(own, monkeypatch):
    monkeypatch.setattr(dataset, "MOST_OWN", 5)
    for number in range(30):
        (own / f"{number:02d}.png").touch()
    chosen = find_user_images(own)
    assert len(set(chosen)) == 5
    assert chosen == find_user_images(own) == tuple(sorted(chosen))
    assert chosen[-1].name > "09.png", "not the first ones only"


def test_a_large_picture_is_kept_smaller(own):
    cv2.imwrite(str(own / "large.jpg"), np.full((3000, 4000, 3), 200, np.uint8))
    pixels = load_pixels(own / "large.jpg")
    assert pixels.nbytes <= 12 << 20
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(4 / 3, rel=0.01)


def test_folders_without_a_picture_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a directory"):
        find_user_images(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"holds no picture that can be read$"):
        find_user_images(tmp_path)


# ------------------------------------------------------------------------------------------- cache


def test_detector_inputs_come_from_the_cache_the_second_time(tmp_path, monkeypatch):
    first = Dataset(1, FONTS, cache=tmp_path).det_input(0, 128)

    def refuse(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(dataset, "draw_page", refuse)
    assert (Dataset(1, FONTS, cache=tmp_path).det_input(0, 128) == first).all()
    with pytest.raises(AssertionError, match="drawn again"):
        Dataset(2, FONTS, cache=tmp_path).det_input(0, 128)
    with pytest.raises(AssertionError, match="drawn again"):
        Dataset(1, FONTS[1:], cache=tmp_path).det_input(0, 128)


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path):
    first = Dataset(1, FONTS, cache=tmp_path).det_input(0, 128)
    (file,) = tmp_path.rglob("*.png")
    file.write_bytes(b"damaged")
    assert (Dataset(1, FONTS, cache=tmp_path).det_input(0, 128) == first).all()
    assert file.read_bytes() != b"damaged"


# ------------------------------------------------------------------------------------------- evaluation


def test_evaluation_is_labelled_pages_that_are_the_same_every_time(tmp_path):
    labels, again = (write_evaluation(tmp_path / name, 3, 4, FONTS) for name in ("a", "b"))
    pages = load_labels(labels)
    assert [page.image.rsplit(".")[-1] for page in pages] == ["png", "jpg", "png", "jpg"]
    for page in pages:
        pixels = cv2.imread(str(labels.parent / page.image))
        assert page.lines and all(line.text and line.box for line in page.lines)
        assert max(x for line in page.lines for x, _ in line.box) <= pixels.shape[1]
        assert max(y for line in page.lines for _, y in line.box) <= pixels.shape[0]
    files = [path.name for path in sorted(labels.parent.iterdir())]
    assert files == [path.name for path in sorted(again.parent.iterdir())] and len(files) == 5
    assert all((labels.parent / name).read_bytes() == (again.parent / name).read_bytes() for name in files)


def test_pages_of_the_evaluation_are_not_trained_on(tmp_path):
    (page,) = load_labels(write_evaluation(tmp_path, 3, 1, FONTS))
    assert (cv2.imread(str(tmp_path / page.image)) == draw_page(3, FIRST_EVALUATION, FONTS).pixels).all()
    assert FIRST_EVALUATION > 10**8


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file/0000"):
        write_evaluation(tmp_path / "file", 3, 1, FONTS)
