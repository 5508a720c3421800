import errno
import json
import os
import resource

import msgspec
import pytest

from agent.errors import ConfigError, ConversionError
from converters import stages as stages_module
from converters.meter import USUAL_S, Meter, usual_times
from converters.recipe import Thinning, load_recipe
from converters.stages import Stages, locked, room
from tests.command import ROOT


class Bench:
    """One stage that writes a file, in a work directory."""

    def __init__(self, work):
        self.work, self.out = work, work / "out"
        self.done, self.lines = [], []

    def write(self):
        self.out.write_text("whole")
        self.done.append("write")
        return [1, 2]

    def run(self, inputs=1, action=None, **options):
        return Stages(self.work, self.lines.append, **options).run(
            "write it", inputs, [self.out], action or self.write, str
        )

    @property
    def stamp(self):
        return self.work / "stamps" / "write-it.json"


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_stage_is_done_once(bench):
    assert bench.run() == bench.run() == [1, 2]
    assert bench.done == ["write"]
    assert bench.lines[1].startswith("write it       up to date   [1, 2]")


@pytest.mark.parametrize("how", ["inputs", "force", "code", "output", "no output", "stamp", "empty stamp"])
def test_a_stage_is_done_again_when_something_it_depends_on_has_changed(bench, monkeypatch, how):
    bench.run()
    if how == "code":
        monkeypatch.setattr(stages_module, "_setup", lambda: ["other"])
    elif how == "output":
        bench.out.write_text("who")
    elif how == "no output":
        bench.out.unlink()
    elif how == "stamp":
        bench.stamp.write_text(bench.stamp.read_text()[:40])
    elif how == "empty stamp":
        bench.stamp.write_text("")
    bench.run(inputs=2 if how == "inputs" else 1, force=how == "force")
    assert bench.done == ["write", "write"]


def test_what_a_failed_stage_has_written_is_not_taken_for_whole(bench):
    def fail():
        bench.out.write_text("ha")
        raise ConversionError("broken")

    bench.run()
    with pytest.raises(ConversionError, match="broken"):
        bench.run(inputs=2, action=fail)
    assert not bench.stamp.exists()
    bench.run(inputs=2)
    assert (bench.done, bench.out.read_text()) == (["write", "write"], "whole")


def test_a_stage_that_has_not_written_its_output_is_an_error(bench):
    with pytest.raises(ConversionError, match=r"write it: has not written .*out"):
        bench.run(action=lambda: 1)
    assert not bench.stamp.exists()


def test_a_stamp_is_there_whole_or_not_at_all(bench, monkeypatch):
    bench.run()
    known = bench.stamp.read_text()

    def fail(source, target):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(stages_module.os, "replace", fail)
    with pytest.raises(OSError, match="broken"):
        bench.run(force=True)
    assert not bench.stamp.exists()
    monkeypatch.undo()
    bench.run()
    assert json.loads(bench.stamp.read_text())["outputs"] == json.loads(known)["outputs"]


def test_one_conversion_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(ConversionError, match="another conversion works there"), locked(tmp_path):
        pass


# ------------------------------------------------------------------------------------------------ no room


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_with_what_to_do(bench, number):
    def fail():
        raise OSError(number, os.strerror(number))

    with pytest.raises(ConfigError, match=rf"write it in {bench.work}: .*: make room and start again; .* are kept"):
        bench.run(action=fail)


def test_other_failures_of_the_system_are_not_called_a_full_disk():
    with pytest.raises(PermissionError), room("here"):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_no_room_for_a_stamp_leaves_none(bench):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60, hard))  # the output fits, its stamp does not
    try:
        with pytest.raises(ConfigError, match="File too large"):
            bench.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not bench.stamp.exists()
    bench.run()
    assert bench.done == ["write", "write"]


# ------------------------------------------------------------------------------------------------ time left


class Rests(Meter):
    """Remembers what it is told of the stages to come."""

    def __init__(self):
        self.rests = []
        super().__init__()

    def begin(self, stage, rest_s):
        self.rests.append((stage, rest_s))


def run_all(work, *names, clock, took_s, usual):
    meter = Rests()
    stages = Stages(work, lambda line: None, meter=meter, usual=usual)

    def action():
        clock.now += took_s

    for name in names:
        stages.run(name, 1, [], action, str)
    return [(name, rest_s) for name, rest_s in meter.rests if name]


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(stages_module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_the_rest_is_what_long_stages_usually_take_at_the_pace_of_this_machine(tmp_path, clock):
    usual = {"a": 10.0, "b": 20.0, "c": 30.0}
    rests = run_all(tmp_path, "a", "short", "b", "c", clock=clock, took_s=20, usual=usual)
    assert rests == [("a", 50.0), ("short", 100.0), ("b", 60.0), ("c", 0.0)]


def test_the_rest_is_what_the_stages_took_the_last_time(tmp_path, clock):
    run_all(tmp_path, "a", "b", clock=clock, took_s=7, usual={})
    (tmp_path / "stamps" / "a.json").unlink()
    rests = run_all(tmp_path, "a", clock=clock, took_s=1, usual={"a": 10.0, "b": 500.0})
    assert rests == [("a", 7.0)]


def test_stages_that_are_up_to_date_are_not_waited_for(tmp_path, clock):
    run_all(tmp_path, "a", clock=clock, took_s=7, usual={})
    rests = run_all(tmp_path, "a", "b", clock=clock, took_s=1, usual={"a": 10.0, "b": 20.0})
    assert rests == [("b", 0.0)]


def test_the_table_of_usual_times_fits_the_recipe():
    settings = load_recipe(ROOT / "models" / "ppocr-v4-int8.toml").compress
    thin = Thinning(models=("det", "rec"), zeros=0.5)
    assert usual_times(msgspec.structs.replace(settings, method="qat", thin=thin)) == USUAL_S
    assert USUAL_S.keys() - usual_times(settings).keys() == {"train det", "train rec", "thin det", "thin rec"}
    plain = msgspec.structs.replace(settings, prune=None, rounded=())
    assert usual_times(settings).keys() - usual_times(plain).keys() == {"prune det", "round rec"}
