"""Masks long numbers and identity numbers, as they are read: with look-alikes, separators and line breaks.

What is masked is decided by form. A checksum never lets a number out, because a misread number fails it and is still
almost the number.

Text is first turned into its shape, character by character, and patterns of shapes say what goes. In a shape stand

    0-9  digits of all scripts            a-j  look-alikes of digits, later digits too    ?  a digit read as a letter
    L    letters; T and X are themselves  N    年 and other counters of dates and times   U  currencies but "$"
    -    dashes                           ·    middle dots                                .  full stops and commas
    ( )  brackets of all kinds            " "  spaces of all widths                       #  all else, and the harmless
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from itertools import product, zip_longest
from typing import TYPE_CHECKING

import msgspec

from agent.config import PrivacyConfig

if TYPE_CHECKING:  # agent.page loads numpy, and the uplink masks without it
    from agent.page import PageResult, Quad, TextLine

MASK = "*"

_LOOK_ALIKES = ("OoΟοОо〇○◯Øø", "Il|ıǀ∣ІΙ丨", "ZzΖ", "", "", "SsЅѕ", "", "", "BΒВ", "")
"""What is read for 0, 1, 2, ... 9."""
_ODD_SHAPES = {
    **{c: chr(ord("a") + digit) for digit, characters in enumerate(_LOOK_ALIKES) for c in characters},
    **dict.fromkeys("-−ー一─━~", "-"),
    **dict.fromkeys("·•‧∙⋅・", "·"),
    **dict.fromkeys(".,", "."),
    **dict.fromkeys("([{【〔", "("),
    **dict.fromkeys(")]}】〕", ")"),
    **dict.fromkeys("Xx×ХхΧχ", "X"),
    **dict.fromkeys("\t\r\v\f", " "),
    **dict.fromkeys("年月日時时分秒", "N"),
    **dict.fromkeys("元円圆圓", "U"),
    **{c: c for c in "T:_/$\n"},
}
# Words made of look-alikes: they are not misread numbers. "SO" is as likely 50, and so is "so" after a digit.
_WORDS = re.compile(
    r"(?<![^\W_])(?:(?<!\d[ -])(?<!\d - )(?:[Ss]o|[Ii]s|[Oo]z)"
    r"|(?i:iso|sos|zoo|loo|lol|loss|boss|solo|solos|oslo))(?![^\W_])"
)
_CURRENCIES = re.compile(r"(?<![A-Za-z])(?:USD|CNY|RMB|EUR|GBP|HKD|TWD|JPY|SGD|(?:NT|HK|US|S)\$)")

_GLUED = re.compile(r"(?<=[LT])[a-j]+|(?<![a-j])[a-j]+(?=[LT])")  # letters of a word
_BRIDGE = re.compile(r"(?<=[0-9a-j]{3})[LT](?=[0-9a-j]{3})")  # a digit read as some other letter
_TO_DIGITS = str.maketrans("abcdefghij", "0123456789")

_D = "[0-9?]"
_DAY, _MONTH = r"(?:0[1-9]|[12]\d|3[01])", r"(?:0[1-9]|1[0-2])"
_YEAR, _SHORT_DAY, _SHORT_MONTH = r"(?:19|20)\d\d", r"(?:[1-9]|[12]\d|3[01])", r"(?:[1-9]|1[0-2])"
_TIME = re.compile(r"(?<![0-9?])(?<![0-9?]:)(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\.\d{1,3})?(?![0-9?:])")
_MOMENT = re.compile(  # 20261121T143105Z
    r"(?<![0-9?])(?:19|20)\d\d-?[01]\d-?[0-3]\d[T?][0-2]\d:?[0-5]\d(?::?[0-5]\d)?2?(?![0-9?])"
)
# A day with dashes and digits behind and before would be the middle of a long number.
_DASHED = rf"(?:{_YEAR}-{_MONTH}-{_DAY}|{_DAY}-{_DAY}-{_YEAR})"
_FREE_LEFT, _FREE_RIGHT = r"(?<![0-9?][ ·])(?<![0-9?] [ -])(?<![0-9?] - )", "(?![ ·-]{1,3}[0-9?])"
_DATE = re.compile(
    rf"(?<![0-9?./-])(?:{_YEAR}[./](?:{_MONTH}|{_SHORT_MONTH})[./](?:{_DAY}|{_SHORT_DAY})"
    rf"|(?:{_DAY}|{_SHORT_DAY})[./](?:{_DAY}|{_SHORT_DAY})[./]{_YEAR}|{_FREE_LEFT}{_DASHED}|{_DASHED}{_FREE_RIGHT}"
    rf"|{_FREE_LEFT}(?:{_YEAR}-{_SHORT_MONTH}-{_SHORT_DAY}|{_SHORT_DAY}-{_SHORT_DAY}-{_YEAR}){_FREE_RIGHT})"
    r"(?![0-9?]|[./-][0-9?])"
)
_AMOUNT = re.compile(
    rf"(?<![0-9?.])(?:{_D}{{1,3}}(?:\.{_D}{{3}})+(?:\.{_D}{{1,2}})?|{_D}+\.{_D}{{1,2}})(?!{_D}|\.{_D})"
)
_NUMBERED = re.compile(rf"(?<![0-9?.]){_D}{{1,4}}(?=N)")  # 2026年
# "$" may be a misread 5 or 8: a number goes on behind it.
_MONEY = re.compile(rf"(?<![0-9?.]){_D}+U|U ?{_D}+(?!{_D}|[.X])|\$ ?{_D}+(?!{_D}|[.X]|[ ·-]{{1,6}}{_D})")
_RUN = re.compile(
    rf"{_D}(?:{_D}|[ \n·-]{{1,6}}(?={_D})|(?<={_D}{{4}})[._](?={_D}{{4}}))*(?:[ ·-]?X(?![0-9?LTX]))?",
)

# A day without signs, as in names of files; the years of the papers that are read now.
_PLAIN_DAY = r"(?:199|20[0-4])\d[ -]?(?:0[1-9]|1[0-2])[ -]?(?:0[1-9]|[12]\d|3[01])"
_PLAIN_TIME = r"(?:[01]\d|2[0-3])[ -]?[0-5]\d(?:[ -]?[0-5]\d(?:\d{3})?)?"
_DAY_TIME = rf"{_PLAIN_DAY}(?:[ ._-]{{0,3}}{_PLAIN_TIME})?"
_DAYS_FIRST = re.compile(rf"(?:{_DAY_TIME}(?:[ \n._-]{{1,6}}|\Z))+")
_DAYS_LAST = re.compile(rf"(?:[ \n._-]{{1,6}}{_DAY_TIME})+\Z")

_LETTER, _ANY, _ALIKE = "[LTXa-j]", "[0-9a-jLTX]", "[0-9a-j]"
_TAIWAN = re.compile(rf"(?<!{_ANY}){_LETTER}[1289bci]{_ALIKE}{{8}}(?!{_ANY})")
_HONG_KONG = re.compile(rf"(?<!{_ANY}){_LETTER}{{1,2}}{_ALIKE}{{6}} ?\( ?(?:{_ALIKE}|L) ?\)")
_HONG_KONG_BARE = re.compile(rf"(?<!{_ANY})[LTX]{_ALIKE}{{6}}(?:{_ALIKE}|L)(?!{_ANY})")
_GROUP = rf"[ ·-](?={_ANY}{{0,3}}[0-9]){_ANY}"  # one of the bank's name may lack digits, but not a word that follows
_IBAN = re.compile(
    rf"(?<!{_ANY}){_LETTER}{{2}}{_ALIKE}{{2}}"
    rf"(?:{_ANY}{{11,30}}|[ ·-]{_ANY}{{4}}(?:{_GROUP}{{4}}){{1,6}}(?:{_GROUP}{{1,4}})?)(?!{_ANY})"
)
_RESIDENT = re.compile(
    r"[1-8]\d{5}(?:(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dX]"
    r"|\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3})"
)
_FEWEST_DIGITS = 3  # really read, in anything that is masked

_TAIWAN_LETTERS = "ABCDEFGHJKLMNPQRSTUVXYWZIO"  # by their numbers from 10


class _Shapes(dict[int, str]):
    """The shape of each character, worked out when it is first met; for `str.translate`."""

    def __missing__(self, code: int) -> str:
        shape = self[code] = _shape(chr(code))
        return shape


def _shape(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) != 1:
        plain = character
    if found := _ODD_SHAPES.get(plain) or _ODD_SHAPES.get(character):
        return found
    if plain.isdigit():
        return str(unicodedata.digit(plain))
    kind = unicodedata.category(plain)
    if kind in ("Zs", "Cf"):  # spaces of all widths, even none
        return " "
    if kind in ("Pd", "Sc"):
        return "-" if kind == "Pd" else "U"
    return "L" if plain.isalpha() and ord(plain) < 0x2000 else "#"


class Masker:
    """Masks text by a configuration; keeps lengths, so that places in the text stay what they were."""

    def __init__(self, config: PrivacyConfig) -> None:
        """Make a masker."""
        self._on = config.mask
        self._min = config.min_digits
        self._keep = config.keep_last
        self._let_out = tuple(re.compile(rule.pattern) for rule in config.let_out)
        self._fewest = min(_FEWEST_DIGITS, self._min // 2)
        self._shapes = _Shapes()

    def clean(self, text: str) -> str:
        """Return text with its long numbers masked, of the same length; cleaning it once more changes nothing."""
        if not self._on or sum(map(str.isdigit, text)) < self._fewest:
            return text
        while (masked := self._once(text)) != text:
            text = masked
        return text

    def page(self, page: PageResult) -> PageResult:
        """Return a page with its long numbers masked, also those that go on in the next line, and in its names."""
        if not self._on:
            return page
        joined = "".join(line.text + _between(line, after) for line, after in zip_longest(page.lines, page.lines[1:]))
        masked = self.clean(joined)
        lines, start = [], 0
        for line in page.lines:
            end = start + len(line.text)
            lines.append(msgspec.structs.replace(line, text=masked[start:end]))
            start = end + 1
        error = None if page.error is None else self.clean(page.error)
        return msgspec.structs.replace(page, image=self.clean(page.image), lines=tuple(lines), error=error)

    def _once(self, text: str) -> str:
        shape = _CURRENCIES.sub(_money, _WORDS.sub(_blank, text)).translate(self._shapes)
        characters = list(text)
        for places in (*self._identities(text, shape), *self._numbers(text, shape)):
            for place in places[: len(places) - self._keep]:
                characters[place] = MASK
        return "".join(characters)

    def _numbers(self, text: str, shape: str) -> Iterator[list[int]]:
        """Yield where the characters of each long number are."""
        shape = _BRIDGE.sub("?", _GLUED.sub(_letters, shape)).translate(_TO_DIGITS)
        for known in (_MOMENT, _TIME, _DATE, _NUMBERED):
            shape = known.sub(_blank, shape)
        for sum_ in (_AMOUNT, _MONEY):
            shape = sum_.sub(self._blank_amount, shape)
        for run in _RUN.finditer(shape):
            begins, ends, sure = self._without_days(shape, *run.span())
            # Cut in every way first: a citizen's number has a day in its middle, and its end may look like a time.
            for begin, end in product(begins, ends):
                places = self._places(shape, begin, end)
                if self._is_resident(text, shape, places):
                    yield places
            rest = self._places(shape, begins[-1], ends[-1]) if sure else self._places(shape, *run.span())
            if self._is_long(text, shape, rest):
                yield rest

    def _places(self, shape: str, start: int, end: int) -> list[int]:
        return [place for place in range(start, end) if shape[place] not in " \n·-._"]

    def _without_days(self, shape: str, start: int, end: int) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Return where a run may begin and end when days and times there are not counted, and whether that is sure.

        A day with hours, minutes and seconds, or at a line break, is proof enough. Another is a chance of one in five
        thousand among random digits, so next to it there may only be a short number.
        """
        first = _DAYS_FIRST.match(shape, start, end)
        last = _DAYS_LAST.search(shape, start if first is None else first.end(), end)
        begins = (start,) if first is None else (start, first.end())
        ends = (end,) if last is None else (end, last.start())
        days = [found[0] for found in (first, last) if found is not None]
        rest = len(re.findall(_D, shape[begins[-1] : ends[-1]]))
        sure = all("\n" in day or len(re.findall(_D, day)) >= 14 for day in days)
        return begins, ends, sure or rest < self._min // 3 + 1

    def _is_resident(self, text: str, shape: str, places: list[int]) -> bool:
        """Tell whether digits have the form of a Chinese citizen's number, of 18 or 15 characters."""
        digits = "".join(shape[place] for place in places)
        if not _RESIDENT.fullmatch(digits) or self._may_leave(digits):
            return False
        return self._is_really_read(text, places, len(digits))

    def _is_long(self, text: str, shape: str, places: list[int]) -> bool:
        digits = "".join(shape[place] for place in places)
        if len(digits.rstrip("X")) < self._min or self._may_leave(digits):
            return False
        pieces = shape[places[0] : places[-1] + 1].split("\n")
        if max(len(re.findall(_D, piece)) for piece in pieces) < self._min // 3:
            return False  # a column of small numbers
        return self._is_really_read(text, places[: len(digits.rstrip("X"))], self._min)

    def _may_leave(self, written: str) -> bool:
        return any(rule.fullmatch(written) for rule in self._let_out)

    def _is_really_read(self, text: str, places: list[int], length: int) -> bool:
        """Tell whether half of so many neighbours are digits and no look-alikes: "BOSSISBILLLO" is no number."""
        real = [text[place].isdigit() for place in places]
        return any(2 * sum(real[i : i + length]) >= length for i in range(len(real) - length + 1))

    def _identities(self, text: str, shape: str) -> Iterator[list[int]]:
        """Yield where the characters of each identity number with letters, and of each IBAN, are."""
        for form, is_one in _IDENTITIES:
            for found in form.finditer(shape):
                places = [place for place in range(*found.span()) if shape[place] not in " ·-()"]
                written = "".join(unicodedata.normalize("NFKC", text[place]) for place in places).upper()
                read = sum(text[place].isdigit() for place in places)
                if read >= _FEWEST_DIGITS and is_one(written, found[0]) and not self._may_leave(written):
                    yield places

    def _blank_amount(self, found: re.Match[str]) -> str:
        """Return an amount as no digits, unless it has a long number in it."""
        longest = max(map(len, re.split(r"[.U$ ]", found[0])))
        return found[0] if longest >= self._min else _blank(found)


