"""Large memory pages (2 MB) for the models' buffers: whether glibc asks for them, and how it is told to.

The buffers are taken anew for each page that is read, and a third of the detector's time went into 27,000 faults for
memory pages of 4 kB. glibc reads the setting at the start of a process only.
"""

from __future__ import annotations

import os
import sys

TUNABLES = "GLIBC_TUNABLES"  # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
SETTING = "glibc.malloc.hugetlb=1"
MARGIN_BYTES = 24 << 20
"""What large memory pages hold beside what was asked for: 14 MB at the peak, and up to 10 MB more between pages."""


def used() -> bool:
    """Return whether this process was started with them."""
    return os.environ.get(TUNABLES) == SETTING


def use() -> None:
    """Start this process anew with them; a setting of the user's stands."""
    if TUNABLES not in os.environ:
        os.environ[TUNABLES] = SETTING
        os.execv(sys.executable, sys.orig_argv)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without the setting, for small programs that it starts."""
    return {name: value for name, value in os.environ.items() if (name, value) != (TUNABLES, SETTING)}
