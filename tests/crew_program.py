"""Runs models in one process and in three, and kills the helpers in between. Prints JSON.

    python -m tests.crew_program BUNDLE

A process of its own, because Paddle Lite runs in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from agent.bundle import ModelBundle
from agent.engines import EngineSettings
from agent.image import crop, pad, scaled
from agent.mate import Crew
from agent.recognize import Reading
from tests import bad_inputs as bad


def pictures() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return tiles for the detector and strips for the recogniser, of several shapes."""
    page = np.asarray(bad.page())
    page = np.ascontiguousarray(np.stack([page] * 3, axis=2))
    tiles = [scaled(page, 320, 160), scaled(page, 288, 160)[:, ::-1], scaled(page, 320, 160)[::-1], page[:160, :320]]
    strips = []
    for top in (20, 85, 130, 160):
        quad = ((50.0, top), (330.0, top), (330.0, top + 40), (50.0, top + 40))
        strips.append(pad(crop(page, quad, 48, 480), 352 + 32 * (top % 3)))
    return tiles, strips


def plain(result: Any) -> Any:
    if isinstance(result, Reading):
        return [result.text, [round(score, 4) for score in result.character_scores]]
    return result.astype(int).tolist() if isinstance(result, np.ndarray) else round(result, 4)


def results(crew: Crew) -> list[Any]:
    tiles, strips = pictures()
    small = [pad(strip[:, :192], 192) for strip in strips]
    found = crew.run("det", tiles, costs=[1] * len(tiles))
    found += crew.run("rec", strips, costs=[strip.shape[1] for strip in strips])
    found += crew.run("cls", small, costs=[1] * len(small))
    assert crew.run("rec", [], costs=[]) == []
    return [plain(one) for one in found]


def helpers() -> list[psutil.Process]:
    return psutil.Process().children()


def main() -> None:
    bundle = ModelBundle.load(Path(sys.argv[1]))
    told: dict[str, Any] = {}
    crew = Crew(bundle, EngineSettings(threads=1))
    told["alone"] = {"size": crew.size, "helpers": len(helpers()), "results": results(crew)}
    crew.close()
    crew = Crew(bundle, EngineSettings(threads=3))
    told["three"] = {"size": crew.size, "helpers": len(helpers()), "results": results(crew)}
    told["three"] |= {"resident_mb": crew.resident_bytes >> 20, "own_mb": psutil.Process().memory_info().rss >> 20}
    crew.release()
    crew.release()
    told["again"] = {"results": results(crew)}
    kill(helpers()[0])
    told["one killed"] = {"size": crew.size, "results": results(crew), "left": crew.size}
    kill(helpers()[0])
    crew.release()
    told["both killed"] = {"results": results(crew), "left": crew.size}
    crew.close()
    crew.close()
    told["closed"] = {"helpers": len(helpers())}
    print(json.dumps(told))


def kill(helper: psutil.Process) -> None:
    """Kill a helper and wait until its pipes are shut too."""
    os.kill(helper.pid, signal.SIGKILL)
    while helper.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)


if __name__ == "__main__":
    main()
