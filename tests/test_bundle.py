"""A bundle is read whole or refused by name, before any native code sees it."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agent.bundle import (
    MANIFEST,
    MAX_CHARACTERS_BYTES,
    MAX_MANIFEST_BYTES,
    Detector,
    Manifest,
    ModelBundle,
    Recognizer,
    Source,
    file_entry,
    sha256_of,
    write_manifest,
)
from agent.errors import BundleError
from tests.command import run_python

SOURCE = Source("drawn", "0" * 64)
FILES = {"det.nb": b"detector", "rec.nb": b"recogniser", "characters.txt": "甲\n乙\n".encode()}


def make(path: Path, **changes: object) -> Path:
    """Write a small bundle that is in order, with changed manifest fields."""
    path.mkdir(exist_ok=True)
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    manifest = Manifest(
        schema=1,
        name="small",
        version="1",
        target="x86_64",
        precision="fp32",
        made_by="test",
        files={name: file_entry(path / name) for name in FILES},
        det=Detector(files={"paddlelite": ("det.nb",)}, source=SOURCE),
        rec=Recognizer(files={"paddlelite": ("rec.nb",)}, source=SOURCE, characters="characters.txt", classes=4),
    )
    write_manifest(path, msgspec.structs.replace(manifest, **changes))
    return path


def load(path: Path) -> ModelBundle:
    return ModelBundle.load(path, machine="x86_64")


def edit(path: Path, old: str, new: str) -> None:
    """Change one place of a manifest."""
    text = (path / MANIFEST).read_text()
    assert text.count(old) == 1
    (path / MANIFEST).write_text(text.replace(old, new))


def test_bundle_in_order_is_loaded(tmp_path):
    bundle = load(make(tmp_path))
    assert bundle.label == "small-1-x86_64-fp32"
    assert bundle.characters == ("", "甲", "乙", " ")
    assert bundle.model_files("det", "paddlelite") == (tmp_path / "det.nb",)
    assert bundle.model_files("det", "onnxruntime") == ()
    assert bundle.digest == hashlib.sha256((tmp_path / MANIFEST).read_bytes()).hexdigest()


def test_manifest_is_written_whole_or_not_at_all(tmp_path):
    make(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([MANIFEST, *FILES])


def test_model_that_a_bundle_lacks_is_named(tmp_path):
    with pytest.raises(BundleError, match="holds no cls model"):
        load(make(tmp_path)).spec("cls")


def test_converted_bundle_holds_the_whole_dictionary(bundle):
    assert len(bundle.characters) == bundle.manifest.rec.classes == 6625
    assert (bundle.characters[0], bundle.characters[-1]) == ("", " ")


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / "rec.nb").read_bytes())
    data[3] ^= 1
    (path / "rec.nb").write_bytes(data)


def same_bytes_elsewhere(path: Path) -> None:
    edit(path, '[files."det.nb"]', '[files."../det.nb"]')


def many_characters(path: Path) -> None:
    (path / "characters.txt").write_bytes(b"x\n" * (MAX_CHARACTERS_BYTES // 2 + 1))
    _rehash(path, "characters.txt")


def not_text(path: Path) -> None:
    (path / "characters.txt").write_bytes(b"\xff\n\xfe\n")
    _rehash(path, "characters.txt")


def _rehash(path: Path, name: str) -> None:
    manifest = msgspec.toml.decode((path / MANIFEST).read_bytes(), type=Manifest)
    entry = file_entry(path / name)
    write_manifest(path, msgspec.structs.replace(manifest, files={**manifest.files, name: entry}))


def write(content: bytes) -> Callable[[Path], object]:
    return lambda path: (path / MANIFEST).write_bytes(content)


def change(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: edit(path, old, new)


def fifo(path: Path) -> None:
    (path / "det.nb").unlink()
    os.mkfifo(path / "det.nb")


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no directory": (shutil.rmtree, MANIFEST, "is missing: make a bundle with `edge-ocr convert`"),
    "no manifest": (lambda path: (path / MANIFEST).unlink(), MANIFEST, "is missing"),
    "a file in its place": (lambda path: (shutil.rmtree(path), path.touch()), MANIFEST, "is missing"),
    "missing file": (lambda path: (path / "det.nb").unlink(), "det.nb", "missing from the bundle"),
    "a FIFO for a file": (fifo, "det.nb", "missing from the bundle"),
    "one bit turned": (flip_a_bit, "rec.nb", "damaged (sha256 differs"),
    "longer file": (
        lambda path: (path / "rec.nb").write_bytes(b"recogniser!"),
        "rec.nb",
        "bytes, the manifest says 10",
    ),
    "empty file": (lambda path: (path / "rec.nb").write_bytes(b""), "rec.nb", "0 bytes, the manifest says 10"),
    "newer format": (change("schema = 1", "schema = 2\nshape = 'new'"), MANIFEST, "bundle format 2 is newer"),
    "format is no number": (change("schema = 1", "schema = 'one'"), MANIFEST, "Expected `int`"),
    "unknown key": (change("schema = 1", "schema = 1\nsparse = true"), MANIFEST, "unknown field `sparse`"),
    "unknown key below": (change("[det.source]", "[det.sauce]"), MANIFEST, "unknown field `sauce`"),
    "key missing": (change('precision = "fp32"', ""), MANIFEST, "missing required field `precision`"),
    "wrong type": (change("multiple = 32", "multiple = '32'"), MANIFEST, "$.det.multiple"),
    "threshold beyond one": (change("box_threshold = 0.5", "box_threshold = 5.0"), MANIFEST, "$.det.box_threshold"),
    "no multiple": (change("multiple = 32", "multiple = 0"), MANIFEST, "$.det.multiple"),
    "immense multiple": (change("multiple = 32", "multiple = 1000000"), MANIFEST, "$.det.multiple"),
    "deviation zero": (change("0.229,", "0.0,"), MANIFEST, "$.det.std"),
    "deviation not a number": (change("0.229,", "nan,"), MANIFEST, "$.det.std"),
    "not a hash": (change(hashlib.sha256(FILES["det.nb"]).hexdigest(), "abc"), MANIFEST, "$.files"),
    "not TOML": (write(b"{'schema': 1}"), MANIFEST, "not a bundle manifest"),
    "not text": (write(b"\xff\xfe\x00schema"), MANIFEST, "not a bundle manifest"),
    "empty": (write(b""), MANIFEST, "missing required field `schema`"),
    "nested without end": (write(b"a=" + b"[" * 100_000), MANIFEST, "not a bundle manifest"),
    "huge manifest": (write(b"#" * (MAX_MANIFEST_BYTES + 1)), MANIFEST, "larger than 1048576 bytes"),
    "huge dictionary": (many_characters, "characters.txt", "larger than 8388608 bytes"),
    "dictionary is no UTF-8": (not_text, "characters.txt", "not UTF-8"),
    "dictionary too short": (
        change("classes = 4", "classes = 5"),
        "characters.txt",
        "2 characters do not fit a model of 5",
    ),
    "dictionary too long": (
        change("classes = 4", "classes = 2"),
        "characters.txt",
        "2 characters do not fit a model of 2",
    ),
    "name that leaves": (same_bytes_elsewhere, MANIFEST, "'../det.nb' leaves the bundle"),
    "absolute name": (change('[files."det.nb"]', '[files."/etc/hostname"]'), MANIFEST, "leaves the bundle"),
    "name of the manifest": (change('[files."det.nb"]', '[files."bundle.toml"]'), MANIFEST, "leaves the bundle"),
    "empty name": (change('[files."det.nb"]', '[files.""]'), MANIFEST, "leaves the bundle"),
    "model without a hash": (change('"rec.nb",', '"other.nb",'), MANIFEST, "rec names other.nb, which has no sha256"),
    "no files for an engine": (change('paddlelite = [\n    "rec.nb",\n]', "paddlelite = []"), MANIFEST, "$.rec.files"),
    "rec for another engine": (
        change('paddlelite = [\n    "rec.nb",', 'onnxruntime = [\n    "rec.nb",'),
        MANIFEST,
        "rec has files for other engines than det",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bundle_is_refused_by_the_name_of_the_file(tmp_path, damage):
    spoil, file, message = DAMAGE[damage]
    path = make(tmp_path / "bundle")
    load(path)
    spoil(path)
    with pytest.raises(BundleError) as refusal:
        load(path)
    assert str(path / file) in str(refusal.value)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("target", "machine", "fits"),
    [
        ("x86_64", "x86_64", True),
        ("x86_64", "AMD64", True),
        ("x86_64", "aarch64", False),
        ("aarch64", "arm64", True),
        ("aarch64", "aarch64", True),
        ("aarch64", "x86_64", False),
        ("portable", "riscv64", True),
        ("paddle", "x86_64", True),
    ],
)
def test_bundle_runs_only_on_the_machine_it_was_made_for(tmp_path, target, machine, fits):
    path = make(tmp_path, target=target)
    if fits:
        assert ModelBundle.load(path, machine=machine).manifest.target == target
        return
    with pytest.raises(BundleError, match=rf"{path}: made for {target}, this machine is {machine}: convert with"):
        ModelBundle.load(path, machine=machine)


def test_dictionary_may_end_with_or_without_a_line_end_and_have_windows_ones(tmp_path):
    path = make(tmp_path)
    for content in (b"\xe7\x94\xb2\r\n\xe4\xb9\x99\r\n", b"\xe7\x94\xb2\n\xe4\xb9\x99"):
        (path / "characters.txt").write_bytes(content)
        _rehash(path, "characters.txt")
        assert load(path).characters == ("", "甲", "乙", " ")


def test_space_is_added_only_where_the_model_has_a_class_for_it(tmp_path):
    path = make(tmp_path)
    edit(path, "classes = 4", "classes = 3")
    assert load(path).characters == ("", "甲", "乙")


def test_link_to_a_file_of_the_right_content_is_as_good(tmp_path):
    path = make(tmp_path / "bundle")
    (path / "det.nb").rename(tmp_path / "det.nb")
    (path / "det.nb").symlink_to(tmp_path / "det.nb")
    assert load(path).label


def test_no_runtime_is_loaded_before_a_bundle_is_verified(tmp_path):
    path = make(tmp_path)
    flip_a_bit(path)
    ran = run_python(
        "import sys\n"
        "from pathlib import Path\n"
        "from agent.bundle import ModelBundle\n"
        "from agent.errors import BundleError\n"
        "try:\n"
        "    ModelBundle.load(Path(sys.argv[1]), machine='x86_64')\n"
        "except BundleError as error:\n"
        "    print(error)\n"
        "assert not {'paddlelite', 'paddle', 'onnxruntime', 'cv2'} & sys.modules.keys()\n",
        path,
    )
    assert (ran.status, ran.err) == (0, "")
    assert "rec.nb: damaged" in ran.out


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()
