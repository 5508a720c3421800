"""The sample pages and their labels belong together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

SAMPLES = Path(__file__).parent.parent / "samples"
ROWS = [json.loads(row) for row in (SAMPLES / "labels.jsonl").read_text(encoding="utf-8").splitlines()]


def test_labels_name_every_sample_once():
    pictures = {path.name for path in SAMPLES.iterdir() if path.suffix in {".png", ".jpg"}}
    assert sorted(row["image"] for row in ROWS) == sorted(pictures)


def test_samples_are_small():
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) < 1_500_000


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["image"])
def test_every_box_lies_on_its_page_and_goes_clockwise(row):
    with Image.open(SAMPLES / row["image"]) as image:
        width, height = image.size
    for line in row["lines"]:
        corners = line["box"]
        assert line["text"].strip()
        assert all(0 <= x <= width and 0 <= y <= height for x, y in corners)
        edges = zip(corners, corners[1:] + corners[:1], strict=True)
        assert sum(x * v - u * y for (x, y), (u, v) in edges) > 0


def test_page_that_packages_try_is_the_receipts_head():
    pack = SAMPLES.parent / "agent" / "pack"
    with Image.open(SAMPLES / "receipt.png") as page, Image.open(pack / "sample.png") as head:
        assert head.tobytes() == page.crop((0, 0, page.width, head.height)).tobytes()
        lines = next(row["lines"] for row in ROWS if row["image"] == "receipt.png")
        inside = [line["text"] for line in lines if max(y for _, y in line["box"]) < head.height]
    assert (pack / "sample.txt").read_text(encoding="utf-8").splitlines() == inside
    assert len(inside) == 10
