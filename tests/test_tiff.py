"""Directories may lie over one another and name the same lists: no walk reads more for it than a few megabytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from agent import header, tiff
from agent.errors import FrameError
from tests import bad_inputs as bad
from tests import bombs

NAME = Path("page.tif")
STARTS, LENGTHS = 273, 279
LIST_AT = 65_536

Entry = tuple[int, int, int, int]


def chained(*directories: list[Entry]) -> bytes:
    """Return a TIFF of directories, and a list of numbers that is as long as any may be."""
    data, after = b"II*\0\x08\0\0\0", 8
    for entries in directories:
        after += 2 + 12 * len(entries) + 4
        body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        data += (
            struct.pack("<H", len(entries)) + body + struct.pack("<I", after if entries is not directories[-1] else 0)
        )
    assert len(data) <= LIST_AT
    return data.ljust(LIST_AT + 4 * tiff.MAX_STRIPS, b"\0")


def test_directories_over_one_another_are_no_endless_walk():
    data = bombs.tiff_chain()
    assert len(data) < 100_000
    most = 12 * (tiff.MAX_ALL_ENTRIES + tiff.MAX_ENTRIES) + 6 * tiff.MAX_DIRECTORIES
    handle = bad.Counted(data)
    assert not header.is_complete(handle, header.parse_header(handle, NAME))
    assert handle.taken < most
    handle = bad.Counted(data)
    with pytest.raises(FrameError) as caught:
        header.tiff_parts(handle, NAME, 200)
    assert caught.value.reason == "truncated"
    assert handle.taken < most


def test_as_many_directories_as_are_looked_at_may_have_the_entries_of_a_page():
    directories = [[(tag, 3, 1, 1) for tag in range(300, 360)] for _ in range(85)]
    found = tiff.pages(io.BytesIO(chained(*directories)), 200)
    assert [number for number, _ in found] == list(range(85))
    assert tiff.MAX_DIRECTORIES * 60 <= tiff.MAX_ALL_ENTRIES


@pytest.mark.parametrize("tag", [STARTS, LENGTHS])
def test_list_that_every_directory_names_is_not_read_for_each(tag):
    handle = bad.Counted(chained(*[[(tag, 4, tiff.MAX_STRIPS, LIST_AT)] for _ in range(300)]))
    assert tiff.ends_within(handle, 1 << 30)
    assert handle.taken < 8 * tiff.MAX_STRIPS


@pytest.mark.parametrize("tag", [STARTS, LENGTHS])
def test_list_that_a_directory_names_many_times_is_read_once(tag):
    handle = bad.Counted(chained([(tag, 4, tiff.MAX_STRIPS, LIST_AT)] * 4000))
    assert tiff.ends_within(handle, 1 << 30)
    assert tiff.stored_bytes(handle, 8) == 0
    assert handle.taken < 12 * tiff.MAX_STRIPS


@pytest.mark.parametrize("cut", range(1, 20))
def test_directory_that_is_cut_off_is_none(cut):
    data = chained([(tag, 3, 1, 1) for tag in range(300, 310)])[: 8 + 2 + 120 + 4 - cut]
    assert header.tiff_parts(io.BytesIO(data + bytes(cut)), NAME, 9)
    with pytest.raises(FrameError):
        header.tiff_parts(io.BytesIO(data), NAME, 9)
