"""The directories of a TIFF, one a page: which there are, what they say, and whether all of it lies in the file.

Pictures' EXIF blocks have the same form and are read here too.
"""

from __future__ import annotations

import os
import struct
import sys
from array import array
from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, BinaryIO

MAX_DIRECTORIES = 4096
MAX_ENTRIES = 4096
MAX_ALL_ENTRIES = 1 << 18  # of all directories together, which may overlap; a page has about twenty
MAX_STRIPS = 1 << 18  # looked at in all pages of a TIFF; 65,500 rows of a page may each have one

WIDTH, HEIGHT, BITS, COLOURS, ORIENTATION = 256, 257, 258, 262, 274
SAMPLES, STRIP_ROWS, TILE_WIDTH, TILE_HEIGHT, EXTRA = 277, 278, 322, 323, 338

_SUBFILE = 254
_NO_PAGE = 0b101  # a reduced copy of another page, or a mask for one (TIFF 6.0, NewSubfileType)
_PARTS = {273: 279, 324: 325}  # where strips and tiles begin: how long they are
_PART_TAGS = {*_PARTS, *_PARTS.values()}
_FORMS = {1: "B", 3: "H", 4: "I"}
_OWN_ORDER = {"little": "<", "big": ">"}[sys.byteorder]

_Entry = tuple[Any, ...]
"""Tag, kind, items and value of an entry."""


class Directories:
    """The chain of directories of an open TIFF. Whatever it says may be wrong; `ValueError` and others tell so."""

    def __init__(self, handle: BinaryIO) -> None:
        """Read the file's head.

        Raises:
            ValueError, KeyError, struct.error: it is none of a TIFF.
            OSError: the file system fails.
        """
        self._handle = handle
        handle.seek(0)
        self.order = {b"II": "<", b"MM": ">"}[take(handle, 2)]
        handle.seek(4)
        (self.first,) = struct.unpack(self.order + "I", take(handle, 4))

    def chain(self) -> Iterator[tuple[int, list[_Entry]]]:
        """Yield where each directory begins, and its entries; ends where the chain comes back to itself.

        Raises:
            ValueError: the chain leads out of the file, or the directories have more entries than those of pages.
        """
        at, seen, left = self.first, set[int](), MAX_ALL_ENTRIES
        while at and at not in seen and len(seen) < MAX_DIRECTORIES:
            seen.add(at)
            entries, after = self.entries(at)
            left -= len(entries)
            if left < 0:
                raise ValueError("endless entries")
            yield at, entries
            self._handle.seek(after)
            (at,) = struct.unpack(self.order + "I", take(self._handle, 4))

    def entries(self, at: int) -> tuple[list[_Entry], int]:
        """Return the entries of a directory, and where the next one's place is told."""
        self._handle.seek(at)
        (count,) = struct.unpack(self.order + "H", take(self._handle, 2))
        data = take(self._handle, 12 * min(count, MAX_ENTRIES))
        return list(struct.iter_unpack(self.order + "HHI4s", data)), at + 2 + 12 * count

    def tags(self, at: int | None = None) -> dict[int, int]:
        """Return the entries of a directory, the first by default, that are one whole number, by tag."""
        entries, _ = self.entries(self.first if at is None else at)
        tags: dict[int, int] = {}
        for tag, kind, items, value in entries:
            if kind not in _FORMS:
                continue
            form = self.order + _FORMS[kind]
            if items * struct.calcsize(form) > 4:  # a list, elsewhere in the file
                if tag != BITS:
                    continue
                self._handle.seek(*struct.unpack(self.order + "I", value))
                value = take(self._handle, struct.calcsize(form))
            (tags[tag],) = struct.unpack_from(form, value)
        return tags

    def parts(self, entries: list[_Entry]) -> Iterator[tuple[array[int], array[int]]]:
        """Yield where the strips, or tiles, of a directory begin, and how many bytes they have."""
        wanted = {entry[0]: entry for entry in entries if entry[0] in _PART_TAGS}  # one each, though told many times
        lists = {tag: self._numbers(entry) for tag, entry in wanted.items()}
        for starts, lengths in _PARTS.items():
            yield lists.get(starts, array("I")), lists.get(lengths, array("I"))

    def _numbers(self, entry: _Entry) -> array[int]:
        """Return the whole numbers of an entry, in place or elsewhere in the file."""
        _, kind, items, value = entry
        numbers = array(_FORMS[kind])
        size = min(items, MAX_STRIPS) * numbers.itemsize
        if size > 4:
            self._handle.seek(*struct.unpack(self.order + "I", value))
            value = take(self._handle, size)
        numbers.frombytes(value[:size])
        if self.order != _OWN_ORDER:
            numbers.byteswap()
        return numbers


def pages(handle: BinaryIO, most: int) -> list[tuple[int, int]]:
    """Return the pages of a TIFF: number of the directory from 0, and where it begins; at most one more than `most`.

    Small copies of pages and masks are no pages.

    Raises:
        ValueError, KeyError, struct.error: the chain leads out of the file.
        OSError: the file system fails.
    """
    directories, found = Directories(handle), []
    for number, (at, entries) in enumerate(directories.chain()):
        kinds = (entry for entry in entries if entry[0] == _SUBFILE)
        if not any(struct.unpack(directories.order + "I", kind[3])[0] & _NO_PAGE for kind in kinds):
            found.append((number, at))
        if len(found) > most:
            break
    return found


def ends_within(handle: BinaryIO, size: int) -> bool:
    """Return whether every strip and tile that the directories point at lies within so many bytes.

    Raises:
        ValueError, KeyError, struct.error: the chain leads out of the file.
        OSError: the file system fails.
    """
    directories, left, any_page = Directories(handle), MAX_STRIPS, False
    for _, entries in directories.chain():
        any_page = True
        for starts, lengths in directories.parts(entries):
            left -= max(len(starts), len(lengths))
            ends = map(sum, zip_longest(starts, lengths, fillvalue=0))
            if max(ends, default=0) > size:
                return False
        if left <= 0:
            break
    return any_page


def stored_bytes(handle: BinaryIO, at: int) -> int:
    """Return how many bytes of the file are a directory's strips and tiles, at most the whole file."""
    directories = Directories(handle)
    entries, _ = directories.entries(at)
    return min(sum(sum(lengths) for _, lengths in directories.parts(entries)), handle.seek(0, os.SEEK_END))


def take(handle: BinaryIO, count: int) -> bytes:
    """Return the next bytes of a file.

    Raises:
        ValueError: it has fewer.
    """
    data = handle.read(count)
    if len(data) != count:
        raise ValueError("end of file")
    return data
