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
READS, CRASHES, HANGS, FAILS = range(4)


def draw(path: Path, number: int, action: int = READS, seconds: float = 0.0) -> None:
    """Write a page that the stub knows by its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    head = np.frombuffer(number.to_bytes(8, "big"), np.uint8)
    pixels[0, :8, 0] = head
    pixels[0, 8, :2] = action, min(255, round(100 * seconds))
    done, data = cv2.imencode(".png", pixels)
    assert done
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data.tobytes())
    fresh.rename(path)


class StubReader:
    """Reads what `draw` wrote."""

    def __init__(self) -> None:
        self.budget = Budget.plan(1000, 0)  # whatever the process of the tests holds

    def read(self, frame: Frame) -> PageResult:
        number = int.from_bytes(frame.pixels[0, :8, 0].tobytes(), "big")
        action, hundredths = map(int, frame.pixels[0, 8, :2])
        time.sleep(hundredths / 100)
        if action == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)  # as native code does
        if action == HANGS:
            time.sleep(3600)
        if action == FAILS:
            raise ValueError("a defect")
        line = TextLine(f"page-{number:08x}", 0.99, ((0, 0), (SIDE, 0), (SIDE, 9), (0, 9)), 0.9)
        return PageResult("", frame.width, frame.height, (line,), bundle="stub")

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    config = load(Path(sys.argv[sys.argv.index("-c") + 1]), AgentConfig)
    worker.run(config, lambda _: (StubReader(), "stub"))


if __name__ == "__main__":
    main()
