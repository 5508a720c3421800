"""A box takes its settings once: all of them or none, none when it has some, and says on the stick what it did."""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from agent import units
from agent.config import AgentConfig, load
from agent.errors import BusyError, ConfigError, InputError, ProvisionError
from agent.install import places
from agent.provision import apply, media, note
from agent.provision import box as boxes
from agent.provision.media import Medium
from agent.provision.request import COMMON
from tests.command import EDGE_OCR, run
from tests.provision_kit import MAC, ME, PLAIN, SERIAL, WHOLE, Certificates, Place, certificates, place

UPLINK, WORKER = "units/edge-ocr-uplink.service.d", "units/edge-ocr-worker.service.d"
LINE = "36 24 {number} / {point} rw - {kind} {source} rw\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("made"))


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return place(tmp_path)


@pytest.fixture
def root(tmp_path: Path, here: Place) -> Path:
    """A system whose only medium is the stick, which is mounted."""
    root = tmp_path / "root"
    (root / "media").mkdir(parents=True)
    (root / "media" / "stick").symlink_to(here.stick)
    mounted(root, "/media/stick")
    return root


def mounted(root: Path, *points: str, source: str = "/dev/sda1", kind: str = "vfat") -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    lines = "".join(LINE.format(number="8:1", point=point, kind=kind, source=source) for point in points)
    (root / "proc/self/mountinfo").write_text(lines)


def search(here: Place, root: Path) -> str:
    return apply.search(here.box, ME, 0.0, root)


def files(here: Place) -> set[str]:
    return set(here.changed())


# ------------------------------------------------------------------------------------------------ applied


def test_box_takes_settings_keys_and_what_systemd_needs(here, root, made):
    here.put_all(WHOLE, made)
    said = search(here, root)
    assert said.startswith("branch-0042: applied /media/stick: edge-ocr.toml, ca.pem, box.pem, box.key; the settings ")
    config = load(here.box.config, AgentConfig, check_files=False)
    assert (config.device, config.source[0].name) == ("branch-0042", "scans")
    kept = here.changed()
    assert kept["etc/keys/key.pem"].decode() == made.key
    assert kept["etc/keys/password"] == b"open sesame"
    loads = kept[f"{UPLINK}/20-keys.conf"].decode().splitlines()[2:]
    names = ("ca.pem", "cert.pem", "key.pem", "password")
    assert loads == [f"LoadCredential={name}:{here.box.keys}/{name}" for name in names]
    assert 'InaccessiblePaths="-/srv/scans"' in kept[f"{UPLINK}/10-settings.conf"].decode()
    assert "LoadCredential" not in kept[f"{WORKER}/20-keys.conf"].decode()


def test_only_root_may_read_keys(here, root, made):
    here.put_all(WHOLE, made)
    before = os.umask(0)
    try:
        search(here, root)
    finally:
        os.umask(before)
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (here.box.keys, *here.box.keys.iterdir())}
    assert rights.pop("keys") == 0o700
    assert set(rights.values()) == {0o600}
    assert stat.S_IMODE(here.box.config.stat().st_mode) == 0o644


def test_settings_before_are_kept_and_no_secret_is_in_what_others_may_read(here, root, made):
    before = here.box.config.read_text()
    here.put_all(WHOLE, made)
    search(here, root)
    (kept,) = here.box.home.glob("agent.toml.before-20??-??-??-????????")
    assert kept.read_text() == before
    for name, content in here.changed().items():
        assert b"sesame" not in content or name == "etc/keys/password"
        assert made.key.encode() not in content or name == "etc/keys/key.pem"


def test_settings_changed_by_hand_are_kept_though_their_name_of_today_is_taken(here):
    here.put(COMMON, PLAIN)
    for text in (here.box.config.read_text(), 'device = "changed by hand"\n'):
        here.box.config.write_text(text)
        here.box.record.unlink(missing_ok=True)
        said = apply.given(here.box, ME, here.stick)
    kept = re.search(r"the settings before are (\S+)", said)[1]
    assert Path(kept).read_text() == 'device = "changed by hand"\n'
    assert len(list(here.box.home.glob("agent.toml.before-*"))) == 2


