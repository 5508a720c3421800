"""Cuts the power while pages go from a folder into the outbox, in a model of a disk, and looks at both.

    python -m tests.system.intake_powercut --images 2000 --seed 1

The worker takes pages under strace, which notes every change of names below the folder beside those of the outbox's
files. After a cut the names stand as after any of the calls since the last synchronisation of a directory, in order, as
on a file system with a journal; the outbox is cut as in `tests.system.powercut`, on its own. In every image each page
is still there, one that lies with the handled ones was accepted, and from some images the worker goes on to the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.outbox import Outbox
from tests.command import ROOT, environment
from tests.outbox_kit import MEMORY, NO_BALLAST
from tests.stub_worker import draw
from tests.system import one_cycle, powercut
from tests.system.powercut import Account, Disk, Op

PAGES = 16
RESUMED = 40  # the worker goes on from one image in so many
CALLS = "mkdir,mkdirat,rename,renameat,renameat2,rmdir,unlink,unlinkat,fsync"
_CALL = re.compile(r"^(\w+)\((.*)\)\s+= 0")
_PART = re.compile(r'<((?:\\x[0-9a-f]{2})*)>|"((?:\\x[0-9a-f]{2})*)"')


@dataclass
class Change:
    """One call: "mkdir", "rename" or "remove" of names below the folder; a "barrier" makes those before it sure."""

    kind: str
    line: int
    name: str = ""
    to: str = ""


def changes(log: Path, inbox: Path) -> list[Change]:
    """Return what a log of strace, with the paths of descriptors, says was done to names below a folder."""
    found = []
    for number, line in enumerate(log.read_text().splitlines()):
        match = _CALL.match(line)
        if match is None or match[1] not in CALLS.split(","):
            continue
        call, paths = match[1], _paths(match[2])
        if call == "fsync":
            inside = [name for path in paths if (name := _below(path, inbox)) is not None]
            if inside and (inbox / inside[0]).suffix != ".png":
                found.append(Change("barrier", number))
        elif names := [name for path in paths if (name := _below(path, inbox)) is not None]:
            kind = "mkdir" if "mkdir" in call else "rename" if "rename" in call else "remove"
            found.append(Change(kind, number, names[0], names[1] if len(names) > 1 else ""))
    return found


def _paths(arguments: str) -> list[Path]:
    """Return the paths of a call's arguments: a name in quotes is below the descriptor before it."""
    found: list[Path] = []
    base: Path | None = None
    for match in _PART.finditer(arguments):
        text = Path(os.fsdecode(bytes.fromhex((match[1] or match[2]).replace("\\x", ""))))
        if match[1] is not None:
            base = text
        else:
            found.append(text if base is None else base / text)
            base = None
    return [*found, base] if base is not None else found


def _below(path: Path, inbox: Path) -> str | None:
    return str(path.relative_to(inbox)) if path == inbox or inbox in path.parents else None


def names_after(made: list[Change], start: dict[str, str], luck: random.Random, variant: str) -> dict[str, str]:
    """Return what lies below the folder after a cut: name to page, "" for a directory."""
    sure = max((at + 1 for at, change in enumerate(made) if change.kind == "barrier"), default=0)
    until = {"none": sure, "all": len(made)}.get(variant, luck.randint(sure, len(made)))
    names = dict(start)
    for change in made[:until]:
        if change.kind == "mkdir":
            names[change.name] = ""
        elif change.kind == "remove":
            names.pop(change.name, None)
        elif change.kind == "rename" and change.name in names:  # and no lock or trial of the folder's own
            names[change.to] = names.pop(change.name)
    return names


def simulate(images: int, seed: int) -> Account:
    """Let the worker take pages, and cut the power many times; return the account."""
    account, luck = Account(seed), random.Random(seed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        home = Path(name)
        pages, log = _traced(home)
        account.submitted = len(pages)
        ops: list[Op | Change] = [*powercut.operations(log, home / "state"), *changes(log, home / "inbox")]
        ops.sort(key=lambda op: op.line)
        wanted = [luck.randrange(len(ops)) for _ in range(images)]
        disk, made = Disk(), list[Change]()
        for at, op in enumerate(ops):
            if isinstance(op, Change):
                made.append(op)
            else:
                disk.do(op)
            for number in range(wanted.count(at)):
                variant = powercut.VARIANTS[(account.images + number) % len(powercut.VARIANTS)]
                names = names_after(made, {page: page for page in pages}, luck, variant)
                _look(home / "image", disk.image(variant, luck), names, pages, account)
    return account


def _traced(home: Path) -> tuple[dict[str, bytes], Path]:
    """Let the worker take pages under strace; return them, and the log."""
    (home / "inbox").mkdir()
    (home / "state").mkdir(mode=0o700)
    for number in range(PAGES):
        draw(home / "inbox" / f"{number + 1:02}.png", number + 1)
    pages = {path.name: path.read_bytes() for path in (home / "inbox").iterdir()}
    log = home / "strace.log"
    calls = ",".join(dict.fromkeys(f"{powercut.CALLS},{CALLS}".split(",")))
    command = [
        "strace",
        "-qq",
        "-xx",
        "-y",
        "-s",
        "1000000",
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
        "-o",
        str(log),
    ]
    worker = [sys.executable, "-m", "tests.system.one_cycle", str(home)]
    subprocess.run([*command, *worker], check=True, cwd=ROOT, env=environment(home), capture_output=True)
    return pages, log


def _look(
    image: Path, state: dict[str, bytes], names: dict[str, str], pages: dict[str, bytes], account: Account
) -> None:
    """Make an image real and look at it; now and then let the worker go on from it."""
    account.images += 1
    (image / "state").mkdir(parents=True, mode=0o700)
    (image / "inbox").mkdir()
    for name, content in state.items():
        (image / "state" / name).write_bytes(content)
    for name, page in sorted(names.items()):
        path = image / "inbox" / name
        if page:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pages[page])
        else:
            path.mkdir(parents=True, exist_ok=True)
    account.lost += len(pages.keys() - set(names.values()))
    accepted = _accepted(image)
    handled = {page for name, page in names.items() if page and name.startswith("done/")}
    account.lost += len({int(page[:2]) for page in handled} - set(accepted))
    if account.images % RESUMED == 0:
        one_cycle.main(image, patience_s=20.0)
        accepted = _accepted(image)
        account.recovered += 1
        account.lost += len({int(page[:2]) for page in pages} - set(accepted))
        account.lost += len(pages) - len(list((image / "inbox" / "done").glob("*.png")))
    account.duplicated += len(accepted) - len(set(accepted))
    account.unexpected += len(set(accepted) - {int(page[:2]) for page in pages})
    account.accepted = max(account.accepted, len(accepted))
    shutil.rmtree(image)


def _accepted(image: Path) -> list[int]:
    """Return the numbers of the pages in an image's outbox."""
    outbox = Outbox(image / "state", NO_BALLAST, role="worker")
    try:
        return [int(json.loads(row.result)["lines"][0]["text"].removeprefix("page-"), 16) for row in outbox.rows()]
    finally:
        outbox.close()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    account = simulate(chosen.images, chosen.seed)
    logging.disable(logging.NOTSET)
    print(json.dumps(vars(account)))
    return int(not account.clean())


if __name__ == "__main__":
    sys.exit(main())
