"""The box's side: what it has already, and a journal by which everything is changed or nothing.

What is to be written is put aside as a whole, `provision.pending`, which appears with one rename: before it nothing has
changed, after it the change is made however often it is cut short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent import durable, strict
from agent.errors import BusyError, ConfigError, ProvisionError

SAMPLE_DEVICE = "box-1"
"""The name in `systemd/agent.toml`: a box that still has it was given to nobody."""
UNITS = Path("/etc/systemd/system")
T = TypeVar("T")


class Box(Struct, frozen=True):
    """Where a box has what.

    Attributes:
        config: its settings.
        units: folder of its units.
    """

    config: Path
    units: Path = UNITS

    @property
    def home(self) -> Path:
        """Where settings, keys and what is remembered are."""
        return self.config.parent

    @property
    def keys(self) -> Path:
        """Folder of keys, for root alone."""
        return self.home / "keys"

    @property
    def record(self) -> Path:
        """What was applied. Not in the state directory, where the agent's user may write."""
        return self.home / "provision.json"

    @property
    def pending(self) -> Path:
        """A change that was decided."""
        return self.home / "provision.pending"

    @property
    def again(self) -> Path:
        """Where there is such a file, sticks are taken though the box has its settings."""
        return self.home / "provision.again"


class Record(Struct, frozen=True):
    """What was applied.

    Attributes:
        digest: of the files.
        device: the box's name.
        source: where they came from.
        at: when, by the box's clock.
    """

    digest: str
    device: str
    source: str
    at: str


class Tidy(Struct, frozen=True):
    """What is left to do on the medium, when a change is made; fields as in `Request`.

    Attributes:
        kind: of the medium.
        files: all that was read.
        mark: digest of the first of them, by which the medium is known again.
        own: what gets another name.
        inline: those of them with secrets.
        spent: what is deleted.
        staying: what the technician is told of.
        remove: whether secrets are taken away at all.
        days: how long the certificate is valid.
    """

    kind: str
    files: tuple[str, ...] = ()
    mark: str = ""
    own: tuple[str, ...] = ()
    inline: tuple[str, ...] = ()
    spent: tuple[str, ...] = ()
    staying: tuple[str, ...] = ()
    remove: bool = True
    days: int | None = None


class Piece(Struct, frozen=True):
    """A file to write.

    Attributes:
        path: where.
        mode: its rights.
        content: what.
    """

    path: str
    mode: int
    content: bytes


class Change(Struct, frozen=True):
    """All that is to be done, in this order.

    Attributes:
        backup: name that the settings before get beside the new ones; "" where there are none.
        pieces: files to write.
        record: what is remembered.
        again: whether sticks are taken later.
        socket: whether a source listens on systemd's socket.
        tidy: what is done on the medium in the end.
        uplink: whether there is a broker to send to.
    """

    backup: str
    pieces: tuple[Piece, ...]
    record: Record
    again: bool
    socket: bool
    tidy: Tidy
    uplink: bool = False


def record(box: Box) -> Record | None:
    """Return what was applied last, None where nothing ever was.

    Raises:
        ProvisionError: that cannot be read.
    """
    return _kept(box.record, Record, "it says what was applied here; see it, or delete it")


def closed(box: Box) -> str:
    """Return why a medium that somebody has plugged in is not looked at; "" where it is."""
    if box.again.exists():
        return ""
    if (before := record(box)) is not None:
        return f"{before.device}: has its settings since {before.at}; media are left alone"
    try:
        device = strict.Document(box.config).table.get("device")
    except ConfigError:
        return f"{box.config} was written by somebody; media are left alone" if os.path.lexists(box.config) else ""
    return "" if device == SAMPLE_DEVICE else f"{device or box.config}: was set up on this box; media are left alone"


@contextlib.contextmanager
def alone(box: Box) -> Iterator[None]:
    """Keep others from changing the box meanwhile.

    Raises:
        BusyError: another does.
        ProvisionError: its folder cannot be written.
    """
    try:
        box.home.mkdir(mode=0o755, parents=True, exist_ok=True)
        number = os.open(box.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ProvisionError(f"{box.home}: {error.strerror}; run this as root") from error
    if not os.access(box.home, os.W_OK):
        os.close(number)
        raise ProvisionError(f"{box.home}: may not be written; run this as root")
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise BusyError("another `edge-ocr provision` is at work; run this again when it has ended") from None
    finally:
        os.close(number)


def free(box: Box, name: str) -> str:
    """Return a name that nothing beside the settings has: this one, or with a number behind it."""
    found, number = name, 2
    while os.path.lexists(box.home / found):
        found, number = f"{name}-{number}", number + 1
    return found


# ------------------------------------------------------------------------------------------------ the journal


def commit(box: Box, change: Change) -> None:
    """Put a change aside as a whole. When this returns it will be made.

    Raises:
        OSError: it cannot be written; nothing has changed.
    """
    put(box.pending, msgspec.json.encode(change), 0o600)


def pending(box: Box) -> Change | None:
    """Return a change that was decided and not ended, None where there is none.

    Raises:
        ProvisionError: it cannot be read.
    """
    return _kept(box.pending, Change, "delete it and provision anew")


def _kept(path: Path, kind: type[T], advice: str) -> T | None:
    """Return what was written to a file, None where there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ProvisionError(f"{path}: {error}; {advice}") from error


def make(box: Box, change: Change) -> None:
    """Write all files of a change. Called again it does the same once more.

    Raises:
        OSError: one cannot be written; called again it goes on.
    """
    if change.backup:
        with contextlib.suppress(FileExistsError):  # made by this change, before it was cut short: the name was free
            os.link(box.config, box.home / change.backup)
    for piece in change.pieces:
        put(Path(piece.path), piece.content, piece.mode)
    if change.again:
        put(box.again, b"Sticks are taken though this box has its settings. Delete this file to end that.\n", 0o644)
    else:
        box.again.unlink(missing_ok=True)
    put(box.record, msgspec.json.encode(change.record), 0o644)


def end(box: Box) -> None:
    """Forget a change that was made.

    Raises:
        OSError: it cannot be.
    """
    box.pending.unlink()
    durable.synchronize(box.home)


def put(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, with its folders.

    Raises:
        OSError: it cannot be.
    """
    for folder in (*reversed(path.parents), path.parent):
        if not folder.is_dir():
            folder.mkdir(mode=0o700 if folder.name == "keys" else 0o755)
            durable.synchronize(folder.parent)
    durable.put(path, content, mode)
