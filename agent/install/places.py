"""Where a release and what belongs to it are on a box."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

OPT = Path("/opt/edge-ocr")
RELEASES = OPT / "releases"
CURRENT = OPT / "current"
"""The link that says which release runs: replacing it is the switch."""
PREVIOUS = OPT / "previous"
"""The link to the release before, for `--rollback`."""
SWITCHING = OPT / "switching"
"""A link to the release that ran when a switch began, or to NOTHING; it is there only while one lasts."""
BEFORE_SWITCHING = OPT / "before-switching"
"""Likewise the link to the release before that one."""
NOTHING = "nothing"

CONFIG_DIR = Path("/etc/edge-ocr")
SETTINGS = CONFIG_DIR / "agent.toml"
STATE_DIR = Path("/var/lib/edge-ocr")
CACHE_DIR = Path("/var/cache/edge-ocr")
DROP_INS = Path("/etc/systemd/system")
DROP_IN = "10-settings.conf"  # agent.units.NAME
KEYS_DROP_IN = "20-keys.conf"  # agent.provision.apply.KEYS
USER = "edge-ocr"
NAME = "edge-ocr"
TARGET = "edge-ocr.target"


class Manner(NamedTuple):
    """How a release came here, and so where its units and its command are.

    Attributes:
        name: "run" or "deb".
        units: folder of units.
        command: the command's link.
    """

    name: str
    units: Path
    command: Path


RUN = Manner("run", Path("/usr/local/lib/systemd/system"), Path("/usr/local/bin/edge-ocr"))
DEB = Manner("deb", Path("/usr/lib/systemd/system"), Path("/usr/bin/edge-ocr"))
