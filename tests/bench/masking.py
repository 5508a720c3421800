"""How well long numbers are masked: `python -m tests.bench.masking [--numbers 100000] [--seed 1]`.

Pages of a few lines are made up, with numbers planted in them as an OCR reads them: digits replaced by look-alikes,
separators of all kinds, line breaks in between. Lines with amounts, dates and times stand around them.
"""

from __future__ import annotations

import random
import sys
import time
import timeit
from collections.abc import Iterator
from typing import NamedTuple

import click

from agent.config import PrivacyConfig
from agent.mask import MASK, Masker
from agent.page import PageResult, TextLine

NOISE = (0.0, 0.01, 0.02, 0.05, 0.1)
ALIKE = {
    **{str(digit): chr(0xFF10 + digit) for digit in range(10)},
    "0": "OoＯ０〇",
    "1": "Il|１",
    "2": "ZzＺ",
    "5": "SsＳ",
    "8": "BＢ",
}
NORMAL = {ord(c): digit for digit, alike in ALIKE.items() for c in alike}
SEPARATORS = (" ", "-", "·", "\u00a0", "\u2009", "–", " - ", "  ")
LABELS = ("账号", "Card no.", "身份证号码：", "Konto:", "卡号 ", "ID ", "IBAN ", "户名 王小明 ", "A/C ", "")
ENDS = ("", "", "", " 元", " (USD)", "。", " valid")
WORDS = ("合计", "Total", "单价", "日期", "Invoice", "应付金额", "Date", "税额", "电话", "数量", "Subtotal", "备注")


class Planted(NamedTuple):
    """A page's lines, the number in them, and what must and must not be masked: (line, start, end)."""

    lines: list[str]
    value: str
    digits: list[tuple[int, int]]
    harmless: list[tuple[int, int, int]]


class Figures(NamedTuple):
    """What came of planting numbers at one noise level."""

    noise: float
    planted: int
    missed: int  # more than the last characters to be seen
    leaked: int  # the value found, exactly, without separators, or with look-alikes put right
    harmless: int
    masked: int  # of the harmless ones

    @property
    def recall(self) -> float:
        """The share of the numbers that are masked."""
        return 1 - self.missed / self.planted

    @property
    def false_masks(self) -> float:
        """The share of the amounts, dates and times that are masked."""
        return self.masked / self.harmless


def digits(chance: random.Random, count: int) -> str:
    return "".join(chance.choices("0123456789", k=count))


def resident(chance: random.Random) -> str:
    day = f"{chance.randint(1930, 2025)}{chance.randint(1, 12):02}{chance.randint(1, 28):02}"
    region = f"{chance.choice((11, 31, 33, 44, 51, 65))}{digits(chance, 4)}"
    if chance.random() < 0.2:
        return f"{region}{day[2:]}{digits(chance, 3)}"
    return f"{region}{day}{digits(chance, 3)}{chance.choice('0123456789X')}"


def taiwanese(chance: random.Random) -> str:
    """Return an identity number of Taiwan, with its check digit."""
    letters = "ABCDEFGHJKLMNPQRSTUVXYWZIO"
    letter, rest = chance.choice(letters), chance.choice("1289") + digits(chance, 7)
    code = letters.index(letter) + 10
    total = code // 10 + code % 10 * 9 + sum(int(d) * w for d, w in zip(rest, range(8, 0, -1), strict=True))
    return f"{letter}{rest}{-total % 10}"


def number(chance: random.Random) -> str:
    """Return a number that must be masked."""
    kind = chance.choices(("card", "any", "resident", "taiwan", "hong kong", "iban"), (4, 3, 3, 1, 1, 1))[0]
    if kind == "card":
        return chance.choice(("62", "4", "5", "37")) + digits(chance, chance.randint(13, 17))
    if kind == "resident":
        return resident(chance)
    if kind == "taiwan":
        return taiwanese(chance)
    if kind == "hong kong":
        letters = chance.choice(("A", "C", "G", "K", "P", "R", "Y", "Z", "WX"))
        return f"{letters}{digits(chance, 6)}{chance.choice('(（')}"  # `page` closes it
    if kind == "iban":
        return chance.choice(("DE", "GB", "NL", "FR")) + digits(chance, 20)
    return digits(chance, chance.randint(12, 20))


