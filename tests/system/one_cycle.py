"""The worker takes one page and ends: for tests that stop or fail it at every single system call.

python -m tests.system.one_cycle HOME
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from agent import health
from agent.clock import Clock
from agent.config import AgentConfig, OutboxConfig
from agent.errors import AgentError
from agent.openers import open_sources
from agent.outbox import Outbox
from agent.source_config import FolderConfig
from agent.worker import Worker
from tests.stub_worker import StubReader

OUTBOX = OutboxConfig(min_free_mb=0, ballast_mb=0, max_attempts=100)


def settings(home: Path) -> AgentConfig:
    """Return the settings of a branch below a directory."""
    folder = FolderConfig(name="inbox", path=str(home / "inbox"), stable_s=0.05, poll_s=0.05)
    return AgentConfig(device="box-1", state_dir=str(home / "state"), source=(folder,), outbox=OUTBOX)


def main(home: Path, patience_s: float = 1.0) -> int:
    """Work until the folder is empty, or nothing has moved for a while."""
    config, clock = settings(home), Clock()
    health.set_up_logging("worker", "info")
    outbox = Outbox(home / "state", OUTBOX, role="worker", clock=clock)
    worker = Worker(config, outbox, open_sources(config, clock), lambda: (StubReader(), "stub"), clock)
    worker.start()
    end = clock.monotonic() + patience_s
    while clock.monotonic() < end and (any((home / "inbox").glob("*.png")) or any((home / "inbox").rglob("work/*/*"))):
        if not worker.tick():
            time.sleep(0.01)
    worker.close()
    outbox.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except AgentError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.code))
