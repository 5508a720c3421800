"""The way of a medium's files into the box: looked at, decided, written, told to systemd, tidied up on the medium."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path

from agent import units
from agent.config import AgentConfig
from agent.errors import AgentError, ConfigError, InputError, ProvisionError
from agent.provision import box as boxes
from agent.provision import folder, media, note, pem, request
from agent.provision.box import Box, Change, Piece, Record, Tidy
from agent.provision.identity import Identity
from agent.provision.media import Medium
from agent.provision.request import COMMON, Request
from agent.source_config import UploadConfig

KEYS = "20-keys.conf"
_HEAD = "# Written by `edge-ocr provision`.\n[Service]\n"
_SETTINGS_HEAD = "# Written by `edge-ocr provision`. Change it here: what is on a stick is not taken a second time.\n\n"
_TARGET, _SOCKET, _UPLINK = "edge-ocr.target", "edge-ocr.socket", "edge-ocr-uplink.service"


def search(box: Box, identity: Identity, wait_s: float, root: Path = Path("/")) -> str:
    """Take what the boot partition or a stick has for a box that was given to nobody yet.

    Args:
        box: what is changed.
        identity: who that is.
        wait_s: a stick may take some seconds to appear.
        root: where the media are looked for.

    Returns:
        What was done, for people.

    Raises:
        AgentError: what is wrong; it is on the medium too. Nothing has changed.
    """
    with boxes.alone(box), closing(_looks(root, wait_s)) as looks:
        if (change := boxes.pending(box)) is not None:
            return _carry_out(box, change, identity, looks)
        if reason := boxes.closed(box):
            return reason
        for found in looks:
            if found:
                return _take(box, identity, found)
        return f"no {COMMON} on the boot partition or a stick"


def _looks(root: Path, wait_s: float) -> Generator[list[Medium], None, None]:
    """Yield the media that hold something for a box, each second anew until the time is over; at least once."""
    end = time.monotonic() + wait_s
    while True:
        with media.found(root) as found:
            yield found
        if time.monotonic() >= end:
            return
        time.sleep(1.0)


def given(box: Box, identity: Identity, path: Path) -> str:
    """Take what an administrator has named, whether the box has its settings or not; nothing is changed there.

    Args:
        box: what is changed.
        identity: who that is.
        path: a file, a folder or a partition.

    Returns:
        What was done, for people.

    Raises:
        AgentError: what is wrong. Nothing has changed.
    """
    said = []
    with boxes.alone(box):
        if (change := boxes.pending(box)) is not None:
            with closing(_looks(Path("/"), 0.0)) as looks:
                said.append(_carry_out(box, change, identity, looks))
        with _opened(path) as (medium, names):
            return "\n".join([*said, _apply(box, identity, medium, read(medium, names, identity))])


def look(identity: Identity, path: Path) -> list[str]:
    """Return what would be written, for people; of files for single boxes each is looked at.

    Raises:
        AgentError: what is wrong.
    """
    with _opened(path) as (medium, name):
        if name or not folder.exists(medium.path, request.OWN):
            return _said(read(medium, name, identity))
        return _look_at_each(medium)


def _look_at_each(medium: Medium) -> list[str]:
    good, wrong = [], []
    for own in request.box_files(medium.path):
        device = Identity(Path(own).stem, ()).device
        try:
            asked = request.read(medium.path, _with_common(medium, own), device, shown=f"{medium.label}/")
            good.append(f"{own}: {asked.config.device}: good")
        except ConfigError as error:
            wrong.append(str(error))
    if wrong or not good:
        raise ConfigError("\n".join(wrong) or f"{medium.label}/{request.OWN}: is empty; it needs a file for each box")
    return good


def _said(asked: Request) -> list[str]:
    files = [f"{key.name} for {key.unit} ({len(key.content)} bytes)" for key in asked.keys]
    return [f"# good: {', '.join(asked.files)}; keys: {', '.join(files) or 'none'}", _SETTINGS_HEAD + asked.settings]


# ------------------------------------------------------------------------------------------------ looking


class _opened:
    """A named file, folder or partition, as a medium and the one name that counts there, "" for all."""

    def __init__(self, path: Path) -> None:
        self._name = "" if path.is_dir() or path.is_block_device() else path.name
        if self._name and not path.exists():
            raise InputError(f"{path}: no such file, folder or partition")
        self._medium = media.given(path.parent if self._name else path)

    def __enter__(self) -> tuple[Medium, str]:
        return self._medium.__enter__(), self._name

    def __exit__(self, *error: object) -> None:
        self._medium.__exit__(*error)  # type: ignore[arg-type]


def read(medium: Medium, name: str, identity: Identity) -> Request:
    """Read what a medium has for this box.

    Raises:
        ConfigError: it has nothing, or what is wrong.
    """
    shown = f"{medium.label}/" if medium.kind == "given" else ""
    own = name or request.own_name(medium.path, identity)
    names = (name,) if name else _with_common(medium, own)
    return request.read(medium.path, names, identity.device, shown=shown, alone=medium.kind == "boot")


def _with_common(medium: Medium, own: str) -> tuple[str, ...]:
    """Return the files that count for a box: its own, and the one for all."""
    common = (COMMON,) if not own or folder.exists(medium.path, COMMON) else ()
    return (own, *common) if own else common


def _take(box: Box, identity: Identity, found: list[Medium]) -> str:
    """Apply what is found, and say on the medium what came of it.

    Raises:
        AgentError: what is wrong.
    """
    try:
        asked = {medium.label: read(medium, "", identity) for medium in found}
        if len({one.digest for one in asked.values()}) > 1:
            raise ConfigError(f"files for this box on {' and on '.join(asked)}: leave one of them")
        return _apply(box, identity, found[0], asked[found[0].label])
    except AgentError as error:
        for medium in found:
            note.tell_error(medium, identity, str(error))
        if isinstance(error, ConfigError):  # which medium it is goes without saying only on the medium
            raise ConfigError(f"{' and '.join(medium.label for medium in found)}: {error}") from error
        raise


# ------------------------------------------------------------------------------------------------ applying


def _apply(box: Box, identity: Identity, medium: Medium, asked: Request) -> str:
    before = boxes.record(box)
    if before is not None and before.digest == asked.digest:
        return (
            f"{before.device}: the same files were applied {before.at}; nothing is changed, and what was changed on the"
            f" box since then stays. Delete {box.record} to have them applied once more"
        )
    change = plan(box, medium, asked)
    try:
        boxes.commit(box, change)
    except OSError as error:
        raise ProvisionError(f"{error.filename or box.home}: {error.strerror}; nothing was changed") from error
    return _carry_out(box, change, identity, medium)


def plan(box: Box, medium: Medium, asked: Request) -> Change:
    """Return what a request changes on a box. Nothing is written."""
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    device = asked.config.device
    certificate = next((key.content for key in asked.keys if key.name == "cert.pem"), None)
    return Change(
        backup=boxes.free(box, f"{box.config.name}.before-{at[:10]}-{asked.digest[:8]}") if box.config.exists() else "",
        pieces=_pieces(box, asked),
        record=Record(asked.digest, device, f"{medium.label}: {', '.join(asked.files)}", at),
        again=asked.again,
        socket=_needs_socket(asked.config),
        tidy=Tidy(
            medium.kind,
            asked.files,
            asked.mark,
            asked.own,
            asked.inline,
            asked.spent,
            asked.staying,
            asked.remove,
            None if certificate is None else pem.days_left(certificate),
        ),
        uplink=asked.config.mqtt is not None,
    )


def _pieces(box: Box, asked: Request) -> tuple[Piece, ...]:
    """Return the files of a change; the settings last, as they name the others."""
    pieces = [Piece(str(box.keys / key.name), 0o600, key.content) for key in asked.keys]
    for unit, text in units.drop_ins(asked.config).items():
        loads = (f"LoadCredential={key.name}:{box.keys / key.name}\n" for key in asked.keys if key.unit == unit)
        home = box.units / f"{unit}.d"
        pieces.append(Piece(str(home / units.NAME), 0o644, text.encode()))
        pieces.append(Piece(str(home / KEYS), 0o644, (_HEAD + "".join(loads)).encode()))
    return (*pieces, Piece(str(box.config), 0o644, (_SETTINGS_HEAD + asked.settings).encode()))


def _carry_out(box: Box, change: Change, identity: Identity, place: Medium | Iterable[list[Medium]]) -> str:
    """Do what was decided; without its medium that is looked for among those that are found, look by look.

    Raises:
        ProvisionError: a step fails; the next call goes on.
    """
    try:
        boxes.make(box, change)
        _tell_systemd(box, change)
        said = _tidy(change, identity, place)
        boxes.end(box)
    except OSError as error:
        raise ProvisionError(
            f"{error.filename or box.home}: {error.strerror}; started again, the box goes on from here"
        ) from error
    kept = f"; the settings before are {box.home / change.backup}" if change.backup else ""
    return "\n".join([f"{change.record.device}: applied {change.record.source}{kept}", *said])


def _tidy(change: Change, identity: Identity, place: Medium | Iterable[list[Medium]]) -> list[str]:
    """Take this box's secrets from the medium and leave a report there; returns what is to be said here too."""
    held = (*change.tidy.inline, *change.tidy.spent, *change.tidy.staying)
    if change.tidy.kind == "given":
        return [f"secrets are still in {', '.join(held)} where you had them"] if held else []
    settings = change.pieces[-1].content
    if isinstance(place, Medium):
        return note.tidy(place, identity, change.record, change.tidy, settings)
    for found in place:  # after a cut a stick takes as long to appear as at any start
        for one in found:
            if request.mark(one.path, change.tidy.files[0]) == change.tidy.mark:
                return note.tidy(one, identity, change.record, change.tidy, settings)
    # It has gone, or all was done there before the cut.
    return [f"the medium is not found again; secrets may still be on it, in {', '.join(held)}: see it"] if held else []


def _needs_socket(config: AgentConfig) -> bool:
    return any(isinstance(source, UploadConfig) and source.listen == "systemd" for source in config.source)


def _tell_systemd(box: Box, change: Change) -> None:
    """Have systemd read the units anew, and what runs already start again.

    Raises:
        OSError: it does not.
    """
    if box.units != boxes.UNITS or not os.path.isdir("/run/systemd/system"):
        return
    wanted = [unit for unit, needed in ((_SOCKET, change.socket), (_UPLINK, change.uplink)) if needed]
    if wanted:  # a box whose first settings named no broker has its uplink disabled
        _systemctl("enable", "--no-reload", *wanted)
    _systemctl("daemon-reload")
    # At the start of the box this runs before all of them, and waiting for them would be for ever.
    if subprocess.run(("systemctl", "is-active", "--quiet", _TARGET)).returncode == 0:
        _systemctl("restart", "--no-block", _TARGET)
    elif wanted:
        _systemctl("start", "--no-block", *wanted)


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(("systemctl", *arguments), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(0, f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
