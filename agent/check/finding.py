"""What a check says, and what it is given to look at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from agent import __version__, health
from agent.config import AgentConfig
from agent.errors import ExitCode

Level = Literal["ok", "warn", "fail"]

SETTINGS = "settings"
"""What is wrong about them ends the command with the status of wrong settings."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        level: "ok", "warn" (it works, but look at it) or "fail" (it does not).
        about: what was looked at, one or two words.
        said: how it is, one line.
        advice: what to do, "" when there is nothing.
    """

    level: Level
    about: str
    said: str
    advice: str = ""


class Subject(msgspec.Struct, frozen=True):
    """What is looked at.

    Attributes:
        config: the settings.
        path: their file.
        now_s: Unix time by this machine's clock.
        root: where /etc, /proc and /sys are; another place in tests.
    """

    config: AgentConfig
    path: Path
    now_s: float
    root: Path = Path("/")

    @property
    def state_dir(self) -> Path:
        """Return where the outbox and the state are."""
        return Path(self.config.state_dir)

    def runs(self, role: health.Role) -> bool:
        """Return whether a program of the agent runs; it is not disturbed then."""
        return health.running(self.state_dir, role)


def status(findings: tuple[Finding, ...]) -> ExitCode:
    """Return the exit status for findings."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if any(finding.about == SETTINGS for finding in failed):
        return ExitCode.CONFIG
    return ExitCode.SOME_FAILED if failed else ExitCode.OK


def lines(findings: tuple[Finding, ...]) -> list[str]:
    """Return findings for people; what is to be done stands below."""
    shown = []
    for finding in findings:
        shown.append(f"{finding.level:<5} {finding.about:<14} {finding.said}")
        if finding.advice:
            shown.append(f"{'':<20} -> {finding.advice}")
    return shown


def to_json(findings: tuple[Finding, ...]) -> str:
    """Return findings as one JSON object."""
    told = {"ok": status(findings) == ExitCode.OK, "version": __version__, "findings": findings}
    return msgspec.json.encode(told).decode(errors="replace")


def first_line(path: Path) -> str:
    """Return the first line of a small file of the system, "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """Return the number in a small file of the system, also "0x5"; None where there is none."""
    try:
        return int(first_line(path), 0)
    except ValueError:
        return None


def is_root() -> bool:
    """Return whether this user may look with others' eyes."""
    return os.geteuid() == 0
