"""Programs that are hard on a folder source: writers of every manner, and a taker that is killed at any instant.

    python -m tests.folder_programs kills SEED KILLS FILES AGAIN WHEN_DONE FOLDER
    python -m tests.folder_programs writers SEED FILES FOLDER
    python -m tests.folder_programs careless SEED FILES FOLDER

Each prints its accounting as one line of JSON; the exit status is 1 when anything was lost, doubled or read in part.
`careless` are the writers against a source that asks for no end: it shows that they are hard enough.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import random
import signal
import sqlite3
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent import image
from agent.errors import FrameError, InputError
from agent.memory import Budget
from agent.source_config import FolderConfig
from agent.sources.folder import source as taker
from agent.sources.folder.source import FolderSource
from tests.bad_inputs import png_chunk

AMPLE = Budget.plan(1000, 0)
PNG_END = png_chunk(b"IEND", b"")


def numbered_png(number: int, padding: int = 0) -> bytes:
    """Return a small valid PNG that no other number has, a little larger where asked for."""
    rows = b"".join(b"\0" + struct.pack(">QQ", number, row) for row in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows, 1))
    filler = png_chunk(b"teXt", bytes(padding)) if padding else b""
    return b"\x89PNG\r\n\x1a\n" + body + filler + PNG_END


# ------------------------------------------------------------------------------------------------ kills


def kills(seed: int, count: int, files: int, again: str, when_done: str, folder: Path) -> dict[str, int]:
    """Kill a taker again and again; then let it finish, and count verdicts.

    One file in five has no end; where the same content is read again, every second one is a copy of another.
    """
    rng = random.Random(seed)
    folder.mkdir()
    numbers = [number // 2 if again == "read" else number for number in range(files)]
    good = [number for number in range(files) if number % 5]
    for number in range(files):
        data = numbered_png(numbers[number])
        (folder / f"{number}.png").write_bytes(data if number % 5 else data[:-7] + bytes([number % 256]))
    config = FolderConfig(name="a", path=str(folder), stable_s=0.05, give_up_s=0.15, again=again, when_done=when_done)
    ledger = folder.with_name("ledger.db")
    with sqlite3.connect(ledger) as database:
        database.execute("CREATE TABLE verdict (key TEXT PRIMARY KEY, name TEXT, reason TEXT)")
    killed = 0
    for _ in range(count):
        child = start(config, ledger)
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert os.waitpid(start(config, ledger), 0)[1] == 0
    rows = sqlite3.connect(ledger).execute("SELECT key, name, reason FROM verdict").fetchall()
    failed, done = (sorted(os.listdir(folder / room)) for room in ("failed", "done"))
    names = Counter(name for _, name, _ in rows)
    notes = [name for name in failed if name.endswith(".reason.txt")]
    kept = len(good) if when_done == "keep" else 0
    wrong = [name for _, name, reason in rows if bool(reason) != (int(name.removesuffix(".png")) % 5 == 0)]
    return {
        "submitted": files,
        "accepted": sum(not reason for _, _, reason in rows),
        "refused": sum(bool(reason) for _, _, reason in rows),
        "kills": killed,
        "lost": files - len(names) + abs(kept - len(done)) + abs(files - len(good) - len(notes)),
        "doubled": len(rows) - len(names),
        "unexpected": len(wrong) + len(failed) - 2 * len(notes),
        "left": len(os.listdir(folder)) - 3 + len(os.listdir(folder / ".edge-ocr/work")),
        "seed": seed,
    }


def start(config: FolderConfig, ledger: Path) -> int:
    """Return the process of a taker."""
    if child := os.fork():
        return child
    status = 1
    try:
        take(config, ledger)
        status = 0
    finally:
        os._exit(status)


def take(config: FolderConfig, ledger: Path) -> None:
    """Give every file its verdict, as the worker does, until there is none for a while."""
    source, database = FolderSource(config), sqlite3.connect(ledger)
    quiet_at = time.monotonic() + 0.4
    while time.monotonic() < quiet_at:
        capture = source.poll()
        if capture is None:
            time.sleep(min(0.01, source.next_s()))
            continue
        quiet_at = time.monotonic() + 0.4
        error: FrameError | InputError | None = None
        try:
            capture.load(AMPLE)
        except (FrameError, InputError) as problem:
            error = problem
        with database:
            row = (capture.key, capture.name, error.reason if isinstance(error, FrameError) else error and "input")
            database.execute("INSERT INTO verdict VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)
        source.done(capture, error)
    source.close()


# ------------------------------------------------------------------------------------------------ writers

Pauses = Iterator[float]
STABLE_S, GIVE_UP_S = 0.2, 2.5
LONGEST_S = 0.6  # a writer's longest pause: longer than a file must be stable, shorter than it may lack its end


class Writers:
    """Hundreds of writers at the same time, in one thread: each is a generator of its pauses."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.folder = folder
        self.number = self.names = 0
        self.lag_s = 0.0  # more than GIVE_UP_S means that the machine was too busy for this
        self.must: set[str] = set()  # contents that have to be read
        self.may: set[str] = set()  # that were replaced or deleted while they could have been read
        self.refused: set[str] = set()  # that have to be refused
        self.manners = Counter[str]()

    def new(self, *, must: bool = True) -> bytes:
        """Return a content of its own."""
        self.number += 1
        data = numbered_png(self.number, padding=self.rng.choice((0, 0, 300, 9000)))
        (self.must if must else self.may).add(hashlib.sha256(data).hexdigest())
        return data

    def name(self) -> Path:
        """Return a name of its own."""
        self.names += 1
        return self.folder / f"{self.rng.choice(('scan', '页', 'IMG_'))}{self.names}.{self.rng.choice(('png', 'PNG'))}"

    def pause(self) -> float:
        return self.rng.choice((0.01, 0.1, LONGEST_S)) * self.rng.random()

    def pieces(self, data: bytes) -> list[bytes]:
        cuts = sorted(self.rng.sample(range(1, len(data)), 3))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    def at_once(self) -> Pauses:
        self.name().write_bytes(self.new())
        yield 0

    def append(self) -> Pauses:
        """Write piece by piece, the file open all the time or opened for each."""
        data, path = self.new(), self.name()
        reopen = self.rng.random() < 0.5
        file = path.open("wb")
        for piece in self.pieces(data):
            if reopen:
                file.close()
                file = path.open("ab")
            file.write(piece)
            file.flush()
            yield self.pause()
        file.close()

    def rename(self) -> Pauses:
        path = self.name()
        before, after = self.rng.choice(
            (("", ".tmp"), ("", ".part"), (".", ""), ("~$", ""), ("", "~"), (".", ".Xa81Gb"))
        )
        hidden = path.with_name(f"{before}{path.name}{after}")
        data = self.new()
        hidden.write_bytes(data[:50])
        yield self.pause()
        hidden.write_bytes(data)
        yield self.pause()
        hidden.rename(path)

    def rename_over(self) -> Pauses:
        path = self.name()
        path.write_bytes(self.new(must=False))
        yield self.pause()
        hidden = path.with_name(f".{path.name}")
        hidden.write_bytes(self.new())
        hidden.rename(path)

    def write_over(self) -> Pauses:
        """Empty a whole file and write another into it."""
        path = self.name()
        path.write_bytes(self.new(must=False))
        yield self.pause()
        with path.open("wb") as file:
            for piece in self.pieces(self.new()):
                file.write(piece)
                file.flush()
                yield self.pause()

    def delete(self) -> Pauses:
        """Delete a file, whole or before it is."""
        path, data = self.name(), self.new(must=False)
        path.write_bytes(data[: self.rng.choice((0, 20, len(data)))])
        yield self.pause()
        path.unlink(missing_ok=True)

    def use_again(self) -> Pauses:
        """Give one name to file after file, each when the one before is gone."""
        path = self.folder / f"same-{self.rng.randrange(30)}.png"
        for _ in range(4):
            while path.exists():
                yield 0.02
            with path.open("xb") as file:
                file.write(self.new())
            yield 0.05

    def skew(self) -> Pauses:
        """Set times of writing from anywhere, as copying programs do."""
        path, data = self.name(), self.new()
        for cut in (len(data) // 2, len(data)):
            path.write_bytes(data[:cut])
            when = self.rng.choice((0, 1, 300_000_000, time.time() + 1e8, 4_000_000_000))
            os.utime(path, (when, when))
            yield self.pause()

    def fill(self) -> Pauses:
        """Take the space first and fill it then, as a copy over SMB does."""
        path, data = self.name(), self.new()
        with path.open("wb") as file:
            file.truncate(len(data))
            for piece in self.pieces(data):
                file.write(piece)
                file.flush()
                os.utime(path, (7, 7))
                yield self.pause()

    def break_off(self) -> Pauses:
        """Begin and never end."""
        data = self.new(must=False)[:-6]
        self.refused.add(hashlib.sha256(data).hexdigest())
        self.name().write_bytes(data)
        yield 0

    def link(self) -> Pauses:
        hidden = self.name().with_suffix(".tmp")
        hidden.write_bytes(self.new())
        os.link(hidden, hidden.with_suffix(".png"))
        yield self.pause()
        hidden.unlink()

    def run(self, files: int, over_s: float) -> None:
        """Let writers of every manner begin over a time, and wait for the last to end."""
        manners = [self.at_once, self.append, self.append, self.append, self.rename, self.rename_over, self.write_over]
        manners += [self.delete, self.use_again, self.skew, self.fill, self.break_off, self.link]
        begun = time.monotonic()
        queue = []
        for at in range(files):
            manner = self.rng.choice(manners)
            self.manners[manner.__name__] += 1
            queue.append((begun + self.rng.uniform(0, over_s), at, manner()))
        heapq.heapify(queue)
        while queue:
            due, at, writer = heapq.heappop(queue)
            time.sleep(max(0.0, due - time.monotonic()))
            self.lag_s = max(self.lag_s, time.monotonic() - due)
            pause = None
            with suppress(FileNotFoundError):  # taken too early; what it had to write is missed, and counted
                pause = next(writer, None)
            if pause is not None:
                heapq.heappush(queue, (time.monotonic() + pause, at, writer))


def writers(seed: int, files: int, folder: Path) -> dict[str, object]:
    """Take files while another process writes them in every manner; return what became of them."""
    config = FolderConfig(
        name="a", path=str(folder), stable_s=STABLE_S, give_up_s=GIVE_UP_S, poll_s=0.5, when_done="delete"
    )
    source, note = FolderSource(config), folder.with_name(folder.name + ".json")
    child = os.fork()
    if not child:
        status = 1
        try:
            made = Writers(seed, folder)
            made.run(files, over_s=2.0)
            kept = (made.number, made.manners, made.lag_s, sorted(made.must), sorted(made.may), sorted(made.refused))
            note.write_text(json.dumps(kept))
            status = 0
        finally:
            os._exit(status)
    accepted, refused, changed = Counter[str](), Counter[str](), 0
    quiet_at = float("inf")
    while time.monotonic() < quiet_at:
        if quiet_at == float("inf") and os.waitpid(child, os.WNOHANG)[0]:
            quiet_at = time.monotonic() + GIVE_UP_S + 0.7
        capture = source.poll()
        if capture is None:
            time.sleep(min(0.005, source.next_s()))
            continue
        try:
            capture.load(AMPLE)
        except FrameError as error:
            refused[capture.key] += error.reason != "changed"
            changed += error.reason == "changed"
            source.done(capture, error)
        else:
            accepted[capture.key] += 1
            source.done(capture)
    source.close()
    written, manners, lag_s, *kept = json.loads(note.read_text())
    must, may, broken = map(set, kept)
    left = [name for name in os.listdir(folder) if name not in (".edge-ocr", "done", "failed")]
    return {
        "written": written,
        "accepted": sum(accepted.values()),
        "refused": sum(refused.values()),
        "changed": changed,
        "partial": len(set(accepted) - must - may),
        "missed": len(must - set(accepted)) + len(broken - set(refused)),
        "unexpected": len(set(+refused) - broken),
        "doubled": sum(times > 1 for times in (*accepted.values(), *refused.values())),
        "left": len(left) + len(os.listdir(folder / ".edge-ocr/work")),
        "manners": manners,
        "lag_s": round(lag_s, 3),
        "seed": seed,
    }


def main(program: str, *arguments: str) -> int:
    folder = Path(arguments[-1])
    if program == "kills":
        seed, count, files, again, when_done = arguments[:-1]
        told: dict[str, object] = {**kills(int(seed), int(count), int(files), again, when_done, folder)}
    else:
        if program == "careless":
            taker.is_complete = lambda handle, header: True
            image.is_complete = taker.is_complete
        told = writers(*map(int, arguments[:-1]), folder)
    print(json.dumps(told))
    return any(told.get(word) for word in ("lost", "doubled", "unexpected", "partial", "missed", "left"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
