"""Whose the agent's files are, and what that user may do: root sees and writes what the agent cannot."""

from __future__ import annotations

import os
import pwd
import subprocess
from pathlib import Path

from agent.check.finding import is_root

_ASK_S = 3.0


def owner(state_dir: Path) -> str:
    """Return the name of whom the state belongs to, when this is root and that is somebody else; else ""."""
    try:
        uid = state_dir.stat().st_uid
        return pwd.getpwuid(uid).pw_name if uid and is_root() else ""
    except (OSError, KeyError):
        return ""


def may(user: str, path: Path, ways: str) -> bool:
    """Return whether a user may do something with a path, access lists included.

    Args:
        user: whom is asked for; "" is who runs this.
        path: it is about.
        ways: letters of r, w and x.
    """
    if not user:
        return os.access(path, sum({"r": os.R_OK, "w": os.W_OK, "x": os.X_OK}[way] for way in ways))
    record = pwd.getpwnam(user)
    asked = " && ".join(f'test -{way} "$1"' for way in ways)
    try:
        ran = subprocess.run(
            ("sh", "-c", asked, "sh", path),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=record.pw_uid,
            group=record.pw_gid,
            extra_groups=os.getgrouplist(user, record.pw_gid),
            cwd="/",
            timeout=_ASK_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0
