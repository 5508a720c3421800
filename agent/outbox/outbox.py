"""Outbox: results wait here, on the disk, until the centre has stored them. The worker fills it, the uplink empties it.

Accepted means that `accept` has returned: the row was committed with full synchronisation. Each method is one
transaction, or says otherwise, and raises OutboxError when nothing can be done for now.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from agent.clock import Clock
from agent.config import OutboxConfig
from agent.errors import FrameError, InputError, OutboxError, readable
from agent.outbox import backlog, disk, life, notes, retention, schema, verdicts
from agent.outbox.database import Database
from agent.outbox.life import Life
from agent.outbox.rows import EventRow, Finished, Intake, Key, Marks, Request, Row, Stats
from agent.outbox.schema import PAGE_BYTES, Damaged
from agent.protocol import MAX_RESULT_BYTES, Range

__all__ = ["EventRow", "Finished", "Intake", "Marks", "Outbox", "Request", "Row", "Stats"]

_MOST_BYTES = MAX_RESULT_BYTES - 4096  # the message around a result has room then
_SPARE_PAGES = 256  # so that marks can be recorded where results find no room
_OLDER_SHARE = 0.25
_CHECK_S = 600.0
_BATCHES = 20
_DAY_MS = 86_400_000


class Outbox:
    """Durable rows in SQLite. One for a process, and one thread."""

    def __init__(
        self,
        state_dir: Path,
        config: OutboxConfig,
        *,
        role: Literal["worker", "uplink", "tool"] = "tool",
        clock: Clock | None = None,
    ) -> None:
        """Open the outbox of a directory, or make it.

        A worker and an uplink start although the disk fails, and go on as soon as it does not; they replace a damaged
        file. A tool does neither.

        Raises:
            InputError: the directory cannot be made or opened.
            OutboxError: the file cannot be read (role "tool").
            ConfigError: a much newer program made it.
        """
        self._config = config
        self._clock = clock or Clock()
        self._role = role
        self._directory = state_dir
        self._most_pages = (config.max_mb << 20) // PAGE_BYTES
        self._spare = 0 if role == "worker" else _SPARE_PAGES
        self._begun: set[str] = set()
        self._owed = 0.0
        self._needed = 0
        self._full = self._low = False
        self._check_at = float("-inf")
        self._ballast = disk.Ballast(state_dir / "outbox.ballast", config.ballast_mb << 20, config.min_free_mb << 20)
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            pages = self._most_pages + self._spare
            settle = partial(life.settle, clock=self._clock)
            self._db = Database(state_dir, pages, settle, ballast=self._ballast, clock=self._clock)
        except OSError as error:
            raise InputError(f"{state_dir}: {error.strerror}: state_dir must be a directory of this user") from error
        self._db.repairs = role != "tool"
        self._db.spends_ballast = role != "worker"
        try:
            self._db.run(lambda connection: None, write=role != "tool")
        except BaseException as error:
            if role == "tool" or not isinstance(error, OutboxError):
                self._db.close()
                raise

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    def _moment(self, connection: sqlite3.Connection) -> Life:
        return life.moment(schema.read_meta(connection), self._clock)

    # -------------------------------------------------------------------------------------------------- worker

    def held(self) -> str:
        """Return "" or why no page may be taken now: "failing", "readonly", "disk", "paused" or "full".

        With `when_full = "drop_oldest"` room is made instead of "full". Never raises OutboxError.
        """
        try:
            if self._db.trouble and self._db.due():
                self._db.run(lambda connection: schema.write_meta(connection, "tried", str(self._clock.wall_ms())))
            if self._db.trouble:
                return self._db.trouble
            paused, room = self._db.run(self._look, write=False)
            if self._is_low():
                return "disk"
            if self._is_full(room) and not paused and self._config.when_full == "drop_oldest":
                self._make_room()
        except OutboxError:
            return self._db.trouble or "failing"
        return "paused" if paused else "full" if self._full else ""

    def _look(self, connection: sqlite3.Connection) -> tuple[bool, int]:
        return bool(schema.read_meta(connection).get("paused")), self._db.room(connection) - self._spare

    def _is_low(self) -> bool:
        """Tell whether the disk is nearly full; once it is, a quarter more must be free until it is not."""
        least = self._config.min_free_mb << 20
        self._low = disk.free_bytes(self._directory) < least + (least // 4 if self._low else 0)
        return self._low

    def _is_full(self, room: int) -> bool:
        """Tell whether the file is nearly full; once it is, room is wanted for twice that, or for what was refused."""
        least = max(8, self._most_pages // 32)
        if self._db.cramped or self._full:
            least = max(2 * least, min(self._needed + least, self._most_pages // 2))
        self._full = room < least
        if not self._full:
            self._db.cramped = False
        return self._full

    def _make_room(self) -> None:
        while self._full and self._db.run(self._drop_oldest):
            self._is_full(self._db.run(self._look, write=False)[1])

    def _drop_oldest(self, connection: sqlite3.Connection) -> int:
        dropped = retention.drop_oldest(connection, self._clock.wall_ms())
        return dropped or retention.forget_verdicts(connection, 1 << 62, 0)

    def intake(self, key: str) -> Intake | None:
        """Return what is known about a page."""
        return self._db.run(lambda connection: verdicts.find(connection, key), write=False)

    def begin(self, key: str, source: str, name: str) -> int:
        """Note that reading a page begins, before native code sees it.

        Returns:
            How often it began in processes that ended before there was a verdict, and this time. Beginning again in the
            same process does not count: the page has not ended that one.
        """
        again = key in self._begun
        attempts = self._db.run(
            lambda connection: verdicts.begin(
                connection, key, self._moment(connection), source=source, name=name, again=again
            )
        )
        self._begun.add(key)
        return attempts

    def accept(self, key: str, result: bytes) -> int | None:
        """Keep a page's result, and its verdict with it.

        Args:
            key: of the page.
            result: JSON, masked already.

        Returns:
            The row's number; None when the page was accepted before.

        Raises:
            FrameError: the result is larger than a message may be.
        """
        if len(result) > _MOST_BYTES:
            raise FrameError("large", f"the result has {len(result)} bytes; a message takes {_MOST_BYTES}")
        try:
            seq = self._db.run(lambda connection: self._accept(connection, key, result))
        except OutboxError:
            self._needed = len(result) // PAGE_BYTES if self._db.cramped else 0
            raise
        self._begun.discard(key)
        return seq

    def _accept(self, connection: sqlite3.Connection, key: str, result: bytes) -> int | None:
        known = verdicts.find(connection, key)
        meta = schema.read_meta(connection)
        moment = life.moment(meta, self._clock)
        verdicts.judge(connection, key, moment, status=verdicts.ACCEPTED, reason="")
        if known is not None and known.status == "accepted":
            return None
        if connection.execute("SELECT 1 FROM outbox WHERE key = ?", (key,)).fetchone():
            return None
        if "epoch" not in meta:
            raise Damaged("the epoch is not known")
        return backlog.insert(connection, meta["epoch"], key, result, moment)

    def fail(self, key: str, reason: str) -> None:
        """Note that a page is refused for good, and why in one word."""
        self._judge(key, status=verdicts.FAILED, reason=readable(reason))
        self._begun.discard(key)

    def forget(self, key: str) -> None:
        """Forget that reading a page began, whose result is not to be kept."""
        self._db.run(lambda connection: verdicts.forget(connection, key))
        self._begun.discard(key)

    def place(self, keys: tuple[str, ...], path: str) -> None:
        """Note where the file of pages lies now; they must have begun."""
        place = readable(path)

        def write(connection: sqlite3.Connection) -> None:
            for key in keys:
                verdicts.judge(connection, key, self._moment(connection), place=place)

        self._db.run(write)

    def _judge(self, key: str, **changes: schema.Value) -> None:
        self._db.run(lambda connection: verdicts.judge(connection, key, self._moment(connection), **changes))

    def requests(self) -> tuple[Request, ...]:
        """Return the commands that the uplink has handed over, oldest first."""
        return self._db.run(notes.requests, write=False)

    def finish(self, request_id: str, ok: bool, detail: str) -> None:
        """Note what became of a command."""
        self._db.run(lambda connection: notes.finish(connection, request_id, ok, detail))

    # -------------------------------------------------------------------------------------------------- uplink

    def pending(self, limit: int, *, fresh_s: float, skip: Collection[Key] = ()) -> list[Row]:
        """Return rows to be sent. Each is as it was accepted; one that is not is put aside as dead, reason "damaged".

        Args:
            limit: as many at most; fewer when they are large.
            fresh_s: rows younger than this come first; a quarter of all that are given, over several calls, are older
                ones. Both by number.
            skip: rows that are on their way.
        """
        skipped = frozenset(skip)
        self._owed = min(self._owed + limit * _OLDER_SHARE, limit)

        def work(connection: sqlite3.Connection) -> tuple[list[Row], list[int], int]:
            moment = self._moment(connection)
            border = backlog.fresh_from(connection, moment, int(fresh_s * 1000))
            fresh, old = backlog.choose(connection, limit, border, int(self._owed), skipped)
            return (*backlog.read(connection, (*fresh, *old), moment), len(old))

        rows, damaged, older = self._db.run(work, write=False)
        self._owed = max(0.0, self._owed - older)
        if damaged:
            self._db.run(lambda connection: self._bury(connection, damaged))
            self._db.suspect()
        return rows

    def _bury(self, connection: sqlite3.Connection, numbers: list[int]) -> None:
        if count := backlog.bury(connection, numbers):
            detail = f"{count} results are not what was accepted and are not sent: look at the disk"
            notes.tell(connection, "alarm", self._clock.wall_ms(), detail)

    def record(self, marks: Marks) -> None:
        """Record what became of rows that were sent; stored rows are deleted, or kept for `keep_stored_days`.

        Marks of rows that are gone, or further along, change nothing. More than 500 stored rows take more transactions.
        """
        while self._db.run(lambda connection, now=marks: self._mark(connection, now)):  # type: ignore[misc]
            marks = Marks(stored=marks.stored)

    def _mark(self, connection: sqlite3.Connection, marks: Marks) -> bool:
        keep = self._config.keep_stored_days > 0
        return backlog.mark(connection, marks, self._moment(connection), keep_stored=keep)

    def waiting(self, limit: int) -> dict[str, tuple[Range, ...]]:
        """Return the oldest rows at the broker that have no receipt: runs, by epoch."""
        return self._db.run(lambda connection: backlog.waiting(connection, limit), write=False)

    def events(self, limit: int) -> list[EventRow]:
        """Return what the centre should know, oldest first."""
        return self._db.run(lambda connection: notes.events(connection, limit), write=False)

    def event_sent(self, ids: Iterable[int]) -> None:
        """Forget events that were sent."""
        numbers = tuple(ids)
        self._db.run(lambda connection: notes.forget(connection, numbers))

    def add_event(self, kind: Literal["gap", "salvage", "alarm"], detail: str) -> None:
        """Note something that the centre should know; the same is noted once until it is sent."""
        self._db.run(lambda connection: notes.tell(connection, kind, self._clock.wall_ms(), detail))

    def ask(self, request_id: str, verb: str, argument: str) -> bool:
        """Hand a command to the worker; false when it is known already and must not be carried out again."""
        request = Request(request_id, verb, argument)
        return self._db.run(lambda connection: notes.ask(connection, self._moment(connection), request))

    def answers(self) -> tuple[Finished, ...]:
        """Return finished commands whose answer is to be sent."""
        return self._db.run(notes.answers, write=False)

    def answered(self, ids: Iterable[str]) -> None:
        """Note that answers were sent."""
        names = tuple(ids)
        self._db.run(lambda connection: notes.answered(connection, names))

    def next_session(self) -> int:
        """Return a number larger than any before."""

        def work(connection: sqlite3.Connection) -> int:
            last = schema.read_meta(connection).get("session", "0")
            schema.write_meta(connection, "session", str(int(last) + 1))
            return int(last) + 1

        return self._db.run(work)

    # ---------------------------------------------------------------------------------------------------- both

    def stats(self) -> Stats:
        """Return the outbox in numbers."""
        return self._db.run(self._stats, write=False)

    def _stats(self, connection: sqlite3.Connection) -> Stats:
        meta = schema.read_meta(connection)
        pending, brokered, stored, dead = backlog.counts(connection)
        oldest_ms = backlog.oldest_ms(connection)
        room = self._db.room(connection) - self._spare
        kinds = [row[0] for row in connection.execute("SELECT kind FROM event").fetchall()]
        alarms = {
            "full": self._is_full(room),
            "disk": self._is_low(),
            "salvage": bool(self._db.put_aside()),
            "gap": "gap" in kinds,
            "dead": dead > 0,
        }
        if self._db.trouble:
            alarms[self._db.trouble] = True
        now_ms = life.moment(meta, self._clock).life_ms
        return Stats(
            pending=pending,
            brokered=brokered,
            stored=stored,
            dead=dead,
            oldest_s=0.0 if oldest_ms is None else max(0, now_ms - oldest_ms) / 1000,
            bytes=(self._most_pages - room) * PAGE_BYTES,
            max_bytes=self._most_pages * PAGE_BYTES,
            epoch=meta.get("epoch", ""),
            events=len(kinds),
            alarms=tuple(name for name, there in alarms.items() if there),
            paused=bool(meta.get("paused")),
            level=meta.get("level", ""),
        )

    def set_paused(self, paused: bool) -> None:
        """Take no more pages, or take them again; over restarts too."""
        self._db.run(lambda connection: schema.write_meta(connection, "paused", "1" if paused else ""))

    def set_level(self, level: str) -> None:
        """Change the least severe log lines of worker and uplink; "" for the configuration's."""
        self._db.run(lambda connection: schema.write_meta(connection, "level", level))

    def tidy(self) -> None:
        """Let go of what is kept no longer, in many small transactions; to be called about once a minute."""
        life_ms = self._db.run(partial(life.save, clock=self._clock))
        stored_ms = life_ms - int(self._config.keep_stored_days * _DAY_MS)
        known_ms = life_ms - int(self._config.remember_days * _DAY_MS)
        most_bytes = self._most_pages * PAGE_BYTES
        self._in_batches(lambda connection: retention.delete_stored(connection, stored_ms))
        self._in_batches(lambda connection: retention.forget_verdicts(connection, known_ms, most_bytes))
        self._db.run(lambda connection: retention.forget_requests(connection, life_ms))
        self._in_batches(retention.shrink)
        if self._clock.monotonic() >= self._check_at:
            self._check_at = self._clock.monotonic() + _CHECK_S
            self._db.run(retention.check, write=False)
        if self._role != "tool":
            self._ballast.keep()

    def _in_batches(self, work: Callable[[sqlite3.Connection], int]) -> None:
        for _ in range(_BATCHES):
            if self._db.run(work) < retention.BATCH:
                return

    # ---------------------------------------------------------------------------------------------------- tool

    def rows(self, state: int | None = None, limit: int | None = None, after_seq: int = 0) -> Iterator[Row]:
        """Yield rows by number, of one state or all, read in small transactions.

        Of a row that is not as it was accepted only the number is shown, and the reason "damaged".
        """
        left = 1 << 62 if limit is None else limit
        while left > 0 and (some := self._listed(state, min(left, 100), after_seq)):
            yield from some
            left -= len(some)
            after_seq = some[-1].seq

    def _listed(self, state: int | None, most: int, after_seq: int) -> list[Row]:
        return self._db.run(
            lambda connection: backlog.listed(connection, after_seq, most, state, self._moment(connection)), write=False
        )

    def row(self, seq: int) -> Row | None:
        """Return a row by its number."""
        found = self._listed(None, 1, seq - 1)
        return found[0] if found and found[0].seq == seq else None

    def retry(self, seqs: Iterable[int] | None = None) -> int:
        """Make dead rows pending again, some or all; returns how many."""
        numbers = None if seqs is None else tuple(seqs)
        return self._db.run(lambda connection: backlog.revive(connection, numbers))
