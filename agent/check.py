"""`edge-ocr check`: whether the agent can work here, before its first page.

One small function for each thing that is looked at; each gives findings and raises nothing. What a later part of the
agent needs is one more function in `CHECKS`.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec

from agent import cgroup, health, memory
from agent.config import AgentConfig, load, secret
from agent.errors import AgentError, ConfigError, ExitCode
from agent.source_config import CameraConfig, FolderConfig, ScannerConfig, SourceConfig, UploadConfig
from agent.sources.camera import device as camera_device
from agent.sources.scanner import options as scan_options
from agent.sources.scanner import scanimage
from agent.sources.scanner.scanimage import Device, Fault

LIST_S = 6.0
"""Looking for scanners takes seconds where the network is asked; all checks together stay below ten."""
ASK_S = 2.5
OPEN_S = 4.0

Level = Literal["ok", "warn", "fail"]


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


class Scanners(msgspec.Struct, frozen=True):
    """What SANE shows.

    Attributes:
        seen: scanners that this user sees, or why none can be listed.
        user: whom the agent's state belongs to, when this is root and that is somebody else; else "".
        his: scanners that he sees.
    """

    seen: tuple[Device, ...] | Fault
    user: str = ""
    his: tuple[Device, ...] | Fault = ()


class Subject(msgspec.Struct, frozen=True):
    """What is looked at: the settings, and what takes time to find out."""

    config: AgentConfig
    scanners: Scanners


def make(path: Path) -> tuple[Finding, ...]:
    """Look at everything; with settings that cannot be read, at what does not need them."""
    try:
        config = load(path, AgentConfig, check_files=False)
    except ConfigError as error:
        wrong = Finding("fail", "settings", str(error), "correct them; systemd/agent.toml shows all of them")
        return (wrong, *_scanners(Subject(AgentConfig(device="none"), _look_for_scanners(""))))
    subject = Subject(config, _look_for_scanners(_owner(Path(config.state_dir))))
    return tuple(finding for check in CHECKS for finding in check(subject))


def status(findings: tuple[Finding, ...]) -> ExitCode:
    """Return the exit status for findings."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if any(finding.about == "settings" for finding in failed):
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
    return msgspec.json.encode({"ok": status(findings) == ExitCode.OK, "findings": findings}).decode()


# ------------------------------------------------------------------------------------------------ the agent


def _settings(subject: Subject) -> Iterator[Finding]:
    config = subject.config
    to = f"to {config.mqtt.host}" if config.mqtt is not None else "no [mqtt]: results stay here"
    names = ", ".join(source.name for source in config.source)
    yield Finding("ok", "settings", f"{config.device}: sources: {names or 'none'}; {to}")
    if not config.source:
        yield Finding("fail", "settings", "no [[source]]: there is nothing to read", "add one; see systemd/agent.toml")


def _state(subject: Subject) -> Iterator[Finding]:
    place = Path(subject.config.state_dir)
    if health.running(place, "worker"):
        yield Finding("ok", "state", f"{place}: a worker runs on it")
    else:
        yield _folder_finding("state", place, "state_dir must be a directory that this user may write")


def _reading(subject: Subject) -> Iterator[Finding]:
    """Load the models as the worker does, and tell what is left of the limit."""
    from agent.openers import open_reader

    config = subject.config
    group = cgroup.look().limit_bytes // memory.MB
    limit = min(config.memory.limit_mb, group or config.memory.limit_mb)
    needs = sum(_need_mb(source) for source in config.source)
    within = msgspec.structs.replace(config.memory, limit_mb=limit - needs)
    if limit < config.memory.limit_mb:
        said = f"the system allows {limit} MB here, and memory.limit_mb is {config.memory.limit_mb}"
        yield Finding("warn", "memory", said, "the lower counts: lower the one, or raise the other")
    try:
        reader, label = open_reader(msgspec.structs.replace(config, memory=within))
    except AgentError as error:
        about = "memory" if error.code is ExitCode.TEMPORARY else "models"
        yield Finding(
            "fail", about, str(error), f"beside {needs} MB for sources" if needs and about == "memory" else ""
        )
        return
    resident = memory.resident_bytes() + reader.beside_bytes
    budget = reader.budget
    reader.close()
    least = memory.Budget.least_mb(resident, budget.processes) + needs
    yield Finding("ok", "models", f"{label}, threads {config.reader.threads}")
    said = (
        f"limit {limit} MB, {least} are needed at least: {needs} for sources, {resident // memory.MB} with the models"
        f" loaded; pictures are read at up to {budget.frame_bytes / 3e6:.0f} Mpx in colour, larger ones reduced"
    )
    yield Finding("ok", "memory", said)


