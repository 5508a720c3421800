"""`edge-ocr report`: what is in it, that nothing private is, and that it comes when half of the machine is broken."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig, OutboxConfig, load
from agent.errors import ExitCode
from agent.health import Lock, UplinkState, WorkerState, write_state
from agent.outbox import Outbox
from agent.report import archive, masked, parts
from agent.report.scrub import Scrub, log_lines
from tests.command import EDGE_OCR, environment, run
from tests.test_check_machine import mounted

PLANTED = {
    "name": "ZHANG SANFENG",
    "chinese": "张三丰的支票",
    "identity": "11010519491231002X",
    "card": "6222 0212 3456 7890 128",
    "taiwan": "A123456789",
    "iban": "GB29NWBK60161331926819",
    "amount": "Rechnungsbetrag",
    "file": "passport-sanfeng.jpg",
    "folder file": "sanfeng_lohnzettel.pdf",
    "password": "hunter2-swordfish",
    "key": "MIIEvQIBADANBgkqhkiG9w0",
    "token": "tok-kumquat",
    "hook secret": "marmalade",
    "user": "bernadette",
    "query": "zitronenfalter",
    "path": "kirschkern",
    "pattern": "77889900",
    "serial": "C0FFEE4711",
}
USB = "usb 1-1: New USB device found, idVendor=046d, idProduct=082d, bcdDevice= 0.11"
PIN = "987654"  # in an address; a number that short may stand elsewhere
PIECES = {
    piece
    for text in PLANTED.values()
    for piece in (text, *text.replace("-", " ").replace("_", " ").replace(".", " ").split())
    if len(piece) > 4  # "jpg" and "key" may stand anywhere
}

SETTINGS = """\
device = "box-1"
state_dir = "{home}/state"

[reader]
bundle = "{home}/bundle"

[[source]]
name = "scans"
path = "{home}/scans"

[[source]]
type = "camera"
name = "eye"
device = "http://127.0.0.1:9/{path}&password={pin}&stream?{query}"
username = "{user}"
password = "file:{home}/camera"

[[source]]
type = "upload"
name = "desk"
listen = "127.0.0.1:8733"
token = "file:{home}/token"

[hooks]
on_accepted = ["/usr/bin/post", "--secret", "{hook}"]

[[privacy.let_out]]
name = "notes"
pattern = "{pattern}[0-9]+"

[mqtt]
host = "127.0.0.1"
port = 9
username = "{user}"
password = "file:{home}/password"
tls = false
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A branch in whose every corner private things lie: text in rows and logs, names of files, secrets."""
    p = PLANTED
    values = {"query": p["query"], "path": p["path"], "pin": PIN, "user": p["user"], "hook": p["hook secret"]}
    values["pattern"] = p["pattern"]
    (tmp_path / "agent.toml").write_text(SETTINGS.format(home=tmp_path, **values))
    for name, secret in (("password", "password"), ("camera", "password"), ("token", "token"), ("key.pem", "key")):
        (tmp_path / name).write_text(p[secret])
    (tmp_path / "scans/done").mkdir(parents=True)
    for folder, name in (("", "file"), ("done/", "folder file")):
        (tmp_path / f"scans/{folder}{p[name]}").write_bytes(b"\xff\xd8\xff" + p["key"].encode())
    outbox = Outbox(tmp_path / "state", OutboxConfig(), role="worker")
    outbox.begin("key", "scans", p["file"])
    outbox.accept("key", json.dumps({"lines": [{"text": text} for text in p.values()]}).encode())
    outbox.add_event("alarm", f"scans: {p['file']}: {p['name']}")
    outbox.close()
    trouble = f"scans: {p['file']} cannot be claimed: {p['amount']}"
    worker = WorkerState(pid=os.getpid(), at_ms=0, started_ms=0, last_error=trouble, troubles=(trouble,))
    write_state(tmp_path / "state", "worker", worker)
    reason = f"refused {p['name']} {p['card']} 'Rechnungsbetrag'"
    uplink = UplinkState(pid=os.getpid(), at_ms=0, started_ms=0, reason=reason, last_error=reason)
    write_state(tmp_path / "state", "uplink", uplink)
    _programs(tmp_path, monkeypatch)
    return tmp_path


@functools.cache
def plain() -> Scrub:
    """Return a filter that knows the program's words alone; reading its source takes a second."""
    return Scrub()


