"""The units as systemd runs them, with everything they close: pages are read, and nothing else can be done."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.command import ROOT, Ran
from tests.docs import inline, text_of
from tests.system import machine
from tests.system.branch import until
from tests.system.machine import Machine

WORKER, UPLINK, SOCKET, TARGET = (
    f"edge-ocr{name}" for name in ("-worker.service", "-uplink.service", ".socket", ".target")
)
INBOX = "/var/lib/edge-ocr/inbox"
SETTINGS = """
device = "box-1"
[[source]]
type = "folder"
name = "inbox"
path = "/var/lib/edge-ocr/inbox"
stable_s = 0.1
poll_s = 0.1
[[source]]
type = "upload"
name = "upload"
listen = "systemd"
[mqtt]
host = "127.0.0.1"
port = 9
tls = false
username = "box-1"
password = "credential:password"
"""
TRY = """
import errno, os
def tried(what):
    try:
        return str(what())
    except OSError as error:
        return errno.errorcode[error.errno]
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, bundle_path: Path) -> Iterator[Machine]:
    if reason := machine.why_not():
        pytest.skip(reason)
    box = Machine(tmp_path_factory.mktemp("machine"), bundle_path)
    try:
        box.write("/etc/edge-ocr/agent.toml", SETTINGS)
        box.write("/etc/edge-ocr/keys/password", "secret")
        box.write(
            f"/etc/systemd/system/{UPLINK}.d/keys.conf",
            "[Service]\nLoadCredential=password:/etc/edge-ocr/keys/password\n",
        )
        box.run("systemctl", "daemon-reload")
        assert box.run("systemctl", "enable", TARGET, WORKER, UPLINK, SOCKET).status == 0
        started = box.run("systemctl", "start", TARGET)
        assert until(lambda: active(box, WORKER) and active(box, UPLINK), 60) < 60, started.err + box.journal(
            "edge-ocr*"
        )
        yield box
    finally:
        box.close()


def active(box: Machine, unit: str) -> bool:
    return box.show(unit, "ActiveState") == "active"


def state(box: Machine, role: str) -> dict[str, object]:
    return json.loads(box.run("cat", f"/var/lib/edge-ocr/{role}.json").out)


def put(box: Machine, name: str) -> None:
    """Bring a page as somebody of the group does."""
    inside = Path(f"/proc/{box.init}/root{INBOX}")
    shutil.copyfile(ROOT / "samples" / name, inside / f".{name}.part")
    (inside / f".{name}.part").rename(inside / name)


def tried(box: Machine, unit: str, *expressions: str) -> list[str]:
    """Return what expressions give where a unit's process is, or the name of the error."""
    prints = "".join(f"print(tried(lambda: {expression}))\n" for expression in expressions)
    ran = box.inside(unit, TRY + prints)
    assert ran.status == 0, ran.err
    return ran.out.splitlines()


def test_target_starts_both_and_the_socket(box):
    assert active(box, TARGET)
    assert active(box, SOCKET)
    assert box.show(WORKER, "NRestarts") == box.show(UPLINK, "NRestarts") == "0"
    for unit in (WORKER, UPLINK):  # from the start of the process to READY=1
        began, ready = (int(box.show(unit, f"{name}TimestampMonotonic")) for name in ("ExecMainStart", "ActiveEnter"))
        print(json.dumps({"unit": unit, "ready_s": round((ready - began) / 1e6, 2)}))


def test_page_is_read_and_put_away(box):
    put(box, "form.png")
    assert until(lambda: state(box, "worker")["accepted"] == 1, 60) < 60, box.journal(WORKER)
    assert "form.png" in box.run("ls", f"{INBOX}/done").out
    assert until(lambda: "1 accepted" in box.show(WORKER, "StatusText"), 20) < 20


def test_document_is_read_by_a_process_of_its_own(box):
    with Image.open(ROOT / "samples" / "receipt.png") as picture:
        picture.convert("RGB").save(Path(f"/proc/{box.init}/root{INBOX}/paper.pdf"))
    assert until(lambda: "paper.pdf" in box.run("ls", f"{INBOX}/done").out, 60) < 60, box.journal(WORKER)
    assert state(box, "worker")["failed"] == 0


def test_worker_has_no_network_no_device_and_no_key(box):
    found = tried(
        box,
        WORKER,
        "open('/proc/net/dev').read().count(':')",
        "os.path.exists('/dev/kmsg') or os.path.exists('/dev/mem')",
        "os.listdir('/run/credentials')",
        "open('/etc/edge-ocr/keys/password').read()",
        "os.listdir('/root')",
        "open('/run/lock/new', 'w')",  # which all may write to, elsewhere
    )
    assert found == ["1", "False", "EACCES", "EACCES", "EACCES", "EROFS"]  # one interface: lo, in a network of its own


