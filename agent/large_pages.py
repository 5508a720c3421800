"""Large memory pages (2 MB) for the models' buffers: whether glibc asks for them, and how it is told to.

The buffers are taken anew for each page that is read, and a third of the detector's time went into 27,000 faults for
memory pages of 4 kB. glibc reads the setting at the start of a process only.
"""

from __future__ import annotations

import os
import sys

TUNABLES = "GLIBC_TUNABLES"  # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
SETTING = "glibc.malloc.hugetlb=1"
LEAST_MB = 224
"""They cost `MARGIN_BYTES` of every page's memory, which a lower limit has better uses for."""
MARGIN_BYTES = 14 << 20
"""What a large memory page holds beside what was asked for: 8 to 14 MB at the peak, over pages of six sets."""


def used() -> bool:
    """Return whether this process was started with them."""
    return os.environ.get(TUNABLES) == SETTING


def use(limit_mb: int) -> None:
    """Start this process anew with them where its memory limit is high enough; a setting of the user's stands."""
    if limit_mb >= LEAST_MB and TUNABLES not in os.environ:
        os.environ[TUNABLES] = SETTING
        os.execv(sys.executable, sys.orig_argv)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without the setting, for small programs that it starts."""
    return {name: value for name, value in os.environ.items() if (name, value) != (TUNABLES, SETTING)}
