"""`edge-ocr check` on the machine: disks that are really mounted, a real SQLite file, and /sys and /proc in a folder.

Their files are as the kernel's documentation has them: driver-api/thermal/sysfs-api.rst, admin-guide/pm/cpufreq.rst.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from agent import units
from agent.check import database, disk, doctor, heat, machine, rights, services, sources, times, together, whose
from agent.check.finding import Finding, Subject
from agent.config import AgentConfig, OutboxConfig
from agent.errors import InputError
from agent.health import Lock
from agent.outbox import Outbox
from agent.source_config import CameraConfig, FolderConfig, UploadConfig

NOW_S = times.RELEASED_S + 30 * 86_400
GIB = 1 << 30


@pytest.fixture
def box(tmp_path: Path) -> Subject:
    """A machine whose state is in the test's folder."""
    (tmp_path / "state").mkdir(mode=0o700)
    config = AgentConfig(device="box", state_dir=str(tmp_path / "state"))
    return Subject(config, tmp_path / "agent.toml", NOW_S, tmp_path / "root")


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def only(findings, level: str) -> Finding:
    (one,) = [finding for finding in findings if finding.level == level]
    return one


def put(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def settings(box: Subject, **changes: object) -> Subject:
    return msgspec.structs.replace(box, config=msgspec.structs.replace(box.config, **changes))


# ------------------------------------------------------------------------------------------------ disks


@contextmanager
def mounted(place: Path, *how: str) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    ran = subprocess.run(("mount", *how, place), capture_output=True)
    if ran.returncode:
        pytest.skip(f"nothing can be mounted here: {ran.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(("umount", place), check=True)


def test_full_disk_fails_and_one_that_fills_up_before_the_caps_warns(box):
    small = settings(box, outbox=OutboxConfig(max_mb=8, min_free_mb=4, ballast_mb=0))
    with mounted(box.state_dir, "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs") as place:
        findings = list(disk.look(small))
        assert levels(findings) == ["warn", "ok"]  # in memory, and large enough
        assert "lost when the power is" in findings[0].advice
        filling = settings(small, outbox=OutboxConfig(max_mb=64, min_free_mb=4, ballast_mb=0))
        assert "fills up before the caps" in list(disk.look(filling))[1].advice
        (place / "outbox.db").write_bytes(bytes(7 << 20))  # what the cap allows is there already: nothing is missing
        assert list(disk.look(small))[1].level == "ok"
        (place / "other").write_bytes(bytes(8 << 20))
        full = only(disk.look(small), "fail")
        assert "outbox.min_free_mb = 4" in full.advice


def test_disk_without_room_for_more_files_is_told(box):
    with mounted(box.state_dir, "-t", "tmpfs", "-o", "nr_inodes=20", "tmpfs"):
        assert any("more files (inodes)" in finding.said for finding in disk.look(box) if finding.level == "warn")


def test_disk_that_is_read_only_is_told_with_the_way_out(box, tmp_path):
    source = FolderConfig(name="in", path=str(tmp_path / "scans"))
    with mounted(tmp_path / "scans", "-t", "tmpfs", "tmpfs") as place:
        subprocess.run(("mount", "-o", "remount,ro", place), check=True)
        finding = only(disk.look(settings(box, source=(source,))), "fail")
        assert finding.said == f"{place}: mounted read-only"
        assert f"mount -o remount,rw {place}" in finding.advice
        probed = sources.folder_finding("in", place, "")
        assert (probed.level, probed.said) == ("fail", f"{place}: may not be written")


def test_place_with_a_blank_in_its_name_is_found_among_the_mounts(tmp_path):
    with mounted(tmp_path / "a disk", "-t", "tmpfs", "tmpfs") as place:
        (place / "in").mkdir()
        assert disk.mount_of(place / "in") == disk.Mount(place, "tmpfs", "tmpfs")


@pytest.mark.parametrize(
    ("life", "spare", "many"), [("0x01 0x02", "0x01", 0), ("0x0b 0x01", "0x01", 1), ("", "0x03", 1)]
)
def test_flash_that_is_worn_out_is_told(tmp_path, life, spare, many):
    put(
        tmp_path, {"sys/bus/mmc/devices/mmc0:0001/life_time": life, "sys/bus/mmc/devices/mmc0:0001/pre_eol_info": spare}
    )
    assert len(list(disk.worn(tmp_path))) == many


@pytest.mark.parametrize(
    ("kind", "level"), [("nfs4", "fail"), ("9p", "fail"), ("overlay", "warn"), ("fuse.sshfs", "warn")]
)
def test_file_system_whose_locks_or_life_are_in_doubt_is_told(box, monkeypatch, kind, level):
    monkeypatch.setattr(disk, "mount_of", lambda path: disk.Mount(Path("/"), kind, "server:/share"))
    finding = next(disk.look(box))
    assert (finding.level, kind in finding.said) == (level, True) and finding.advice


# ------------------------------------------------------------------------------------------------ the outbox


@pytest.fixture
def outbox(box: Subject) -> Path:
    made = Outbox(box.state_dir, OutboxConfig(), role="worker")
    made.begin("key", "desk", "scan.png")
    made.accept("key", b'{"lines":[]}')
    made.close()
    return box.state_dir / "outbox.db"


def test_whole_outbox_is_all_right_and_left_as_it_is(box, outbox):
    before = outbox.read_bytes(), sorted(os.listdir(box.state_dir))
    assert levels(database.look(box)) == ["ok", "ok"]
    assert (outbox.read_bytes(), sorted(os.listdir(box.state_dir))) == before


def test_damaged_outbox_is_told(box, outbox):
    raw = bytearray(outbox.read_bytes())
    raw[5000:9000] = os.urandom(4000)
    outbox.write_bytes(raw)
    assert "damaged" in only(database.look(box), "fail").said
    outbox.write_bytes(b"no database")
    assert "header" in only(database.look(box), "fail").said


def test_write_ahead_log_of_another_program_is_told(box, outbox):
    connection = sqlite3.connect(outbox)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    assert "write-ahead log" in only(database.look(box), "warn").said


def test_transaction_that_was_cut_off_is_no_fault(box, outbox):
    outbox.with_name("outbox.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    assert "undone at the next start" in list(database.look(box))[-1].said


def test_reading_the_file_ends_in_time(box, outbox, monkeypatch):
    connection = sqlite3.connect(outbox)
    connection.execute("CREATE TABLE much(x)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n LIMIT 200000) INSERT INTO much SELECT i FROM n"
    )
    connection.commit()
    connection.close()
    monkeypatch.setattr(database, "READ_S", 0.0)
    finding = list(database.look(box))[-1]
    assert finding.level == "ok" and "the rest not read" in finding.said


def test_outbox_that_another_holds_alone_is_a_warning(box, outbox):
    connection = sqlite3.connect(outbox, timeout=0)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        assert "cannot be read now" in only(database.look(box), "warn").said
    finally:
        connection.close()


def test_sqlite_that_is_too_old_or_built_without_locks_is_told(box, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert "3.37.0" in only(database.look(box), "fail").advice
    monkeypatch.undo()
    monkeypatch.setattr(database, "_UNFIT", frozenset(("THREADSAFE=1",)))
    assert "was built with THREADSAFE=1" in only(database.look(box), "fail").said


# ------------------------------------------------------------------------------------------------ clock, heat, memory


def test_clock_that_cannot_be_right_is_told(box, monkeypatch):
    monkeypatch.setattr(times, "synchronised", lambda: True)
    assert levels(times.look(box)) == ["ok"]
    past = msgspec.structs.replace(box, now_s=0.0)
    assert "1970-01-01" in only(times.look(past), "fail").said
    (box.state_dir / "worker.json").write_text("{}")
    os.utime(box.state_dir / "worker.json", (NOW_S + 3 * 86_400, NOW_S + 3 * 86_400))
    assert "3 days before the agent's last sign of life" in only(times.look(box), "warn").said


def test_clock_that_nothing_keeps_is_told_and_whether_it_outlives_a_power_cut(box, monkeypatch):
    monkeypatch.setattr(times, "synchronised", lambda: False)
    assert "(RTC)" in only(times.look(box), "warn").said
    (box.root / "sys/class/rtc/rtc0").mkdir(parents=True)
    assert "(RTC)" not in only(times.look(box), "warn").said
    assert isinstance(times.synchronised(), bool)


def zone(number: int, name: str, now: object, **trips: int) -> dict[str, object]:
    at = f"sys/class/thermal/thermal_zone{number}"
    files = {f"{at}/type": name, f"{at}/temp": now}
    for place, (kind, temperature) in enumerate(trips.items()):
        files |= {f"{at}/trip_point_{place}_type": kind, f"{at}/trip_point_{place}_temp": temperature}
    return files


@pytest.mark.parametrize(
    ("now", "level"),
    [(45_000, "ok"), (76_000, "warn"), (91_000, "warn"), (111_000, "fail"), ("", "ok"), (-274_000, "ok")],
)
def test_temperature_is_held_against_the_trip_points(box, now, level):
    put(box.root, zone(0, "soc-thermal", now, passive=80_000, critical=115_000))
    findings = list(heat.look(box))
    assert findings[0].level == level
    assert bool(findings[0].advice) == (level != "ok")


def test_hottest_zone_is_named_and_machines_without_one_are_all_right(box):
    assert [finding.said for finding in heat.look(box)] == ["nothing to read here"]
    put(box.root, zone(0, "cpu-thermal", 41_500) | zone(1, "gpu-thermal", 47_800))
    assert [finding.said for finding in heat.look(box)] == ["gpu-thermal: 48 °C, the hottest of 2"]


@pytest.mark.parametrize(("may", "level"), [(2_400_000, "ok"), (1_200_000, "warn")])
def test_processor_that_is_held_back_is_told(box, may, level):
    at = "sys/devices/system/cpu/cpufreq/policy0"
    put(
        box.root,
        {f"{at}/scaling_max_freq": may, f"{at}/cpuinfo_max_freq": 2_400_000, f"{at}/scaling_cur_freq": 600_000},
    )
    finding = only(heat.look(box), level)
    assert f"policy0 0.60 GHz, may {may / 1e6:.2f} of 2.40" in finding.said


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ("0", ""),
        ("50005", "the voltage is too low, it is throttled"),
        ("50000", "since the start: the voltage"),
        ("80008", "near its limit"),
    ],
)
def test_what_a_raspberry_pi_holds_against_its_power_supply_is_told(box, bits, said):
    put(box.root, {"sys/devices/platform/soc/soc:firmware/get_throttled": bits})
    warned = [finding for finding in heat.look(box) if finding.level == "warn"]
    assert len(warned) == bool(said) and all(said in finding.said for finding in warned)
    if bits.startswith("5"):
        assert "power supply" in warned[0].advice


@pytest.mark.parametrize(("total", "free", "level"), [(4096, 3000, "ok"), (4096, 100, "warn"), (300, 290, "warn")])
def test_memory_of_the_machine_is_held_against_the_limit(box, total, free, level):
    put(box.root, {"proc/meminfo": f"MemTotal: {total << 10} kB\nMemAvailable: {free << 10} kB\nSwapTotal: 0 kB"})
    assert levels(machine.look(box)) == [level]


# ------------------------------------------------------------------------------------------------ units and rights


@pytest.fixture
def systemd(box: Subject, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemd that answers what is in a file; tests/system/test_machine.py asks a real one."""
    (box.root / "run/systemd/system").mkdir(parents=True)
    program = box.root / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {box.root}/shown\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    units.write(box.config, box.root / "etc/systemd/system")
    return box.root / "shown"


def unit(name: str, **properties: str) -> str:
    shown = {
        "LoadState": "loaded",
        "UnitFileState": "enabled",
        "ActiveState": "active",
        "SubState": "running",
        **properties,
    }
    return "\n".join(f"{key}={value}" for key, value in {"Id": name, "NRestarts": "0", **shown}.items()) + "\n"


@pytest.mark.parametrize(
    ("properties", "level", "said"),
    [
        ({}, "ok", "active (running), enabled"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "fail", "ended by the watchdog"),
        ({"ActiveState": "failed", "Result": "oom-kill"}, "fail", "want of memory"),
        ({"ActiveState": "activating", "NRestarts": "7", "Result": "exit-code"}, "fail", "ended with a fault"),
        ({"NRestarts": "7"}, "warn", "started again 7 times"),
        ({"ActiveState": "inactive"}, "warn", "inactive"),
        ({"UnitFileState": "disabled"}, "warn", "does not start with the machine"),
        ({"NeedDaemonReload": "yes"}, "warn", "changed on disk"),
    ],
)
def test_state_of_a_unit_is_told(box, systemd, properties, level, said):
    systemd.write_text(unit("edge-ocr-worker.service", **properties))
    told = [finding for finding in services.look(box) if said in finding.said]
    assert levels(told) == [level]
    assert bool(told[0].advice) == (level != "ok")


def test_socket_is_wanted_where_a_source_listens_on_it(box, systemd):
    systemd.write_text(unit("edge-ocr-worker.service") + "\n" + unit("edge-ocr.socket", ActiveState="inactive"))
    assert "warn" not in levels(services.look(box))
    upload = settings(box, source=(UploadConfig(name="desk", listen="systemd"),))
    finding = only([f for f in services.look(upload) if "socket" in f.said], "warn")
    assert "enable edge-ocr.socket" in finding.advice


def test_units_that_were_not_told_of_changed_settings_are_named(box, systemd):
    systemd.write_text(unit("edge-ocr-worker.service") + "\n" + unit("edge-ocr-uplink.service", ActiveState="inactive"))
    assert "warn" not in levels(services.look(box))  # without [mqtt] no uplink is wanted
    changed = settings(box, memory=msgspec.structs.replace(box.config.memory, limit_mb=512))
    finding = only(services.look(changed), "warn")
    assert finding.said.startswith("edge-ocr-worker.service: not told of the settings")
    assert "edge-ocr units --output" in finding.advice


def test_machine_without_systemd_or_without_the_units_is_all_right(box, systemd):
    systemd.write_text(unit("edge-ocr-worker.service", LoadState="not-found"))
    assert [finding.said for finding in services.look(box)] == ["not installed: the agent is started by something else"]
    (box.root / "run/systemd/system").rmdir()
    assert [finding.said for finding in services.look(box)] == ["no systemd here"]


def test_systemd_that_hangs_is_told(box, systemd, monkeypatch):
    (box.root / "bin/systemctl").write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(services, "ASK_S", 0.1)
    assert "no answer within 0.1 s" in only(services.look(box), "warn").said


def test_state_that_everybody_may_look_into_is_told(box):
    assert "warn" not in levels(f for f in rights.look(box) if "belongs to root" not in f.said)
    box.state_dir.chmod(0o755)
    assert any(finding.advice == f"chmod o= {box.state_dir}" for finding in rights.look(box) if finding.level == "warn")


def test_folder_that_only_root_may_write_fails_for_the_agents_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root looks with others' eyes")
    finding = sources.folder_finding("in", tmp_path, "let them in", "nobody")
    assert (finding.level, finding.said) == ("fail", f"{tmp_path}: may not be written by nobody")
    assert whose.may("nobody", Path("/tmp"), "rwx")
    assert whose.may(pwd.getpwuid(0).pw_name, tmp_path, "rw")


def test_camera_that_the_agents_user_may_not_open_is_told_with_the_group(box, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root makes a device")
    os.mknod(tmp_path / "video0", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(box.state_dir, 65534, 65534)
    camera = CameraConfig(name="eye", device=str(tmp_path / "video0"))
    finding = next(finding for finding in sources.look(settings(box, source=(camera,))) if finding.about == "eye")
    assert (finding.level, finding.said) == ("fail", f"{tmp_path}/video0: nobody may not open it")
    assert "usermod -aG root nobody" in finding.advice


def test_token_that_systemd_gives_is_no_fault_outside_its_unit(box, monkeypatch):
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    upload = UploadConfig(name="desk", listen="127.0.0.1:9", token="credential:token")
    finding = next(finding for finding in sources.look(settings(box, source=(upload,))) if finding.about == "desk")
    assert (finding.level, "LoadCredential=" in finding.advice) == ("warn", True)


def test_nothing_is_left_in_a_folder_that_was_tried(tmp_path):
    assert sources.folder_finding("in", tmp_path, "").level == "ok"
    assert os.listdir(tmp_path) == []


def test_link_that_somebody_has_laid_in_a_folder_is_not_followed(tmp_path, monkeypatch):
    folder, precious = tmp_path / "in", tmp_path / "precious"
    precious.write_text("kept")
    folder.mkdir()
    for planted in (f".edge-ocr-check-{os.getpid()}", f".edge-ocr-check-{'00' * 8}"):
        (folder / planted).symlink_to(precious)
    assert sources.folder_finding("in", folder, "").level == "ok"
    monkeypatch.setattr(os, "urandom", bytes)  # somebody who guesses the name
    assert sources.folder_finding("in", folder, "").level == "fail"
    assert precious.read_text() == "kept" and len(os.listdir(folder)) == 2


def test_worker_that_runs_is_not_disturbed_and_asked_about_its_sources(box, tmp_path):
    from agent.health import WorkerState, write_state

    source = FolderConfig(name="in", path=str(tmp_path / "gone"))
    lock = Lock(box.state_dir, "worker")
    try:
        state = WorkerState(pid=1, at_ms=0, started_ms=0, troubles=("in: the folder is gone",))
        write_state(box.state_dir, "worker", state)
        told = {finding.about: finding for finding in sources.look(settings(box, source=(source,)))}
        assert (told["in"].level, told["in"].said) == ("fail", "the worker: the folder is gone")
    finally:
        lock.close()


# ------------------------------------------------------------------------------------------------ all together


def test_what_hangs_is_a_line_beside_those_that_answer():
    def hanging() -> Iterator[Finding]:
        yield Finding("ok", "camera", "is there")
        time.sleep(30)

    def broken() -> Iterator[Finding]:
        raise ValueError("oh")

    def refused() -> Iterator[Finding]:
        raise InputError("no such thing")

    tasks = [
        together.Task("camera", hanging),
        together.Task("disk", lambda: iter((Finding("ok", "disk", "fine"),))),
        together.Task("clock", broken),
        together.Task("models", refused),
    ]
    asked: list[list[str]] = []
    found = together.look(tasks, 1.0, lambda left: asked.append(list(left)))
    assert [(finding.level, finding.about) for finding in found] == [
        *(("ok", "camera"), ("fail", "camera"), ("ok", "disk"), ("fail", "clock"), ("fail", "models")),
    ]
    assert found[1].said == "gives no answer within 1 s"
    assert "ValueError: oh" in found[3].said and "no such thing" in found[4].said
    assert asked[-1] == ["camera"]


def test_every_check_has_its_own_subject_and_findings_that_are_not_ok_say_what_to_do(tmp_path, box):
    assert len({check.about for check in doctor.CHECKS}) == len(doctor.CHECKS)
    (tmp_path / "agent.toml").write_text(
        'device = "box"\nstate_dir = "/proc/none"\n[reader]\nbundle = "/none"\n[mqtt]\nhost = "::1"\n'
    )
    findings = doctor.make(tmp_path / "agent.toml", root=box.root)
    assert not [finding for finding in findings if finding.level != "ok" and not finding.advice]
