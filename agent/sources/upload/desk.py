"""The desk between connections, each a thread, and the worker: tickets of the pages that somebody waits for.

A file that has come whole is renamed into a claim of the source's folder: from then on a killed worker finds it again.
Claims say by their names what they are:

    keyed-TOKEN-DIGEST   under an Idempotency-Key, that a repeated request must meet again
    loose-RANDOM         without one
    once-RANDOM          its result is not kept; nobody waits for it after a restart
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from agent.durable import synchronize
from agent.sources.upload.answers import Answers, Kept, Outcome
from agent.sources.upload.body import Arrived
from agent.sources.upload.problems import Problem, not_now

KEYED, LOOSE, ONCE = "keyed-", "loose-", "once-"
_KEYED_CLAIM = re.compile(KEYED + r"([0-9a-f]{32})-([0-9a-f]{16})\Z")


class Ticket:
    """One file that is to be read.

    Attributes:
        claim: where it lies.
        origin: where it lay first: part of its key.
        token: of its Idempotency-Key, or "".
        digest: beginning of its sha256.
        keep: its result goes into the outbox.
        promised: somebody was told that it will be read, though not answered yet.
        waiting: requests that wait for it.
        outcome: what they get; None while it is not known.
        over: set when it is, or when there will be none.
    """

    def __init__(self, claim: str, token: str, digest: str, *, keep: bool, promised: bool = False) -> None:
        self.claim = self.origin = claim
        self.token = token
        self.digest = digest
        self.keep = keep
        self.promised = promised
        self.waiting = 0
        self.outcome: Outcome | None = None
        self.over = threading.Event()


class Desk:
    """Takes files in, and hands outcomes out."""

    def __init__(self, claims: Path, answers: Answers, max_waiting: int) -> None:
        """Make a desk; what a killed worker left is taken up.

        Args:
            claims: the folder of claims.
            answers: outcomes of before.
            max_waiting: files at the same time.

        Raises:
            OSError: the folder cannot be made or listed.
        """
        self._claims = claims
        self._answers = answers
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._stopped = False
        self._arrived: deque[tuple[str, str]] = deque()
        self._tickets: dict[str, Ticket] = {}
        self._by_token: dict[str, Ticket] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        claims.mkdir(mode=0o700, parents=True, exist_ok=True)
        for claim in os.listdir(claims):
            if claim.startswith(ONCE):
                shutil.rmtree(claims / claim, ignore_errors=True)
            elif (keyed := _KEYED_CLAIM.match(claim)) and os.listdir(claims / claim):
                self._add(Ticket(claim, keyed[1], keyed[2], keep=True, promised=True))

    def fileno(self) -> int:
        """Return a descriptor that is readable when files came."""
        return self._wake

    @property
    def waiting(self) -> int:
        """How many files wait or are being read."""
        return len(self._tickets)

    def check_room(self) -> None:
        """See that another file would be taken.

        Raises:
            Problem: not now.
        """
        if self._stopped:
            raise not_now("stopping", "the worker ends", 2)
        if self.waiting >= self._max_waiting:
            raise not_now("busy", f"{self.waiting} files wait already", 1)

    # --------------------------------------------------------------------------------------------- connections

    def admit(self, arrived: Arrived, token: str, *, keep: bool) -> Ticket:
        """Take a file in, or find the ticket of one that came under the same token before.

        Args:
            arrived: the file; it is moved or deleted.
            token: 32 hexadecimal digits of the Idempotency-Key, or "".
            keep: its result is to go into the outbox.

        Raises:
            Problem: not now, or the token was used for another content.
        """
        try:
            with self._lock:
                ticket = self._known(arrived, token, keep) if token else None
                if ticket is None:
                    self.check_room()
                    ticket = self._take(arrived, token, keep)
                ticket.waiting += 1
                return ticket
        finally:
            with suppress(FileNotFoundError):
                arrived.path.unlink()

    def _known(self, arrived: Arrived, token: str, keep: bool) -> Ticket | None:
        ticket = self._by_token.get(token)
        if ticket is not None and not (self._claims / ticket.claim).exists():  # somebody took the file away
            self._drop(ticket)
            ticket = None
        if ticket is None:
            kept = self._answers.find(token)
            if kept is None:
                return None
            ticket = Ticket("", token, kept.digest, keep=True)
            ticket.outcome = kept.outcome
            ticket.over.set()
        if not arrived.digest.startswith(ticket.digest) or (keep and not ticket.keep):
            raise Problem(422, "reused", "this Idempotency-Key was used for another file, or with another `store`")
        return ticket

    def _take(self, arrived: Arrived, token: str, keep: bool) -> Ticket:
        digest = arrived.digest[:16]
        own = f"{KEYED}{token}-{digest}" if token else LOOSE + secrets.token_hex(16)
        ticket = Ticket(own if keep else ONCE + secrets.token_hex(16), token, digest, keep=keep)
        claim = ticket.claim
        try:
            (self._claims / claim).mkdir(0o700)
            arrived.path.rename(self._claims / claim / arrived.name)
        except FileExistsError:
            raise not_now("busy", "a file under this Idempotency-Key is being put away", 1) from None
        except OSError as error:
            with suppress(OSError):  # empty it would keep its key busy
                (self._claims / claim).rmdir()
            raise not_now("disk", f"the file cannot be taken: {error.strerror}", 10) from error
        self._add(ticket)
        self._arrived.append((claim, arrived.name))
        os.eventfd_write(self._wake, 1)
        return ticket

    def wait(self, ticket: Ticket, timeout_s: float) -> Outcome:
        """Return the outcome of a ticket.

        Raises:
            Problem: there is none in time, or there will be none.
        """
        over = ticket.over.wait(timeout_s)
        with self._lock:
            ticket.waiting -= 1
            if ticket.outcome is not None:
                return ticket.outcome
            if over and ticket.promised:
                said = "the worker ends; the file is read after its start: ask again with its Idempotency-Key"
                raise Problem(503, "stopping", said, {"Retry-After": "2"})
            if over:
                raise not_now("stopping", "the worker ends", 2)
            ticket.promised = ticket.keep
        if not ticket.keep:
            raise Problem(504, "late", "not read in time; it is not kept")
        self._synchronise(ticket.claim)
        raise Problem(504, "late", "not read in time; it is still read and kept: ask again with its Idempotency-Key")

    def _synchronise(self, claim: str) -> None:
        """See to it that a loss of power does not undo a claim; whoever waited is now told to rely on it."""
        for folder in (self._claims / claim, self._claims):
            with suppress(OSError):  # it was read meanwhile
                synchronize(folder)

    # ------------------------------------------------------------------------------------------------- worker

    def arrivals(self) -> list[tuple[str, str]]:
        """Return claims that came since the last call, and their files' names."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        with self._lock:
            found = list(self._arrived)
            self._arrived.clear()
        return found

    def ticket(self, claim: str) -> Ticket | None:
        """Return the ticket of a claim whose outcome is not known."""
        return self._tickets.get(claim)

    def give_up(self, claim: str) -> bool:
        """Give a claim up whose result was for somebody who waits no longer; false when it is to be read."""
        with self._lock:
            ticket = self._tickets.get(claim)
            if not claim.startswith(ONCE) or (ticket is not None and ticket.waiting > 0):
                return False
            if ticket is not None:
                self._drop(ticket)
            return True

    def again(self, ticket: Ticket, path: Path) -> tuple[str, str]:
        """Have a file read once more for its ticket's answer alone. Returns its new claim and name.

        Raises:
            OSError: it is gone.
        """
        claim = ONCE + secrets.token_hex(16)
        (self._claims / claim).mkdir(0o700)
        os.link(path, self._claims / claim / path.name)
        with self._lock:
            self._tickets.pop(ticket.claim, None)
            ticket.claim = claim
            self._tickets[claim] = ticket
        return claim, path.name

    def finish(self, claim: str, digest: str, outcome: Outcome) -> None:
        """Give everybody who waits for a claim its outcome, and whoever asks under the same token later."""
        with self._lock:
            ticket = self._tickets.get(claim)
            if ticket is None:
                return
            if ticket.keep and ticket.token:
                self._answers.keep(ticket.token, Kept(digest, outcome))
            ticket.outcome = outcome
            self._drop(ticket)

    def _drop(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket.claim, None)
        if self._by_token.get(ticket.token) is ticket:
            del self._by_token[ticket.token]
        ticket.over.set()

    def stop(self) -> None:
        """Take nothing more, and let everybody go who waits."""
        with self._lock:
            self._stopped = True
            for ticket in self._tickets.values():
                ticket.over.set()

    def close(self) -> None:
        """Give up the files whose requests were refused by `stop`: they come again. Others stay for the next start."""
        for claim, ticket in self._tickets.items():
            if not ticket.promised:
                shutil.rmtree(self._claims / claim, ignore_errors=True)
        self._tickets.clear()
        os.close(self._wake)

    def _add(self, ticket: Ticket) -> None:
        self._tickets[ticket.claim] = ticket
        if ticket.token:
            self._by_token[ticket.token] = ticket
