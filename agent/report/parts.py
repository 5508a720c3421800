"""The parts of a report: each is a file in it, made by one function. One that cannot be made says why in its place."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__, cgroup, health, status
from agent.bundle import MANIFEST
from agent.check import finding, services
from agent.config import AgentConfig
from agent.errors import AgentError, ConfigError
from agent.outbox import Outbox
from agent.report import masked
from agent.report.scrub import Scrub, log_lines

LINES = 3000
MAX_BYTES = 1 << 20
"""Of each part."""
ASK_S = 5.0
UNITS = ("edge-ocr-worker.service", "edge-ocr-uplink.service")
_PACKAGES = (
    *("paddlelite", "onnxruntime", "paddlepaddle", "numpy", "opencv-python-headless", "paho-mqtt", "msgspec", "click"),
    *("pypdfium2", "h11", "multipart", "prometheus-client", "inotify-simple", "sqlite-utils"),
)
_KERNEL = re.compile(
    r"out of memory|oom|killed process|thermal|throttl|under-?voltage|overcurrent|mmc\d|\busb \d|i/o error|ext4-fs"
    r"|read-only|nvme|segfault|blocked for more|watchdog|uvcvideo",
    re.IGNORECASE,
)
# What a device says of itself is free text: its maker may have put a serial number or an owner there.
_OWN_WORDS = re.compile(
    r"(serial ?number\W+|serial\W+|\bproduct:\s*|\bmanufacturer:\s*|found uvc \S+ device )\S.*", re.IGNORECASE
)


class Given(msgspec.Struct, frozen=True):
    """What the parts are made of.

    Attributes:
        path: the settings' file.
        config: the settings, None when they cannot be read.
        findings: of `edge-ocr check`.
        logs: files of logs besides the journal.
        clean: takes private things out of lines.
    """

    path: Path
    config: AgentConfig | None
    findings: tuple[finding.Finding, ...]
    logs: tuple[Path, ...]
    clean: Scrub


class Part(msgspec.Struct, frozen=True):
    """A file of the report: its name, what it is in one line, and what makes it."""

    name: str
    about: str
    make: Callable[[Given], bytes]


def content(part: Part, given: Given) -> tuple[bytes, str]:
    """Return a part's content, and why it could not be made, or ""."""
    try:
        return _cut(part.make(given)), ""
    except (AgentError, OSError, subprocess.SubprocessError, sqlite3.Error) as error:
        said = given.clean.line(str(error)) or type(error).__name__
    except Exception as error:  # half a report is worth more than none; what a defect says may hold anything
        said = f"a defect of this program: {type(error).__name__}"
    return f"cannot be told: {said}\n".encode(), said


def _cut(raw: bytes) -> bytes:
    """Return the end of something long, from the begin of a line on."""
    if len(raw) <= MAX_BYTES:
        return raw
    return b"(cut)\n" + raw[-MAX_BYTES:].partition(b"\n")[2]


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str)) + b"\n"


def _settings_of(given: Given) -> AgentConfig:
    if given.config is None:
        raise ConfigError("the settings cannot be read: see check.json")
    return given.config


# ------------------------------------------------------------------------------------------------ the agent


def _check(given: Given) -> bytes:
    told = {"version": __version__, "ok": finding.status(given.findings) == 0, "findings": given.findings}
    return _json(given.clean.everything(msgspec.to_builtins(told)))


def _status(given: Given) -> bytes:
    return _json(given.clean.everything(msgspec.to_builtins(status.make(_settings_of(given)))))


def _outbox(given: Given) -> bytes:
    config = _settings_of(given)
    if not (Path(config.state_dir) / "outbox.db").exists():
        return b"no outbox yet\n"
    outbox = Outbox(Path(config.state_dir), config.outbox, role="tool")
    try:
        return _json(given.clean.everything(msgspec.to_builtins(outbox.stats())))
    finally:
        outbox.close()


def _settings(given: Given) -> bytes:
    if given.config is None:
        return masked.outline(given.path).encode()
    return _json(masked.settings(given.config))


def _bundle(given: Given) -> bytes:
    return (Path(_settings_of(given).reader.bundle) / MANIFEST).read_bytes()


def _package(given: Given) -> bytes:
    """Return the manifest of the release, which lies beside the environment that this program runs from."""
    place = Path(sys.prefix).parent / "package.json"
    return place.read_bytes() if place.is_file() else b"not installed from a package\n"


def _memory(given: Given) -> bytes:
    """Return what worker and uplink have resident now, by the kernel's own words, and what their group allows."""
    state_dir, told = Path(_settings_of(given).state_dir), {"group": msgspec.to_builtins(cgroup.look())}
    kinds: tuple[tuple[health.Role, Any], ...] = (("worker", health.WorkerState), ("uplink", health.UplinkState))
    for role, kind in kinds:
        state = health.read_state(state_dir, role, kind)
        if state is not None and health.running(state_dir, role):
            rows = _text(Path(f"/proc/{state.pid}/status")).splitlines()
            told[role] = [row for row in rows if row.startswith(("Vm", "Rss", "Threads"))]
    return _json(told)