def _need_mb(source: SourceConfig) -> int:
    """Return what the programs of a source take."""
    if isinstance(source, CameraConfig):
        return camera_device.needs_mb(source)
    return scan_options.needs_mb(source) if isinstance(source, ScannerConfig) else 0


# ------------------------------------------------------------------------------------------------ sources


def _sources(subject: Subject) -> Iterator[Finding]:
    for source in subject.config.source:
        yield from _SOURCES[type(source)](subject, source)


def _folder(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    assert isinstance(source, FolderConfig)
    advice = "this user must be able to write into it, because files are claimed by renaming them"
    yield _folder_finding(source.name, Path(source.path), advice)


def _folder_finding(about: str, path: Path, advice: str) -> Finding:
    if path.is_dir():
        good = os.access(path, os.R_OK | os.W_OK | os.X_OK)
        return (
            Finding("ok", about, str(path)) if good else Finding("fail", about, f"{path}: may not be written", advice)
        )
    if path.exists():
        return Finding("fail", about, f"{path}: no folder", advice)
    if os.access(path.parent, os.W_OK | os.X_OK):
        return Finding("ok", about, f"{path}: is made at the first start")
    return Finding(
        "fail", about, f"{path}: is missing", f"make it, and let the agent's user write into it: mkdir {path}"
    )


def _scanner(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    assert isinstance(source, ScannerConfig)
    found = subject.scanners.his if subject.scanners.user else subject.scanners.seen
    if isinstance(found, Fault):
        yield Finding("fail", source.name, f"scanners cannot be listed: {found.advice}")
        return
    names = [device.name for device in found]
    device = source.device or (names[0] if len(names) == 1 else "")
    if not device:
        said = f"{len(names)} scanners, and no device in the settings" if names else "no scanner is found"
        yield Finding(
            "fail", source.name, said, "set device to one of them" if names else "switch it on and connect it"
        )
    elif device not in names:
        # SANE opens some that it does not list, those of the network among them.
        yield Finding(
            "warn", source.name, f"{device} is not among the scanners found", "switch it on, or correct device"
        )
    elif health.running(Path(subject.config.state_dir), "worker"):
        yield Finding("ok", source.name, f"{device}; the worker has it")
    else:
        yield _can(source, device)


def _can(source: ScannerConfig, device: str) -> Finding:
    """Ask a scanner for what it can, and compare it with the settings."""
    options = scan_options.ask_options(device, source.options, ASK_S)
    arguments = options if isinstance(options, Fault) else scan_options.settings(source, options)
    if isinstance(arguments, Fault):
        return Finding("fail", source.name, f"{device}: {arguments.advice}")
    return Finding("ok", source.name, f"{device}: {' '.join(arguments)}")


def _camera(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    """Open a camera and look at one picture."""
    assert isinstance(source, CameraConfig)
    if said := camera_device.unstable(source.device):
        yield Finding("warn", source.name, said)
    if health.running(Path(subject.config.state_dir), "worker"):
        yield Finding("ok", source.name, f"{source.device}; the worker has it")
        return
    try:
        glance = camera_device.first_glance(source, OPEN_S)
    except (AgentError, OSError) as error:
        yield Finding("fail", source.name, str(error))
        return
    if not glance.frames:
        said = glance.said or f"{source.device}: no picture within {OPEN_S:g} s; is it on?"
        yield Finding("fail", source.name, said)
    else:
        said = f"{source.device}: {glance.width}x{glance.height}"
        yield Finding("ok", source.name, said, f"`edge-ocr camera {source.name}` shows what is measured")


def _upload(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    """Listen for a moment where nobody does."""
    assert isinstance(source, UploadConfig)
    try:
        token = secret(source.token)
        if health.running(Path(subject.config.state_dir), "worker"):
            yield Finding("ok", source.name, f"{source.listen}; the worker listens there")
            return
        if source.listen == "systemd":
            yield Finding("ok", source.name, "listens on the socket that systemd passes")
            return
        if source.listen.startswith("unix:"):  # one that is made here would be this user's
            folder = Path(source.listen.removeprefix("unix:")).parent
            yield _folder_finding(source.name, folder, "the agent's user must be able to write into it")
            return
        from agent.sources.upload.listener import open_socket

        open_socket(source, has_token=token is not None).close()
    except ConfigError as error:
        yield Finding("fail", source.name, str(error))
        return
    yield Finding("ok", source.name, f"{source.listen}: free, {'with a token' if token else 'open to anyone here'}")


_SOURCES: dict[type, Callable[[Subject, SourceConfig], Iterator[Finding]]] = {
    FolderConfig: _folder,
    ScannerConfig: _scanner,
    CameraConfig: _camera,
    UploadConfig: _upload,
}


# ------------------------------------------------------------------------------------------------ scanners


def _owner(state_dir: Path) -> str:
    """Return the name of whom the state belongs to, when this is root and that is somebody else; else ""."""
    try:
        uid = state_dir.stat().st_uid
        return pwd.getpwuid(uid).pw_name if uid and os.geteuid() == 0 else ""
    except (OSError, KeyError):
        return ""


def _look_for_scanners(user: str) -> Scanners:
    """List the scanners that this user sees, and at the same time those that another one does."""
    with ThreadPoolExecutor(2) as pool:
        own = pool.submit(scanimage.list_devices, LIST_S)
        his = pool.submit(scanimage.list_devices, LIST_S, user=user) if user else None
        return Scanners(own.result(), user, his.result() if his is not None else ())


def _scanners(subject: Subject) -> Iterator[Finding]:
    """Name the scanners there are, and say when only root sees them."""
    scanners = subject.scanners
    wanted = {source.device for source in subject.config.source if isinstance(source, ScannerConfig)}
    if isinstance(scanners.seen, Fault):
        if wanted or scanners.seen != scanimage.NO_PROGRAM:
            yield Finding("fail" if wanted else "warn", "scanners", scanners.seen.advice)
        return
    his = {device.name for device in scanners.his} if not isinstance(scanners.his, Fault) else set()
    for device in scanners.seen:
        if not scanners.user or device.name in his:
            yield Finding("ok", "scanners", f'device = "{device.name}"  ({device.label})')
        else:
            said = f'device = "{device.name}"  ({device.label}): root sees it, {scanners.user} does not'
            level: Level = "fail" if wanted & {device.name, ""} else "warn"
            yield Finding(level, "scanners", said, _way_in(device, scanners.user))
    if not scanners.seen and wanted:
        other = "" if os.geteuid() == 0 else "; `sudo edge-ocr check` tells whether only root sees it"
        yield Finding("warn", "scanners", "none is found", f"switch it on and connect it{other}")


def _way_in(device: Device, user: str) -> str:
    """Return how a user gets the right to a scanner."""
    group = scanimage.group_of(device.name)
    if group in ("", "root"):
        return (
            f'add to /etc/udev/rules.d/60-scanner.rules: ATTRS{{idVendor}}=="XXXX", MODE="0660", GROUP="scanner" (the '
            f"number is in `lsusb`), plug it in anew, then: usermod -aG scanner {user}"
        )
    return f"usermod -aG {group} {user}, then start the agent anew"


CHECKS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (_settings, _state, _sources, _reading, _scanners)
