"""What tests of installing share: where things are on a box, and what must not be lost on one."""

from __future__ import annotations

import os

from tests.system.machine import Machine
from tests.system.root import Root

OLD, NEW = "1.0.0", "2.0.0"
INSTALL = "/opt/edge-ocr/current/install.py"
SETTINGS = "/etc/edge-ocr/agent.toml"
OWN_SETTINGS = 'device = "branch-7"\n'
PAGE = "/var/lib/edge-ocr/inbox/page.txt"


def version(box: Root | Machine) -> str:
    """Return the version that the command tells; "" when it does not run."""
    said = box.run("/opt/edge-ocr/current/venv/bin/edge-ocr", "--version")
    return said.out.strip().removeprefix("edge-ocr, version ")


def releases(box: Root) -> set[str]:
    return set(os.listdir(box.path("/opt/edge-ocr/releases")))


def put_own(box: Root) -> None:
    """Give a box settings of its own and a page that waits."""
    box.path(SETTINGS).write_text(OWN_SETTINGS)
    box.path(PAGE).write_text("waits")


def assert_kept(box: Root) -> None:
    """Both are still there."""
    assert box.path(SETTINGS).read_text() == OWN_SETTINGS
    assert box.path(PAGE).read_text() == "waits"