def misread(chance: random.Random, text: str, noise: float) -> str:
    return "".join(chance.choice(ALIKE[c]) if c in ALIKE and chance.random() < noise else c for c in text)


def laid_out(chance: random.Random, value: str) -> str:
    """Return a number as it is printed: in groups, with separators at random, or over two or three lines."""
    if not value.isdigit() or chance.random() < 0.3:
        return " ".join(value[i : i + 4] for i in range(0, len(value), 4)) if value[:2] in ("DE", "FR") else value
    if chance.random() < 0.4:
        separator = chance.choice(SEPARATORS)
        return separator.join(value[i : i + 4] for i in range(0, len(value), 4))
    parts = [value[0]]
    for digit in value[1:]:
        parts.append((chance.choice(SEPARATORS) if chance.random() < 0.2 else "") + digit)
    if chance.random() < 0.5:
        for at in chance.sample(range(1, len(parts)), chance.randint(1, 2)):
            parts[at] = "\n" + parts[at].lstrip("".join(SEPARATORS))
    return "".join(parts)


def amount(chance: random.Random) -> str:
    value = chance.choice((chance.uniform(0.01, 100), chance.uniform(100, 1e5), chance.uniform(1e5, 1e9)))
    european = f"{value:,.2f}".translate({ord(","): ".", ord("."): ","})
    form = chance.choice((f"{value:,.2f}", f"{value:.2f}", f"{value:,.0f}", european))
    return chance.choice(("¥", "$", "NT$", "USD ", *([""] if "," in form or "." in form else []))) + form


def moment(chance: random.Random) -> str:
    day = (chance.randint(1995, 2035), chance.randint(1, 12), chance.randint(1, 28))
    hour = (chance.randint(0, 23), chance.randint(0, 59), chance.randint(0, 59))
    form = chance.choice(
        (
            "{0}-{1:02}-{2:02}", "{0}-{1:02}-{2:02} {3:02}:{4:02}:{5:02}", "{0}{1:02}{2:02} {3:02}{4:02}{5:02}",
            "{0}年{1}月{2}日", "{0}/{1:02}/{2:02}", "{0}.{1:02}.{2:02}", "{2:02}-{1:02}-{0}", "{0}{1:02}{2:02}",
            "{0}{1:02}{2:02}{3:02}{4:02}{5:02}", "{3:02}:{4:02}", "{0}-{1:02}-{2:02}T{3:02}:{4:02}:{5:02}Z",
        )
    )  # fmt: skip
    return form.format(*day, *hour)


def harmless_line(chance: random.Random, noise: float, at: int) -> tuple[str, list[tuple[int, int, int]]]:
    """Return a line of amounts, dates and times, and where they are."""
    line, places = "", []
    for _ in range(chance.randint(1, 3)):
        line += chance.choice((chance.choice(WORDS) + chance.choice((" ", "：", ": ")), "", ""))
        text = misread(chance, chance.choice((amount, moment))(chance), noise)
        places.append((at, len(line), len(line) + len(text)))
        line += text + " "
    return line.rstrip(), places


def page(chance: random.Random, noise: float) -> Planted:
    """Return a made-up page."""
    value = number(chance)
    printed = laid_out(chance, value)
    if value[-1] in "(（":
        last = chance.choice("0123456789A")
        value, printed = value[:-1] + last, f"{value}{last}{')' if value[-1] == '(' else '）'}"
    label = chance.choice(LABELS)
    around = [harmless_line(chance, noise, 0)]
    lines = [around[0][0]]
    places: list[tuple[int, int]] = []
    line = label if "\n" not in printed or chance.random() < 0.5 else ""
    head = 2 if value[:2].isalpha() else 1 if value[0].isalpha() else 0  # letters are read as they are
    noisy = printed[:head] + misread(chance, printed[head:], noise)
    for c in noisy:
        if c == "\n":
            lines.append(line)
            line = ""
            continue
        if c.isalnum() or c in "|〇":
            places.append((len(lines), len(line)))
        line += c
    lines.append(line + chance.choice(ENDS))
    last_line, last_places = harmless_line(chance, noise, len(lines))
    return Planted([*lines, last_line], value, places, [*around[0][1], *last_places])


