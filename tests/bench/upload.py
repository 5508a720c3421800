"""A teller's front end that sends cheques one after the other: how long each takes, and what listening costs in memory.

    python -m tests.bench.upload --bundle models/build/ppocr-v4-x86_64-fp32 --pages 60

The worker is the real one, in a process of its own, with one thread. The last line is the result as JSON; exit status 1
when a bar fails: p50 400 ms, p95 600 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from agent import health
from agent.memory import resident_bytes
from converters.drawing import draw_page, find_fonts
from tests.broker import free_port
from tests.command import ROOT
from tests.upload_kit import ask, connected, send

SIZE = (1200, 550)
P50_MS, P95_MS = 400, 600
KINDS, SEED = 20, 7  # so many different cheques
SETTINGS = """\
device = "bench"
state_dir = "{home}/state"
[reader]
bundle = "{bundle}"
[[source]]
type = "folder"
name = "scans"
path = "{home}/scans"
[memory]
limit_mb = {limit_mb}
large_pages = {large}
[outbox]
min_free_mb = 0
"""
UPLOAD = """\
[[source]]
type = "upload"
name = "desk"
listen = "{listen}"
anyone = true
max_per_minute = 100000
"""


def cheques(count: int) -> list[bytes]:
    """Return drawn cheques, most of them Chinese and with a scanner's damage, as JPEGs of 1,200 x 550 pixels."""
    fonts, found = find_fonts(), []
    for index in itertools.count():
        page = draw_page(SEED, index, fonts, long_side=(1200, 1200))
        if page.kind == "cheque":
            done, data = cv2.imencode(".jpg", _on_paper(page.pixels), [cv2.IMWRITE_JPEG_QUALITY, 88])
            assert done
            found.append(data.tobytes())
        if len(found) == count:
            break
    return found


def _on_paper(pixels: np.ndarray) -> np.ndarray:
    """Return a picture in the middle of a sheet of the usual size."""
    scale = min(SIZE[0] / pixels.shape[1], SIZE[1] / pixels.shape[0])
    small = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    sheet = np.full((SIZE[1], SIZE[0], 3), 235, np.uint8)
    top, left = (SIZE[1] - small.shape[0]) // 2, (SIZE[0] - small.shape[1]) // 2
    sheet[top : top + small.shape[0], left : left + small.shape[1]] = small
    return sheet


@contextlib.contextmanager
def worker(home: Path, bundle: Path, listen: str, *, large: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker that is ready, with or without an upload source."""
    text = SETTINGS + (UPLOAD if listen else "")
    home.mkdir()
    limit_mb = 256 + (32 if large else 0)  # what large pages take, so that the pictures keep what they had
    values = {"home": home, "bundle": bundle.absolute(), "listen": listen, "limit_mb": limit_mb}
    (home / "agent.toml").write_text(text.format(**values, large=str(large).lower()))
    command = (sys.executable, "-m", "agent", "worker", "-c", str(home / "agent.toml"))
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        while health.read_state(home / "state", "worker", health.WorkerState) is None:
            if process.poll() is not None:
                raise SystemExit((home / "log").read_text())
            time.sleep(0.05)
        time.sleep(0.5)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def measure(home: Path, bundle: Path, pages: int, warm: int, *, large: bool) -> dict[str, float]:
    """Return what was measured."""
    pictures = cheques(KINDS)
    with worker(home / "without", bundle, "") as process:
        without_mb = resident_bytes(process.pid) / (1 << 20)
    listen = f"127.0.0.1:{free_port()}"
    with worker(home / "with", bundle, listen, large=large) as process:
        idle_mb = resident_bytes(process.pid) / (1 << 20)
        total_ms, read_ms, lines = [], [], 0
        with connected(listen) as link:
            for number in range(warm + pages):
                picture = pictures[number % KINDS]
                began = time.perf_counter()
                reply = send(link, "POST", "/v1/read", picture, {"Content-Type": "image/jpeg"})
                took_ms = 1000 * (time.perf_counter() - began)
                (page,) = reply.json["pages"]
                if number >= warm:
                    total_ms.append(took_ms)
                    read_ms.append(1000 * page["seconds"])
                    lines += len(page["lines"])
        busy_mb = resident_bytes(process.pid) / (1 << 20)
        assert ask(listen, "GET", "/metrics").status == 200
        scraped_mb = resident_bytes(process.pid) / (1 << 20)
    beside_ms = [total - read for total, read in zip(total_ms, read_ms, strict=True)]
    return {
        "pages": pages,
        "lines": round(lines / pages, 1),
        "p50_ms": round(statistics.median(total_ms)),
        "p95_ms": round(statistics.quantiles(total_ms, n=20)[-1]),
        "read_p50_ms": round(statistics.median(read_ms)),
        "beside_p50_ms": round(statistics.median(beside_ms), 1),
        "beside_p95_ms": round(statistics.quantiles(beside_ms, n=20)[-1], 1),
        "without_source_mb": round(without_mb, 1),
        "with_source_mb": round(idle_mb, 1),
        "after_pages_mb": round(busy_mb, 1),
        "metrics_mb": round(scraped_mb - busy_mb, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "models/build/ppocr-v4-x86_64-fp32")
    parser.add_argument("--pages", type=int, default=60)
    parser.add_argument("--warm", type=int, default=5)
    parser.add_argument("--large-pages", action="store_true", help="With memory.large_pages.")
    parser.add_argument("--save", type=Path, help="Write the first picture there.")
    arguments = parser.parse_args()
    if arguments.save:
        arguments.save.write_bytes(cheques(1)[0])
    with tempfile.TemporaryDirectory() as home:
        found = measure(Path(home), arguments.bundle, arguments.pages, arguments.warm, large=arguments.large_pages)
    passed = found["p50_ms"] <= P50_MS and found["p95_ms"] <= P95_MS
    print(json.dumps({**found, "passed": passed}))
    sys.exit(not passed)


if __name__ == "__main__":
    main()
