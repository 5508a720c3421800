"""Rights: the state is the agent's own and nobody else's to read, and so are keys, passwords and tokens."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from agent.check import whose
from agent.check.finding import Finding, Subject, is_root
from agent.check.sources import folder_finding
from agent.source_config import CameraConfig, UploadConfig

KEYS = Path("etc/edge-ocr/keys")
_OTHERS = stat.S_IRWXO


def look(subject: Subject) -> Iterator[Finding]:
    """Look at the state directory, the settings and the files of secrets."""
    yield _state(subject)
    if is_root():
        yield from _user(subject)
    place = subject.state_dir
    if place.is_dir() and (mode := place.stat().st_mode) & _OTHERS:
        said = f"{place}: mode {stat.S_IMODE(mode):03o}, everybody may look into it, and results are private"
        yield Finding("warn", "rights", said, f"chmod o= {place}")
    if subject.path.exists() and subject.path.stat().st_mode & stat.S_IWOTH:
        yield Finding("fail", "rights", f"{subject.path}: everybody may write it", f"chmod o-w {subject.path}")
    open_to_all = [path for path in _secrets(subject) if _is_open(path)]
    for path in open_to_all:
        yield Finding("warn", "rights", f"{path}: everybody may read this secret", f"chmod o= {path}")
    if not open_to_all:
        yield Finding("ok", "rights", "secrets are not open to everybody")


def _state(subject: Subject) -> Finding:
    place, user = subject.state_dir, whose.owner(subject.state_dir)
    if subject.runs("worker"):
        return Finding("ok", "state", f"{place}: a worker runs on it")
    return folder_finding("state", place, "state_dir must be a directory that the agent's user may write", user)


def _user(subject: Subject) -> Iterator[Finding]:
    """Say as root who the agent is, and that its state is not by mistake root's."""
    try:
        user = pwd.getpwnam("edge-ocr")
    except KeyError:
        return
    groups = sorted(grp.getgrgid(number).gr_name for number in os.getgrouplist(user.pw_name, user.pw_gid))
    place = subject.state_dir
    if place.is_dir() and place.stat().st_uid == 0:
        said = f"{place}: belongs to root, and the units run as edge-ocr"
        yield Finding("warn", "rights", said, f"where the units are used: chown -R edge-ocr:edge-ocr {place}")
    yield Finding("ok", "rights", f"user edge-ocr, groups {', '.join(groups)}")


def _secrets(subject: Subject) -> Iterator[Path]:
    config = subject.config
    named = [source.token for source in config.source if isinstance(source, UploadConfig)]
    named += [source.password for source in config.source if isinstance(source, CameraConfig)]
    if config.mqtt is not None:
        named.append(config.mqtt.password)
        yield from (Path(config.mqtt.key_file),) if config.mqtt.key_file else ()
    yield from (Path(name.removeprefix("file:")) for name in named if name and name.startswith("file:"))
    keys = subject.root / KEYS
    if keys.is_dir() and os.access(keys, os.R_OK):
        yield from sorted(keys.iterdir())


def _is_open(path: Path) -> bool:
    """Return whether everybody may read a file; folders above it may be closed all the same."""
    try:
        mode = path.stat().st_mode
        closed = any(not above.stat().st_mode & stat.S_IXOTH for above in path.absolute().parents)
    except OSError:
        return False
    return bool(stat.S_ISREG(mode) and mode & stat.S_IROTH and not closed)
