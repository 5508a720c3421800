"""`edge-ocr check` on the way to the broker: a real mosquitto with TLS, users, rights and limits; real certificates."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from agent.check import broker, certificates, credentials, rights
from agent.check.finding import Finding, Subject
from agent.config import AgentConfig, load
from agent.health import Lock, UplinkState, write_state
from tests.broker import Authority, Broker, free_port


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def subject(home: Path, port: int, **more: object) -> Subject:
    path, values = home / "agent.toml", {"host": "localhost", "port": port, **more}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    path.write_text(f'device = "box"\nstate_dir = "{home}/state"\n[mqtt]\n{lines}\n')
    return Subject(load(path, AgentConfig, check_files=False), path, time.time())


def told(findings) -> list[tuple[str, str]]:
    return [(finding.level, finding.said) for finding in findings]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may look into; those of pytest are closed."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def only(findings, level: str) -> Finding:
    (one,) = [finding for finding in findings if finding.level == level]
    return one


def test_broker_that_lets_the_device_work_is_all_right_and_hears_nothing(tmp_path, authority):
    with Broker(tmp_path / "broker", authority=authority) as real:
        before = subject(tmp_path, real.port, ca_file=str(authority.file))
        findings = list(broker.look(before))
        assert "lets this device in" in findings[0].said
        assert findings[-1].said == "this device may read and write below ocr/v1/devices/box"
        assert not [finding for finding in findings if finding.level == "fail"]
        assert "as box-check" in real.log and "as box " not in real.log
        published = [line for line in real.log.splitlines() if "Received PUBLISH" in line]
        assert len(published) == 1 and "ocr/v1/devices/box/check" in published[0] and "r0" in published[0]


def test_uplink_that_runs_is_not_thrown_off(tmp_path):
    with Broker(tmp_path / "broker") as real:
        from agent.mqtt import Link, Online, Session

        checked = subject(tmp_path, real.port, tls=False)
        link = Link(checked.config.mqtt, Session(client_id="box", expiry_s=60))
        link.retry_now()
        while not any(isinstance(event, Online) for event in link.tick(0.1)):
            pass
        assert only([f for f in broker.look(checked) if "read and write" in f.said], "ok")
        assert link.tick(0.2) == [] and link.online
        link.close()


def test_limits_of_the_broker_are_held_against_what_the_uplink_needs(tmp_path):
    more = "max_packet_size 20000\nretain_available false\nmax_inflight_messages 3"
    with Broker(tmp_path / "broker", more=more) as real:
        findings = list(broker.look(subject(tmp_path, real.port, tls=False)))
    said = told(findings)
    assert ("warn", "takes 3 messages at a time") in said
    assert ("fail", "takes packets up to 20000 bytes, results have up to 1048576") in said
    assert ("fail", "keeps no retained messages") in said
    assert all(finding.advice for finding in findings if finding.level != "ok")


def test_wrong_password_no_right_and_no_answer_are_told_apart(tmp_path):
    (tmp_path / "password").write_text("wrong")
    (tmp_path / "acl").write_text("user box\ntopic read ocr/v1/#\n")
    known = {"tls": False, "username": "box", "password": f"file:{tmp_path}/password"}
    more = f"acl_file {tmp_path}/acl"
    with Broker(tmp_path / "broker", passwords={"box": "right"}, more=more) as real:
        assert (
            "check mqtt.username and mqtt.password"
            in only(broker.look(subject(tmp_path, real.port, **known)), "fail").said
        )
        (tmp_path / "password").write_text("right")
        denied = only(broker.look(subject(tmp_path, real.port, **known)), "warn")
        assert denied.said.startswith("this device may not write ocr/v1/devices/box/check") and "ACL" in denied.advice
    gone = only(broker.look(subject(tmp_path, real.port, tls=False)), "fail")
    assert "nothing listens there" in gone.said and "broker running" in gone.advice


def test_wrong_authority_and_a_listener_without_tls_are_named(tmp_path, authority):
    other = Authority(tmp_path / "other")
    with Broker(tmp_path / "broker", authority=authority) as real:
        finding = only(broker.look(subject(tmp_path, real.port, ca_file=str(other.file))), "fail")
        assert "authority that is not in" in finding.said
    with Broker(tmp_path / "plain") as real:
        finding = only(broker.look(subject(tmp_path, real.port, ca_file=str(authority.file))), "fail")
        assert "TLS" in finding.said


def test_name_that_is_none_and_a_name_server_that_hangs_are_told(tmp_path, monkeypatch):
    unknown = only(broker.look(subject(tmp_path, 8883, host="no-such-host.invalid")), "fail")
    assert "cannot be resolved" in unknown.said
    monkeypatch.setattr(broker, "NAME_S", 0.1)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(2))
    silent = only(broker.look(subject(tmp_path, 8883)), "fail")
    assert silent.said == "the name server does not answer within 0.1 s for localhost"


def test_broker_that_takes_the_connection_and_hangs_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(broker, "LIMIT_S", broker.NAME_S + 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        finding = only(broker.look(subject(tmp_path, listener.getsockname()[1], tls=False)), "fail")
    assert "takes the connection and does not answer" in finding.said


def test_second_client_that_is_refused_is_no_fault_while_the_uplink_is_online(tmp_path):
    (tmp_path / "password").write_text("wrong")
    known = {"tls": False, "username": "box", "password": f"file:{tmp_path}/password"}
    with Broker(tmp_path / "broker", passwords={"box": "right"}) as real:
        checked = subject(tmp_path, real.port, **known)
        lock = Lock(tmp_path / "state", "uplink")
        write_state(tmp_path / "state", "uplink", UplinkState(pid=1, at_ms=0, started_ms=0, connection="online"))
        finding = only(broker.look(checked), "warn")
        lock.close()
    assert "the uplink itself is connected" in finding.advice


@pytest.mark.parametrize(("days", "level"), [(100, "ok"), (20, "warn"), (-1, "fail")])
def test_days_left_of_the_devices_certificate_are_told(tmp_path, authority, days, level):
    certificate, key = authority.issue(f"box{days}", "client", days=(-10, days))
    named = {"ca_file": str(authority.file), "cert_file": str(certificate), "key_file": str(key)}
    findings = [f for f in certificates.look(subject(tmp_path, 8883, **named)) if "cert_file" in f.said]
    assert [finding.level for finding in findings] == [level]
    assert bool(findings[0].advice) == (level != "ok")


def test_key_of_another_certificate_is_found(tmp_path, authority):
    certificate, _ = authority.issue("one", "client")
    _, key = authority.issue("two", "client")
    findings = certificates.look(subject(tmp_path, 8883, cert_file=str(certificate), key_file=str(key)))
    assert "is not its key" in only(findings, "fail").said


def test_key_that_the_uplinks_user_cannot_read_is_found(public, authority):
    if os.geteuid() != 0:
        pytest.skip("only root looks with others' eyes")
    files = [Path(shutil.copy(path, public)) for path in authority.issue("mine", "client")]
    for path, mode in zip(files, (0o644, 0o600), strict=True):
        path.chmod(mode)
    place = public / "state"
    place.mkdir()
    os.chown(place, 65534, 65534)
    findings = list(certificates.look(subject(public, 8883, cert_file=str(files[0]), key_file=str(files[1]))))
    assert not any("cert_file" in finding.said for finding in findings if finding.level == "fail")
    assert any("not readable for nobody" in finding.said for finding in findings if finding.level == "fail")


def test_credentials_of_systemd_are_found_by_their_unit_or_said_to_be_hidden(tmp_path, authority):
    certificate, key = authority.issue("given", "client")
    run = "/run/credentials/edge-ocr-uplink.service"
    named = {"cert_file": str(certificate), "key_file": f"{run}/key.pem", "password": "credential:password"}
    checked = subject(tmp_path, 8883, **named)
    hidden = only(certificates.look(msgspec.structs.replace(checked, root=tmp_path)), "warn")
    assert f"{run}/key.pem, credential:password" in hidden.said and "as root" in hidden.advice
    shutil.copy(key, tmp_path / "key.pem")
    (tmp_path / "password").write_text("secret")
    drop_in = tmp_path / "etc/systemd/system/edge-ocr-uplink.service.d/keys.conf"
    drop_in.parent.mkdir(parents=True)
    rows = [f"LoadCredential={name}:{tmp_path}/{name}" for name in ("key.pem", "password")]
    drop_in.write_text("\n".join(("[Service]", *rows, "")))
    mqtt, missing = credentials.seen(msgspec.structs.replace(checked, root=tmp_path), checked.config.mqtt)
    assert (mqtt.key_file, mqtt.password, missing) == (f"{tmp_path}/key.pem", f"file:{tmp_path}/password", ())


def test_secret_that_everybody_may_read_is_told(public):
    (public / "password").write_text("secret")
    (public / "password").chmod(0o644)
    checked = subject(public, free_port(), tls=False, password=f"file:{public}/password")
    finding = only([f for f in rights.look(checked) if "secret" in f.said], "warn")
    assert finding.advice == f"chmod o= {public}/password"
    (public / "password").chmod(0o640)
    assert only([f for f in rights.look(checked) if "secrets" in f.said], "ok")
