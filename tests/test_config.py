"""Settings are taken as they are written, or refused with file, line, key, value and what is accepted."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from agent import strict
from agent.config import (
    AgentConfig,
    CollectorConfig,
    HooksConfig,
    LetOut,
    MemoryConfig,
    MqttConfig,
    OutboxConfig,
    PrivacyConfig,
    ReaderConfig,
    load,
    secret,
)
from agent.errors import ConfigError, ExitCode
from agent.source_config import CameraConfig, DocumentsConfig, FolderConfig, ScannerConfig, UploadConfig
from tests.command import ROOT

SAMPLE = ROOT / "systemd" / "agent.toml"
SETTING = re.compile(r"^#?([a-z_]+) = (.*?) +# (.+)$", re.MULTILINE)
FULL = """\
device = "box-1"
state_dir = "state"
log_level = "debug"
[reader]
bundle = "b"
threads = 2
engine = "onnxruntime"
power_mode = "high"
min_score = 0
[[source]]
type = "folder"
name = "a"
path = "in-a"
stable_s = 1
give_up_s = 10.5
poll_s = 5
when_done = "delete"
keep_days = 1
keep_mb = 1
again = "read"
[[source]]
name = "b"
path = "in-b"
[outbox]
max_mb = 100
when_full = "drop_oldest"
min_free_mb = 0
ballast_mb = 0
max_attempts = 1
keep_stored_days = 1.5
remember_days = 1
[privacy]
mask = true
min_digits = 12
keep_last = 0
[[privacy.let_out]]
name = "slip"
pattern = "9[0-9]{11}"
[mqtt]
host = "127.0.0.1"
port = 1883
username = "u"
password = "env:MQTT_PASSWORD"
tls = true
ca_file = ""
cert_file = ""
key_file = ""
keepalive_s = 5
topic_prefix = "a/b"
guarantee = "brokered"
window = 5
receipt_s = 0.5
retry_max_s = 1
historical_s = 1
commands = ["status", "pause"]
home_assistant = true
home_assistant_prefix = "ha"
[memory]
limit_mb = 300
idle_s = 5
large_pages = true
[[source]]
type = "scanner"
name = "c"
device = "test:0"
feeder = "ADF Front"
trigger = "order"
poll_s = 60
resolution_dpi = 200
mode = "color"
page_size = "210x148"
options = ["--depth=8", "--swcrop"]
timeout_s = 30
max_waiting = 5
when_done = "keep"
keep_days = 7
keep_mb = 9
[[source]]
type = "upload"
name = "u"
listen = "127.0.0.1:8733"
token = "env:TOKEN"
anyone = true
masked = false
max_mb = 5
timeout_s = 9
max_waiting = 3
max_connections = 4
max_per_minute = 7
repeat_s = 60
when_done = "keep"
keep_days = 2
keep_mb = 3
[hooks]
on_accepted = ["/bin/true", "x"]
on_failed = ["/bin/false"]
timeout_s = 3
max_waiting = 2
[documents]
max_pages = 20
pdf_dpi = 300
[[source]]
type = "camera"
name = "d"
device = "rtsp://camera/desk"
username = "u"
password = "env:CAMERA"
width = 640
height = 480
left = 0.1
top = 0.2
right = 0.9
bottom = 0.8
preset = "stream"
still_s = 1
max_motion = 2
min_sharpness = 3.5
min_change = 4
min_text = 0
max_black = 0
frozen_s = 0
when_done = "delete"
keep_days = 6
keep_mb = 7
"""
COLLECTOR = """\
name = "centre"
store = "sqlite:a.db"
store_password = "env:DB"
group = "g"
batch = 1
batch_s = 0
log_level = "info"
[mqtt]
host = "h"
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "agent.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(tmp_path: Path, text: str | bytes, kind: type = AgentConfig) -> str:
    """Return why a file is refused, without its folder."""
    with pytest.raises(ConfigError) as refused:
        load(written(tmp_path, text), kind)
    assert refused.value.code == ExitCode.CONFIG
    said = str(refused.value)
    assert "\n" not in said
    return said.replace(f"{tmp_path}/", "")


