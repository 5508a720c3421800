"""Installs this release, goes back to the one before, or removes all: `python3 install.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path


def _main() -> int:
    sys.dont_write_bytecode = True
    home = Path(__file__).resolve().parent
    sys.path[:0] = [str(path) for path in home.glob("venv/lib/python3*/site-packages")]
    from agent.install.command import main

    return main(home, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_main())
