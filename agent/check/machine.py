"""The machine's memory: whether what the settings promise the worker is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.check.finding import Finding, Subject, first_line

SYSTEM_MB = 128
"""What is left to everything else."""


def look(subject: Subject) -> Iterator[Finding]:
    """Compare the machine's memory with the worker's limit."""
    had = _meminfo(subject.root)
    if "MemTotal" not in had:
        yield Finding("ok", "machine", "says nothing of its memory")
        return
    free, swap = had.get("MemAvailable", had.get("MemFree", 0)), had.get("SwapTotal", 0)
    load = " ".join(first_line(subject.root / "proc/loadavg").split()[:3])
    limit = subject.config.memory.limit_mb
    said = f"{free} of {had['MemTotal']} MB memory free, {swap} MB swap, load {load}"
    if had["MemTotal"] < limit + SYSTEM_MB:
        advice = f"memory.limit_mb = {limit} leaves too little for the system: lower it"
        yield Finding("warn", "machine", said, advice)
    elif not subject.runs("worker") and free < limit:
        yield Finding("warn", "machine", said, f"less than memory.limit_mb = {limit} is free: end what else runs here")
    else:
        yield Finding("ok", "machine", said)


def _meminfo(root: Path) -> dict[str, int]:
    """Return what /proc/meminfo says, in MB."""
    with suppress(OSError, ValueError, IndexError):
        rows = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        return {row.partition(":")[0]: int(row.split()[1]) >> 10 for row in rows}
    return {}
