"""Stands in for systemd: a socket that programs tell how they are."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path


class Init:
    """Receives what programs tell.

    Attributes:
        told: all of it, in order.
    """

    def __init__(self, address: str) -> None:
        """Listen at a path, or with "@" at an abstract name."""
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self.told: list[str] = []

    def environment(self, watchdog_s: float = 0.0) -> dict[str, str]:
        """Return what systemd adds to a program's environment; without a process number, as that is not known yet."""
        watched = {"WATCHDOG_USEC": str(round(1e6 * watchdog_s))} if watchdog_s else {}
        return {"NOTIFY_SOCKET": self._address, **watched}

    def listen(self, for_s: float) -> list[str]:
        """Return what is told in a time."""
        fresh: list[str] = []
        until = time.monotonic() + for_s
        while (left := until - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                fresh.append(self._socket.recv(4096).decode())
            except TimeoutError:
                break
        self.told += fresh
        return fresh

    def wait(self, happened: Callable[[str], bool], timeout_s: float = 30.0) -> str:
        """Wait until something is told; "" when it is not in time."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if found := next((line for line in self.listen(0.1) if happened(line)), ""):
                return found
        return ""

    def close(self) -> None:
        self._socket.close()


def internet_sockets(trace: Path) -> list[str]:
    """Return the lines of a trace of network calls that make a socket other than AF_UNIX."""
    lines = trace.read_text(errors="replace").splitlines()
    return [line for line in lines if "socket" in line and ("AF_INET" in line or "AF_PACKET" in line)]


def socket_inode(pid: int, descriptor: int) -> str:
    """Return what names an open socket of a process."""
    return os.readlink(f"/proc/{pid}/fd/{descriptor}")