def test_uplink_has_its_key_and_sees_no_picture(box):
    found = tried(
        box,
        UPLINK,
        "open('/run/credentials/edge-ocr-uplink.service/password').read()",
        "open('/etc/edge-ocr/keys/password').read()",
        "os.listdir('/var/lib/edge-ocr/inbox')",
        "os.listdir('/srv')",
        "os.path.exists('/var/lib/edge-ocr/outbox.db')",
        "os.path.exists('/dev/kmsg') or os.path.exists('/dev/mem')",
        f"os.listdir('/proc/{box.show(WORKER, 'MainPID')}/root{INBOX}')",
        f"open('/proc/{box.show(WORKER, 'MainPID')}/mem', 'rb')",
    )
    # The worker is of the same user, in another namespace of users: it is not even seen.
    assert found == ["secret", "EACCES", "EACCES", "EACCES", "True", "False", "ENOENT", "ENOENT"]


@pytest.mark.parametrize("unit", [WORKER, UPLINK])
def test_process_has_no_right_left(box, unit):
    status = box.run("cat", f"/proc/{box.show(unit, 'MainPID')}/status").out
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert {said[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert "0" not in said["Uid"].split()


def test_only_members_of_the_group_reach_the_socket(box):
    said = box.run("stat", "-c", "%U %G %a", "/run/edge-ocr/upload.sock").out
    assert said == "edge-ocr edge-ocr-upload 660\n"
    number = box.show(WORKER, "MainPID")
    environment = box.run("cat", f"/proc/{number}/environ").out.split("\0")
    assert {"LISTEN_FDS=1", f"LISTEN_PID={number}", "LISTEN_FDNAMES=upload"} <= set(environment)


SEND = """
import socket, sys
data = open("/opt/edge-ocr/src/samples/form.png", "rb").read()
head = f"POST /v1/read HTTP/1.1\\r\\nHost: box\\r\\nContent-Type: image/png\\r\\nContent-Length: {len(data)}\\r\\n"
with socket.socket(socket.AF_UNIX) as talk:
    talk.connect("/run/edge-ocr/upload.sock")
    talk.sendall(head.encode() + b"Connection: close\\r\\n\\r\\n" + data)
    while part := talk.recv(65536):
        sys.stdout.buffer.write(part)
"""


def test_page_comes_through_the_passed_socket_into_the_worker_without_network(box):
    answer = box.inside(UPLINK, SEND)  # another process of the agent's user, where that may connect
    said = answer.out.splitlines()[:1], answer.err, box.journal(WORKER)
    assert answer.out.startswith("HTTP/1.1 200"), said
    assert '"lines"' in answer.out


def edge_ocr(box: Machine, *words: str) -> Ran:
    """Run a command as root in the machine, as its administrator does."""
    return box.run("env", "LD_LIBRARY_PATH=/opt/edge-ocr/python/lib", "/opt/edge-ocr/current/venv/bin/edge-ocr", *words)


def test_exposure_is_told_of_the_loaded_unit_where_systemd_is_too_old_for_files(box):
    assert "need systemd 250" in text_of("docs/SECURITY.md")
    (command,) = inline("docs/SECURITY.md", "systemd-analyze security")
    said = box.run(*command.split()).out
    assert said.rstrip().splitlines()[-1].lstrip("→ ").startswith(f"Overall exposure level for {WORKER}: 0."), said
    assert "--offline" not in command and "--threshold" not in command


def test_pausing_as_the_document_says_lasts_through_an_upload(box):
    pausing = text_of("docs/OPERATIONS.md").partition("\n## Pausing\n")[2].partition("\n## ")[0]
    stop, start = (line.split() for line in pausing.splitlines() if line.startswith("systemctl "))
    assert box.run(*stop, timeout_s=150).status == 0
    assert "ConnectionRefusedError" in box.inside(UPLINK, SEND).err
    time.sleep(1)
    assert [active(box, unit) for unit in (WORKER, SOCKET, UPLINK)] == [False, False, True]
    assert box.run(*start).status == 0
    assert until(lambda: active(box, WORKER) and active(box, SOCKET), 60) < 60
    assert box.inside(UPLINK, SEND).out.startswith("HTTP/1.1 200")


def test_pausing_leaves_a_socket_closed_that_is_not_enabled(box):
    box.run("systemctl", "disable", "--now", SOCKET)
    try:
        assert box.run("systemctl", "stop", SOCKET, WORKER, timeout_s=150).status == 0
        assert box.run("systemctl", "start", TARGET).status == 0
        assert until(lambda: box.show(WORKER, "ActiveState") in ("active", "failed"), 60) < 60
        assert not active(box, SOCKET)
    finally:
        box.run("systemctl", "enable", SOCKET)
        box.run("systemctl", "stop", WORKER)
        box.run("systemctl", "start", TARGET)
    assert until(lambda: active(box, WORKER) and active(box, SOCKET), 60) < 60


def test_check_as_root_sees_units_keys_and_rights_and_disturbs_nothing(box):
    number = box.show(WORKER, "MainPID"), box.show(UPLINK, "MainPID")
    ran = edge_ocr(box, "check", "--json")
    findings = json.loads(ran.out)["findings"]
    units = [finding["said"] for finding in findings if finding["about"] == "units"]
    assert any(f"{WORKER}: active (running), enabled" in said for said in units), ran.out
    assert any("not told of the settings" in said for said in units)
    written = edge_ocr(box, "units", "--output", "/etc/systemd/system")
    assert written.status == 0, written.err
    box.run("systemctl", "daemon-reload")
    findings = json.loads(edge_ocr(box, "check", "--json").out)["findings"]
    said = {(finding["about"], finding["level"]): finding["said"] for finding in findings}
    assert said["units", "ok"] == "they were told of the settings as they are"
    assert said["inbox", "ok"] == f"{INBOX}; the worker takes files from it"
    assert "nothing listens there" in said["broker", "fail"]  # and not that the password is hidden: root finds it
    assert ("certificates", "warn") not in said
    assert (box.show(WORKER, "MainPID"), box.show(UPLINK, "MainPID")) == number


def test_report_has_the_journal_of_both_units(box):
    ran = edge_ocr(box, "report", "-o", "/root/report.tar.gz")
    assert ran.status == 0, ran.err
    assert "edge-ocr-report/journal.txt" in box.run("tar", "tzf", "/root/report.tar.gz").out
    journal = box.run("tar", "xzOf", "/root/report.tar.gz", "edge-ocr-report/journal.txt").out
    assert "ready: ppocr-v4-1-x86_64-fp32" in journal and "no connection: nothing listens at 127.0.0.1" in journal
    everything = box.run("tar", "xzOf", "/root/report.tar.gz").out
    assert "secret" not in everything.replace("secrets", "")  # the password is that word


def test_uplink_without_a_broker_is_fed_and_stays(box):
    number = box.show(UPLINK, "MainPID")
    said = box.show(UPLINK, "StatusText")
    assert said.startswith("waiting"), said
    fed = int(box.show(UPLINK, "WatchdogTimestampMonotonic"))
    assert until(lambda: int(box.show(UPLINK, "WatchdogTimestampMonotonic")) > fed, 40) < 40
    assert box.show(UPLINK, "MainPID") == number


def test_worker_that_hangs_is_ended_and_started_again(box):
    box.write(f"/run/systemd/system/{WORKER}.d/soon.conf", "[Service]\nWatchdogSec=4\n")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "restart", WORKER)
    number = box.show(WORKER, "MainPID")
    time.sleep(5)
    assert box.show(WORKER, "MainPID") == number  # at rest it is fed
    box.run("kill", "-STOP", number)
    assert until(lambda: box.show(WORKER, "MainPID") not in ("0", number) and active(box, WORKER), 30) < 30
    assert int(box.show(WORKER, "NRestarts")) > 0
    assert "Fatal Python error: Aborted" in box.journal(WORKER)  # by the watchdog, with the place where it hung


@pytest.mark.parametrize("state_dir", ["/srv/ocr", "/home/ocr"])
def test_state_directory_elsewhere_is_seen_by_both_and_its_pictures_by_the_worker_alone(box, state_dir):
    before, sources = box.show(UPLINK, "MainPID"), f"{state_dir}/sources"
    box.write("/etc/edge-ocr/agent.toml", f'state_dir = "{state_dir}"\n{SETTINGS}')
    box.run("install", "-d", "-o", "edge-ocr", "-g", "edge-ocr", state_dir, sources, "/srv/scans", "/mnt/scans")
    assert edge_ocr(box, "units", "--output", "/etc/systemd/system").status == 0
    try:
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "restart", WORKER, UPLINK)
        assert until(lambda: active(box, WORKER) and active(box, UPLINK), 60) < 60, box.journal("edge-ocr*")
        assert box.show(UPLINK, "MainPID") != before
        state, pictures, new = f"open('{state_dir}/new', 'w').name", f"os.listdir('{sources}')", f"{state_dir}/new"
        assert tried(box, WORKER, state, f"os.path.isdir('{sources}')") == [new, "True"]
        assert tried(box, UPLINK, state, pictures, "os.listdir('/mnt/scans')") == [new, "EACCES", "EACCES"]
    finally:
        box.write("/etc/edge-ocr/agent.toml", SETTINGS)
        box.run("rm", *(f"/etc/systemd/system/{unit}.d/10-settings.conf" for unit in (WORKER, UPLINK)))
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "restart", WORKER, UPLINK)
    assert until(lambda: active(box, WORKER) and active(box, UPLINK), 60) < 60


def test_wrong_settings_are_not_tried_again(box):
    box.write("/etc/edge-ocr/agent.toml", SETTINGS.replace("device", "devise"))
    box.run("systemctl", "restart", WORKER)
    assert until(lambda: box.show(WORKER, "ActiveState") == "failed", 20) < 20
    assert box.show(WORKER, "ExecMainStatus") == "78"
    time.sleep(3)
    assert box.show(WORKER, "ActiveState") == "failed"
    assert "devise" in box.journal(WORKER)
    box.write("/etc/edge-ocr/agent.toml", SETTINGS)
    box.run("systemctl", "start", WORKER)
    assert active(box, WORKER)


def test_stopping_the_target_stops_all(box):
    box.run("systemctl", "stop", TARGET)
    assert until(lambda: not any(active(box, unit) for unit in (WORKER, UPLINK, SOCKET)), 30) < 30
    assert box.show(WORKER, "Result") == box.show(UPLINK, "Result") == "success"
