"""Reports of the system that files were put into a folder, where there are any."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

_log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 16
_PIECES = 64  # taken at once; more are there the next time


class Watch:
    """Tells that something was put into a folder, and not what: the folder is listed anyway.

    So nothing is missed when the system's queue of reports overflows, or on a share, where others' doings are not told.
    """

    def __init__(self) -> None:
        """Make a watch of nothing."""
        self._descriptor = -1
        self._warned = False

    def begin(self, path: str) -> None:
        """Watch a folder, and no other any more. Where that cannot be, it is said once."""
        self.close()
        try:
            from inotify_simple import INotify, flags  # type: ignore[import-untyped]

            # The descriptor is kept and not the object, which would decode every report.
            with INotify(nonblocking=True) as inotify:
                inotify.add_watch(path, flags.CLOSE_WRITE | flags.MOVED_TO)
                self._descriptor = os.dup(inotify.fileno())
        except (ImportError, OSError) as error:
            if not self._warned:
                self._warned = True
                _log.warning("%s: the system reports no changes (%s); it is listed at intervals only", path, error)

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are reports, or -1."""
        return self._descriptor

    def heard(self) -> bool:
        """Return whether there were reports, and take them."""
        if self._descriptor < 0:
            return False
        heard = False
        with suppress(BlockingIOError):
            for _ in range(_PIECES):
                heard = bool(os.read(self._descriptor, _PIECE_BYTES)) or heard
        return heard

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1
