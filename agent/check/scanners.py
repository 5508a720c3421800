"""Scanners: those there are, whether the agent's user sees them, and whether they can what the settings want."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, TimeoutError

import msgspec

from agent.check.finding import Finding, Level, Subject, is_root
from agent.source_config import ScannerConfig, SourceConfig
from agent.sources.scanner import options as scan_options
from agent.sources.scanner import scanimage
from agent.sources.scanner.scanimage import Device, Fault

LIST_S = 5.0
"""Looking for scanners takes seconds where the network is asked; with `ASK_S` it stays below the sources' limit."""
ASK_S = 2.5
UNWANTED_S = 1.5
"""Where no source is a scanner they are named for whoever wants one; nobody is kept waiting for that."""


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


class Asked:
    """The lists of scanners, asked for once and waited for by whoever needs them."""

    def __init__(self, user: str) -> None:
        self._user = user
        self._own = _ask("")
        self._his = _ask(user) if user else None

    def scanners(self, timeout_s: float | None = None) -> Scanners:
        """Return them, when SANE has answered.

        Raises:
            TimeoutError: it has not within `timeout_s`.
        """
        own = self._own.result(timeout_s)
        return Scanners(own, self._user, self._his.result(timeout_s) if self._his is not None else ())


def _ask(user: str) -> Future[tuple[Device, ...] | Fault]:
    answer: Future[tuple[Device, ...] | Fault] = Future()

    def work() -> None:
        try:
            answer.set_result(scanimage.list_devices(LIST_S, user=user))
        except BaseException as error:  # the one who waits gets it
            answer.set_exception(error)

    threading.Thread(target=work, name="scanimage", daemon=True).start()
    return answer


def source(asked: Asked, subject: Subject, config: SourceConfig) -> Iterator[Finding]:
    """Say whether a configured scanner is there and can what the settings want."""
    assert isinstance(config, ScannerConfig)
    scanners = asked.scanners()
    found = scanners.his if scanners.user else scanners.seen
    if isinstance(found, Fault):
        yield Finding("fail", config.name, f"scanners cannot be listed: {found.advice}", "see the line about scanners")
        return
    names = [device.name for device in found]
    device = config.device or (names[0] if len(names) == 1 else "")
    if not device:
        said = f"{len(names)} scanners, and no device in the settings" if names else "no scanner is found"
        yield Finding(
            "fail", config.name, said, "set device to one of them" if names else "switch it on and connect it"
        )
    elif device not in names:
        # SANE opens some that it does not list, those of the network among them.
        yield Finding(
            "warn", config.name, f"{device} is not among the scanners found", "switch it on, or correct device"
        )
    elif subject.runs("worker"):
        yield Finding("ok", config.name, f"{device}; the worker has it")
    else:
        yield _can(config, device)


def _can(config: ScannerConfig, device: str) -> Finding:
    """Ask a scanner for what it can, and compare it with the settings."""
    options = scan_options.ask_options(device, config.options, ASK_S)
    arguments = options if isinstance(options, Fault) else scan_options.settings(config, options)
    if isinstance(arguments, Fault):
        return Finding("fail", config.name, f"{device}: {arguments.advice}", f"`scanimage -A -d '{device}'` shows more")
    return Finding("ok", config.name, f"{device}: {' '.join(arguments)}")


def named(asked: Asked, subject: Subject) -> Iterator[Finding]:
    """Name the scanners there are, and say when only root sees them."""
    wanted = {source.device for source in subject.config.source if isinstance(source, ScannerConfig)}
    try:
        scanners = asked.scanners(UNWANTED_S if subject.config.source and not wanted else None)
    except TimeoutError:
        yield Finding("ok", "scanners", "no source is one; looking for them takes long: `scanimage -L`")
        return
    if isinstance(scanners.seen, Fault):
        if wanted or scanners.seen != scanimage.NO_PROGRAM:
            advice = "install it, then check again" if scanners.seen == scanimage.NO_PROGRAM else "try `scanimage -L`"
            yield Finding("fail" if wanted else "warn", "scanners", scanners.seen.advice, advice)
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
        other = "" if is_root() else "; `sudo edge-ocr check` tells whether only root sees it"
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
