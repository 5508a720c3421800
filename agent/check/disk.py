"""Disks below the state and the sources: what is free against what the settings let them take, and how they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent.check.finding import Finding, Level, Subject, first_line
from agent.source_config import FolderConfig

MB = 1 << 20
FEW_FILES = 2000
"""Inodes: a page takes a handful of files for a moment, and one for as long as it is kept."""
FLASH_FREE = 0.1
"""Flash memory of which less is free wears out and stalls, as there is little room for moving blocks."""

_LOCKS = "put state_dir on a disk of this machine: SQLite relies on locks that network file systems do not keep"
_KINDS: dict[str, tuple[Level, str, str]] = {
    **dict.fromkeys(("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "vboxsf"), ("fail", "", _LOCKS)),
    **dict.fromkeys(("vfat", "exfat", "msdos"), ("warn", "", "use a file system with rights and a journal, as ext4")),
    "tmpfs": ("warn", ", in memory", "results that were not sent are lost when the power is: use a disk"),
    "overlay": ("warn", ", of a container", "it is gone when the container is: mount a volume there"),
    "ramfs": ("warn", ", in memory", "results that were not sent are lost when the power is: use a disk"),
}


class Mount(msgspec.Struct, frozen=True):
    """A mounted file system: its place, kind, and what it is mounted from."""

    place: Path
    kind: str
    source: str


class Claim(msgspec.Struct, frozen=True):
    """What the agent may take in a place, at most, in MB."""

    place: Path
    most_mb: int
    state: bool = False


def look(subject: Subject) -> Iterator[Finding]:
    """Look at each file system once."""
    by_device: dict[int, list[Claim]] = {}
    for claim in _claims(subject):
        if (there := _nearest(claim.place)) is not None:
            by_device.setdefault(there.stat().st_dev, []).append(claim)
    for claims in by_device.values():
        yield from _look_at(subject, claims)
    yield from worn(subject.root)


def _claims(subject: Subject) -> Iterator[Claim]:
    config = subject.config
    kept = sum(source.keep_mb for source in config.source if not isinstance(source, FolderConfig))
    yield Claim(subject.state_dir, config.outbox.max_mb + config.outbox.ballast_mb + kept, state=True)
    for source in config.source:
        if isinstance(source, FolderConfig):
            yield Claim(Path(source.path), source.keep_mb)


def _nearest(path: Path) -> Path | None:
    """Return the path, or what is there of those above it."""
    return next((there for there in (path.absolute(), *path.absolute().parents) if there.exists()), None)


def _look_at(subject: Subject, claims: list[Claim]) -> Iterator[Finding]:
    place = _nearest(claims[0].place)
    assert place is not None
    stat, mount = os.statvfs(place), mount_of(place)
    about, holds_state = "disk", any(claim.state for claim in claims)
    if holds_state and mount.kind in _KINDS:
        level, how, advice = _KINDS[mount.kind]
        yield Finding(level, about, f"{place}: {mount.kind}{how}", advice)
    elif holds_state and mount.kind.startswith("fuse"):
        yield Finding("warn", about, f"{place}: {mount.kind}", "whether its locks hold is not known: use a disk")
    if stat.f_flag & os.ST_RDONLY:
        advice = f"mount -o remount,rw {mount.place}; the system mounts a disk so when it fails: see `dmesg`"
        yield Finding("fail", about, f"{mount.place}: mounted read-only", advice)
        return
    yield _space(subject, claims, stat, mount)
    if stat.f_files and stat.f_favail < FEW_FILES:
        level = "fail" if stat.f_favail == 0 else "warn"
        yield Finding(level, about, f"{mount.place}: {stat.f_favail} more files (inodes)", "delete files nobody needs")


def _space(subject: Subject, claims: list[Claim], stat: os.statvfs_result, mount: Mount) -> Finding:
    """Compare what is free with what is needed now, and with what the settings let it grow to."""
    free, whole = (blocks * stat.f_frsize // MB for blocks in (stat.f_bavail, stat.f_blocks))
    least = subject.config.outbox.min_free_mb
    most = sum(claim.most_mb for claim in claims)
    said = f"{mount.place} ({mount.kind}): {free} of {whole} MB free; the settings let the agent take {most} MB there"
    if free < least and any(claim.state for claim in claims):
        return Finding("fail", "disk", said, f"no page is taken below outbox.min_free_mb = {least}: free some space")
    if most + least > free + _taken_mb(claims):
        advice = "lower outbox.max_mb and keep_mb of the sources, or free some space: the disk fills up before the caps"
        return Finding("warn", "disk", said, advice)
    if mount.source.startswith("/dev/mmcblk") and free < whole * FLASH_FREE:
        return Finding("warn", "disk", said, "a memory card that is nearly full wears out: free some space")
    return Finding("ok", "disk", said)


def _taken_mb(claims: list[Claim]) -> int:
    """Return what the agent has taken of its caps: the outbox, and pages that were put away."""
    folders: list[Path] = []
    for claim in claims:
        kept = claim.place.glob("sources/*") if claim.state else (claim.place,)
        folders += [folder / name for folder in kept for name in ("done", "failed")]
        folders += [claim.place] if claim.state else []
    return sum(map(_bytes_in, folders)) // MB


def _bytes_in(folder: Path) -> int:
    with suppress(OSError), os.scandir(folder) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries if entry.is_file())
    return 0


def mount_of(path: Path) -> Mount:
    """Return the mount that a path is on."""
    real, best = Path(os.path.realpath(path)), Mount(Path("/"), "unknown", "")
    with suppress(OSError):
        for row in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            before, _, behind = row.partition(" - ")
            place = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), before.split()[4]))
            if place in (real, *real.parents) and len(place.parts) >= len(best.place.parts):
                best = Mount(place, *behind.split()[:2])
    return best


def worn(root: Path) -> Iterator[Finding]:
    """Say when built-in flash (eMMC) is near its end: life_time counts tenths, pre_eol_info the spare blocks' state."""
    for card in sorted((root / "sys/bus/mmc/devices").glob("*")):
        used = [
            int(word, 16) for word in first_line(card / "life_time").split() if re.fullmatch("0x[0-9a-fA-F]+", word)
        ]
        spare = first_line(card / "pre_eol_info")
        if max(used, default=0) >= 10 or spare in ("0x02", "0x03"):
            said = f"{card.name}: flash memory near the end of its life ({max(used, default=0) * 10} percent used)"
            yield Finding("warn", "disk", said, "keep a copy of the settings, and change the card or the board soon")
