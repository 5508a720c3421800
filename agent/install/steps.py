"""Installing, going back and removing. Whatever fails takes back what was done before it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from agent import durable
from agent.errors import AgentError, BusyError, InstallError
from agent.install import package as packages
from agent.install import release as releases
from agent.install import services, system
from agent.install.package import Package
from agent.install.places import (
    BEFORE_SWITCHING,
    CACHE_DIR,
    CONFIG_DIR,
    CURRENT,
    DEB,
    DROP_INS,
    NAME,
    OPT,
    PREVIOUS,
    RELEASES,
    RUN,
    SETTINGS,
    STATE_DIR,
    SWITCHING,
    TARGET,
    USER,
    Manner,
)
from agent.install.services import States

Say = Callable[[str], None]


class Source(NamedTuple):
    """A package file.

    Attributes:
        path: the file.
        offset: bytes before its archive.
        package: what is in it.
    """

    path: Path
    offset: int
    package: Package


class Before(NamedTuple):
    """What ran before a switch.

    Attributes:
        current: the release; None on a box without one.
        previous: the one before.
        states: of its services.
        added: what the new release brings; on a box without one, all that is to run.
    """

    current: Path | None
    previous: Path | None
    states: States
    added: States

    @property
    def new_units(self) -> tuple[str, ...]:
        """Those that start with the system from now on."""
        return (*self.added.active, *self.added.once)


def install(source: Source, say: Say) -> None:
    """Install a package, upgrade to it, or mend what is there of it.

    Raises:
        AgentError: it cannot be done, and what was there before is there again; the message says why.
    """
    package = source.package
    system.require_machine(package)
    if system.installed_by_dpkg():
        raise InstallError("the Debian package of edge-ocr is installed: upgrade it with apt, or remove it first")
    with _alone():
        _recover(RUN, say)
        release, fresh = releases.find(package), False
        if release is None:
            release, fresh = _unpacked(source, say), True
        with _or_back() as undo:
            if fresh:
                undo.callback(packages.remove, release)
            _take_up(release, package, RUN, undo, say)
        releases.clear_away()


def configure(folder: Path, say: Say) -> None:
    """Take up a release that dpkg has unpacked.

    Raises:
        AgentError: it does not work here, and the old one runs on.
    """
    package = packages.verify(folder)
    system.require_machine(package)
    with _alone():
        _recover(DEB, say)
        releases.compile_all(folder, folder)
        with _or_back() as undo:
            _take_up(folder, package, DEB, undo, say)
        releases.clear_away()


def roll_back(say: Say) -> None:
    """Go back to the release before; it becomes the other one's "before". After a cut switch: to where that began.

    Raises:
        AgentError: there is none, or it does not run any more.
    """
    with _alone():
        manner = _manner()
        if _recover(manner, say):  # that was the way back
            services.start(services.look(services.installed(manner)))
            return
        release = releases.pointed_at(PREVIOUS)
        if release is None or release == releases.pointed_at(CURRENT):
            raise InstallError("there is no release before this one to go back to")
        package = packages.verify(release)
        with _or_back() as undo:
            _take_up(release, package, manner, undo, say, back=True)


def uninstall(say: Say, *, purge: bool) -> None:
    """Remove everything but settings and data; with purge these as well.

    Raises:
        InstallError: it was not installed so, or settings and data are on a disk of their own; nothing is removed. Or
            something cannot be removed; the message has it.
    """
    if system.installed_by_dpkg():
        raise InstallError(f"installed as a Debian package: apt-get {'purge' if purge else 'remove'} {NAME}")
    if purge:
        system.require_no_other_disk(CONFIG_DIR, STATE_DIR)
    with _alone():
        _take_away(RUN)
        left = system.remove_all((OPT, CACHE_DIR))
    if purge:
        left += _purge()
    if left:
        raise InstallError(f"removed, but for {', '.join(left)}: remove that yourself")
    kept = f"{CONFIG_DIR} and {STATE_DIR} stay, and drop-ins that show its keys to a unit"
    say("removed, with settings and data" if purge else f"removed; {kept}")


def leave() -> None:
    """Stop and take away what is not dpkg's, before that removes its files."""
    with _alone():
        _take_away(DEB)


def _take_away(manner: Manner) -> None:
    """Stop the services, and remove units and links."""
    _clear(manner)
    services.reload()
    for link in (CURRENT, PREVIOUS, SWITCHING, BEFORE_SWITCHING):
        link.unlink(missing_ok=True)


def _purge() -> list[str]:
    """Remove settings, data and user; return what is still there."""
    left = system.remove_all((CONFIG_DIR, STATE_DIR, *DROP_INS.glob("edge-ocr*.d")))
    system.run(("userdel", USER), check=False)
    system.run(("groupdel", "edge-ocr-upload"), check=False)
    return left


def _manner() -> Manner:
    return DEB if system.installed_by_dpkg() else RUN


def _recover(manner: Manner, say: Say) -> bool:
    """Go back to what a switch that was cut off had begun with; return whether there was one."""
    if not releases.recover():
        return False
    current = releases.pointed_at(CURRENT)
    say(f"an installation was cut off: going on from {current.name if current else 'nothing'}")
    try:
        _try_each((*_units_of(current, manner), services.reload), say)
    finally:
        releases.end_switch()
    return True


