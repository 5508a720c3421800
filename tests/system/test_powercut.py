"""Power cuts lose nothing that was accepted; and the simulator would see it if they did."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.command import run
from tests.system import powercut
from tests.system.powercut import Disk, Op

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: apt install strace")


@needs_strace
def test_two_thousand_power_cuts_lose_nothing(capsys):
    account = powercut.simulate(images=2000, seed=1)
    with capsys.disabled():
        print(f"\n{json.dumps(vars(account))}")
    assert account.clean(), f"seed {account.seed}: {account}"
    assert (account.images, account.submitted, account.accepted) == (2000, powercut.DOCUMENTS, powercut.DOCUMENTS)
    assert account.stored > 0
    assert account.recovered > 200  # there was work for SQLite's own recovery


@needs_strace
def test_power_cuts_during_the_repair_of_a_damaged_file_lose_nothing():
    account = powercut.simulate(images=400, seed=2, spoil=True)
    assert account.clean(), f"seed {account.seed}: {account}"


@needs_strace
def test_without_full_synchronisation_the_same_power_cuts_lose_accepted_rows():
    assert powercut.simulate(images=200, seed=1, synchronous="NORMAL").lost > 0


@needs_strace
def test_command_ends_with_the_account_and_fails_when_rows_are_lost():
    command = (powercut.sys.executable, "-m", "tests.system.powercut", "--images", "60", "--seed", "3")
    good, bad = run(command), run((*command, "--synchronous", "OFF"))
    assert (good.status, bad.status) == (0, 1)
    assert good.rows[-1]["lost"] == 0 < bad.rows[-1]["lost"]
    words = {"submitted", "accepted", "stored", "lost", "unexpected", "duplicated", "recovered", "seed"}
    assert words <= good.rows[-1].keys()


class Always:
    """Luck that decides the same way each time."""

    def __init__(self, number):
        self.random = lambda: number
        self.randint = lambda least, most: most if number < 0.5 else least


def test_disk_keeps_what_was_synchronised_and_only_that_for_sure():
    disk = Disk()
    for op in (
        Op("name", 1, name="a"),
        Op("dirsync"),
        Op("write", 1, 0, b"1" * 1024),
        Op("sync", 1),
        Op("write", 1, 512, b"2" * 1024),
        Op("size", 1, 1200),
        Op("name", 2, name="b"),
    ):
        disk.do(op)
    assert disk.image("none", Always(0)) == {"a": b"1" * 1024}
    assert disk.image("all", Always(0)) == {"a": b"1" * 512 + b"2" * 688, "b": b""}
    assert disk.image("some", Always(0.9)) == {"a": b"1" * 1024}


def test_torn_write_leaves_whole_sectors():
    class EverySecond:
        count = 0

        def random(self):
            self.count += 1
            return 0.0 if self.count % 2 else 0.9

    content = bytearray(b"1" * 2048)
    powercut.put(content, Op("write", 1, 0, b"2" * 2048), EverySecond())
    assert bytes(content) == (b"2" * 512 + b"1" * 512) * 2


def test_renamed_file_has_its_old_name_until_the_directory_is_synchronised():
    disk = Disk(names={"new": 2, "old": 1}, files={1: bytearray(b"1"), 2: bytearray(b"2")})
    disk.do(Op("rename", name="new", to="old"))
    assert disk.image("none", Always(0)) == {"new": b"2", "old": b"1"}
    assert disk.image("all", Always(0)) == {"old": b"2"}
