"""The installer in a bare box without network: upgraded, broken, cut off at each step, taken back and removed.

Its releases are small, with a stub for the agent; `test_packages.py` has the real one.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.command import Ran
from tests.pack_kit import BROKEN_CODE, SAMPLE, Release, changed
from tests.system.installed import (
    INSTALL,
    NEW,
    OLD,
    OWN_SETTINGS,
    SETTINGS,
    assert_kept,
    put_own,
    releases,
    version,
)
from tests.system.root import Root

UNIT = "/usr/local/lib/systemd/system/edge-ocr-worker.service"
KEYS = "/etc/systemd/system/edge-ocr-uplink.service.d/20-keys.conf"
MAIN = "venv/lib/python3.11/site-packages/agent/__main__.py"
STEPS = "rename,renameat,renameat2,symlink,symlinkat,unlink,unlinkat,fsync,mkdir"


@pytest.fixture
def box(bare: Root, first: Path) -> Root:
    """A box with the old release, settings of its own and a page that waits."""
    ran = bare.run("sh", bare.put(first))
    assert ran.status == 0, ran
    put_own(bare)
    return bare


def assert_as_before(box: Root, ran: Ran, status: int) -> None:
    assert ran.status == status, ran
    assert (version(box), releases(box)) == (OLD, {OLD})
    assert not os.path.lexists(box.path("/opt/edge-ocr/switching"))
    assert_kept(box)


def test_box_gets_user_directories_settings_and_units(box):
    assert box.run("stat", "-c", "%U %G %a", "/var/lib/edge-ocr/inbox").out == "edge-ocr edge-ocr 3770\n"
    assert box.run("stat", "-c", "%U %a", "/etc/edge-ocr/keys").out == "root 700\n"
    assert "edge-ocr-upload" in box.path("/etc/group").read_text()
    assert box.path(UNIT).read_text() == box.path(f"/opt/edge-ocr/releases/{OLD}/systemd/{Path(UNIT).name}").read_text()
    wanted = {link for link in box.files() if ".wants/edge-ocr" in link}
    assert {Path(link).parts[-2:] for link in wanted} == {
        ("multi-user.target.wants", "edge-ocr.target"),
        ("edge-ocr.target.wants", "edge-ocr-provision.service"),
        ("edge-ocr.target.wants", "edge-ocr-worker.service"),
        ("edge-ocr.target.wants", "edge-ocr-uplink.service"),
        ("edge-ocr.target.wants", "edge-ocr-provision.service"),
    }


def test_new_box_without_a_broker_starts_no_uplink(bare, old, tmp_path):
    local = changed(old, tmp_path / "tree", NEW, {"agent.toml": OWN_SETTINGS})
    assert bare.run("sh", bare.put(local.run_file(tmp_path))).status == 0
    assert not any("wants/edge-ocr-uplink" in name for name in bare.files())


def test_upgrade_keeps_settings_and_data_and_can_be_taken_back(box, new):
    ran = box.run("sh", box.put(new))
    assert ran.status == 0, ran
    assert (version(box), releases(box)) == (NEW, {OLD, NEW})
    back = box.run("python3", INSTALL, "--rollback")
    assert (back.status, version(box), releases(box)) == (0, OLD, {OLD, NEW}), back
    assert box.run("python3", INSTALL, "--rollback").status == 0
    assert version(box) == NEW
    assert_kept(box)


def test_one_release_before_is_kept(box, new_release, new, tmp_path):
    newer = changed(new_release, tmp_path / "tree", "3.0.0", {})
    for package in (new, newer.run_file(tmp_path)):
        assert box.run("sh", box.put(package)).status == 0
    assert releases(box) == {NEW, "3.0.0"}


def test_units_that_somebody_has_disabled_stay_so(box, new):
    box.run("rm", "/etc/systemd/system/edge-ocr.target.wants/edge-ocr-uplink.service")
    assert box.run("sh", box.put(new)).status == 0
    assert not any("wants/edge-ocr-uplink" in name for name in box.files())


def test_same_package_again_mends_what_is_there(box, first):
    box.path(f"/opt/edge-ocr/releases/{OLD}/{MAIN}").write_text("nonsense")
    box.path(UNIT).unlink()
    ran = box.run("sh", box.put(first))
    assert (ran.status, version(box)) == (0, OLD), ran
    assert box.path(UNIT).exists()
    assert len(releases(box)) == 1  # nobody wants the damaged one back
    assert box.run("python3", INSTALL, "--rollback").status == 69
    assert_kept(box)


@pytest.mark.parametrize(
    ("path", "content", "status", "said"),
    [
        (MAIN, BROKEN_CODE, 78, "this release is broken"),
        ("sample.png", "\n".join(SAMPLE[1:]), 69, "1 of 4 lines are not found"),
        ("sample.png", None, 69, "cannot read its sample page"),
    ],
)
def test_release_that_does_not_work_is_never_switched_to(box, old, tmp_path, path, content, status, said):
    broken = changed(old, tmp_path / "broken", NEW, {path: content})
    ran = box.run("sh", box.put(broken.run_file(tmp_path)))
    assert said in ran.err
    assert_as_before(box, ran, status)


def test_settings_that_the_new_release_does_not_take_stop_the_upgrade(box, new):
    box.path(SETTINGS).write_text("unknown = 1\n")
    ran = box.run("sh", box.put(new))
    assert (ran.status, version(box), releases(box)) == (78, OLD, {OLD})
    assert ran.err == "edge-ocr: agent.toml: unknown key; edge-ocr 2.0.0 is not started with such settings\n"


def test_failure_after_the_switch_puts_the_old_release_and_its_units_back(box, old, tmp_path):
    before = box.path(UNIT).read_text()
    other = changed(old, tmp_path / "other", NEW, {"systemd/edge-ocr-worker.service": before + "# other\n"})
    box.run("rm", "-r", "/etc/systemd/system/edge-ocr-worker.service.d")
    box.path("/etc/systemd/system/edge-ocr-worker.service.d").write_text("in the way")
    ran = box.run("sh", box.put(other.run_file(tmp_path)))
    assert f"going back to {OLD}\non the way back: " in ran.out  # what cannot be put back does not stop the rest
    assert_as_before(box, ran, 69)
    assert box.path(UNIT).read_text() == before


def test_failure_on_a_new_box_leaves_nothing_that_starts(bare, first):
    bare.path("/etc/systemd/system/edge-ocr-worker.service.d").write_text("in the way")
    ran = bare.run("sh", bare.put(first))
    assert ran.status == 69, ran
    left = {name for name in bare.files() if "edge-ocr" in name}
    assert left == {"/etc/systemd/system/edge-ocr-worker.service.d"}


def at_drop_ins(release: Release, code: str) -> str:
    """Return the stub of a release that does something else where it is to write what units are told."""
    before = "from __future__ import annotations\n"
    other = f"{before}import sys, os\nif '--output' in sys.argv:\n    {code}\n"
    return (release.folder / MAIN).read_text().replace(before, other, 1)


def test_way_back_is_not_cut_off_by_signals(box, old, tmp_path):
    stub = at_drop_ins(old, "[os.kill(os.getppid(), number) for number in (1, 2, 15)]")
    box.path(f"/opt/edge-ocr/releases/{OLD}/{MAIN}").write_text(stub)
    broken = changed(old, tmp_path / "tree", NEW, {MAIN: at_drop_ins(old, "sys.exit('it fails')")})
    ran = box.run("sh", box.put(broken.run_file(tmp_path)))
    assert "it fails" in ran.err
    assert_as_before(box, ran, 69)


def test_settings_that_came_meanwhile_outlast_a_first_installation_that_fails(bare, old, tmp_path):
    """As from a stick, between the start of the services and the failure; here they come with the drop-ins."""
    stub = at_drop_ins(old, f"open({SETTINGS!r}, 'w').write({OWN_SETTINGS!r}); sys.exit(9)")
    ran = bare.run("sh", bare.put(changed(old, tmp_path / "tree", NEW, {MAIN: stub}).run_file(tmp_path)))
    assert (ran.status, bare.path(SETTINGS).read_text()) == (69, OWN_SETTINGS), ran


@pytest.mark.parametrize("made", ["touch /var/lib/edge-ocr/inbox", "ln -s /gone /var/lib/edge-ocr/inbox"])
def test_what_takes_the_place_of_the_inbox_is_left_alone_and_said(box, new, made):
    box.run("rm", "-r", "/var/lib/edge-ocr/inbox")
    box.run(*made.split())
    ran = box.run("sh", box.put(new))
    assert (ran.status, version(box)) == (0, NEW), ran
    assert "/var/lib/edge-ocr/inbox: is no directory, and is left alone" in ran.out


def test_installation_goes_on_when_nobody_listens(box, new):
    assert box.run("sh", "-c", f"sh {box.put(new)} >/dev/full").status == 0
    assert version(box) == NEW


def test_second_installer_does_not_wait(box, new):
    with subprocess.Popen(box.command("flock", "/opt/edge-ocr", "sleep", "60"), stdin=subprocess.DEVNULL) as holder:
        time.sleep(0.5)
        ran = box.run("sh", box.put(new))
        holder.kill()
    assert_as_before(box, ran, 75)


def test_disk_without_room_is_told_before_anything_is_written(bare, first):
    bare.run("mkdir", "-p", "/opt/edge-ocr")
    bare.run("mount", "-t", "tmpfs", "-o", "size=10M", "tmpfs", "/opt/edge-ocr")
    ran = bare.run("sh", bare.put(first))
    assert (ran.status, "MB are needed: make room" in ran.err) == (69, True)
    assert not releases(bare)


def test_disk_that_fills_up_meanwhile_leaves_the_old_release(box, old, tmp_path):
    """What the check cannot foresee: somebody else writes too. A program that wants too much stands for that."""
    package = changed(old, tmp_path / "tree", NEW, {"zzz.bin": os.urandom(3_000_000)}).run_file(tmp_path)
    ran = box.run("sh", "-c", f"ulimit -f 2000; exec sh {box.put(package)}")
    assert "File too large" in ran.err
    assert_as_before(box, ran, 75)


def test_python_that_lacks_parts_of_its_library_is_told_with_what_to_install(bare, first):
    """Debian's python3-minimal has no lzma, for instance."""
    bare.run("sh", "-c", "rm /usr/lib/python3.11/lzma.py*")
    ran = bare.run("sh", bare.put(first))
    assert ran.status == 69
    assert ran.err == "edge-ocr: /usr/bin/python3.11 lacks parts of its library: apt-get install python3.11\n"


