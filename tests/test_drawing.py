import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from agent.errors import EngineError
from converters.drawing import damage, draw_line, draw_page, find_fonts, geometry
from converters.drawing.fonts import PACKAGES, SIZES_PX, fonts_for
from converters.drawing.job import Job
from converters.drawing.pictures import KINDS
from converters.drawing.sheet import Face, Sheet, set_line
from converters.drawing.stamps import stamp
from converters.drawing.texts import Texts, capital_amount
from converters.drawing.words import SCRIPTS, common_characters, words

FONTS = find_fonts()
CHINESE = [font for font in FONTS if "latin" not in font.scripts]
LATIN = [font for font in FONTS if "latin" in font.scripts]


def job(seed, script="simplified", long_side=900):
    rng = np.random.default_rng(seed)
    return Job(rng, Texts(rng, script), FONTS, long_side)


def grey(pixels):
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)


def upright(box):
    xs, ys = [x for x, _ in box], [y for _, y in box]
    return min(xs), min(ys), max(xs), max(ys)


def assert_within(lines, pixels):
    for line in lines:
        left, top, right, bottom = upright(line.box)
        assert 0 <= left < right <= pixels.shape[1], line
        assert 0 <= top < bottom <= pixels.shape[0], line


# ------------------------------------------------------------------------------------------- fonts


def test_every_script_has_a_font():
    assert {script for font in FONTS for script in font.scripts} == set(SCRIPTS)


def test_missing_fonts_are_named_with_their_packages(tmp_path):
    with pytest.raises(EngineError, match=r"apt-get install -y fonts-wqy-zenhei .*fonts-liberation") as told:
        find_fonts([tmp_path])
    assert all(script in str(told.value) for script in SCRIPTS)


def test_a_script_without_fonts_is_named_alone(tmp_path):
    (tmp_path / "nested").mkdir()
    for font in CHINESE:
        (tmp_path / "nested" / font.path.name).write_bytes(b"")  # by name; nothing is opened
    with pytest.raises(EngineError, match=f"latin: sudo apt-get install -y {PACKAGES['latin']}$"):
        find_fonts([tmp_path])


@pytest.mark.parametrize("font", CHINESE, ids=lambda font: font.name)
def test_chinese_fonts_have_the_common_characters_and_never_give_the_box_of_a_missing_one(font):
    # Pillow alone, beside the code that is tested.
    pillow = ImageFont.truetype(str(font.path), 24, index=font.index, layout_engine=ImageFont.Layout.BASIC)
    missing = bytes(pillow.getmask("\uffff"))
    for character in "".join(map(common_characters, font.scripts))[::97]:
        assert (font.glyph(character, 24) is None) == (bytes(pillow.getmask(character)) == missing), character
    assert font.glyph("\ue123", 24) is None


@pytest.mark.parametrize("font", LATIN, ids=lambda font: font.name)
def test_latin_fonts_have_ascii_and_no_chinese(font):
    assert not [character for character in common_characters("latin") if font.glyph(character, 20) is None]
    assert font.glyph("中", 20) is None


def test_a_line_is_set_from_the_first_font_that_has_the_character_and_without_those_that_none_has():
    line = set_line(" 中a\ue123b ", Face((LATIN[0], CHINESE[0]), 24))
    assert line.text == "中ab"
    assert line.advance == sum(
        font.glyph(c, 24).advance for font, c in ((CHINESE[0], "中"), (LATIN[0], "a"), (LATIN[0], "b"))
    )
    assert set_line("中", Face((LATIN[0],), 24)) is None
    assert set_line("中 a 中", Face((LATIN[0],), 24)).text == "a"


@pytest.mark.parametrize("size", SIZES_PX[::9])
def test_glyphs_are_as_large_as_their_type(size):
    for font in CHINESE:
        height, width = font.glyph("国", size).mask.shape
        assert 0.75 * size < height <= 1.1 * size
        assert 0.6 * size < width <= 1.1 * size


# ------------------------------------------------------------------------------------------- texts

VALUES = {
    digit: value for digits in ("零壹贰叁肆伍陆柒捌玖", "零壹貳參肆伍陸柒捌玖") for value, digit in enumerate(digits)
}
UNITS = {"拾": 10, "佰": 100, "仟": 1000}


def naive_cents(text):
    """Read an amount in capitals."""
    whole, _, rest = text.rpartition("元")
    groups = re.fullmatch(r"(?:(.*)[亿億])?(?:(.*)[万萬])?(.*)", whole).groups()
    number = sum(group_value(group or "") * weight for group, weight in zip(groups, (10**8, 10**4, 1), strict=True))
    tenths, hundredths = re.search(r"(.)角", rest), re.search(r"(.)分", rest)
    return number * 100 + sum(VALUES[m[1]] * w for m, w in ((tenths, 10), (hundredths, 1)) if m)


