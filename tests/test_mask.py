"""Long numbers and identity numbers are masked as they are read; amounts, dates and short numbers are not."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import LetOut, PrivacyConfig
from agent.mask import MASK, Masker
from agent.page import PageResult, TextLine
from tests.bench.masking import NOISE, measure, result
from tests.command import run_python

NUMBERS = int(os.environ.get("MASKING_NUMBERS", "20000"))
MASKER = Masker(PrivacyConfig())

texts = st.text(
    st.one_of(
        st.sampled_from("0123456789OoIl|BSZ０１２ -·.,:/\u00a0\u3000()XA年$*\n"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)
configs = st.builds(PrivacyConfig, min_digits=st.integers(6, 32), keep_last=st.integers(0, 4))


@given(texts, configs)
def test_cleaning_keeps_the_length_and_all_that_is_not_masked(text, config):
    cleaned = Masker(config).clean(text)
    assert len(cleaned) == len(text)
    assert all(after in (before, MASK) for before, after in zip(text, cleaned, strict=True))


@given(texts, configs)
def test_cleaning_twice_is_cleaning_once(text, config):
    masker = Masker(config)
    cleaned = masker.clean(text)
    assert masker.clean(cleaned) == cleaned


@given(st.lists(texts, max_size=6), configs)
def test_a_masked_page_stays_as_it_is(lines, config):
    masker = Masker(config)
    masked = masker.page(result(lines))
    assert masker.page(masked) == masked


@given(
    st.lists(
        st.tuples(st.sampled_from(("数量", "；", " kg ", "No.", "/", "、")), st.integers(0, 10**11 - 1)), max_size=5
    )
)
def test_short_numbers_are_left_alone(parts):
    text = "".join(f"{word}{number}" for word, number in parts)
    assert MASKER.clean(text) == text


@given(
    st.integers(10**11, 10**20 - 1),
    st.sampled_from(("", "账号 ", "No.", "Card: ")),
    st.sampled_from(("", "。", " 元", " USD")),
)
def test_every_long_number_is_masked(number, before, after):
    masked = MASKER.clean(f"{before}{number}{after}")
    digits = str(number)
    if masked == f"{before}{number}{after}":  # only one that is a day and a time, or a day in front of a short number
        assert digits[:3] in ("199", "200", "201", "202", "203", "204")
    else:
        assert masked == f"{before}{MASK * (len(digits) - 4)}{digits[-4:]}{after}"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("账号 6222 0212 3456 7890 123", "账号 **** **** **** ***0 123"),
        ("6222-0212-3456-7890", "****-****-****-7890"),
        ("6222·0212·3456·7890", "****·****·****·7890"),
        ("6222.0212.3456.7890", "****.****.****.7890"),
        ("6222\u00a00212\u202f3456\u30007890", "****\u00a0****\u202f****\u30007890"),
        ("6222 - 0212 — 3456 – 7890", "**** - **** — **** – 7890"),
        ("6222\u200b0212\u00ad34567890", "****\u200b****\u00ad****7890"),
        ("６２２２０２１２３４５６７８９０", "************７８９０"),
        ("6222O2l2345B7S90", "************7S90"),
        ("622202|2E4567890", "************7890"),
        ("6222 0212 3456\n7890", "**** **** ****\n7890"),
        ("110101199003071234", "**************1234"),
        ("11010119900307123X", "**************123X"),
        ("110101 19900307 123x", "****** ******** 123x"),
        ("110101900307123", "***********7123"),
        ("A123456789", "******6789"),
        ("身分證：AI2345678O 王", "身分證：AI2345678O 王"),  # no valid number of that form: an invoice's
        ("A12345678g", "A12345678g"),
        ("A123456(3)", "****456(3)"),
        ("WX123456（A）", "*****456（A）"),
        ("C6686689", "****6689"),
        ("DE89 3704 0044 0532 0130 00", "**** **** **** **** **30 00"),
        ("DE89370400440532013000", "******************3000"),
        ("GB29 NWBK 6016 1331 9268 19 from there", "**** **** **** **** **68 19 from there"),
        ("FR14 2004 1010 0505 0001 3M02 606", "**** **** **** **** **** ***2 606"),
        ("2026-11-21 6222021234567890", "2026-11-21 ************7890"),
        ("20261121143105123456", "****************3456"),
        ("123456789012.00", "********9012.00"),
        ("OIBSZOIBSZOIB 123456789012", "************* ********9012"),
        ("3-5-1993 989  483", "*-*-**** **9  483"),  # a day, if it were not for the rest
        ("12 34-2016-10-10 5678", "** **-****-**-** 5678"),
        ("20170121103952\n4\n40915\n19910628 20 37", "20170121103952\n*\n*****\n******** 20 37"),
        ("WX5SB2oB(5)", "*****2oB(5)"),
        ("330759 20040721 1523", "****** ******** 1523"),  # its end might be a day and a time
        ("６２２２ 〇２１２ 3456 7B90", "**** **** **** 7B90"),
    ],
)  # fmt: skip
def test_what_is_masked(text, masked):
    assert MASKER.clean(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "一行没有数字的文字",
        "1,234,567.00",
        "1,234,567,890,123.00",
        "12345678.00 1234567890.00",
        "1.234.567,00 €",
        "¥1200 ¥3400 ¥5600",
        "USD 1234 USD 5678 USD 9012",
        "1200元 3400元 5600元",
        "2026-11-21 14:31:05",
        "2026/11/21 14:31 0012",
        "2026.11.21 143105",
        "21-11-2026 143105",
        "20261121 143105",
        "20261121143105",
        "20261121143105123",
        "20261121-20261220",
        "IMG_20261121_143105.jpg",
        "2026年11月21日14时31分05秒",
        "2026-11-21T14:31:05Z",
        "20261121T143105Z",
        "2O26-11-21 I4:31:05",
        "2026-1-2",
        "2026/1/2 13800138000",
        "2026-11-21 13800138000",
        "13800138000",
        "TEL 021-12345678",
        "No13800138000",
        "Is 12345678901",
        "so 12345678901",
        "BOSSISBILLLO",
        "BOSS ISO SOLO 0800 123",
        "AB-12345678",
        "AB12345678",
        "192.168.100.200",
        "1200x2400x180mm",
        "1200*2400*1800",
        "3.14159265358",
    ],
)
def test_what_is_not_masked(text):
    assert MASKER.clean(text) == text


@pytest.mark.parametrize("keep", range(5))
def test_the_last_characters_stay_as_configured(keep):
    masked = Masker(PrivacyConfig(keep_last=keep)).clean("6222021234567890")
    assert masked == MASK * (16 - keep) + "6222021234567890"[16 - keep :]


def test_the_length_that_is_masked_is_as_configured():
    masker = Masker(PrivacyConfig(min_digits=8))
    assert masker.clean("1234567 字 12345678") == "1234567 字 ****5678"


def test_a_citizens_number_is_masked_however_long_numbers_may_be():
    masker = Masker(PrivacyConfig(min_digits=32))
    assert masker.clean("号11010119900307123X，110101900307123") == "号**************123X，***********7123"
    assert masker.clean("6222021234567890") == "6222021234567890"


def test_nothing_is_masked_when_masking_is_off():
    off = Masker(PrivacyConfig(mask=False))
    page = result(["6222021234567890"])
    assert off.clean("6222021234567890") == "6222021234567890"
    assert off.page(page) == page


@pytest.mark.parametrize(
    ("pattern", "text", "stays"),
    [
        (r"9\d{11}", "单号 9000 1234 5678", True),
        (r"9\d{11}", "单号 9OOO l234 5678", True),
        (r"9\d{11}", "单号 9000 1234 56789", False),
        (r"9\d{10}", "单号 9000 1234 5678", False),
        (r"1\d{16}X", "11010119900307123x", True),
        (r"DE\d{20}", "DE89 3704 0044 0532 0130 00", False),  # its digits are a long number of their own
        (r"A\d{9}", "A123456789", True),
        (r".*", "6222021234567890", True),
    ],
)
def test_numbers_that_are_let_out_match_as_a_whole_without_separators(pattern, text, stays):
    masker = Masker(PrivacyConfig(let_out=(LetOut(name="slip", pattern=pattern),)))
    assert (masker.clean(text) == text) is stays


def page(*lines: tuple[str, float, float], turned: bool = False) -> PageResult:
    """Return a page of lines (text, x, y), 20 pixels high and 10 wide a character."""
    made = []
    for text, x, y in lines:
        right, bottom = x + 10 * len(text), y + 20
        corners = ((x, y), (right, y), (right, bottom), (x, bottom))
        if turned:  # a quarter clockwise
            corners = tuple((1000 - b, a) for a, b in corners)
        made.append(TextLine(text, 0.9, corners, 0.8))
    return PageResult("a.png", 1000, 1000, tuple(made))


def cleaned(made: PageResult) -> list[str]:
    return [line.text for line in MASKER.page(made).lines]


@pytest.mark.parametrize("turned", [False, True])
def test_a_number_goes_on_in_the_next_line(turned):
    made = page(("账号", 0, 0), ("62220212", 0, 30), ("34567890", 0, 60), ("日期", 0, 90), turned=turned)
    assert cleaned(made) == ["账号", "********", "****7890", "日期"]


@pytest.mark.parametrize("turned", [False, True])
def test_a_number_goes_on_in_a_box_beside(turned):
    made = page(("6222 0212", 0, 0), ("3456 7890", 120, 2), turned=turned)
    assert cleaned(made) == ["**** ****", "**** 7890"]


@pytest.mark.parametrize("turned", [False, True])
def test_cells_of_a_table_are_not_one_number(turned):
    row = [("1200", 0, 0), ("3400", 200, 0), ("5600", 400, 0), ("7800", 600, 0)]
    assert cleaned(page(*row, turned=turned)) == [text for text, *_ in row]
    column = [(text, 0, 100 * i) for i, (text, *_) in enumerate(row)]
    assert cleaned(page(*column, turned=turned)) == [text for text, *_ in column]


def test_a_column_of_small_numbers_is_not_one_number():
    assert cleaned(page(*((str(n), 0, 25 * n) for n in range(1, 15)))) == [str(n) for n in range(1, 15)]


def test_a_number_goes_on_after_words_and_before_words():
    made = page(("账号 622202123", 0, 0), ("4567890 王小明", 0, 25))
    assert cleaned(made) == ["账号 *********", "***7890 王小明"]


def test_amounts_and_days_do_not_go_on_in_the_next_line():
    lines = ("合计 12345.00", "12345678 件", "2026-11-21", "¥96", "20261121", "13800138000", "2026年")
    assert cleaned(page(*((text, 0, 25 * i) for i, text in enumerate(lines)))) == list(lines)


def test_dummy_corners_do_not_matter():
    corner = ((0.0, 0.0),) * 4
    made = PageResult("a", 1, 1, (TextLine("62220212", 1.0, corner), TextLine("34567890", 1.0, corner)))
    assert cleaned(made) == ["********", "****7890"]


def test_line_breaks_inside_a_line_do_not_move_the_others():
    made = page(("a\nb\0c", 0, 0), ("62220212\n34567890", 0, 25), ("", 0, 50), ("字", 0, 75))
    assert cleaned(made) == ["a\nb\0c", "********\n****7890", "", "字"]


def test_only_texts_and_names_of_a_page_change():
    made = PageResult("6222021234567890.png", 9, 9, page(("123456789012", 0, 0)).lines, 0.5, {"det": 1.0}, "b", 90)
    masked = MASKER.page(made)
    assert masked.image == "************7890.png"
    (line,) = masked.lines
    assert line == TextLine("********9012", 0.9, made.lines[0].quad, 0.8)
    assert (masked.width, masked.seconds, masked.timings_ms, masked.direction) == (9, 0.5, {"det": 1.0}, 90)
    failed = MASKER.page(PageResult("a", 0, 0, error="6222021234567890.png: empty", reason="empty"))
    assert failed.error == "************7890.png: empty"


@pytest.mark.parametrize("noise", NOISE)
def test_planted_numbers_do_not_get_out(noise):
    told = measure(noise, NUMBERS // len(NOISE), seed=1)
    assert told.leaked == 0
    assert told.recall >= 0.999
    assert told.false_masks <= 0.01


def test_the_measurement_notices_a_masker_that_trusts_checksums(monkeypatch):
    def luhn(number: str) -> bool:
        doubled = [int(d) * (2 - i % 2) for i, d in enumerate(number[-2::-1])]
        return (sum(d - 9 * (d > 9) for d in doubled) + int(number[-1])) % 10 == 0

    really = Masker._is_long
    monkeypatch.setattr(
        Masker,
        "_is_long",
        lambda self, text, shape, places: (
            really(self, text, shape, places) and luhn("".join(shape[p] for p in places if shape[p].isdigit()))
        ),
    )
    assert measure(0.0, 500, seed=1).leaked > 100


def test_masking_needs_no_numpy():
    code = (
        "import sys; from agent.mask import Masker; from agent.config import PrivacyConfig\n"
        "print(Masker(PrivacyConfig()).clean('6222021234567890'), 'numpy' in sys.modules)"
    )
    assert run_python(code).out == "************7890 False\n"
