"""Nothing is lost, doubled or made up when everything is killed at random. `make torture` kills more often."""

from __future__ import annotations

import json
import os

import pytest

from tests.system.torture import failed, torture

KILLS = int(os.environ.get("KILLS", "300"))
SEED = int(os.environ.get("SEED", "20261121"))


@pytest.mark.timeout(1200)
def test_random_kills_lose_nothing(tmp_path, capsys):
    account = torture(tmp_path, KILLS, SEED)
    with capsys.disabled():
        print(f"\n{json.dumps(account)}")
    assert not failed(account), account
    assert account["submitted"] > KILLS
    assert account["stored"] == account["submitted"]
