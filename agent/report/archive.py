"""The archive: parts made one after the other, packed in memory, and written at once or to standard output."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import msgspec

from agent import __version__, durable
from agent.check import doctor, together
from agent.config import AgentConfig, load
from agent.errors import ConfigError, InputError
from agent.report import masked, parts
from agent.report.parts import PARTS, Given
from agent.report.scrub import Scrub

FOLDER = "edge-ocr-report"
_HEAD = f"""A report of edge-ocr {__version__}, for whoever helps with this machine.

In it: no recognised text, no picture, no row of the outbox, no key, password or token. In logs and messages only words
stand that the program itself uses or that are in its settings; other words, names of files among them, long numbers and
what was in quotes are a "…". Names of the device, the sources, the broker's host and paths of the settings are in it.

"""


class Told(msgspec.Struct, frozen=True):
    """A packed report.

    Attributes:
        name: of its file, where none was given.
        packed: a tar.gz.
        lines: what is in it, one line each.
    """

    name: str
    packed: bytes
    lines: tuple[str, ...]


def make(path: Path, logs: tuple[Path, ...] = (), tell: together.Tell | None = None) -> Told:
    """Return a report of this machine, of whatever part of it works.

    Args:
        path: the settings.
        logs: log files besides the journal.
        tell: told now and then of what is still looked at.
    """
    try:
        config: AgentConfig | None = load(path, AgentConfig, check_files=False)
    except ConfigError:
        config = None
    given = Given(path, config, doctor.make(path, tell), logs, Scrub(_names(config)))
    made, lines = [], []
    for part in PARTS:
        raw, why = parts.content(part, given)
        made.append((part.name, raw))
        lines.append(f"{part.name:<14} {part.about}{f' (cannot be told: {why})' if why else ''}")
    head = _HEAD + "\n".join(lines) + "\n"
    name = f"{FOLDER}-{config.device if config else 'unknown'}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz"
    return Told(name, _pack([("contents.txt", head.encode()), *made]), tuple(lines))


def _names(config: AgentConfig | None) -> tuple[str, ...]:
    """Return the texts of settings whose words may stand in lines: names, hosts and places."""
    if config is None:
        return ()
    own = [config.device, config.state_dir, config.reader.bundle, config.mqtt.host if config.mqtt else ""]
    for source in config.source:
        own += [source.name, getattr(source, "path", ""), masked.address(getattr(source, "device", ""))]
    return tuple(own)


def _pack(files: list[tuple[str, bytes]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, raw in files:
            entry = tarfile.TarInfo(f"{FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(raw), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(raw))
    return packed.getvalue()


def write(told: Told, output: Path | None) -> Path:
    """Write a report, for nobody else to read; returns where it is.

    Args:
        told: the report.
        output: the file; default one named after device and time, in the working directory.

    Raises:
        InputError: it cannot be written there.
    """
    path = output or Path(told.name)
    try:
        with durable.exported(path) as file:
            file.write(told.packed)
    except OSError as error:
        advice = "give another place with -o, or have it on standard output: edge-ocr report -o - > FILE"
        raise InputError(f"{path}: {error.strerror}; {advice}") from error
    return path
