"""Power cuts on the way from the folder to the outbox leave every page somewhere, and no page read twice."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from tests.system import intake_powercut
from tests.system.intake_powercut import Change, names_after
from tests.system.powercut import Account

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: apt-get install strace"
)


def test_two_thousand_power_cuts_lose_no_page(capsys):
    account = intake_powercut.simulate(images=2000, seed=1)
    with capsys.disabled():
        print(f"\n{json.dumps(vars(account))}")
    assert account.clean(), account
    assert (account.images, account.accepted) == (2000, intake_powercut.PAGES)
    assert account.recovered == 2000 // intake_powercut.RESUMED


def test_page_put_away_before_its_result_was_kept_is_noticed(tmp_path):
    account = Account(seed=1)
    pages = {"01.png": b"", "02.png": b""}
    intake_powercut._look(tmp_path / "image", {}, {"done/01.png": "01.png", "02.png": "02.png"}, pages, account)
    assert account.lost == 1


def test_page_that_is_nowhere_is_noticed(tmp_path):
    account = Account(seed=1)
    intake_powercut._look(tmp_path / "image", {}, {}, {"01.png": b""}, account)
    assert account.lost == 1


def test_names_before_a_barrier_are_sure_and_later_ones_come_in_order():
    made = [Change("rename", 1, "a", "b"), Change("barrier", 2), Change("rename", 3, "b", "c"), Change("mkdir", 4, "d")]
    luck = random.Random(1)
    assert names_after(made, {"a": "a"}, luck, "none") == {"b": "a"}
    assert names_after(made, {"a": "a"}, luck, "all") == {"c": "a", "d": ""}
    some = [tuple(sorted(names_after(made, {"a": "a"}, luck, "some"))) for _ in range(50)]
    assert set(some) == {("b",), ("c",), ("c", "d")}