def settings_of(text: str) -> list[tuple[int, str]]:
    """Return the line number and the name of each setting."""
    return [(n, m[1]) for n, line in enumerate(text.splitlines(), 1) if (m := re.match(r"([a-z_]+) =", line))]


def test_every_setting_is_taken_as_written(tmp_path):
    config = load(written(tmp_path, FULL), AgentConfig)
    assert config == AgentConfig(
        device="box-1",
        state_dir="state",
        log_level="debug",
        reader=ReaderConfig(bundle="b", threads=2, engine="onnxruntime", power_mode="high", min_score=0.0),
        memory=MemoryConfig(limit_mb=300, idle_s=5.0, large_pages=True),
        source=(
            FolderConfig(
                name="a",
                path="in-a",
                stable_s=1.0,
                give_up_s=10.5,
                poll_s=5.0,
                when_done="delete",
                keep_days=1.0,
                keep_mb=1,
                again="read",
            ),
            FolderConfig(name="b", path="in-b"),
            ScannerConfig(
                name="c",
                device="test:0",
                feeder="ADF Front",
                trigger="order",
                poll_s=60.0,
                resolution_dpi=200,
                mode="color",
                page_size="210x148",
                options=("--depth=8", "--swcrop"),
                timeout_s=30.0,
                max_waiting=5,
                when_done="keep",
                keep_days=7.0,
                keep_mb=9,
            ),
            UploadConfig(
                name="u",
                listen="127.0.0.1:8733",
                token="env:TOKEN",
                anyone=True,
                masked=False,
                max_mb=5,
                timeout_s=9.0,
                max_waiting=3,
                max_connections=4,
                max_per_minute=7,
                repeat_s=60.0,
                when_done="keep",
                keep_days=2.0,
                keep_mb=3,
            ),
            CameraConfig(
                name="d",
                device="rtsp://camera/desk",
                username="u",
                password="env:CAMERA",
                width=640,
                height=480,
                left=0.1,
                top=0.2,
                right=0.9,
                bottom=0.8,
                preset="stream",
                still_s=1.0,
                max_motion=2.0,
                min_sharpness=3.5,
                min_change=4.0,
                min_text=0.0,
                max_black=0.0,
                frozen_s=0.0,
                when_done="delete",
                keep_days=6.0,
                keep_mb=7,
            ),
        ),
        documents=DocumentsConfig(max_pages=20, pdf_dpi=300.0),
        outbox=OutboxConfig(
            max_mb=100,
            when_full="drop_oldest",
            min_free_mb=0,
            ballast_mb=0,
            max_attempts=1,
            keep_stored_days=1.5,
            remember_days=1.0,
        ),
        privacy=PrivacyConfig(
            mask=True, min_digits=12, keep_last=0, let_out=(LetOut(name="slip", pattern="9[0-9]{11}"),)
        ),
        hooks=HooksConfig(on_accepted=("/bin/true", "x"), on_failed=("/bin/false",), timeout_s=3.0, max_waiting=2),
        mqtt=MqttConfig(
            host="127.0.0.1",
            port=1883,
            username="u",
            password="env:MQTT_PASSWORD",
            keepalive_s=5,
            topic_prefix="a/b",
            guarantee="brokered",
            window=5,
            receipt_s=0.5,
            retry_max_s=1.0,
            historical_s=1.0,
            commands=("status", "pause"),
            home_assistant=True,
            home_assistant_prefix="ha",
        ),
    )


def test_a_name_is_enough(tmp_path):
    assert load(written(tmp_path, 'device = "a"'), AgentConfig) == AgentConfig(device="a")


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_and_line_ends_of_other_systems_are_taken(tmp_path, begin, end):
    path = written(tmp_path, begin + FULL.replace("\n", end))
    assert load(path, AgentConfig).mqtt.window == 5