def test_uninstalling_leaves_settings_and_data_alone_and_purging_nothing(bare, first):
    before = bare.files()
    for option in ("--uninstall", "--purge"):
        assert bare.run("sh", bare.put(first)).status == 0
        bare.path(SETTINGS).write_text(OWN_SETTINGS)
        bare.path("/var/lib/edge-ocr/inbox/page.txt").write_text("waits")
        assert bare.run("python3", INSTALL, option).status == 0
        if option == "--uninstall":
            assert bare.files() - before == {SETTINGS, "/var/lib/edge-ocr/inbox/page.txt"}
            assert_kept(bare)
    assert bare.files() == before
    assert not bare.path("/opt/edge-ocr").exists()
    assert "edge-ocr" not in bare.path("/etc/passwd").read_text() + bare.path("/etc/group").read_text()


@pytest.mark.parametrize("gone", ["before", "after", ""])
def test_drop_ins_for_keys_stay_as_long_as_the_keys(box, first, gone):
    key, drop_in = box.path("/etc/edge-ocr/keys/password"), box.path(KEYS)
    key.write_text("secret")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nLoadCredential=password:/etc/edge-ocr/keys/password\n")
    if gone == "before":
        key.unlink()
    assert box.run("python3", INSTALL, "--uninstall").status == 0
    assert drop_in.exists() == (gone != "before")
    if gone == "after":
        key.unlink()
    assert box.run("sh", f"/root/{first.name}").status == 0
    assert drop_in.exists() == (not gone)
    assert box.run("python3", INSTALL, "--purge").status == 0
    assert not drop_in.parent.exists()


