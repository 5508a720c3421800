"""Documents page by page: each page as large as its scan, the right way round, and nothing that a file can do to us."""

from __future__ import annotations

import functools
import io
import os
import random
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from agent.documents import pdf as pdfs
from agent.documents import press
from agent.documents.document import Document, is_complete, load_page, look_into
from agent.errors import FrameError, InputError
from agent.memory import MB, Budget
from agent.page import Frame
from agent.source_config import DocumentsConfig
from agent.tiff import MAX_DIRECTORIES
from tests import bombs
from tests import pdf_files as pdf

AMPLE = Budget.plan(1000, 0)
TIGHT = Budget.plan(180, 105 * MB)
USUAL = DocumentsConfig()


def page(width: int = 300, height: int = 424, corner: str = "black") -> Image.Image:
    """Return a page that shows when it is turned, mirrored or inverted: dark at the top left, a line at the left."""
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width // 3, height // 5), fill=corner)
    draw.rectangle((0, height // 2, width // 20, height), fill="black")
    return picture


def look(tmp_path: Path, data: bytes, settings: DocumentsConfig = USUAL) -> tuple[Path, Document | None]:
    path = tmp_path / "file"
    path.write_bytes(data)
    return path, look_into(path, settings)


def load(tmp_path: Path, data: bytes, number: int = 1, budget: Budget = AMPLE, **settings: float) -> Frame:
    """Return a page of a document."""
    given = DocumentsConfig(**settings)
    path, document = look(tmp_path, data, given)
    assert document is not None
    return load_page(path, "desk", document, number, given, budget)


def refusal(tmp_path: Path, data: bytes, **settings: float) -> FrameError:
    """Return why a document's first page, or the whole of it, is refused."""
    with pytest.raises(FrameError) as refused:
        load(tmp_path, data, **settings)
    assert "\n" not in str(refused.value)
    return refused.value


def grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)


def is_like(frame: Frame, picture: Image.Image, most: float = 4) -> bool:
    """Return whether a frame has a picture's very size, and looks like it."""
    expected = np.asarray(picture.convert("L"))
    found = grey(frame.pixels)
    return found.shape == expected.shape and float(np.abs(found.astype(int) - expected).mean()) < most


# ------------------------------------------------------------------------------------------------ scans

IMAGES = {
    "jpeg": lambda: pdf.jpeg(page()),
    "jpeg-grey": lambda: pdf.jpeg(page().convert("L")),
    "jpeg-cmyk": lambda: pdf.jpeg(page().convert("CMYK"), b"/Decode[1 0 1 0 1 0 1 0]"),
    "jpeg-2000": lambda: pdf.jpeg_2000(page()),
    "colour": lambda: pdf.packed(page()),
    "grey": lambda: pdf.packed(page().convert("L")),
    "bilevel": lambda: pdf.packed(page().convert("1")),
    "fax": lambda: pdf.fax(page()),
    "jbig2": lambda: pdf.jbig2(page()),
    "stencil": lambda: pdf.mask(page()),
    "inverted": lambda: pdf.packed(page().convert("L").point(lambda v: 255 - v), b"/Decode[1 0]"),
    "inverted-jpeg": lambda: pdf.jpeg(page().convert("L").point(lambda v: 255 - v), b"/Decode[1 0]"),
    "inverted-bilevel": lambda: pdf.packed(page().convert("L").point(lambda v: 255 - v).convert("1"), b"/Decode[1 0]"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_scan_has_its_own_pixels_black_on_white(tmp_path, name):
    frame = load(tmp_path, pdf.whole(IMAGES[name]()))
    assert (frame.width, frame.height) == (300, 424)
    assert is_like(frame, page(), 20 if "cmyk" in name else 4)  # black ink alone is no black
    assert frame.source == "desk" and frame.taken_at > 0
    assert not frame.pixels.flags.writeable


@pytest.mark.parametrize("make", [pdf.jpeg, pdf.packed])
@pytest.mark.parametrize("turn", [0, 90, 180, 270, 450])
def test_page_is_turned_as_it_is_shown(tmp_path, turn, make):
    frame = load(tmp_path, pdf.whole(make(page()), turn=turn))
    assert is_like(frame, page().rotate(-turn, expand=True))
    assert (frame.height, frame.width) == frame.pixels.shape[:2]


@pytest.mark.parametrize(
    ("matrix", "how"),
    [
        ((-595, 0, 0, 842, 595, 0), Image.Transpose.FLIP_LEFT_RIGHT),
        ((595, 0, 0, -842, 0, 842), Image.Transpose.FLIP_TOP_BOTTOM),
        ((-595, 0, 0, -842, 595, 842), Image.Transpose.ROTATE_180),
    ],
)
def test_image_that_is_placed_mirrored_is_seen_mirrored(tmp_path, matrix, how):
    content = pdf.stream(b"q %d %d %d %d %d %d cm /O0 Do Q" % matrix)
    frame = load(tmp_path, pdf.document((content, pdf.jpeg(page()))))
    assert is_like(frame, page().transpose(how))


def test_image_that_lies_on_its_side_is_stood_up(tmp_path):
    content = pdf.stream(b"q 0 842 -595 0 595 0 cm /O0 Do Q")  # a quarter turn anticlockwise
    frame = load(tmp_path, pdf.document((content, pdf.packed(page(424, 300)))))
    assert is_like(frame, page(424, 300).rotate(90, expand=True))


OVER = {
    "nothing": (b"", True),
    "unseen text": (b"BT 3 Tr /F 24 Tf 72 700 Td (unseen) Tj ET", True),
    "a white area": (b"1 1 1 rg 590 0 5 5 re f", True),
    "a frame of lines": (b"1 1 1 RG " + b"0 0 m 5 5 l S " * 30, True),
    "seen text": (b"BT /F 24 Tf 72 500 Td (PAID) Tj ET", False),
}


@pytest.mark.parametrize("name", OVER)
def test_what_lies_over_a_scan_changes_its_size_only_when_it_is_seen(tmp_path, name):
    more, same = OVER[name]
    frame = load(tmp_path, pdf.whole(pdf.jpeg(page()), more=more))
    if same:
        assert is_like(frame, page())
    else:  # 36 dpi would do for the scan, and not for the stamp on it
        assert (frame.width, frame.height) == (1653, 2339)
        assert grey(frame.pixels)[900:960, 200:420].min() < 100


def test_fine_scan_with_a_stamp_stays_fine(tmp_path):
    fine = page(2480, 3508)
    frame = load(tmp_path, pdf.whole(pdf.fax(fine), more=OVER["seen text"][0]))
    assert abs(frame.width - 2480) <= 2 and abs(frame.height - 3508) <= 2


def test_annotation_is_seen(tmp_path):
    look_of_it = pdf.stream(b"0 g 0 0 100 50 re f", b"/Type/XObject/Subtype/Form/BBox[0 0 100 50]")
    note = b"<</Type/Annot/Subtype/Stamp/Rect[300 300 400 350]/F 4/AP<</N 7 0 R>>>>"
    about = b"/MediaBox[0 0 595 842]/Annots[6 0 R]"
    data = pdf.document(
        (pdf.stream(b"q 595 0 0 842 0 0 cm /O0 Do Q"), pdf.jpeg(page()), note, look_of_it), about=[about]
    )
    frame = load(tmp_path, data)
    scale = frame.width / 595
    assert grey(frame.pixels)[int((842 - 325) * scale), int(350 * scale)] < 60


def test_scan_in_strips_is_put_together(tmp_path):
    whole, strips = page(300, 420), []
    strips = [pdf.jpeg(whole.crop((0, 42 * n, 300, 42 * n + 42))) for n in range(10)]
    content = b" ".join(b"q 595 0 0 84.2 0 %f cm /O%d Do Q" % (842 - 84.2 * (n + 1), n) for n in range(10))
    frame = load(tmp_path, pdf.document((pdf.stream(content), *strips)))
    assert abs(frame.width - 300) <= 2 and abs(frame.height - 424) <= 3
    resized = Image.fromarray(grey(frame.pixels)).resize((300, 420))
    assert np.abs(np.asarray(resized).astype(int) - np.asarray(whole.convert("L"))).mean() < 6


def test_scan_inside_of_a_form_is_found(tmp_path):
    form = b"/Type/XObject/Subtype/Form/BBox[0 0 595 842]/Resources<</XObject<</I 6 0 R>>>>"
    inner = pdf.stream(b"q 595 0 0 842 0 0 cm /I Do Q", form)
    frame = load(tmp_path, pdf.document((pdf.stream(b"/O0 Do"), inner, pdf.packed(page()))))
    assert is_like(frame, page())


def test_cropped_scan_shows_what_is_left_of_it(tmp_path):
    about = [b"/MediaBox[0 0 595 842]/CropBox[0 421 595 842]"]
    data = pdf.document((pdf.stream(b"q 595 0 0 842 0 0 cm /O0 Do Q"), pdf.jpeg(page())), about=about)
    frame = load(tmp_path, data)
    assert 1.3 < frame.width / frame.height < 1.5
    assert grey(frame.pixels)[10, 10] < 60


def test_damaged_jpeg_inside_is_drawn_as_far_as_it_goes(tmp_path):
    data = pdf.saved(page(), "JPEG", quality=95)
    cut = pdf.image(page(), b"/DeviceRGB", 8, data[: len(data) // 2], b"/DCTDecode")
    frame = load(tmp_path, pdf.whole(cut))
    assert (frame.width, frame.height) == (300, 424)


# ------------------------------------------------------------------------------------------------ drawn pages


@pytest.mark.parametrize("dpi", [72, 150, 200])
def test_page_of_text_is_drawn_at_the_resolution_asked_for(tmp_path, dpi):
    frame = load(tmp_path, pdf.document((pdf.written("Invoice 7"),)), pdf_dpi=dpi)
    assert (frame.width, frame.height) == (round(595 * dpi / 72), round(842 * dpi / 72))
    assert frame.pixels.shape == (frame.height, frame.width, 3)
    assert frame.pixels[-50:].min() == 255 and frame.pixels.min() < 60


def test_page_with_a_logo_is_no_scan(tmp_path):
    content = pdf.stream(b"q 60 0 0 60 500 750 cm /O0 Do Q BT /F 24 Tf 72 700 Td (text) Tj ET")
    frame = load(tmp_path, pdf.document((content, pdf.jpeg(page(900, 900)))))
    assert (frame.width, frame.height) == (1653, 2339)


def test_page_keeps_its_size_where_the_budget_makes_it_smaller(tmp_path):
    data = pdf.document((pdf.written("Invoice 7"),))
    frame = load(tmp_path, data, budget=TIGHT, pdf_dpi=600)
    assert (frame.width, frame.height) == (4958, 7017)
    assert frame.pixels.nbytes <= TIGHT.frame_bytes
    assert frame.pixels.ndim == 2  # grey keeps more of it than colour would
    aspect = frame.pixels.shape[1] / frame.pixels.shape[0]
    assert aspect == pytest.approx(595 / 842, rel=0.01)


def test_large_scan_is_read_within_the_budget(tmp_path):
    large = page(4960, 7016)
    for make in (pdf.jpeg, pdf.fax, pdf.packed):
        frame = load(tmp_path, pdf.whole(make(large)), budget=TIGHT)
        assert (frame.width, frame.height) == (4960, 7016)
        assert frame.pixels.nbytes <= TIGHT.frame_bytes
        small = cv2.resize(grey(frame.pixels), (300, 424), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - np.asarray(page().convert("L"))).mean() < 4


@functools.cache
def stamped(name: str) -> bytes:
    return pdf.whole(getattr(pdf, name)(page(2480, 3508)), more=OVER["seen text"][0])


@pytest.mark.parametrize("limit_mb", [176, 190, 210, 250])
@pytest.mark.parametrize("name", ["packed", "jpeg", "jpeg_2000", "fax"])
def test_scan_that_gets_no_memory_is_refused_and_never_blank(tmp_path, name, limit_mb):
    # PDFium leaves an image out that it has no memory for, and says nothing.
    budget = Budget.plan(limit_mb, 105 * MB)
    try:
        frame = load(tmp_path, stamped(name), budget=budget)
    except FrameError as error:
        assert error.reason == "memory" and "raise --memory-mb or memory.limit_mb" in str(error)
        assert limit_mb < 250 or name == "jpeg_2000"
    else:
        assert abs(frame.width - 2480) <= 3
        small = cv2.resize(grey(frame.pixels), (300, 424), interpolation=cv2.INTER_AREA)
        assert small[40, 40] < 60 and small[400, 200] > 200


def test_scan_of_a_blank_page_is_blank(tmp_path):
    frame = load(tmp_path, pdf.whole(pdf.packed(Image.new("RGB", (600, 800), "white"))))
    assert frame.pixels.shape == (800, 600, 3) and frame.pixels.min() == 255


def test_pages_come_by_their_numbers(tmp_path):
    shades = [(value, value, value) for value in (10, 90, 170)]
    pages = [(pdf.stream(b"%f g 0 0 595 842 re f" % (shade[0] / 255)),) for shade in shades]
    for number in (3, 1, 2):
        frame = load(tmp_path, pdf.document(*pages), number, pdf_dpi=72)
        assert abs(int(frame.pixels[400, 300, 0]) - shades[number - 1][0]) <= 1


@pytest.mark.parametrize("junk", [b"junk\r\n" * 20, b"\0" * 900])
def test_pdf_is_known_by_its_content_behind_junk(tmp_path, junk):
    frame = load(tmp_path, junk + pdf.document((pdf.written("x"),)) + b"\r\n\0\0\0\n")
    assert frame.width == 1653


# ------------------------------------------------------------------------------------------------ refusals


def encrypted() -> bytes:
    """Return a PDF for which a password is needed (ISO 32000-1, 7.6)."""
    guard = b"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<%s>/U<%s>>>/ID[<00><00>]" % (b"41" * 32, b"42" * 32)
    return pdf.document((pdf.written("x"),)).replace(b"/Root 1 0 R", b"/Root 1 0 R" + guard)


def portfolio() -> bytes:
    attached = b"<</Names[(a)<</Type/Filespec/F(a)/EF<</F 5 0 R>>>>]>>"
    catalog = b"<</Type/Catalog/Pages 2 0 R/Collection<</View/D>>/Names<</EmbeddedFiles %s>>>>" % attached
    cover = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents 4 0 R>>"
    return pdf.pdf([catalog, b"<</Type/Pages/Kids[3 0 R]/Count 1>>", cover, pdf.stream(b""), pdf.stream(b"x")])


def with_catalog(more: bytes) -> bytes:
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return pdf.pdf([b"<</Type/Catalog/Pages 2 0 R%s>>" % more, pages, b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"])


def without_xref() -> bytes:
    whole = pdf.document((pdf.written("x"),))
    return whole.replace(b"xref\n0", b"xxxx\n0", 1)


REFUSED = {
    "password": (encrypted, "encrypted"),
    "no pages": (lambda: pdf.pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"]), "pages"),
    "portfolio": (portfolio, "attachments"),
    "xfa": (lambda: with_catalog(b"/NeedsRendering true/AcroForm<</Fields[]/XFA[(a)3 0 R]>>"), "xfa"),
    "tree that is a loop": (
        lambda: pdf.pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"]),
        "damaged",
    ),
    "nothing but the name": (lambda: b"%PDF-1.4\n%%EOF\n", "damaged"),
    "half": (lambda: pdf.whole(pdf.packed(page()))[:400], "truncated"),
    "page beyond all size": (
        lambda: pdf.document((pdf.stream(b""),), about=[b"/MediaBox[0 0 200000000 200000000]"]),
        "huge",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_document_that_cannot_be_read_is_refused_with_its_reason(tmp_path, name):
    make, reason = REFUSED[name]
    said = refusal(tmp_path, make())
    assert said.reason == reason
    assert str(said).startswith(str(tmp_path))


def test_broken_table_of_objects_is_made_anew(tmp_path):
    assert load(tmp_path, without_xref()).width == 1653


@pytest.mark.parametrize(("pages", "most"), [(3, 2), (10_000, 200)])
def test_document_of_too_many_pages_is_refused_with_the_setting_to_change(tmp_path, pages, most):
    said = refusal(tmp_path, bombs._pages(pages), max_pages=most)
    assert said.reason == "pages"
    assert re.search(rf"has {pages} pages; the limit is {most}: raise documents\.max_pages", str(said))


def test_count_that_lies_gives_refused_pages_and_no_endless_document(tmp_path):
    data = pdf.document((pdf.written("x"),)).replace(b"/Count 1", b"/Count 9")
    path, document = look(tmp_path, data)
    assert document is not None and document.pages == 9
    with pytest.raises(FrameError) as refused:
        load_page(path, "", document, 9, USUAL, AMPLE)
    assert refused.value.reason == "damaged"


def test_file_that_is_gone_is_told_so(tmp_path):
    path, document = look(tmp_path, pdf.document((pdf.written("x"),)))
    path.unlink()
    for call in (lambda: look_into(path, USUAL), lambda: load_page(path, "", document, 1, USUAL, AMPLE)):
        with pytest.raises(InputError, match="No such file"):
            call()


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_bomb_is_refused_and_takes_no_memory(tmp_path, name):
    make, reasons = bombs.BOMBS[name]
    path = tmp_path / name
    path.write_bytes(make())
    from tests.bench.bombs import verdict

    assert verdict(path, AMPLE if reasons == ("slow",) else TIGHT) in (reasons or ("read",))


def test_page_that_takes_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(pdfs, "PAGE_S", 1)
    lines = b"0 0 m 595 842 l 595 0 l 0 842 l f* " * 12_000
    shades = pdf.stream(b"q " + b"1 0 0 1 0.01 0 cm /GS gs " * 2 + lines * 8)
    said = refusal(tmp_path, pdf.document((shades,)), pdf_dpi=600)
    assert said.reason in ("slow", "memory")


def test_process_ends_with_the_one_that_asked(tmp_path):
    assert press.PR_SET_PDEATHSIG == 1  # <sys/prctl.h>
    path, document = look(tmp_path, pdf.document((pdf.written("x"),)))
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        load_page(path, "", document, 1, USUAL, AMPLE)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def mutated(data: bytes, seed: int) -> bytes:
    chance, out = random.Random(seed), bytearray(data)
    for _ in range(chance.choice((1, 3, 20, 100))):
        at, kind = chance.randrange(len(out)), chance.random()
        if kind < 0.6:
            out[at] = chance.randrange(256)
        elif kind < 0.8:
            del out[at : at + chance.randrange(1, 50)]
        else:
            out[at:at] = out[chance.randrange(len(out)) :][: chance.randrange(1, 100)]
    return bytes(out)


def test_damaged_documents_have_a_verdict_each(tmp_path):
    files = [pdf.whole(IMAGES[name](), more=OVER["seen text"][0]) for name in ("jpeg", "fax", "jbig2", "jpeg-2000")]
    files.append(saved_tiff("group4"))
    for seed in range(100):
        path = tmp_path / "file"
        path.write_bytes(mutated(files[seed % len(files)], seed))
        try:
            document = look_into(path, USUAL)
            for number in range(1, document.pages + 1) if document else ():
                assert load_page(path, "", document, number, USUAL, TIGHT).pixels.size
        except FrameError as error:
            assert error.reason in ("damaged", "truncated", "memory", "huge", "pages", "encrypted", "zero", "slow")


# ------------------------------------------------------------------------------------------------ TIFF


def saved_tiff(
    packing: str = "tiff_lzw", sizes: tuple[tuple[int, int], ...] = ((300, 424), (424, 300), (200, 300))
) -> bytes:
    mode = "1" if packing == "group4" else "RGB"
    first, *others = [page(*size).convert(mode) for size in sizes]
    return pdf.saved(first, "TIFF", save_all=True, append_images=others, compression=packing)


@pytest.mark.parametrize("packing", ["raw", "tiff_lzw", "group4", "jpeg", "tiff_adobe_deflate"])
def test_pages_of_a_tiff_have_their_own_sizes(tmp_path, packing):
    path, document = look(tmp_path, saved_tiff(packing))
    assert document is not None and (document.kind, document.pages) == ("tiff", 3)
    for number, size in enumerate(((300, 424), (424, 300), (200, 300)), 1):
        frame = load_page(path, "desk", document, number, USUAL, AMPLE)
        assert (frame.width, frame.height) == size
        assert is_like(frame, page(*size))


def test_tiff_of_one_page_is_a_picture(tmp_path):
    assert look(tmp_path, saved_tiff(sizes=((300, 424),)))[1] is None


def test_small_copies_in_a_tiff_are_no_pages(tmp_path):
    def stored(size: tuple[int, int], kind: int) -> Image.Image:
        picture = page(*size)
        picture.encoderinfo = {"tiffinfo": {254: kind}}
        return picture

    data = pdf.saved(stored((300, 424), 0), "TIFF", save_all=True, append_images=[stored((60, 80), 1), page(200, 300)])
    path, document = look(tmp_path, data)
    assert document is not None and [number for number, _ in document.parts] == [0, 2]
    assert load_page(path, "", document, 2, USUAL, AMPLE).width == 200


def test_turned_pages_of_a_tiff_stand_upright(tmp_path):
    first, second = page(), page().rotate(90, expand=True)
    for picture, turn in ((first, 1), (second, 6)):
        picture.encoderinfo = {"tiffinfo": {274: turn}}
    path, document = look(tmp_path, pdf.saved(first, "TIFF", save_all=True, append_images=[second]))
    frame = load_page(path, "", document, 2, USUAL, AMPLE)
    assert (frame.width, frame.height) == (300, 424)
    assert is_like(frame, page())


def test_tiff_of_too_many_pages_is_refused(tmp_path):
    with pytest.raises(FrameError, match=r"has 3 pages or more; the limit is 2") as refused:
        look(tmp_path, saved_tiff(), DocumentsConfig(max_pages=2))
    assert refused.value.reason == "pages"


def test_chain_of_directories_that_is_a_loop_ends(tmp_path):
    data = bytearray(saved_tiff("raw", ((60, 80), (60, 80))))
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    (second,) = struct.unpack_from("<I", data, first + 2 + 12 * count)
    (count,) = struct.unpack_from("<H", data, second)
    struct.pack_into("<I", data, second + 2 + 12 * count, first)
    _, document = look(tmp_path, bytes(data))
    assert document is not None and document.pages == 2 < MAX_DIRECTORIES


def test_page_of_a_tiff_costs_its_own_share_of_the_file(tmp_path):
    # The file as a whole is larger than the budget; each of its pages is not.
    data = saved_tiff("raw", ((1500, 1500),) * 8)
    assert len(data) > TIGHT.decode_bytes
    assert load(tmp_path, data, 5, TIGHT).width == 1500


def test_each_page_of_a_tiff_that_is_too_large_is_refused_alone(tmp_path):
    small = Budget.plan(176, 105 * MB)
    path, document = look(tmp_path, saved_tiff("tiff_lzw", ((300, 424), (9000, 9000))))
    assert load_page(path, "", document, 1, USUAL, small).width == 300
    with pytest.raises(FrameError, match="raise --memory-mb") as refused:
        load_page(path, "", document, 2, USUAL, small)
    assert refused.value.reason == "memory"


# ------------------------------------------------------------------------------------------------ ends


@given(st.floats(0, 1))
def test_document_without_its_end_is_not_complete(share):
    for whole in (pdf.document((pdf.written("x"),)), saved_tiff("raw", ((30, 40), (50, 60)))):
        cut = whole[: int(share * (len(whole) - 20))]
        try:
            assert not is_complete(io.BytesIO(cut), Path("x"))
        except FrameError as error:
            assert error.reason in ("truncated", "empty", "type")
        assert is_complete(io.BytesIO(whole), Path("x"))