# ------------------------------------------------------------------------------------------------ the sample


def structs(kind: inspect.Type, name: str = "") -> dict[str, tuple[inspect.Field, str]]:
    """Return each setting's field by its path, and the path of its section; a kind has its own: source.folder."""
    found = {}
    for field in strict._wanted(kind, None).fields:
        inner = strict._wanted(field.type, None)
        inner = inner.item_type if isinstance(inner, inspect.VarTupleType) else inner
        path = f"{name}{field.name}"
        tables = [part for part in strict._parts(inner) if isinstance(part, inspect.StructType)]
        for table in tables:
            found |= structs(table, f"{path}.{table.tag}." if table.tag else f"{path}.")
        if not tables:
            found[path] = (field, path)
    return found


def sample_settings(sample: Path) -> dict[str, tuple[object, str, bool]]:
    """Return what a sample shows for each setting: value, remark, and whether it is only shown."""
    section, found = "", {}
    for line in sample.read_text(encoding="utf-8").splitlines():
        if header := re.match(r"#?\[\[?([a-z_.]+)\]\]?$", line):
            section = f"{header[1]}."
        elif kind := re.match(r'#?type = "([a-z]+)"', line):
            section += f"{kind[1]}."
        elif setting := SETTING.match(line):
            value = msgspec.toml.decode(f"v = {setting[2]}")["v"]
            found[section + setting[1]] = (value, setting[3], line.startswith("#"))
    return found


def fields(kind: type) -> dict[str, inspect.Field]:
    return {path: field for path, (field, _) in structs(inspect.type_info(kind)).items()}


PRESET = ("still_s", "max_motion", "min_sharpness", "min_change", "min_text")
EXAMPLES = {
    "mqtt.password",
    "privacy.let_out.name",
    "privacy.let_out.pattern",
    "source.scanner.name",
    "source.upload.listen",
    "source.upload.name",
    "source.upload.token",
    *(f"source.camera.{name}" for name in ("name", "device", "password", *PRESET)),
    "store_password",
}
SAMPLES = {SAMPLE: AgentConfig, ROOT / "systemd" / "collector.toml": CollectorConfig}
SETTINGS = [
    pytest.param(sample, path, field, id=f"{sample.stem}-{path}")
    for sample, kind in SAMPLES.items()
    for path, field in fields(kind).items()
]


def test_the_sample_loads():
    config = load(SAMPLE, AgentConfig)
    assert config.source[0].name == "inbox"
    assert config.mqtt is not None


def test_the_sample_loads_with_all_that_it_shows(tmp_path):
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", SAMPLE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = load(written(tmp_path, text), AgentConfig)
    assert shown.mqtt.password == "file:/etc/edge-ocr/password"
    plain = load(SAMPLE, AgentConfig)
    assert {type(source) for source in shown.source} == {FolderConfig, ScannerConfig, CameraConfig, UploadConfig}
    same = msgspec.structs.replace(
        shown,
        source=shown.source[:1],
        mqtt=msgspec.structs.replace(shown.mqtt, password=None),
        privacy=msgspec.structs.replace(shown.privacy, let_out=()),
    )
    assert same == plain


