"""What `edge-ocr status` tells: the outbox, and what worker and uplink last wrote about themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from agent.clock import Clock
from agent.config import AgentConfig
from agent.errors import AgentError
from agent.health import STALE_S, Role, UplinkState, WorkerState, read_state, running, silent_s
from agent.outbox import Outbox

S = TypeVar("S", WorkerState, UplinkState)


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent is.

    Attributes:
        ok: nothing needs to be looked at.
        look_at: what does, one line each, with what to do.
        device: name of this box.
        pending: rows to be sent.
        brokered: rows at the broker without a receipt.
        stored: rows that the centre has, counted since the uplink's start.
        dead: rows that the centre refused.
        oldest_s: age of the oldest row without a receipt.
        outbox_bytes: size of the database.
        outbox_max_bytes: and its limit.
        connection: of the uplink; "off" without a broker, "not running".
        last_error: of the worker or the uplink.
        pages_per_minute: over the last five minutes.
        bundle: models that read.
        rss_mb: resident memory of worker and uplink.
        worker: what the worker last wrote.
        uplink: what the uplink last wrote.
    """

    ok: bool
    look_at: tuple[str, ...]
    device: str
    pending: int = 0
    brokered: int = 0
    stored: int = 0
    dead: int = 0
    oldest_s: float = 0.0
    outbox_bytes: int = 0
    outbox_max_bytes: int = 0
    connection: str = "off"
    last_error: str = ""
    pages_per_minute: float = 0.0
    bundle: str = ""
    rss_mb: float = 0.0
    worker: WorkerState | None = None
    uplink: UplinkState | None = None


def make(config: AgentConfig, clock: Clock | None = None) -> Overview:
    """Look at an agent from outside; nothing is changed and nobody is asked."""
    clock = clock or Clock()
    state_dir = Path(config.state_dir)
    worker = _read(state_dir, "worker", WorkerState)
    uplink = _read(state_dir, "uplink", UplinkState) if config.mqtt is not None else None
    told = Overview(
        ok=True,
        look_at=(),
        device=config.device,
        stored=uplink.stored if uplink else 0,
        connection="off" if config.mqtt is None else uplink.connection if uplink else "not running",
        last_error=next((p.last_error for p in (uplink, worker) if p is not None and p.last_error), ""),
        pages_per_minute=worker.pages_per_minute if worker else 0.0,
        bundle=worker.bundle if worker else "",
        rss_mb=round(sum(p.rss_mb for p in (worker, uplink) if p is not None), 1),
        worker=worker,
        uplink=uplink,
    )
    told, trouble = _with_outbox(told, config, state_dir)
    look_at = (*trouble, *_of_worker(told.worker, clock), *_of_uplink(config, told.uplink, clock))
    return msgspec.structs.replace(told, ok=not look_at, look_at=look_at)


def _with_outbox(told: Overview, config: AgentConfig, state_dir: Path) -> tuple[Overview, list[str]]:
    if not (state_dir / "outbox.db").exists():
        return told, []
    try:
        outbox = Outbox(state_dir, config.outbox, role="tool")
        try:
            stats = outbox.stats()
        finally:
            outbox.close()
    except AgentError as error:
        return told, [f"outbox: {error}"]
    trouble = [f"outbox: {alarm}" for alarm in stats.alarms]
    if stats.dead:
        trouble.append(f"outbox: {stats.dead} rows were refused: `edge-ocr outbox list --state dead`")
    return (
        msgspec.structs.replace(
            told,
            pending=stats.pending,
            brokered=stats.brokered,
            dead=stats.dead,
            oldest_s=round(stats.oldest_s, 1),
            outbox_bytes=stats.bytes,
            outbox_max_bytes=stats.max_bytes,
        ),
        trouble,
    )


def _read(state_dir: Path, role: Role, kind: type[S]) -> S | None:
    """Return what a program last said about itself, if it runs."""
    return read_state(state_dir, role, kind) if running(state_dir, role) else None


def _silent(name: str, state: WorkerState | UplinkState, clock: Clock) -> list[str]:
    seconds = silent_s(state, clock.wall_ms())
    if seconds <= STALE_S:
        return []
    return [f"{name}: has said nothing for {_age(seconds)}; it hangs, or the clock was set"]


def _of_worker(worker: WorkerState | None, clock: Clock) -> list[str]:
    if worker is None:
        return ["worker: not running; start `edge-ocr run`, or look at its log"]
    held = [f"worker: takes no pages: {worker.held}"] if worker.held else []
    troubles = [f"source {trouble}" for trouble in worker.troubles]
    return [*held, *troubles, *_silent("worker", worker, clock)]


def _of_uplink(config: AgentConfig, uplink: UplinkState | None, clock: Clock) -> list[str]:
    if config.mqtt is None:
        return []
    if uplink is None:
        return ["uplink: not running; start `edge-ocr run`, or look at its log"]
    reasons = [f"uplink: {uplink.connection}: {uplink.reason}"] if uplink.reason else []
    return [*reasons, *(f"uplink: {alarm}" for alarm in uplink.alarms), *_silent("uplink", uplink, clock)]


def lines(told: Overview) -> list[str]:
    """Return it for people."""
    used = f"{told.outbox_bytes / (1 << 20):.1f} of {told.outbox_max_bytes >> 20} MB"
    rows = [
        ("device", told.device),
        ("models", told.bundle or "-"),
        ("pages", f"{told.pages_per_minute:.1f} a minute" + _counts(told.worker)),
        ("pending", f"{told.pending}" + (f", the oldest waits {_age(told.oldest_s)}" if told.oldest_s else "")),
        ("brokered", str(told.brokered)),
        ("stored", f"{told.stored} since the uplink's start"),
        ("dead", str(told.dead)),
        ("outbox", used),
        ("connection", told.connection),
        ("memory", f"{told.rss_mb:.0f} MB"),
        ("last error", told.last_error or "-"),
    ]
    return [*(f"{name:<11} {value}" for name, value in rows), *(f"LOOK AT  {line}" for line in told.look_at)]


def _counts(worker: WorkerState | None) -> str:
    if worker is None:
        return ""
    return f", {worker.accepted} accepted, {worker.failed} refused, {worker.skipped} known already"


def _age(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
