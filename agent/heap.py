"""How the worker's heap works: large memory pages (2 MB) for the models' buffers, as an option.

The buffers are taken anew for each page that is read, and a third of the detector's time went into 27,000 faults for
memory pages of 4 kB. glibc reads what asks for others at the start of a process only.
"""

from __future__ import annotations

import os
import sys

# https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MARGIN_BYTES = 20 << 20
"""What large memory pages hold beside what was asked for, 14 MB at the peak and up to 10 MB more between pages, and
beside the 4 MB of it that the plan's own margin has room for."""


def has_large_pages() -> bool:
    """Return whether this process was started with large memory pages."""
    return LARGE_PAGES.items() <= os.environ.items()


def use_large_pages() -> None:
    """Start this process anew where it was not started so; settings of the user's stand."""
    missing = {name: value for name, value in LARGE_PAGES.items() if name not in os.environ}
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, sys.orig_argv)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without these settings, for small programs that it starts."""
    return {name: value for name, value in os.environ.items() if (name, value) not in LARGE_PAGES.items()}