def test_box_without_settings_takes_them(here, root):
    here.box.config.unlink()
    here.put(COMMON, PLAIN)
    search(here, root)
    assert files(here) == {
        "etc/agent.toml",
        "etc/provision.json",
        *(f"{unit}/{name}" for unit in (UPLINK, WORKER) for name in ("10-settings.conf", "20-keys.conf")),
    }


# ------------------------------------------------------------------------------------------------ once


def test_box_that_has_its_settings_does_not_look_at_sticks(here, root):
    here.put(COMMON, PLAIN)
    search(here, root)
    here.put(COMMON, PLAIN.replace("0042", "0666"))
    before = here.changed()
    assert re.fullmatch(r"branch-0042: has its settings since .+; media are left alone", search(here, root))
    assert here.changed() == before


@pytest.mark.parametrize("text", [PLAIN, "device =", "", "log_level = 'info'"])
def test_box_that_was_set_up_by_hand_does_not_look_at_sticks(here, root, text):
    here.box.config.write_text(text)
    here.put(COMMON, PLAIN)
    before = here.changed()
    assert "media are left alone" in search(here, root)
    assert here.changed() == before


def test_stick_of_the_administrator_is_taken_by_his_command_and_left_as_it_is(here, root, made):
    here.put(COMMON, PLAIN)
    search(here, root)
    here.put_all(WHOLE.replace("0042", "0043"), made)
    before = here.on_it()
    said = apply.given(here.box, ME, here.stick)
    assert said.splitlines()[1] == "secrets are still in edge-ocr.toml, box.key where you had them"
    assert load(here.box.config, AgentConfig, check_files=False).device == "branch-0043"
    assert here.on_it() == before


def test_same_content_is_not_applied_again_so_that_later_changes_stay(here):
    here.put(COMMON, PLAIN)
    apply.given(here.box, ME, here.stick / COMMON)
    here.box.config.write_text(PLAIN.replace("scans", "changed"))
    assert "the same files were applied" in apply.given(here.box, ME, here.stick / COMMON)
    assert "changed" in here.box.config.read_text()
    here.put(COMMON, PLAIN + "port = 1\n")
    assert "applied" in apply.given(here.box, ME, here.stick / COMMON)
    assert "changed" not in here.box.config.read_text()


def test_changed_files_are_taken_later_where_the_first_allowed_it(here, root):
    here.put(COMMON, PLAIN + "[provision]\nagain = true\n")
    search(here, root)
    here.put(COMMON, PLAIN.replace("0042", "0043"))
    assert search(here, root).startswith("branch-0043: applied")
    here.put(COMMON, PLAIN.replace("0042", "0044"))  # the last one did not
    assert search(here, root).startswith("branch-0043: has its settings")


def test_what_was_applied_cannot_be_read_is_no_leave_to_apply(here, root):
    here.put(COMMON, PLAIN)
    here.box.record.write_text("{")
    with pytest.raises(ProvisionError, match="it says what was applied here"):
        search(here, root)


def test_two_at_a_time_are_one_too_many(here, root):
    with boxes.alone(here.box), pytest.raises(BusyError):
        search(here, root)


# ------------------------------------------------------------------------------------------------ refused


def test_wrong_file_changes_nothing_and_is_told_on_the_stick(here, root):
    here.put(COMMON, PLAIN + "port = 'x'\n")
    before = here.changed()
    with pytest.raises(ConfigError, match=r"^/media/stick: edge-ocr.toml:9: mqtt.port = 'x'"):
        search(here, root)
    assert here.changed() == before
    told = (here.stick / note.ERROR).read_bytes().decode()
    assert "what:   edge-ocr.toml:9: mqtt.port = 'x': must be a whole number from 1 to 65535" in told.split("\r\n")[2]
    assert f"serial number {SERIAL}, MAC {MAC}" in told
    here.put(COMMON, PLAIN)
    search(here, root)
    assert note.ERROR not in here.on_it()


