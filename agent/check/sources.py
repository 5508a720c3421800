"""Sources, each opened once: a camera for a picture, a folder for a file, an upload's address for a moment.

While a worker runs nothing of it is touched: what it has is said as it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from agent import health
from agent.check import scanners, whose
from agent.check.finding import Finding, Subject
from agent.check.together import Task
from agent.check.together import look as look_together
from agent.config import secret
from agent.errors import AgentError, ConfigError
from agent.source_config import CameraConfig, FolderConfig, ScannerConfig, SourceConfig, UploadConfig
from agent.sources.camera import device as camera_device

OPEN_S = 4.0
LIMIT_S = 8.0
"""Below the limit of all checks together, so that the sources that answer are told beside one that hangs."""
_TRIAL = ".edge-ocr-check"


def look(subject: Subject) -> Iterator[Finding]:
    """Open each source once, all at the same time; then name the scanners there are."""
    asked = scanners.Asked(whose.owner(subject.state_dir))
    kinds: dict[type, Callable[..., Iterator[Finding]]] = {
        FolderConfig: _folder,
        ScannerConfig: partial(scanners.source, asked),
        CameraConfig: _camera,
        UploadConfig: _upload,
    }
    tasks = [Task(source.name, partial(kinds[type(source)], subject, source)) for source in subject.config.source]
    yield from look_together((*tasks, Task("scanners", partial(scanners.named, asked, subject))), LIMIT_S)


def _of_worker(subject: Subject, name: str, said: str) -> Finding:
    """Say what the worker that runs says of a source."""
    state = health.read_state(subject.state_dir, "worker", health.WorkerState)
    troubles = [line for line in (state.troubles if state else ()) if line.startswith(f"{name}: ")]
    if not troubles:
        return Finding("ok", name, said)
    return Finding("fail", name, f"the worker: {troubles[0].removeprefix(f'{name}: ')}", "do what it says; it goes on")


# ------------------------------------------------------------------------------------------------ folders


def _folder(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    assert isinstance(source, FolderConfig)
    if subject.runs("worker"):
        yield _of_worker(subject, source.name, f"{source.path}; the worker takes files from it")
        return
    advice = "the agent's user must be able to write into it, because files are claimed by renaming them"
    yield folder_finding(source.name, Path(source.path), advice, whose.owner(subject.state_dir))


def folder_finding(about: str, path: Path, advice: str, user: str = "") -> Finding:
    """Say whether files can be listed, written and renamed in a folder; nothing stays in it.

    Args:
        about: the source, or what the folder is for.
        path: of the folder.
        advice: what to do when they cannot.
        user: who has to be able to, where that is not who runs this.
    """
    if not path.exists():
        return _missing(about, path, user)
    if not path.is_dir():
        return Finding("fail", about, f"{path}: no folder", advice)
    if not whose.may(user, path, "rwx"):
        return Finding("fail", about, f"{path}: may not be written{f' by {user}' if user else ''}", advice)
    try:
        _try_folder(path)
    except OSError as error:
        return Finding("fail", about, f"{path}: {error.strerror}", _FOLDER_ADVICE.get(error.errno or 0, advice))
    return Finding("ok", about, str(path))


_FOLDER_ADVICE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the quota of the disk is used up: free some space",
    errno.EROFS: "it is mounted read-only: mount it writable; after a fault of the disk see `dmesg`",
    errno.ESTALE: "the network folder is gone at its server: mount it anew",
    errno.EIO: "the disk fails: see `dmesg`, and change it",
}


def _missing(about: str, path: Path, user: str) -> Finding:
    if path.parent.is_dir() and whose.may(user, path.parent, "wx"):
        return Finding("ok", about, f"{path}: is made at the first start")
    advice = f"make it, and let the agent's user write into it: mkdir {path}"
    return Finding("fail", about, f"{path}: is missing", advice)


def _try_folder(path: Path) -> None:
    """List a folder, write a file and rename it, as the source does; names with a dot before them are left alone."""
    with os.scandir(path) as entries:
        next(entries, None)
    first = path / f"{_TRIAL}-{os.urandom(8).hex()}"
    second = first.with_name(f"{first.name}.renamed")
    file = first.open("xb")  # follows no link: this may be root, in a folder where others lay some
    try:
        with file:
            file.write(b"edge-ocr check\n")
        first.rename(second)
    finally:
        for left in (first, second):
            with contextlib.suppress(OSError):
                left.unlink()


# ------------------------------------------------------------------------------------------------ the others


def _camera(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    """Open a camera and look at one picture."""
    assert isinstance(source, CameraConfig)
    advice = f"connect it and switch it on; `edge-ocr camera {source.name}` shows what it gives"
    if said := camera_device.unstable(source.device):
        yield Finding("warn", source.name, said, "a name below /dev/v4l/by-id stays")
    if subject.runs("worker"):
        yield _of_worker(subject, source.name, f"{source.device}; the worker has it")
        return
    if denied := _denied(subject, source):
        yield denied
        return
    try:
        glance = camera_device.first_glance(source, OPEN_S)
    except (AgentError, OSError) as error:
        yield Finding("fail", source.name, str(error), advice)
        return
    if not glance.frames:
        said = glance.said or f"{source.device}: no picture within {OPEN_S:g} s; is it on?"
        yield Finding("fail", source.name, said, advice)
    else:
        said = f"{source.device}: {glance.width}x{glance.height}"
        yield Finding("ok", source.name, said, f"`edge-ocr camera {source.name}` shows what is measured")


def _denied(subject: Subject, source: CameraConfig) -> Finding | None:
    """Say that the agent's user may not open a camera; under systemd the unit gives it the group."""
    path, user = Path(source.device), whose.owner(subject.state_dir)
    if not path.is_char_device() or whose.may(user, path, "rw") or (subject.root / "run/systemd/system").is_dir():
        return None
    group = f"usermod -aG {path.group()} {user or 'USER'}, then log in or start the agent anew"
    return Finding("fail", source.name, f"{path}: {user or 'this user'} may not open it", group)


def _upload(subject: Subject, source: SourceConfig) -> Iterator[Finding]:
    """Listen for a moment where nobody does."""
    assert isinstance(source, UploadConfig)
    try:
        token = secret(source.token)
        if subject.runs("worker"):
            yield _of_worker(subject, source.name, f"{source.listen}; the worker listens there")
            return
        if source.listen == "systemd":
            yield Finding("ok", source.name, "listens on the socket that systemd passes")
            return
        if source.listen.startswith("unix:"):  # one that is made here would be this user's
            folder = Path(source.listen.removeprefix("unix:")).parent
            user = whose.owner(subject.state_dir)
            yield folder_finding(source.name, folder, "the agent's user must be able to write into it", user)
            return
        from agent.sources.upload.listener import open_socket

        open_socket(source, has_token=token is not None).close()
    except ConfigError as error:
        yield _upload_fault(source, error)
        return
    yield Finding("ok", source.name, f"{source.listen}: free, {'with a token' if token else 'open to anyone here'}")


def _upload_fault(source: UploadConfig, error: ConfigError) -> Finding:
    where = source.token or ""
    if where.startswith("credential:"):
        said = f"{where}: given by systemd, and seen only in the unit"
        return Finding("warn", source.name, said, "`systemctl cat edge-ocr-worker` must have LoadCredential= for it")
    advice = "give it another address, or end what listens there: `ss -ltnp`"
    return Finding("fail", source.name, str(error), "put it there" if str(error).startswith(where or "\0") else advice)
