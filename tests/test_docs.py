"""The documents in docs/: their examples are real messages, their words those of the program, their commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from agent import protocol
from tests.command import ROOT
from tests.docs import DOCUMENTS, blocks, links, text_of
from tests.test_readme import COMMANDS

MESSAGES = {
    "result": protocol.ResultMessage,
    "resync": protocol.Resync,
    "receipt": protocol.Receipt,
    "status": protocol.Status,
    "event": protocol.Event,
    "command": protocol.Command,
    "answer": protocol.Answer,
    "state": protocol.CollectorState,
}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file(document):
    assert [path for path in links(document) if not path.exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_is_named_exists(document):
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text_of(document)):
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in text_of(path), f"{path}::{name}"


@pytest.mark.parametrize("kind", MESSAGES)
def test_protocol_shows_each_message_as_it_is(kind):
    (example,) = [block.text for block in blocks("docs/PROTOCOL.md") if block.said == f"json {kind}"]
    message = protocol.decode(MESSAGES[kind], example.strip().encode())
    again = protocol.encode(message)
    if kind != "answer":  # its status shows only what it must have
        assert again == example.strip().encode()


def test_protocol_names_every_topic_verb_and_limit():
    text = text_of("docs/PROTOCOL.md")
    for kind in protocol.DEVICE_KINDS:
        assert f"| `devices/DEVICE/{kind}` |" in text
    for verb in protocol.VERBS:
        assert f"`{verb}`" in text
    assert f"at most {protocol.MAX_RANGES} in a message" in text
    assert (protocol.MAX_RESULT_BYTES, protocol.MAX_SMALL_BYTES) == (1 << 20, 64 << 10)
    assert "| a result | 1 MiB |" in text
    assert "| any other message | 64 KiB |" in text


def alarms() -> set[str]:
    """Return the words that the program raises as alarms, as its sources say."""
    uplink = text_of("agent/uplink/uplink.py") + text_of("agent/uplink/delivery.py")
    words = set(re.findall(r'(?:_raise|_wait|words\.add)\("(\w+)"', uplink))
    aside = uplink[uplink.index("_ASIDE = {") :]
    words |= set(re.findall(r'^    "(\w+)":', aside[: aside.index("\n}")], re.MULTILINE))
    outbox = text_of("agent/outbox/outbox.py")
    outbox = outbox[outbox.index("alarms = {") :]
    words |= set(re.findall(r'^            "(\w+)":', outbox[: outbox.index("}")], re.MULTILINE))
    return words | {"worker", "readonly", "failing", "damaged"}


def test_operations_has_a_row_for_every_alarm():
    assert len(alarms()) > 18
    part = text_of("docs/OPERATIONS.md").partition("\n## Alarms")[2].partition("\n### From sources")[0]
    rows = re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)
    assert sorted(rows) == sorted(alarms())


def commands() -> list[list[str]]:
    """Return the words of each line of a document's commands that starts `edge-ocr`."""
    lines = [
        line
        for document in DOCUMENTS
        for said, text in blocks(document)
        if said.startswith("sh")
        for line in text.replace("\\\n", " ").splitlines()
    ]
    parts = [shlex.split(line, comments=True) for line in lines]
    return [part[1:] for part in parts if part and Path(part[0]).name == "edge-ocr"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_and_its_options_exist(words):
    name, *words = words
    command: click.Command = COMMANDS[name]
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words if word.startswith("-") and word.split("=")[0] not in known] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_shell_reads_every_block_of_commands(document):
    for said, text in blocks(document):
        if said.startswith("sh"):
            read = subprocess.run(("bash", "-n"), input=text.encode(), capture_output=True)
            assert (read.returncode, read.stderr) == (0, b""), text
