"""What a medium asks for: `edge-ocr.toml`, checked and turned into settings, keys and what systemd must know.

On a stick for several boxes `edge-ocr.d/NAME.toml` holds what is this box's own, and goes before what is common.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent import config, strict, units
from agent.config import AgentConfig
from agent.errors import ConfigError
from agent.provision import folder
from agent.provision.identity import Identity
from agent.provision.keys import Files, Key, MediumConfig
from agent.provision.papers import Merged, Part, render

COMMON = "edge-ocr.toml"
OWN = "edge-ocr.d"


class Request(Struct, frozen=True):
    """What is asked for, all of it checked.

    Attributes:
        config: the settings.
        settings: the same, as the text of agent.toml.
        keys: what goes to the credentials.
        files: names of what was read, the first of them says most about this box.
        digest: sha256 of all of them.
        mark: sha256 of the first.
        own: those that say what to do and are for this box alone.
        inline: those of `own` with secrets in them.
        spent: files that are secrets which only this box needs.
        staying: files with secrets that other boxes need as well.
        remove: whether this box's secrets are taken from the medium.
        again: whether changed files are taken later.
    """

    config: AgentConfig
    settings: str
    keys: tuple[Key, ...]
    files: tuple[str, ...]
    digest: str
    mark: str
    own: tuple[str, ...]
    inline: tuple[str, ...]
    spent: tuple[str, ...]
    staying: tuple[str, ...]
    remove: bool
    again: bool


# ------------------------------------------------------------------------------------------------ reading


def own_name(place: Path, identity: Identity) -> str:
    """Return the name of this box's own file below a medium, "" where there is no folder for such.

    Raises:
        ConfigError: there is one, and none in it or several are this box's.
    """
    if not folder.exists(place, OWN):
        return ""
    known = box_files(place)
    mine = [name for name in known if identity.owns(Path(name).stem)]
    if len(mine) != 1:
        found = f"{' and '.join(mine)} are both" if mine else f"none of its {len(known)} files is"
        raise ConfigError(
            f"{OWN}: {found} this box's ({identity}); name one file after its serial number or MAC address, "
            "such as edge-ocr.d/02-00-5e-10-00-01.toml"
        )
    return mine[0]


def box_files(place: Path) -> list[str]:
    """Return the names of the files for single boxes."""
    return [f"{OWN}/{name}" for name in folder.names(place, OWN) if name.lower().endswith(".toml") and name[0] != "."]


def read(place: Path, names: tuple[str, ...], device: str, *, shown: str = "", alone: bool = False) -> Request:
    """Read and check what a medium asks for. Nothing is written.

    Args:
        place: the medium's folder.
        names: its files, the one that goes before the others first.
        device: the name of the box where the files say none; "" where it has no name of its own.
        shown: stands before the names in errors.
        alone: whether the medium is this box's alone.

    Raises:
        ConfigError: what is wrong, with file, line, key, value and what is accepted.
    """
    raw = {name: _read(place, name, shown) for name in names}
    parts = tuple(Part(strict.Document(Path(shown + name), raw[name]), name) for name in names)
    document = Merged(parts)
    asked = strict.check(document, MediumConfig)
    files = Files(place, document, asked.provision)
    keys = [*files.broker(asked), *files.credentials(asked)]
    document.table = _settings(document, asked.device or device, files.makes)
    checked = config.check(document, AgentConfig, check_files=False)
    units.drop_ins(checked)  # raises for what no unit can do
    raw |= files.raw
    single = names if alone else names[:1] if names[0].startswith(f"{OWN}/") or asked.device else ()
    held = {name: part.name for name, part in files.secret.items()} | {part.name: part.name for part in files.inline}
    return Request(
        config=checked,
        settings=render(document.table),
        keys=tuple(keys),
        files=tuple(raw),
        digest=_digest(raw),
        mark=hashlib.sha256(raw[names[0]]).hexdigest(),
        own=single,
        inline=tuple(name for name in single if name in held),
        spent=tuple(name for name, by in held.items() if by in single and name not in names),
        staying=tuple(name for name, by in held.items() if by not in single),
        remove=asked.provision.remove,
        again=asked.provision.again,
    )


def mark(place: Path, name: str) -> str:
    """Return the digest of one file of a medium, "" where it is missing."""
    try:
        return hashlib.sha256(folder.read(place, name, strict.MAX_BYTES)).hexdigest()
    except ConfigError:
        return ""


def _digest(raw: dict[str, bytes]) -> str:
    each = (f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in sorted(raw.items()))
    return hashlib.sha256("".join(each).encode()).hexdigest()


def _read(place: Path, name: str, shown: str) -> bytes:
    try:
        return folder.read(place, name, strict.MAX_BYTES)
    except ConfigError as error:
        raise ConfigError(f"{shown}{name}: {error}") from error


def _settings(document: Merged, device: str, makes: dict[str, str]) -> dict[str, Any]:
    """Return the table of agent.toml: what stands in the files, the name of the box and where keys will be."""
    if not device:
        raise document.wrong(("device",), "is missing, and this box has neither serial number nor MAC address")
    table = {key: copy.deepcopy(value) for key, value in document.table.items() if key != "provision"}
    if makes:
        table["mqtt"] |= makes
    return {"device": device} | {key: value for key, value in table.items() if key != "device"}
