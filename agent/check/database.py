"""The outbox's file and the SQLite that reads it. It is opened for reading alone, and not for long beside a worker."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from agent.check.finding import Finding, Subject
from agent.outbox import schema

READ_S = 2.0
BESIDE_S = 0.3
"""While the file is read nothing can be committed; a worker waits for so long at most."""
_STEPS = 20_000  # of SQLite's machine, between looks at the clock

_UNFIT = frozenset(("THREADSAFE=0", "OMIT_AUTOVACUUM", "OMIT_INTEGRITY_CHECK", "DEFAULT_LOCKING_MODE=1"))
"""SQLite's options without which the outbox cannot do what it does."""
_MEND = "start the agent: it carries over every row that is whole, and keeps the damaged file beside"


def look(subject: Subject) -> Iterator[Finding]:
    """Look at SQLite, then at the outbox."""
    yield _library()
    path = subject.state_dir / "outbox.db"
    if not path.exists():
        yield Finding("ok", "outbox", f"{path}: is made at the first start")
        return
    yield from _file(subject, path)
    aside = sorted(subject.state_dir.glob("outbox.corrupt-*.db"))
    if aside:
        advice = "the disk or its power fails: see `dmesg`; delete them when nobody needs them"
        yield Finding(
            "warn", "outbox", f"{len(aside)} damaged files were put aside, the last is {aside[-1].name}", advice
        )


def _library() -> Finding:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < schema.OLDEST_SQLITE:
        oldest = ".".join(map(str, schema.OLDEST_SQLITE))
        return Finding("fail", "sqlite", f"{version} is too old", f"the outbox needs {oldest}: use a newer system")
    with closing(sqlite3.connect(":memory:")) as connection:
        options = {row[0] for row in connection.execute("PRAGMA compile_options")}
    if bad := sorted(options & _UNFIT):
        return Finding("fail", "sqlite", f"{version} was built with {', '.join(bad)}", "use the SQLite of the system")
    return Finding("ok", "sqlite", f"{version}, rollback journal, every commit synchronised")


def _file(subject: Subject, path: Path) -> Iterator[Finding]:
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(100)
        schema.check_header(head)
    except (OSError, schema.Damaged) as error:
        advice = _MEND if isinstance(error, schema.Damaged) else "look at its rights and at the disk: `dmesg`"
        yield Finding("fail", "outbox", f"{path}: {error}", advice)
        return
    if head[18:20] == b"\2\2":
        advice = "another program set this; the agent sets it back at its start"
        yield Finding("warn", "outbox", f"{path}: has a write-ahead log", advice)
    if _was_cut_off(path) and not (subject.runs("worker") or subject.runs("uplink")):
        yield Finding("ok", "outbox", f"{path}: its last change was cut off, and is undone at the next start")
        return
    yield _whole(path, BESIDE_S if subject.runs("worker") else READ_S)


def _was_cut_off(path: Path) -> bool:
    """Tell whether there is a journal to be played back, which needs the right to write."""
    try:
        return path.with_name(f"{path.name}-journal").stat().st_size > 0
    except OSError:
        return False


def _whole(path: Path, limit_s: float) -> Finding:
    """Read the file whole, as far as that goes in the time."""
    until, megabytes = time.monotonic() + limit_s, path.stat().st_size >> 20
    late = False

    def stop() -> bool:
        nonlocal late
        late = time.monotonic() > until
        return late

    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=limit_s)) as connection:
            connection.set_progress_handler(stop, _STEPS)
            said = str(schema.pragma(connection, "quick_check(1)"))
    except sqlite3.OperationalError as error:
        if late:
            return Finding("ok", "outbox", f"{path}: {megabytes} MB; nothing wrong in {limit_s:g} s, the rest not read")
        return Finding("warn", "outbox", f"{path}: cannot be read now: {error}", "check again; then see `dmesg`")
    except sqlite3.DatabaseError as error:
        said = str(error)
    if said != "ok":
        return Finding("fail", "outbox", f"{path}: damaged: {said.splitlines()[0][:200]}", _MEND)
    return Finding("ok", "outbox", f"{path}: {megabytes} MB, whole")
