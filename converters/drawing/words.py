"""The words that texts are made of, in three scripts, read from `words.toml`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import msgspec

Script = Literal["simplified", "traditional", "latin"]
SCRIPTS: tuple[Script, ...] = ("simplified", "traditional", "latin")

Phrases = tuple[str, ...]


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The words of one script.

    Attributes:
        places, marks, trades, suffixes: parts of a company's name, in this order.
        goods, units: what is sold, and by what.
        cities, streets: parts of an address.
        surnames, given: parts of a person's name.
        pieces: words that sentences are strung together from.
        receipt, invoice, cheque, letter, notice: titles of documents of that kind.
        party: what an invoice calls the rows about one party.
        columns: heads of a table of goods: name, unit, count, price, amount, tax.
        totals: subtotal, discount, total, cash, change.
        in_words: what stands before an amount in words.
        fields: names of a form's fields.
        options: what may be ticked.
        roles: who signs.
        banks: names of banks.
        headings: of chapters and paragraphs.
        greetings, farewells: of letters and receipts.
        weekdays: from Monday.
    """

    places: Phrases
    marks: Phrases
    trades: Phrases
    suffixes: Phrases
    goods: Phrases
    units: Phrases
    cities: Phrases
    streets: Phrases
    surnames: Phrases
    given: Phrases
    pieces: Phrases
    receipt: Phrases
    invoice: Phrases
    cheque: Phrases
    letter: Phrases
    notice: Phrases
    party: Phrases
    columns: Phrases
    totals: Phrases
    in_words: Phrases
    fields: Phrases
    options: Phrases
    roles: Phrases
    banks: Phrases
    headings: Phrases
    greetings: Phrases
    farewells: Phrases
    weekdays: Phrases


@functools.cache
def words(script: Script) -> Words:
    """Return the words of a script."""
    raw = msgspec.toml.decode(Path(__file__).with_name("words.toml").read_bytes())
    return msgspec.convert({key: _split(text) for key, text in raw[script].items()}, Words)


def _split(text: str) -> Phrases:
    return tuple(entry.strip() for entry in (text.split("|") if "|" in text else text.split()))


@functools.cache
def common_characters(script: Script) -> str:
    """Return a script's common characters: level 1 of GB 2312 or of Big5, or the visible part of ASCII."""
    if script == "latin":
        return "".join(map(chr, range(0x21, 0x7F)))
    if script == "simplified":
        codes = ((high, low) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF) if (high, low) <= (0xD7, 0xF9))
        return b"".join(map(bytes, codes)).decode("gb2312")
    lows = (*range(0x40, 0x7F), *range(0xA1, 0xFF))
    return b"".join(
        bytes((high, low)) for high in range(0xA4, 0xC7) for low in lows if (high, low) <= (0xC6, 0x7E)
    ).decode("big5")