# ------------------------------------------------------------------------------------------------ the machine


def _versions(given: Given) -> bytes:
    release = dict(row.split("=", 1) for row in _text(Path("/etc/os-release")).splitlines() if "=" in row)
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return _json(
        {
            "edge-ocr": __version__,
            "python": sys.version.split()[0],
            "machine": platform.machine(),
            "kernel": platform.release(),
            "system": release.get("PRETTY_NAME", "").strip('"'),
            "model": _text(Path("/proc/device-tree/model")).rstrip("\0\n"),
            "processors": os.cpu_count(),
            "sqlite": sqlite3.sqlite_version,
            "openssl": ssl.OPENSSL_VERSION,
            "systemd": _said(("systemctl", "--version")).partition("\n")[0],
            "packages": packages,
        }
    )


def _units(given: Given) -> bytes:
    shown = services.show()
    return _json(shown) if shown is not None else b"no systemd here\n"


def _kernel(given: Given) -> bytes:
    """Return what the kernel said of memory, heat, power, USB and disks, without what devices say of themselves."""
    said = _said(("journalctl", "-k", "-b", "--no-pager", "-o", "short-iso", "-n", "20000")) or _said(("dmesg",))
    rows = [_OWN_WORDS.sub(r"\1(hidden)", row) for row in said.splitlines() if _KERNEL.search(row)]
    return ("\n".join(rows[-LINES:] or ["nothing, or it may only be read as root"]) + "\n").encode()


# ------------------------------------------------------------------------------------------------ logs


class _Entry(msgspec.Struct, frozen=True):
    """What is used of a journal's entry. A message that is no text comes as numbers."""

    MESSAGE: str | list[int] | None = None
    PRIORITY: str = "7"
    SYSLOG_IDENTIFIER: str = ""
    at_us: str = msgspec.field(name="__REALTIME_TIMESTAMP", default="0")


def _journal(given: Given) -> bytes:
    units = [word for unit in UNITS for word in ("-u", unit)]
    said = _said(("journalctl", *units, "--no-pager", "-o", "json", "-p", "info", "-n", str(LINES)))
    rows: list[str] = []
    for line in said.splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            rows += _entry(msgspec.json.decode(line, type=_Entry), given.clean)
    return ("\n".join(rows) + "\n").encode() if rows else b"the journal has nothing of the units\n"


def _entry(entry: _Entry, clean: Scrub) -> Iterable[str]:
    """Yield an entry's line. What is below INFO may hold text, and is left out: `agent.health` gives the priorities."""
    if not isinstance(entry.MESSAGE, str) or int(entry.PRIORITY) > 6:
        return
    at = datetime.datetime.fromtimestamp(int(entry.at_us) / 1e6, datetime.timezone.utc)
    who, said = clean.line(entry.SYSLOG_IDENTIFIER), clean.line(entry.MESSAGE)
    yield f"{at:%Y-%m-%dT%H:%M:%SZ} <{entry.PRIORITY}> {who}: {said}"


def _logs(given: Given) -> bytes:
    """Return the ends of the log files that were named."""
    if not given.logs:
        return b"none was named with --log\n"
    return b"".join(_log(path, given.clean) for path in given.logs)


def _log(path: Path, clean: Scrub) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_BYTES))
        rows = file.read(MAX_BYTES).decode(errors="replace").splitlines()
    return ("\n".join([*log_lines(rows, clean.line)][-LINES:]) + "\n").encode()


def _said(command: Sequence[str]) -> str:
    """Return what a program of the system prints, "" where there is none or it does not answer."""
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout.decode(errors="replace")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


PARTS: tuple[Part, ...] = (
    Part("check.json", "what `edge-ocr check` finds", _check),
    Part("status.json", "what `edge-ocr status` tells", _status),
    Part("outbox.json", "rows by state and the space they take, without rows", _outbox),
    Part("settings.json", "the settings, without user names, arguments of hooks and patterns", _settings),
    Part("versions.json", "program, packages, system, board", _versions),
    Part("package.json", "the release that is installed", _package),
    Part("bundle.toml", "the models' manifest", _bundle),
    Part("memory.json", "memory of the programs that run", _memory),
    Part("units.json", "the systemd units as they stand", _units),
    Part("journal.txt", "the units' last lines in the journal, filtered", _journal),
    Part("logs.txt", "the last lines of log files named with --log, filtered", _logs),
    Part("kernel.txt", "the kernel on memory, heat, power, USB and disks", _kernel),
)
"""What is in a report."""
