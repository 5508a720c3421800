"""Budget: what fits into the memory limit, decided before anything is allocated."""

from __future__ import annotations

import ctypes
from typing import Any

import msgspec
import psutil

from agent.errors import BudgetError

MB = 1 << 20

# Measured on x86-64 with Paddle Lite's memory plan (README, "Memory"); bytes of working memory per input pixel.
DET_BYTES_PER_PX = 170
REC_BYTES_PER_PX = 520
MIN_TILE_PX = 160 * 320
MAX_TILE_PX = 640 * 640
MIN_FRAME_BYTES = 3 * MB
MAX_FRAME_BYTES = 48 * MB
# The picture at the detector's scale, at most 2000 x 2000 in practice, and its probability map.
SCALED_BYTES = 14 * MB
MARGIN_BYTES = 10 * MB

M_MMAP_THRESHOLD = -3  # <malloc.h>
MMAP_THRESHOLD_BYTES = 8 * MB


class Budget(msgspec.Struct, frozen=True):
    """How much each stage may take.

    Attributes:
        limit_mb: what the whole process may have resident.
        decode_bytes: what decoding a picture may take, while no model has buffers.
        frame_bytes: what a picture may keep while it is read.
        tile_px: largest detector input, in pixels.
        line_px: largest recogniser input, in pixels.
    """

    limit_mb: int
    decode_bytes: int
    frame_bytes: int
    tile_px: int
    line_px: int

    @classmethod
    def plan(cls, limit_mb: int, resident_bytes: int, processes: int = 1) -> Budget:
        """Share out what is left of the limit once the runtime is loaded.

        Args:
            limit_mb: what all processes together may have resident, in MB of 2**20 bytes.
            resident_bytes: what it has now, models loaded and no page read.
            processes: how many run models at the same time.

        Raises:
            BudgetError: not even the smallest tile and picture fit.
        """
        spare = limit_mb * MB - resident_bytes - MARGIN_BYTES
        least = MIN_TILE_PX * DET_BYTES_PER_PX
        each = min(max(spare // 2 // processes, least), MAX_TILE_PX * DET_BYTES_PER_PX)
        frame_bytes = min(MAX_FRAME_BYTES, spare - each * processes - SCALED_BYTES)
        if frame_bytes < MIN_FRAME_BYTES:
            need = resident_bytes + MARGIN_BYTES + least * processes + SCALED_BYTES + MIN_FRAME_BYTES
            raise BudgetError(f"a memory limit of {limit_mb} MB is too small for any page: give {need // MB + 1} MB")
        return cls(limit_mb, spare, frame_bytes, each // DET_BYTES_PER_PX, each // REC_BYTES_PER_PX)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def keep_heap_small() -> None:
    """Let glibc give large buffers back as soon as they are freed.

    Its threshold for that rises to 32 MB with the sizes it sees; the models' buffers then stay in a heap with holes.
    """
    if _LIBC is not None:
        _LIBC.mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


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
