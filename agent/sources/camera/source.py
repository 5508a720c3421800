"""A camera: each page that is put under it is taken once, when it lies still.

The device belongs to a process of its own (`eye.py`), which writes taken pages into a folder below the
state; from there they go the way of any file, so that a page survives whatever ends. What is left here is to see to it
that that process lives and sees something, and to say when it does not.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from agent.clock import Clock
from agent.errors import ConfigError, FrameError, InputError
from agent.page import PageResult
from agent.source_config import CameraConfig, FolderConfig, spool_config
from agent.sources import Capture
from agent.sources.camera.device import Process, needs_mb, task_of, unstable
from agent.sources.camera.glance import Glance, State
from agent.sources.folder.source import FolderSource

_log = logging.getLogger(__name__)

SILENT_S = 3.0  # without a glance for so long, the device blocks
OPEN_S = 8.0  # what opening may take before it is given up
LATE_S = 4.0  # what it may take before it is said
BLACK_S = 2.0  # a hand over the lens is no trouble
BLURRED_S = 10.0  # nor is a lens that still looks for its focus
PAUSES_S = (0.0, 1.0, 2.0, 4.0, 5.0)  # between two starts of the process
REOPEN_S = 30.0  # a picture that stays the same is opened anew this often: it may have been a hanging encoder
WAKE_S = 1.0


class CameraSource:
    """Takes pages from a camera. See `CameraConfig` for what can be set."""

    def __init__(
        self, config: CameraConfig, state_dir: Path, clock: Clock | None = None, *, hurry: bool = False
    ) -> None:
        """Make the folder for its pages, and have the device opened.

        Args:
            config: the settings.
            state_dir: of the agent.
            clock: time.
            hurry: a video file is played as fast as it can be.

        Raises:
            ConfigError: the folder cannot be worked in, or the password is not there; the message says what to do.
        """
        self.name = config.name
        self._config = config
        self._clock = clock or Clock()
        self._spool = state_dir.absolute() / "sources" / config.name
        self._folder = FolderSource(_folder_of(config, self._spool), self._clock)
        self._memory = _open_memory(self._spool, config.when_done)
        spool = str(self._spool)
        self._task = msgspec.structs.replace(task_of(config), spool=spool, memory_fd=self._memory, hurry=hurry)
        self._process: Process | None = None
        self._trouble = ""
        self._failures = 0
        self._start_at = float("-inf")
        self._start(self._clock.monotonic())
        if said := unstable(config.device):
            _log.warning("%s: %s", self.name, said)

    def _begin(self, now: float) -> None:
        """Forget what was seen by a process before."""
        self._began = self._heard_at = now
        self._glance = Glance(state="opening", at=now)
        self._state_since = self._changed_at = now
        self._dying = False

    # ------------------------------------------------------------------------------------------------ pages

    def poll(self) -> Capture | None:
        """Return the next page, claimed, or None; never waits."""
        self._watch(self._clock.monotonic())
        return self._folder.poll()

    def next_s(self) -> float:
        """Return the seconds until `poll` may have something although `filenos` stay silent."""
        return min(WAKE_S, self._folder.next_s())

    def filenos(self) -> tuple[int, ...]:
        """Return descriptors that are readable when a page was taken."""
        return self._folder.filenos()

    def trouble(self) -> str:
        """Return why no pages are taken, in one line; "" when nothing is wrong."""
        return self._trouble or self._folder.trouble()

    def needs_mb(self) -> int:
        """Return what the process that owns the device may have for itself, in MB."""
        return needs_mb(self._config)

    def answer(self, capture: Capture, page: PageResult) -> None:
        """Do nothing: nobody waits beside a camera."""

    def done(self, capture: Capture, error: FrameError | InputError | None = None) -> str:
        """Put a page away. Returns where it lies now, "" when it is gone.

        Raises:
            OSError: it cannot be put away now; it will be offered again.
        """
        return self._folder.done(capture, error)

    def retry(self, capture: Capture) -> None:
        """Offer a page again, a little later."""
        self._folder.retry(capture)

    def reread(self, place: str) -> bool:
        """Offer a page that was put away at a place once more; false when it is gone."""
        return self._folder.reread(place)

    def tidy(self) -> None:
        """Delete handled pages that are over the caps, a step at a time."""
        self._folder.tidy()

    def close(self) -> None:
        """End the process and give descriptors back."""
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1
        self._folder.close()

    # ------------------------------------------------------------------------------------------------ the device

    @property
    def state(self) -> State:
        """What was last seen."""
        return self._glance.state

    def _watch(self, now: float) -> None:
        """Hear the process, end one that hangs, and start one where there is none."""
        if self._process is None:
            if self.state != "ended" and now >= self._start_at:
                self._start(now)
            return
        for glance in self._process.glances():
            self._hear(glance, now)
        if self._process.ended():
            self._bury(now)
            return
        said = self._hangs(now)
        if said:
            self._suffer(said)
            self._process.kill()
            if self._dying and now - self._heard_at > SILENT_S + OPEN_S:
                self._suffer(f"{self._device}: its driver does not let go of it; unplug it, or restart the machine")
            self._dying = True
        else:
            self._judge(now)

    def _start(self, now: float) -> None:
        self._begin(now)
        try:
            self._process = Process(self._task)
        except OSError as error:
            self._suffer(f"{self._device}: no process for it: {error.strerror}")
            self._start_at = now + PAUSES_S[-1]
            return
        self._start_at = now + PAUSES_S[min(self._failures, len(PAUSES_S) - 1)]
        self._failures += 1

    def _hear(self, glance: Glance, now: float) -> None:
        if glance.state != self._glance.state:
            self._state_since = now
        if glance.changes != self._glance.changes or glance.state == "opening":
            self._changed_at = now
        if glance.frames and not self._glance.frames:
            self._changed_at = now
        self._glance, self._heard_at = glance, now
        if glance.changes:
            self._failures = 0

    def _bury(self, now: float) -> None:
        """Clear up after a process that has ended."""
        assert self._process is not None
        for glance in self._process.glances():
            self._hear(glance, now)
        self._process.close()
        self._process = None
        if self.state == "ended":
            _log.info("%s: %s is at its end, %d pages", self.name, self._device, self._glance.taken)
        elif not self._dying:
            self._suffer(self._glance.said or f"{self._device}: the process that owns it has died; it is started again")

    def _hangs(self, now: float) -> str:
        """Return what to say of a process that must be ended, "" for one that is well."""
        if self._dying:
            return self._trouble
        if self.state == "opening":
            late = now - self._began > OPEN_S
            return f"{self._device}: cannot be opened: no answer; is it on?" if late else ""
        if now - self._heard_at > SILENT_S:
            return f"{self._device}: gives no pictures any more; is it on, and its network? It is opened again"
        if self._is_frozen() and now - self._began > (REOPEN_S if self._trouble else 0.0):
            return self._frozen()
        return ""

    def _is_frozen(self) -> bool:
        limit = self._config.frozen_s
        looks = self._glance.frames and self.state not in ("lost", "black") and not self._is_film()
        return bool(limit and looks) and self._heard_at - self._changed_at > limit

    def _is_film(self) -> bool:
        return os.path.isfile(self._config.device)

    def _frozen(self) -> str:
        return f"{self._device}: has sent the same picture for {self._config.frozen_s:g} s: restart it, or set frozen_s"

    def _judge(self, now: float) -> None:
        """Say what is wrong with what is seen, or that nothing is."""
        state, lasted = self.state, now - self._state_since
        if state == "opening":
            if now - self._began > LATE_S:
                self._suffer(self._trouble or f"{self._device}: does not answer; is it on?")
        elif self._is_frozen():
            self._suffer(self._frozen())
        elif state == "black":
            if lasted > BLACK_S:
                self._suffer(f"{self._device}: the picture is black: is the lens covered, or the light off?")
        elif state == "blurred" and lasted > BLURRED_S:
            self._suffer(f"{self._device}: a page lies under it and is not sharp: focus it, or lower min_sharpness")
        elif state in ("full", "unwritable"):
            self._suffer(f"{self._device}: {self._glance.said}")
        elif (
            state != "lost" and self._trouble and (self._glance.changes or self._is_film() or not self._config.frozen_s)
        ):
            _log.info("%s: pages are taken from %s again", self.name, self._device)
            self._trouble = ""

    def _suffer(self, said: str) -> None:
        """Note a trouble; said once."""
        if said != self._trouble:
            self._trouble = said
            _log.warning("%s: no pages are taken: %s", self.name, said)

    @property
    def _device(self) -> str:
        return self._config.device


def _folder_of(config: CameraConfig, spool: Path) -> FolderConfig:
    """Return the settings of the folder that pages are put into, made where it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{spool}: {error.strerror}: state_dir must be writable") from error
    return spool_config(config, spool)


def _open_memory(spool: Path, when_done: str) -> int:
    """Return a descriptor for the page taken last, seen from afar.

    It is a file beside the pages, so that none is taken again after a restart; where pages are not to stay on the disk,
    memory that ends with this process.

    Raises:
        ConfigError: the file cannot be made.
    """
    if when_done == "delete":
        (spool / ".last").unlink(missing_ok=True)
        return os.memfd_create("last-page", os.MFD_CLOEXEC)
    try:
        return os.open(spool / ".last", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{spool}/.last: {error.strerror}") from error
