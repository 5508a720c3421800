"""Stands in for the agent in a release: takes settings, reads a page that is text, and is a service."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from agent import __version__

HOME = Path(sys.prefix).parent
NAME = "10-settings.conf"


def main() -> None:
    """Do what the first argument says."""
    command, *rest = sys.argv[1:]
    {"--version": _version, "read": _read, "units": _units}.get(command, _serve)(rest)


def _version(rest: list[str]) -> None:
    print(f"edge-ocr, version {__version__}")


def _read(rest: list[str]) -> None:
    if os.geteuid() == 0 and "--bundle" in rest:
        sys.exit("edge-ocr: the trial belongs to another user than root")
    print(Path(rest[0]).read_text())


def _units(rest: list[str]) -> None:
    if "unknown" in Path(rest[1]).read_text():
        print("edge-ocr: agent.toml: unknown key", file=sys.stderr)
        sys.exit(78)
    if "--output" in rest:
        for unit in ("worker", "uplink"):
            folder = Path(rest[3]) / f"edge-ocr-{unit}.service.d"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / NAME).write_text(f"# {__version__}\n")


def _serve(rest: list[str]) -> None:
    """Be a service, until it is stopped: one that gets ready, unless its release has a file that says otherwise."""
    print(f"edge-ocr: {__version__} serves", file=sys.stderr, flush=True)
    if sys.argv[1] == "worker" and (HOME / "ends").exists():
        sys.exit("edge-ocr: the worker ends")
    if sys.argv[1] != "worker" or not (HOME / "mute").exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0"))
    if sys.argv[1] == "worker" and (HOME / "brief").exists():
        time.sleep(1)
        sys.exit("edge-ocr: the worker ends soon")
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
