"""What Paddle Lite on x86 reads from the environment once, at its first load."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def prepare() -> None:
    """Set the environment for the library; without effect where it is loaded already, and on ARM."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return  # there the configuration says how many threads
    # Without this a quarter of the time goes to barriers of threads that do not help (measured).
    os.environ["OMP_NUM_THREADS"] = "1"
    if is_amd_with_avx2(_cpuinfo()):
        # The bundled MKL takes its slowest kernels on processors that are not Intel's: det 118 -> 88 ms.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


def is_amd_with_avx2(cpuinfo: str) -> bool:
    """Say whether a text like /proc/cpuinfo is of a processor that MKL gives slower kernels than it can take."""
    return "AuthenticAMD" in cpuinfo and " avx2" in cpuinfo


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")[:4096]
    except OSError:
        return ""
