"""What is answered to which request: the routes, who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from agent.health import WorkerState
from agent.source_config import UploadConfig
from agent.sources.upload.body import announced, headers_of, receive
from agent.sources.upload.connection import Connection, Request, Response, refused
from agent.sources.upload.desk import Desk
from agent.sources.upload.problems import Problem, not_now
from agent.sources.upload.tally import Tally

_log = logging.getLogger(__name__)

_PEERS = 1000
_MAX_KEY = 255
_LOCAL_HOST = re.compile(r"(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?\Z", re.IGNORECASE)
_HELD = {
    "paused": "the worker is paused",
    "full": "the outbox is full",
    "disk": "the disk is nearly full",
    "readonly": "the outbox cannot be written",
    "failing": "the outbox fails",
}


class FrontSettings(msgspec.Struct, frozen=True):
    """What the front needs of the settings.

    Attributes:
        token: that requests must bear; None where nobody needs one.
        check_host: whether requests must be for a name of this machine: not on a unix socket.
        max_bytes: of a file.
        timeout_s: a request waits for its answer so long.
        max_per_minute: requests of one peer.
    """

    token: str | None
    check_host: bool
    max_bytes: int
    timeout_s: float
    max_per_minute: int

    @classmethod
    def of(cls, config: UploadConfig, token: str | None, listening: socket.socket) -> FrontSettings:
        """Return those of a source that listens on a socket."""
        is_unix = listening.family == socket.AF_UNIX
        return cls(token, not is_unix, config.max_mb << 20, config.timeout_s, config.max_per_minute)


class Buckets:
    """Lets each peer ask so often: a full bucket of ten seconds' requests, filled again at the rate."""

    def __init__(self, per_minute: int) -> None:
        self._per_s = per_minute / 60
        self._most = max(1.0, per_minute / 6)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, peer: str) -> None:
        """Count a request.

        Raises:
            Problem: there were too many.
        """
        now = time.monotonic()
        with self._lock:
            left, at = self._left.pop(peer, (self._most, now))
            left = min(self._most, left + self._per_s * (now - at))
            self._left[peer] = (max(0.0, left - 1) if left >= 1 else left, now)
            while len(self._left) > _PEERS:
                self._left.popitem(last=False)
        if left < 1:
            wait_s = max(1, -int(-(1 - left) // self._per_s))
            raise Problem(429, "many", "too many requests in a short time", {"Retry-After": str(wait_s)})


class Front:
    """Answers requests; one for all connections."""

    def __init__(self, desk: Desk, incoming: Path, settings: FrontSettings) -> None:
        """Make a front.

        Args:
            desk: takes files and gives outcomes.
            incoming: folder for files that are still coming.
            settings: what is allowed.
        """
        self.tally = Tally()
        self._desk = desk
        self._incoming = incoming
        self._settings = settings
        self._buckets = Buckets(settings.max_per_minute)
        self._state: WorkerState | None = None
        self._trouble = ""
        self._routes: dict[str, dict[str, Callable[[Connection, Request, str], Response]]] = {
            "/ping": {"GET": self._ping},
            "/healthz": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/v1/openapi.json": {"GET": self._describe},
            "/v1/read": {"POST": self._read},
        }

    def heed(self, state: WorkerState, trouble: str) -> None:
        """Take how the worker is, and why the source gives no pages, "" when it does."""
        self._state, self._trouble = state, trouble

    def exchange(self, connection: Connection, peer: str) -> bool:
        """Answer a peer's next request. Returns whether another may follow.

        Raises:
            OSError: the peer has gone.
        """
        try:
            request = connection.request()
            if request is None:
                return False
            response = self._answer(connection, request, peer)
        except Problem as problem:
            response = refused(problem)
        self.tally.request(response.status)
        return connection.respond(response)

    def _answer(self, connection: Connection, request: Request, peer: str) -> Response:
        """Return the answer to a request.

        Raises:
            Problem: it is refused.
        """
        try:
            return self._route(request)(connection, request, peer)
        except (Problem, OSError):
            raise
        except Exception as error:  # of this request only: others are answered
            _log.exception("a defect of this program; the request is refused")
            raise Problem(500, "defect", f"a defect of this program ({type(error).__name__})") from error

    def _route(self, request: Request) -> Callable[[Connection, Request, str], Response]:
        if self._settings.check_host:
            self._check_host(headers_of(request))
        path = request.target.decode("latin-1").partition("?")[0]
        methods = self._routes.get(path)
        if methods is None:
            raise Problem(404, "path", f"there is no such path; there are {', '.join(self._routes)}")
        method = request.method.decode("latin-1")
        found = methods.get("GET" if method == "HEAD" else method)
        if found is None:
            allowed = ", ".join((*methods, *(["HEAD"] if "GET" in methods else [])))
            raise Problem(405, "method", f"the method must be {allowed}", {"Allow": allowed})
        return found

    def _check_host(self, headers: dict[str, str]) -> None:
        """Refuse what a page of the web makes a browser ask, by a name that it lets lead here or without a token."""
        if "host" in headers and not _LOCAL_HOST.match(headers["host"]):
            raise Problem(403, "host", "the Host of a request must be this machine: 127.0.0.1, [::1] or localhost")
        if self._settings.token is None and "origin" in headers:
            raise Problem(403, "origin", "pages of the web may ask with a token only")

    # ---------------------------------------------------------------------------------------------- routes

    def _ping(self, connection: Connection, request: Request, peer: str) -> Response:
        return Response(200, b"pong\n", "text/plain; charset=utf-8")

    def _health(self, connection: Connection, request: Request, peer: str) -> Response:
        held = self._held()
        told = {"ready": not held, "reason": held, "waiting": self._desk.waiting}
        headers = {"Retry-After": "5"} if held else {}
        return Response(503 if held else 200, msgspec.json.encode(told), headers=headers)

    def _metrics(self, connection: Connection, request: Request, peer: str) -> Response:
        from agent.sources.upload import metrics  # its library takes 4 MB: only where somebody asks

        body, kind = metrics.render(self.tally, self._state, self._desk.waiting)
        return Response(200, body, kind)

    def _describe(self, connection: Connection, request: Request, peer: str) -> Response:
        from agent.sources.upload import openapi

        return Response(200, openapi.document(self._settings.max_bytes, has_token=self._settings.token is not None))

    def _read(self, connection: Connection, request: Request, peer: str) -> Response:
        headers = headers_of(request)
        self._check_token(headers)
        self._buckets.take(peer)
        keep, key = _is_kept(request), _idempotency_key(headers)
        if held := self._held():
            raise not_now(held, _HELD.get(held, "the worker is not ready"), 5)
        self._desk.check_room()
        expected = announced(headers, self._settings.max_bytes)
        arrived = receive(connection, expected, self._incoming)
        token = hashlib.sha256(key.encode()).hexdigest()[:32] if key else ""
        ticket = self._desk.admit(arrived, token, keep=keep)
        outcome = self._desk.wait(ticket, self._settings.timeout_s)
        kind = "application/json" if outcome.status == 200 else "application/problem+json"
        return Response(outcome.status, bytes(outcome.body), kind)

    def _held(self) -> str:
        """Return why no pages are taken, one word; "" when they are."""
        if self._state is None:
            return "starting"
        return self._state.held or ("folder" if self._trouble else "")

    def _check_token(self, headers: dict[str, str]) -> None:
        if self._settings.token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        expected = self._settings.token.encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), expected):
            raise Problem(401, "token", "a bearer token is needed", {"WWW-Authenticate": 'Bearer realm="edge-ocr"'})


def _is_kept(request: Request) -> bool:
    """Return what `?store=` says; nothing means 1."""
    query = parse_qsl(urlsplit(request.target.decode("latin-1")).query, keep_blank_values=True)
    unknown = [name for name, value in query if name != "store" or value not in ("0", "1")]
    if unknown or len(query) > 1:
        raise Problem(400, "query", "the query may be store=0 or store=1")
    return query != [("store", "0")]


def _idempotency_key(headers: dict[str, str]) -> str:
    key = headers.get("idempotency-key", "")
    if "idempotency-key" in headers and not 1 <= len(key) <= _MAX_KEY:
        raise Problem(400, "key", f"an Idempotency-Key has 1 to {_MAX_KEY} characters")
    return key
