"""README names every command, option and exit status, and only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from agent import service
from agent.__main__ import cli
from agent.errors import ExitCode
from agent.lite.commands import lite_group
from agent.pack.commands import pack_command
from agent.provision.commands import provision_command
from agent.sources.camera.adjust import camera_command
from converters.__main__ import convert_command
from converters.bench import bench_command
from converters.evaluate import evaluate_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "read": cli.commands["read"],
    "run": service.run_command,
    "worker": service.worker_command,
    "uplink": service.uplink_command,
    "collect": service.collect_command,
    "camera": camera_command,
    "status": service.status_command,
    "alive": service.alive_command,
    "outbox": service.outbox_group,
    "check": service.check_command,
    "report": service.report_command,
    "scan": service.scan_command,
    "units": service.units_command,
    "provision": provision_command,
    "convert": convert_command,
    "lite": lite_group,
    "pack": pack_command,
    "bench": bench_command,
    "evaluate": evaluate_command,
}
# Where the peers' interpreters are; `make bench` puts them where they are looked for.
UNSAID = {"--help", "--peers", "--measure", "--v4-python", "--newest-python"}


def section(command: str) -> str:
    """Return the README's part that shows a command, its synopsis included."""
    return next(part for part in README.split("\n## ") if f"edge-ocr {command} " in part)


def parameters(command: click.Command) -> list[click.Parameter]:
    """Return a command's parameters, those of its own commands included."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [*command.params, *(parameter for one in below for parameter in one.params)]


def options() -> list[tuple[str, str]]:
    return [
        (name, option)
        for name, command in COMMANDS.items()
        for parameter in parameters(command)
        if isinstance(parameter, click.Option)
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--") and option not in UNSAID
    ]


def test_every_command_is_in_this_table() -> None:
    assert sorted(COMMANDS) == cli.list_commands(click.Context(cli))


@pytest.mark.parametrize(("command", "option"), options())
def test_every_option_is_named_where_its_command_is(command: str, option: str) -> None:
    assert re.search(rf"{option}\b", section(command))


@pytest.mark.parametrize("code", ExitCode)
def test_every_exit_status_has_a_row(code: ExitCode) -> None:
    assert re.search(rf"^\| {code.value} \| \w", README, re.MULTILINE)


def test_every_path_named_in_a_document_exists() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text(encoding="utf-8")
        for path in re.findall(r"`((?:agent|converters|tests|scripts|models|samples)/[\w./-]+\.\w+)`", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
