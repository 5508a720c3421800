"""A box takes what a stick has and ends: for tests that stop or fail it at every single system call.

python -m tests.system.one_provision HOME
"""

from __future__ import annotations

import sys
from pathlib import Path

from agent.errors import AgentError
from agent.provision import apply
from agent.provision.box import Box
from tests.provision_kit import ME


def main(home: Path) -> int:
    """Do it in a folder that `tests.provision_kit.place` has made; HOME/root is a system with the stick in it."""
    apply.search(Box(home / "box/etc/agent.toml", home / "box/units"), ME, 0.0, home / "root")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except AgentError as error:
        print(error, file=sys.stderr)
        sys.exit(int(error.code))
