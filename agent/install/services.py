"""The units of a release: put where systemd finds them, enabled, restarted, and waited for."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from agent.errors import InstallError
from agent.install.places import DROP_IN, DROP_INS, KEYS_DROP_IN, RUN, SETTINGS, Manner
from agent.install.system import run

_KINDS = (".service", ".socket", ".target", ".path", ".timer")
_STOP_S = 180.0  # TimeoutStopSec= of the worker, and some
_START_S = 400.0  # with its TimeoutStartSec=
STEADY_S = 3.0
"""A service that was ready and ends within this time did not come up."""


class States(NamedTuple):
    """How services were before.

    Attributes:
        active: those that ran.
        failed: those that have failed.
        once: those that run to their end before the others.
        trying: those that were about to run, or fail and are tried again and again: nobody waits for them.
    """

    active: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    trying: tuple[str, ...] = ()

    @property
    def running(self) -> tuple[str, ...]:
        """Those that have a process, or get one."""
        return (*self.active, *self.trying)


def alive() -> bool:
    """Return whether a systemd runs this system; in a chroot or while an image is built none does."""
    return os.path.isdir("/run/systemd/system") and shutil.which("systemctl") is not None


def names(release: Path) -> list[str]:
    """Return the units that a release has."""
    return sorted(path.name for path in (release / "systemd").glob("*") if path.suffix in _KINDS)


def runs_once(release: Path, unit: str) -> bool:
    """Return whether a unit ends by itself: an upgrade does not run it again, and waits for nothing of it."""
    return "\nType=oneshot\n" in (release / "systemd" / unit).read_text(encoding="utf-8")


def lasting(release: Path) -> list[str]:
    """Return the units of a release that stay when they are started."""
    return [unit for unit in names(release) if not runs_once(release, unit)]


def of_new_box(release: Path) -> States:
    """Return what is to run on a box where nothing of ours was."""
    units = to_start(release)
    once = tuple(unit for unit in units if runs_once(release, unit))
    return States(active=tuple(unit for unit in units if unit not in once), once=once)


def added(release: Path, before: Path) -> States:
    """Return what is to run of a release that the one before it did not have."""
    known = names(before)
    return only(of_new_box(release), [unit for unit in names(release) if unit not in known])


def both(one: States, other: States) -> States:
    """Return what is in either."""
    return States(*(tuple(dict.fromkeys((*here, *there))) for here, there in zip(one, other, strict=True)))


def look(units: Iterable[str]) -> States:
    """Return how units are now."""
    if not alive():
        return States()
    states = {unit: _state(unit) for unit in units}
    active, failed, trying = (
        tuple(unit for unit, state in states.items() if state in wanted)
        for wanted in (("active", "reloading"), ("failed",), ("activating",))
    )
    return States(active=active, failed=failed, trying=trying)


def only(states: States, units: Container[str]) -> States:
    """Return the states of some units alone."""
    return States(*(tuple(unit for unit in named if unit in units) for named in states))


def put(release: Path, manner: Manner) -> None:
    """Make a release's units those that systemd finds, and no other ones of ours."""
    manner.units.mkdir(parents=True, exist_ok=True)
    wanted = names(release)
    for unit in wanted:
        fresh = manner.units / f".{unit}.new"
        shutil.copyfile(release / "systemd" / unit, fresh)
        fresh.chmod(0o644)
        fresh.replace(manner.units / unit)
    for unit in installed(manner):
        if unit not in wanted:  # links that have it started stay, for the way back
            stop((unit,))
            (manner.units / unit).unlink()


def remove(manner: Manner) -> None:
    """Take all units of ours away, with what `edge-ocr units` has written; drop-ins for keys stay with the keys."""
    for unit in installed(manner):
        disable(unit)
        (manner.units / unit).unlink()
    for link in DROP_INS.glob("*.wants/edge-ocr*"):  # of units that a later release had no more
        disable(link.name)
    for drop_in in DROP_INS.glob(f"edge-ocr*.d/{DROP_IN}"):
        drop_in.unlink()
        _remove_empty(drop_in.parent)
    remove_keyless()
    if manner == RUN:  # what a package manager does not make
        _remove_empty(manner.units)
        _remove_empty(manner.units.parent)


def remove_keyless() -> None:
    """Take drop-ins away that name keys which are gone: a unit of the next installation would not start with them."""
    for drop_in in DROP_INS.glob(f"edge-ocr*.d/{KEYS_DROP_IN}"):
        if not _has_its_keys(drop_in):
            drop_in.unlink()
            _remove_empty(drop_in.parent)


