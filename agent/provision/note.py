"""What a technician without a screen finds on the stick: what was done, or what is wrong; and what is taken from it."""

from __future__ import annotations

import time

from agent import __version__
from agent.errors import ConfigError
from agent.provision import folder
from agent.provision.box import Record, Tidy
from agent.provision.identity import Identity
from agent.provision.media import Medium

APPLIED = "edge-ocr.applied.txt"
ERROR = "edge-ocr.error.txt"
MAX_BYTES = 64 << 10
"""Boxes add to the report of a stick that goes around; with more it begins anew."""


def tell_error(medium: Medium, identity: Identity, error: str) -> bool:
    """Write what is wrong onto a medium; tells whether that could be done."""
    lines = [
        "edge-ocr: NOT applied. The box goes on with the settings it has.",
        "",
        f"what:   {error}",
        "to do:  correct it, and start the box again with this stick, or run on the box: sudo edge-ocr provision",
        "",
        *_who(identity),
    ]
    try:
        with medium.writable():
            _write(medium, ERROR, lines)
    except OSError:
        return False
    return True


def tidy(medium: Medium, identity: Identity, record: Record, tidy: Tidy, settings: bytes) -> list[str]:
    """Take away from a medium what only this box needed, and leave a report.

    Args:
        medium: what the files came from.
        identity: who this box is.
        record: what was applied.
        tidy: what is to be done.
        settings: the text of agent.toml, which holds no secret; it stays in place of a file that did.

    Returns:
        What an administrator should know.
    """
    try:
        with medium.writable():
            for name in tidy.spent if tidy.remove else ():
                folder.remove(medium.path, name)
            staying = _staying(tidy)
            _write_report(medium, identity, record, tidy, staying)
            _rename(medium, record.device, tidy, settings)  # last: by these files it is known again after a cut
    except OSError as error:
        held = [*tidy.inline, *tidy.spent, *tidy.staying]
        said = f"{medium.label} cannot be written ({error.strerror or error}), so that no report is on it"
        return [said, *([f"secrets are still on it: {', '.join(held)}; take them off"] if held else [])]
    return [staying] if staying else []


def _rename(medium: Medium, device: str, tidy: Tidy, settings: bytes) -> None:
    """Have the file of this box be no longer found; where it held secrets, settings without them take its place."""
    for name in tidy.own:
        applied = f"{name}.applied-{device}"
        if tidy.remove and name in tidy.inline:
            folder.write(medium.path, applied, settings)
            folder.remove(medium.path, name)
        else:
            folder.rename(medium.path, name, applied.rpartition("/")[2])


def _staying(tidy: Tidy) -> str:
    held = tidy.staying if tidy.remove else (*tidy.inline, *tidy.spent, *tidy.staying)
    return (
        f"secrets are still on the medium, in {', '.join(held)}; take them off when no box needs them" if held else ""
    )


def _write_report(medium: Medium, identity: Identity, record: Record, tidy: Tidy, staying: str) -> None:
    lines = [
        f"edge-ocr: applied to {record.device}",
        *_who(identity),
        f"files:  {', '.join(tidy.files)}",
        f"sha256: {record.digest}",
        *([f"certificate: {tidy.days} days left"] if tidy.days is not None else []),
        *([staying] if staying else []),
    ]
    _write(medium, APPLIED, [*_before(medium, APPLIED), *lines, ""])
    if str(identity) in "\n".join(_before(medium, ERROR)):
        folder.remove(medium.path, ERROR)


def _who(identity: Identity) -> list[str]:
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return [f"box:    {identity}", f"when:   {now} by its clock, edge-ocr {__version__}"]


def _before(medium: Medium, name: str) -> list[str]:
    try:
        text = folder.read(medium.path, name, MAX_BYTES).decode("utf-8", errors="replace")
    except ConfigError:
        return []
    return text.replace("\r", "").splitlines()


def _write(medium: Medium, name: str, lines: list[str]) -> None:
    text = "\r\n".join([*lines, ""])  # so that every editor of Windows shows lines
    folder.write(medium.path, name, text.encode())
