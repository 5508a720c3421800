"""What the systemd units must be told of the settings: memory, folders, devices, the broker's address.

The units in `systemd/` are as closed as they can be for the default settings and a folder in the state directory. What
other settings need is opened by a drop-in for each, and nothing besides.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.config import AgentConfig
from agent.errors import ConfigError, InputError
from agent.source_config import CameraConfig, FolderConfig, ScannerConfig, SourceConfig

NAME = "10-settings.conf"
STATE_DIR = "/var/lib/edge-ocr"
BESIDE_MB = 64
"""What counts against a control group and is no program's resident memory: the kernel's part, caches of files."""
_HEAD = "# Written by `edge-ocr units` from the settings; write it anew when they change."
_HIDDEN = ("/home", "/root", "/run/user")  # by ProtectHome=
NO_PICTURES = (
    *("/srv", "/mnt", "/media"),
    *(f"{STATE_DIR}/inbox", f"{STATE_DIR}/sources"),
    "/var/cache/edge-ocr",
)
"""What the uplink's unit makes inaccessible; a test reads it there."""
CAMERA = ("PrivateDevices=no", "DeviceAllow=char-video4linux rw", "SupplementaryGroups=video")
# libusb finds nothing without the kernel's announcements, which come over netlink.
SCANNER = (
    "PrivateDevices=no",
    "DeviceAllow=char-usb_device rw",
    "SupplementaryGroups=scanner",
    "RestrictAddressFamilies=AF_NETLINK",
)
NETWORK = (
    "PrivateNetwork=no",
    "RestrictAddressFamilies=AF_INET AF_INET6",
    "IPAddressAllow=localhost link-local 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7",
)
_FAR = ("net:", "airscan:", "escl:")
"""SANE's names of scanners that are reached over the network begin so."""


def memory_mb(limit_mb: int) -> tuple[int, int]:
    """Return MemoryHigh and MemoryMax in MB for `memory.limit_mb`.

    Above the first the system slows a process down until the watchdog would end it: the second is near.
    """
    high = limit_mb + BESIDE_MB
    return high, high * 13 // 10


def drop_ins(config: AgentConfig) -> dict[str, str]:
    """Return the drop-in of each unit, by the unit's name.

    Raises:
        ConfigError: a path of the settings cannot stand in a unit.
    """
    parts = {"edge-ocr-worker.service": _worker(config), "edge-ocr-uplink.service": _uplink(config)}
    return {unit: "\n".join([_HEAD, "[Service]", *lines, ""]) for unit, lines in parts.items()}


def write(config: AgentConfig, folder: Path) -> list[Path]:
    """Write the drop-ins below a folder of units, each as UNIT.d/10-settings.conf; returns their paths.

    Raises:
        ConfigError: a path of the settings cannot stand in a unit.
        InputError: they cannot be written.
    """
    written = []
    for unit, text in drop_ins(config).items():
        path = folder / f"{unit}.d" / NAME
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".new")  # systemd reads only names that end in .conf
            fresh.write_text(text, encoding="utf-8")
            fresh.replace(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
        written.append(path)
    return written


def _worker(config: AgentConfig) -> list[str]:
    high, most = memory_mb(config.memory.limit_mb)
    lines = [f"MemoryHigh={high}M", f"MemoryMax={most}M"]
    lines += _writable(config.state_dir)
    for source in config.source:
        lines += [f"# source {source.name}", *_needs(source)]
    return lines


def _uplink(config: AgentConfig) -> list[str]:
    lines = [*_in_sight(config.state_dir), *_writable(config.state_dir)]
    if os.path.normpath(config.state_dir) != STATE_DIR:
        lines.append(f"InaccessiblePaths={_quoted('-', os.path.join(os.path.normpath(config.state_dir), 'sources'))}")
    for folder in _folders(config.source):
        if not _within(config.state_dir, folder):  # the outbox itself must stay in sight
            lines.append(f"InaccessiblePaths={_quoted('-', folder)}")
    if config.mqtt is not None and (address := _address(config.mqtt.host)):
        # An empty one first, which takes back the private networks: no name has to be looked up.
        lines += ["IPAddressAllow=", f"IPAddressAllow={address}"]
    return lines


def _in_sight(state_dir: str) -> Iterator[str]:
    """Yield what gives the uplink its state where the unit hides a folder above it: all but that folder hidden anew.

    Below what is inaccessible systemd drops whatever else is said.
    """
    hidden = [place for place in NO_PICTURES if not _within(state_dir, place)]
    if len(hidden) < len(NO_PICTURES):
        yield "InaccessiblePaths="
        yield f"InaccessiblePaths={' '.join(f'-{place}' for place in hidden)}"


def _needs(source: SourceConfig) -> Iterator[str]:
    """Yield what a source needs of the worker's unit."""
    if isinstance(source, FolderConfig):
        yield from _writable(source.path)
    elif isinstance(source, CameraConfig):
        yield from NETWORK if "://" in source.device else CAMERA
    elif isinstance(source, ScannerConfig):
        yield from NETWORK if source.device.startswith(_FAR) or "://" in source.device else SCANNER
    elif source.listen.startswith("unix:"):
        yield from _writable(os.path.dirname(source.listen.removeprefix("unix:")))
    elif source.listen != "systemd":
        raise ConfigError(
            f'source {source.name}: under systemd the worker has no network: set listen = "systemd", and have'
            f" edge-ocr.socket listen at {source.listen}"
        )


def _folders(sources: Sequence[SourceConfig]) -> list[str]:
    return [os.path.normpath(source.path) for source in sources if isinstance(source, FolderConfig)]


def _writable(path: str) -> Iterator[str]:
    """Yield what lets a unit write to a directory. "-": where it is missing the program says so, and not the system."""
    place = os.path.normpath(path)
    if _within(place, STATE_DIR):
        return  # StateDirectory= has it
    if any(_within(place, hidden) for hidden in _HIDDEN):
        yield "ProtectHome=tmpfs"
        yield f"BindPaths={_quoted('-', place)}"
    else:
        yield f"ReadWritePaths={_quoted('-', place)}"


def _within(path: str, folder: str) -> bool:
    return os.path.commonpath((os.path.abspath(path), os.path.abspath(folder))) == os.path.abspath(folder)


def _quoted(prefix: str, path: str) -> str:
    """Return a path as one word of a unit file.

    Raises:
        ConfigError: it cannot be one.
    """
    if not os.path.isabs(path) or not path.isprintable():
        raise ConfigError(f"{path!r}: under systemd it must be a path from / on, without control characters")
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{prefix}{escaped}"'


def _address(host: str) -> str:
    """Return a host that is an address, "" for a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""
