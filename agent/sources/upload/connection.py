"""One HTTP/1.1 connection: what h11 makes of its bytes, under deadlines for all that a peer may hold up."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import h11
import msgspec

from agent.sources.upload.problems import Problem

IDLE_S = 30.0  # until a request begins
HEADER_S = 10.0  # from its first byte to the end of its header
BODY_S = 60.0
SEND_S = 10.0
LINGER_S = 2.0
MAX_HEADER_BYTES = 16 << 10
_PIECE_BYTES = 64 << 10

Request = h11.Request


class Response(msgspec.Struct, frozen=True):
    """An answer.

    Attributes:
        status: HTTP's.
        body: bytes.
        kind: its Content-Type.
        headers: further ones.
    """

    status: int
    body: bytes
    kind: str = "application/json"
    headers: dict[str, str] = {}


def refused(problem: Problem) -> Response:
    """Return the answer that a problem is."""
    return Response(problem.status, problem.body(), "application/problem+json", problem.headers)


class Connection:
    """Speaks HTTP/1.1 on a socket, one request after the other."""

    def __init__(self, peer: socket.socket) -> None:
        self._socket = peer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._head_only = False
        self.waits = True  # for a request: nobody is kept from an answer when it is closed now
        self.last = False  # the request at hand is to be the last

    def request(self) -> Request | None:
        """Return the header of the next request; None when there will be none.

        Raises:
            Problem: what came is no request, or came too slowly.
        """
        self.waits, self._head_only = True, False
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        deadline, begun = time.monotonic() + IDLE_S, False
        while True:
            event = self._next_event()
            if isinstance(event, Request):
                self.waits = False
                self._head_only = event.method == b"HEAD"
                return event
            if event is not h11.NEED_DATA:
                return None
            if self._http.trailing_data[0] and not begun:
                deadline, begun = time.monotonic() + HEADER_S, True
                self.waits = False
            try:
                self._receive(deadline)
            except TimeoutError:
                if begun:
                    raise Problem(408, "slow", "the header did not come in time") from None
                return None

    def body(self) -> Iterator[bytes]:
        """Yield the body of the request, piece by piece.

        Raises:
            Problem: it is no body, is cut off, or came too slowly.
        """
        deadline = time.monotonic() + BODY_S
        while True:
            event = self._next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            elif event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                try:
                    self._receive(deadline)
                except TimeoutError:
                    raise Problem(408, "slow", "the body did not come in time") from None
            else:
                raise Problem(400, "cut", "the connection ended before the body did")

    def respond(self, response: Response) -> bool:
        """Send an answer. Returns whether another request may follow."""
        with suppress(Problem):
            if self._http.their_state is h11.SEND_BODY and not self._http.they_are_waiting_for_100_continue:
                self._next_event()  # the end of an empty body
        whole = self._http.their_state is h11.DONE
        stays = whole and not self.last
        headers = {"Content-Type": response.kind, "Content-Length": str(len(response.body)), **response.headers}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        if not stays:
            headers["Connection"] = "close"
        data = b"" if self._head_only else response.body
        self._send(
            h11.Response(status_code=response.status, headers=list(headers.items())),
            h11.Data(data=data),
            h11.EndOfMessage(),
        )
        if not whole:
            self._linger()
        return stays and self._http.our_state is h11.DONE

    def turn_away(self, response: Response) -> None:
        """Answer without having read anything, and without waiting for the peer."""
        self._socket.setblocking(False)
        head = f"HTTP/1.1 {response.status} \r\nContent-Type: {response.kind}\r\nConnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        self._socket.send(f"{head}Content-Length: {len(response.body)}\r\n\r\n".encode() + response.body)
        self._socket.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        """End it; may be called from another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def _next_event(self) -> object:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint if error.error_status_hint in (400, 431) else 400
            reason = "header" if status == 431 else "http"
            raise Problem(status, reason, f"not a request of HTTP/1.1: {error}") from error

    def _receive(self, deadline: float) -> None:
        left_s = deadline - time.monotonic()
        if left_s <= 0:  # from who sends without a pause, too
            raise TimeoutError
        self._socket.settimeout(left_s)
        self._http.receive_data(self._socket.recv(_PIECE_BYTES))

    def _send(self, *events: h11.Event) -> None:
        """Send events at once: a second small packet would wait for the first one's acknowledgement."""
        data = b"".join(self._http.send(event) or b"" for event in events)
        self._socket.settimeout(SEND_S)
        self._socket.sendall(data)

    def _linger(self) -> None:
        """Read for a while what still comes: closing with bytes unread would take the answer away from the peer."""
        deadline = time.monotonic() + LINGER_S
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while (left_s := deadline - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                if not self._socket.recv(_PIECE_BYTES):
                    return
