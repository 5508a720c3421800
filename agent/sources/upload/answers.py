"""Answers under their Idempotency-Key, on the disk, so that a request that comes again gets the same one."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

MAX_KEPT = 20_000
_ENDING = ".json"


class Outcome(msgspec.Struct, frozen=True):
    """What a request is answered with.

    Attributes:
        status: HTTP's.
        body: JSON: an answer, or a problem document.
    """

    status: int
    body: msgspec.Raw


class Kept(msgspec.Struct, frozen=True):
    """An outcome, and of which content.

    Attributes:
        digest: sha256 of the file in the request.
        outcome: what was answered.
    """

    digest: str
    outcome: Outcome


class Answers:
    """A folder of outcomes, one file each. Losing one costs reading its page again, for the answer alone."""

    def __init__(self, folder: Path, keep_s: float) -> None:
        """Open the folder, made when it is missing.

        Args:
            folder: where they are.
            keep_s: for so long.

        Raises:
            OSError: it cannot be made.
        """
        self._folder = folder
        self._keep_s = keep_s
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def find(self, token: str) -> Kept | None:
        """Return what was answered under a token, or None when that is not known any more."""
        try:
            return msgspec.json.decode((self._folder / (token + _ENDING)).read_bytes(), type=Kept)
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, token: str, kept: Kept) -> None:
        """Keep an outcome; a disk that takes nothing stops no answer."""
        fresh = self._folder / f"{token}.new"
        with suppress(OSError):
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(self._folder / (token + _ENDING))

    def tidy(self) -> None:
        """Delete what is older than it is kept, and the oldest where there are too many."""
        limit = time.time() - self._keep_s
        with suppress(OSError):
            found = [(entry.stat().st_mtime, entry.path) for entry in os.scandir(self._folder)]
            found.sort(reverse=True)
            for number, (at, path) in enumerate(found):
                if at < limit or number >= MAX_KEPT:
                    with suppress(FileNotFoundError):
                        os.unlink(path)