def _is_taiwanese(written: str, shape: str) -> bool:
    """Tell whether ten characters are an identity number.

    "AI12345678" may be an invoice's number, and "O912345678" that of a telephone with a misread 0: there the checksum
    tells.
    """
    if not "A" <= written[0] <= "Z":
        return False
    if written[1].isdigit() and written[0] not in "OI":
        return True
    number = _TAIWAN_LETTERS.index(written[0]) + 10
    return _weighed((number // 10, number % 10), shape[1:], (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1)) % 10 == 0


def _is_hong_kong(written: str, shape: str) -> bool:
    return written[0].isalpha()


def _is_bare_hong_kong(written: str, shape: str) -> bool:
    """Tell whether eight characters without brackets are an identity number: by the checksum, for want of more."""
    if not "A" <= written[0] <= "Z":
        return False
    last = "10" if written[7] == "A" else shape[7].translate(_TO_DIGITS)
    letter = (36, ord(written[0]) - ord("A") + 10)
    return last.isdigit() and (_weighed(letter, shape[1:7], (9, 8, 7, 6, 5, 4, 3, 2)) + int(last)) % 11 == 0


def _weighed(letter: tuple[int, int], shape: str, weights: tuple[int, ...]) -> int:
    digits = (*letter, *map(int, shape.translate(_TO_DIGITS)))
    return sum(digit * weight for digit, weight in zip(digits, weights, strict=True))


def _is_iban(written: str, shape: str) -> bool:
    return written[:2].isalpha() and len(re.findall(_ALIKE, shape)) >= 12


_IDENTITIES = (
    (_TAIWAN, _is_taiwanese),
    (_HONG_KONG, _is_hong_kong),
    (_HONG_KONG_BARE, _is_bare_hong_kong),
    (_IBAN, _is_iban),
)


def _blank(found: re.Match[str]) -> str:
    return "#" * len(found[0])


def _money(found: re.Match[str]) -> str:
    return "€" * len(found[0])


def _letters(found: re.Match[str]) -> str:
    return "L" * len(found[0])


def _between(line: TextLine, after: TextLine | None) -> str:
    """Return what stands for the end of a line: a separator, or the end of a number."""
    return "\n" if after is not None and _goes_on(line.quad, after.quad) else "\0"


def _goes_on(first: Quad, second: Quad) -> bool:
    """Tell whether a number may go on from one line of text in the next: not when they are cells of a table.

    Measured along the first line's direction, so that a turned page is no different.
    """
    (left, top), _, _, (below_x, below_y) = first
    height = math.hypot(below_x - left, below_y - top)
    down = ((below_x - left) / height, (below_y - top) / height) if height else (0.0, 0.0)
    along = (down[1], -down[0])
    gap = _gap(first, second, down)
    return _gap(first, second, along) <= 3 * height if gap <= -height / 2 else gap <= 1.5 * height


def _gap(first: Quad, second: Quad, direction: tuple[float, float]) -> float:
    """Return how far apart two quads are in a direction; negative where they overlap."""
    ours, theirs = ([x * direction[0] + y * direction[1] for x, y in quad] for quad in (first, second))
    return max(min(theirs) - max(ours), min(ours) - max(theirs))