def _units_of(release: Path | None, manner: Manner) -> tuple[Callable[[], None], ...]:
    """Return the steps that make the units those of a release; of none there are none."""
    if release is None:
        return (partial(_clear, manner),)
    return partial(services.put, release, manner), partial(_drop_ins, release)


def _try_each(each: Iterable[Callable[[], None]], say: Say) -> None:
    """Take all steps back, whatever fails."""
    for step in each:
        try:
            step()
        except (AgentError, OSError) as error:
            say(f"on the way back: {error}")


def _unpacked(source: Source, say: Say) -> Path:
    system.require_space(source.package)
    place = releases.place_for(source.package)
    say(f"unpacking {source.package.bytes >> 20} MB to {place}")
    releases.unpack(source.path, source.offset, place, lambda share: None)
    return place


def _take_up(release: Path, package: Package, manner: Manner, undo: ExitStack, say: Say, *, back: bool = False) -> None:
    """Prepare the box for a release, try it, switch to it and start it; on the way back nothing is new."""
    _prepare(release, undo, say)
    say("trying it: settings and a page")
    releases.try_out(release, package)
    before = _before(release, back=back)
    undo.callback(_put_back, before, manner, say)
    releases.begin_switch(before.current, before.previous)
    _switch(release, package, before, manner)
    services.start(services.only(_to_run(before), services.names(release)))
    releases.end_switch()
    say(f"installed: {package.about}" + ("" if services.alive() else "; it starts with the system"))


def _to_run(before: Before) -> States:
    if before.current is None:
        return before.added
    if TARGET not in before.states.active:  # somebody has stopped the agent
        return before.states
    return services.both(before.states, before.added)


def _before(release: Path, *, back: bool) -> Before:
    current, previous = releases.pointed_at(CURRENT), releases.pointed_at(PREVIOUS)
    if current is None:
        return Before(None, previous, services.look(services.lasting(release)), services.of_new_box(release))
    added = States() if back else services.added(release, current)
    return Before(current, previous, services.look(services.lasting(current)), added)


def _prepare(release: Path, undo: ExitStack, say: Say) -> None:
    system.make_user(release / "systemd" / "edge-ocr.sysusers")
    system.make_directories(release / "systemd" / "edge-ocr.tmpfiles", say)
    if not SETTINGS.exists():
        content = (release / "agent.toml").read_bytes()
        undo.callback(_forget_settings, content)
        durable.put(SETTINGS, content)


def _forget_settings(content: bytes) -> None:
    """Take the first settings away, unless others have come meanwhile: from a stick, say."""
    if SETTINGS.exists() and SETTINGS.read_bytes() == content:
        SETTINGS.unlink()


def _switch(release: Path, package: Package, before: Before, manner: Manner) -> None:
    if before.current is not None and releases.is_other(before.current, package):
        releases.point(PREVIOUS, before.current)
    if before.current is None:
        services.remove_keyless()  # of a box that was removed, and its keys after that
    releases.point(CURRENT, release)
    services.put(release, manner)
    _drop_ins(release)
    services.enable(release, before.new_units, manner)
    manner.command.parent.mkdir(parents=True, exist_ok=True)
    if not manner.command.is_symlink():
        manner.command.symlink_to(CURRENT / "venv/bin/edge-ocr")
    releases.flush(manner.units, DROP_INS)
    services.reload()


def _put_back(before: Before, manner: Manner, say: Say) -> None:
    """Have everything as it was before a switch: as much of it as can be, and the links in any case."""
    old = before.current
    try:
        releases.point(CURRENT, old)
        releases.point(PREVIOUS, before.previous)
        say(f"going back to {old.name if old else 'what was there before'}")
        forget = tuple(partial(services.forget, unit) for unit in before.new_units)
        _try_each((*_units_of(old, manner), *forget, services.reload), say)
        for failure in services.starting(before.states):
            say(f"on the way back: {failure}")
    finally:
        releases.end_switch()


def _clear(manner: Manner) -> None:
    """Stop and take away what a first installation has put in place."""
    services.stop(services.look(services.installed(manner)).running)
    services.remove(manner)
    manner.command.unlink(missing_ok=True)


def _drop_ins(release: Path) -> None:
    releases.write_drop_ins(release, DROP_INS)


@contextmanager
def _or_back() -> Iterator[ExitStack]:
    """Take back what is put on the stack when something fails; nothing cuts that off."""
    with ExitStack() as undo:
        try:
            yield undo
        except BaseException:
            system.ignore_signals()
            raise
        undo.pop_all()


@contextmanager
def _alone() -> Iterator[None]:
    """Be the only installer at work.

    Raises:
        BusyError: another is.
    """
    os.umask(0o022)
    RELEASES.mkdir(parents=True, exist_ok=True)
    handle = os.open(OPT, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError("edge-ocr is being installed or removed already: wait until that has ended") from error
    finally:
        os.close(handle)
