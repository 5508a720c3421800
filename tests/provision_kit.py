"""A box and a stick in folders, for tests of the first start."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

from agent.provision.box import Box
from agent.provision.identity import Identity
from agent.provision.media import Kind, Medium
from tests.broker import Authority
from tests.command import ROOT

SAMPLE = ROOT / "systemd" / "agent.toml"
SERIAL = "1421-0042-77"
MAC = "02:00:5e:10:00:01"
ME = Identity(SERIAL, (MAC,))
PLAIN = """\
device = "branch-0042"
[[source]]
type = "folder"
name = "scans"
path = "/srv/scans"
[mqtt]
host = "broker.bank"
username = "branch-0042"
"""
WHOLE = PLAIN + '[provision]\nca = "ca.pem"\ncertificate = "box.pem"\nkey = "box.key"\npassword = "open sesame"\n'


class Certificates(NamedTuple):
    """PEM text: an authority, a certificate and its key."""

    ca: str
    certificate: str
    key: str


def certificates(home: Path, days: tuple[int, int] = (-1, 30)) -> Certificates:
    """Return new ones, valid from and until so many days from today."""
    authority = Authority(home)
    certificate, key = authority.issue("box", "client", days=days)
    return Certificates(authority.file.read_text(), certificate.read_text(), key.read_text())


def lock(key: str, home: Path) -> str:
    """Return a key with a password on it."""
    (home / "open.key").write_text(key)
    command = ("openssl", "pkcs8", "-topk8", "-in", "open.key", "-passout", "pass:12345")
    return subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stdout


class Place(NamedTuple):
    """A box that was installed and given to nobody, and what a technician brings."""

    box: Box
    stick: Path

    def put(self, name: str, text: str) -> None:
        """Write a file onto the stick."""
        (self.stick / name).parent.mkdir(exist_ok=True)
        (self.stick / name).write_text(text)

    def put_all(self, text: str, made: Certificates) -> None:
        """Write edge-ocr.toml and what it names."""
        self.put("edge-ocr.toml", text)
        self.put("ca.pem", made.ca)
        self.put("box.pem", made.certificate)
        self.put("box.key", made.key)

    def medium(self, kind: Kind = "stick") -> Medium:
        """Return the stick as the program sees it."""
        return Medium(self.stick, kind, "/media/stick")

    def on_it(self) -> list[str]:
        """Return the names of what is on the stick."""
        return sorted(str(path.relative_to(self.stick)) for path in self.stick.rglob("*") if path.is_file())

    def changed(self) -> dict[str, bytes]:
        """Return all files of the box."""
        home = self.box.home.parent
        return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def place(home: Path) -> Place:
    """Make one."""
    box = Box(home / "box" / "etc" / "agent.toml", home / "box" / "units")
    box.home.mkdir(parents=True)
    box.config.write_text(SAMPLE.read_text())
    (home / "stick").mkdir()
    return Place(box, home / "stick")