@pytest.mark.parametrize("place", ["/var/lib/edge-ocr/inbox", "/etc/edge-ocr"])
def test_purging_does_not_reach_into_mounted_disks(box, place):
    box.run("mount", "-t", "tmpfs", "tmpfs", place)
    box.run("touch", f"{place}/page.png")
    ran = box.run("python3", INSTALL, "--purge")
    assert (ran.status, ran.err) == (69, f"edge-ocr: {place} is a mount: unmount it first; nothing is removed\n")
    assert (version(box), box.path(f"{place}/page.png").exists()) == (OLD, True)


def test_purging_does_not_follow_links_to_elsewhere(box):
    box.run("sh", "-c", "mv /var/lib/edge-ocr /srv/data && ln -s /srv/data /var/lib/edge-ocr")
    ran = box.run("python3", INSTALL, "--purge")
    assert (ran.status, version(box)) == (69, OLD)
    assert "/var/lib/edge-ocr leads to /srv/data" in ran.err


def test_disk_for_the_program_alone_is_emptied_and_stays(bare, first):
    bare.run("mkdir", "-p", "/opt/edge-ocr")
    bare.run("mount", "-t", "tmpfs", "tmpfs", "/opt/edge-ocr")
    assert bare.run("sh", bare.put(first)).status == 0
    assert bare.run("python3", INSTALL, "--uninstall").status == 0
    assert not os.listdir(bare.path("/opt/edge-ocr"))


def test_what_cannot_be_removed_is_named(box):
    box.run("mkdir", "/opt/edge-ocr/disk")
    box.run("mount", "-t", "tmpfs", "tmpfs", "/opt/edge-ocr/disk")
    ran = box.run("python3", INSTALL, "--uninstall")
    assert (ran.status, "/opt/edge-ocr/disk (Device or resource busy)" in ran.err) == (69, True), ran


