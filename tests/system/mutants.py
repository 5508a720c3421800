"""Gives the agent thousands of damaged files; each must get one verdict, and the service must live."""

from __future__ import annotations

import io
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from tests import bad_inputs
from tests.system.soak import Watch, results, service, waiting
from tests.system.soak_pages import Item, put

WAITING = 400
LIMIT_MB = 256
STUCK_S = 180.0
DEATHS = 10  # of the worker, for 10,000 files

_FORMS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", ".jpg", {"quality": 80}),
    ("JPEG", ".jpg", {"quality": 60, "progressive": True}),
    ("PNG", ".png", {}),
    ("TIFF", ".tif", {"compression": "tiff_lzw"}),
    ("TIFF", ".tif", {"compression": "tiff_deflate"}),
    ("BMP", ".bmp", {}),
    ("WEBP", ".webp", {"quality": 80}),
    ("PDF", ".pdf", {"resolution": 150.0}),
)


def seeds() -> list[tuple[str, bytes]]:
    """Return small good files of every kind that is read: (suffix, content)."""
    page = bad_inputs.page().resize((190, 150))
    found = []
    for form, suffix, options in _FORMS:
        for mode in ("L", "RGB"):
            out = io.BytesIO()
            page.convert(mode).save(out, form, **options)
            found.append((suffix, out.getvalue()))
    pages, out = [page, page.rotate(90, expand=True)], io.BytesIO()
    pages[0].save(out, "TIFF", save_all=True, append_images=pages[1:])
    found.append((".tif", out.getvalue()))
    bilevel, out = page.convert("1"), io.BytesIO()
    bilevel.save(out, "TIFF", compression="group4")
    found.append((".tif", out.getvalue()))
    out = io.BytesIO()
    Image.merge("RGBA", (page, page, page, page)).save(out, "PNG")
    found.append((".png", out.getvalue()))
    return found


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Return a file with some damage, most of it near the front, where headers are."""
    data = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 8))):
        length = max(1, len(data))
        at = min(length - 1, int(length * dice.random() ** dice.choice((1, 2, 3))))
        how = dice.choice((0, 0, 1, 1, 2, 2, 3, 4, 5, 6))
        if how == 0:
            data[at : at + 1] = bytes([dice.randrange(256)])
        elif how == 1:
            data[at : at + 1] = bytes([(data[at] if data else 0) ^ 1 << dice.randrange(8)])
        elif how == 2:
            data[at : at + 4] = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
        elif how == 3:
            del data[at : at + dice.randint(1, 64)]
        elif how == 4:
            data[at:at] = dice.randbytes(dice.randint(1, 64))
        elif how == 5:
            start = dice.randrange(length)
            data[at:at] = data[start : start + dice.randint(1, 256)]
        else:
            del data[max(1, dice.randrange(length)) :]
    return bytes(data)


def run(home: Path, files: int, seed: int) -> dict[str, Any]:
    """Run so many damaged files through a service; returns the account."""
    dice, good, began = random.Random(seed), seeds(), time.monotonic()
    names = []
    with service(home, LIMIT_MB) as process:
        watch = Watch(home)
        for number in range(files):
            while waiting(home) >= WAITING:
                assert process.poll() is None, f"the service ended: {home / 'agent.log'}"
                time.sleep(0.02)
            suffix, content = dice.choice(good)
            item = Item(f"{number:06d}{suffix}", mutated(content, dice))
            put(home / "inbox", item)
            names.append(item.name)
            if sys.stderr.isatty() and number % 100 == 0:
                print(f"\r{number}/{files} files", end="", file=sys.stderr)
        left, since = waiting(home), time.monotonic()
        while left:
            assert process.poll() is None, f"the service ended: {home / 'agent.log'}"
            time.sleep(0.2)
            if waiting(home) != left:
                left, since = waiting(home), time.monotonic()
            assert time.monotonic() - since < STUCK_S, f"{left} files have no verdict: {home}"
        watch.stop()
    return {**_account(home, names), "peak_mb": round(watch.peak_mb, 1), "seconds": round(time.monotonic() - began, 1)}


def _account(home: Path, names: list[str]) -> dict[str, Any]:
    accepted = Counter(page.image for page in results(home))
    failed = {path.name for path in (home / "inbox" / "failed").glob("*") if not path.name.endswith(".reason.txt")}
    done = {path.name for path in (home / "inbox" / "done").glob("*")}
    notes = [(home / "inbox" / "failed" / f"{name}.reason.txt").read_text() for name in sorted(failed)]
    log = (home / "agent.log").read_text(errors="replace")
    return {
        "files": len(names),
        "read": len(done),
        "refused": len(failed),
        "without_verdict": sorted(set(names) - done - failed),
        "two_verdicts": sorted(done & failed),
        "read_without_row": sorted(name for name in done if not accepted[name]),
        "reasons": dict(sorted(Counter(note.partition(":")[0] for note in notes).items())),
        "worker_deaths": log.count(" ended with "),
        "defects": log.count("a defect of this program"),
    }


def missed(account: dict[str, Any]) -> list[str]:
    """Return the bars that an account misses."""
    bars = {
        "verdicts": not account["without_verdict"] and not account["two_verdicts"] and not account["read_without_row"],
        "worker_deaths": account["worker_deaths"] <= max(1, DEATHS * account["files"] // 10_000),
        "defects": account["defects"] == 0,
        "peak": account["peak_mb"] <= LIMIT_MB,
    }
    return [name for name, held in bars.items() if not held]
