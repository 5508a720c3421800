"""The settings of an agent that reads one folder, as tests write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


def agent_toml(home: Path, **sections: Any) -> str:
    """Return the settings of an agent that reads `home/inbox` with its state in `home/state`.

    Args:
        home: a folder.
        sections: each adds keys to a section, or replaces some: `reader={"bundle": "..."}`; `source` is the folder's.
    """
    folder = {"type": "folder", "name": "inbox", "path": f"{home}/inbox", "stable_s": 0.05, "poll_s": 0.1}
    settings: dict[str, Any] = {
        "device": "box-1",
        "state_dir": f"{home}/state",
        **sections,
        "source": [{**folder, **sections.get("source", {})}],
        "outbox": {"min_free_mb": 0, **sections.get("outbox", {})},
    }
    return msgspec.toml.encode(settings).decode()


def broker_here(port: int, **more: Any) -> dict[str, Any]:
    """Return the section of a broker of this machine, without TLS."""
    return {"host": "127.0.0.1", "port": port, "tls": False, **more}
