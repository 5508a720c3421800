"""Results wait here, on the disk, until the centre has stored them."""

from agent.outbox.outbox import EventRow, Finished, Intake, Marks, Outbox, Request, Row, Stats

__all__ = ["EventRow", "Finished", "Intake", "Marks", "Outbox", "Request", "Row", "Stats"]
