"""The uplink's own look at results: what is not masked is found, what is masked passes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config import PrivacyConfig
from agent.mask import Masker
from agent.page import PageResult, TextLine, to_json
from agent.uplink.screen import Screen
from tests.centre import page


def screen() -> Screen:
    return Screen(PrivacyConfig())


@pytest.mark.parametrize(
    "result",
    [
        page("k", "6222 0212 3456 7890"),
        page("k", "62220212", "34567890"),  # goes on in the next line
        b'{"image": "6222021234567890.png"}',
        b'{"lines": [], "fields": [{"name": "iban", "value": "6222021234567890"}]}',
        b'{"lines": [{"text": "x", "quad": [[0,0],[1,0],[1,1],[0,1]], "note": "6222021234567890"}]}',
        b'{"lines": [{"text": "6222021234567890", "box": 1}]}',
        b'{"6222021234567890": 1}',
    ],
)
def test_screen_finds_numbers_wherever_they_are(result):
    assert screen().why_not(result) == "privacy"


def test_screen_lets_pass_what_the_worker_masked():
    dice = random.Random(1)
    masker, look = Masker(PrivacyConfig()), screen()
    for number in range(200):
        texts = [
            "".join(
                dice.choice(" -.,:/") if dice.random() < 0.3 else dice.choice("0123456789OIlBSA月") for _ in range(25)
            )
            for _ in range(dice.randint(0, 8))
        ]
        lines = tuple(
            TextLine(text, 0.9, ((5.0, y), (90.0, y), (90.0, y + 8.0), (5.0, y + 8.0)))
            for y, text in enumerate(texts, 10)
        )
        key = f"{random.Random(number).getrandbits(256):064x}"
        result = PageResult(
            image=f"scan {number}.png", width=1, height=1, lines=lines, key=key, source="dock-202611210001"
        )
        assert look.why_not(to_json(masker.page(result))) == "", texts


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_screen_calls_what_is_no_result_invalid(body):
    assert screen().why_not(body) in ("invalid", "privacy", "")
