"""Measures a camera source: memory and processor time of the process that owns the device, and how soon a page is read.

    python -m tests.bench.camera [--pages 10] [--bundle DIR]

The cameras are real servers on this machine, which take processor time themselves. One JSON object comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import psutil

from agent.config import OutboxConfig
from agent.outbox import Outbox
from agent.source_config import CameraConfig
from agent.sources.camera.source import CameraSource
from tests import films
from tests.cameras import Camera
from tests.command import ROOT, environment
from tests.system.branch import until

SIZES = ((960, 540), (1920, 1080), (3840, 2160))
SETTINGS = """\
device = "bench"
state_dir = "{home}/state"
log_level = "warning"
[reader]
bundle = "{bundle}"
[memory]
limit_mb = 256
[[source]]
type = "camera"
name = "desk"
device = "{url}"
"""


def scene(number: int, size: tuple[int, int]) -> np.ndarray:
    """Return a page of a size; number 0 is the empty table."""
    return cv2.resize(films.page(number) if number else films.table(), size)


def cost(home: Path, kind: str, size: tuple[int, int], fps: int, seconds: float) -> dict[str, object]:
    """Return what the process takes while it looks at a page that lies there."""
    server = Camera(home / f"{kind}-{size[0]}", kind, fps)
    server.show(scene(1, size))
    server.start()
    source = CameraSource(CameraConfig(name="desk", device=server.url), home / f"state-{kind}-{size[0]}")
    try:
        assert until(lambda: source._watch(time.monotonic()) or source._glance.taken == 1, 30) < 30, source.trouble()
        process = psutil.Process(source._process.pid)
        before, began, frames = process.cpu_times(), time.monotonic(), source._glance.frames
        until(lambda: source._watch(time.monotonic()) or False, seconds)
        after, took = process.cpu_times(), time.monotonic() - began
        busy = after.user + after.system - before.user - before.system
        peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line)
        return {
            "camera": f"{kind} {size[0]}x{size[1]} {fps}/s",
            "cpu_percent": round(100 * busy / took, 1),
            "frames_per_s": round((source._glance.frames - frames) / took, 1),
            "resident_mb": round(process.memory_info().rss / (1 << 20), 1),
            "peak_mb": round(int(peak.split()[1]) / 1024, 1),
            "own_mb": round(process.memory_full_info().uss / (1 << 20), 1),  # not shared with the worker
        }
    finally:
        source.close()
        server.stop()


def faults(home: Path, kind: str) -> list[dict[str, object]]:
    """Return for each fault how long it takes until it is said, and from its end until pictures are looked at again."""
    server = Camera(home / f"faulty-{kind}", kind, 15)
    server.show(films.table())
    server.start()
    source = CameraSource(CameraConfig(name="desk", device=server.url), home / f"state-faulty-{kind}")

    def polled(wanted: bool) -> bool:
        source.poll()
        return bool(source.trouble()) is wanted

    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "blocks": (lambda: server.signal(signal.SIGSTOP), lambda: server.signal(signal.SIGCONT)),
        "vanishes": (server.stop, server.start),
        "repeats": (lambda: server.show(films.table(), noise=False), lambda: server.show(films.table())),
        "black": (lambda: server.show(films.table() // 30), lambda: server.show(films.table())),
    }
    rows: list[dict[str, object]] = []
    try:
        assert until(lambda: polled(False) and source._glance.frames > 20, 30) < 30
        for name, (begin, end) in ways.items():
            begin()
            said_s = until(lambda: polled(True), 60)
            said = source.trouble()
            time.sleep(5)
            end()
            back_s = until(lambda: polled(False), 60)
            time.sleep(2)
            rows.append(
                {"fault": f"{kind} {name}", "said_s": round(said_s, 1), "back_s": round(back_s, 1), "said": said}
            )
    finally:
        source.close()
        server.stop()
    return rows


def delays(home: Path, pages: int, bundle: Path) -> dict[str, object]:
    """Return how long it takes from a page that lies still to its file, and to its commit, by a real worker."""
    server = Camera(home / "worker", "http", 15)
    server.show(scene(0, (1280, 720)))
    server.start()
    (home / "agent.toml").write_text(SETTINGS.format(home=home, bundle=bundle, url=server.url))
    command = (sys.executable, "-m", "agent", "worker", "-c", str(home / "agent.toml"))
    to_file, to_row = [], []
    with subprocess.Popen(command, cwd=ROOT, env=environment(home / "cache")) as worker:
        try:
            spool = home / "state" / "sources" / "desk"
            assert until((spool / ".last").exists, 60) < 60
            outbox = Outbox(home / "state", OutboxConfig(), role="tool")
            time.sleep(3)
            for number in range(1, pages + 1):
                rows = len(list(outbox.rows(None, 1000, 0)))
                server.show(_cheque(number))
                began = time.time()
                assert until(lambda rows=rows: len(list(outbox.rows(None, 1000, 0))) > rows, 30, 0.02) < 30
                to_row.append(time.time() - began)
                to_file.append(max(path.stat().st_mtime for path in (spool / "done").glob("*.png")) - began)
                time.sleep(0.5)
            outbox.close()
        finally:
            worker.terminate()
            server.stop()
    return {
        "pages": pages,
        "still_to_taken_s": _spread(to_file),
        "still_to_accepted_s": _spread(to_row),
    }


def _cheque(number: int) -> np.ndarray:
    """Return a cheque-size page, 1200 x 550 pixels of the picture."""
    rng = np.random.default_rng(number)
    picture = cv2.resize(films.table(), (1280, 720))
    cv2.rectangle(picture, (40, 85), (1240, 635), (235, 235, 235), -1)
    for row in range(6):
        line = f"No {rng.integers(10**8, 10**9)}  PAY {rng.integers(10**4, 10**6)}"
        cv2.putText(picture, line, (90, 160 + 80 * row), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (30, 30, 30), 2)
    return picture


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 2), "max": round(max(values), 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=("faults", "delays"), help="leave the rest out")
    parser.add_argument("--bundle", type=Path, default=ROOT / "models" / "build" / "ppocr-v4-x86_64-fp32")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="bench-camera-"))
    try:
        told = {"cores": os.cpu_count(), "cost": []}
        if given.only != "faults":
            told["delays"] = delays(home, given.pages, given.bundle.absolute())
        if given.only != "delays":
            told["faults"] = [row for kind in ("rtsp", "http") for row in faults(home, kind)]
        if given.only is None:
            kinds = (*(("http", size) for size in SIZES), ("rtsp", SIZES[0]), ("rtsp", SIZES[1]))
            told["cost"] = [cost(home, kind, size, 15, given.seconds) for kind, size in kinds]
    finally:
        shutil.rmtree(home)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
