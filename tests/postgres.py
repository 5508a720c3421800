"""Starts a real PostgreSQL on a free loopback port, with its own directory, as a user who is not root."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.broker import free_port

START_S = 30.0
USER = "postgres"  # Debian's package makes it; the server refuses to run as root
GUARDED = "guarded"  # a role of this name needs its password; all others need none


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs; Debian keeps most of them out of PATH."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: float(place.parent.name), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, places), os.environ.get("PATH", "")]))
    if found is None:
        raise AssertionError(f"{name} is missing: apt-get install postgresql")
    return found


class Postgres:
    """A PostgreSQL of this test's own, with databases as needed."""

    def __init__(self, *, durable: bool = False, **settings: str | int) -> None:
        """Make it and start it.

        Args:
            durable: whether it waits for the disk; a crash of the server alone loses nothing without that.
            settings: of postgresql.conf.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="pg-"))
        self.port = free_port()
        self._names = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._account: dict[str, Any] = {}
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            os.chown(self.directory, account.pw_uid, account.pw_gid)
            self._account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        self._settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "autovacuum_naptime": 30,
            "fsync": "on" if durable else "off",
            **settings,
        }
        arguments = ("--no-sync", "--no-instructions", "-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C")
        self._run(program("initdb"), "-D", self.directory / "data", *arguments)
        rules = self.directory / "data" / "pg_hba.conf"
        rules.write_text(f"host all {GUARDED} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self.start()

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    def url(self, database: str = "postgres", user: str = USER) -> str:
        """Return the address of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def fresh(self, options: str = "") -> str:
        """Return the address of a new, empty database."""
        self._names += 1
        name = f"fresh_{self._names}"
        self.execute(f"CREATE DATABASE {name} {options}")
        return self.url(name)

    def execute(self, sql: str, url: str = "") -> list[tuple[Any, ...]]:
        """Run one statement; return its rows."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        """Start it, also after a crash."""
        command = [program("postgres"), "-D", str(self.directory / "data")]
        command += [part for name, value in self._settings.items() for part in ("-c", f"{name}={value}")]
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, **self._account
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"PostgreSQL does not start:\n{self.log}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in order, without waiting for its clients."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """End it at once, in the middle of everything; it recovers from its log at the next start."""
        self._end(signal.SIGQUIT)

    def freeze(self, frozen: bool = True) -> None:
        """Let all of it hang, or go on."""
        assert self._process is not None
        number = signal.SIGSTOP if frozen else signal.SIGCONT
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            os.kill(pid, number)

    def remove(self) -> None:
        """End it and take its directory away."""
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Postgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(command, cwd=self.directory, capture_output=True, check=False, **self._account)
        if done.returncode:
            raise AssertionError(f"{command[0]}: {done.stderr.decode(errors='replace')}")


@functools.cache
def shared() -> Postgres:
    """Return one server for all tests of this process that do not break it."""
    server = Postgres()
    atexit.register(server.remove)
    return server
