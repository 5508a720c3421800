"""Counts in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent import health
from agent.health import WorkerState
from agent.sources.upload.tally import Tally


def render(tally: Tally, state: WorkerState | None, waiting: int) -> tuple[bytes, str]:
    """Return all counts as text, and its Content-Type."""
    registry = CollectorRegistry()
    registry.register(_Counts(tally, state, waiting))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Counts(Collector):
    def __init__(self, tally: Tally, state: WorkerState | None, waiting: int) -> None:
        self._tally = tally
        self._state = state
        self._waiting = waiting

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("edge_ocr_requests", "Answers to requests, by status.", labels=["status"])
        for status, count in sorted(self._tally.requests().items()):
            requests.add_metric([str(status)], count)
        yield requests
        pages = CounterMetricFamily("edge_ocr_upload_pages", "Pages sent here.", labels=["verdict", "reason"])
        for (verdict, reason), count in sorted(self._tally.pages().items()):
            pages.add_metric([verdict, reason], count)
        yield pages
        buckets, total_s = self._tally.seconds()
        yield HistogramMetricFamily(
            "edge_ocr_page_seconds", "Time that reading a page took.", buckets=buckets, sum_value=total_s
        )
        yield GaugeMetricFamily("edge_ocr_uploads_waiting", "Files sent and not answered.", self._waiting)
        yield GaugeMetricFamily("edge_ocr_resident_bytes", "Resident memory.", health.resident_mb() * (1 << 20))
        if self._state is not None:
            yield from _of_worker(self._state)


def _of_worker(state: WorkerState) -> Iterator[Metric]:
    pages = CounterMetricFamily("edge_ocr_worker_pages", "Pages of all sources.", labels=["verdict"])
    for verdict, count in (("accepted", state.accepted), ("failed", state.failed), ("skipped", state.skipped)):
        pages.add_metric([verdict], count)
    yield pages
    yield GaugeMetricFamily("edge_ocr_reading", "1 while pages are taken.", float(state.reading))