def test_error_of_another_box_stays(here, root):
    here.put(COMMON, PLAIN)
    here.put(note.ERROR, "box: serial number 7\n")
    search(here, root)
    assert note.ERROR in here.on_it()


def test_two_media_that_differ_are_refused_and_both_say_so(here, root):
    here.put(COMMON, PLAIN)
    (root / "boot/firmware").mkdir(parents=True)
    (root / "boot/firmware" / COMMON).write_text(PLAIN + "port = 1\n")
    with pytest.raises(ConfigError, match="files for this box on /boot/firmware and on /media/stick: leave one"):
        search(here, root)
    assert (root / "boot/firmware" / note.ERROR).exists()
    assert note.ERROR in here.on_it()


def test_nothing_there_is_no_error(here, root):
    assert search(here, root) == "no edge-ocr.toml on the boot partition or a stick"
    assert here.on_it() == []


def test_what_is_named_has_to_be_there(here, tmp_path):
    for path in (tmp_path / "no", tmp_path / "no" / COMMON):
        with pytest.raises(InputError):
            apply.given(here.box, ME, path)


# ------------------------------------------------------------------------------------------------ on the medium


def test_secrets_of_this_box_do_not_stay_on_the_stick(here, root, made):
    here.put_all(WHOLE, made)
    search(here, root)
    assert here.on_it() == ["box.pem", "ca.pem", "edge-ocr.applied.txt", "edge-ocr.toml.applied-branch-0042"]
    everything = b"".join((here.stick / name).read_bytes() for name in here.on_it())
    assert b"sesame" not in everything
    assert b"PRIVATE KEY" not in everything
    told = (here.stick / note.APPLIED).read_text()
    assert f"edge-ocr: applied to branch-0042\nbox:    {ME}\n" in told
    assert "certificate: 2" in told  # days


def test_file_without_secrets_gets_another_name(here, root):
    here.put(COMMON, PLAIN)
    search(here, root)
    assert (here.stick / "edge-ocr.toml.applied-branch-0042").read_text() == PLAIN


def test_secrets_stay_where_they_are_wished_to_and_that_is_said(here, root, made):
    here.put_all(WHOLE + "remove = false\n", made)
    said = search(here, root)
    assert said.splitlines()[1].startswith("secrets are still on the medium, in edge-ocr.toml, box.key; take them off")
    assert "sesame" in (here.stick / "edge-ocr.toml.applied-branch-0042").read_text()
    assert "box.key" in here.on_it()


def test_stick_for_many_boxes_keeps_what_the_others_need(here, root, made):
    here.put("edge-ocr.toml", PLAIN.replace("device", "#device") + '[provision]\npassword = "for all"\n')
    for name in (SERIAL, "other"):
        here.put(f"edge-ocr.d/{name}.toml", '[provision]\ncertificate = "box.pem"\nkey = "box.key"\n')
    here.put("edge-ocr.d/box.pem", made.certificate)
    here.put("edge-ocr.d/box.key", made.key)
    said = search(here, root)
    assert "secrets are still on the medium, in edge-ocr.toml;" in said
    assert here.on_it() == [
        "edge-ocr.applied.txt",
        "edge-ocr.d/1421-0042-77.toml.applied-edge-1421-0042-77",
        "edge-ocr.d/box.pem",
        "edge-ocr.d/other.toml",
        "edge-ocr.toml",
    ]


def test_each_box_adds_to_the_report(here, root):
    here.put(COMMON, PLAIN.replace("device", "#device"))
    here.put(note.APPLIED, "edge-ocr: applied to edge-1\n")
    search(here, root)
    told = (here.stick / note.APPLIED).read_text()
    assert "applied to edge-1\n" in told
    assert f"applied to edge-{SERIAL}\n" in told
    assert COMMON in here.on_it()  # for the next box


def test_boot_partition_is_this_box_alone(here, tmp_path, made):
    here.put_all(WHOLE.replace("device", "#device"), made)
    root = tmp_path / "other-root"
    root.mkdir()
    (root / "boot").symlink_to(here.stick)
    mounted(root)
    search(here, root)
    assert f"edge-ocr.toml.applied-edge-{SERIAL}" in here.on_it()
    assert not {"box.key", COMMON} & set(here.on_it())


