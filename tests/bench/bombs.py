"""Refuses bombs and tells how long it takes and what it costs: `python -m tests.bench.bombs [--memory-mb N]`.

Each in a process of its own, which has read a good picture before. One JSON row each: milliseconds until the verdict,
resident memory over that before, in MB, and the peak of the process that opened a PDF.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from agent import memory
from agent.documents.document import load_page, look_into
from agent.errors import FrameError
from agent.image import load_frame
from agent.source_config import DocumentsConfig
from tests import bad_inputs, bombs
from tests.command import run_python


def verdict(path: Path, budget: memory.Budget) -> str:
    settings = DocumentsConfig()
    try:
        document = look_into(path, settings)
        if document is None:
            load_frame(path, "", budget)
        else:
            load_page(path, "", document, 1, settings, budget)
    except FrameError as error:
        return error.reason
    return "read"


def peak_mb(process: int | str = "self") -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


class Watch(threading.Thread):
    """Looks at this process's children all the time; what rusage tells of them begins at the size of this one."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_mb = 0.0
        self.start()

    def run(self) -> None:
        while True:
            with suppress(OSError, IndexError):
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    program = Path(f"/proc/{child}/cmdline").read_bytes()
                    self.peak_mb = max(self.peak_mb, peak_mb(child) if b"press" in program else 0.0)
            time.sleep(0.0005)


def measure(path: Path, limit_mb: int) -> dict[str, object]:
    """Return what a bomb costs, here and now."""
    memory.keep_heap_small()
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder, "good.png")
        bad_inputs.page().save(good)
        budget = memory.Budget.plan(limit_mb, 105 * memory.MB)
        load_frame(good, "", budget)
    memory.trim()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    watch = Watch()
    before, began = memory.resident_bytes() / memory.MB, time.perf_counter()
    said = verdict(path, budget)
    took = 1000 * (time.perf_counter() - began)
    told = {"bomb": path.name, "kb": path.stat().st_size >> 10, "verdict": said, "ms": round(took)}
    return told | {"grown_mb": round(max(0.0, peak_mb() - before), 1), "process_mb": round(watch.peak_mb, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-mb", type=int, default=250)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in bombs.write_all(Path(folder)):
            ran = run_python(
                "import json\nfrom pathlib import Path\nfrom tests.bench.bombs import measure\n"
                f"print(json.dumps(measure(Path({str(path)!r}), {given.memory_mb})))"
            )
            print(ran.out.strip() or json.dumps({"bomb": path.name, "failed": ran.err[-200:]}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
