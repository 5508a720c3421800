"""Commands without a broker: what is refused, what is answered, and that nothing breaks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.config import OutboxConfig
from agent.errors import OutboxError
from agent.mqtt import Message
from agent.outbox import Outbox
from agent.protocol import VERBS
from agent.uplink import orders
from agent.uplink.orders import Orders
from tests.centre import SetClock, broker_settings


class Desk:
    """Orders without a broker."""

    def __init__(self, state_dir: Path, *verbs: str) -> None:
        self.clock = SetClock()
        self.outbox = Outbox(state_dir, OutboxConfig(min_free_mb=0, ballast_mb=0), role="uplink", clock=self.clock)
        self.acked: list[Message] = []
        self.orders = Orders(broker_settings(1, commands=verbs), self.outbox, self.clock, self.acked.append)

    def put(self, body: bytes, *, retain: bool = False) -> None:
        self.orders.put(Message("t", body, retain, 1))

    def command(self, verb: str = "status", **more: Any) -> bytes:
        made = {"id": f"c{random.getrandbits(40):x}", "verb": verb, "expires_ms": self.clock.wall + 1000, **more}
        return json.dumps(made).encode()


def test_no_command_is_carried_out_while_the_clock_is_not_set(tmp_path):
    desk = Desk(tmp_path, "pause")
    desk.clock.wall = 1_000_000
    desk.put(desk.command("pause"))
    desk.orders.work()
    assert "clock is not set" in desk.orders.replies[0].detail
    assert not desk.outbox.stats().paused


def test_command_that_the_outbox_could_not_take_is_carried_out_later(tmp_path, monkeypatch):
    desk = Desk(tmp_path, "pause")

    def fails(paused: bool) -> None:
        raise OutboxError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr(desk.outbox, "set_paused", fails)
        desk.put(desk.command("pause"))
        for _ in range(2):
            with pytest.raises(OutboxError):
                desk.orders.work()
        assert not desk.acked
    desk.orders.work()
    assert (desk.outbox.stats().paused, len(desk.acked), desk.orders.replies) == (True, 1, type(desk.orders.replies)())
    assert [answer.ok for answer in desk.outbox.answers()] == [True]


def test_command_that_an_uplink_left_half_done_is_answered_by_the_next(tmp_path):
    desk = Desk(tmp_path, "pause")
    desk.outbox.ask("half", "pause", "")
    desk.outbox.ask("whole", "reread", "key")
    desk.orders.clear_up()
    assert [(answer.id, answer.ok) for answer in desk.outbox.answers()] == [("half", False)]


def test_flood_of_commands_costs_little_and_is_mostly_dropped(tmp_path):
    desk = Desk(tmp_path, "status")
    asked = []
    desk.outbox.ask = lambda *command: asked.append(command) is not None  # type: ignore[method-assign,assignment]
    desk.outbox.finish = lambda *answer: None  # type: ignore[method-assign,assignment]
    for second in range(10):
        for number in range(1000):
            desk.put(desk.command(id=f"{second}-{number}"))
            if number % 10 == 0:
                desk.orders.work()
        desk.clock.now += 1.0
    while desk.orders.waiting:
        desk.orders.work()
    assert len(desk.acked) == 10_000
    assert len(asked) <= 20 + 10 * orders.PER_S and len(desk.orders.replies) <= orders.WAITING


_VALID = {"id": "a", "verb": "pause", "expires_ms": 1_800_000_000_500, "argument": ""}
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*VERBS, "rm", "a" * 300]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"), "status", "level")


@settings(max_examples=100)
@given(
    body=st.binary(max_size=300)
    | st.builds(
        lambda more: json.dumps({**_VALID, **more}, allow_nan=True).encode("utf-8", "replace"),
        st.dictionaries(st.sampled_from([*_VALID, "schema", "x"]), _VALUES, max_size=4),
    ),
    retain=st.booleans(),
)
@example(body=b"[" * 60_000, retain=False)
@example(body=b'{"id":"a","verb":"pause","expires_ms":"1"}', retain=False)
@example(body=b"{" + b'"a":{' * 5000, retain=False)
@example(body=json.dumps({**_VALID, "argument": "x" * 70_000}).encode(), retain=False)
@example(body=json.dumps({**_VALID, "id": "../../x"}).encode(), retain=False)
@example(body=json.dumps({**_VALID, "verb": "pause\u0000"}).encode(), retain=False)
def test_no_payload_breaks_the_uplink_or_gets_a_forbidden_verb_through(desk, body, retain):
    desk.clock.now += 1.0
    desk.put(body, retain=retain)
    desk.orders.work()
    desk.orders.replies.clear()
    assert not desk.orders.waiting
    assert not desk.outbox.stats().paused
    assert all(request.verb in ("status", "level") for request in desk.outbox.requests())
