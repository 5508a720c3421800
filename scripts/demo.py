"""The whole way on one machine: broker, collector and agent; the sample pages go into a folder, rows come out.

Everything lies below build/demo/agent, the broker listens on a free port of this machine only, and all ends with this
program.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "build" / "demo" / "agent"
BUNDLE = ROOT / "models" / "build" / "ppocr-v4-x86_64-fp32"
EDGE_OCR = (str(Path(sys.executable).with_name("edge-ocr")),)
TIMEOUT_S = 90

BROKER = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
"""

AGENT = """\
device = "demo-box"
state_dir = "{home}/state"

[reader]
bundle = "{bundle}"

[[source]]
type = "folder"
name = "inbox"
path = "{home}/inbox"
stable_s = 0.5
poll_s = 1.0
"""

AGENT_MQTT = """
[mqtt]
host = "127.0.0.1"
port = {port}
tls = false  # a broker on this machine; a real one has certificates
"""

COLLECTOR = """\
name = "demo-centre"
store = "sqlite:{home}/centre.db"

[mqtt]
host = "127.0.0.1"
port = {port}
tls = false
"""


def main() -> int:
    """Run the demo; returns the exit status."""
    shutil.rmtree(HOME, ignore_errors=True)
    (HOME / "inbox").mkdir(parents=True)
    broker = find_mosquitto()
    if broker is None:
        print("mosquitto is missing, so the agent runs without a centre and keeps its results. To see the whole way:")
        print("    sudo apt-get update && sudo apt-get install -y mosquitto && make demo")
        return run_offline()
    return run_whole(broker)


def find_mosquitto() -> str | None:
    """Return the broker's program; Debian puts it where only root's path looks."""
    return shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def run_whole(broker: str) -> int:
    """Broker, collector and agent; the collector prints rows as it stores them."""
    port = free_port()
    write("mosquitto.conf", BROKER, port=port)
    agent = write("agent.toml", AGENT + AGENT_MQTT, port=port)
    centre = write("collector.toml", COLLECTOR, port=port)
    print(f"\nBroker on port {port}, collector and agent start; their logs are in {HOME.relative_to(ROOT)}/*.log")
    with (
        started("broker", broker, "-c", str(HOME / "mosquitto.conf")),
        started("collector", *EDGE_OCR, "collect", "-c", str(centre), "--print", shown=True) as collector,
        started("agent", *EDGE_OCR, "run", "-c", str(agent)),
    ):
        wanted = drop_samples()
        print(f"{wanted} sample pages are put into the folder. At the centre arrive:\n", flush=True)
        seen = count_rows(collector, wanted)
        wait_until_empty(agent)
        print("\nAnd the agent says (edge-ocr status):\n")
        subprocess.run([*EDGE_OCR, "status", "-c", str(agent)], check=False)
    if seen < wanted:
        print(f"only {seen} of {wanted} pages arrived; see {HOME.relative_to(ROOT)}/*.log", file=sys.stderr)
        return 1
    print("\nStored at the centre, and only then deleted from the agent's outbox. No picture was sent.")
    return 0


def run_offline() -> int:
    """The agent alone; results wait in its outbox."""
    agent = write("agent.toml", AGENT)
    with started("agent", *EDGE_OCR, "run", "-c", str(agent)):
        wanted = drop_samples()
        done = HOME / "inbox" / "done"
        until(lambda: done.is_dir() and len(list(done.iterdir())) >= wanted)
    return subprocess.run([*EDGE_OCR, "outbox", "list", "-c", str(agent)], check=False).returncode


def write(name: str, text: str, **values: object) -> Path:
    """Write a settings file."""
    path = HOME / name
    path.write_text(text.format(home=HOME, bundle=BUNDLE, **values), encoding="utf-8")
    return path


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def started(name: str, *command: str, shown: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends, its messages in a file."""
    with open(HOME / f"{name}.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE if shown else log, stderr=log, cwd=ROOT
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def drop_samples() -> int:
    """Copy the sample pictures into the folder, as a scanner does: written under another name, then renamed."""
    pictures = [path for path in sorted((ROOT / "samples").iterdir()) if path.suffix in (".png", ".jpg")]
    for path in pictures:
        fresh = HOME / "inbox" / f".{path.name}.part"
        shutil.copyfile(path, fresh)
        fresh.rename(HOME / "inbox" / path.name)
    return len(pictures)


def count_rows(collector: subprocess.Popen[bytes], wanted: int) -> int:
    """Print what the collector prints; returns how many rows that were when all or the time is over."""
    assert collector.stdout is not None
    os.set_blocking(collector.stdout.fileno(), False)
    deadline, seen, begun = time.monotonic() + TIMEOUT_S, 0, b""
    while seen < wanted and time.monotonic() < deadline and collector.poll() is None:
        with contextlib.suppress(BlockingIOError):
            *rows, begun = (begun + os.read(collector.stdout.fileno(), 1 << 16)).split(b"\n")
            seen += len(rows)
            for row in rows:
                print(row.decode(errors="replace"), flush=True)
        time.sleep(0.05)
    return seen


def wait_until_empty(agent: Path) -> None:
    """Wait until every row has its receipt."""
    command = [*EDGE_OCR, "outbox", "stats", "-c", str(agent), "--json"]

    def empty() -> bool:
        told = subprocess.run(command, capture_output=True, check=False).stdout
        return b'"pending":0' in told and b'"brokered":0' in told

    until(empty, 10)


def until(happened: object, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition holds, or the time is over."""
    assert callable(happened)
    deadline = time.monotonic() + timeout_s
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
