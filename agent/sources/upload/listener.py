"""The listening socket, and a thread for each connection that came through it."""

from __future__ import annotations

import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from agent.errors import ConfigError
from agent.memory import share_heap
from agent.source_config import UploadConfig, loopback
from agent.sources.upload.connection import Connection, refused
from agent.sources.upload.problems import not_now

_log = logging.getLogger(__name__)

_BACKLOG = 64
_FIRST_PASSED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_END_S = 5.0
_STACK_BYTES = 512 << 10


def open_socket(config: UploadConfig, *, has_token: bool) -> socket.socket:
    """Return the configured socket, listening.

    Raises:
        ConfigError: it cannot be had, or would let others ask than it should.
    """
    try:
        if config.listen == "systemd":
            return _passed(config, has_token)
        if config.listen.startswith("unix:"):
            return _unix(config.listen.removeprefix("unix:"))
        host, port = loopback(config.listen) or ("127.0.0.1", 0)  # other addresses the settings have refused
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _bound(listening, (host, port))
    except OSError as error:
        said = f"source {config.name}: listen = {config.listen!r}: {error.strerror}"
        raise ConfigError(f"{said}: end what listens there, or choose another") from error


def _bound(listening: socket.socket, address: tuple[str, int] | str) -> socket.socket:
    try:
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def _unix(path: str) -> socket.socket:
    """Return a socket at a path; one that a killed worker left there is replaced, one that answers is not."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as trial:
                try:
                    trial.connect(path)
                except ConnectionRefusedError:
                    os.unlink(path)
    listening = _bound(socket.socket(socket.AF_UNIX), path)
    os.chmod(path, 0o660)
    return listening


def _passed(config: UploadConfig, has_token: bool) -> socket.socket:
    """Return the socket that systemd passed: the one with the source's name, or the only one."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise ConfigError(
            f'source {config.name}: listen = "systemd": no socket was passed; start the worker by a socket unit,'
            " as a service of its own (edge-ocr worker)"
        )
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    number = names.index(config.name) if config.name in names else 0
    if number >= count or (count > 1 and config.name not in names):
        raise ConfigError(f"source {config.name}: none of the {count} sockets has FileDescriptorName={config.name}")
    descriptor = os.dup(_FIRST_PASSED + number)  # the first stays for this process when it replaces itself
    passed = socket.socket(fileno=descriptor)
    if passed.family != socket.AF_UNIX and not (has_token or config.anyone):
        passed.close()
        raise ConfigError(f"source {config.name}: the socket that was passed is no unix socket: give `token`")
    if passed.family != socket.AF_UNIX and not passed.getsockname()[0].startswith(("127.", "::1")):
        passed.close()
        raise ConfigError(f"source {config.name}: the socket that was passed can be reached from other machines")
    passed.setblocking(True)
    return passed


def _start(thread: threading.Thread) -> None:
    """Start a thread with a small stack: whole stacks count against the worker's limit on memory."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        thread.start()
    finally:
        threading.stack_size(before)


class Listener:
    """Accepts connections; each gets a thread, up to a number."""

    def __init__(
        self, listening: socket.socket, exchange: Callable[[Connection, str], bool], most: int, path: str = ""
    ) -> None:
        """Start listening.

        Args:
            listening: the socket; the listener's from here on.
            exchange: answers the next request on a connection, of a peer by its name; true when another may follow.
            most: connections at the same time.
            path: of a unix socket that is removed at the end.
        """
        self._socket = listening
        self._exchange = exchange
        self._most = most
        self._path = path
        self._stopping = False
        self._lock = threading.Lock()
        self._open: dict[Connection, threading.Thread] = {}
        self._stop_out, self._stop_in = os.pipe2(os.O_CLOEXEC)
        share_heap()
        self._thread = threading.Thread(target=self._accept, name="listen", daemon=True)
        _start(self._thread)

    def _accept(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket.fileno(), self._stop_out], [], [])
            if self._stop_out in ready:
                return
            try:
                peer, address = self._socket.accept()
            except OSError as error:  # the peer has gone, or there are no more descriptors
                _log.debug("accept: %s", error)
                time.sleep(0.05)
                continue
            self._begin(peer, address)

    def _begin(self, peer: socket.socket, address: object) -> None:
        connection = Connection(peer)
        with self._lock:
            if len(self._open) < self._most:
                name = address[0] if isinstance(address, tuple) else "local"
                thread = threading.Thread(target=self._speak, args=(connection, name), name="upload", daemon=True)
                self._open[connection] = thread
                try:
                    _start(thread)
                    return
                except RuntimeError:  # the limit on memory leaves no room for its stack
                    del self._open[connection]
        with suppress(OSError):
            connection.turn_away(refused(not_now("connections", "too many connections are open", 1)))
        connection.close()

    def _speak(self, connection: Connection, name: str) -> None:
        try:
            while self._exchange(connection, name):
                connection.last = self._stopping or 4 * len(self._open) > 3 * self._most  # others want in
        except OSError as error:  # the peer has gone
            _log.debug("connection: %s", error)
        finally:
            connection.close()
            with self._lock:
                del self._open[connection]

    def close(self) -> None:
        """Listen no more, and end all connections, those that wait for an answer after it."""
        self._stopping = True
        os.write(self._stop_in, b"!")
        self._thread.join()
        if self._path:
            with suppress(OSError):
                os.unlink(self._path)
        self._socket.close()
        deadline = time.monotonic() + _END_S
        for connection, thread in tuple(self._open.items()):
            connection.last = True
            if connection.waits:
                connection.hang_up()
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection in tuple(self._open):
            connection.hang_up()
        for thread in tuple(self._open.values()):
            thread.join(1.0)
        os.close(self._stop_in)
        os.close(self._stop_out)
