"""Texts as documents have them: names, amounts, dates, numbers, sentences, in one of three scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from converters.drawing.words import SCRIPTS, Script, common_characters, words

_T = TypeVar("_T")

_CAPITALS: dict[Script, str] = {"simplified": "零壹贰叁肆伍陆柒捌玖", "traditional": "零壹貳參肆伍陸柒捌玖"}
_GROUPS: dict[Script, tuple[str, ...]] = {"simplified": ("", "万", "亿"), "traditional": ("", "萬", "億")}
_WHOLE, _ONLY = "元", "整"
_TENTHS, _HUNDREDTHS = "角", "分"
_PLAIN = "〇一二三四五六七八九"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_NO_LETTERS = "ABCDEFGHJKLMNPQRTUWXY"  # of the 18 characters of a tax number: without I, O, S, V and Z
_SYMBOLS = "%#&@*+=/<>~()[]-_:;.,!?\"'$€£¥℃№·…—"
_MAX_CENTS = 10**14


def capital_amount(cents: int, script: Script = "simplified") -> str:
    """Return an amount in the capitals of cheques: 120050 is 壹仟贰佰元伍角整.

    A zero stands for places left out between others, except between 元 and 角, where the rules for filling in bills of
    the People's Bank of China leave it free.

    Args:
        cents: hundredths, 0 <= cents < 10**14.
        script: simplified or traditional.

    Raises:
        ValueError: out of range.
    """
    if not 0 <= cents < _MAX_CENTS:
        raise ValueError(f"{cents} hundredths cannot be written in capitals")
    whole, tenths, hundredths = cents // 100, cents // 10 % 10, cents % 10
    digits = _CAPITALS[script]
    text = _capital_number(whole, script) + _WHOLE if whole or not cents else ""
    if tenths:
        text += digits[tenths] + _TENTHS
    elif hundredths and whole:
        text += digits[0]
    return text + (digits[hundredths] + _HUNDREDTHS if hundredths else _ONLY)


def _capital_number(number: int, script: Script) -> str:
    digits, groups = _CAPITALS[script], _GROUPS[script]
    text, left_out = "", False
    for place in range(2, -1, -1):
        group = number // 10 ** (4 * place) % 10_000
        if group:
            text += (digits[0] if text and (left_out or group < 1000) else "") + _capital_group(group, digits)
            text += groups[place]
        left_out = bool(text) and not group
    return text or digits[0]


def _capital_group(group: int, digits: str) -> str:
    """Return 1..9999 in capitals."""
    text, left_out = "", False
    for weight, unit in ((1000, "仟"), (100, "佰"), (10, "拾"), (1, "")):
        digit = group // weight % 10
        if digit:
            text += (digits[0] if left_out else "") + digits[digit] + unit
        left_out = bool(text) and not digit
    return text


class Texts:
    """Texts of one script, each drawn from a generator of random numbers."""

    def __init__(self, rng: np.random.Generator, script: Script) -> None:
        self.rng = rng
        self.script = script
        self.words = words(script)
        self._gap = " " if script == "latin" else ""

    def one(self, options: Sequence[_T]) -> _T:
        """Return one of the options."""
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        """Return True in a share of cases, 0..1."""
        return bool(self.rng.random() < share)

    def between(self, low: int, high: int) -> int:
        """Return a whole number from `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    # ------------------------------------------------------------------------------------------ numbers

    def digits(self, count: int) -> str:
        """Return random digits."""
        return "".join(map(str, self.rng.integers(0, 10, count)))

    def cents(self, most: int = 10_000_000) -> int:
        """Return an amount in hundredths; small ones as frequent as large ones, round ones more frequent."""
        cents = int(np.exp(self.rng.uniform(np.log(50), np.log(most))))
        return cents if self.chance(0.6) else max(1, cents // 100) * 100

    def money(self, cents: int) -> str:
        """Return an amount in digits: 1,234.50."""
        return f"{cents / 100:,.2f}" if self.chance(0.8) else f"{cents / 100:.2f}"

    def number(self) -> str:
        """Return an amount in digits, whichever."""
        return self.money(self.cents())

    def amount(self, cents: int | None = None) -> str:
        """Return an amount with its currency."""
        number = self.money(self.cents() if cents is None else cents)
        if self.script == "latin":
            return self.one(("${}", "USD {}", "EUR {}", "£{}", "{}", "{} €")).format(number)
        return self.one(("¥{}", "￥{}", "{}元", "¥ {}", "{}", "NT${}", "RMB {}")).format(number)

    def in_words(self, cents: int) -> str:
        """Return an amount in capitals, in English as cheques have it."""
        if self.script == "latin":
            return f"*** {cents // 100:,} and {cents % 100:02d}/100 only ***"
        return capital_amount(cents, self.script)

    def percent(self) -> str:
        """Return a percentage."""
        return self.one(
            (f"{self.between(1, 100)}%", f"{self.between(0, 99)}.{self.between(0, 9)}%", "13%", "6%", "-5%")
        )

    def date(self) -> str:
        """Return a date in one of several styles."""
        year, month, day = self.between(1998, 2032), self.between(1, 12), self.between(1, 28)
        styles = [f"{year}-{month:02d}-{day:02d}", f"{year}/{month}/{day}", f"{year}.{month:02d}.{day:02d}"]
        if self.script == "latin":
            name = _MONTHS[month - 1]
            return self.one(
                (
                    *styles,
                    f"{day:02d} {name} {year}",
                    f"{name} {day}, {year}",
                    f"{day:02d}/{month:02d}/{year % 100:02d}",
                )
            )
        styles += [
            f"{year}年{month:02d}月{day:02d}日",
            f"{year}年{month}月{day}日",
            f"{_spelt(year)}年{_small(month)}月{_small(day)}日",
        ]
        return self.one((*styles, f"民國{year - 1911}年{month}月{day}日") if self.script == "traditional" else styles)

    def time(self) -> str:
        """Return a time of day."""
        text = f"{self.between(0, 23):02d}:{self.between(0, 59):02d}"
        return f"{text}:{self.between(0, 59):02d}" if self.chance(0.4) else text

    def phone(self) -> str:
        """Return a telephone number."""
        styles = ("1{}", "0{}-{}", "({}) {}", "+86 {} {}", "400-{}-{}", "{} {}")
        return self.one(styles).format(self.digits(self.between(3, 4)), self.digits(self.between(7, 8)))

    def code(self) -> str:
        """Return an order number or the like: SI-2026-004817."""
        letters = "".join(self.one("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(self.between(1, 3)))
        styles = (
            f"{letters}-{self.between(2000, 2030)}-{self.digits(6)}",
            f"{letters}{self.digits(8)}",
            f"No.{self.digits(8)}",
        )
        return self.one((*styles, self.digits(self.between(6, 14)), f"#{self.digits(5)}/{letters}"))

    def tax_number(self) -> str:
        """Return 18 random digits and capital letters."""
        return "".join(self.one("0123456789" * 3 + _NO_LETTERS) for _ in range(18))

    def account(self) -> str:
        """Return a bank account's number, in groups of four."""
        return " ".join(self.digits(4) for _ in range(self.between(3, 5)))

    # ------------------------------------------------------------------------------------------ names

    def company(self) -> str:
        """Return a company's name."""
        parts = (self.words.places, self.words.marks, self.words.trades, self.words.suffixes)
        return self._gap.join(self.one(part) for part in parts[self.between(0, 1) :])

    def person(self) -> str:
        """Return a person's name."""
        given, surname = self.one(self.words.given), self.one(self.words.surnames)
        return f"{given} {surname}" if self.script == "latin" else surname + given

    def address(self) -> str:
        """Return an address."""
        number, street, city = self.between(1, 999), self.one(self.words.streets), self.one(self.words.cities)
        if self.script == "latin":
            return f"{number} {street}, {city} {self.digits(5)}"
        return f"{city}{street}{number}" + ("号" if self.script == "simplified" else "號")

    def goods(self) -> str:
        """Return what is sold, sometimes with its model or a foreign name."""
        name = self.one(self.words.goods)
        if self.chance(0.15):
            return f"{name} {self.code()}"
        if self.script != "latin" and self.chance(0.25):
            return f"{name} {self.one(words('latin').goods)}"
        return name

    # ------------------------------------------------------------------------------------------ running text

    def sentence(self, length: int) -> str:
        """Return about `length` characters of running text, with punctuation and here and there a rare word."""
        text = ""
        while len(text) < length:
            stops = (" ", " ", " ", " ", ", ", ". ") if self.script == "latin" else ("", "", "", "", "，", "、", "。")
            text += self._piece() + self.one(stops)
        text = text.strip(" ,，、")
        return text[:1].upper() + text[1:] + self.one((".", "", "!")) if self.script == "latin" else text

    def _piece(self) -> str:
        share = self.rng.random()
        if share < 0.80:
            return self.one(self.words.pieces)
        if share < 0.92:
            return self.rare(self.between(1, 3))
        if share < 0.96:
            return self.digits(self.between(1, 4))
        return self.one(words("latin").pieces).title()

    def rare(self, length: int) -> str:
        """Return characters drawn evenly from the common ones of the script, so that the rare among them occur."""
        if self.script != "latin":
            return "".join(self.one(common_characters(self.script)) for _ in range(length))
        if self.chance(0.3):
            return "".join(self.one(common_characters("latin")) for _ in range(length))
        word = "".join(self.one("aeiouybcdfghjklmnpqrstvwxz") for _ in range(length))
        return self.one((word, word.upper(), word.title()))

    def mixed(self, length: int) -> str:
        """Return Chinese, English, digits and symbols in turn."""
        text = ""
        while len(text) < length:
            other = Texts(self.rng, self.one(SCRIPTS))
            makers: tuple[Callable[[], str], ...] = (self.code, self.amount, self.percent, other.goods, other._piece)
            text += self.one(makers)() + self.one(("", " ", self.one(_SYMBOLS)))
        return text[:length].strip()

    def line(self, length: int) -> str:
        """Return a line of about `length` characters, of any of these kinds."""
        fixed: tuple[Callable[[], str], ...] = (
            self.amount, self.date, self.time, self.phone, self.code, self.tax_number, self.account, self.company,
            self.person, self.address, self.goods, self.percent, lambda: self.in_words(self.cents()),
        )  # fmt: skip
        running = (self.sentence, self.sentence, self.rare, self.mixed)
        return self.one(fixed)() if self.chance(0.35) else self.one(running)(length)


def _spelt(number: int) -> str:
    return "".join(_PLAIN[int(digit)] for digit in str(number))


def _small(number: int) -> str:
    """Return 1..31 in plain Chinese figures."""
    tens, ones = divmod(number, 10)
    return ("" if tens < 2 else _PLAIN[tens]) + ("十" if tens else "") + (_PLAIN[ones] if ones else "")