def test_the_collectors_sample_loads_with_and_without_all_that_it_shows(tmp_path):
    sample = ROOT / "systemd" / "collector.toml"
    plain = load(sample, CollectorConfig)
    text = re.sub(r"^#(?=[a-z_]+ = )", "", sample.read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = load(written(tmp_path, text), CollectorConfig)
    assert shown.store_password == "file:/etc/edge-ocr/store-password"
    mqtt = msgspec.structs.replace(shown.mqtt, password=None)
    assert msgspec.structs.replace(shown, store_password=None, mqtt=mqtt) == plain


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_sample_shows_every_setting_and_no_other(sample):
    assert set(sample_settings(sample)) == set(fields(SAMPLES[sample]))


@pytest.mark.parametrize(("sample", "path", "field"), SETTINGS)
def test_the_sample_shows_defaults_units_and_ranges(sample, path, field):
    value, remark, only_shown = sample_settings(sample)[path]
    assert only_shown is not (field.required and path not in EXAMPLES)
    if not field.required and path not in EXAMPLES:
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert value == default
        assert type(value) is type(default)
    accepted = strict.accepted(field.type, field.name)
    if found := re.search(r"from (\S+) to (\S+)(?: \((\w+)\))?", accepted):
        assert f"{found[1]} to {found[2]}" in remark
        assert found[3] is None or found[3] in remark
    for word in re.findall(r'"(\w+)"', accepted):
        assert word in remark


# ------------------------------------------------------------------------------------------------ refusals


def misspelled(name: str) -> list[str]:
    """Return a name with one edit: a letter gone, doubled, put in, changed, or swapped with the next."""
    odd = string.ascii_lowercase[len(name) % 26]
    pairs = [(name[:i], name[i:]) for i in range(len(name) + 1)]
    return sorted(
        {
            *(a + b[1:] for a, b in pairs if b),
            *(a + b[0] + b for a, b in pairs if b),
            *(a + odd + b for a, b in pairs),
            *(a + odd + b[1:] for a, b in pairs if b),
            *(a + b[1] + b[0] + b[2:] for a, b in pairs if len(b) > 1),
            name.upper(),
            name.replace("_", "-"),
        }
        - {name, ""}
    )


@pytest.mark.parametrize(("text", "kind"), [(FULL, AgentConfig), (COLLECTOR, CollectorConfig)])
def test_every_setting_misspelled_by_one_edit_is_named_with_what_was_meant(tmp_path, text, kind):
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line
            continue
        if line in ('type = "scanner"', 'type = "camera"', 'type = "upload"'):
            section += f"\n{line}"
            continue
        name = line.partition(" = ")[0]
        for typo in misspelled(name):
            needed = text.splitlines()[0] if section else ""
            said = refusal(tmp_path, f"{needed}\n{section}\n{line.replace(name, typo, 1)}\n", kind)
            table, _, tag = section.partition("\n")
            full_name = ".".join(filter(None, (table.strip("[]"), typo)))
            assert said == f"agent.toml:{4 if tag else 3}: {full_name}: no such setting; did you mean {name}?"


@pytest.mark.parametrize("section", ["reader", "source", "outbox", "privacy", "mqtt", "privacy.let_out"])
def test_every_section_misspelled_by_one_edit_is_named_with_what_was_meant(tmp_path, section):
    name = section.rpartition(".")[2]
    for typo in misspelled(name):
        changed = re.sub(rf"(?m)^(\[\[?{section[: -len(name)]}){name}(\]\]?)$", rf"\g<1>{typo}\2", FULL)
        said = refusal(tmp_path, changed)
        line = next(n for n, line in enumerate(changed.splitlines(), 1) if typo in line)
        assert said.startswith(f"agent.toml:{line}: {section[: -len(name)]}{typo}: no such setting; ")
        assert f"did you mean {name}?" in said


def test_a_setting_in_the_wrong_section_shows_what_is_known_there(tmp_path):
    said = refusal(tmp_path, 'device = "a"\n[privacy]\nbundle = "x"\n')
    assert said == "agent.toml:3: privacy.bundle: no such setting; known here: keep_last, let_out, mask, min_digits"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("limit_mb = 300", "limit_mb = 1", "59: memory.limit_mb = 1: must be a whole number from 128 to 65536 (MB)"),
        (
            "limit_mb = 300",
            'limit_mb = "250MB"',
            "59: memory.limit_mb = '250MB': must be a whole number from 128 to 65536 (MB), without quotes",
        ),
        (
            "stable_s = 1",
            'stable_s = "2s"',
            "14: source.stable_s = '2s': must be a number from 0.05 to 86400 (seconds), without quotes",
        ),
        ("stable_s = 1", "stable_s = 2000000", "14: source.stable_s = 2000000: must be a number from 0.05 to 86400 ("),
        ("stable_s = 1", "stable_s = nan", "14: source.stable_s = nan: must be a number from 0.05 to 86400 ("),
        ("stable_s = 1", "stable_s = inf", "14: source.stable_s = inf: must be a number from 0.05 to 86400 ("),
        ("stable_s = 1", "stable_s = -1", "14: source.stable_s = -1: must be a number from 0.05 to 86400 ("),
        ("stable_s = 1", "stable_s = true", "14: source.stable_s = true: must be a number from 0.05 to 86400 ("),
        ("threads = 2", "threads = 2.0", "6: reader.threads = 2.0: must be a whole number from 1 to 64"),
        ("threads = 2", "threads = true", "6: reader.threads = true: must be a whole number from 1 to 64"),
        ("threads = 2", "threads = [2]", "6: reader.threads: must be a whole number from 1 to 64"),
        (
            'engine = "onnxruntime"',
            'engine = "onnx"',
            "7: reader.engine = 'onnx': must be one of \"auto\", \"onnxruntime\", \"paddle\", \"paddlelite\"",
        ),
        ("keep_days = 1", "keep_days = 1979-05-27", "18: source.keep_days = 1979-05-27: must be a number "),
        ("mask = true", 'mask = "yes"', "33: privacy.mask = 'yes': must be true or false"),
        ("mask = true", "mask = 1", "33: privacy.mask = 1: must be true or false"),
        ('path = "in-b"', 'path = ""', "23: source.path = '': must be text in quotes"),
        ('path = "in-b"', "path = 5", "23: source.path = 5: must be text in quotes"),
        ('device = "box-1"', 'device = "box/1"', "1: device = 'box/1': must be 1 to 64 of A-Z a-z 0-9 _ . - in "),
        ('device = "box-1"', 'device = "box-1\\n"', "1: device = 'box-1\\n': must be 1 to 64 of "),
        ('device = "box-1"', 'device = "+"', "1: device = '+': must be 1 to 64 of "),
        ('name = "b"', 'name = "b\\n"', "22: source.name = 'b\\n': must be 1 to 32 of "),
        ('name = "b"', 'name = "../b"', "22: source.name = '../b': must be 1 to 32 of "),
        ('topic_prefix = "a/b"', 'topic_prefix = "a/#"', "49: mqtt.topic_prefix = 'a/#': must be 1 to 8 parts of "),
        ('topic_prefix = "a/b"', 'topic_prefix = "a\\n"', "49: mqtt.topic_prefix = 'a\\n': must be 1 to 8 parts of "),
        (
            'commands = ["status", "pause"]',
            'commands = [\n"status",\n"reboot"]',
            "55: mqtt.commands = 'reboot': must be one of \"level\", \"pause\", \"reread\", \"resume\", \"status\"",
        ),
        (
            'commands = ["status", "pause"]',
            'commands = "status"',
            '55: mqtt.commands = \'status\': must be a list: ["level", "pause", "reread", "resume", "status"]',
        ),
        ('host = "127.0.0.1"', 'host = "mqtt://h"', "40: mqtt.host = 'mqtt://h': must be a name or address in "),
        ('host = "127.0.0.1"\n', "", "39: mqtt.host: is missing; must be a name or address in quotes, "),
        ('name = "b"\n', "", "21: source.name: is missing; must be 1 to 32 of "),
        ('type = "folder"', 'type = "cam"', "11: source.type = 'cam': must be one of \"camera\", \"folder\", "),
        ('pattern = "9[0-9]{11}"', 'pattern = "9["', "38: privacy.let_out.pattern = '9[': must be a regular "),
        ('name = "b"', 'name = "a"', "22: source.name = 'a': another source has this name"),
        ('path = "in-b"', 'path = "./in-a/"', "23: source.path = './in-a/': another source has this folder"),
        ('listen = "127.0.0.1:8733"', 'listen = "8733"', "81: source.listen = '8733': must be \"127.0.0.1:PORT\", "),
        ('listen = "127.0.0.1:8733"', 'listen = "0.0.0.0:8733"', "81: source.listen = '0.0.0.0:8733': must be of "),
        ('listen = "127.0.0.1:8733"', 'listen = "127.0.0.1:0"', "81: source.listen = '127.0.0.1:0': must be of "),
        ('token = "env:TOKEN"\nanyone = true', "", "78: source.token: is missing: say where a token is, or let "),
        ('["/bin/true", "x"]', '["true"]', "95: hooks.on_accepted = 'true': must begin with the whole path "),
        ('["/bin/false"]', '["/bin/false\\u0000"]', "96: hooks.on_failed: must not have a zero byte in it"),
        ("give_up_s = 10.5", "give_up_s = 0.5", "15: source.give_up_s = 0.5: must not be less than stable_s, 1"),
        ('cert_file = ""', 'cert_file = "c.pem"', "46: mqtt.cert_file = 'c.pem': needs key_file too"),
        ('key_file = ""', 'key_file = "k.pem"', "47: mqtt.key_file = 'k.pem': needs cert_file too"),
        ('ca_file = ""', 'ca_file = "/none/ca.pem"', "45: mqtt.ca_file = '/none/ca.pem': missing, or not "),
        ('tls = true\nca_file = ""', 'tls = false\nca_file = "ca.pem"', "45: mqtt.ca_file = 'ca.pem': has no use "),
        ('name = "c"', 'name = "b"', "64: source.name = 'b': another source has this name"),
        ('feeder = "ADF Front"\ntrigger = "order"', 'feeder = "flatbed"', "62: source.trigger = 'feeder': cannot be "),
        ('page_size = "210x148"', 'page_size = "a7"', "71: source.page_size = 'a7': must be \"a3\", \"a4\", \"a5\", "),
        ('"--swcrop"', '"--batch=x"', "72: source.options = '--batch=x': must be options of the scanner as `scan"),
        ('timeout_s = 30', 'timeout_s = 0', "73: source.timeout_s = 0: must be a number from 1 to 3600 (seconds)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_with_its_line_and_what_is_accepted(tmp_path, old, new, said):
    assert FULL.count(old) == 1 or old.startswith(("name", "path"))
    assert refusal(tmp_path, FULL.replace(old, new, 1)).startswith(f"agent.toml:{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "agent.toml: device: is missing; must be 1 to 64 of "),
        ("\ufeff", "agent.toml: device: is missing; "),
        ("[reader]\n", "agent.toml: device: is missing; "),
        ('device = "a"\ndevice = "b"\n', "agent.toml:2: device: not valid TOML: "),
        ('device = "a"\n[mqtt]\nhost = "a"\nport = 1\nport = 2\n', "agent.toml:5: port: not valid TOML: "),
        ('device = "a"\n[reader]\n[reader]\n', "agent.toml:3: not valid TOML: "),
        ('device = "a\n', "agent.toml:1: device: not valid TOML: "),
        ("device = a\n", "agent.toml:1: device: not valid TOML: "),
        ('device = "a"\n[source]\nname = "a"\n', "agent.toml:2: source: must be a list of tables, [[source]]"),
        ('device = "a"\nreader = 5\n', "agent.toml:2: reader = 5: must be a table, [reader]"),
        ('device = "a"\nsource = ["in"]\n', "agent.toml:2: source = 'in': must be a table, [source]"),
        (
            'device = "a"\nreader = { threads = 0 }\n',
            "agent.toml:2: reader.threads = 0: must be a whole number from 1 to 64",
        ),
        ('device = "a"\nreader.threads = 0\n', "agent.toml:2: reader.threads = 0: must be a whole number from 1 to 64"),
        ('device = "a"\n[ "reader" ]\n "threads" = 0\n', "agent.toml:3: reader.threads = 0: must be a whole number "),
        (b"\xff\xfed\0", "agent.toml: not UTF-8 text; save it as UTF-8"),
        (b'device = "a\0"', "agent.toml:1: device: not valid TOML: "),
        (b"a = " + b"[" * 5000, "agent.toml"),
        (b"#" * (strict.MAX_BYTES + 1), "agent.toml: larger than 1048576 bytes: these are no settings"),
    ],
)
def test_what_are_no_settings_is_refused(tmp_path, text, said):
    assert refusal(tmp_path, text).startswith(said)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml: No such file or directory"):
        load(tmp_path / "none.toml", AgentConfig)
    with pytest.raises(ConfigError, match=r"Is a directory"):
        load(tmp_path, AgentConfig)


def test_a_file_without_the_right_to_read_it_is_named(tmp_path, monkeypatch):
    path = written(tmp_path, FULL)

    def refused(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)  # the tests may run as root, who may read everything
    with pytest.raises(ConfigError, match=r"agent.toml: Permission denied"):
        load(path, AgentConfig)


def test_certificates_that_are_there_are_taken_and_directories_are_not(tmp_path):
    (tmp_path / "ca.pem").write_text("x")
    text = FULL.replace('ca_file = ""', f'ca_file = "{tmp_path}/ca.pem"')
    assert load(written(tmp_path, text), AgentConfig).mqtt.ca_file == f"{tmp_path}/ca.pem"
    assert "missing, or not readable" in refusal(tmp_path, FULL.replace('ca_file = ""', f'ca_file = "{tmp_path}"'))


def test_the_worker_need_not_see_the_certificates(tmp_path):
    path = written(tmp_path, FULL.replace('ca_file = ""', 'ca_file = "/none/ca.pem"'))
    assert load(path, AgentConfig, check_files=False).mqtt.ca_file == "/none/ca.pem"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_random_files_are_refused_and_nothing_else(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("random") / "agent.toml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError):
        load(path, AgentConfig)


@given(
    st.sampled_from(settings_of(FULL)),
    st.sampled_from(('"zz"', "-7", "9.5e300", "[[]]", "{ a = 1 }", "nan", "1979-05-27")),
)
def test_a_value_of_another_kind_is_refused_with_its_line(tmp_path_factory, setting, value):
    number, name = setting
    lines = FULL.splitlines()
    lines[number - 1] = f"{name} = {value}"
    text = value == '"zz"'
    if text and name in ("device", "state_dir", "bundle", "name", "path", "pattern", "host", "username", "topic_prefix",
                         "home_assistant_prefix", "feeder", "mode", "listen"):  # fmt: skip
        return
    path = tmp_path_factory.mktemp("kind") / "agent.toml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as refused:
        load(path, AgentConfig)
    assert str(refused.value).startswith(f"{path}:{number}: ")
    assert f"{name}" in str(refused.value)


# ------------------------------------------------------------------------------------------------ collector


def test_a_collectors_settings_are_taken(tmp_path):
    config = load(written(tmp_path, COLLECTOR), CollectorConfig)
    assert (config.store, config.batch, config.batch_s, config.mqtt.host) == ("sqlite:a.db", 1, 0.0, "h")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch = 1", "batch = 0", "5: batch = 0: must be a whole number from 1 to 5000"),
        ("batch_s = 0", "batch_s = 11", "6: batch_s = 11: must be a number from 0 to 10 (seconds)"),
        ('"g"', '"g/#"', "4: group = 'g/#': must be up to 64 of "),
        ('"g"', '"g\\n"', "4: group = 'g\\n': must be up to 64 of "),
        (
            '"sqlite:a.db"',
            '"mysql:hunter2"',
            '2: store: must be "sqlite:PATH" or "postgresql://USER@HOST/DATABASE", its ',
        ),
        ('"sqlite:a.db"', '"postgresql://u:hunter2@h/d"', "2: store: holds a password; it belongs in store_password"),
        ('"sqlite:a.db"', '"postgresql://h/d?password=hunter2"', "2: store: holds a password; "),
        (
            '"env:DB"',
            '"hunter2"',
            '3: store_password: must be "file:PATH", "env:NAME" or "credential:NAME" (of systemd); ',
        ),
    ],
)
def test_wrong_settings_of_a_collector_are_refused(tmp_path, old, new, said):
    told = refusal(tmp_path, COLLECTOR.replace(old, new, 1), CollectorConfig)
    assert told.startswith(f"agent.toml:{said}")
    assert "hunter2" not in told


