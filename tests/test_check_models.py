"""`edge-ocr check` on models: hashes, the engine, and a page with known text, with real and with spoilt bundles."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.bundle import MANIFEST, Manifest, file_entry, write_manifest
from agent.check import golden, models, reading
from agent.check.finding import Finding, Subject
from agent.config import AgentConfig, ReaderConfig, load
from agent.lite.place import RECORD
from converters.nbcontent import Parameter
from converters.nbfile import read_nb, write_nb


def subject(home: Path, bundle: Path, more: str = "") -> Subject:
    path = home / "agent.toml"
    path.write_text(f'device = "box"\nstate_dir = "{home}/state"\n{more}\n[reader]\nbundle = "{bundle}"\n')
    return Subject(load(path, AgentConfig), path, time.time())


def told(of: Subject) -> dict[str, Finding]:
    return {finding.about: finding for finding in models.look(of)}


def copied(bundle: Path, to: Path) -> Path:
    shutil.copytree(bundle, to)
    return to


def signed(bundle: Path, name: str) -> None:
    """Bring the manifest up to date with a changed file, as a bad converter would."""
    manifest = msgspec.toml.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    write_manifest(bundle, msgspec.structs.replace(manifest, files={**manifest.files, name: file_entry(bundle / name)}))


def scrambled(path: Path, to: Path) -> None:
    """Write a `.nb` whose weights are those of the original in another order: it loads, and runs."""
    content, rng = read_nb(path), np.random.default_rng(1)

    def mixed(parameter: Parameter) -> Parameter:
        data = rng.permutation(parameter.array().ravel()).tobytes()
        return msgspec.structs.replace(parameter, values=msgspec.structs.replace(parameter.values, data=data))

    write_nb(msgspec.structs.replace(content, parameters=tuple(map(mixed, content.parameters))), to)


def test_engine_is_told_with_version_and_memory(tmp_path, bundle_path, portable_path):
    lite, onnx = told(subject(tmp_path, bundle_path)), told(subject(tmp_path, portable_path))
    assert lite["engine"].said.startswith("paddlelite 2.13rc0, by its package, ")
    assert onnx["engine"].said.startswith("onnxruntime 1.")
    for finding in (lite["engine"], onnx["engine"]):
        assert 50 < int(finding.said.split(", ")[-1].split()[0]) < 400
    assert lite["trial read"].level == onnx["trial read"].level == "ok"


def test_native_binding_is_named_where_it_runs(tmp_path, bundle_path, lite_build, monkeypatch):
    monkeypatch.setenv("EDGE_OCR_LITE", str(lite_build))
    assert "by the native binding" in told(subject(tmp_path, bundle_path))["engine"].said


def test_native_binding_that_is_there_and_not_used_is_warned_of(tmp_path, bundle_path, lite_build, monkeypatch):
    build = copied(lite_build, tmp_path / "build")
    (build / RECORD).write_bytes(b"{")
    monkeypatch.setenv("EDGE_OCR_LITE", str(build))
    engine = told(subject(tmp_path, bundle_path))["engine"]
    assert engine.level == "warn"
    assert "by its package" in engine.said and "build.json: damaged" in engine.said
    assert "edge-ocr lite build" in engine.advice


def test_damaged_file_is_found_by_its_hash(tmp_path, bundle_path):
    bundle = copied(bundle_path, tmp_path / "bundle")
    raw = bytearray((bundle / "rec.nb").read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / "rec.nb").write_bytes(raw)
    findings = told(subject(tmp_path, bundle))
    assert findings.keys() == {"models"}
    assert "sha256 differs" in findings["models"].said


@pytest.mark.parametrize("model", ["rec", "det"])
def test_models_that_load_and_read_nonsense_are_found(tmp_path, bundle_path, model):
    bundle = copied(bundle_path, tmp_path / "bundle")
    scrambled(bundle_path / f"{model}.nb", bundle / f"{model}.nb")
    signed(bundle, f"{model}.nb")
    findings = told(subject(tmp_path, bundle))
    assert findings["models"].level == findings["engine"].level == "ok"
    assert findings["trial read"].level == "fail", findings["trial read"]
    assert "load and do not read" in findings["trial read"].advice


def test_dictionary_of_another_model_is_found(tmp_path, bundle_path):
    bundle = copied(bundle_path, tmp_path / "bundle")
    lines = (bundle / "characters.txt").read_text(encoding="utf-8").splitlines()
    (bundle / "characters.txt").write_text("\n".join([*lines[1:], lines[0]]) + "\n", encoding="utf-8")
    signed(bundle, "characters.txt")
    assert told(subject(tmp_path, bundle))["trial read"].level == "fail"


def test_page_asks_of_a_dictionary_only_what_it_can_spell():
    assert golden.expected("0123456789") == ("0123456789",)
    assert golden.expected("abc") == ()
    assert golden.expected({character for line in golden.LINES for character in line}) == golden.LINES


def test_a_score_that_pages_must_have_does_not_fail_the_trial(tmp_path, bundle_path):
    strict = subject(tmp_path, bundle_path)
    path = strict.path
    path.write_text(path.read_text() + "min_score = 1.0\n")
    assert load(path, AgentConfig).reader.min_score != ReaderConfig().min_score
    assert told(strict)["trial read"].level == "ok"


def test_bundle_is_found_from_where_the_user_is(tmp_path, bundle_path, monkeypatch):
    monkeypatch.chdir(bundle_path.parent)
    assert told(subject(tmp_path, Path(bundle_path.name)))["models"].level == "ok"


def test_models_that_hang_are_ended_with_their_children(tmp_path, bundle_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nsleep 300 & echo $! > {tmp_path}/child\nwait\n")
    program.chmod(0o755)
    monkeypatch.setattr(models.sys, "executable", str(program))
    monkeypatch.setattr(models, "LIMIT_S", 0.5)
    finding = told(subject(tmp_path, bundle_path))["models"]
    assert (finding.level, finding.said.split(",")[0]) == ("fail", "no answer within 0.5 s")
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("the child lives on")


def test_models_are_not_loaded_beside_a_worker_where_memory_is_short(tmp_path, bundle_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 512000 kB\nMemAvailable: 100000 kB\n")
    monkeypatch.setattr(Subject, "runs", lambda self, role: True)
    poor = msgspec.structs.replace(subject(tmp_path, bundle_path), root=tmp_path)
    (finding,) = models.look(poor)
    assert finding.level == "warn"
    assert "stop edge-ocr.socket edge-ocr-worker" in finding.advice  # or the next upload starts it again


def test_onnx_runtime_on_arm_is_told_to_cost_more(portable, monkeypatch):
    monkeypatch.setattr(reading.platform, "machine", lambda: "aarch64")
    finding = reading._engine(portable, AgentConfig(device="box"), 200 << 20)
    assert "Paddle Lite takes half the memory" in finding.said
    assert "edge-ocr lite build --lib" in finding.advice


def test_limit_that_is_too_small_is_told(tmp_path, bundle_path):
    findings = told(subject(tmp_path, bundle_path, "[memory]\nlimit_mb = 128"))
    assert (findings["memory"].level, findings["memory"].advice) == ("fail", "raise memory.limit_mb")
