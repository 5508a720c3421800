"""The systemd units: closed as far as they can be, in step with the program, opened by what the settings need."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from agent import units
from agent.config import AgentConfig, MemoryConfig, load
from agent.documents import pdf
from agent.errors import ConfigError, InputError
from agent.provision import media
from agent.provision.box import UNITS, Box
from agent.source_config import CameraConfig, ScannerConfig, UploadConfig
from agent.supervise import HOPELESS
from agent.trial import TIMEOUT_S
from tests.command import EDGE_OCR, ROOT, run

HOME = ROOT / "systemd"
SERVICES = ("edge-ocr-worker.service", "edge-ocr-uplink.service")
PROVISION = "edge-ocr-provision.service"
# Exposure, times ten, above which systemd-analyze fails; it rounds up by itself.
MOST = {"edge-ocr-worker.service": 5, "edge-ocr-uplink.service": 10, PROVISION: 19}
MOST_WITH_CAMERA = 7
SETTINGS = """
device = "box-1"
{state_dir}
[[source]]
type = "folder"
name = "desk"
path = "{path}"
[mqtt]
host = "{host}"
"""


def values(unit: str, section: str = "Service") -> dict[str, str]:
    """Return what a unit says; of what it says more than once the last."""
    read = configparser.RawConfigParser(strict=False, comment_prefixes=("#",), delimiters=("=",))
    read.optionxform = str
    read.read_string((HOME / unit).read_text())
    return dict(read[section])


def settings(home: Path, path: str = "/srv/scans", host: str = "broker.example", state_dir: str = "") -> AgentConfig:
    file = home / "agent.toml"
    line = f'state_dir = "{state_dir}"' if state_dir else ""
    file.write_text(SETTINGS.format(path=path.replace("\\", "\\\\").replace('"', '\\"'), host=host, state_dir=line))
    return load(file, AgentConfig)


@pytest.fixture(scope="module", autouse=True)
def analyzer() -> None:
    version = int(run(("systemd-analyze", "--version")).out.split()[1])
    if version < 250:  # Ubuntu 22.04 has 249, which runs the units and cannot look at them without
        pytest.skip(f"systemd-analyze {version} judges no files; 250 does")


def analyze(unit: Path, most: int) -> None:
    said = subprocess.run(
        ("systemd-analyze", "security", "--offline=true", f"--threshold={most}", "--no-pager", unit),
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr


@pytest.mark.parametrize("unit", MOST)
def test_exposure_is_low(unit):
    analyze(HOME / unit, MOST[unit])


@pytest.mark.parametrize("more", [units.CAMERA, units.SCANNER])
def test_exposure_is_low_with_a_device(tmp_path, more):
    text = (HOME / SERVICES[0]).read_text()
    unit = tmp_path / SERVICES[0]
    unit.write_text(text.replace("[Install]", "\n".join([*more, "[Install]"])))
    analyze(unit, MOST_WITH_CAMERA)


def test_exposure_check_can_fail(tmp_path):
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(AssertionError):
        analyze(unit, 90)


def test_units_are_understood_by_systemd(tmp_path):
    """In a root with nothing but the units and what they start: unknown words, missing units, wrong values."""
    place = tmp_path / "etc/systemd/system"
    place.mkdir(parents=True)
    for unit in [*HOME.glob("*.service"), *HOME.glob("*.socket"), *HOME.glob("*.target")]:
        shutil.copy(unit, place)
    for name in SERVICES:
        (place / f"{name}.d").mkdir()
    units.write(settings(tmp_path, 'a "b" %n\\'.join(("/srv/", "/x")), "10.0.0.1"), place)
    program = tmp_path / "opt/edge-ocr/current/venv/bin/edge-ocr"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    names = sorted(path.name for path in place.iterdir() if path.is_file())
    assert len(names) == 5
    said = subprocess.run(
        ("systemd-analyze", "verify", "--man=no", f"--root={tmp_path}", *names), capture_output=True, text=True
    )
    ours = [line for line in said.stderr.splitlines() if "edge-ocr" in line]
    assert (said.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", SERVICES)
def test_units_keep_to_the_program(unit):
    said = values(unit)
    assert {int(code) for code in said["RestartPreventExitStatus"].split()} == HOPELESS
    assert (said["Type"], said["NotifyAccess"], said["Restart"]) == ("notify", "main", "always")
    assert "network-online.target" not in str(values(unit, "Unit"))
    command = unit.removesuffix(".service").removeprefix("edge-ocr-")
    assert said["ExecStart"] == f"/opt/edge-ocr/current/venv/bin/edge-ocr {command} -c /etc/edge-ocr/agent.toml"


def test_settings_come_before_what_needs_them():
    order = values(PROVISION, "Unit")["Before"].split()
    assert set(order) == {*SERVICES, "edge-ocr.socket", "edge-ocr.target"}
    said = values(PROVISION)
    assert (said["Type"], said["RemainAfterExit"]) == ("oneshot", "yes")
    command, _, wait = said["ExecStart"].rpartition(" ")
    assert command == "/opt/edge-ocr/current/venv/bin/edge-ocr provision --wait"
    assert int(wait) + media.MAX_DEVICES * 2 < int(said["TimeoutStartSec"])


def test_box_that_has_its_settings_does_not_even_start_the_program():
    text = (HOME / PROVISION).read_text()
    here = Box(Path("/etc/edge-ocr/agent.toml"))
    assert [line for line in text.splitlines() if line.startswith("Condition")] == [
        f"ConditionPathExists=|!{here.record}",
        f"ConditionPathExists=|{here.pending}",
        f"ConditionPathExists=|{here.again}",
    ]


def test_media_are_written_to_where_they_are_looked_for():
    lines = re.findall(r"^ReadWritePaths=(.+)$", (HOME / PROVISION).read_text(), re.MULTILINE)
    opened = {place.removeprefix("-") for line in lines for place in line.split()}
    assert opened == {"/etc/edge-ocr", str(UNITS), "/boot", *(place.rstrip("/") for place in media.MOUNTED)}
    assert all(place.startswith("boot") for place in media.BOOT)


def test_first_start_may_try_the_bundle_as_long_as_the_program_does():
    assert int(values("edge-ocr-worker.service")["TimeoutStartSec"]) > TIMEOUT_S


def test_watchdog_waits_longer_than_the_longest_step():
    assert int(values("edge-ocr-worker.service")["WatchdogSec"]) >= 3 * pdf.PAGE_S + 60


def test_worker_has_the_memory_that_its_settings_ask_for():
    high, most = units.memory_mb(MemoryConfig().limit_mb)
    said = values("edge-ocr-worker.service")
    assert (said["MemoryHigh"], said["MemoryMax"]) == (f"{high}M", f"{most}M")
    assert high > MemoryConfig().limit_mb  # or the worker would take the group's limit for its own


def test_drop_in_follows_the_memory_limit(tmp_path):
    config = AgentConfig(device="a", memory=MemoryConfig(limit_mb=1000))
    assert "MemoryHigh=1064M\nMemoryMax=1383M" in units.drop_ins(config)["edge-ocr-worker.service"]


@pytest.mark.parametrize(
    ("path", "worker", "uplink"),
    [
        ("/var/lib/edge-ocr/inbox", "", 'InaccessiblePaths="-/var/lib/edge-ocr/inbox"'),
        ("/srv/a b", 'ReadWritePaths="-/srv/a b"', 'InaccessiblePaths="-/srv/a b"'),
        ('/srv/100% "x"\\', 'ReadWritePaths="-/srv/100%% \\"x\\"\\\\"', 'InaccessiblePaths="-/srv/100%% \\"x\\"\\\\"'),
        ("/home/joe/scans", 'ProtectHome=tmpfs\nBindPaths="-/home/joe/scans"', 'InaccessiblePaths="-/home/joe/scans"'),
        ("/var/lib/edge-ocr", "", ""),  # the uplink must see the outbox
        (
            "/srv/../var/lib/edge-ocrs",
            'ReadWritePaths="-/var/lib/edge-ocrs"',
            'InaccessiblePaths="-/var/lib/edge-ocrs"',
        ),
    ],
)
def test_folders_are_opened_to_the_worker_and_closed_to_the_uplink(tmp_path, path, worker, uplink):
    made = units.drop_ins(settings(tmp_path, path))
    assert made["edge-ocr-worker.service"].partition("# source desk\n")[2].strip() == worker
    assert made["edge-ocr-uplink.service"].partition("[Service]\n")[2].strip() == uplink


def test_state_directory_elsewhere_is_opened_to_both(tmp_path):
    made = units.drop_ins(settings(tmp_path, state_dir="/data/ocr", path="/data/scans"))
    assert all('ReadWritePaths="-/data/ocr"\n' in text for text in made.values())


def test_uplink_hides_what_the_drop_in_takes_it_to_hide():
    lines = re.findall(r"^InaccessiblePaths=(.+)$", (HOME / SERVICES[1]).read_text(), re.MULTILINE)
    assert tuple(place for line in lines for place in line.split()) == tuple(f"-{place}" for place in units.NO_PICTURES)
    assert not re.search("^InaccessiblePaths=", (HOME / SERVICES[0]).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("state_dir", "opened"), [("/srv/ocr", "/srv"), ("/mnt/ssd/x/../ocr", "/mnt"), ("/media", "/media"), ("/srvs", "")]
)
def test_state_directory_below_a_hidden_folder_stays_in_sight_of_the_uplink(tmp_path, state_dir, opened):
    made = units.drop_ins(settings(tmp_path, state_dir=state_dir, path="/data/scans"))
    place = str(Path(state_dir.replace("/x/..", "")))
    anew = " ".join(f"-{hidden}" for hidden in units.NO_PICTURES if hidden != opened)
    lines = [f'ReadWritePaths="-{place}"', f'InaccessiblePaths="-{place}/sources"', 'InaccessiblePaths="-/data/scans"']
    if opened:
        lines = ["InaccessiblePaths=", f"InaccessiblePaths={anew}", *lines]
    assert made["edge-ocr-uplink.service"].partition("[Service]\n")[2].splitlines() == lines
    assert "InaccessiblePaths" not in made["edge-ocr-worker.service"]


def test_pictures_of_cameras_are_closed_to_the_uplink_wherever_the_state_is(tmp_path):
    for state_dir in ("/home/joe/ocr", "/var/lib/edge-ocr/more"):
        text = units.drop_ins(settings(tmp_path, state_dir=state_dir))["edge-ocr-uplink.service"]
        assert f'InaccessiblePaths="-{state_dir}/sources"\n' in text
    assert "sources" not in units.drop_ins(settings(tmp_path))["edge-ocr-uplink.service"]


@pytest.mark.parametrize(("host", "allowed"), [("10.1.2.3", "10.1.2.3"), ("2001:db8::1", "2001:db8::1")])
def test_broker_by_its_address_is_all_that_is_reached(tmp_path, host, allowed):
    text = units.drop_ins(settings(tmp_path, host=host))["edge-ocr-uplink.service"]
    assert text.endswith(f"IPAddressAllow=\nIPAddressAllow={allowed}\n")


def test_broker_by_name_leaves_what_the_unit_allows(tmp_path):
    assert "IPAddressAllow" not in units.drop_ins(settings(tmp_path))["edge-ocr-uplink.service"]


@pytest.mark.parametrize("path", ["scans", "/srv/a\\nb"])
def test_path_that_no_unit_can_name_is_refused(tmp_path, path):
    with pytest.raises(ConfigError, match="under systemd it must be a path from / on"):
        units.drop_ins(settings(tmp_path, path.replace("\\n", "\u2028")))


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (CameraConfig(name="a", device="/dev/v4l/by-id/x"), units.CAMERA),
        (CameraConfig(name="a", device="rtsp://camera/1"), units.NETWORK),
        (ScannerConfig(name="a"), units.SCANNER),
        (ScannerConfig(name="a", device="airscan:e0:x"), units.NETWORK),
        (UploadConfig(name="a", listen="systemd"), ()),
        (UploadConfig(name="a", listen="unix:/run/ocr/a"), ('ReadWritePaths="-/run/ocr"',)),
    ],
)
def test_each_kind_of_source_opens_what_it_needs(source, lines):
    made = units.drop_ins(AgentConfig(device="a", source=(source,)))["edge-ocr-worker.service"]
    assert tuple(made.partition("# source a\n")[2].splitlines()) == lines


def test_address_that_the_worker_cannot_listen_at_is_refused():
    config = AgentConfig(device="a", source=(UploadConfig(name="a", listen="127.0.0.1:8010"),))
    with pytest.raises(ConfigError, match=r'listen = "systemd", and have edge-ocr.socket listen at 127.0.0.1:8010'):
        units.drop_ins(config)


def test_command_prints_or_writes_the_drop_ins(tmp_path):
    settings(tmp_path)
    command = (*EDGE_OCR, "units", "-c", tmp_path / "agent.toml")
    printed = run(command)
    assert re.findall(r"^# (\S+)\.d/10-settings.conf$", printed.out, re.MULTILINE) == list(SERVICES)
    written = run((*command, "--output", tmp_path / "units"))
    assert (printed.status, written.status) == (0, 0)
    for line, unit in zip(written.out.splitlines(), SERVICES, strict=True):
        assert line == f"{tmp_path}/units/{unit}.d/10-settings.conf"
        assert Path(line).read_text() in printed.out
    assert sorted(path.name for path in (tmp_path / "units" / f"{SERVICES[0]}.d").iterdir()) == ["10-settings.conf"]


def test_folder_that_cannot_be_written_is_named(tmp_path):
    config = settings(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory"):
        units.write(config, tmp_path / "file")


def test_uplink_sees_no_folder_that_comes_with_the_state_directory():
    hidden = values("edge-ocr-uplink.service")  # the last of several lines
    text = (HOME / "edge-ocr-uplink.service").read_text()
    assert hidden["PrivateDevices"] == "yes"
    assert all(f"-/var/lib/edge-ocr/{name}" in text for name in ("inbox", "sources"))
