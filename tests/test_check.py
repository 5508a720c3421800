"""`edge-ocr check`: what it says of a machine, with the real models and SANE's scanner for tests."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from agent.check import doctor, finding, scanners, whose
from agent.check.finding import Finding
from agent.errors import ExitCode
from tests import sane
from tests.broker import free_port
from tests.command import EDGE_OCR, environment, run
from tests.test_layers import loaded_by

NO_MODELS = Path("/nonexistent")
"""For what is not about models, which take a second to load."""
SCANNER = '[[source]]\ntype = "scanner"\nname = "desk"\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    sane.set_up(tmp_path / "sane", monkeypatch)
    (tmp_path / "state").mkdir()
    return tmp_path


def settings(home: Path, bundle: Path, more: str = "") -> Path:
    path = home / "agent.toml"
    path.write_text(f'device = "box"\nstate_dir = "{home}/state"\n{more}\n[reader]\nbundle = "{bundle}"\n')
    return path


def found(findings: tuple[Finding, ...], about: str) -> Finding:
    (one,) = [finding for finding in findings if finding.about == about]
    return one


def test_machine_that_can_work_is_all_right(home, bundle_path, cache):
    source = f'{SCANNER}[[source]]\ntype = "folder"\nname = "in"\npath = "{home}/inbox"\n'
    path = settings(home, bundle_path, source)
    ran = run((*EDGE_OCR, "check", "-c", path, "--json"), environment(cache))
    assert ran.status == ExitCode.OK, ran.out
    (told,) = ran.rows
    assert told["ok"] is True
    said = {row["about"]: row["said"] for row in told["findings"] if row["level"] == "ok"}
    assert {"settings", "state", "sqlite", "outbox", "models", "engine", "memory", "desk", "in", "broker"} < set(said)
    assert said["trial read"].startswith("100% ")
    assert 'device = "test:0"' in said["scanners"]
    assert "--source=Automatic Document Feeder --mode=Gray" in said["desk"]
    assert not (home / "inbox").exists()


def test_lines_for_people_say_what_to_do_below(home, bundle_path, cache):
    ran = run((*EDGE_OCR, "check", "-c", settings(home, bundle_path)), environment(cache))
    assert ran.status == ExitCode.CONFIG  # as `edge-ocr run` would end with
    assert ran.err == ""  # no terminal: nothing is said of what is still looked at
    assert ran.out.splitlines()[1:3] == [
        "fail  settings       no [[source]]: there is nothing to read",
        "                     -> add one; see systemd/agent.toml",
    ]


def test_wrong_settings_are_told_and_scanners_named_all_the_same(home, cache):
    path = home / "agent.toml"
    path.write_text('device = "box"\nsauce = 1\n')
    ran = run((*EDGE_OCR, "check", "-c", path), environment(cache))
    assert ran.status == ExitCode.CONFIG
    assert f"{path}:2: sauce: no such setting" in ran.out
    assert 'device = "test:0"' in ran.out


def test_missing_models_and_folders_fail(home):
    (home / "file").write_text("")
    source = '[[source]]\nname = "{0}"\npath = "{1}"\n'
    sources = source.format("a", "/nonexistent/a/b") + source.format("b", home / "file")
    findings = doctor.make(settings(home, home / "none", sources))
    assert found(findings, "models").level == "fail"
    assert found(findings, "a").said == "/nonexistent/a/b: is missing"
    assert found(findings, "b").said == f"{home}/file: no folder"
    assert finding.status(findings) == ExitCode.SOME_FAILED


def test_sources_that_leave_too_little_memory_fail(home, bundle_path):
    greedy = f'{SCANNER}feeder = "adf-duplex"\nmode = "color"\nresolution_dpi = 1200\npage_size = "a3"\n'
    memory = found(doctor.make(settings(home, bundle_path, greedy)), "memory")
    assert memory.level == "fail"
    assert "too small for any page" in memory.said
    assert "MB for sources" in memory.advice


@pytest.mark.parametrize(
    ("more", "level", "said"),
    [
        ('device = "test:9"', "warn", "test:9 is not among the scanners found"),
        ('mode = "Halftone"', "fail", 'mode = "Halftone": this scanner has no such; it has: Gray, Color'),
        ('feeder = "adf-duplex"', "fail", "it has: Flatbed, Automatic Document Feeder"),
        ('options = ["--no-such"]', "fail", "cannot be opened"),
    ],
)
def test_scanner_that_does_not_fit_the_settings_is_told(home, more, level, said):
    finding = found(doctor.make(settings(home, NO_MODELS, SCANNER + more)), "desk")
    assert finding.level == level
    assert said in finding.said


def test_several_scanners_need_a_choice_and_none_is_said(home, monkeypatch):
    sane.set_up(home / "sane", monkeypatch, devices=2)
    path = settings(home, NO_MODELS, SCANNER)
    findings = doctor.make(path)
    assert found(findings, "desk").said == "2 scanners, and no device in the settings"
    assert len([finding for finding in findings if finding.about == "scanners"]) == 2
    sane.tear_out(home / "sane")
    findings = doctor.make(path)
    assert found(findings, "desk").said == "no scanner is found"
    assert found(findings, "scanners").level == "warn"


def test_looking_for_scanners_has_a_limit(home, monkeypatch):
    program = home / "bin" / "scanimage"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(scanners, "LIST_S", 0.2)
    path = settings(home, NO_MODELS, SCANNER)
    assert "takes longer than 0.2 s" in found(doctor.make(path), "desk").said


def test_without_scanimage_only_who_wants_a_scanner_is_told(home, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    missing = found(doctor.make(settings(home, NO_MODELS, SCANNER)), "scanners")
    assert (missing.level, missing.said) == ("fail", "scanimage is missing: apt-get install sane-utils")
    assert "scanners" not in [finding.about for finding in doctor.make(settings(home, NO_MODELS))]


def test_scanner_that_only_root_sees_is_told_with_the_way_in(home):
    path = settings(home, NO_MODELS, SCANNER)
    if os.geteuid() != 0:  # nobody can look with another's eyes
        assert whose.owner(home / "state") == ""
        return
    os.chown(home / "state", 65534, 65534)
    (home / "sane").chmod(0o700)  # as a node of a device is that only root may open
    findings = doctor.make(path)
    scanner = found(findings, "scanners")
    assert scanner.level == "fail"
    assert "root sees it, nobody does not" in scanner.said
    assert "usermod -aG scanner nobody" in scanner.advice
    assert found(findings, "desk").said == "no scanner is found"


def test_as_others_see_it_a_scanner_is_all_right(home, monkeypatch):
    if os.geteuid() != 0:
        assert scanners.Asked("").scanners().user == ""
        return
    os.chown(home / "state", 65534, 65534)
    monkeypatch.setenv("SANE_CONFIG_DIR", "/nonexistent")
    seen = scanners.Asked(whose.owner(home / "state")).scanners()
    assert (seen.user, seen.seen, seen.his) == ("nobody", (), ())


def test_checking_loads_no_vision_package_before_it_is_needed():
    assert not {"cv2", "paddlelite", "paho", "ssl"} & loaded_by("import agent.check.doctor, agent.scan")


def test_json_is_for_programs(home):
    told = json.loads(finding.to_json((Finding("warn", "a", "b"), Finding("fail", "c", "d", "e"))))
    assert told["ok"] is False
    assert told["findings"][1] == {"level": "fail", "about": "c", "said": "d", "advice": "e"}


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_upload_source_is_checked_without_leaving_a_trace(home, kind):
    port = free_port()
    listen = f"127.0.0.1:{port}" if kind == "tcp" else f"unix:{home}/desk.sock"
    more = f'[[source]]\ntype = "upload"\nname = "up"\nlisten = "{listen}"\nanyone = true\n'
    path = settings(home, NO_MODELS, more)
    before = sorted(home.iterdir())
    assert found(doctor.make(path), "up").level == "ok"
    assert sorted(home.iterdir()) == before
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", port)):
            finding = found(doctor.make(path), "up")
        assert finding.level == "fail" and "Address already in use" in finding.said


def test_upload_source_whose_token_is_missing_fails(home):
    more = '[[source]]\ntype = "upload"\nname = "up"\nlisten = "127.0.0.1:9"\ntoken = "env:NO_SUCH_TOKEN"\n'
    finding = found(doctor.make(settings(home, NO_MODELS, more)), "up")
    assert (finding.level, finding.said) == ("fail", "env:NO_SUCH_TOKEN: the environment has no NO_SUCH_TOKEN")


def test_camera_scanner_and_broker_that_all_hang_leave_the_other_lines(home, bundle_path, cache, monkeypatch):
    program = home / "bin" / "scanimage"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    os.mkfifo(home / "camera")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        more = f'{SCANNER}[[source]]\ntype = "camera"\nname = "eye"\ndevice = "{home}/camera"\n'
        more += f'[[source]]\nname = "in"\npath = "{home}/inbox"\n'
        more += f'[mqtt]\nhost = "127.0.0.1"\nport = {silent.getsockname()[1]}\ntls = false\n'
        path = f"{program.parent}:{os.environ['PATH']}"
        ran = run(
            (*EDGE_OCR, "check", "-c", settings(home, bundle_path, more), "--json"), environment(cache, PATH=path)
        )
    assert ran.status == ExitCode.SOME_FAILED
    levels = {row["about"]: row["level"] for row in ran.rows[0]["findings"]}
    assert [levels[about] for about in ("desk", "eye", "broker", "scanners")] == ["fail"] * 4
    assert [levels[about] for about in ("in", "trial read", "outbox")] == ["ok"] * 3


def test_nobody_waits_for_scanners_that_nobody_wants(home, monkeypatch):
    program = home / "bin" / "scanimage"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(scanners, "UNWANTED_S", 0.1)
    finding = found(
        doctor.make(settings(home, NO_MODELS, f'[[source]]\nname = "in"\npath = "{home}/in"\n')), "scanners"
    )
    assert (finding.level, finding.said.split(":")[0]) == ("ok", "no source is one; looking for them takes long")
