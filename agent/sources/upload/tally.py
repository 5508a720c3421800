"""Counts of requests and pages, kept without a package: the one that shows them is loaded when they are asked for."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter

from agent.page import PageResult

BOUNDS_S = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 2.0, 4.0, 8.0, 16.0, 32.0)


class Tally:
    """Counts since the start; any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[int] = Counter()
        self._pages: Counter[tuple[str, str]] = Counter()
        self._seconds = [0] * (len(BOUNDS_S) + 1)
        self._sum_s = 0.0

    def request(self, status: int) -> None:
        """Count an answer by its status."""
        with self._lock:
            self._requests[status] += 1

    def page(self, page: PageResult) -> None:
        """Count a page by its verdict, and the time it took."""
        with self._lock:
            self._pages["refused" if page.error is not None else "read", page.reason or ""] += 1
            if page.error is None:
                self._seconds[bisect_left(BOUNDS_S, page.seconds)] += 1
                self._sum_s += page.seconds

    def requests(self) -> dict[int, int]:
        """Return answers by status."""
        with self._lock:
            return dict(self._requests)

    def pages(self) -> dict[tuple[str, str], int]:
        """Return pages by verdict and reason."""
        with self._lock:
            return dict(self._pages)

    def seconds(self) -> tuple[list[tuple[str, float]], float]:
        """Return how many pages took up to each bound, bounds as text, and the sum of all in seconds."""
        with self._lock:
            counts, total = [], 0.0
            for bound, count in zip((*BOUNDS_S, float("inf")), self._seconds, strict=True):
                total += count
                counts.append(("+Inf" if bound == float("inf") else str(bound), total))
            return counts, self._sum_s