def test_medium_that_cannot_be_written_is_told(here, made, monkeypatch):
    """A tree that may not be written: root may always, so the report's name is taken by a folder."""
    here.put_all(WHOLE, made)
    (here.stick / note.APPLIED).mkdir()
    (here.stick / note.APPLIED / "x").write_text("")
    change = apply.plan(here.box, here.medium(), apply.read(here.medium(), "", ME))
    said = note.tidy(here.medium(), ME, change.record, change.tidy, b"")
    assert said[0].startswith("/media/stick cannot be written (Is a directory)")
    assert "secrets are still on it" in said[1]


# ------------------------------------------------------------------------------------------------ cut short


def test_change_that_was_decided_is_made_without_the_stick(here, root, made):
    here.put_all(WHOLE, made)
    boxes.commit(here.box, apply.plan(here.box, here.medium(), apply.read(here.medium(), "", ME)))
    assert load(here.box.config, AgentConfig, check_files=False).device == "box-1"
    shutil.rmtree(here.stick)
    said = search(here, root)
    assert said.startswith("branch-0042: applied")
    assert said.endswith(f"the medium is not found again; secrets may still be on it, in {COMMON}, box.key: see it")
    assert load(here.box.config, AgentConfig, check_files=False).device == "branch-0042"
    assert not here.box.pending.exists()


def test_stick_is_tidied_up_after_a_cut_when_it_is_still_the_same(here, root, made):
    here.put_all(WHOLE, made)
    boxes.commit(here.box, apply.plan(here.box, here.medium(), apply.read(here.medium(), "", ME)))
    search(here, root)
    assert {"box.key", COMMON} & set(here.on_it()) == set()
    assert note.APPLIED in here.on_it()


def test_stick_that_appears_some_seconds_after_a_cut_is_tidied_up(here, root, made, monkeypatch):
    here.put_all(WHOLE, made)
    boxes.commit(here.box, apply.plan(here.box, here.medium(), apply.read(here.medium(), "", ME)))
    mounted(root)
    slept: list[float] = []

    def appear(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            mounted(root, "/media/stick")

    monkeypatch.setattr(apply.time, "sleep", appear)
    said = apply.search(here.box, ME, 10.0, root)
    assert "not found" not in said and len(slept) == 3
    assert {"box.key", COMMON} & set(here.on_it()) == set()
    assert not here.box.pending.exists()


def test_installer_knows_the_drop_ins_by_their_names():
    assert (places.DROP_IN, places.KEYS_DROP_IN) == (units.NAME, apply.KEYS)


def test_damaged_journal_is_said_and_not_followed(here, root):
    here.box.pending.write_text("{}")
    with pytest.raises(ProvisionError, match=r"provision.pending: .+; delete it and provision anew"):
        search(here, root)


# ------------------------------------------------------------------------------------------------ media


def test_boot_partition_and_mounted_media_are_looked_at(tmp_path):
    for name in ("boot", "boot/firmware", "media/joe/A B", "run/media/joe/x", "mnt"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / COMMON).write_text("")
    mounted(tmp_path, "/media/joe/A\\040B", "/run/media/joe/x", "/mnt", "/srv")
    with media.found(tmp_path) as found:
        kinds = {medium.label: medium.kind for medium in found}
    assert kinds == {
        "/boot": "boot",
        "/boot/firmware": "boot",
        "/media/joe/A B": "stick",
        "/run/media/joe/x": "stick",
        "/mnt": "stick",
    }


@pytest.mark.parametrize(("source", "kind"), [("nas:/share", "nfs4"), ("/dev/fuse", "fuse.sshfs"), ("//nas/s", "cifs")])
def test_what_others_on_the_network_or_on_the_box_may_write_is_no_medium(tmp_path, source, kind):
    (tmp_path / "media/x").mkdir(parents=True)
    (tmp_path / "media/x" / COMMON).write_text("")
    mounted(tmp_path, "/media/x", source=source, kind=kind)
    with media.found(tmp_path) as found:
        assert found == []


def test_folder_for_boxes_alone_makes_a_medium(tmp_path):
    (tmp_path / "edge-ocr.d").mkdir()
    medium = Medium(tmp_path, "stick", "x")
    assert not medium.asks()
    (tmp_path / "edge-ocr.d" / "A.TOML").write_text("")
    assert medium.asks()


def disk(root: Path, path: str, **lines: str) -> None:
    home = root / "sys/devices" / path
    home.mkdir(parents=True)
    for name, line in {"size": "100", "dev": "8:1", **lines}.items():
        (home / name).write_text(line + "\n")
    (root / "sys/class/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/class/block" / home.name).symlink_to(home)
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / home.name).write_text("")


