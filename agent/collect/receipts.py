"""What a collector tells devices about their rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent.collect.inbox import Reading
from agent.collect.tables import Held, Verdict
from agent.protocol import Range, Receipt, Refusal, Resync, ranges

PARTS = 500
"""Ranges, and refusals, in one receipt: some kilobytes at most."""


def confirmed(collector: str, reading: Reading, verdicts: Sequence[Verdict]) -> Iterator[Receipt]:
    """Give receipts for a committed batch, for second deliveries too, by device and epoch.

    Args:
        collector: who tells it.
        reading: what came.
        verdicts: what became of each of its rows.
    """
    stored: dict[tuple[str, str], list[int]] = {}
    refused: dict[tuple[str, str], list[Refusal]] = {}
    for row, verdict in zip(reading.batch.rows, verdicts, strict=True):
        if verdict in ("new", "known"):
            stored.setdefault((row.device, row.epoch), []).append(row.seq)
        else:
            refusal = Refusal(row.seq, "conflict" if verdict == "conflict" else "invalid")
            refused.setdefault((row.device, row.epoch), []).append(refusal)
    for one in reading.refused:
        refused.setdefault((one.device, one.epoch), []).append(one.refusal)
    for device, epoch in {**stored, **refused}:
        where = (device, epoch)
        yield from _split(collector, where, ranges(stored.get(where, ())), refused.get(where, ()))


def answered(collector: str, resync: Resync, held: Held) -> Iterator[Receipt]:
    """Give receipts that answer a device; none when nothing it asks about is there."""
    refused = [Refusal(seq, "conflict") for seq in held.conflicts]
    yield from _split(collector, (resync.device, resync.epoch), held.stored, refused)


def _split(
    collector: str, where: tuple[str, str], stored: Sequence[Range], refused: Sequence[Refusal]
) -> Iterator[Receipt]:
    device, epoch = where
    for at in range(0, max(len(stored), len(refused)), PARTS):
        yield Receipt(
            collector=collector,
            device=device,
            epoch=epoch,
            stored=tuple(stored[at : at + PARTS]),
            refused=tuple(refused[at : at + PARTS]),
        )
