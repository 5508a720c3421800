"""Measures the centre under a fleet: many devices, one mosquitto, collectors that share their work, one PostgreSQL.

    python -m tests.bench.fleet [--devices 1000] [--rows 20] [--processes 2] [--collectors 2] [--rate 100]
                                [--seconds 15]

First every device sends now and then (`--rate` rows per second, all together): the lag from sending a row to its
receipt. Then every device sends `--rows` rows as fast as receipts let it: rows per second. Devices are real MQTT
clients, some hundred in each of a few processes, and share the machine with the centre. The last line is JSON; exit
status 1 when a row is lost, unexpected or duplicated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from agent.health import resident_mb
from tests.broker import Broker
from tests.command import ROOT
from tests.light_device import LightDevice, page
from tests.postgres import Postgres
from tests.system.collectors import Member

BROKER = """\
max_inflight_messages 200
max_queued_messages 100000
max_connections -1
"""
LINES = 40
"""Lines of a page: a result has about five kilobytes."""
PATIENCE_S = 300.0


# ------------------------------------------------------------------------------------- one process of devices


class Fleet:
    """Devices in one process, driven by what their sockets say."""

    def __init__(self, names: list[str], port: int, collectors: int) -> None:
        self.devices = [LightDevice(name, port, receipt_s=60.0) for name in names]
        self._collectors = collectors
        self._poll = select.epoll()
        self._by_file: dict[int, LightDevice] = {}
        self._looked_at = 0.0
        for device in self.devices:
            device.keep_receipts = False

    def step(self) -> None:
        """Do what is due."""
        for file, _ in self._poll.poll(0.02):
            device = self._by_file[file]
            device.read()
            if device.fileno() == file:
                device.send(time.monotonic())
        if time.monotonic() - self._looked_at > 0.5:
            self._look()

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        for device in self.devices:
            device.step()
            file = device.fileno()
            if file >= 0 and self._by_file.get(file) is not device:
                self._by_file[file] = device
                self._poll.register(file, select.EPOLLIN)

    def connect(self) -> None:
        while not all(len(device.online) == self._collectors for device in self.devices):
            self.step()

    def send_at(self, rate: float, seconds: float) -> None:
        """Let one device after the other send a row, so many per second."""
        began = time.monotonic()
        sent = 0
        while time.monotonic() - began < seconds:
            while sent < rate * (time.monotonic() - began):
                device = self.devices[sent % len(self.devices)]
                device.put(_result(device.name))
                device.send(time.monotonic())
                sent += 1
            self.step()
        self._finish()

    def send_all(self, rows: int) -> None:
        """Let every device send so many rows as fast as it can."""
        for device in self.devices:
            for _ in range(rows):
                device.put(_result(device.name))
        self._looked_at = 0.0
        self._finish()

    def _finish(self) -> None:
        while not all(device.done for device in self.devices):
            self.step()

    def told(self, began: float) -> dict[str, Any]:
        """Return what happened since the last time."""
        lags = [lag for device in self.devices for lag in device.lags_s]
        for device in self.devices:
            device.lags_s.clear()
        refused = sum(len(device.refused) for device in self.devices)
        return {"began": began, "ended": time.monotonic(), "lags_s": lags, "refused": refused, "rss": resident_mb()}


def _result(name: str) -> bytes:
    line = {"text": "x" * 30, "score": 0.987654, "quad": [[10.5, 20.5], [300.5, 20.5], [300.5, 44.5], [10.5, 44.5]]}
    return page(f"{name} {random.random()}", lines=[{**line, "box_score": 0.9}] * LINES)


def be_devices(arguments: argparse.Namespace) -> None:
    """Be one process of devices; orders come line by line."""
    names = [f"box-{number}" for number in range(arguments.part, arguments.devices, arguments.processes)]
    fleet = Fleet(names, arguments.port, arguments.collectors)
    fleet.connect()
    print(json.dumps({"connected": len(names)}), flush=True)
    for order in sys.stdin:
        verb, *numbers = order.split()
        began = time.monotonic()
        if verb == "rate":
            fleet.send_at(float(numbers[0]), float(numbers[1]))
        else:
            fleet.send_all(int(numbers[0]))
        print(json.dumps(fleet.told(began)), flush=True)


# ------------------------------------------------------------------------------------------------- the whole


class Part:
    """A process of devices, seen from outside."""

    def __init__(self, arguments: argparse.Namespace, number: int, port: int) -> None:
        given = {"devices": arguments.devices, "processes": arguments.processes, "collectors": arguments.collectors}
        options = [f"--{name}={value}" for name, value in {**given, "part": number, "port": port}.items()]
        command = (sys.executable, "-m", "tests.bench.fleet", *options)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)

    def order(self, *words: object) -> None:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            raise TimeoutError("the devices are not done")
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start everything, let the devices send, and return the figures."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    members: list[Member] = []
    parts: list[Part] = []
    with tempfile.TemporaryDirectory() as name, Postgres(durable=True) as server, _broker(Path(name)) as broker:
        try:
            store = server.fresh()
            for number in range(arguments.collectors):
                members.append(Member(Path(name), broker.port, store, name=f"c{number}", group="centre", batch=200))
                members[-1].start()
            parts += [Part(arguments, number, broker.port) for number in range(arguments.processes)]
            say(f"{sum(part.answer()['connected'] for part in parts)} devices are connected")
            before = [_resident(member) for member in members]
            steady = phase(parts, "rate", arguments.rate / arguments.processes, arguments.seconds)
            say(f"now and then: {json.dumps(steady)}")
            used = [_cpu_s(member) for member in members]
            flood = phase(parts, "all", arguments.rows)
            cpu = [_cpu_s(member) - earlier for member, earlier in zip(members, used, strict=True)]
            say(f"all at once: {json.dumps(flood)}")
            return {
                "devices": arguments.devices,
                "steady": steady,
                "flood": flood,
                "collector_cpu_us_per_row": round(1e6 * sum(cpu) / max(1, flood["rows"])),
                "collector_rss_mb": {"before": before, "after": [_resident(member) for member in members]},
                "collector_peak_mb": [_peak(member) for member in members],
                **judge(server, store, arguments.devices, steady["rows"] + flood["rows"]),
            }
        finally:
            for part in parts:
                part.end()
            for member in members:
                member.kill()


def _broker(home: Path) -> Broker:
    return Broker(home / "broker", more=BROKER)


def phase(parts: list[Part], *order: object) -> dict[str, Any]:
    """Give an order to all, and return rows, rows per second and lags."""
    for part in parts:
        part.order(*order)
    told = [part.answer() for part in parts]
    assert not sum(one["refused"] for one in told)
    lags = sorted(lag for one in told for lag in one["lags_s"])
    seconds = max(one["ended"] for one in told) - min(one["began"] for one in told)
    cuts = statistics.quantiles(lags, n=100)
    return {
        "rows": len(lags),
        "rows_per_s": round(len(lags) / seconds, 1),
        "receipt_p50_ms": round(1000 * cuts[49], 1),
        "receipt_p99_ms": round(1000 * cuts[98], 1),
        "receipt_max_ms": round(1000 * lags[-1], 1),
    }


def judge(server: Postgres, store: str, devices: int, submitted: int) -> dict[str, int]:
    """Return the accounting."""
    ((rows, keys, names),) = server.execute(
        "SELECT COUNT(*), COUNT(DISTINCT (device, epoch, seq)), COUNT(DISTINCT device) FROM results", store
    )
    ((others,),) = server.execute("SELECT COUNT(*) FROM conflicts", store)
    ((rejects,),) = server.execute("SELECT COUNT(*) FROM rejects", store)
    lost, unexpected = max(0, submitted - keys), max(0, keys - submitted) + max(0, names - devices)
    stored = {"submitted": submitted, "accepted": submitted, "stored": rows, "lost": lost, "unexpected": unexpected}
    return {**stored, "duplicated": rows - keys, "conflicts": others, "rejects": rejects}


def _resident(member: Member) -> float:
    return _status(member, "VmRSS")


def _peak(member: Member) -> float:
    return _status(member, "VmHWM")


def _status(member: Member, name: str) -> float:
    assert member.process is not None
    lines = Path(f"/proc/{member.process.pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024, 1)


def _cpu_s(member: Member) -> float:
    assert member.process is not None
    fields = Path(f"/proc/{member.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=20, help="of each device, in the second part")
    parser.add_argument("--processes", type=int, default=2, help="for the devices")
    parser.add_argument("--collectors", type=int, default=2)
    parser.add_argument("--rate", type=float, default=100.0, help="rows per second of all devices, in the first part")
    parser.add_argument("--seconds", type=float, default=15.0, help="of the first part")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.part is not None:
        be_devices(arguments)
        return 0
    told = measure(arguments)
    print(json.dumps(told))
    return 1 if told["lost"] or told["unexpected"] or told["duplicated"] else 0


if __name__ == "__main__":
    sys.exit(main())