def result(lines: list[str]) -> PageResult:
    """Return lines as a page, one below the other."""
    quads = [((40, y), (40 + 18 * len(t), y), (40 + 18 * len(t), y + 30), (40, y + 30)) for y, t in enumerate_y(lines)]
    return PageResult("scan.png", 2000, 3000, tuple(TextLine(t, 0.9, q) for t, q in zip(lines, quads, strict=True)))


def enumerate_y(lines: list[str]) -> Iterator[tuple[int, str]]:
    return ((100 + 50 * number, text) for number, text in enumerate(lines))


def holds(text: str, value: str) -> bool:
    """Tell whether a value can be found in text: as it is, without separators, with look-alikes put right."""
    bare = "".join(c for c in text if c.isalnum() or c in "|〇" or c == MASK)
    return any(value in form for form in (text, bare, text.translate(NORMAL), bare.translate(NORMAL)))


def measure(noise: float, numbers: int, seed: int, misses: list[tuple[list[str], list[str]]] | None = None) -> Figures:
    """Plant numbers, mask, and look for them."""
    chance = random.Random(f"{seed} {noise}")
    masker = Masker(PrivacyConfig())
    missed = leaked = harmless = masked = 0
    for _ in range(numbers):
        planted = page(chance, noise)
        after = [line.text for line in masker.page(result(planted.lines)).lines]
        bad = sum(after[row][at] != MASK for row, at in planted.digits) > 4
        wrong = [place for place in planted.harmless if MASK in after[place[0]][place[1] : place[2]]]
        missed += bad
        leaked += holds("\n".join(after), planted.value)
        harmless += len(planted.harmless)
        masked += len(wrong)
        if misses is not None and bad:
            misses.append((planted.lines, after))
    return Figures(noise, numbers, missed, leaked, harmless, masked)


def microseconds(line: str) -> float:
    """Return how long cleaning a line takes, the best of five."""
    masker = Masker(PrivacyConfig())
    return min(timeit.repeat(lambda: masker.clean(line), number=1000, repeat=5)) * 1000


@click.command()
@click.option("--numbers", default=100_000, show_default=True, help="Planted, over all noise levels.")
@click.option("--seed", default=1, show_default=True)
@click.option("--show", default=0, help="Print so many pages that went wrong, at each level.")
def main(numbers: int, seed: int, show: int) -> None:
    """Measure masking on made-up pages."""
    print("noise   numbers   recall    leaked   amounts, dates   falsely masked")
    bad = 0
    began = time.perf_counter()
    for noise in NOISE:
        misses: list[tuple[list[str], list[str]]] = []
        told = measure(noise, numbers // len(NOISE), seed, misses)
        print(
            f"{noise:<7.0%} {told.planted:<9} {told.recall:<9.3%} {told.leaked:<8} {told.harmless:<16} "
            f"{told.masked} ({told.false_masks:.3%})"
        )
        bad += told.leaked
        for lines, after in misses[:show]:
            print(*(f"    {a!r} -> {b!r}" for a, b in zip(lines, after, strict=True)), "", sep="\n")
    print(f"{(time.perf_counter() - began) / numbers * 1e6:.0f} µs a page, made and checked")
    for line in ("这是一行没有数字的文字，二十个字左右。", "合计 1,234.00 元 2026-11-21", "账号 6222 0212 3456 7890"):
        print(f"{line}: {microseconds(line):.1f} µs")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
