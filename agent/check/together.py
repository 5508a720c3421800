"""Looks at several things at the same time, each for no longer than it may take: what hangs is itself a finding.

A thread that waits for the system (a name server, a dead network folder) cannot be ended. It is a daemon: it is left
behind, and ends with the program.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from agent.check.finding import Finding
from agent.errors import AgentError

_TURN_S = 0.2

Tell = Callable[[Sequence[str]], None]
"""Told now and then of what is still looked at."""


class Task(NamedTuple):
    """One thing to look at: what it is about, and what finds out; findings count from when they are yielded."""

    about: str
    look: Callable[[], Iterable[Finding]]


def look(tasks: Sequence[Task], limit_s: float, tell: Tell | None = None) -> tuple[Finding, ...]:
    """Return what tasks find, in their order, after `limit_s` at the latest."""
    done: queue.SimpleQueue[int] = queue.SimpleQueue()
    found: list[list[Finding]] = [[] for _ in tasks]
    for place, task in enumerate(tasks):
        threading.Thread(target=_work, args=(task, place, found[place], done), name=task.about, daemon=True).start()
    left, until = set(range(len(tasks))), time.monotonic() + limit_s
    while left and (rest := until - time.monotonic()) > 0:
        if tell is not None:
            tell([tasks[place].about for place in sorted(left)])
        try:
            left.discard(done.get(timeout=min(rest, _TURN_S)))
        except queue.Empty:
            continue
    return tuple(finding for place in range(len(tasks)) for finding in _told(tasks, place, found, left, limit_s))


def _told(
    tasks: Sequence[Task], place: int, found: list[list[Finding]], left: set[int], limit_s: float
) -> list[Finding]:
    told = list(found[place])
    if place in left:
        said = f"gives no answer within {limit_s:g} s"
        advice = "what it asks hangs: a network folder, a device or a name server; the system's log may name it"
        told.append(Finding("fail", tasks[place].about, said, advice))
    return told


def _work(task: Task, place: int, found: list[Finding], done: queue.SimpleQueue[int]) -> None:
    try:
        for finding in task.look():
            found.append(finding)
    except (AgentError, OSError) as error:
        found.append(Finding("fail", task.about, f"cannot be looked at: {error}", "see what the message names"))
    except Exception as error:  # one check that is broken must not hide what the others found
        said = f"a defect of this program: {type(error).__name__}: {error}"
        found.append(Finding("fail", task.about, said, "please report it; the other lines hold"))
    finally:
        done.put(place)
