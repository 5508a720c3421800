"""A model that kills its runtime kills a child, and says so; one that runs is remembered."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import msgspec
import pytest

from agent import trial
from agent.bundle import ModelBundle, file_entry, write_manifest
from agent.engines import EngineSettings
from agent.errors import BundleError, EngineError
from agent.trial import ensure_tried, run_models

AUTO = EngineSettings()


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copied(bundle: ModelBundle, to: Path) -> Path:
    shutil.copytree(bundle.path, to)
    return to


def replace_model(path: Path, name: str, content: bytes) -> ModelBundle:
    """Put other bytes into a bundle, with their right hash."""
    manifest = ModelBundle.load(path).manifest
    (path / name).write_bytes(content)
    files = {**manifest.files, name: file_entry(path / name)}
    write_manifest(path, msgspec.structs.replace(manifest, files=files))
    return ModelBundle.load(path)


def no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every child fail at once."""
    monkeypatch.setattr(sys, "executable", "/bin/false")


@pytest.mark.parametrize("name", ["det.nb", "rec.nb", "cls.nb"])
def test_random_bytes_with_the_right_hash_kill_only_the_child(tmp_path, bundle, fresh_cache, name):
    path = copied(bundle, tmp_path / "bundle")
    spoilt = replace_model(path, name, os.urandom((path / name).stat().st_size))
    with pytest.raises(
        BundleError, match=r"its models do not run on paddlelite here \((signal|status) \d+: .+\)$"
    ) as refusal:
        ensure_tried(spoilt, AUTO)
    assert str(refusal.value).startswith(f"{path}: ") and "\n" not in str(refusal.value)
    assert not fresh_cache.exists()


def test_model_of_another_shape_is_refused(tmp_path, portable):
    path = copied(portable, tmp_path / "bundle")
    spoilt = replace_model(path, "det.onnx", (path / "cls.onnx").read_bytes())
    with pytest.raises(BundleError, match="its models do not run on onnxruntime here"):
        ensure_tried(spoilt, AUTO)


def test_output_that_does_not_fit_the_manifest_is_refused(tmp_path, portable):
    path = copied(portable, tmp_path / "bundle")
    (path / "characters.txt").write_text("甲\n" * 99)
    manifest = portable.manifest
    files = {**manifest.files, "characters.txt": file_entry(path / "characters.txt")}
    rec = msgspec.structs.replace(manifest.rec, classes=100)
    write_manifest(path, msgspec.structs.replace(manifest, files=files, rec=rec))
    with pytest.raises(BundleError, match=r"rec: gives \(1, 40, 6625\), the manifest promises \(1, -1, 100\)"):
        run_models(ModelBundle.load(path), "onnxruntime")


def test_good_bundle_is_tried_once_and_remembered(monkeypatch, portable, fresh_cache):
    ensure_tried(portable, AUTO)
    assert len(list((fresh_cache / "edge-ocr" / "tried").iterdir())) == 1
    no_children(monkeypatch)
    ensure_tried(portable, AUTO)


def test_nothing_else_is_remembered_with_it(monkeypatch, tmp_path, portable, bundle):
    ensure_tried(portable, AUTO)
    no_children(monkeypatch)
    path = copied(portable, tmp_path / "bundle")
    for other in (bundle, ModelBundle.load(path), replace_model(path, "characters.txt", b"\xe7\x94\xb2\n" * 6623)):
        with pytest.raises(BundleError, match="do not run"):
            ensure_tried(other, AUTO)


def test_failure_is_not_remembered(monkeypatch, portable):
    with monkeypatch.context() as patch:
        no_children(patch)
        with pytest.raises(BundleError, match=r"\(status 1: no message\)"):
            ensure_tried(portable, AUTO)
    ensure_tried(portable, AUTO)


@pytest.mark.parametrize("place", ["a file/cache", "/proc/nowhere", "x" * 300])
def test_cache_that_cannot_be_written_is_no_matter(monkeypatch, tmp_path, portable, place):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    ensure_tried(portable, AUTO)
    ensure_tried(portable, AUTO)


def test_without_a_home_nothing_is_written_where_the_user_stands(monkeypatch, tmp_path, portable):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(sys, "executable", "/bin/true")
    standing = tmp_path / "standing"
    standing.mkdir()
    monkeypatch.chdir(standing)
    ensure_tried(portable, AUTO)
    assert list(standing.iterdir()) == []


def test_package_of_the_same_name_where_the_user_stands_is_not_run(monkeypatch, tmp_path, portable):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "__init__.py").write_text("raise SystemExit('another agent')")
    monkeypatch.chdir(tmp_path)
    ensure_tried(portable, AUTO)


def test_bundle_may_be_named_from_where_the_user_stands(monkeypatch, portable):
    monkeypatch.chdir(portable.path.parent)
    ensure_tried(ModelBundle.load(Path(portable.path.name)), AUTO)


def test_model_that_never_answers_is_refused(monkeypatch, tmp_path, portable):
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.2)
    with pytest.raises(BundleError, match=r"did not answer within 0\.2 s on onnxruntime"):
        ensure_tried(portable, AUTO)


def test_engine_that_does_not_fit_is_refused_before_anything_is_tried(monkeypatch, portable):
    no_children(monkeypatch)
    with pytest.raises(EngineError, match="holds no model for paddle"):
        ensure_tried(portable, EngineSettings("paddle"))
