"""Kills worker, uplink, collector and broker at random instants while pages come in, then counts.

    python -m tests.system.torture --kills 1000 --seed 7

The last line is the account as JSON; exit status 1 when a page was lost, doubled or made up.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.system.branch import Branch, running, until

NAMES = ("worker", "uplink", "collector", "broker")
READY_S = 30.0


def torture(home: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill processes so many times; returns the account."""
    dice = random.Random(seed)
    with running(home) as branch:
        assert until(lambda: all(map(branch.is_ready, NAMES)), READY_S) < READY_S, "the branch did not start"
        watch = _Watch(branch)
        for count in range(kills):
            branch.submit(dice.randint(0, 3), seconds=dice.choice((0.0, 0.0, 0.05)))
            watch.sleep(dice.uniform(0.005, 0.5))
            name, early = dice.choice(NAMES), dice.random() < 0.2
            while not watch.kill(name, early=early):
                watch.sleep(0.02)
            if sys.stderr.isatty():
                print(f"\r{count + 1}/{kills} kills, {len(branch.numbers)} pages", end="", file=sys.stderr)
        watch.settle()
        branch.submit(3)
        branch.drain(120)
        recovered = branch.log("worker").count("read again")
        account = branch.account(recovered=recovered, kills=kills, seed=seed)
    return {**account, **watch.percentiles()}


class _Watch:
    """Kills and starts processes, and notes how long each takes until it works again."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._killed: dict[str, float] = {}
        self._ready: dict[str, list[float]] = {name: [] for name in NAMES}

    def sleep(self, seconds: float) -> None:
        """Sleep, and note meanwhile who works again."""
        end = time.monotonic() + seconds
        while True:
            for name, began in tuple(self._killed.items()):
                if self._branch.is_ready(name):
                    self._ready[name].append(time.monotonic() - began)
                    del self._killed[name]
            if time.monotonic() >= end:
                return
            time.sleep(min(0.03, max(0.0, end - time.monotonic())))

    def kill(self, name: str, *, early: bool) -> bool:
        """Kill a process and start it again; only `early` while it is still starting. Returns whether it was done."""
        if name in self._killed and not early and time.monotonic() - self._killed[name] < READY_S:
            return False
        self._branch.kill(name)
        self._killed[name] = time.monotonic()
        self._branch.start(name)
        return True

    def settle(self) -> None:
        """Wait until all work again, or the time for it is over."""
        end = time.monotonic() + READY_S
        while self._killed and time.monotonic() < end:
            self.sleep(0.02)

    def percentiles(self) -> dict[str, Any]:
        """Return how long it took until a process worked again: of all, and the longest of each."""
        for name in self._killed:
            self._ready[name].append(READY_S)
        every = sorted(seconds for some in self._ready.values() for seconds in some)
        told: dict[str, Any] = {f"ready_p{p}_s": round(every[len(every) * p // 100], 2) for p in (50, 90, 99)}
        return {**told, "ready_max_s": {name: round(max(some, default=0.0), 2) for name, some in self._ready.items()}}


def failed(account: dict[str, Any]) -> bool:
    """Return whether an account shows a fault."""
    return any(account[name] for name in ("lost", "unexpected", "duplicated"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill everything at random instants; nothing may be lost.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as home:
        account = torture(Path(home), asked.kills, asked.seed)
    print(json.dumps(account))
    return int(failed(account))


if __name__ == "__main__":
    sys.exit(main())
