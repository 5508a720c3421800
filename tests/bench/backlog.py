"""An outage's worth of rows, then the link comes back: worker's speed, uplink's memory, drain over TLS, fresh rows.

    python -m tests.bench.backlog --rows 60000

Worker's outbox, uplink, mosquitto and collector are the real ones, in processes of their own; every row gets a receipt.
The last line is the result as JSON; exit status 1 when a row was lost or doubled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent import health
from agent.config import OutboxConfig
from agent.outbox import Outbox
from tests.broker import Authority, Broker
from tests.command import ROOT

AGENT = """\
device = "box-1"
state_dir = "{home}/state"

[mqtt]
host = "localhost"
port = {port}
ca_file = "{ca}"
retry_max_s = 1.0
window = 100
historical_s = {historical_s}
"""

COLLECTOR = """\
name = "centre"
store = "sqlite:{home}/centre.db"

[mqtt]
host = "localhost"
port = {port}
ca_file = "{ca}"
"""

OUTBOX = OutboxConfig(max_mb=1024, min_free_mb=0, ballast_mb=0)
HISTORICAL_S = 5.0  # younger rows are sent in turn, and filling takes less than the default
LINES = 20  # of a page; its JSON has about 3 kB


def page(number: int) -> bytes:
    """Return a result of ordinary size."""
    line = {"text": f"发票号码 {number % 1000}", "score": 0.98, "quad": [[10, 20], [300, 20], [300, 50], [10, 50]]}
    return json.dumps({"schema": 1, "image": f"scan {number}.png", "lines": [line] * LINES, "number": number}).encode()


def fill(outbox: Outbox, rows: int, say: bool) -> dict[str, float]:
    """Accept rows as the worker does; returns milliseconds of the first and the last thousand."""
    times = []
    for number in range(rows):
        key, body = f"key-{number}", page(number)
        began = time.perf_counter()
        outbox.begin(key, "inbox", "scan")
        outbox.accept(key, body)
        times.append(1000 * (time.perf_counter() - began))
        if say and number % 1000 == 0:
            print(f"\r{number} of {rows} rows accepted", end="", file=sys.stderr)
    first, last = sorted(times[:1000]), sorted(times[-1000:])
    at = int(0.99 * (len(first) - 1))
    return {"accept_p99_empty_ms": round(first[at], 2), "accept_p99_full_ms": round(last[at], 2)}


@contextlib.contextmanager
def process(name: str, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run an `edge-ocr` program until the block ends."""
    with open(config.parent / f"{name}.log", "ab") as log:
        child = subprocess.Popen((sys.executable, "-m", "agent", name, "-c", str(config)), cwd=ROOT, stderr=log)
        try:
            yield child
        finally:
            child.terminate()
            child.wait(30)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * 4096 / (1 << 20), 1)


def stored(home: Path) -> tuple[int, int]:
    """Return rows at the centre, and different pages among them."""
    with contextlib.closing(sqlite3.connect(f"file:{home}/centre.db?mode=ro", uri=True, timeout=30)) as database:
        total = database.execute("SELECT count(*), count(DISTINCT sha256) FROM results").fetchone()
    return int(total[0]), int(total[1])


def measure(home: Path, rows: int, say: bool) -> dict[str, Any]:
    """Fill an outbox without a broker, then let it drain; returns what was seen."""
    authority = Authority(home / "pki")
    outbox = Outbox(home / "state", OUTBOX, role="worker")
    with Broker(home / "broker", authority=authority) as broker:
        for name, text in (("agent", AGENT), ("collector", COLLECTOR)):
            (home / f"{name}.toml").write_text(
                text.format(home=home, port=broker.port, ca=authority.file, historical_s=HISTORICAL_S)
            )
        broker.kill()
        with process("uplink", home / "agent.toml") as uplink:
            time.sleep(3)
            before_mb = resident_mb(uplink.pid)
            told = fill(outbox, rows, say)
            time.sleep(HISTORICAL_S)
            waiting_mb = resident_mb(uplink.pid)
            broker.start()
            with process("collect", home / "collector.toml") as collector:
                told |= drain(home, outbox, rows, say, collector)
                time.sleep(1)
            after_mb = resident_mb(uplink.pid)
    total, different = stored(home)
    outbox.close()
    return {
        "rows": rows,
        **told,
        "uplink_mb": {"empty": before_mb, "rows waiting": waiting_mb, "drained": after_mb},
        "submitted": rows + 1,
        "stored": total,
        "lost": rows + 1 - different,
        "duplicated": total - different,
    }


def drain(home: Path, outbox: Outbox, rows: int, say: bool, collector: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait until every row has its receipt; a fresh row comes in when a third is gone."""
    began = first = fresh = 0.0
    overtook = float("inf")
    while (stats := outbox.stats()).pending + stats.brokered:
        if collector.poll() is not None:
            sys.exit(f"the collector has ended: {(home / 'collect.log').read_text()}")
        left = stats.pending + stats.brokered
        now = time.monotonic()
        if not first and left < rows:
            began = first = now
            start = left
        if first and not fresh and left < 2 * rows / 3:
            outbox.begin("fresh", "inbox", "fresh")
            outbox.accept("fresh", page(rows))
            fresh = time.monotonic()
        if fresh and overtook == float("inf") and is_stored(home, rows):
            overtook = time.monotonic() - fresh
        if say:
            print(f"\r{left} rows wait   ", end="", file=sys.stderr)
        time.sleep(0.2)
    seconds = time.monotonic() - began
    return {"drain_rows_per_s": round(start / seconds), "fresh_row_s": round(overtook, 2)}


def is_stored(home: Path, number: int) -> bool:
    """Return whether a page is at the centre."""
    with contextlib.closing(sqlite3.connect(f"file:{home}/centre.db?mode=ro", uri=True, timeout=30)) as database:
        last = database.execute("SELECT result FROM results ORDER BY seq DESC LIMIT 1").fetchone()
    return bool(last) and json.loads(last[0])["number"] == number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    asked = parser.parse_args()
    health.set_up_logging("bench", "warning")
    with tempfile.TemporaryDirectory(prefix="backlog-") as home:
        told = measure(Path(home), asked.rows, sys.stderr.isatty())
    print(json.dumps(told))
    return int(bool(told["lost"] or told["duplicated"]))


if __name__ == "__main__":
    sys.exit(main())