def test_rolling_back_after_a_cut_switch_ends_it_and_keeps_the_release_before(box, new_release, new, tmp_path):
    assert box.run("sh", box.put(new)).status == 0
    unit = {"systemd/edge-ocr-worker.service": box.path(UNIT).read_text() + "# other\n"}
    newest = changed(new_release, tmp_path / "tree", "3.0.0", unit).run_file(tmp_path)
    assert box.run("sh", box.put(newest), "--extract", "/root/out").status == 0
    switched = traced(box, newest, "-P", "/opt/edge-ocr/switching", "-e", "inject=unlink:signal=KILL")
    assert (switched.returncode, version(box)) == (-9, "3.0.0"), switched.stderr
    back = box.run("python3", INSTALL, "--rollback")
    assert (back.status, version(box), "# other" in box.path(UNIT).read_text()) == (0, NEW, False), back
    assert box.path("/etc/systemd/system/edge-ocr-worker.service.d/10-settings.conf").read_text() == f"# {NEW}\n"
    assert (box.run("python3", INSTALL, "--rollback").status, version(box)) == (0, OLD)


def test_release_that_drops_a_unit_is_taken_back_with_it(box, old, tmp_path):
    less = changed(old, tmp_path / "tree", NEW, {"systemd/edge-ocr-uplink.service": None})
    assert box.run("sh", box.put(less.run_file(tmp_path))).status == 0
    assert not box.path(UNIT.replace("worker", "uplink")).exists()
    assert box.run("python3", INSTALL, "--rollback").status == 0
    assert "edge-ocr-uplink.service" in os.listdir(box.path("/etc/systemd/system/edge-ocr.target.wants"))
    assert box.path(UNIT.replace("worker", "uplink")).exists()
    assert box.run("python3", INSTALL, "--rollback").status == 0
    assert box.run("python3", INSTALL, "--uninstall").status == 0
    assert not [name for name in box.files() if ".wants/edge-ocr" in name]


def test_unit_that_a_release_brings_starts_with_the_system(box, old, tmp_path):
    wants = box.path("/etc/systemd/system/edge-ocr.target.wants")
    (wants / "edge-ocr-worker.service").unlink()  # what the administrator has disabled stays so
    unit = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=edge-ocr.target\n"
    more = changed(old, tmp_path / "more", NEW, {"systemd/edge-ocr-more.service": unit})
    assert box.run("sh", box.put(more.run_file(tmp_path))).status == 0
    assert {"edge-ocr-more.service", "edge-ocr-worker.service"} & set(os.listdir(wants)) == {"edge-ocr-more.service"}


def traced(box: Root, package: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run the installer of a package, in /root/out, under strace, which sees its own process only."""
    offset = re.search(rb"offset=(\d+)", package.read_bytes())[1].decode()
    installer = ("/usr/bin/python3.11", "-B", "/root/out/install.py")
    command = box.command(*installer, "--package", f"/root/{package.name}", "--offset", offset)
    return subprocess.run(
        ("strace", "-qq", "-e", f"trace={STEPS}", *options, *(word for word in command if word != "-p")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


def steps(box: Root, package: Path) -> list[tuple[str, int, str]]:
    """Run the installer and return each step: the call, its number among its kind, the line about it."""
    log = [line for line in traced(box, package).stderr.decode().splitlines() if "(" in line]
    names = [line.partition("(")[0] for line in log]
    return [(name, names[: at + 1].count(name), line) for at, (name, line) in enumerate(zip(names, log, strict=True))]


def test_installation_killed_at_any_step_leaves_a_box_that_works_and_is_mended(bare, first, new):
    """At every sixth step that changes names, and at all around the switch; at every one with EVERY=1."""
    old_file, new_file = bare.put(first), bare.put(new)
    assert bare.run("sh", old_file).status == 0
    assert bare.run("sh", new_file, "--extract", "/root/out").status == 0
    all_steps = steps(bare, new)
    switch = next(at for at, (*_, line) in enumerate(all_steps) if '/opt/edge-ocr/current"' in line)
    for at, (name, number, line) in enumerate(all_steps):
        if not (os.environ.get("EVERY") or abs(at - switch) < 3 or at % 6 == 0):
            continue
        assert bare.run("sh", old_file).status == 0
        bare.run("rm", "-rf", f"/opt/edge-ocr/releases/{NEW}", "/opt/edge-ocr/previous")
        ran = traced(bare, new, "-e", f"inject={name}:signal=KILL:when={number}")
        assert ran.returncode == -9, (line, ran)
        assert version(bare) == (OLD if at <= switch else NEW), line
        again = bare.run("sh", new_file)
        assert (again.status, version(bare), releases(bare)) == (0, NEW, {OLD, NEW}), (line, again)
        assert not os.path.lexists(bare.path("/opt/edge-ocr/switching"))
