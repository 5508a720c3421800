"""Budget: what fits into the memory limit, decided before anything is allocated."""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Any

import msgspec

from agent import heap
from agent.errors import BudgetError

MB = 1 << 20

DEFAULT_MB = 250
DEFAULT_MB_PER_MATE = 110
"""A second process has 65 MB before it reads, and as much in models' buffers as the first."""

# Working memory of the models per input pixel, and besides; x86-64, Paddle Lite with its memory plan. Measured with
# peak resident memory over input shapes (README, "Memory").
DET_BYTES_PER_PX = 215
REC_BYTES_PER_PX = 660
MODEL_BYTES = 20 * MB
MIN_TILE_PX = 160 * 320
GOOD_TILE_PX = 200_000
MAX_TILE_PX = 500_000
MIN_FRAME_BYTES = 3 * MB
MAX_FRAME_BYTES = 40 * MB
# The picture at the detector's scale and its probability map.
SCALED_BYTES = 8 * MB
# Libraries' pages and the heap that the first pages bring for good, up to 23 MB, and holes in the heap: with 24 MB one
# page in 800 went past a limit of 180 MB by 2 MB.
MARGIN_BYTES = 28 * MB

M_MMAP_THRESHOLD = -3  # <malloc.h>
M_ARENA_MAX = -8
MMAP_THRESHOLD_BYTES = 8 * MB


class Budget(msgspec.Struct, frozen=True):
    """How much each stage may take.

    Attributes:
        limit_mb: what all processes together may have resident.
        processes: how many run models at the same time.
        decode_bytes: what decoding a picture may take, while no model has buffers.
        frame_bytes: what a picture may keep while it is read.
        spare_bytes: what picture, copies of it and models' buffers may take together.
    """

    limit_mb: int
    processes: int
    decode_bytes: int
    frame_bytes: int
    spare_bytes: int

    @classmethod
    def plan(cls, limit_mb: int, resident_bytes: int, processes: int = 1) -> Budget:
        """Share out what is left of the limit once the runtime is loaded.

        Args:
            limit_mb: what all processes together may have resident, in MB of 2**20 bytes.
            resident_bytes: what they have now, models loaded and no page read.
            processes: how many run models at the same time.

        Raises:
            BudgetError: not even the smallest tile and picture fit.
        """
        free = limit_mb * MB - resident_bytes - margin_bytes()
        spare = free - MODEL_BYTES * processes
        need = cls.least_mb(resident_bytes, processes)
        if spare < _least_bytes(processes):
            raise BudgetError(f"a memory limit of {limit_mb} MB is too small for any page: give {need} MB")
        beside = SCALED_BYTES + GOOD_TILE_PX * DET_BYTES_PER_PX * processes
        frame_bytes = min(MAX_FRAME_BYTES, max(MIN_FRAME_BYTES, spare - beside))
        return cls(limit_mb, processes, free, frame_bytes, spare)

    @staticmethod
    def least_mb(resident_bytes: int, processes: int = 1) -> int:
        """Return the lowest limit, in MB, that any page can be read within; arguments as for `plan`."""
        held = resident_bytes + margin_bytes() + MODEL_BYTES * processes
        return (held + _least_bytes(processes)) // MB + 1

    def tile_px(self, held_bytes: int) -> int:
        """Return the largest detector input, in pixels, beside so much held: the picture, its copy and maps."""
        each = (self.spare_bytes - held_bytes) // self.processes
        return max(MIN_TILE_PX, min(MAX_TILE_PX, each // DET_BYTES_PER_PX))

    def line_px(self, held_bytes: int) -> int:
        """Return the largest recogniser input, in pixels, beside so much held: the picture and its strips."""
        each = (self.spare_bytes - held_bytes) // self.processes
        return max(48 * 320, each // REC_BYTES_PER_PX)


def margin_bytes() -> int:
    """Return what the plan leaves free for what it cannot foresee, and for what large memory pages hold."""
    return MARGIN_BYTES + (heap.MARGIN_BYTES if heap.has_large_pages() else 0)


def _least_bytes(processes: int) -> int:
    """Return what the smallest tile and picture take."""
    return SCALED_BYTES + MIN_TILE_PX * DET_BYTES_PER_PX * processes + MIN_FRAME_BYTES


def resident_bytes(process: int | str = "self") -> int:
    """Return the resident memory of a process; 0 when it is gone.

    Read without psutil, which takes 9 ms to import and brings the socket module into what must have no network.
    """
    try:
        with open(f"/proc/{process}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def keep_heap_small() -> None:
    """Let glibc give large buffers back as soon as they are freed.

    Its threshold for that rises to 32 MB with the sizes it sees; the models' buffers then stay in a heap with holes.
    Keeping the heap's end between runs (M_TRIM_THRESHOLD of 64 MB) saves the detector a ninth of its time in page
    faults and costs up to 40 MB (pages of the README's table: no quicker, 276 instead of 233 MB).
    """
    if _LIBC is not None:
        _LIBC.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def share_heap() -> None:
    """Have threads share one heap: of its own, each would keep what it once had, and the system two for a core."""
    if _LIBC is not None:
        _LIBC.mallopt(M_ARENA_MAX, 1)


def settle() -> None:
    """Take what is loaded now as there for good, until `unsettle`: `collect` does not look through it again."""
    gc.collect()
    gc.freeze()


def unsettle() -> None:
    """Take back what `settle` did."""
    gc.unfreeze()


def collect() -> None:
    """Empty Python's own stock of freed objects: 0.04 ms where `settle` was called.

    CPython keeps up to 2,000 freed tuples of each length below 20, and lets them go only when it looks for garbage
    among all objects, which it does seldom. A page leaves some of each length: 1.5 MB for 1,000 pages.
    """
    gc.collect()


def trim() -> None:
    """Give freed heap memory back to the system; glibc keeps it otherwise."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def _load_libc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "malloc_trim") else None


_LIBC = _load_libc()
