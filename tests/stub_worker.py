"""The worker with everything real but the models: pages say who they are in their first pixels, and what to do.

Started as `python -m tests.stub_worker -c agent.toml`, in place of `edge-ocr worker`, where hundreds of restarts would
otherwise be spent on loading models. Folder source, decoder, mask, outbox and the loop are the product's own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import cv2
import numpy as np

from agent import worker
from agent.config import AgentConfig, load
from agent.memory import Budget
from agent.page import Frame, PageResult, TextLine

SIDE = 32
READS, CRASHES, HANGS, FAILS, LEAKS, HOARDS, SWELLS = range(7)


def draw(path: Path, number: int, action: int = READS, seconds: float = 0.0, megabytes: int = 0) -> None:
    """Write a page that the stub knows by its number.

    Args:
        path: the file.
        number: of the page.
        action: what reading it does.
        seconds: how long that takes, up to 2.55.
        megabytes: what it takes for itself: LEAKS for ever, HOARDS until the models are rebuilt, SWELLS for the moment.
    """
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    head = np.frombuffer(number.to_bytes(8, "big"), np.uint8)
    pixels[0, :8, 0] = head
    pixels[0, 8] = action, min(255, round(100 * seconds)), megabytes
    done, data = cv2.imencode(".png", pixels)
    assert done
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data.tobytes())
    fresh.rename(path)


class StubReader:
    """Reads what `draw` wrote."""

    def __init__(self) -> None:
        self.budget = Budget.plan(1000, 0)  # whatever the process of the tests holds
        self.leaked: list[np.ndarray] = []
        self.hoard: list[np.ndarray] = []

    def read(self, frame: Frame) -> PageResult:
        number = int.from_bytes(frame.pixels[0, :8, 0].tobytes(), "big")
        action, hundredths, megabytes = map(int, frame.pixels[0, 8])
        taken = np.ones(megabytes << 20, np.uint8)
        self.leaked += [taken] if action == LEAKS else []
        self.hoard += [taken] if action == HOARDS else []
        time.sleep(hundredths / 100)
        if action == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)  # as native code does
        if action == HANGS:
            time.sleep(3600)
        if action == FAILS:
            raise ValueError("a defect")
        line = TextLine(f"page-{number:08x}", 0.99, ((0, 0), (SIDE, 0), (SIDE, 9), (0, 9)), 0.9)
        return PageResult("", frame.width, frame.height, (line,), bundle="stub")

    beside_bytes = 0

    def rest(self) -> None:
        self.hoard.clear()

    rebuild = close = rest


def main() -> None:
    config = load(Path(sys.argv[sys.argv.index("-c") + 1]), AgentConfig)
    worker.run(config, lambda _: (StubReader(), "stub"))


if __name__ == "__main__":
    main()