def test_partitions_of_sticks_that_nobody_mounted_are_found(tmp_path):
    disk(tmp_path, "pci/usb1/block/sda", removable="1", dev="8:0")
    disk(tmp_path, "pci/usb1/block/sda/sda1", partition="1", dev="8:1")
    disk(tmp_path, "pci/usb2/block/sdb", removable="0", dev="8:16")  # a case with a disk in it, without partitions
    disk(tmp_path, "mmc/block/mmcblk1", removable="1", dev="179:0")
    disk(tmp_path, "mmc/block/mmcblk1/mmcblk1p1", partition="1", dev="179:1")
    disk(tmp_path, "pci/usb3/block/sdc", removable="1", dev="8:32", size="0")  # a reader without a card
    disk(tmp_path, "pci/ata/block/sdd", removable="0", dev="8:48")
    disk(tmp_path, "pci/ata/block/sdd/sdd1", partition="1", dev="8:49")
    disk(tmp_path, "virtual/block/loop0", removable="1", dev="7:0")
    assert media.removable(tmp_path, {"179:1"}) == ["/dev/sda1", "/dev/sdb"]
    assert media.removable(tmp_path, set()) == ["/dev/mmcblk1p1", "/dev/sda1", "/dev/sdb"]


# ------------------------------------------------------------------------------------------------ the command


def test_command_applies_and_says_so(here, made):
    here.put_all(WHOLE, made)
    command = (*EDGE_OCR, "provision", "--config", here.box.config, "--units", here.box.units)
    first = run((*command, "--from", here.stick))
    assert (first.status, first.err) == (0, "")
    assert first.out.startswith(f"branch-0042: applied {here.stick}: edge-ocr.toml")
    assert "sesame" not in first.out
    assert run(command).out.startswith("branch-0042: has its settings")
    here.put(COMMON, "devise = 1\n")
    wrong = run((*command, "--from", here.stick))
    assert (wrong.status, wrong.out) == (78, "")
    assert wrong.err == f"edge-ocr: {here.stick}/edge-ocr.toml:1: devise: no such setting; did you mean device?\n"
    assert run((*command, "--from", here.stick / "no")).status == 66
    assert run((*EDGE_OCR, "provision", "--dry-run")).status == 78


def test_trial_writes_nothing_and_shows_no_secret(here, made):
    here.put_all(WHOLE, made)
    before = here.changed(), here.on_it()
    tried = run((*EDGE_OCR, "provision", "--dry-run", "--from", here.stick, "--config", here.box.config))
    assert tried.status == 0
    assert 'device = "branch-0042"' in tried.out
    assert "password for edge-ocr-uplink.service (11 bytes)" in tried.out
    assert "sesame" not in tried.out
    assert (here.changed(), here.on_it()) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a right away, which only root has")
def test_without_the_right_to_write_it_is_said_what_to_do(here):
    here.put(COMMON, PLAIN)
    here.box.home.chmod(0o555)
    less = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    done = run((*less, *EDGE_OCR, "provision", "--config", here.box.config, "--from", here.stick))
    assert (done.status, done.out) == (75, "")
    assert done.err == f"edge-ocr: {here.box.home}: may not be written; run this as root\n"
