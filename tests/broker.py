"""Starts a real mosquitto on a free loopback port, with its own directory, and certificates made by openssl for it."""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin") or "mosquitto"
START_S = 10.0

_CA_CONFIG = """
[ca]
default_ca = here
[here]
dir = {directory}
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
default_md = sha256
policy = any
copy_extensions = none
unique_subject = no
[any]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = CA:FALSE
subjectAltName = {names}
extendedKeyUsage = serverAuth
[client]
basicConstraints = CA:FALSE
extendedKeyUsage = clientAuth
"""


def free_port() -> int:
    """Return a loopback port that nothing listens at just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Authority:
    """Signs certificates: with any time of validity, for any name."""

    def __init__(self, directory: Path, name: str = "test-authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.file = directory / "ca.pem"
        (directory / "index.txt").write_text("")
        (directory / "serial").write_text("1000\n")
        self._config("DNS:localhost")
        self._key("ca")
        self._openssl(
            f"req -x509 -new -key ca.key -days 3650 -out ca.pem -config ca.cnf -extensions root -subj /CN={name}"
        )

    def issue(
        self,
        name: str,
        kind: str = "server",
        *,
        names: str = "DNS:localhost,IP:127.0.0.1",
        days: tuple[int, int] = (-1, 30),
    ) -> tuple[Path, Path]:
        """Return the files of a certificate and its key.

        Args:
            name: common name, and name of the files.
            kind: "server" or "client".
            names: subjectAltName of a server.
            days: first and last day of validity, from today.
        """
        file = f"{name}-{kind}"
        self._config(names)
        self._key(file)
        self._openssl(f"req -new -key {file}.key -subj /CN={name} -out {file}.csr -config ca.cnf")
        now = datetime.datetime.now(datetime.timezone.utc)
        start, end = ((now + datetime.timedelta(days=day)).strftime("%Y%m%d%H%M%SZ") for day in days)
        self._openssl(
            f"ca -batch -notext -config ca.cnf -extensions {kind} -startdate {start} -enddate {end}"
            f" -cert ca.pem -keyfile ca.key -in {file}.csr -out {file}.pem"
        )
        return self.directory / f"{file}.pem", self.directory / f"{file}.key"

    def _config(self, names: str) -> None:
        text = _CA_CONFIG.format(directory=self.directory, names=names)
        (self.directory / "ca.cnf").write_text(f"{text}\n[req]\ndistinguished_name = any\n")

    def _key(self, name: str) -> None:
        self._openssl(f"ecparam -name prime256v1 -genkey -noout -out {name}.key")

    def _openssl(self, arguments: str) -> None:
        subprocess.run(("openssl", *arguments.split()), cwd=self.directory, check=True, capture_output=True)


class Broker:
    """A mosquitto of this test's own."""

    def __init__(
        self,
        directory: Path,
        *,
        authority: Authority | None = None,
        server: tuple[Path, Path] | None = None,
        client_authority: Path | None = None,
        passwords: dict[str, str] | None = None,
        queue: int | None = None,
        persistence: bool = False,
        more: str = "",
    ) -> None:
        """Start it.

        Args:
            directory: made; holds configuration, log and what the broker keeps.
            authority: with one the listener is for TLS, with a certificate for localhost.
            server: another certificate and key for the listener.
            client_authority: clients need a certificate of this one.
            passwords: with some, others are refused.
            queue: `max_queued_messages`.
            persistence: whether it keeps sessions and messages over a restart.
            more: lines of its configuration.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} 127.0.0.1",
            f"user {'root' if os.geteuid() == 0 else 'mosquitto'}",
            f"allow_anonymous {'false' if passwords else 'true'}",
            f"persistence {'true' if persistence else 'false'}",
            f"persistence_location {directory}/",
            "log_type all",
            "set_tcp_nodelay true",
        ]
        if queue is not None:
            lines.append(f"max_queued_messages {queue}")
        if authority is not None and server is None:
            server = authority.issue("localhost")
        if server is not None:
            lines += [f"certfile {server[0]}", f"keyfile {server[1]}"]
        if client_authority is not None:
            lines += [f"cafile {client_authority}", "require_certificate true"]
        if passwords:
            lines.append(f"password_file {self._password_file(passwords)}")
        self._configuration = directory / "mosquitto.conf"
        self._configuration.write_text("\n".join((*lines, more, "")))
        self.start()

    @property
    def log(self) -> str:
        """What it logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it again, at the same port."""
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen((MOSQUITTO, "-c", self._configuration), stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"mosquitto does not start:\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def freeze(self, frozen: bool = True) -> None:
        """Let it hang, or go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1.0).close()
        except OSError:
            return False
        return True

    def _password_file(self, passwords: dict[str, str]) -> Path:
        path = self.directory / "passwords"
        path.write_text("")
        path.chmod(0o600)
        for user, password in passwords.items():
            subprocess.run(("mosquitto_passwd", "-b", path, user, password), check=True, capture_output=True)
        return path