def group_value(text):
    total, digit = 0, 0
    for character in text:
        if character in UNITS:
            total, digit = total + digit * UNITS[character], 0
        else:
            digit = VALUES[character]
    return total + digit


@given(st.integers(0, 10**14 - 1) | st.integers(0, 10**5), st.sampled_from(["simplified", "traditional"]))
def test_amounts_in_capitals_read_back(cents, script):
    text = capital_amount(cents, script)
    assert naive_cents(text) == cents
    assert "零零" not in text and not re.search("零[万萬亿億拾佰仟]|^零.", text.replace("零元整", ""))
    assert text.endswith("分") == bool(cents % 10) and text.endswith("整") == (not cents % 10)


@pytest.mark.parametrize(
    ("cents", "text"),
    [
        (0, "零元整"),
        (7, "柒分"),
        (105, "壹元零伍分"),
        (123450, "壹仟贰佰叁拾肆元伍角整"),
        (100100, "壹仟零壹元整"),
        (10001000, "壹拾万零壹拾元整"),
        (10000000100, "壹亿零壹元整"),
    ],
)
def test_amounts_in_capitals_as_bills_have_them(cents, text):
    assert capital_amount(cents) == text


@pytest.mark.parametrize("cents", [-1, 10**14])
def test_amounts_that_cannot_be_written_in_capitals_are_refused(cents):
    with pytest.raises(ValueError, match="capitals"):
        capital_amount(cents)


def test_common_characters_are_level_1_of_both_standards():
    simplified, traditional, latin = map(common_characters, ("simplified", "traditional", "latin"))
    assert (len(set(simplified)), len(set(traditional)), len(latin)) == (3755, 5401, 94)
    assert {"啊", "座"} <= set(simplified) and {"一", "籲"} <= set(traditional)


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_each_script_stay_in_it(script):
    known = words(script)
    assert all(getattr(known, name) for name in known.__struct_fields__)
    assert len(known.party) == 4 and len(known.columns) == 6 and len(known.totals) == 5 and len(known.weekdays) == 7
    text = "".join("".join(getattr(known, name)) for name in known.__struct_fields__)
    assert (script == "latin") == text.isascii()


@pytest.mark.parametrize("script", SCRIPTS)
def test_lines_mix_kinds_and_reach_rare_characters(script):
    texts = Texts(np.random.default_rng(3), script)
    lines = [texts.line(16) for _ in range(400)]
    assert all(lines)
    assert sum(any(c.isdigit() for c in line) for line in lines) > 100
    if script != "latin":
        common = set("".join("".join(getattr(words(script), name)) for name in words(script).__struct_fields__))
        rare = {c for line in lines for c in line} & set(common_characters(script)) - common
        assert len(rare) > 500


# ------------------------------------------------------------------------------------------- pages


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_document_has_lines_with_ink_in_their_boxes(kind, script):
    sheet = KINDS[kind](job(5, script))
    pixels = grey(damage.darkened(sheet.pixels, sheet.paper)).astype(int)
    assert pixels.shape == (sheet.height, sheet.width)
    assert len(sheet.lines) >= 5
    assert_within(sheet.lines, pixels)
    for line in sheet.lines:
        left, top, right, bottom = map(round, upright(line.box))
        part = pixels[top:bottom, left:right]
        assert np.ptp(part) > 60, line
        assert line.text == line.text.strip() != ""


def test_a_line_that_would_leave_the_sheet_is_not_drawn():
    sheet = Sheet("test", 100, 50)
    face = Face((CHINESE[0],), 24)
    assert [sheet.write(at, "中文字", face) for at in ((60, 30), (-5, 30), (10, 10), (10, 60))] == [0] * 4
    assert sheet.lines == [] and sheet.pixels.min() == 255
    assert sheet.write((10, 30), "中文字", face, width_px=60) == 48
    assert sheet.lines[0].text == "中文"


@pytest.mark.parametrize("anchor", ["left", "middle", "right"])
def test_a_box_is_that_of_the_ink(anchor):
    sheet = Sheet("test", 400, 100)
    sheet.write((200, 60), "Ag 中文", Face((LATIN[0], CHINESE[0]), 32), anchor=anchor, ink=(0, 0, 0))
    ys, xs = np.nonzero(sheet.pixels.min(axis=2) < 250)
    left, top, right, bottom = upright(sheet.lines[0].box)
    assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - (left, top, right, bottom)).max() <= 1


def test_pages_follow_from_seed_and_index_alone():
    first = [draw_page(1, index, FONTS) for index in (0, 1, 2)]
    again = [draw_page(1, index, FONTS) for index in (2, 0, 1)]
    for page, same in zip(first, (again[1], again[2], again[0]), strict=True):
        assert page.pixels.tobytes() == same.pixels.tobytes()
        assert (page.lines, page.kind, page.clean) == (same.lines, same.kind, same.clean)
    assert len({page.pixels.tobytes() for page in (*first, draw_page(2, 0, FONTS))}) == 4


