"""Where pages come from: one protocol, one file for each kind of source."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from agent.errors import FrameError, InputError
from agent.health import WorkerState
from agent.memory import Budget
from agent.page import Frame, PageResult

CHANGED = "changed"
"""Reason of a FrameError that is no verdict: the page was written to after it was claimed, and is offered again."""


class Capture(Protocol):
    """One page that a source has claimed for reading."""

    @property
    def key(self) -> str:
        """Return its stable identity: the same page has it again after a crash."""

    @property
    def source(self) -> str:
        """Return the name of its source."""

    @property
    def name(self) -> str:
        """Return what people know it by, such as a file name."""

    @property
    def page(self) -> int:
        """Return its number in its document, from 1; 0 where a picture is all there is."""

    @property
    def pages(self) -> int:
        """Return how many pages its document has, 0 where a picture is all there is."""

    @property
    def keep(self) -> bool:
        """Return whether its result goes into the outbox; false where only `Source.answer` is to have it."""

    def load(self, budget: Budget) -> Frame:
        """Return its pixels.

        Raises:
            FrameError: it cannot be read.
            InputError: it is gone or may not be opened.
        """


class Source(Protocol):
    """Gives pages one at a time; never holds more than one in memory."""

    name: str

    def poll(self) -> Capture | None:
        """Return the next page, claimed, or None; never waits."""

    def next_s(self) -> float:
        """Return the seconds until `poll` may have something although `fileno` stays silent."""

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors that are readable when something changed."""

    def trouble(self) -> str:
        """Return why it gives no pages although it should, in one line; "" when nothing is wrong."""

    def needs_mb(self) -> int:
        """Return what the processes it starts may have resident together, in MB; taken from the worker's limit."""

    def answer(self, capture: Capture, page: PageResult) -> None:
        """Take what was read on a page, not masked; called before `done`, and must not wait."""

    def done(self, capture: Capture, error: FrameError | InputError | None = None) -> str:
        """Put a page away: its result is kept, or it is refused. Returns where it lies now, "" when it is gone."""

    def retry(self, capture: Capture) -> None:
        """Offer a page again, a little later: nothing could be decided about it."""

    def reread(self, place: str) -> bool:
        """Offer a page that was put away at a place once more; false when it is no longer there."""

    def tidy(self) -> None:
        """Delete what is kept too long, a step at a time; called once in a while."""

    def close(self) -> None:
        """Give descriptors back. Claimed pages that are not done are offered again after the next start."""


@runtime_checkable
class Attentive(Protocol):
    """A source beside which somebody waits, who is told at once when no pages are taken."""

    def heed(self, state: WorkerState) -> None:
        """Take what the worker tells about itself; called at its start, at every change, and every few seconds."""
