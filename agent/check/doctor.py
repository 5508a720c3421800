"""`edge-ocr check`: whether the agent can work here, before its first page, and what is wrong when it does not.

Each subject has a file of its own that gives findings. All are looked at at the same time, and none for longer than
`LIMIT_S`, whatever hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent.check import (
    broker,
    certificates,
    database,
    disk,
    heat,
    machine,
    models,
    rights,
    services,
    sources,
    times,
    together,
)
from agent.check.finding import SETTINGS, Finding, Subject
from agent.config import AgentConfig, load
from agent.errors import ConfigError

LIMIT_S = 8.5
"""With the start of the program less than ten seconds."""


class Check(NamedTuple):
    """One subject: its name when nothing comes of it, what looks at it, and whether that needs no settings."""

    about: str
    look: Callable[[Subject], Iterable[Finding]]
    always: bool = False


def _settings(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    to = f"to {config.mqtt.host}" if config.mqtt is not None else "no [mqtt]: results stay here"
    names = ", ".join(source.name for source in config.source)
    yield Finding("ok", SETTINGS, f"{config.device}: sources: {names or 'none'}; {to}")
    if not config.source:
        yield Finding("fail", SETTINGS, "no [[source]]: there is nothing to read", "add one; see systemd/agent.toml")


CHECKS: tuple[Check, ...] = (
    Check(SETTINGS, _settings),
    Check("state", rights.look),
    Check("disk", disk.look),
    Check("outbox", database.look),
    Check("models", models.look),
    Check("sources", sources.look, always=True),
    Check("certificates", certificates.look),
    Check("broker", broker.look),
    Check("units", services.look),
    Check("machine", machine.look),
    Check("clock", times.look, always=True),
    Check("temperature", heat.look, always=True),
)
"""What is looked at, in the order in which it is told."""


def make(path: Path, tell: together.Tell | None = None, root: Path = Path("/")) -> tuple[Finding, ...]:
    """Look at everything; with settings that cannot be read, at what does not need them.

    Args:
        path: the settings.
        tell: told now and then of what is not known yet.
        root: where /etc, /proc and /sys are.
    """
    wrong: tuple[Finding, ...] = ()
    try:
        config = load(path, AgentConfig, check_files=False)
    except ConfigError as error:
        config = AgentConfig(device="none")
        wrong = (Finding("fail", SETTINGS, str(error), "correct them; systemd/agent.toml shows all of them"),)
    subject = Subject(config, path, time.time(), root)
    chosen = [check for check in CHECKS if check.always or not wrong]
    tasks = [together.Task(check.about, partial(check.look, subject)) for check in chosen]
    return (*wrong, *together.look(tasks, LIMIT_S, tell))