def test_pages_have_the_asked_size_and_boxes_inside():
    pages = [draw_page(7, index, FONTS, long_side=(500, 800)) for index in range(16)]
    for page in pages:
        assert page.pixels.dtype == np.uint8 and page.pixels.shape[2] == 3
        assert max(page.pixels.shape[:2]) <= 900
        assert_within(page.lines, page.pixels)
    assert len({page.kind for page in pages}) >= 5
    assert 1 <= sum(page.clean for page in pages) <= 8


# ------------------------------------------------------------------------------------------- damage

PLAIN = (damage.press, damage.texture, damage.tint, damage.fold, damage.shade, damage.dim, damage.flatten)
PLAIN += (damage.noise, damage.recompress, damage.copy_to_fax)
BY_HEIGHT = (damage.bleed, damage.wear, damage.print_thermally, damage.print_with_pins, damage.blur, damage.shake)
STEPS = {step.__name__: step for step in PLAIN}
STEPS |= {step.__name__: lambda pixels, rng, step=step: step(pixels, rng, 24.0) for step in BY_HEIGHT}


def sample():
    sheet = Sheet("test", 400, 160)
    for y in (50, 90, 130):
        sheet.write((20, y), "损坏的文字 damaged text 123", Face((CHINESE[0],), 26))
    return sheet


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", STEPS)
def test_damage_leaves_print_that_can_be_told_from_paper(name, seed):
    sheet = sample()
    before = sheet.pixels.copy()
    damaged = STEPS[name](sheet.pixels, np.random.default_rng(seed))
    assert damaged.shape == before.shape and damaged.dtype == np.uint8
    assert (sheet.pixels == before).all(), "the picture given is not changed"
    assert (damaged == STEPS[name](before, np.random.default_rng(seed))).all()
    ink = grey(before) < 100
    paper = cv2.erode((grey(before) == 255).astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool)
    assert grey(damaged)[paper].mean() - grey(damaged)[ink].mean() > 40


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["turn", "photograph", "curl"])
def test_boxes_move_with_their_ink(name, seed):
    sheet = sample()
    extra = {"text_px": 26.0} if name == "curl" else {}
    pixels, lines = getattr(geometry, name)((sheet.pixels, tuple(sheet.lines)), np.random.default_rng(seed), **extra)
    flat, _ = getattr(geometry, name)((np.full_like(sheet.pixels, 255), ()), np.random.default_rng(seed), **extra)
    ink = cv2.absdiff(grey(pixels), grey(flat)) > 60
    inside = np.zeros(ink.shape, np.uint8)
    for line in lines:
        # As an array of its own, so that each box is known to hold ink and all of them to hold all of it.
        area = cv2.fillPoly(np.zeros(ink.shape, np.uint8), [np.rint(line.box).astype(np.int32)], 1)
        assert (ink & area.astype(bool)).sum() > 300
        inside |= area
    assert (ink & cv2.dilate(inside, np.ones((5, 5), np.uint8)).astype(bool)).sum() > 0.99 * ink.sum()
    assert_within(lines, pixels)


def test_a_stamp_adds_its_straight_line_and_leaves_the_print_below():
    sheet = sample()
    pixels, lines = stamp((sheet.pixels, tuple(sheet.lines)), job(2), 24.0)
    assert lines[:3] == tuple(sheet.lines) and len(lines) == 4
    assert (pixels <= sheet.pixels).all()
    assert (pixels.max(axis=2).astype(int) - pixels.min(axis=2)).max() > 80, "it is in colour"
    assert_within(lines, pixels)


# ------------------------------------------------------------------------------------------- lines


def test_lines_follow_from_seed_and_index_alone():
    first, again = draw_line(1, 5, FONTS), draw_line(1, 5, FONTS)
    assert (first.text, first.pixels.tobytes()) == (again.text, again.pixels.tobytes())
    assert len({draw_line(1, index, FONTS).pixels.tobytes() for index in range(20)}) == 20


def test_lines_have_the_recognisers_height_and_at_most_its_width():
    strips = [draw_line(3, index, FONTS, max_width=320) for index in range(60)]
    assert {strip.pixels.shape[0] for strip in strips} == {48}
    assert max(strip.pixels.shape[1] for strip in strips) <= 320
    assert all(strip.text and strip.pixels.dtype == np.uint8 for strip in strips)
    assert len({strip.pixels.shape[1] for strip in strips}) > 20


def test_faces_for_a_script_are_of_it():
    for script in SCRIPTS:
        assert set(fonts_for(FONTS, script, "serif")) <= {f for f in FONTS if script in f.scripts}
