"""What a request is refused with: a problem document (RFC 9457) with one stable word as its reason."""

from __future__ import annotations

import msgspec

TITLES = {
    400: "Bad request",
    401: "No valid token",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    411: "Length required",
    413: "Too large",
    415: "Not a kind of file that is read",
    417: "Expectation failed",
    422: "Cannot be read",
    429: "Too many requests",
    431: "Header too large",
    500: "A defect of this program",
    503: "Not now",
    504: "Not finished in time",
}
"""Statuses that are given, and what they are called."""


class ProblemDocument(msgspec.Struct, frozen=True):
    """The JSON of a problem.

    Attributes:
        type: "urn:edge-ocr:problem:" and the reason.
        title: what the status means.
        status: of the answer.
        reason: one stable word.
        detail: one line for people; never recognised text.
    """

    type: str
    title: str
    status: int
    reason: str
    detail: str


class Problem(Exception):
    """A request that is refused."""

    def __init__(self, status: int, reason: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.headers = headers or {}

    def body(self) -> bytes:
        """Return the problem document."""
        urn = f"urn:edge-ocr:problem:{self.reason}"
        return msgspec.json.encode(ProblemDocument(urn, TITLES[self.status], self.status, self.reason, str(self)))


def not_now(reason: str, detail: str, retry_s: int) -> Problem:
    """Return a refusal of a request that is welcome later; nothing of it was kept."""
    return Problem(503, reason, f"{detail}; nothing was kept, ask again later", {"Retry-After": str(retry_s)})
