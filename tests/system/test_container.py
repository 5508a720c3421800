"""The image, built by its own Dockerfile, and the containers of compose.yaml, run as closed as they ask to be.

Only the base is not the one of the registry: it is made of the same Debian release.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
import yaml

from agent import __version__, heartbeat
from agent.health import WATCHDOG_S
from tests.command import ROOT, Ran
from tests.system import engine, roots
from tests.system.branch import until
from tests.system.engine import Engine
from tests.system.images import CLOSED, IMAGE, MAX_MB, base, checkout, installed_mb
from tests.test_container import AGENT, COMPOSE

# Debian's mosquitto where the registry's image has its own.
BROKER = """
FROM {base}
RUN apt-get update && apt-get install -y --no-install-recommends mosquitto && install -d -o 1883 -g 1883 /mosquitto/data
ENTRYPOINT ["/usr/sbin/mosquitto", "-c", "/mosquitto/config/mosquitto.conf"]
"""
LOOK = """
import os
told = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(*(told[name].strip() for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")))
print(os.getuid(), os.getgid(), *sorted(os.listdir("/sys/class/net")))
for path in ("/opt/edge-ocr/x", "/etc/x", "/usr/x", "/var/lib/edge-ocr/x", "/tmp/x"):
    try:
        open(path, "w").close()
        print("written")
    except OSError as error:
        print(error.strerror)
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has the image, built for this machine."""
    if "CONTAINER" not in os.environ:
        pytest.skip("takes minutes: make test-container")
    if reason := engine.why_not():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("engine")
    docker = Engine(home)
    try:
        docker.take(roots.slim(), base())
        (home / "broker").mkdir()
        (home / "broker" / "Dockerfile").write_text(BROKER.format(base=base()))
        broker = yaml.safe_load(COMPOSE.read_text())["services"]["mosquitto"]["image"]
        for dockerfile, tag in ((AGENT, IMAGE), (home / "broker" / "Dockerfile", broker)):
            context = home / "broker" if tag == broker else checkout(home / "checkout")
            ran = docker.build(dockerfile, context, tag)
            assert ran.status == 0, ran.err[-3000:]
        yield docker
    finally:
        docker.close()


# ------------------------------------------------------------------------------------------------ the image


def test_image_has_what_the_dockerfile_says(docker):
    image = docker.inspect(IMAGE)
    config = image["Config"]
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert image["Healthcheck"]["Test"] == ["CMD", "edge-ocr", "alive", "--end"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert not [name for name in config["Env"] if re.search(r"PIP|PROXY|UV_", name)]


def test_installed_tree_is_small(docker, capsys):
    sizes = installed_mb(docker, IMAGE)
    with capsys.disabled():
        print(f"\ninstalled tree: {sum(sizes.values()):.0f} MB: {json.dumps(sizes)}")
    assert sum(sizes.values()) <= MAX_MB


def test_image_reads_a_page_without_network_or_anything_to_write(docker):
    ran = docker.podman(
        "run", "--rm", *CLOSED, "-v", f"{ROOT}/samples:/samples:ro", IMAGE, "read", "/samples/receipt.png"
    )
    assert ran.status == 0, ran.err
    assert "QINGSHI LANE GROCERY" in ran.out


COMPILED = """
import importlib.util, os, sys
import agent.worker, agent.reader, agent.uplink, agent.service
files = [getattr(module, "__file__", None) or "" for module in sys.modules.values()]
own = [file for file in files if file.startswith("/opt/edge-ocr") and file.endswith(".py")]
print(len(own), *(file for file in own if not os.path.exists(importlib.util.cache_from_source(file))))
"""


def test_nothing_is_compiled_at_the_start(docker):
    interpreter = "/opt/edge-ocr/current/venv/bin/python"
    ran = docker.podman("run", "--rm", *CLOSED, f"--entrypoint={interpreter}", IMAGE, "-c", COMPILED)
    count, *left = ran.out.split()
    assert int(count) > 100
    assert left == []


# ------------------------------------------------------------------------------------------------ compose.yaml


class Compose:
    """The containers of compose.yaml, with broker and collector."""

    def __init__(self, docker: Engine, home: Path) -> None:
        self.docker = docker
        self.folder = home / "docker" / "aarch64"
        (self.folder / "secrets").mkdir()
        (self.folder / "secrets" / "password").write_text("a-secret\n")
        os.chmod(self.folder / "secrets" / "password", 0o444)

    def run(self, *arguments: str) -> Ran:
        command = (sys.executable, "-m", "podman_compose", "-f", self.folder / "compose.yaml", "--profile", "trial")
        limits = "--podman-run-args=--ulimit=nproc=4096:4096"  # podman's own is more than this machine lets it set
        return self.docker.run(*command, limits, *arguments)

    def container(self, name: str) -> str:
        return f"edge-ocr_{name}_1"

    def within(self, name: str, *command: str) -> Ran:
        """Run a program in a container, as its user."""
        return self.docker.podman("exec", self.container(name), *command)

    def state(self, name: str) -> Path:
        """Return the folder of a volume."""
        return Path(self.docker.inspect_volume(f"edge-ocr_{name}"))

    def healthy(self, name: str) -> bool:
        return self.docker.podman("healthcheck", "run", self.container(name)).status == 0


@pytest.fixture(scope="module")
def compose(docker: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    compose = Compose(docker, checkout(tmp_path_factory.mktemp("compose")))
    ran = compose.run("up", "--detach", "--no-build")
    assert ran.status == 0, ran.err
    yield compose
    compose.run("down", "--volumes", "--timeout", "5")


STORED = """
import sqlite3
print(sqlite3.connect("/var/lib/edge-ocr/collector.db").execute("select device, result from results").fetchall())
"""


def python(compose: Compose, name: str, code: str) -> Ran:
    return compose.within(name, "/opt/edge-ocr/current/venv/bin/python", "-c", code)


def test_page_goes_from_the_inbox_to_the_centre(compose):
    assert until(lambda: compose.healthy("worker") and compose.healthy("uplink"), 60) < 60
    ran = compose.docker.podman(
        "cp", str(ROOT / "samples" / "receipt.png"), f"{compose.container('worker')}:/var/lib/edge-ocr/inbox/"
    )
    assert ran.status == 0, ran.err
    assert until(lambda: "container-1" in python(compose, "collector", STORED).out, 60) < 60
    assert "QINGSHI LANE GROCERY" in python(compose, "collector", STORED).out


COST = """
import resource, subprocess, time
began = time.monotonic()
subprocess.run(("edge-ocr", "alive"), check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
processor_s = used.ru_utime + used.ru_stime
print(f"{time.monotonic() - began:.2f} s, {processor_s:.2f} s of a processor, {used.ru_maxrss >> 10} MB")
"""


def test_start_and_health_check_are_measured(compose, capsys):
    for name in ("worker", "uplink"):
        lines = compose.docker.podman("logs", "--timestamps", compose.container(name)).err.splitlines()
        begun = compose.docker.inspect(compose.container(name))["State"]["StartedAt"]
        ready = next(line.split(" ")[0] for line in lines if " ready: " in line or " uplink of " in line)
        took = datetime.fromisoformat(ready[:26]) - datetime.fromisoformat(begun[:26])
        with capsys.disabled():
            print(
                f"\n{name}: ready after {took.total_seconds():.1f} s, alive takes {python(compose, name, COST).out}",
                end="",
            )


def test_every_container_is_as_closed_as_it_says(compose):
    for name, interfaces in (("worker", "lo"), ("uplink", "eth0 lo"), ("collector", "eth0 lo")):
        ran = python(compose, name, LOOK)
        powers, who, *written = ran.out.splitlines()
        assert powers == "0000000000000000 0000000000000000 1 2", ran
        assert who == f"65532 65532 {interfaces}"
        assert written == [*["Read-only file system"] * 3, "written", "written"]


def test_uplink_sees_no_picture_and_no_container_a_secret_that_is_not_its_own(compose):
    assert compose.within("worker", "ls", "/var/lib/edge-ocr/inbox/done").out.count("receipt.png") == 1
    assert (
        compose.within("uplink", "find", "/var/lib/edge-ocr/inbox", "/var/lib/edge-ocr/sources", "-type", "f").out == ""
    )
    assert compose.within("uplink", "cat", "/run/secrets/password").out == "a-secret\n"
    assert compose.within("worker", "ls", "/run/secrets").status != 0


def test_both_containers_tell_the_same_status(compose):
    for name in ("worker", "uplink"):
        told = json.loads(compose.within(name, "edge-ocr", "status", "--json").out)
        assert told["worker"]["accepted"] == 1 and told["connection"] == "online", told


def test_memory_limit_is_the_containers(compose):
    assert compose.docker.inspect(compose.container("worker"))["HostConfig"]["Memory"] == 416 << 20
    assert json.loads(compose.within("worker", "edge-ocr", "status", "--json").out)["worker"]["limit_mb"] == 256


def test_worker_that_hangs_is_unhealthy_is_ended_and_starts_anew(compose):
    started = compose.docker.inspect(compose.container("worker"))["State"]["StartedAt"]
    assert compose.within("worker", "sh", "-c", "kill -STOP $(cut -d ' ' -f 1 /proc/1/task/1/children)").status == 0
    assert compose.healthy("worker"), "it may rest for so long"
    lock = compose.state("state") / "worker.lock"
    beat = heartbeat.read(lock)
    older = msgspec.structs.replace(beat, at_s=beat.at_s - WATCHDOG_S["worker"])
    lock.write_bytes(msgspec.json.encode(older).ljust(191) + b"\n")
    assert not compose.healthy("worker")
    assert until(lambda: compose.docker.inspect(compose.container("worker"))["State"]["StartedAt"] != started, 30) < 30
    assert until(lambda: compose.healthy("worker"), 60) < 60


def test_containers_end_when_told_to(compose):
    for name in ("worker", "uplink", "collector"):
        began = time.monotonic()
        assert compose.docker.podman("stop", "--time=60", compose.container(name)).status == 0
        assert time.monotonic() - began < 60
        assert compose.docker.inspect(compose.container(name))["State"]["ExitCode"] == 0
