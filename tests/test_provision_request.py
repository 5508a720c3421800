"""What a medium asks for is taken as it is written, or refused with file, line, key and what to do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from agent.config import AgentConfig, load
from agent.errors import ConfigError
from agent.provision import folder, identity, papers, request
from agent.provision.identity import Identity
from agent.provision.keys import MediumConfig, ProvisionConfig
from tests.command import EDGE_OCR, ROOT, run
from tests.provision_kit import MAC, ME, PLAIN, SERIAL, WHOLE, Certificates, Place, certificates, lock, place

SAMPLE = ROOT / "systemd" / "edge-ocr.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("made"))


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return place(tmp_path)


def ask(here: Place, *names: str) -> request.Request:
    return request.read(here.stick, names or ("edge-ocr.toml",), "edge-1")


def refusal(here: Place, *names: str) -> str:
    with pytest.raises(ConfigError) as caught:
        ask(here, *names)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ who the box is


def hardware(root: Path, serial: str, *macs: str) -> Identity:
    for name, content in (("sys/class/dmi/id/product_serial", serial), *(device(n, mac) for n, mac in enumerate(macs))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    for path in (root / "sys/class/net").glob("eth*"):
        (path / "device").mkdir()
        (path / "type").write_text("1\n")
    return identity.read(root)


def device(number: int, mac: str) -> tuple[str, str]:
    return f"sys/class/net/eth{number}/address", mac


def test_box_is_called_by_its_serial_number(tmp_path):
    assert hardware(tmp_path, "PF 3X/77", MAC).device == "edge-PF-3X-77"


def test_board_with_a_device_tree_has_its_serial_there(tmp_path):
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/serial-number").write_bytes(b"1421723045689\0")
    assert hardware(tmp_path, "other").serial == "1421723045689"


@pytest.mark.parametrize("serial", ["To Be Filled By O.E.M.", "Default string", "0000000000", "None", "", "..."])
def test_what_boards_say_instead_of_a_serial_number_is_none(tmp_path, serial):
    assert hardware(tmp_path, serial, MAC).device == "edge-02005e100001"


def test_devices_without_hardware_give_no_address(tmp_path):
    net = tmp_path / "sys/class/net"
    for name, kind, address in (("docker0", "1", MAC), ("lo", "772", "00:00:00:00:00:00")):
        (net / name).mkdir(parents=True)
        (net / name / "type").write_text(kind)
        (net / name / "address").write_text(address)
    assert identity.read(tmp_path) == Identity("", ())
    assert identity.read(tmp_path).device == ""


@pytest.mark.parametrize("name", [SERIAL, SERIAL.replace("-", ""), MAC, "02-00-5E-10-00-01", "02005e100001"])
def test_box_knows_its_files_however_its_number_is_written(name):
    assert ME.owns(name)
    assert not ME.owns(name + "1")
    assert not Identity("", ()).owns("")


# ------------------------------------------------------------------------------------------------ settings


def test_settings_are_those_of_the_file_and_nothing_else(here):
    here.put("edge-ocr.toml", PLAIN)
    asked = ask(here)
    (here.stick / "agent.toml").write_text(asked.settings)
    (here.stick / "plain.toml").write_text(PLAIN)
    assert load(here.stick / "agent.toml", AgentConfig) == load(here.stick / "plain.toml", AgentConfig) == asked.config
    assert asked.keys == ()


def test_every_setting_comes_through(here):
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", (ROOT / "systemd" / "agent.toml").read_text(), flags=re.MULTILINE)
    text = text.replace('listen = "127.0.0.1:8733"', 'listen = "systemd"')
    here.put("edge-ocr.toml", text)
    here.put("plain.toml", text)
    here.put("written.toml", ask(here).settings)
    assert load(here.stick / "written.toml", AgentConfig) == load(here.stick / "plain.toml", AgentConfig)


def test_box_without_a_name_in_the_file_is_called_by_its_number(here):
    here.put("edge-ocr.toml", PLAIN.replace("device", "#device"))
    assert ask(here).config.device == "edge-1"
    with pytest.raises(ConfigError, match="device: is missing, and this box has neither"):
        request.read(here.stick, ("edge-ocr.toml",), "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("host = 5", "edge-ocr.toml:7: mqtt.host = 5: must be a name or address in quotes, without mqtt:// before it"),
        ("hots = 'a'", "edge-ocr.toml:7: mqtt.hots: no such setting; did you mean host?"),
        ("host = 'a'\nport = 0", "edge-ocr.toml:8: mqtt.port = 0: must be a whole number from 1 to 65535"),
        ("host = ", "edge-ocr.toml:7: host: not valid TOML: Invalid value"),
        ("host = 'a'\n[provison]", "edge-ocr.toml:8: provison: no such setting; did you mean provision?"),
        ("host = 'a'\n[provision]\npass = 'a'", "edge-ocr.toml:9: provision.pass: no such setting; did you mean"),
        ("host = 'a'\n[provision]\nremove = 1", "edge-ocr.toml:9: provision.remove = 1: must be true or false"),
        ("host = 'a'\n[provision]\npassword = 7", "edge-ocr.toml:9: provision.password: must be the text itself"),
        ("host = 'a'\n[provision]\npassword = 'a\x07b'", "edge-ocr.toml:9: password: not valid TOML"),
        ("host = 'a'\n[provision]\npassword = ''", "edge-ocr.toml:9: provision.password: must be the text itself"),
        ("host = 'a'\ntls = false\n[provision]\nca = 'ca.pem'", "mqtt.ca_file = '/run/cred"),
        (
            "host = 'a'\npassword = 'file:/p'\n[provision]\npassword = 'geheim'",
            "edge-ocr.toml:8: mqtt.password: is one too many beside [provision] password",
        ),
        (
            "host = 'a'\n[provision]\npassword = 'geheim'\npassword_file = 'p'",
            "edge-ocr.toml:10: provision.password_file: is one too many beside password",
        ),
        ("host = 'a'\n[provision]\nkey = 'box.key'", "edge-ocr.toml:9: provision.key: needs certificate too"),
        ("host = 'a'\n[provision]\ncertificate = 'box.pem'", "provision.certificate: needs key too"),
        ("host = 'a'\n[provision]\nca = 'box.key'", "provision.ca: no certificates in PEM"),
        ("host = 'a'\n[provision]\nca = 'no.pem'", "provision.ca = 'no.pem': there is no such file"),
        ("host = 'a'\n[provision]\nca = '../ca.pem'", "provision.ca = '../ca.pem': leads out of the folder"),
        ("host = 'a'\n[provision]\nca = '/etc/passwd'", "provision.ca = '/etc/passwd': leads out of the folder"),
        ("host = 'a'\n[provision]\nca = 'keys\\ca.pem'", 'has a "\\" in it; folders are parted by "/"'),
        ("host = 'a'\n[provision]\nca = ''", "provision.ca: must be the name of a file beside this one"),
        ("host = 'a'\n[provision]\npassword_file = 'ca.pem'", "must hold one line, the password"),
        (
            "host = 'a'\n[[provision.credential]]\nname = 'camera'\ntext = 'geheim'",
            "edge-ocr.toml:9: provision.credential.name = 'camera': is given twice, or no setting is",
        ),
        (
            "host = 'a'\n[[provision.credential]]\nname = 'password'\ntext = 'geheim'",
            "edge-ocr.toml:9: provision.credential.name = 'password': must be 1 to 64 of",
        ),
    ],
)
def test_wrong_file_is_refused_with_its_line(here, made, line, said):
    here.put_all(PLAIN.replace('host = "broker.bank"\nusername = "branch-0042"', line), made)
    error = refusal(here)
    assert said in error
    assert "geheim" not in error


def test_key_needs_a_broker(here, made):
    here.put_all(
        WHOLE.replace("[mqtt]", "[hooks]").replace('host = "broker.bank"\nusername = "branch-0042"\n', ""), made
    )
    assert "provision.ca: is for the broker, and there is no [mqtt]" in refusal(here)


def test_address_that_no_unit_can_listen_at_is_refused(here):
    here.put(
        "edge-ocr.toml", PLAIN + '[[source]]\ntype = "upload"\nname = "a"\nlisten = "127.0.0.1:80"\nanyone = true\n'
    )
    assert 'set listen = "systemd"' in refusal(here)


@pytest.mark.parametrize("content", [b"\xff\xfed\0e\0v\0", b"a = 1\n" * 200_000])
def test_what_is_no_text_or_too_long_is_refused(here, content):
    (here.stick / "edge-ocr.toml").write_bytes(content)
    assert re.search("not UTF-8 text; save it as UTF-8|larger than 1048576 bytes", refusal(here))


def test_tower_of_names_is_refused(here):
    here.put("edge-ocr.toml", "a" + ".a" * 900 + " = 1\n")
    assert "nested too deeply" in refusal(here)


# ------------------------------------------------------------------------------------------------ keys


def test_certificates_and_password_become_credentials_of_the_uplink(here, made):
    here.put_all(WHOLE, made)
    asked = ask(here)
    assert {key.name: key.content.decode() for key in asked.keys} == {
        "ca.pem": made.ca,
        "cert.pem": made.certificate,
        "key.pem": made.key,
        "password": "open sesame",
    }
    assert {key.unit for key in asked.keys} == {"edge-ocr-uplink.service"}
    mqtt = asked.config.mqtt
    assert mqtt is not None
    assert mqtt.password == "credential:password"
    assert mqtt.key_file == "/run/credentials/edge-ocr-uplink.service/key.pem"
    assert "sesame" not in asked.settings


def test_keys_can_stand_in_the_file_itself(here, made):
    parts = {"ca": made.ca, "certificate": made.certificate, "key": made.key}
    here.put("edge-ocr.toml", PLAIN + "[provision]\n" + "".join(f'{k} = """\n{v}"""\n' for k, v in parts.items()))
    asked = ask(here)
    assert [key.content.decode().strip() for key in asked.keys] == [text.strip() for text in parts.values()]
    assert (asked.inline, asked.spent) == (("edge-ocr.toml",), ())


def test_password_can_be_a_file_of_its_own(here):
    here.put("edge-ocr.toml", PLAIN + '[provision]\npassword_file = "keys/password.txt"\n')
    here.put("keys/password.txt", "open sesame\r\n")
    asked = ask(here)
    assert asked.keys[0].content == b"open sesame"
    assert asked.spent == ("keys/password.txt",)


def test_secret_of_a_source_goes_to_the_worker_alone(here):
    source = '[[source]]\ntype = "camera"\nname = "c"\ndevice = "rtsp://a/b"\nusername = "u"\n'
    source += 'password = "credential:camera"\n'
    here.put("edge-ocr.toml", PLAIN + source + '[[provision.credential]]\nname = "camera"\ntext = "cheese"\n')
    assert [(key.name, key.unit, key.content) for key in ask(here).keys] == [
        ("camera", "edge-ocr-worker.service", b"cheese")
    ]


def test_key_of_another_certificate_is_refused(here, made, tmp_path):
    here.put_all(WHOLE, made)
    here.put("box.key", certificates(tmp_path / "other").key)
    assert "provision.certificate: is not the certificate of the key; give the pair" in refusal(here)


def test_key_with_a_password_is_refused(here, made, tmp_path):
    here.put_all(WHOLE, made)
    here.put("box.key", lock(made.key, tmp_path))
    assert "the key is protected by a password; a service needs one without" in refusal(here)


@pytest.mark.parametrize("name", ["box.pem", "box.key", "ca.pem"])
@pytest.mark.parametrize("content", ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_file_that_is_no_key_is_refused(here, made, name, content):
    here.put_all(WHOLE, made)
    here.put(name, content)
    assert re.search(r"provision\.(ca|certificate): no certificate", refusal(here))


def test_certificate_whose_time_is_over_is_refused_with_the_clock_in_mind(here, tmp_path):
    here.put_all(WHOLE, certificates(tmp_path / "old", (-30, -3)))
    assert re.search(r"has expired [23] days ago; get a new one, or set the clock here, it says 20\d\d-", refusal(here))


# ------------------------------------------------------------------------------------------------ files


def test_links_are_not_followed(here, made, tmp_path):
    here.put_all(WHOLE, made)
    (tmp_path / "secret").write_text(made.ca)
    (here.stick / "ca.pem").unlink()
    (here.stick / "ca.pem").symlink_to(tmp_path / "secret")
    assert "provision.ca = 'ca.pem': is a link, and links are not followed" in refusal(here)
    (here.stick / "edge-ocr.toml").unlink()
    (here.stick / "edge-ocr.toml").symlink_to(tmp_path / "secret")
    assert refusal(here).startswith("edge-ocr.toml: is a link")


def test_folder_that_is_a_link_is_not_followed(here, made, tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ca.pem").write_text(made.ca)
    (here.stick / "keys").symlink_to(tmp_path / "keys")
    here.put("edge-ocr.toml", PLAIN + '[provision]\nca = "keys/ca.pem"\n')
    assert "provision.ca" in refusal(here)


def test_pipe_is_not_waited_for(here):
    os.mkfifo(here.stick / "ca.pem")
    here.put("edge-ocr.toml", PLAIN + '[provision]\nca = "ca.pem"\n')
    assert "is no plain file" in refusal(here)


def test_endless_file_is_not_read_to_its_end(here):
    with (here.stick / "ca.pem").open("wb") as file:
        file.truncate(1 << 40)
    here.put("edge-ocr.toml", PLAIN + '[provision]\nca = "ca.pem"\n')
    assert "is larger than 65536 bytes" in refusal(here)


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "", "a//b", ".", "a\nb"])
def test_no_name_leads_out(tmp_path, name):
    with pytest.raises(ConfigError):
        folder.read(tmp_path, name, 10)


# ------------------------------------------------------------------------------------------------ one stick, many boxes


def test_own_file_goes_before_the_common_one(here, made):
    here.put("edge-ocr.toml", PLAIN.replace("device", "#device") + '[provision]\nca = "ca.pem"\n')
    here.put("ca.pem", made.ca)
    here.put(f"edge-ocr.d/{SERIAL}.toml", 'device = "b-7"\n[mqtt]\nport = 1000\n[provision]\npassword_file = "7.txt"\n')
    here.put("edge-ocr.d/7.txt", "mine")
    own = request.own_name(here.stick, ME)
    asked = ask(here, own, "edge-ocr.toml")
    mqtt = asked.config.mqtt
    assert mqtt is not None
    assert (asked.config.device, mqtt.host, mqtt.port, mqtt.username) == ("b-7", "broker.bank", 1000, "branch-0042")
    assert [key.name for key in asked.keys] == ["ca.pem", "password"]
    assert (asked.own, asked.spent, asked.staying) == ((own,), ("edge-ocr.d/7.txt",), ())
    assert set(asked.files) == {own, "edge-ocr.toml", "ca.pem", "edge-ocr.d/7.txt"}


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("device = 7\n", f"edge-ocr.d/{SERIAL}.toml:1: device = 7"),
        ("[mqtt]\nkeepalive_s = 0\n", f"edge-ocr.d/{SERIAL}.toml:2: mqtt.keepalive_s"),
        ("device = 'a'\n", "edge-ocr.toml:9: mqtt.port = 0"),
    ],
)
def test_error_names_the_file_that_it_is_in(here, own, said):
    here.put("edge-ocr.toml", PLAIN + "port = 0\n" if "port" in said else PLAIN)
    here.put(f"edge-ocr.d/{SERIAL}.toml", own)
    assert said in refusal(here, f"edge-ocr.d/{SERIAL}.toml", "edge-ocr.toml")


def test_box_without_a_file_of_its_own_says_who_it_is(here):
    here.put("edge-ocr.d/other.toml", "")
    with pytest.raises(ConfigError, match=f"none of its 1 files is this box's .serial number {SERIAL}, MAC {MAC}"):
        request.own_name(here.stick, ME)


def test_two_files_for_one_box_are_refused(here):
    here.put(f"edge-ocr.d/{SERIAL}.toml", "")
    here.put("edge-ocr.d/02-00-5e-10-00-01.toml", "")
    with pytest.raises(ConfigError, match="are both this box's"):
        request.own_name(here.stick, ME)


def test_digest_is_of_names_and_contents(here, made):
    here.put_all(WHOLE, made)
    asked = ask(here)
    assert request.mark(here.stick, asked.files[0]) == asked.mark
    here.put("ca.pem", made.ca + "\n")
    assert (ask(here).digest != asked.digest, ask(here).mark) == (True, asked.mark)
    (here.stick / "edge-ocr.toml").unlink()
    assert request.mark(here.stick, asked.files[0]) == ""


def test_table_is_written_as_people_write_it():
    table = {"a": 1, "b": {"c": ["x"], "d": [{"e": True}, {"e": False, "f": {"g": 'q"'}}]}}
    text = papers.render(table)
    assert "[b]\n" in text
    assert text.count("[[b.d]]\n") == 2
    assert "[b.d.f]\n" in text


# ------------------------------------------------------------------------------------------------ the sample


def test_the_sample_can_be_taken_as_it_is(here):
    here.put("edge-ocr.toml", SAMPLE.read_text())
    asked = ask(here)
    assert asked.config.device == "edge-1"
    assert not asked.keys


def test_the_sample_can_be_taken_with_all_that_it_shows(here, made):
    text = re.sub(r"^#(?=[a-z_]+ = |\[)", "", SAMPLE.read_text(), flags=re.MULTILINE)
    text = re.sub(r"^password_file.*\n", "", text, flags=re.MULTILINE)
    upload = '[[source]]\ntype = "upload"\nname = "u"\nlisten = "systemd"\ntoken = "credential:token"\n'
    here.put_all(text + upload, made)
    asked = ask(here)
    assert [key.name for key in asked.keys] == ["ca.pem", "cert.pem", "key.pem", "password", "token"]
    assert (asked.config.device, asked.remove, asked.again) == ("branch-0042", True, False)


def test_the_sample_shows_every_setting_of_its_own_section():
    section = SAMPLE.read_text().partition("\n[provision]\n")[2]
    shown = set(re.findall(r"^#([a-z_]+) = ", section.partition("#[[")[0], re.MULTILINE))
    assert shown | {"credential"} == set(ProvisionConfig.__struct_fields__)
    assert set(MediumConfig.__struct_fields__) - set(AgentConfig.__struct_fields__) == {"provision"}


def test_files_are_looked_at_without_a_box(here, made):
    """As an administrator does on a computer of his own, without root."""
    here.put("edge-ocr.toml", PLAIN.replace("device", "#device"))
    here.put("edge-ocr.d/02-00-5e-10-00-01.toml", 'device = "b-1"\n')
    here.put("edge-ocr.d/PF77.toml", "")
    before = here.on_it()
    good = run((*EDGE_OCR, "provision", "--dry-run", "--from", here.stick))
    assert (good.status, good.err) == (0, "")
    assert good.out == "edge-ocr.d/02-00-5e-10-00-01.toml: b-1: good\nedge-ocr.d/PF77.toml: edge-PF77: good\n"
    here.put("edge-ocr.d/PF77.toml", "devise = 1\n")
    wrong = run((*EDGE_OCR, "provision", "--dry-run", "--from", here.stick))
    assert (wrong.status, wrong.out) == (78, "")
    assert wrong.err == (
        f"edge-ocr: {here.stick}/edge-ocr.d/PF77.toml:1: devise: no such setting; did you mean device?\n"
    )
    assert here.on_it() == before
