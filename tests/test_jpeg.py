"""Scans are counted as a decoder comes upon them, and a picture with more than any program writes is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.errors import FrameError
from agent.header import parse_header
from agent.image import load_frame
from agent.jpeg import MAX_SCANNED_PX, MAX_SCANS, MAX_SEGMENTS, check_scans
from agent.memory import Budget
from tests import bombs

NAME = Path("page.jpg")
AMPLE = Budget.plan(1000, 0)
END = b"\xff\xd9"


def noise(**options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (1100, 1100, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def check(data: bytes, size_px: int = 0) -> None:
    handle = io.BytesIO(data)
    header = parse_header(handle, NAME)
    check_scans(handle, header.data_at, size_px or header.width * header.height, NAME)


def comment(data: bytes) -> bytes:
    return struct.pack(">HH", 0xFFFE, 2 + len(data)) + data


@pytest.mark.parametrize("options", [{"progressive": True}, {"progressive": True, "restart_marker_blocks": 3}, {}])
def test_ordinary_picture_has_not_too_many_scans(options):
    data = noise(quality=95, **options)
    assert len(data) > 1 << 20  # more than is read at a time
    check(data)


def test_as_many_scans_as_the_limit_are_taken_and_no_more():
    check(bombs.scans(MAX_SCANS - 6, side=64))  # Pillow writes six for a grey picture
    with pytest.raises(FrameError, match=r"^page\.jpg: a JPEG of more than 100 scans") as caught:
        check(bombs.scans(MAX_SCANS - 5, side=64))
    assert caught.value.reason == "huge"


def test_large_picture_may_have_fewer_scans():
    data = noise(progressive=True)  # ten
    check(data, MAX_SCANNED_PX // 10)
    with pytest.raises(FrameError, match="more than 9 scans"):
        check(data, MAX_SCANNED_PX // 10 + 1)


@pytest.mark.parametrize("length", [0, 2, 40_000, 65_500])
def test_end_marker_in_a_comment_hides_no_scans(length):
    data = noise(progressive=True, quality=95).removesuffix(END)
    more = b"".join(comment(END + bytes(length)) + scan for scan in [bombs.scans(1, side=64)[-24:-2]] * MAX_SCANS)
    with pytest.raises(FrameError, match="more than 100 scans"):
        check(data + more + END)


def test_scan_in_a_comment_or_behind_the_end_is_none():
    scans = b"\xff\xda\0\2" * 200
    check(noise(progressive=True).removesuffix(END) + comment(scans) + END + scans)


@pytest.mark.parametrize("shift", range(-6, 7))
def test_scan_between_two_pieces_is_counted_once(shift):
    data = noise(progressive=True).removesuffix(END)
    start = parse_header(io.BytesIO(data), NAME).data_at
    filler = bytes((1 << 20) + start + shift - len(data))
    full = data + filler + b"\xff\xda\0\2" * (MAX_SCANS - 10)
    check(full + END)
    with pytest.raises(FrameError, match="more than 100 scans"):
        check(full + b"\xff\xda\0\2" + END)


def test_segments_are_counted_too():
    data = noise(progressive=True).removesuffix(END)
    with pytest.raises(FrameError, match=f"more than {MAX_SEGMENTS} segments"):
        check(data + comment(b"") * 1_000_000 + END)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5, 21])
def test_picture_that_ends_anywhere_is_counted_to_there(cut):
    check(bombs.scans(3, side=64)[:-cut])


def test_picture_of_endless_scans_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(bombs.scans())
    monkeypatch.setattr("agent.image._decode", lambda *given: pytest.fail("decoded"))
    with pytest.raises(FrameError) as caught:
        load_frame(tmp_path / "a.jpg", "", AMPLE)
    assert caught.value.reason == "huge"


def test_second_scan_of_a_picture_that_is_not_progressive_ends_decoding(tmp_path):
    data = noise()
    scan = data[parse_header(io.BytesIO(data), NAME).data_at - 14 : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + scan * 200 + END)
    # What a decoder makes of it is no matter here: it holds no coefficients that scans could go over.
    assert load_frame(tmp_path / "a.jpg", "", AMPLE).width == 1100
