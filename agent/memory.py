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
MARGIN_BYTES = 10 * MB


class Budget(msgspec.Struct, frozen=True):
    """How much each stage may take.

    Attributes:
        limit_mb: what the whole process may have resident.
        tile_px: largest detector input, in pixels.
        frame_px: largest picture kept in memory, in pixels of 3 bytes.
    """

    limit_mb: int
    tile_px: int
    frame_px: int

    @classmethod
    def plan(cls, limit_mb: int, resident_bytes: int) -> Budget:
        """Share out what is left of the limit once the runtime is loaded.

        Args:
            limit_mb: what the whole process may have resident, in MB of 2**20 bytes.
            resident_bytes: what it has now, models loaded and no page read.

        Raises:
            BudgetError: not even the smallest tile and picture fit.
        """
        spare = limit_mb * MB - resident_bytes - MARGIN_BYTES
        tile_px = min(MAX_TILE_PX, max(MIN_TILE_PX, spare // 2 // DET_BYTES_PER_PX))
        # Beside the picture: its copy at the detector's scale and the probability map, at most 5 bytes a pixel.
        frame_px = (spare - tile_px * DET_BYTES_PER_PX) // 8
        if frame_px < 1_000_000:
            need = (resident_bytes + MARGIN_BYTES + MIN_TILE_PX * DET_BYTES_PER_PX + 8_000_000) // MB + 1
            raise BudgetError(f"a memory limit of {limit_mb} MB is too small for any page: give at least {need} MB")
        return cls(limit_mb, tile_px, frame_px)

    def max_line_width(self, height: int) -> int:
        """Return the widest recogniser input that fits, in pixels."""
        return max(320, self.tile_px * DET_BYTES_PER_PX // REC_BYTES_PER_PX // height)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


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
