"""Files are found and read one by one; what is wrong with one is its own affair."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
import pytest

from agent.batch import find_pictures, printable, read_files
from agent.bundle import ModelBundle
from agent.engines import EngineSettings
from agent.errors import BudgetError, ExitCode
from agent.memory import MB, Budget
from agent.page import Frame, PageResult
from agent.reader import Reader, ReaderSettings
from tests import bad_inputs as bad
from tests import pdf_files as pdf

AMPLE = Budget.plan(1000, 0)


class BlankReader:
    """Reads every page as blank, and keeps no page."""

    budget = AMPLE

    def read(self, frame: Frame) -> PageResult:
        return PageResult(frame.source, frame.width, frame.height, seconds=0.5)


class HungryReader(BlankReader):
    """Runs out of memory at every wide page."""

    def read(self, frame: Frame) -> PageResult:
        if frame.width > frame.height:
            raise MemoryError
        return super().read(frame)


class BrokenReader(BlankReader):
    """Fails at every wide page as only a defect would."""

    def read(self, frame: Frame) -> PageResult:
        if frame.width > frame.height:
            raise ZeroDivisionError("one\nline")
        return super().read(frame)


class PoorReader(BlankReader):
    """Finds that its budget is too small for any page."""

    def read(self, frame: Frame) -> PageResult:
        raise BudgetError("a memory limit of 1 MB is too small for any page: give 100 MB")


@pytest.fixture(scope="module")
def reader(portable: ModelBundle) -> Iterator[Reader]:
    opened = Reader(portable, ReaderSettings(memory_mb=1000, engine=EngineSettings()))
    yield opened
    opened.close()


def drawn(path: Path, width: int = 60, height: int = 40) -> Path:
    cv2.imwrite(str(path), np.full((height, width, 3), 255, np.uint8))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """A tall, a wide and another tall page."""
    return [
        drawn(tmp_path / f"{name}.png", *size) for name, size in zip("abc", ((20, 90), (90, 20), (30, 90)), strict=True)
    ]


# -------------------------------------------------------------------------------------------------- finding


def test_folder_gives_every_picture_below_in_order_of_name(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a/x.tiff", "c.webp", "b/deep/er/y.bmp", "b/notes.txt", "a/z.gif", "b/.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(path.relative_to(tmp_path)) for path in find_pictures([tmp_path])]
    assert found == ["c.webp", "a/x.tiff", "b/10.png", "b/2.JPG", "b/deep/er/y.bmp"]


def test_files_are_taken_as_given_in_their_order(tmp_path):
    given = [tmp_path / "z.txt", tmp_path / "missing.png", tmp_path / "a.png"]
    given[0].touch()
    assert find_pictures(given) == given


def test_folder_that_contains_itself_is_walked_once(tmp_path):
    bad.loop(tmp_path / "loop")
    assert find_pictures([tmp_path / "loop"]) == [tmp_path / "loop" / "page.png"]


def test_link_to_a_folder_is_walked_when_it_is_given(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "link").symlink_to("real")
    assert find_pictures([tmp_path / "link"]) == [tmp_path / "link" / "a.png"]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_name_that_no_file_can_have_is_a_file_that_cannot_be_read(tmp_path, name):
    path = tmp_path / name
    assert find_pictures([path]) == [path]
    ((page, code),) = read_files(BlankReader(), [path], None)
    assert code is ExitCode.NO_INPUT and page.reason == "input"


def test_folder_that_cannot_be_listed_is_a_failure_and_not_silence(tmp_path):
    # Deeper than any path may be long, which even root cannot list.
    drawn(tmp_path / "page.png")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    results = list(read_files(BlankReader(), find_pictures([tmp_path]), None))
    assert [code for _, code in results] == [ExitCode.OK, ExitCode.NO_INPUT]
    assert "File name too long" in results[1][0].error


# -------------------------------------------------------------------------------------------------- reading


def test_pages_are_read_one_at_a_time_as_they_are_asked_for(three):
    results = read_files(BlankReader(), three, None)
    assert next(results)[0].image == str(three[0])
    three[1].unlink()
    page, code = next(results)
    assert (page.reason, code) == ("input", ExitCode.NO_INPUT)
    assert next(results)[1] is ExitCode.OK


def test_time_to_decode_counts_as_time_of_the_page(three):
    ((page, _),) = read_files(BlankReader(), three[:1], None)
    assert page.seconds > 0.5
    assert set(page.timings_ms) == {"decode"}


def test_page_that_runs_out_of_memory_does_not_stop_the_others(three):
    (_, first), (page, second), (_, third) = read_files(HungryReader(), three, None)
    assert (first, second, third) == (ExitCode.OK, ExitCode.TEMPORARY, ExitCode.OK)
    assert page.reason == "memory" and "raise --memory-mb or free memory" in page.error


def test_defect_costs_one_page_and_is_told_with_its_place(three, caplog):
    (_, first), (page, second), (_, third) = read_files(BrokenReader(), three, None)
    assert (first, second, third) == (ExitCode.OK, ExitCode.SOFTWARE, ExitCode.OK)
    assert page.reason == "defect"
    assert page.error.endswith("left out, a defect of this program (ZeroDivisionError: one\\nline)")
    assert 'raise ZeroDivisionError("one' in caplog.text


def test_budget_too_small_for_any_page_stops_at_once(three):
    with pytest.raises(BudgetError):
        list(read_files(PoorReader(), three, None))


def test_no_frame_is_kept_beside_the_next_one(three):
    seen: list[weakref.ref[np.ndarray]] = []
    kept: list[int] = []

    class WatchingReader(HungryReader):
        def read(self, frame: Frame) -> PageResult:
            kept.append(sum(old() is not None for old in seen))
            seen.append(weakref.ref(frame.pixels))
            return super().read(frame)

    assert [code for _, code in read_files(WatchingReader(), three, None)] == [0, 75, 0]
    assert kept == [0, 0, 0]


def test_error_messages_are_one_line_of_valid_unicode(tmp_path):
    names = ["two\nlines.png", os.fsdecode(b"caf\xe9.png")]
    for page, _ in read_files(BlankReader(), [tmp_path / name for name in names], None):
        assert "\n" not in page.error
        page.error.encode()
        page.image.encode()


def test_names_are_shown_as_given_or_escaped():
    assert printable(Path("页 1.png")) == "页 1.png"
    assert printable(Path(os.fsdecode(b"caf\xe9.png"))) == "caf\\xe9.png"


def test_document_gives_a_row_and_an_overlay_for_each_page(tmp_path):
    (tmp_path / "letter.pdf").write_bytes(pdf.document(*((pdf.written(str(n)),) for n in range(3))))
    drawn(tmp_path / "page.png")
    (tmp_path / "overlay").mkdir()
    rows = [page for page, _ in read_files(BlankReader(), find_pictures([tmp_path]), tmp_path / "overlay")]
    assert [(Path(row.image).name, row.page, row.pages) for row in rows] == [
        *(("letter.pdf", number, 3) for number in (1, 2, 3)),
        ("page.png", 0, 0),
    ]
    assert sorted(path.name for path in (tmp_path / "overlay").iterdir()) == [
        *(f"letter.pdf.p{number}.boxes.jpg" for number in (1, 2, 3)),
        "page.png.boxes.jpg",
    ]


def test_page_of_a_document_that_cannot_be_read_stops_nothing(tmp_path):
    path = tmp_path / "letter.pdf"
    path.write_bytes(pdf.document((pdf.written("x"),)).replace(b"/Count 1", b"/Count 2"))
    (_, first), (second, code) = read_files(BlankReader(), [path], None)
    assert (first, code) == (ExitCode.OK, ExitCode.DATA)
    assert (second.page, second.pages, second.reason) == (2, 2, "damaged")


def test_document_that_cannot_be_read_is_one_row(tmp_path):
    path = tmp_path / "letter.pdf"
    path.write_bytes(pdf.document((pdf.written("x"),)).replace(b"/Root", b"/Encrypt<</Filter/X>>/Root"))
    ((page, code),) = read_files(BlankReader(), [path], None)
    assert (page.page, page.pages, page.reason, code) == (0, 0, "encrypted", ExitCode.DATA)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_turned_page_is_read_upright_and_tells_its_direction(reader, tmp_path, quarters):
    path = tmp_path / "page.png"
    cv2.imwrite(str(path), np.rot90(np.asarray(bad.page()), -quarters))
    ((page, code),) = read_files(reader, [path], None)
    assert code is ExitCode.OK
    assert page.direction == 90 * quarters
    assert page.lines[0].text == bad.TEXT
    (ax, ay), (bx, by), *_ = page.lines[0].quad
    along = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]
    assert (bx - ax) * along[0] + (by - ay) * along[1] > 200


def test_reduced_page_has_its_quads_in_pixels_of_the_picture(reader, tmp_path, monkeypatch):
    large = cv2.resize(np.asarray(bad.page()), None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "page.png"), large)
    ((page, _),) = read_files(reader, [tmp_path / "page.png"], None)
    monkeypatch.setattr(reader, "budget", msgspec.structs.replace(reader.budget, frame_bytes=MB // 2))
    ((reduced, _),) = read_files(reader, [tmp_path / "page.png"], None)
    assert (page.width, page.height) == (reduced.width, reduced.height) == (1140, 900)
    assert reduced.lines[0].text == page.lines[0].text == bad.TEXT
    for a, b in zip(page.lines[0].quad, reduced.lines[0].quad, strict=True):
        assert a == pytest.approx(b, abs=15)


# ------------------------------------------------------------------------------------------------- overlays


def test_overlays_of_pages_of_one_name_are_several_files(tmp_path):
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        drawn(tmp_path / folder / "page.png")
    out = tmp_path / "out"
    out.mkdir()
    list(read_files(BlankReader(), find_pictures([tmp_path / "a", tmp_path / "b", tmp_path / "c"]), out))
    assert sorted(path.name for path in out.iterdir()) == [
        "page.png.2.boxes.jpg",
        "page.png.3.boxes.jpg",
        "page.png.boxes.jpg",
    ]


def test_overlay_has_a_name_whatever_the_picture_is_called(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    paths = [tmp_path / "two\nlines.png", tmp_path / os.fsdecode(b"caf\xe9.png")]
    for path in paths:
        path.write_bytes(drawn(tmp_path / "plain.png").read_bytes())
    assert [code for _, code in read_files(BlankReader(), paths, out)] == [ExitCode.OK] * 2
    assert sorted(path.name for path in out.iterdir()) == ["caf\\xe9.png.boxes.jpg", "two_lines.png.boxes.jpg"]


def test_overlay_that_cannot_be_written_fails_the_page(tmp_path):
    ((page, code),) = read_files(BlankReader(), [drawn(tmp_path / "a.png")], tmp_path / "nowhere")
    assert code is ExitCode.NO_INPUT and "nowhere" in page.error
