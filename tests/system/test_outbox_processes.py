"""Worker and uplink on one outbox, killed at random moments: nothing is lost and nothing is stored twice."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.outbox.schema import PAGE_BYTES
from agent.protocol import sha256
from tests.command import ROOT, environment
from tests.outbox_kit import opened, result

KILLS = 40
SEED = 7

WORKER = """
import os, sys
from pathlib import Path
from agent.outbox import Outbox
from tests.outbox_kit import NO_BALLAST, result

box = Outbox(Path(sys.argv[1]), NO_BALLAST, role="worker")
for number in range(int(sys.argv[2]), 1 << 30):
    key = f"page-{number:05}"
    os.write(1, f"submitted {key}\\n".encode())
    box.begin(key, "dock", key)
    box.accept(key, result(key, number % 7 * 900))
    os.write(1, f"accepted {key}\\n".encode())
    if number % 50 == 0:
        box.tidy()
"""

UPLINK = """
import os, sys, time
from pathlib import Path
from agent.outbox import Marks, Outbox
from agent.protocol import ranges
from tests.outbox_kit import NO_BALLAST

box = Outbox(Path(sys.argv[1]), NO_BALLAST, role="uplink")
left = [(epoch, seq) for epoch, runs in box.waiting(1000).items() for run in runs for seq in range(run[0], run[1] + 1)]
box.record(Marks(again=tuple(left)))
while True:
    rows = box.pending(20, fresh_s=1.0)
    if not rows:
        os.write(1, b"idle\\n")
        time.sleep(0.01)
        box.tidy()
        continue
    for row in rows:
        os.write(1, f"stored {row.epoch} {row.seq} {row.key} {row.sha256}\\n".encode())
    box.record(Marks(brokered=tuple((row.epoch, row.seq) for row in rows)))
    seqs = {}
    for row in rows:
        seqs.setdefault(row.epoch, []).append(row.seq)
    box.record(Marks(stored={epoch: ranges(some) for epoch, some in seqs.items()}))
"""


class Program:
    """A program that is started again after each kill, and the lines it says."""

    def __init__(self, code: str, directory: Path) -> None:
        self.code = code
        self.directory = directory
        self.lines: list[str] = []
        self.complaints = b""

    def start(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.code, self.directory / "state", *arguments],
            cwd=ROOT,
            env=environment(self.directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self.reader.start()

    def _read(self, pipe) -> None:
        for line in pipe:
            if line.endswith(b"\n"):
                self.lines.append(line.decode().rstrip("\n"))

    def kill(self) -> None:
        self.process.kill()
        self.complaints += self.process.stderr.read()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def said(self, word: str) -> list[list[str]]:
        return [line.split()[1:] for line in list(self.lines) if line.startswith(f"{word} ")]


def spoil_index(path: Path) -> None:
    """Overwrite the first page of the index that both processes need; no row lies there."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox_state'").fetchone()[0]
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(b"spoiled " * (PAGE_BYTES // 8))


@pytest.mark.parametrize("damage", [False, True])
def test_nothing_is_lost_while_both_processes_are_killed_at_random(tmp_path, damage):
    luck = random.Random(SEED)
    worker, uplink = Program(WORKER, tmp_path), Program(UPLINK, tmp_path)
    worker.start("0")
    uplink.start()
    for _ in range(KILLS):
        time.sleep(luck.uniform(0.1, 0.35))
        if damage and luck.random() < 0.2:
            with contextlib.suppress(sqlite3.Error):  # it is being repaired
                spoil_index(tmp_path / "state" / "outbox.db")
        victim = luck.choice((worker, uplink))
        victim.kill()
        victim.start(*([str(len({key for (key,) in worker.said("submitted")}))] if victim is worker else []))
    worker.kill()
    uplink.kill()
    uplink.start()  # which asks for what it was not told to be stored
    give_up = time.monotonic() + 60
    idle = uplink.lines.count("idle")
    while uplink.lines.count("idle") < idle + 2 and time.monotonic() < give_up:
        time.sleep(0.05)
    uplink.kill()

    submitted = {key for (key,) in worker.said("submitted")}
    accepted = {key for (key,) in worker.said("accepted")}
    received = uplink.said("stored")
    stored = {(epoch, seq): (key, digest) for epoch, seq, key, digest in received}
    keys = [key for key, _ in stored.values()]
    account = {
        "submitted": len(submitted),
        "accepted": len(accepted),
        "stored": len(stored),
        "lost": len(accepted - set(keys)),
        "unexpected": len(set(keys) - submitted) + len({tuple(line) for line in received}) - len(stored),
        "duplicated": len(keys) - len(set(keys)),
        "recovered": len(received) - len(stored),
        "seed": SEED,
    }
    print(json.dumps(account))
    complaints = [line for line in (worker.complaints + uplink.complaints).splitlines() if b"is replaced" not in line]
    assert complaints == []
    assert account["lost"] == account["unexpected"] == account["duplicated"] == 0, account
    assert account["accepted"] > KILLS
    with opened(tmp_path / "state") as box:
        for key, digest in stored.values():
            number = int(key[-5:])
            assert digest == sha256(result(key, number % 7 * 900))
        assert list(box.rows()) == []
        assert damage == bool(list((tmp_path / "state").glob("outbox.corrupt-*")))
        assert damage == any(event.kind == "salvage" for event in box.events(99))
    connection = sqlite3.connect(tmp_path / "state" / "outbox.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