def log_of(texts: dict[str, str]) -> str:
    """Return a log as `edge-ocr run` writes it, with text where it may be and where it must not be."""
    head = "2026-11-22 08:00:00,123"
    rows = [f"{head} INFO    worker: scans: 12 lines, 340 ms, key 0123456789ab"]
    for text in texts.values():
        rows += [
            f"{head} DEBUG   worker: read {text}",
            f"\tand more of it: {text}",
            f"{head} WARNING worker: a file cannot be claimed: '{text}': {text}",
            f"{head} ERROR   worker: a defect of this program; the page is put aside",
            "\tTraceback (most recent call last):",
            f'\t  File "/home/{texts["user"]}/venv/agent/worker.py", line 220, in _take',
            f"\tValueError: {text}",
            f"{text} without a level, from a library",
        ]
    return "\n".join(rows) + "\n"


def _programs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a journal and a kernel with private things before those of this machine."""
    rows = []
    for text in PLANTED.values():
        for priority, message in (("7", f"read {text}"), ("4", f"scans: refused: {text}"), ("6", text)):
            entry = {"PRIORITY": priority, "MESSAGE": message, "SYSLOG_IDENTIFIER": "edge-ocr"}
            rows.append(json.dumps({**entry, "__REALTIME_TIMESTAMP": "1795000000000000"}))
    rows.append('{"MESSAGE": [200, 201], "PRIORITY": "6"}')
    rows.append("{ cut off")
    (home / "journal").write_text("\n".join(rows))
    kernel = [f"usb 1-1: SerialNumber: {PLANTED['serial']}", "mmc0: error -110", f"cron: {PLANTED['name']}"]
    kernel += [f"usb 1-1: {word}: {PLANTED['name']}" for word in ("Product", "Manufacturer")]
    kernel += [f"uvcvideo 1-1:1.0: Found UVC 1.00 device {PLANTED['name']} (046d:082d)", USB]
    (home / "kernel").write_text("\n".join((*kernel, "Out of memory: Killed process 812 (python)")))
    program = home / "bin/journalctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$1" in -k) cat {home}/kernel;; *) cat {home}/journal;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def files_in(packed: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        entries = {entry.name: opened.extractfile(entry) for entry in opened}
        return {name.removeprefix("edge-ocr-report/"): file.read().decode() for name, file in entries.items() if file}


def private(text: str) -> list[str]:
    return sorted(piece for piece in PIECES if piece.casefold() in text.casefold())


def test_nothing_private_is_in_a_report_wherever_it_was_planted(home, cache):
    (home / "run.log").write_text(log_of(PLANTED))
    locks = [Lock(home / "state", role) for role in ("worker", "uplink")]
    command = (*EDGE_OCR, "report", "-c", home / "agent.toml", "-o", home / "r.tar.gz", "--log", home / "run.log")
    ran = run(command, environment(cache))
    for lock in locks:
        lock.close()
    assert ran.status == 0, ran.err
    packed = (home / "r.tar.gz").read_bytes()
    for name, text in files_in(packed).items():
        assert private(text) == [] and PIN not in text, name
    assert private(ran.out + ran.err) == []
    with tarfile.open(home / "r.tar.gz") as opened:
        assert all(entry.name.endswith((".txt", ".json", ".toml")) for entry in opened)
    assert (home / "r.tar.gz").stat().st_mode & 0o777 == 0o600


def test_what_helps_is_in_a_report(home, bundle_path, cache):
    (home / "bundle").symlink_to(bundle_path)
    (home / "run.log").write_text(log_of(PLANTED))
    command = (*EDGE_OCR, "report", "-c", home / "agent.toml", "-o", "-", "--log", home / "run.log")
    ran = subprocess.run(command, capture_output=True, env=environment(cache))
    files = files_in(ran.stdout)
    assert set(files) == {"contents.txt", *(part.name for part in parts.PARTS)}
    about = {row["about"]: row["said"] for row in json.loads(files["check.json"])["findings"]}
    assert about["trial read"].startswith("100% of a known page")
    assert "nothing listens there" in about["broker"]
    assert json.loads(files["status.json"])["pending"] == 1
    assert json.loads(files["outbox.json"])["pending"] == 1
    settings = json.loads(files["settings.json"])
    assert settings["mqtt"]["host"] == "127.0.0.1" and settings["mqtt"]["username"] == masked.HIDDEN
    assert settings["source"][0]["path"] == f"{home}/scans"
    assert json.loads(files["versions.json"])["packages"]["paddlelite"] == "2.13rc0"
    assert files["bundle.toml"] == (bundle_path / "bundle.toml").read_text()
    assert "<4> edge-ocr: scans: refused" in files["journal.txt"]
    assert "INFO worker: scans: 12 lines, 340 ms, key 0123456789ab" in files["logs.txt"]
    assert 'File "agent/worker.py", line 220, in _take' in files["logs.txt"]
    assert "ValueError: …" in files["logs.txt"]
    assert "mmc0: error -110" in files["kernel.txt"] and "Killed process 812" in files["kernel.txt"]
    assert USB in files["kernel.txt"] and "usb 1-1: Product: (hidden)" in files["kernel.txt"]
    for part in parts.PARTS:
        assert f"{part.name:<14} {part.about}" in ran.stderr.decode()  # standard output is the file's


def test_filter_keeps_what_the_program_says_and_takes_out_the_rest():
    clean = Scrub(("box-1", "/srv/scans")).line
    assert clean("worker started, process 4711") == "worker started, process 4711"
    said = "nothing listens at box port 8883; is the broker running, and is mqtt.port right?"
    assert clean(said) == said
    assert clean("1920x1080, ppocr-v4-1-x86_64-fp32, 192.168.1.20") == "1920x1080, ppocr-v4-1-x86_64-fp32, 192.168.1.20"
    assert clean("scans: refused (memory), key 0123456789ab") == "scans: refused (memory), key 0123456789ab"
    assert clean("2026-11-22 07:07:26 UTC, not synchronised").startswith("2026-11-22 07:07:26 UTC, not")
    for text in PLANTED.values():
        assert private(clean(f"the page {text} was refused")) == []
        assert clean(f"the page {text} was refused").startswith("the page …")
    for kept in ("192.168.100.200:8883", "192.168.100.0/24", "5.15.0-1053.57", "3.10.12", "255.255.255.255, 10.0.0.1"):
        assert clean(f"the broker, {kept}: right") == f"the broker, {kept}: right"
    assert clean("12345678") == "…" and clean("id A123456(7)") == "id …"


def test_debug_lines_and_lines_without_a_level_are_dropped_from_logs():
    head = "2026-11-22 08:00:00,123"
    rows = [
        "torn text",
        f"{head} DEBUG   worker: secret",
        "\tsecret",
        f"{head} INFO    worker: kept",
        "\tkept too",
        "more",
    ]
    assert list(log_lines(rows, str)) == [
        *("2026-11-22 08:00:00 INFO worker: kept", "\tkept too", "(2 lines without a level are left out)"),
    ]


def test_settings_that_cannot_be_read_are_shown_as_an_outline(home, cache):
    path = home / "agent.toml"
    path.write_text(
        f'device = "box"\n# {PLANTED["name"]}\n[mqtt]\npassword = "{PLANTED["password"]}"\nport = 12\nx y\n'
    )
    ran = run((*EDGE_OCR, "report", "-c", path, "-o", home / "r.tar.gz"), environment(cache))
    assert ran.status == 0
    files = files_in((home / "r.tar.gz").read_bytes())
    assert files["settings.json"] == (
        "device = (text)\n[mqtt]\npassword = (text)\nport = (number)\n(a line that is none of these)\n"
    )
    assert json.loads(files["check.json"])["findings"][0]["about"] == "settings"
    assert [private(text) for text in files.values() if private(text)] == []
    assert files["status.json"].startswith("cannot be told: the settings cannot be read")


def test_report_comes_without_settings(home, cache):
    ran = run((*EDGE_OCR, "report", "-c", home / "none.toml", "-o", home / "r.tar.gz"), environment(cache))
    assert ran.status == 0, ran.err
    assert "kernel" in files_in((home / "r.tar.gz").read_bytes())["versions.json"]


@pytest.mark.parametrize("damage", ["outbox", "state", "bundle"])
def test_parts_whose_subject_is_broken_say_so_and_the_others_come(home, bundle_path, damage):
    (home / "bundle").symlink_to(bundle_path)
    config = load(home / "agent.toml", AgentConfig, check_files=False)
    if damage == "outbox":
        (home / "state/outbox.db").write_bytes(os.urandom(20_000))
    elif damage == "state":
        shutil.rmtree(home / "state")
    else:
        (home / "bundle").unlink()
    given = parts.Given(home / "agent.toml", config, (), (home / "no.log",), plain())
    broken = {part.name for part in parts.PARTS if parts.content(part, given)[1]}
    assert broken == {"logs.txt", *{"outbox": ["outbox.json"], "bundle": ["bundle.toml"]}.get(damage, [])}


def test_full_disk_is_said_with_the_way_to_standard_output(home, cache):
    told = archive.Told("r.tar.gz", os.urandom(2 << 20), ())
    with mounted(home / "small", "-t", "tmpfs", "-o", "size=1m", "tmpfs") as small:
        with pytest.raises(archive.InputError, match=r"No space left .*-o -") as raised:
            archive.write(told, small / "r.tar.gz")
        assert os.listdir(small) == []
    assert raised.value.code is ExitCode.NO_INPUT
    assert archive.write(told, home / "r.tar.gz").read_bytes() == told.packed


def test_part_that_breaks_is_said_and_stops_nothing():
    def broken(given: parts.Given) -> bytes:
        raise KeyError(PLANTED["name"])

    given = parts.Given(Path("x"), None, (), (), plain())
    raw, why = parts.content(parts.Part("x.txt", "x", broken), given)
    assert raw == b"cannot be told: a defect of this program: KeyError\n" and private(why) == []


def test_long_parts_keep_their_end(monkeypatch):
    monkeypatch.setattr(parts, "MAX_BYTES", 20)
    given = parts.Given(Path("x"), None, (), (), plain())
    raw, _ = parts.content(parts.Part("x.txt", "x", lambda _: b"first line\nsecond line\nlast line\n"), given)
    assert raw == b"(cut)\nlast line\n"


def test_masked_settings_hide_by_name_and_keep_the_rest(home):
    config = load(home / "agent.toml", AgentConfig, check_files=False)
    told = masked.settings(config)
    assert told["hooks"]["on_accepted"] == ["/usr/bin/post", "(2 arguments)"]
    assert told["source"][1]["device"] == f"http://127.0.0.1:9/{masked.HIDDEN}"
    at_home = masked.settings(msgspec.structs.replace(config, state_dir="/home/zhang/state"))
    assert at_home["state_dir"] == f"/home/{masked.HIDDEN}/state"


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        ("/dev/video0", "/dev/video0"),
        ("rtsp://10.0.0.7:554/user=admin&password=X&channel=1", "rtsp://10.0.0.7:554/(hidden)"),
        ("rtsp://[fe80::1]:554/a b", "rtsp://[fe80::1]:554/(hidden)"),
        ("http://admin:X@camera?password=X", "http://camera/(hidden)"),
        ("escl:https://10.0.0.8:443/", "escl:https://10.0.0.8:443"),
        ("9://X", "(hidden)"),
    ],
)
def test_of_an_address_host_and_port_are_left(device, shown):
    assert masked.address(device) == shown


def test_of_an_address_in_a_line_host_and_port_are_left():
    clean = Scrub(("eye", "camera")).line
    assert clean("eye: rtsp://10.0.0.7:554/user=admin&password=123456: no picture within 4 s; is it on?") == (
        "eye: rtsp://10.0.0.7:554/… no picture within 4 s; is it on?"
    )
    assert clean("eye: http://camera:80: no picture") == "eye: http://camera:80: no picture"
    assert clean("eye: http://123:456@camera: no picture") == "eye: http://camera: no picture"


@pytest.mark.parametrize(
    "number",
    [
        *("6222.0210.0123.4567", "138/0013/8000", "13/05/1984", "13.05.1984", "1984-05-13", "030/123 45 67"),
        *("01.23.45.67.89", "12.34.56 78 90", "123.456.789-09", "756.1234.5678.97", "12.345.678-5", "192.168.1.20.33"),
        *("12.34.567-89012", "1.192.168.1.20", "4 192.168.1.20"),
    ],
)
def test_number_goes_whatever_stands_between_its_digits(number):
    assert plain().line(f"the page {number} was refused") == "the page … was refused"
