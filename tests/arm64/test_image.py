"""The image for arm64, built by its own Dockerfile and run as closed as compose.yaml has it; emulated."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.command import ROOT
from tests.system import engine, roots
from tests.system.engine import Engine
from tests.system.images import CLOSED, IMAGE, MAX_MB, base, checkout, installed_mb
from tests.test_container import AGENT

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(3600)]

LIMIT_MB = "512"  # of which the emulator takes its share


@pytest.fixture(scope="module")
def docker(emulated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has the image.

    Podman takes two architectures of one local image for the same, so each stage is built by itself: the first on this
    machine's processor, as the Dockerfile wants it, the second with what came of it.
    """
    if reason := engine.why_not():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("engine")
    docker = Engine(home)
    try:
        context, made = checkout(home / "checkout"), home / "made"
        docker.take(roots.slim(), base())
        ran = docker.build(AGENT, context, "made:1", "--target=build", "--build-arg=TARGETARCH=arm64")
        assert ran.status == 0, ran.err[-3000:]
        made.mkdir()
        for command in (
            ("create", "--name=made", "made:1", "true"),
            ("cp", "made:/release", str(made)),
            ("rm", "made"),
            ("rmi", "made:1", base()),
        ):
            ran = docker.podman(*command)
            assert ran.status == 0, ran.err
        docker.take(roots.slim("arm64"), base(), "arm64")
        ran = docker.build(AGENT, context, IMAGE, "--platform=linux/arm64", f"--build-context=build={made}")
        assert ran.status == 0, ran.err[-3000:]
        yield docker
    finally:
        docker.close()


def test_image_is_for_arm64_and_small(docker):
    assert docker.inspect(IMAGE)["Architecture"] == "arm64"
    sizes = installed_mb(docker, IMAGE)
    print(f"\ninstalled tree: {sum(sizes.values()):.0f} MB: {json.dumps(sizes)}", end="")
    assert sum(sizes.values()) <= MAX_MB


def test_image_reads_a_page_without_network_or_anything_to_write(docker):
    samples = ("-v", f"{ROOT}/samples:/samples:ro")
    ran = docker.run(
        *("podman", "run", "--rm", *CLOSED, *samples, IMAGE),
        *("read", "--memory-mb", LIMIT_MB, "/samples/receipt.png"),
        timeout_s=900,
    )
    assert ran.status == 0, ran.err
    assert "QINGSHI LANE GROCERY" in ran.out


def test_container_tells_whether_its_programs_are_alive(docker):
    settings = ("-v", f"{ROOT}/systemd/agent.toml:/etc/edge-ocr/agent.toml:ro")
    ran = docker.podman("run", "--rm", *CLOSED, *settings, IMAGE, "alive")
    assert ran.status != 0
    assert "worker: not running" in ran.out + ran.err
