"""The Debian package in a bare box without network: upgraded, broken, cut off, taken back and removed.

Its releases are small, as those of `test_installer.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs import blocks
from tests.pack_kit import Release, changed
from tests.system.installed import (
    INSTALL,
    NEW,
    OLD,
    SETTINGS,
    assert_kept,
    put_own,
    version,
)
from tests.system.root import Root


@pytest.fixture(scope="module")
def debs(old: Release, new_release: Release, shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Return Debian packages: the old release, the new one, and a newer one that does not work."""
    broken = changed(old, tmp_path_factory.mktemp("deb") / "tree", "3.0.0", {"sample.png": "nothing"})
    return tuple(release.deb_file(shelf) for release in (old, new_release, broken))


def status(box: Root) -> str:
    return box.run("dpkg-query", "-W", "-f", "${Version} ${db:Status-Status}", "edge-ocr").out


@pytest.fixture
def deb_box(bare: Root, debs: tuple[Path, ...]) -> Root:
    """A box with the old release as a Debian package."""
    ran = bare.run("dpkg", "-i", bare.put(debs[0]))
    assert (ran.status, version(bare), status(bare)) == (0, OLD, f"{OLD} installed"), ran
    put_own(bare)
    return bare


def test_debian_package_is_upgraded_and_taken_back(deb_box, debs):
    ran = deb_box.run("dpkg", "-i", deb_box.put(debs[1]))
    assert (ran.status, version(deb_box), status(deb_box)) == (0, NEW, f"{NEW} installed"), ran
    assert "not empty" not in ran.err
    assert deb_box.run("python3", INSTALL, "--rollback").status == 0
    assert version(deb_box) == OLD
    assert deb_box.run("dpkg", "-i", f"/root/{debs[1].name}").status == 0  # once more, over the one taken back
    assert version(deb_box) == NEW
    assert_kept(deb_box)


def test_debian_package_that_does_not_work_leaves_the_old_one_running(deb_box, debs):
    failed = deb_box.run("dpkg", "-i", deb_box.put(debs[2]))
    assert failed.status != 0 and "lines are not found" in failed.err, failed
    assert (version(deb_box), status(deb_box)) == (OLD, "3.0.0 half-configured")
    assert_kept(deb_box)
    again = deb_box.run("dpkg", "--configure", "-a")
    assert (again.status != 0, version(deb_box)) == (True, OLD)
    assert deb_box.run("dpkg", "-i", deb_box.put(debs[1])).status == 0
    assert (version(deb_box), status(deb_box)) == (NEW, f"{NEW} installed")


def test_debian_package_that_is_cut_off_in_the_middle_leaves_one_that_works(deb_box, debs, tmp_path):
    cut = tmp_path / "cut.deb"
    cut.write_bytes(debs[1].read_bytes()[:-20_000])
    failed = deb_box.run("dpkg", "-i", deb_box.put(cut))
    assert failed.status != 0
    assert (version(deb_box), status(deb_box)) == (OLD, f"{OLD} installed")
    assert deb_box.run("dpkg", "-i", deb_box.put(debs[1])).status == 0
    assert version(deb_box) == NEW


def test_removed_debian_package_leaves_settings_and_data_and_purged_nothing(bare, debs):
    before = bare.files()
    for package in debs[:2]:
        assert bare.run("dpkg", "-i", bare.put(package)).status == 0
    put_own(bare)
    for unit, key in (("uplink", SETTINGS), ("worker", "/etc/edge-ocr/keys/gone")):
        drop_in = bare.path(f"/etc/systemd/system/edge-ocr-{unit}.service.d/20-keys.conf")
        drop_in.parent.mkdir(parents=True, exist_ok=True)
        drop_in.write_text(f"[Service]\nLoadCredential=key:{key}\n")
    removed = bare.run("dpkg", "-r", "edge-ocr")
    assert (removed.status, "not empty" in removed.err) == (0, False), removed
    keys = "/etc/systemd/system/edge-ocr-uplink.service.d/20-keys.conf"
    assert bare.files() - before == {SETTINGS, "/var/lib/edge-ocr/inbox/page.txt", keys}
    assert_kept(bare)
    bare.run("mount", "-t", "tmpfs", "tmpfs", "/var/lib/edge-ocr/inbox")
    refused = bare.run("dpkg", "-P", "edge-ocr")
    assert (refused.status, "/var/lib/edge-ocr/inbox is a mount" in refused.err) == (1, True), refused
    assert bare.path(SETTINGS).exists()
    bare.run("umount", "/var/lib/edge-ocr/inbox")
    bare.run("sh", "-c", "mv /var/lib/edge-ocr /srv/data && ln -s /srv/data /var/lib/edge-ocr")
    refused = bare.run("dpkg", "-P", "edge-ocr")
    assert (refused.status, "/var/lib/edge-ocr leads to /srv/data" in refused.err) == (1, True), refused
    bare.run("sh", "-c", "rm /var/lib/edge-ocr && mv /srv/data /var/lib/edge-ocr")
    assert bare.run("dpkg", "-P", "edge-ocr").status == 0
    assert bare.files() == before


def test_commands_of_the_document_for_debian_packages_work(bare, debs):
    before = bare.files()
    shutil.copyfile(debs[0], bare.path("/root") / "edge-ocr_VERSION_arm64.deb")
    come, gone = (block.text for block in blocks("docs/INSTALL.md") if block.said == "sh deb")
    ran = bare.run("sh", "-ec", f"cd /root\n{come}")
    assert (ran.status, version(bare), status(bare)) == (0, OLD, f"{OLD} installed"), ran
    ran = bare.run("sh", "-ec", gone)
    left = {name for name in bare.files() - before if not name.startswith(("/var/lib/apt/", "/var/cache/apt/"))}
    assert (ran.status, left) == (0, set()), ran


def test_package_of_either_kind_leaves_one_of_the_other_alone(deb_box, first, debs):
    ran = deb_box.run("sh", deb_box.put(first))
    assert (ran.status, "the Debian package of edge-ocr is installed" in ran.err) == (69, True)
    removed = deb_box.run("python3", INSTALL, "--uninstall")
    assert (removed.status, "apt-get remove edge-ocr" in removed.err) == (69, True)
    assert deb_box.run("dpkg", "-P", "edge-ocr").status == 0
    assert deb_box.run("sh", f"/root/{first.name}").status == 0
    refused = deb_box.run("dpkg", "-i", f"/root/{debs[0].name}")
    assert refused.status != 0 and "installed by a .run already" in refused.err
    assert version(deb_box) == OLD
    purged = deb_box.run("dpkg", "-P", "edge-ocr")  # what is left of it in dpkg's list
    assert (purged.status, version(deb_box), deb_box.path(SETTINGS).exists()) == (0, OLD, True), purged
