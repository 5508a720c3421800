"""One cycle of an outbox, killed or failed at every single call that changes its files: nothing accepted is lost."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT, environment
from tests.outbox_kit import fill, opened, result

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt install strace")

CALLS = ("pwrite64", "fdatasync", "ftruncate")
FAULTS = (
    ("signal=SIGKILL:when={}", 1),
    ("error=EIO:when={}", 1),
    ("error=EIO:when={}+", 3),
    ("error=ENOSPC:when={}+", 3),
)
"""What happens at the n-th call, and of how many n one is tried."""

CYCLE = """
import sys
from pathlib import Path
from agent.errors import OutboxError
from agent.outbox import Marks, Outbox
from tests.outbox_kit import NO_BALLAST, result

def step(name, work):
    try:
        print(name, work(), flush=True)
    except OutboxError:
        print("refused", name, flush=True)

path = Path(sys.argv[1])
worker, uplink = (Outbox(path, NO_BALLAST, role=role) for role in ("worker", "uplink"))
epoch = worker._db.run(lambda c: dict(c.execute("SELECT key, value FROM meta"))["epoch"], write=False)
step("begun", lambda: worker.begin("page", "dock", "page.jpg"))
step("accepted", lambda: worker.accept("page", result("page", 6000)))
step("brokered", lambda: uplink.record(Marks(brokered=((epoch, 1), (epoch, 2)))))
step("stored", lambda: uplink.record(Marks(stored={epoch: ((1, 1),)})))
print("held", worker.held() or "no", flush=True)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """An outbox with three rows, settled, so that a cycle is the same each time."""
    path = tmp_path_factory.mktemp("template")
    for _ in range(2):
        with opened(path) as box:
            if not box.stats().pending:
                fill(box, 3)
    return path


def cycle(template: Path, path: Path, *strace: str) -> dict[str, str]:
    """Run a cycle on a copy of the template; returns what it said, by the first word."""
    shutil.copytree(template, path)
    command = [
        "strace",
        "-qq",
        "-o",
        path.parent / "log",
        *strace,
        sys.executable,
        "-c",
        CYCLE,
        path,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(path.parent), capture_output=True)
    assert done.returncode in (0, 137, -9), done.stderr.decode()
    return dict(line.split(" ", 1) for line in done.stdout.decode().splitlines())


def calls_of(template: Path, path: Path, call: str) -> int:
    """How often an undisturbed cycle makes a call."""
    said = cycle(template, path, "-e", f"trace={call}")
    assert said == {"begun": "1", "accepted": "4", "brokered": "None", "stored": "None", "held": "no"}
    return len((path.parent / "log").read_text().splitlines())


def losses(path: Path, said: dict[str, str]) -> list[str]:
    """What was said and is not so."""
    with opened(path) as box:
        rows = {row.key: row for row in box.rows()}
        wrong = [key for key, row in rows.items() if row.result != result(key, 6000 if key == "page" else 0)]
        wrong += [key for key in ("page-00001", "page-00002") if key not in rows]
        wrong += ["accepted"] * ("accepted" in said and rows.get("page") is None)
        wrong += ["verdict"] * ("accepted" in said and box.intake("page").status != "accepted")
        wrong += ["begun"] * ("begun" in said and box.intake("page").attempts < 1)
        wrong += ["brokered"] * ("brokered" in said and rows["page-00001"].state != 1)
        wrong += ["stored"] * ("stored" in said and "page-00000" in rows)
        wrong += [f"held {box.held()}"] * (box.held() != "")
        box.accept("after", b"1")
    with_sqlite = sqlite3.connect(path / "outbox.db")
    wrong += [] if with_sqlite.execute("PRAGMA integrity_check").fetchone() == ("ok",) else ["integrity"]
    with_sqlite.close()
    return wrong + [aside.name for aside in path.glob("outbox.corrupt-*")]


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "stride"), FAULTS)
def test_nothing_accepted_is_lost_at_any_call(template, tmp_path, fault, stride):
    account = {"runs": 0, "submitted": 0, "accepted": 0, "lost": 0, "refused": 0}
    for call in CALLS:
        count = calls_of(template, tmp_path / call, call)
        assert count > 2
        for at in range(1, count + 1, stride):
            path = tmp_path / f"{call}-{at}"
            # --seccomp-bpf makes the rest fast, but strace 6.1 forgets to deliver signals with it.
            fast = () if "SIGKILL" in fault else ("-f", "--seccomp-bpf")
            said = cycle(template, path, *fast, "-e", f"trace={call}", "-e", f"inject={call}:{fault.format(at)}")
            wrong = losses(path, said)
            assert not wrong, f"{call} {fault.format(at)}: {wrong} after {said}"
            account["runs"] += 1
            account["submitted"] += 1
            account["accepted"] += "accepted" in said
            account["refused"] += "refused" in said
            assert ("held" in said) == ("SIGKILL" not in fault), "the fault did not happen"
            shutil.rmtree(path)
    print(json.dumps(account))
    assert account["accepted"] > 0
    if fault.endswith("{}"):
        assert account["refused"] == 0  # killed, or healed: one failure alone never refuses a page
    else:
        assert account["refused"] > 0
