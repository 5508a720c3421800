"""Thousands of mixed pages at each memory limit, and thousands of damaged files, through a real service.

    python -m tests.system.endurance --pages 2000 --limits 256,180 --damaged 10000 --data DIR

`make soak PAGES=n` runs it. The last line is the account as JSON, and exit status 1 says that a bar was missed.
Account, logs and the curves of memory (PNG) stay in the folder of `--out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.command import ROOT
from tests.system import mutants, soak
from tests.system.soak_pages import Mix, drawn, sets_of

WORSE = 0.002
"""By so much char_f1 may be lower with the smallest limit than with the largest."""


def endure(
    out: Path, pages: int, limits: tuple[int, ...], *, damaged: int, data: Path | None, seed: int
) -> dict[str, Any]:
    """Run everything; returns the account.

    Args:
        out: an empty folder.
        pages: mixed pages, at each limit.
        limits: `memory.limit_mb`.
        damaged: files.
        data: folder of labelled sets; None draws pages.
        seed: of the order and of the damage.
    """
    account: dict[str, Any] = {"pages": pages, "damaged": damaged, "seed": seed, "missed": []}
    if damaged:
        told = mutants.run(out / "damaged", damaged, seed)
        account["files"] = told
        account["missed"] += [f"damaged: {bar}" for bar in mutants.missed(told)]
    labelled = sets_of(data) if data else drawn(seed)
    for limit in limits:
        told = soak.soak(out / str(limit), Mix(labelled, seed), pages, limit)
        account[f"{limit} MB"] = told
        account["missed"] += [f"{limit} MB: {bar}" for bar in soak.missed(told)]
    if len(limits) > 1:
        least, most = (account[f"{limit} MB"]["mean_char_f1"] for limit in (min(limits), max(limits)))
        account["char_f1_lost"] = round(most - least, 4)
    return account


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=2000, help="mixed pages, at each limit")
    parser.add_argument("--limits", default="256,180", help="memory limits in MB")
    parser.add_argument("--damaged", type=int, help="damaged files; default: five for each page")
    parser.add_argument("--data", type=Path, help="folder of labelled sets; without it pages are drawn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "soak", help="folder, emptied at the start")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    limits = tuple(int(limit) for limit in options.limits.split(",") if limit)
    damaged = 5 * options.pages if options.damaged is None else options.damaged
    account = endure(options.out, options.pages, limits, damaged=damaged, data=options.data, seed=options.seed)
    (options.out / "account.json").write_text(json.dumps(account, indent=1), encoding="utf-8")
    print(json.dumps(account))
    sys.exit(1 if account["missed"] else 0)


if __name__ == "__main__":
    main()
