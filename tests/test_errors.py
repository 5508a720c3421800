"""Errors know their exit status."""

from __future__ import annotations

import inspect

import pytest

from agent import errors
from agent.errors import AgentError, ExitCode, FrameError

LEAVES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, AgentError)]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_docstring_and_a_failing_exit_status(kind):
    assert inspect.getdoc(kind)
    assert kind.code in ExitCode
    assert kind.code not in (ExitCode.OK, ExitCode.SOME_FAILED, ExitCode.USAGE)


def test_exit_statuses_are_those_of_sysexits():
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "SOME_FAILED": 1,
        "USAGE": 2,
        "DATA": 65,
        "NO_INPUT": 66,
        "UNAVAILABLE": 69,
        "SOFTWARE": 70,
        "BUNDLE": 74,
        "TEMPORARY": 75,
        "CONFIG": 78,
        "INTERRUPTED": 130,
    }


def test_frame_error_carries_a_reason_for_counting_and_a_message_for_people():
    error = FrameError("truncated", "page.png: truncated, its end is missing")
    assert (error.reason, str(error)) == ("truncated", "page.png: truncated, its end is missing")
    assert error.code is ExitCode.DATA


def test_no_leaf_has_leaves_of_its_own():
    assert all(kind.__base__ in (AgentError, Exception) for kind in LEAVES)
