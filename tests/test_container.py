"""The container files, by a linter and by what the README promises of them; building and running is system/'s."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from agent import __version__
from agent.config import AgentConfig, CollectorConfig, load
from tests.command import ROOT

AGENT, CONVERTER = (ROOT / "docker" / name / "Dockerfile" for name in ("aarch64", "converter"))
FILES = (AGENT, CONVERTER)
COMPOSE = ROOT / "docker" / "aarch64" / "compose.yaml"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or "hadolint"
OURS = ("worker", "uplink", "collector")
BUILT = ("models/build/",)
"""What a checkout does not hold: `edge-ocr convert` makes it."""


def steps(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with what stands behind them, continued lines joined."""
    kept = [line for line in path.read_text(encoding="utf-8").split("\n") if not line.lstrip().startswith("#")]
    joined = "\n".join(kept).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in joined.split("\n")) if word
    ]


def of(path: Path, instruction: str) -> list[str]:
    return [rest for word, rest in steps(path) if word == instruction]


def hadolint(path: Path, text: str | None = None) -> list[str]:
    """Return the rules that a Dockerfile breaks."""
    source = ("-",) if text is not None else (path,)
    ran = subprocess.run(
        (HADOLINT, "--no-color", "--format", "json", "--failure-threshold", "style", *source),
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    return [f"{found['code']} line {found['line']}: {found['message']}" for found in json.loads(ran.stdout)]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]


# ------------------------------------------------------------------------------------------------ the Dockerfiles


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_linter_finds_nothing(path):
    assert hadolint(path) == []


def test_linter_finds_what_is_wrong():
    wrong = AGENT.read_text(encoding="utf-8").replace("12.13-slim", "latest").replace("--no-install-recommends", "")
    assert {line.split()[0] for line in hadolint(AGENT, wrong)} >= {"DL3015"}
    assert {line.split()[0] for line in hadolint(AGENT, "FROM debian:latest\nRUN sudo true\n")} >= {"DL3007", "DL3004"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_base_is_an_exact_release_and_takes_a_digest(path):
    base = next(value for value in of(path, "ARG") if value.startswith("BASE="))
    assert re.fullmatch(r"BASE=docker\.io/library/(debian:12\.\d+-slim|python:3\.10\.\d+-slim-bookworm)", base)
    assert "DIGEST=" in of(path, "ARG")
    assert all("${BASE}${DIGEST:+@${DIGEST}}" in stage for stage in of(path, "FROM"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_every_stage_is_used(path):
    names = [stage.split(" AS ")[1] for stage in of(path, "FROM")]
    assert [name for name in names[:-1] if f"COPY --from={name} " not in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_image_runs_as_nobody_in_particular_and_ends_by_a_signal(path):
    assert of(path, "USER") == ["65532:65532"]
    assert steps(path).index(("USER", "65532:65532")) > max(
        at for at, step in enumerate(steps(path)) if step[0] == "RUN"
    )
    assert of(path, "STOPSIGNAL") and of(path, "HEALTHCHECK")
    assert all(json.loads(given) for given in (*of(path, "ENTRYPOINT"), *of(path, "CMD")))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_image_says_what_it_is(path):
    (labels,) = of(path, "LABEL")
    assert f'org.opencontainers.image.version="{__version__}"' in labels
    for name in ("title", "description", "licenses", "revision", "base.name", "base.digest"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert f":{__version__} " in path.read_text(encoding="utf-8"), "the commands above it name the version"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_no_secret_can_be_given_to_a_build(path):
    given = [value.split("=")[0] for word in ("ARG", "ENV") for line in of(path, word) for value in line.split(" ")]
    assert not [name for name in given if re.search(r"TOKEN|PASS|SECRET|KEY", name)]
    assert not of(path, "ADD")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_what_is_copied_is_there_and_is_not_ignored(path):
    copied = [line.split(" ")[:-1] for line in of(path, "COPY") if not line.startswith("--from=")]
    defaults = dict(value.split("=", 1) for value in of(path, "ARG") if "=" in value)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split("\n") if line.startswith("!")}
    for name in (name for names in copied for name in names):
        name = re.sub(r"\$\{(\w+)\}", lambda found: defaults[found[1]], name)
        assert name.startswith(BUILT) or list(ROOT.glob(name)), f"{path}: COPY {name}"
        assert name.split("/")[0] in let_in, f".dockerignore keeps {name} out"


def test_everything_is_kept_out_that_is_not_let_in():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert "docker/aarch64/secrets" in lines
    assert not {"!.git", "!tests", "!.venv"} & set(lines)


# ------------------------------------------------------------------------------------------------ compose.yaml


def flat() -> str:
    """Return compose.yaml with its anchors followed, which the checker does not know."""
    return yaml.safe_dump(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))


def test_compose_file_is_as_the_specification_says():
    PyCompose.from_yaml(flat()).validate()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("mem_limit", "mem_limt"),
        ("- state:/var", "- stat:/var"),
        ("- password", "- passwort"),
        ("interval: 30s", "interval: 30x"),
    ],
)
def test_checker_finds_what_is_wrong(right, wrong):
    assert right in flat()
    with pytest.raises(ValueError, match=re.escape(wrong.split(":")[0].strip("- "))):
        PyCompose.from_yaml(flat().replace(right, wrong)).validate()


@pytest.mark.parametrize("name", [*OURS, "mosquitto"])
def test_every_container_is_closed(services, name):
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service["user"].startswith("0")
    assert all("noexec" in mount and "size=" in mount for mount in service["tmpfs"])
    assert service["mem_limit"] == service["memswap_limit"]
    assert 0 < service["pids_limit"] <= 64
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "pid", "ports"} & set(service)
    assert not [volume for volume in service["volumes"] if "docker.sock" in volume]


def test_worker_has_no_network_and_uplink_no_pictures(services):
    assert services["worker"]["network_mode"] == "none"
    assert "secrets" not in services["worker"]
    shared = {volume.split(":")[0] for volume in services["worker"]["volumes"]} & {
        volume.split(":")[0] for volume in services["uplink"]["volumes"]
    }
    assert shared == {"state", "./agent.toml"}
    below = {volume.split(":")[1] for volume in services["worker"]["volumes"]}
    assert {"/var/lib/edge-ocr/inbox", "/var/lib/edge-ocr/sources", "/var/cache/edge-ocr"} <= below


def test_containers_are_restarted_when_they_hang(services):
    for name in ("worker", "uplink"):
        assert services[name]["healthcheck"]["test"] == ["CMD", "edge-ocr", "alive", name, "--end"]
    assert json.loads(of(AGENT, "HEALTHCHECK")[0].split("CMD ")[1]) == ["edge-ocr", "alive", "--end"]


def test_settings_fit_the_containers(services):
    config = load(COMPOSE.parent / "agent.toml", AgentConfig)
    assert config.mqtt is not None and config.mqtt.host in services
    assert config.mqtt.password == "file:/run/secrets/password"
    assert services["uplink"]["secrets"] == ["password"]
    limit_mb = int(services["worker"]["mem_limit"].removesuffix("m"))
    assert config.memory.limit_mb + 64 <= limit_mb <= config.memory.limit_mb + 192
    assert [source.path for source in config.source] == ["/var/lib/edge-ocr/inbox"]
    centre = load(COMPOSE.parent / "collector.toml", CollectorConfig)
    assert centre.mqtt.host in services
    assert centre.store.startswith("sqlite:/var/lib/edge-ocr/")


def test_image_is_named_by_its_version(services):
    assert {services[name]["image"] for name in OURS} == {f"edge-ocr:{__version__}"}
