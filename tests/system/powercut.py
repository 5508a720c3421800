"""Cuts the power of an outbox at every kind of moment, in a model of a disk, and looks at what is left.

    python -m tests.system.powercut --images 2000 --seed 1

A workload runs under strace, which notes every call that changes files, and every acknowledgement. From that the disk
is rebuilt as it may look when the power fails after any of the calls: what was synchronised is there; of what was not,
all, nothing, any part, or parts of 512 bytes. Names in the directory follow in order, and are certain only after the
directory was synchronised. Each such image is opened, and what was acknowledged before the cut must be in it.

The last line of the output is the account, as JSON; the exit status is 1 when anything is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.config import OutboxConfig
from agent.outbox import Marks, Outbox, schema
from agent.protocol import ranges
from tests.command import ROOT, environment
from tests.outbox_kit import MEMORY, NO_BALLAST, result

CALLS = "openat,close,write,pwrite64,fsync,fdatasync,ftruncate,fallocate,unlink,unlinkat,rename,link,linkat"
SECTOR = 512
VARIANTS = ("none", "all", "some", "torn")
DOCUMENTS = 48

# ----------------------------------------------------------------------------------------------------------- workload


def work(path: Path, seed: int, synchronous: str, spoil: bool) -> None:
    """Fill and drain an outbox; say on standard output what is tried, and when it has returned."""
    number = {"FULL": 2, "NORMAL": 1, "OFF": 0}[synchronous]
    schema._PRAGMAS = tuple(
        (name, synchronous, number) if name == "synchronous" else (name, setting, value)
        for name, setting, value in schema._PRAGMAS
    )
    config = OutboxConfig(min_free_mb=0, ballast_mb=0)
    luck = random.Random(seed)
    worker, uplink = (Outbox(path, config, role=role) for role in ("worker", "uplink"))
    say(made=True)
    for at in range(DOCUMENTS):
        key, size = f"page-{at:05}", luck.choice((20, 500, 2500, 9000))
        say(begin=key)
        say(begun=key, attempts=worker.begin(key, "dock", key))
        say(accept=key, size=size)
        say(accepted=key, seq=worker.accept(key, result(key, size)))
        if luck.random() < 0.5:
            send(uplink, luck)
        if luck.random() < 0.1:
            say(session=uplink.next_session())
        if luck.random() < 0.1:
            worker.tidy()
        if spoil and at == DOCUMENTS // 2:
            with (path / "outbox.db").open("r+b") as file:
                file.write(b"spoiled, spoiled")
                os.fsync(file.fileno())
            worker.close()  # a running connection would not look at the header again
            uplink.close()
            worker, uplink = (Outbox(path, config, role=role) for role in ("worker", "uplink"))
    for outbox in (worker, uplink):
        outbox.close()


def send(uplink: Outbox, luck: random.Random) -> None:
    """Send some rows, and let the centre store some of them."""
    rows = uplink.pending(luck.randrange(1, 9), fresh_s=60)
    keys = [(row.epoch, row.seq) for row in rows]
    uplink.record(Marks(brokered=tuple(keys)))
    lot = [key for key in keys if luck.random() < 0.7]
    if not lot:
        return
    say(store=[row.key for row in rows if (row.epoch, row.seq) in lot])
    by_epoch: dict[str, list[int]] = {}
    for epoch, seq in lot:
        by_epoch.setdefault(epoch, []).append(seq)
    uplink.record(Marks(stored={epoch: ranges(seqs) for epoch, seqs in by_epoch.items()}))
    say(stored=[row.key for row in rows if (row.epoch, row.seq) in lot])


def say(**what: Any) -> None:
    """Write one line, in one call."""
    os.write(1, json.dumps(what).encode() + b"\n")


# ---------------------------------------------------------------------------------------------------------- operations


@dataclass
class Op:
    """One call: "write", "size" or "sync" of a file; "name", "unname", "rename" or "dirsync"; or a line to "say"."""

    kind: str
    file: int = 0
    at: int = 0
    data: bytes = b""
    name: str = ""
    to: str = ""
    line: int = 0


_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(?:\.\.\.)?')


def operations(log: Path, directory: Path) -> list[Op]:
    """Return what a log of strace says was done to the files of a directory."""
    names: dict[str, int] = {}
    open_files: dict[int, tuple[int, int]] = {}  # by descriptor: file, place
    found: list[Op] = []
    count = count_lines = 0

    def inside(raw: bytes) -> str | None:
        path = Path(os.fsdecode(raw))
        return path.name if path.parent == directory else None

    for number, line in enumerate(log.read_text().splitlines()):
        while count_lines < len(found):
            found[count_lines].line = number - 1
            count_lines += 1
        match = _CALL.search(line)
        if match is None or int(match[3]) < 0:
            continue
        call, rest, returned = match[1], match[2], int(match[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(rest)]
        numbers = [int(part) for part in re.findall(r"(?<![\w\"])-?\d+(?![\w\"])", _TEXT.sub("", rest))]
        if call == "openat":
            name = inside(texts[0])
            if Path(os.fsdecode(texts[0])) == directory:
                open_files[returned] = (0, 0)
            elif name is not None:
                if name not in names:
                    count += 1
                    names[name] = count
                    found.append(Op("name", count, name=name))
                open_files[returned] = (names[name], 0)
                if "O_TRUNC" in rest:
                    found.append(Op("size", names[name]))
        elif call == "close":
            open_files.pop(numbers[0], None)
        elif call == "write" and numbers[0] == 1:
            found.append(Op("say", data=texts[0]))
        elif call in ("write", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync") and numbers[0] in open_files:
            file, place = open_files[numbers[0]]
            if call == "write":
                found.append(Op("write", file, place, texts[0][:returned]))
                open_files[numbers[0]] = (file, place + returned)
            elif call == "pwrite64":
                found.append(Op("write", file, numbers[-1], texts[0][:returned]))
            elif call == "ftruncate":
                found.append(Op("size", file, numbers[-1]))
            elif call == "fallocate":
                raise AssertionError("the workload has no ballast and no trouble")
            else:
                found.append(Op("dirsync" if file == 0 else "sync", file))
        elif call in ("rename", "link", "linkat", "unlink", "unlinkat"):
            changed = [name for text in texts if (name := inside(text)) is not None]
            if call.startswith("unlink") and changed:
                names.pop(changed[0])
                found.append(Op("unname", name=changed[0]))
            elif changed:
                old, new = changed
                names[new] = names.pop(old) if call == "rename" else names[old]
                named = Op("rename", name=old, to=new) if call == "rename" else Op("name", names[new], name=new)
                found.append(named)
    for op in found[count_lines:]:
        op.line = number
    return found


# ---------------------------------------------------------------------------------------------------------------- disk


@dataclass
class Disk:
    """What is on the disk for sure, and what may be."""

    files: dict[int, bytearray] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    waiting: dict[int, list[Op]] = field(default_factory=dict)
    unnamed: list[Op] = field(default_factory=list)

    def do(self, op: Op) -> None:
        """Carry a call out."""
        if op.kind in ("write", "size"):
            self.waiting.setdefault(op.file, []).append(op)
        elif op.kind == "sync":
            content = self.files.setdefault(op.file, bytearray())
            for late in self.waiting.pop(op.file, []):
                put(content, late)
        elif op.kind in ("name", "unname", "rename"):
            self.unnamed.append(op)
        elif op.kind == "dirsync":
            for late in self.unnamed:
                put_name(self.names, late)
            self.unnamed.clear()

    def image(self, variant: str, luck: random.Random) -> dict[str, bytes]:
        """Return the files as they may be after a cut now."""
        names = dict(self.names)
        certain = {"none": 0, "all": len(self.unnamed)}.get(variant, luck.randint(0, len(self.unnamed)))
        for op in self.unnamed[:certain]:
            put_name(names, op)
        found = {}
        for name, file in names.items():
            content = bytearray(self.files.get(file, b""))
            for op in self.waiting.get(file, []):
                if variant == "all" or (variant in ("some", "torn") and luck.random() < 0.5):
                    put(content, op, luck if variant == "torn" else None)
            found[name] = bytes(content)
        return found


def put(content: bytearray, op: Op, luck: random.Random | None = None) -> None:
    """Write into a file: all of it, or any of its sectors."""
    if op.kind == "size":
        if len(content) > op.at:
            del content[op.at :]
        content.extend(bytes(op.at - len(content)))
        return
    for at in range(op.at, op.at + len(op.data), SECTOR):
        if luck is None or luck.random() < 0.5:
            part = op.data[at - op.at : at - op.at + SECTOR]
            content.extend(bytes(max(0, at + len(part) - len(content))))
            content[at : at + len(part)] = part


def put_name(names: dict[str, int], op: Op) -> None:
    """Change the names of a directory."""
    if op.kind == "name":
        names[op.name] = op.file
    elif op.kind == "unname":
        names.pop(op.name)
    else:
        names[op.to] = names.pop(op.name)


# --------------------------------------------------------------------------------------------------------------- checks


@dataclass
class Known:
    """What the workload has said."""

    made: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)
    stored: set[str] = field(default_factory=set)
    storing: set[str] = field(default_factory=set)
    session: int = 0

    def hear(self, line: bytes) -> None:
        """Take one line of it."""
        what = json.loads(line)
        self.made = self.made or "made" in what
        self.session = what.get("session", self.session)
        if "accept" in what:
            self.sizes[what["accept"]] = what["size"]
        if "accepted" in what:
            self.accepted[what["accepted"]] = what["seq"]
        if "begun" in what:
            self.begun.add(what["begun"])
        self.storing = set(what.get("store", ()))
        self.stored |= set(what.get("stored", ()))


@dataclass
class Account:
    """What became of everything."""

    seed: int
    images: int = 0
    submitted: int = 0
    accepted: int = 0
    stored: int = 0
    lost: int = 0
    unexpected: int = 0
    duplicated: int = 0
    recovered: int = 0
    corrupt: int = 0

    def clean(self) -> bool:
        """Tell whether nothing is wrong."""
        return not (self.lost or self.unexpected or self.duplicated or self.corrupt)


def look(path: Path, known: Known, account: Account, damaged: bool) -> None:
    """Open an image, as the agent does after the cut, and compare it with what was said before."""
    account.images += 1
    journal = path / "outbox.db-journal"
    account.recovered += journal.exists() and journal.stat().st_size > 0
    box = Outbox(path, NO_BALLAST, role="worker")
    try:
        account.corrupt += not damaged and any(path.glob("outbox.corrupt-*"))
        rows = {row.key: row for row in box.rows()}
        seqs = {key: row.seq for key, row in rows.items()}
        kept = known.accepted.keys() - known.stored - known.storing
        account.lost += sum(seqs.get(key) != known.accepted[key] for key in kept)
        account.lost += sum(known_as(box, key) == "" for key in known.begun)
        account.lost += sum(known_as(box, key) != "accepted" for key in kept & seqs.keys())
        account.lost += box.next_session() <= known.session
        account.unexpected += sum(
            key not in known.sizes or row.result != result(key, known.sizes[key]) for key, row in rows.items()
        )
        account.duplicated += len(known.stored & rows.keys()) + len(rows) - len(set(seqs.values()))
    finally:
        box.close()
    with contextlib.closing(sqlite3.connect(path / "outbox.db")) as connection:
        try:
            account.corrupt += connection.execute("PRAGMA integrity_check").fetchone() != ("ok",)
        except sqlite3.DatabaseError:
            account.corrupt += 1


def known_as(box: Outbox, key: str) -> str:
    """Return the verdict on a page, or ""."""
    found = box.intake(key)
    return found.status if found else ""


def traced(directory: Path, seed: int, synchronous: str, spoil: bool) -> list[Op]:
    """Run the workload under strace; return what it did."""
    log, state = directory / "strace.log", directory / "state"
    state.mkdir()
    command = ["strace", "-qq", "-xx", "-s", "1000000", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", log]
    command += [sys.executable, "-m", __spec__.name, "--workload", state, "--seed", str(seed)]
    command += ["--synchronous", synchronous, *(["--spoil"] if spoil else [])]
    subprocess.run(command, check=True, cwd=ROOT, env=environment(directory), stdout=subprocess.DEVNULL)
    return operations(log, state)


def cuts(ops: list[Op], images: int, luck: random.Random) -> Iterator[tuple[Disk, Known, bool, str]]:
    """Yield the disk, what was said, whether the file was spoiled on purpose, and a variant, for each image."""
    moments = [at for at, op in enumerate(ops) if op.kind != "say"]
    wanted: dict[int, list[str]] = {}
    for number in range(images):
        wanted.setdefault(luck.choice(moments), []).append(VARIANTS[number % len(VARIANTS)])
    disk, known, damaged = Disk(), Known(), False
    for at, op in enumerate(ops):
        if op.kind == "say":
            known.hear(op.data)
        damaged = damaged or op.data.startswith(b"spoiled")
        disk.do(op)
        for variant in wanted.get(at, ()):
            yield disk, known, damaged, variant


def simulate(images: int, seed: int, synchronous: str = "FULL", spoil: bool = False) -> Account:
    """Run the workload and cut the power many times; return the account."""
    account, luck = Account(seed), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        ops = traced(Path(name), seed, synchronous, spoil)
        last = Known()
        for op in ops:
            if op.kind == "say":
                last.hear(op.data)
        account.submitted, account.accepted, account.stored = len(last.sizes), len(last.accepted), len(last.stored)
        path = Path(name, "image")
        for disk, known, damaged, variant in cuts(ops, images, luck):
            path.mkdir(mode=0o700)
            for file, content in disk.image(variant, luck).items():
                (path / file).write_bytes(content)
            before = account.lost
            look(path, known, account, damaged)
            if account.lost > before and synchronous == "FULL":
                print(f"lost rows: seed {seed}, image {account.images}, variant {variant}", file=sys.stderr)
            shutil.rmtree(path)
    return account


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--synchronous", choices=("FULL", "NORMAL", "OFF"), default="FULL")
    parser.add_argument("--spoil", action="store_true", help="damage the file in the middle of the workload")
    parser.add_argument("--workload", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if chosen.workload:
        return work(chosen.workload, chosen.seed, chosen.synchronous, chosen.spoil)
    account = simulate(chosen.images, chosen.seed, chosen.synchronous, chosen.spoil)
    print(json.dumps(vars(account)))
    sys.exit(0 if account.clean() else 1)


if __name__ == "__main__":
    main()
