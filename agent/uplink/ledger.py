"""What became of rows that were sent: noted in memory, recorded in groups, and which of them still lack a receipt."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence

from agent.clock import Clock
from agent.outbox import Marks, Outbox
from agent.protocol import Range, ranges

Key = tuple[str, int]
"""Epoch and sequence number of a row."""

GROUP_ROWS = 100
GROUP_S = 0.2
"""Marks are recorded together: so many, or after so long."""
WAITING_ROWS = 1000
"""So many rows without a receipt are followed."""


class Ledger:
    """Marks of rows. Those lost before they are recorded only have rows sent twice, and stored once.

    A receipt counts for rows that were sent, as far as is known here: nobody can confirm, or refuse, what was not.
    """

    def __init__(self, outbox: Outbox, clock: Clock) -> None:
        """Make an empty ledger for an outbox."""
        self._outbox = outbox
        self._clock = clock
        self._brokered: set[Key] = set()
        self._stored: set[Key] = set()
        self._refused: dict[Key, str] = {}
        self._again: set[Key] = set()
        self._since: float | None = None
        self._waiting: dict[Key, float] = {}  # since when, oldest first
        self._unsure: dict[Key, None] = {}  # sent, and the link broke before it was acknowledged; oldest first

    @property
    def waiting(self) -> int:
        """How many rows are followed that have no receipt."""
        return len(self._waiting)

    @property
    def unrecorded(self) -> int:
        """How many rows have a mark that is not recorded."""
        return len(self._brokered) + len(self._stored) + len(self._refused) + len(self._again)

    def busy(self) -> set[Key]:
        """Return rows that are not to be sent, although the outbox does not know yet."""
        return self._brokered | self._stored | self._refused.keys()

    # -------------------------------------------------------------------------------------------------- notes

    def unsure(self, keys: Iterable[Key]) -> None:
        """Note that rows were sent and it is not known whether they arrived."""
        self._unsure.update(dict.fromkeys(keys))
        for key in list(self._unsure)[:-WAITING_ROWS]:
            del self._unsure[key]

    def brokered(self, key: Key) -> None:
        """Note that the broker took a row, which now waits for its receipt."""
        self._brokered.add(key)
        self._waiting[key] = self._clock.monotonic()
        self._touch()

    def confirmed(self, epoch: str, runs: Iterable[Range], flying: Iterable[Key]) -> set[Key]:
        """Note that a collector has stored rows; returns which of those that were sent.

        Args:
            epoch: of the rows.
            runs: the rows.
            flying: rows on their way, whose receipt may come before their acknowledgement.
        """
        within = covers(epoch, merge(runs))
        keys = {key for key in (*self._waiting, *self._unsure, *flying) if within(key)}
        self.stored(keys)
        return keys

    def stored(self, keys: set[Key]) -> None:
        """Note that rows are done with."""
        if keys:
            self._let_go(keys)
            self._stored |= keys
            self._touch()

    def knows(self, key: Key) -> bool:
        """Tell whether a row was sent and its fate is not known."""
        return key in self._waiting or key in self._unsure

    def refused(self, key: Key, reason: str) -> None:
        """Note that a row is put aside for good."""
        self._let_go({key})
        self._refused[key] = reason
        self._touch()

    def again(self, keys: Iterable[Key]) -> int:
        """Note that those of the rows that still wait are to be sent once more; returns how many."""
        missing = {key for key in keys if key in self._waiting}
        self._let_go(missing)
        self.unsure(missing)  # a slow receipt may come before they are sent
        self._again |= missing
        if missing:
            self._touch()
        return len(missing)

    def _let_go(self, keys: set[Key]) -> None:
        """Forget other marks of rows whose fate is known now: one write for a row instead of two."""
        for key in keys:
            self._waiting.pop(key, None)
            self._unsure.pop(key, None)
        self._brokered -= keys
        self._again -= keys

    def _touch(self) -> None:
        if self._since is None:
            self._since = self._clock.monotonic()

    # ------------------------------------------------------------------------------------------------ recording

    def due_at(self) -> float:
        """Return when notes are to be recorded at the latest, by the monotonic clock."""
        return float("inf") if self._since is None else self._since + GROUP_S

    def record(self, *, at_once: bool = False) -> None:
        """Record what was noted, when enough has come together.

        Raises:
            OutboxError: it could not be recorded; it is kept.
        """
        if self._since is None:
            return
        if not at_once and self.unrecorded < GROUP_ROWS and self._clock.monotonic() < self._since + GROUP_S:
            return
        self._outbox.record(
            Marks(
                brokered=tuple(self._brokered),
                stored=by_epoch(self._stored),
                refused=tuple((*key, reason) for key, reason in self._refused.items()),
                again=tuple(self._again),
            )
        )
        for notes in (self._brokered, self._stored, self._refused, self._again):
            notes.clear()
        self._since = None

    # ------------------------------------------------------------------------------------------------- receipts

    def load(self) -> None:
        """Follow the rows that were brokered in an earlier life, as if they had been so now.

        Raises:
            OutboxError: the outbox gives no answer now.
        """
        now = self._clock.monotonic()
        busy = self.busy()
        for epoch, runs in self._outbox.waiting(WAITING_ROWS).items():
            for first, last in runs:
                for key in ((epoch, seq) for seq in range(first, last + 1)):
                    if key not in busy:
                        self._waiting.setdefault(key, now)

    def questions(self) -> dict[str, tuple[Range, ...]]:
        """Return the rows that wait, by epoch."""
        return by_epoch(self._waiting)

    def overdue(self, patience_s: float) -> frozenset[Key]:
        """Return rows that have waited for so long."""
        until = self._clock.monotonic() - patience_s
        found = []
        for key, since in self._waiting.items():
            if since > until:
                break
            found.append(key)
        return frozenset(found)


def by_epoch(keys: Iterable[Key]) -> dict[str, tuple[Range, ...]]:
    """Return the runs of rows, by epoch."""
    epochs: dict[str, list[int]] = {}
    for epoch, seq in keys:
        epochs.setdefault(epoch, []).append(seq)
    return {epoch: ranges(seqs) for epoch, seqs in epochs.items()}


def merge(runs: Iterable[Range]) -> tuple[Range, ...]:
    """Return runs in order, those that touch or overlap made one."""
    merged: list[Range] = []
    for first, last in sorted(runs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def covers(epoch: str, runs: Sequence[Range]) -> Callable[[Key], bool]:
    """Return what tells whether a row is of an epoch and in one of its runs, which are in order."""
    starts = [first for first, _ in runs]

    def within(key: Key) -> bool:
        place = bisect.bisect_right(starts, key[1]) - 1
        return key[0] == epoch and place >= 0 and key[1] <= runs[place][1]

    return within
