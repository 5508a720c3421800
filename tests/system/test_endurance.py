"""A tenth of `make soak`: mixed pages and damaged files through a real service, and the memory it takes."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from tests.system.endurance import endure
from tests.system.soak import Sample, slope, steady

PAGES = int(os.environ.get("PAGES", "200"))
SEED = int(os.environ.get("SEED", "1"))

pytestmark = pytest.mark.models


def told(capsys, account):
    with capsys.disabled():
        print(f"\n{json.dumps(account)}")
    return account


@pytest.mark.timeout(1800)
def test_mixed_pages_stay_below_the_limit_and_each_has_its_verdict(tmp_path, capsys):
    account = told(capsys, endure(tmp_path, PAGES, (256,), damaged=0, data=None, seed=SEED))
    assert not account["missed"]
    assert account["256 MB"]["rows"] > PAGES / 2
    assert account["256 MB"]["char_f1"]["drawn"] > 0.9
    assert (tmp_path / "256" / "memory.png").stat().st_size > 10_000


@pytest.mark.timeout(1800)
def test_damaged_files_get_one_verdict_each_and_the_service_lives(tmp_path, capsys):
    account = told(capsys, endure(tmp_path, 0, (), damaged=5 * PAGES, data=None, seed=SEED))
    assert not account["missed"]
    assert account["files"]["refused"] > account["files"]["read"] > 0


def test_growth_is_told_from_noise():
    noise = np.random.default_rng(1).normal(0, 3, 2000)
    samples = [Sample(0.0, page, 100 + page * 0.005 + noise[page], 0.0, 9, 1, 1) for page in range(2000)]
    grown, error = slope(samples)
    assert grown == pytest.approx(5.0, abs=3 * error) and error < 0.5
    assert slope(samples[:50])[1] > 5
    assert slope([samples[0]] * 100) == (0.0, float("inf"))


def test_growth_is_told_of_the_longest_time_without_a_restart():
    short, long = (
        [Sample(0.0, page, 1.0, 0.0, 9, 1, start) for page in range(count)] for start, count in ((0, 300), (1, 900))
    )
    assert [(sample.start, sample.pages) for sample in steady([*short, *long])] == [
        (1, page) for page in range(90, 900)
    ]