# ------------------------------------------------------------------------------------------------ secrets


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter2"',
        'password = "plain:hunter2"',
        'password = ["hunter2"]',
        'password = { is = "hunter2" }',
        'password = "file:hunter2\\n"',
        "password = hunter2",
        'pasword = "hunter2"',
        'password = "hunter2',
        'password = "hunter2"\npassword = "hunter2"',
        'secret = "hunter2"',
        "password = '''hunter2",
        'username = "u:hunter2@h"\nport = "u:hunter2@h"',
        'topic_prefix = "mqtt://u:hunter2@h"',
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path, line):
    text = f'device = "a"\n[mqtt]\nhost = "h"\n{line}\n'
    assert "hunter2" not in refusal(tmp_path, text)


def test_a_broker_written_with_its_password_is_not_repeated(tmp_path):
    assert "hunter2" not in refusal(tmp_path, 'device = "a"\n[mqtt]\nhost = "u:hunter2@broker"\n')


def test_a_literal_password_gets_advice(tmp_path):
    said = refusal(tmp_path, FULL.replace("env:MQTT_PASSWORD", "hunter2"))
    assert said == (
        'agent.toml:43: mqtt.password: must be "file:PATH", "env:NAME" or "credential:NAME" (of systemd); '
        "the secret itself has no place here"
    )