def _has_its_keys(drop_in: Path) -> bool:
    lines = drop_in.read_text(encoding="utf-8", errors="replace").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("LoadCredential="))
    return all(os.path.exists(path) for path in named)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def installed(manner: Manner) -> list[str]:
    """Return the units of ours that systemd finds."""
    return sorted(path.name for path in manner.units.glob("edge-ocr*") if path.suffix in _KINDS)


def to_start(release: Path) -> list[str]:
    """Return the units of a first installation: all but sockets, and no uplink where the settings name no broker."""
    has_broker = any(
        line.split("#")[0].split() == ["[mqtt]"] for line in SETTINGS.read_text(encoding="utf-8").splitlines()
    )
    units = [unit for unit in names(release) if not unit.endswith(".socket") and any(_wanted_by(release, unit))]
    return [unit for unit in units if has_broker or unit != "edge-ocr-uplink.service"]


def _wanted_by(release: Path, unit: str) -> Iterator[str]:
    for line in (release / "systemd" / unit).read_text(encoding="utf-8").splitlines():
        if line.startswith("WantedBy="):
            yield from line.removeprefix("WantedBy=").split()


def enable(release: Path, units: Iterable[str], manner: Manner) -> None:
    """Have units start with the system, as `systemctl enable` does, which is not everywhere."""
    for unit in units:
        for target in _wanted_by(release, unit):
            link = DROP_INS / f"{target}.wants" / unit
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(manner.units / unit)


def disable(unit: str) -> None:
    """Take the links away that have a unit started."""
    for folder in list(DROP_INS.glob("*.wants")):
        link = folder / unit
        if link.is_symlink():  # one that leads nowhere any more, too, which glob() does not see
            link.unlink()
            _remove_empty(folder)


def forget(unit: str) -> None:
    """Have nothing of a unit left that came with a release and goes with it, not even that it has failed."""
    disable(unit)
    if alive():
        run(("systemctl", "reset-failed", unit), check=False)


def reload() -> None:
    """Have systemd read its units anew."""
    if alive():
        run(("systemctl", "daemon-reload"))


def stop(units: Iterable[str]) -> None:
    """Stop units; a page at hand is finished first."""
    given = list(units)
    if alive() and given:
        run(("systemctl", "stop", *given), check=False, timeout_s=_STOP_S)


def start(states: States) -> None:
    """Have those run that are to, with what is installed now, and wait until they are ready.

    Raises:
        InstallError: one does not get ready, or ends right after; the message has the last that it said.
    """
    for failure in starting(states):
        raise failure


def starting(states: States) -> Iterator[InstallError]:
    """Do the same, and give what fails; whoever asks for the next has the others started nevertheless."""
    if not alive():
        return
    if states.failed:
        run(("systemctl", "restart", "--no-block", *states.failed), check=False)
    for unit in states.once:
        run(("systemctl", "start", unit), check=False)
    services, sockets, targets = (
        [unit for unit in states.active if unit.endswith(kind)] for kind in (".service", ".socket", ".target")
    )
    stop((*services, *states.trying))  # a socket cannot be opened anew while its service has it
    ready = []
    for unit in (*sockets, *services):  # in turn, so that a message names the one
        if failure := _begin(unit):
            yield failure
        else:
            ready.append(unit)
    if states.trying:  # they did not run before either
        run(("systemctl", "start", "--no-block", *states.trying), check=False)
    for target in targets:  # one that is active would start what somebody has stopped
        if _state(target) != "active" and (failure := _begin(target)):
            yield failure
    yield from _staying([unit for unit in ready if unit in services])


def _begin(unit: str) -> InstallError | None:
    """Start a unit, a socket anew, and wait until it is ready; return why it is not."""
    try:
        run(("systemctl", "restart" if unit.endswith(".socket") else "start", unit), timeout_s=_START_S)
    except InstallError:
        return InstallError(f"{unit} does not get ready: {_last_words(unit)}")
    return None


def _staying(services: list[str]) -> Iterator[InstallError]:
    restarts = {unit: _restarts(unit) for unit in services}
    time.sleep(STEADY_S if services else 0)
    for unit in services:
        if _state(unit) != "active" or _restarts(unit) != restarts[unit]:
            yield InstallError(f"{unit} ends right after its start: {_last_words(unit)}")


def _state(unit: str) -> str:
    return run(("systemctl", "show", "-P", "ActiveState", unit), check=False).strip()


def _restarts(unit: str) -> str:
    return run(("systemctl", "show", "-P", "NRestarts", unit), check=False).strip()


def _last_words(unit: str) -> str:
    said = run(("journalctl", "--no-pager", "-o", "cat", "-n", "20", "-u", unit), check=False).splitlines()
    own = [line for line in said if line.startswith("edge-ocr:")]
    return (own or said or [f"see journalctl -u {unit}"])[-1]
