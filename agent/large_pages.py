"""How glibc is told to ask for large memory pages (2 MB), and how programs that gain nothing are kept from it."""

from __future__ import annotations

import os

TUNABLES = "GLIBC_TUNABLES"  # https://www.gnu.org/software/libc/manual/html_node/Memory-Allocation-Tunables.html
SETTING = "glibc.malloc.hugetlb=1"


def plain_environment() -> dict[str, str]:
    """Return this process's environment without the setting, for small programs that it starts."""
    return {name: value for name, value in os.environ.items() if (name, value) != (TUNABLES, SETTING)}
