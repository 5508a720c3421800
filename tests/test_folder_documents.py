"""Documents in a folder: page by page, each with its own verdict, and one place for the file at the end."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from agent.config import AgentConfig, OutboxConfig
from agent.errors import FrameError
from agent.openers import open_sources
from agent.source_config import DocumentsConfig, FolderConfig
from agent.sources.folder.source import FolderSource
from agent.worker import Worker
from tests import bad_inputs as bad
from tests import pdf_files as pdf
from tests.bombs import _pages
from tests.sources_contract import AMPLE, SourceContract, drained
from tests.stub_worker import CRASHES, FAILS, READS, draw
from tests.system.branch import until
from tests.test_folder import POLL_S, STABLE_S, FolderRig
from tests.test_worker import Bench, Child

DAMAGED = FrameError("damaged", "x: damaged")


def text_pdf(number: int, pages: int = 1) -> bytes:
    return pdf.document(*((pdf.written(f"document {number} page {page}"),) for page in range(1, pages + 1)))


class DocumentRig(FolderRig):
    """A folder that documents of one page are put into."""

    def put(self, number: int, name: str = "", pages: int = 1) -> Path:
        path = self.path / (name or f"document-{number}.pdf")
        path.write_bytes(text_pdf(number, pages))
        return path


@pytest.fixture
def rig(tmp_path):
    made = DocumentRig(tmp_path / "scans")
    yield made
    if made.source is not None:
        made.source.close()


class TestContract(SourceContract):
    """A folder is a source of documents, too."""


class TestContractReadingAgain(SourceContract):
    """It is one too where the same content is read again."""

    @pytest.fixture
    def rig(self, rig):
        rig.settings["again"] = "read"
        return rig


# ------------------------------------------------------------------------------------------------ order and keys


def test_pages_come_in_order_before_the_next_file(rig):
    source = rig.open()
    os.utime(rig.put(1, "a.pdf", pages=3), (1, 1))
    os.utime(rig.put(2, "b.pdf", pages=2), (2, 2))
    captures = rig.offered()
    assert [(c.name, c.page, c.pages) for c in captures] == [
        *(("a.pdf", page, 3) for page in (1, 2, 3)),
        *(("b.pdf", page, 2) for page in (1, 2)),
    ]
    assert all(source.done(capture) == "" for capture in captures[:2])
    assert rig.below("done") == []


@pytest.mark.parametrize("again", ["skip", "read"])
def test_keys_tell_content_and_page_and_stay_over_restarts(rig, again):
    rig.open(again=again)
    data = rig.put(1, pages=3).read_bytes()
    keys = [capture.key for capture in rig.offered()]
    assert [key.split(":")[0] for key in keys] == [hashlib.sha256(data).hexdigest()] * 3
    assert [key.rpartition(":")[2] for key in keys] == ["p1", "p2", "p3"]
    assert len({key.rpartition(":")[0] for key in keys}) == 1
    for _ in range(2):
        assert [capture.key for capture in drained(rig.open(), rig)] == keys


def test_there_is_more_at_once_while_a_document_has_pages(rig):
    source = rig.open()
    rig.put(1, pages=2)
    rig.settle()
    assert source.poll().page == 1
    assert source.next_s() == 0
    assert source.poll().page == 2
    assert source.poll() is None
    assert source.next_s() > 0


def test_pages_are_those_of_the_document(rig):
    rig.open()
    shades = (10, 100, 200)
    pages = [(pdf.stream(b"%f g 0 0 595 842 re f" % (shade / 255)),) for shade in shades]
    (rig.path / "shades.pdf").write_bytes(pdf.document(*pages))
    for capture, shade in zip(rig.offered(), shades, strict=True):
        frame = capture.load(AMPLE)
        assert frame.key == capture.key
        assert abs(int(frame.pixels.mean()) - shade) <= 1


def test_tiff_of_several_pages_is_a_document_whatever_its_name(rig):
    source = rig.open()
    first, second = bad.page().convert("RGB"), bad.page().rotate(180).convert("RGB")
    (rig.path / "scan.jpg").write_bytes(pdf.saved(first, "TIFF", save_all=True, append_images=[second]))
    captures = rig.offered()
    assert [(c.page, c.pages, c.load(AMPLE).pixels.shape) for c in captures] == [(n, 2, (300, 380, 3)) for n in (1, 2)]
    assert source.done(captures[0]) == ""
    assert Path(source.done(captures[1])).name == "scan.jpg"


def test_settings_of_documents_are_used(tmp_path, rig):
    config = FolderConfig(name="scans", path=str(rig.path))
    rig.source = source = FolderSource(config, rig.clock, DocumentsConfig(max_pages=2, pdf_dpi=72))
    rig.put(1, "a.pdf", pages=2)
    rig.put(2, "b.pdf", pages=3)
    *pages, refused = rig.offered()
    assert pages[0].load(AMPLE).pixels.shape == (842, 595, 3)
    with pytest.raises(FrameError, match=r"the limit is 2: raise documents\.max_pages"):
        refused.load(AMPLE)
    source.close()


# ------------------------------------------------------------------------------------------------ verdicts


def test_document_is_done_when_all_pages_are(rig):
    source = rig.open()
    rig.put(1, pages=3)
    first, second, third = rig.offered()
    assert [source.done(capture) for capture in (second, first)] == ["", ""]
    assert Path(source.done(third)).parent.name == "done"
    assert rig.below("done") == ["document-1.pdf"]


def test_document_with_refused_pages_fails_and_its_note_names_them(rig):
    source = rig.open(when_done="delete")
    rig.put(1, pages=4)
    first, second, third, fourth = rig.offered()
    source.done(first)
    source.done(second, FrameError("damaged", f"{second.path}: no\nuse"))
    source.done(third)
    place = Path(source.done(fourth, FrameError("memory", f"{fourth.path}: too large")))
    assert place.parent.name == "failed"
    assert (place.parent / f"{place.name}.reason.txt").read_text() == (
        "pages: document-1.pdf: 2 of 4 pages were not read: "
        "page 2: damaged: document-1.pdf: no\\nuse; page 4: memory: document-1.pdf: too large\n"
    )


def test_note_on_a_document_without_any_page_stays_short(rig):
    source = rig.open()
    rig.put(1, pages=50)
    for capture in rig.offered():
        source.done(capture, DAMAGED)
    note = (rig.path / "failed" / "document-1.pdf.reason.txt").read_text()
    assert "50 of 50 pages were not read" in note and note.endswith("; and 30 more\n")
    assert "page 20:" in note and "page 21:" not in note


def test_documents_that_were_read_are_deleted_where_that_is_set(rig):
    source = rig.open(when_done="delete")
    rig.put(1, pages=2)
    for capture in rig.offered():
        assert source.done(capture) == ""
    assert rig.below("done") == rig.below("failed") == []
    assert os.listdir(rig.path / ".edge-ocr" / "work") == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.7\nnothing at all\n%%EOF\n", "damaged"),
        (_pages(300), "pages"),
        (pdf.document((pdf.written("x"),)).replace(b"/Root", b"/Encrypt<</Filter/X>>/Root"), "encrypted"),
    ],
)
def test_document_that_cannot_be_read_is_refused_as_a_whole(rig, data, reason):
    source = rig.open()
    (rig.path / "bad.pdf").write_bytes(data)
    (capture,) = rig.offered()
    assert (capture.page, capture.pages) == (0, 0)
    with pytest.raises(FrameError) as refused:
        capture.load(AMPLE)
    assert refused.value.reason == reason
    source.done(capture, refused.value)
    note = (rig.path / "failed" / "bad.pdf.reason.txt").read_text()
    assert note.startswith(f"{reason}: bad.pdf: ") and ".edge-ocr" not in note


def test_pdf_without_its_end_gets_time_and_is_then_refused(rig):
    source = rig.open()
    data, path = text_pdf(1, 2), rig.path / "slow.pdf"
    path.write_bytes(data[:-20])
    assert rig.offered() == []
    path.write_bytes(data)
    assert len(rig.offered()) == 2
    (rig.path / "cut.pdf").write_bytes(data[:-20])
    assert rig.offered() == []
    rig.clock.wait(60)
    (capture,) = drained(source, rig)
    with pytest.raises(FrameError) as refused:
        capture.load(AMPLE)
    assert refused.value.reason == "truncated"


# ------------------------------------------------------------------------------------------------ in between


def test_page_that_nothing_was_decided_about_comes_before_the_others(rig):
    source = rig.open()
    rig.put(1, pages=3)
    rig.settle()
    first = source.poll()
    source.done(first)
    second = source.poll()
    source.retry(second)
    assert source.poll() is None
    rig.clock.wait(source.next_s())
    captures = drained(source, rig)
    assert [capture.page for capture in captures] == [2, 3]
    places = [source.done(capture) for capture in captures]
    assert places[0] == "" and Path(places[1]).parent.name == "done"


def test_restart_in_between_offers_all_pages_again_under_their_keys(rig):
    source = rig.open()
    rig.put(1, pages=3)
    captures = rig.offered()
    source.done(captures[0])
    source.done(captures[1], DAMAGED)
    source = rig.open()
    again = drained(source, rig)
    assert [capture.key for capture in again] == [capture.key for capture in captures]
    for capture in again:
        place = source.done(capture)
    assert Path(place).parent.name == "done"


def test_document_that_is_taken_away_in_between_holds_nothing_up(rig):
    source = rig.open()
    os.utime(rig.put(1, "a.pdf", pages=3), (1, 1))
    rig.put(2, "b.pdf")
    rig.settle()
    first = source.poll()
    shutil.rmtree(first.path.parent)
    with pytest.raises(Exception, match="No such file"):
        first.load(AMPLE)
    assert source.done(first, DAMAGED) == ""
    assert [capture.name for capture in drained(source, rig)] == ["b.pdf"]


def test_verdicts_on_pages_of_a_document_that_went_are_no_matter(rig):
    source = rig.open()
    rig.put(1, pages=3)
    rig.settle()
    first, second = source.poll(), source.poll()
    shutil.rmtree(first.path.parent)
    assert source.poll() is None
    assert source.done(first) == source.done(second, DAMAGED) == ""
    source.retry(second)


def test_document_that_is_written_to_in_between_is_offered_anew(rig):
    source = rig.open()
    rig.put(1, pages=3)
    rig.settle()
    first, second = source.poll(), source.poll()
    source.done(first)
    with open(second.path, "ab") as file:
        file.write(b"\n% more\n")
    with pytest.raises(FrameError) as refused:
        second.load(AMPLE)
    assert refused.value.reason == "changed"
    assert source.done(second, refused.value) == ""
    assert source.poll() is None
    rig.clock.wait(STABLE_S)
    captures = drained(source, rig) or rig.offered()
    assert [capture.page for capture in captures] == [1, 2, 3]
    assert captures[0].key != first.key
    assert source.done(first) == ""  # of what lay there before
    assert [bool(source.done(capture)) for capture in captures] == [False, False, True]


def test_document_that_is_written_to_between_pages_is_offered_anew(rig):
    source = rig.open()
    rig.put(1, pages=3)
    rig.settle()
    first = source.poll()
    source.done(first)
    with open(first.path, "ab") as file:
        file.write(b"\n% more\n")
    assert source.poll() is None
    rig.clock.wait(STABLE_S + POLL_S)
    captures = drained(source, rig)
    assert [capture.page for capture in captures] == [1, 2, 3]
    assert captures[0].key != first.key


def with_one_page_read(rig: DocumentRig) -> FolderSource:
    source = rig.open()
    rig.put(1, pages=3)
    rig.settle()
    source.done(source.poll())
    return source


def test_folder_that_goes_away_and_comes_back_goes_on_with_the_next_page(rig, tmp_path):
    source = with_one_page_read(rig)
    rig.path.rename(tmp_path / "away")
    rig.clock.wait(POLL_S)
    assert source.poll() is None and source.trouble()
    (tmp_path / "away").rename(rig.path)
    rig.clock.wait(POLL_S)
    captures = drained(source, rig)
    assert [capture.page for capture in captures] in ([2, 3], [1, 2, 3])
    assert Path([source.done(capture) for capture in captures][-1]).parent.name == "done"


def test_folder_that_is_away_between_two_pages_is_waited_for_and_found(rig, tmp_path):
    """Looked for again and again, however often somebody polls: each look that fails must not put the next one off."""
    source = with_one_page_read(rig)
    rig.path.rename(tmp_path / "away")
    rig.path.write_text("no folder, and none can be made here")
    rig.clock.wait(POLL_S)  # it is listed then
    for _ in range(6):
        assert source.poll() is None
        assert source.next_s() > 0
        rig.clock.wait(POLL_S / 3)
    rig.path.unlink()
    (tmp_path / "away").rename(rig.path)
    found = []
    for _ in range(12):
        found.append(source.poll())
        rig.clock.wait(POLL_S / 3)
    assert any(found)


def test_document_that_was_put_away_is_read_again_as_a_whole(rig):
    source = rig.open()
    rig.put(1, pages=2)
    captures = rig.offered()
    place = [source.done(capture) for capture in captures][-1]
    assert source.reread(place)
    again = drained(source, rig)
    assert [capture.page for capture in again] == [1, 2]
    assert not {capture.key for capture in again} & {capture.key for capture in captures}
    assert {capture.key.split(":")[0] for capture in again} == {captures[0].key.split(":")[0]}


# ------------------------------------------------------------------------------------------------ with the worker


def draw_document(path: Path, pages: Sequence[tuple[int, int]]) -> None:
    """Write a PDF whose pages the stub knows by their numbers, and what reading them does."""
    drawn = []
    for number, action in pages:
        draw(path.with_name(".page.png"), number, action)
        with Image.open(path.with_name(".page.png")) as picture:
            drawn.append((pdf.stream(b"q 100 0 0 100 0 0 cm /O0 Do Q"), pdf.packed(picture.convert("RGB"))))
    path.with_name(".page.png").unlink()
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(pdf.document(*drawn, about=[b"/MediaBox[0 0 100 100]"] * len(drawn)))
    fresh.rename(path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, OutboxConfig(min_free_mb=0, ballast_mb=0))
    yield bench
    bench.worker.close()
    bench.outbox.close()


def test_each_page_becomes_a_row_that_tells_its_place_in_the_document(bench):
    draw_document(bench.inbox / "letter.pdf", [(7, READS), (8, READS), (9, READS)])
    bench.work_until(lambda: bench.state.accepted == 3)
    rows = bench.rows()
    assert [row["lines"][0]["text"] for row in rows] == [f"page-0000000{n}" for n in (7, 8, 9)]
    assert [(row["image"], row["page"], row["pages"]) for row in rows] == [("letter.pdf", n, 3) for n in (1, 2, 3)]
    assert len({row["key"].partition(":")[0] for row in rows}) == 1
    assert bench.files("done") == ["letter.pdf"]


def test_any_page_can_be_asked_for_and_the_document_is_read_again(bench):
    draw_document(bench.inbox / "letter.pdf", [(7, READS), (8, READS)])
    bench.work_until(lambda: bench.state.accepted == 2)
    first, _ = bench.rows()
    assert bench.outbox.ask("order-1", "reread", first["key"])
    bench.work_until(lambda: bench.state.accepted == 4)
    assert [row["page"] for row in bench.rows()] == [1, 2, 1, 2]


def test_page_that_fails_leaves_the_others_accepted(bench, caplog):
    draw_document(bench.inbox / "letter.pdf", [(7, READS), (8, FAILS), (9, READS)])
    bench.work_until(lambda: bench.state.accepted + bench.state.failed == 3)
    assert [row["page"] for row in bench.rows()] == [1, 3]
    assert bench.files("failed") == ["letter.pdf", "letter.pdf.reason.txt"]
    # Put in again, the pages that were accepted are known; the other has its chance.
    shutil.copy(bench.inbox / "failed" / "letter.pdf", bench.inbox / "again.pdf")
    bench.work_until(lambda: bench.state.skipped == 2 and bench.state.failed == 2)
    assert len(bench.rows()) == 2


def test_page_that_fails_often_is_not_taken_for_one_that_ends_the_worker(bench):
    for number in range(5):
        draw_document(bench.inbox / f"{number}.pdf", [(8, FAILS), (9, READS)])
        bench.work_until(lambda number=number: bench.state.failed == number + 1 and not any(bench.inbox.glob("*.pdf")))
    notes = [(bench.inbox / "failed" / f"{number}.pdf.reason.txt").read_text() for number in range(5)]
    assert all("page 1: defect" in note and "crash" not in note for note in notes)


def test_other_folders_have_their_turn_between_pages(tmp_path):
    inboxes = [tmp_path / name for name in ("a", "b")]
    for inbox in inboxes:
        inbox.mkdir()
    folders = [FolderConfig(name=i.name, path=str(i), stable_s=0.05, poll_s=0.05) for i in inboxes]
    draw_document(inboxes[0] / "long.pdf", [(number, READS) for number in range(4)])
    for number in (7, 8):
        draw(inboxes[1] / f"{number}.png", number)
    bench = Bench(tmp_path, OutboxConfig(min_free_mb=0, ballast_mb=0))
    bench.worker.close()
    config = AgentConfig(device="box-1", state_dir=str(tmp_path / "state"), source=tuple(folders))
    sources = open_sources(config, bench.clock)
    bench.worker = Worker(config, bench.outbox, sources, lambda: (bench.reader, "stub"), bench.clock)
    bench.worker.start()
    bench.work_until(lambda: bench.state.accepted == 6)
    assert "aaa" not in "".join(row["source"] for row in bench.rows())[:5]
    bench.worker.close()
    bench.outbox.close()


def test_page_that_ends_the_process_is_put_aside_and_no_page_is_read_twice(tmp_path):
    child = Child(tmp_path)
    draw_document(tmp_path / "inbox" / "letter.pdf", [(7, READS), (8, CRASHES), (9, READS)])
    for _ in range(3):
        with child.start() as process:
            assert process.wait(30) == -signal.SIGSEGV
            assert child.rows() == ["page-00000007"]
    with child.start() as process:
        note = tmp_path / "inbox" / "failed" / "letter.pdf.reason.txt"
        assert until(note.exists) < 30
        process.terminate()
        assert process.wait(30) == 0
    assert child.rows() == ["page-00000007", "page-00000009"]
    assert "1 of 3 pages were not read: page 2: crash" in note.read_text()
