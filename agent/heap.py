"""How the worker's heap works: settings that Python and glibc read at the start of a process only.

Python's objects live in glibc's heap like all else. Of arenas of its own, which it gives back only when the last object
in them is gone, some kilobytes stayed behind after each page; `memory.trim` gives back what is free in glibc's.

Large memory pages (2 MB) for the models' buffers are an option: the buffers are taken anew for each page that is read,
and a third of the detector's time went into 27,000 faults for memory pages of 4 kB.
"""

from __future__ import annotations

import os
import sys

ONE_HEAP = {"PYTHONMALLOC": "malloc"}  # https://docs.python.org/3/using/cmdline.html#envvar-PYTHONMALLOC
# https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
MARGIN_BYTES = 24 << 20
"""What large memory pages hold beside what was asked for: 14 MB at the peak, and up to 10 MB more between pages."""


def has_large_pages() -> bool:
    """Return whether this process was started with large memory pages."""
    return LARGE_PAGES.items() <= os.environ.items()


def set_up(*, large_pages: bool) -> None:
    """Start this process anew where it was not started so; settings of the user's stand."""
    wanted = {**ONE_HEAP, **(LARGE_PAGES if large_pages else {})}
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    if missing:
        os.environ.update(missing)
        os.execv(sys.executable, sys.orig_argv)


def plain_environment() -> dict[str, str]:
    """Return this process's environment without these settings, for small programs that it starts."""
    own = {**ONE_HEAP, **LARGE_PAGES}.items()
    return {name: value for name, value in os.environ.items() if (name, value) not in own}
