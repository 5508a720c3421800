"""Commands over MQTT: few verbs, each allowed by the settings, none carried out twice or late."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import msgspec

from agent.clock import Clock
from agent.config import MqttConfig
from agent.errors import MessageError
from agent.mqtt import Message
from agent.outbox import Outbox
from agent.protocol import Command, decode
from agent.setting_types import LEVELS

_log = logging.getLogger(__name__)

CLOCK_SET_MS = 1_577_836_800_000
"""2020: a clock before that was never set, and cannot tell whether a command is late."""
AHEAD_MS = 5 * 86_400_000
"""A command may not expire later than this: its id is remembered for longer."""
WAITING = 20
"""Commands that wait to be looked at; more are dropped."""
AT_ONCE = 5
PER_S = 5.0
"""Commands carried out, or answered, in the long run; twenty at once."""
BURST = 20.0
REPORT_S = 60.0


class Reply(msgspec.Struct, frozen=True):
    """What became of a command."""

    id: str
    ok: bool
    detail: str


class _Tokens:
    """Lets things happen so often, and no oftener."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left, self._at = BURST, clock.monotonic()

    def take(self) -> bool:
        now = self._clock.monotonic()
        self._left, self._at = min(BURST, self._left + PER_S * (now - self._at)), now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Orders:
    """Looks at commands, carries out what the uplink can, and hands the rest to the worker."""

    def __init__(self, mqtt: MqttConfig, outbox: Outbox, clock: Clock, ack: Callable[[Message], None]) -> None:
        """Make orders; `ack` acknowledges a command when it is done with."""
        self.refused = 0
        self.replies: deque[Reply] = deque(maxlen=WAITING)  # refusals; what was carried out is in the outbox
        self._allowed = frozenset(mqtt.commands)
        self._outbox = outbox
        self._clock = clock
        self._ack = ack
        self._queue: deque[Message] = deque()
        self._tokens = _Tokens(clock)
        self._begun = ""
        self._reported = 0
        self._report_at = clock.monotonic()

    @property
    def waiting(self) -> int:
        """How many commands were not looked at yet."""
        return len(self._queue)

    def put(self, message: Message) -> None:
        """Take a message of the command topic."""
        if len(self._queue) < WAITING:
            self._queue.append(message)
        else:
            self._refuse(message)

    def forget(self) -> None:
        """Note that the link is gone: the broker sends again what was not acknowledged."""
        self._queue.clear()

    def work(self) -> bool:
        """Look at some commands; whether one was carried out.

        Raises:
            OutboxError: the outbox takes no note now; they stay here.
        """
        worked = False
        for _ in range(min(AT_ONCE, len(self._queue))):
            worked |= self._obey(self._queue[0])
            self._ack(self._queue.popleft())
        self._report()
        return worked

    def _obey(self, message: Message) -> bool:
        try:
            command = decode(Command, message.body)
        except MessageError:
            self.refused += 1
            return False
        reason = self._why_not(command, message)
        if reason or not self._tokens.take():
            self.refused += 1
            if reason and self._tokens.take():
                self.replies.append(Reply(command.id, False, reason))
            return False
        # One that was begun and could not be finished, because the outbox failed, is known and not done.
        if self._begun != command.id and not self._outbox.ask(command.id, command.verb, command.argument):
            self.refused += 1
            self.replies.append(Reply(command.id, False, "a command with this id was carried out before"))
            return False
        self._begun = command.id
        if command.verb != "reread":
            self._outbox.finish(command.id, True, self._carry_out(command))
        self._begun = ""
        _log.info("command %s: %s", command.id, command.verb)
        return True

    def clear_up(self) -> None:
        """Answer commands that an uplink before this one began and did not finish.

        Raises:
            OutboxError: the outbox gives no answer now.
        """
        for request in self._outbox.requests():
            if request.verb != "reread":
                self._outbox.finish(request.id, False, "the uplink was started anew meanwhile; send it again")

    def _why_not(self, command: Command, message: Message) -> str:
        now_ms = self._clock.wall_ms()
        if message.retain:
            return "retained commands are not carried out"
        if command.verb not in self._allowed:
            return (
                f"{command.verb} is not allowed here; mqtt.commands has: {', '.join(sorted(self._allowed)) or 'none'}"
            )
        if now_ms < CLOCK_SET_MS:
            return "this device's clock is not set, so it cannot tell whether the command is late"
        if command.expires_ms < now_ms:
            return "the command came too late"
        if command.expires_ms > now_ms + AHEAD_MS:
            return f"expires_ms is more than {AHEAD_MS // 86_400_000} days ahead"
        if command.verb == "level" and command.argument not in LEVELS:
            return f"level takes one of: {', '.join(LEVELS)}"
        return "reread takes the key of a page" if command.verb == "reread" and not command.argument else ""

    def _carry_out(self, command: Command) -> str:
        if command.verb in ("pause", "resume"):
            self._outbox.set_paused(command.verb == "pause")
            return "no pages are taken" if command.verb == "pause" else "pages are taken"
        if command.verb == "level":
            self._outbox.set_level(command.argument)
            return f"the log level is {command.argument}"
        return "this is the state"

    def _refuse(self, message: Message) -> None:
        self.refused += 1
        self._ack(message)

    def _report(self) -> None:
        now = self._clock.monotonic()
        if self.refused > self._reported and now - self._report_at >= REPORT_S:
            _log.warning("%d commands refused since the start", self.refused)
            self._reported, self._report_at = self.refused, now