def test_the_error_has_no_cause_that_shows_a_secret(tmp_path):
    for text in ('device = "a"\n[mqtt]\nhost = "h"\npassword = hunter2', FULL.replace("env:MQTT_PASSWORD", "hunter2")):
        with pytest.raises(ConfigError) as refused:
            load(written(tmp_path, text), AgentConfig)
        assert refused.value.__cause__ is None


def test_secrets_are_read_from_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "password").write_bytes("gehéim \r\n".encode())
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert secret(None) is None
    assert secret(f"file:{tmp_path}/password") == "gehéim "
    assert secret("credential:password") == "gehéim "
    assert secret("env:SECRET") == "s"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("file:/none", "file:/none: No such file or directory"),
        ("env:NO_SUCH_NAME", "env:NO_SUCH_NAME: the environment has no NO_SUCH_NAME"),
        ("credential:none", "credential:none: No such file or directory"),
        ("credential:../a", "credential:../a: must be the name of a credential, without a directory"),
        ("file:.", "file:.: Is a directory"),
        ("file:empty", "file:empty: is empty"),
        ("env:EMPTY", "env:EMPTY: is empty"),
        ("file:binary", "file:binary: not UTF-8 text"),
        ("file:a\0b", "not UTF-8 text"),
    ],
)
def test_a_secret_that_is_not_there_is_named(tmp_path, monkeypatch, where, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("EMPTY", "")
    Path("empty").write_text("\n")
    Path("binary").write_bytes(b"hunter2\xff")
    with pytest.raises(ConfigError) as refused:
        secret(where)
    assert said in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert not isinstance(refused.value.__cause__, UnicodeDecodeError)


def test_credentials_need_systemd(monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(ConfigError, match=r"the unit needs LoadCredential=password:PATH"):
        secret("credential:password")


def test_a_name_in_the_environment_may_be_any(monkeypatch):
    assert "A=B" not in os.environ
    with pytest.raises(ConfigError, match="the environment has no A=B"):
        secret("env:A=B")
