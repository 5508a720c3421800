"""The systemd units, where there is systemd: as they stand, and whether they were told of the settings."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from agent import units
from agent.check.finding import Finding, Subject
from agent.errors import ConfigError
from agent.source_config import UploadConfig

NAMES = ("edge-ocr-worker.service", "edge-ocr-uplink.service", "edge-ocr.target", "edge-ocr.socket")
ASK_S = 4.0
MANY = 3
"""Restarts by systemd since the unit was started; one after a fault is what they are for."""
FOLDER = "etc/systemd/system"
_SHOWN = "Id,LoadState,UnitFileState,ActiveState,SubState,Result,NRestarts,ExecMainStatus,NeedDaemonReload"

_RESULTS = {
    "watchdog": "it made no progress and was ended by the watchdog",
    "oom-kill": "the system ended it for want of memory: lower memory.limit_mb, or see what else runs",
    "signal": "it was ended by a signal",
    "core-dump": "it crashed",
    "timeout": "it was not ready, or did not end, in time",
    "start-limit-hit": "it was started too often",
    "resources": "the system had no process or memory for it",
    "exit-code": "it ended with a fault",
}


def look(subject: Subject) -> Iterator[Finding]:
    """Look at each unit, and at its drop-in."""
    if not (subject.root / "run/systemd/system").is_dir():
        yield Finding("ok", "units", "no systemd here")
        return
    shown = show()
    if shown is None:
        yield Finding("warn", "units", f"systemctl gives no answer within {ASK_S:g} s", "try `systemctl status`")
        return
    there = {name: unit for name, unit in shown.items() if unit.get("LoadState") == "loaded"}
    if not any(name.endswith(".service") for name in there):
        yield Finding("ok", "units", "not installed: the agent is started by something else")
        return
    for name, unit in there.items():
        yield from _unit(subject, name, unit)
    yield from _drop_ins(subject, there)


def show() -> dict[str, dict[str, str]] | None:
    """Return properties of the units by name; None where systemd does not answer."""
    try:
        ran = subprocess.run(
            ("systemctl", "show", "--no-pager", f"--property={_SHOWN}", *NAMES),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if ran.returncode:
        return None
    blocks = ran.stdout.decode(errors="replace").strip().split("\n\n")
    parsed = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
    return {unit["Id"]: unit for unit in parsed if "Id" in unit}


def _unit(subject: Subject, name: str, unit: dict[str, str]) -> Iterator[Finding]:
    active, result = unit.get("ActiveState", ""), unit.get("Result", "")
    said = f"{name}: {active} ({unit.get('SubState', '')}), {unit.get('UnitFileState', '') or 'not enabled'}"
    restarts = int(unit.get("NRestarts") or 0)
    wanted = _is_wanted(subject, name)
    log = f"`journalctl -u {name} -n 50`"
    if active == "failed" or (active == "activating" and restarts):
        why = _RESULTS.get(result, result)
        yield Finding("fail", "units", f"{said}: {why}, status {unit.get('ExecMainStatus', '?')}", f"{log} says why")
    elif restarts > MANY:
        yield Finding("warn", "units", f"{said}; started again {restarts} times", f"{log} says why")
    elif wanted and active != "active":
        yield Finding("warn", "units", said, f"systemctl enable {name}, then systemctl restart edge-ocr.target")
    elif wanted and name.endswith(".service") and unit.get("UnitFileState") == "disabled":
        yield Finding("warn", "units", f"{said}: it does not start with the machine", f"systemctl enable {name}")
    elif wanted:
        yield Finding("ok", "units", said + (f"; started again {restarts} times" if restarts else ""))
    if unit.get("NeedDaemonReload") == "yes":
        yield Finding(
            "warn", "units", f"{name}: changed on disk", "systemctl daemon-reload, then restart edge-ocr.target"
        )


def _is_wanted(subject: Subject, name: str) -> bool:
    """Return whether the settings need a unit."""
    if name == "edge-ocr.socket":
        return any(isinstance(one, UploadConfig) and one.listen == "systemd" for one in subject.config.source)
    return name != "edge-ocr-uplink.service" or subject.config.mqtt is not None


def _drop_ins(subject: Subject, there: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Compare what `edge-ocr units` would write with what is there."""
    try:
        wanted = units.drop_ins(subject.config)
    except ConfigError as error:
        yield Finding("fail", "units", str(error), "correct the settings; the units cannot follow them")
        return
    old = []
    for name, text in wanted.items():
        path = subject.root / FOLDER / f"{name}.d" / units.NAME
        try:
            same = path.read_text(encoding="utf-8") == text
        except (OSError, UnicodeDecodeError):
            same = False
        if name in there and not same:
            old.append(name)
    if old:
        advice = "edge-ocr units --output /etc/systemd/system && systemctl daemon-reload, then restart edge-ocr.target"
        yield Finding("warn", "units", f"{', '.join(old)}: not told of the settings as they are now", advice)
    else:
        yield Finding("ok", "units", "they were told of the settings as they are")
