"""Files of a folder: each is read once, complete, or refused with a reason, whoever writes it and however."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import select
import shutil
import socket
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.documents.document import is_complete
from agent.errors import ConfigError, FrameError, InputError
from agent.source_config import FolderConfig
from agent.sources.folder import inbox, tree
from agent.sources.folder.identity import PART_BYTES, digest_of
from agent.sources.folder.retention import DAY_S, FIRST_DAY_S, SPEED, STEP
from agent.sources.folder.source import FolderSource
from tests import bad_inputs as bad
from tests.command import run
from tests.folder_programs import numbered_png
from tests.sources_contract import AMPLE, BentClock, SourceContract, drained

DAMAGED = FrameError("damaged", "x: damaged")
POLL_S, STABLE_S, GIVE_UP_S = 5.0, 2.0, 60.0  # the defaults


class FolderRig:
    """A folder source on a folder of its own."""

    def __init__(self, path: Path, **settings: object) -> None:
        self.path = path
        self.settings = settings
        self.clock = BentClock()
        self.source: FolderSource | None = None

    def open(self, **settings: object) -> FolderSource:
        if self.source is not None:
            self.source.close()
        self.settings.update(settings)
        self.source = FolderSource(FolderConfig(name="scans", path=str(self.path), **self.settings), self.clock)
        return self.source

    def put(self, number: int, name: str = "") -> Path:
        path = self.path / (name or f"page-{number}.png")
        path.write_bytes(numbered_png(number))
        return path

    def look(self) -> list:
        """Return what is offered after the folder was listed."""
        self.clock.wait(POLL_S)
        return drained(self.source, self)

    def settle(self) -> None:
        self.clock.wait(POLL_S)
        assert self.source.poll() is None
        self.clock.wait(STABLE_S)

    def offered(self) -> list:
        """Return what is offered to those who wait long enough."""
        return self.look() + self.look()

    def verdict(self, error: FrameError | None = None) -> Path:
        """Return where the one page that is offered lies after its verdict."""
        (capture,) = self.offered()
        return Path(self.source.done(capture, error))

    def below(self, room: str) -> list[str]:
        return sorted(os.listdir(self.path / room))


@pytest.fixture
def rig(tmp_path):
    made = FolderRig(tmp_path / "scans")
    yield made
    if made.source is not None:
        made.source.close()


class TestContract(SourceContract):
    """A folder is a source."""


class TestContractReadingAgain(SourceContract):
    """It is one too where the same content is read again."""

    @pytest.fixture
    def rig(self, rig):
        rig.settings["again"] = "read"
        return rig

    def test_put_away_page_can_be_read_again(self, rig):
        source = rig.open()
        rig.put(1)
        (capture,) = rig.offered()
        assert source.reread(source.done(capture))
        (again,) = drained(source, rig)
        assert again.key != capture.key
        assert again.key.partition(":")[0] == capture.key.partition(":")[0]


# ------------------------------------------------------------------------------------------------ when it is taken


def test_file_is_taken_when_it_has_not_changed_for_a_while(rig):
    source = rig.open()
    rig.put(1)
    assert source.poll() is None
    rig.clock.wait(STABLE_S - 0.1)
    assert source.poll() is None
    assert source.next_s() <= 0.25
    rig.clock.wait(0.25)
    assert source.poll().name == "page-1.png"
    assert rig.below(".") == [".edge-ocr", "done", "failed"]


@pytest.mark.parametrize("touch", ["size", "time"])
def test_change_starts_the_wait_anew(rig, touch):
    source = rig.open()
    path = rig.put(1)
    for number in range(5):
        assert source.poll() is None
        rig.clock.wait(STABLE_S)
        if touch == "size":
            path.write_bytes(numbered_png(1, padding=number))
        os.utime(path, (number, number) if touch == "time" else (9, 9))
    assert source.poll() is None
    rig.clock.wait(STABLE_S + 0.25)
    assert source.poll() is not None


@pytest.mark.parametrize("when", [0, 1, -86_400, 4_000_000_000])
def test_clock_of_the_writer_is_no_matter(rig, when):
    rig.open()
    os.utime(rig.put(1), (when, when))
    assert len(rig.offered()) == 1


def test_jump_of_the_wall_clock_is_no_matter(rig):
    source = rig.open()
    rig.put(1)
    for jump in (3e7, -6e7):
        assert source.poll() is None
        rig.clock.wall_s += jump
    assert len(rig.offered()) == 1


def saved(kind: str, pages: int = 1, **options: object) -> bytes:
    file = io.BytesIO()
    page = bad.page().convert("RGB")
    if pages > 1:
        options = {**options, "save_all": True, "append_images": [page] * (pages - 1)}
    page.save(file, kind, **options)
    return file.getvalue()


KINDS = [("PNG", {}), ("JPEG", {}), ("BMP", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_file_without_its_end_gets_time_and_is_then_refused(rig, kind, options):
    source = rig.open()
    data = saved(kind, **options)
    for name, cut in (("half", len(data) // 2), ("almost", len(data) - 5), ("whole", len(data))):
        (rig.path / name).write_bytes(data[:cut])
    captures = rig.offered()
    assert [capture.name for capture in captures] == ["whole"]
    rig.clock.wait(GIVE_UP_S - 3 * POLL_S)
    assert drained(source, rig) == []
    rig.clock.wait(3 * POLL_S)
    for capture in drained(source, rig):
        with pytest.raises(FrameError, match=r"its end is missing|before its size") as caught:
            capture.load(AMPLE)
        assert caught.value.reason == "truncated"
        source.done(capture, caught.value)
    assert rig.below("failed") == ["almost", "almost.reason.txt", "half", "half.reason.txt"]
    assert captures[0].load(AMPLE).pixels.shape == (300, 380, 3)


def test_file_that_pauses_is_read_whole(rig):
    source = rig.open()
    data, path = numbered_png(3), rig.path / "slow.png"
    for cut in (0, 10, 40, len(data) - 1):
        path.write_bytes(data[:cut])
        assert rig.offered() == []
        rig.clock.wait(GIVE_UP_S / 2)
        assert drained(source, rig) == []
    path.write_bytes(data)
    (capture,) = rig.offered()
    assert capture.key == hashlib.sha256(data).hexdigest()


def test_space_taken_before_it_is_filled_is_no_end(rig):
    # Windows gives a file its full size first and fills it then.
    source = rig.open()
    data, path = numbered_png(3), rig.path / "copied.png"
    for cut in (0, len(data) - 12):
        path.write_bytes(data[:cut].ljust(len(data), b"\0"))
        os.utime(path, (1, 1))
        rig.clock.wait(GIVE_UP_S / 2)
        assert drained(source, rig) == []
    path.write_bytes(data)
    os.utime(path, (1, 1))  # it looks the same as before
    rig.clock.wait(GIVE_UP_S / 2)
    assert [capture.key for capture in rig.offered()] == [hashlib.sha256(data).hexdigest()]


def test_oldest_comes_first_then_by_name(rig):
    source = rig.open()
    for number, (name, when) in enumerate([("b", 50), ("a", 50), ("z", -5), ("c", 4_000_000_000), ("d", 7)]):
        os.utime(rig.put(number, name), (when, when))
    rig.settle()
    assert [capture.name for capture in drained(source, rig)] == ["z", "d", "a", "b", "c"]


TEMPORARY = [".page.png", "~$page.png", "page.png~", ".nfs0001", "._page.png", ".page.png.Xa81Gb", "Thumbs.db"]
TEMPORARY += [f"page.png.{end}" for end in ("tmp", "TMP", "temp", "part", "partial", "filepart", "crdownload", "swp")]


@pytest.mark.parametrize("name", TEMPORARY)
def test_temporary_name_is_left_alone_until_it_is_renamed(rig, name):
    rig.open()
    path = rig.put(1, name)
    assert rig.offered() == []
    rig.clock.wait(10 * GIVE_UP_S)
    assert rig.offered() == []
    path.rename(rig.path / "page.png")
    assert [capture.name for capture in rig.offered()] == ["page.png"]


def test_folders_below_are_left_alone(rig):
    rig.open()
    (rig.path / "old.png").mkdir()
    rig.put(1, "old.png/page.png")
    rig.clock.wait(10 * GIVE_UP_S)
    assert rig.offered() == []
    assert (rig.path / "old.png" / "page.png").exists()


# ------------------------------------------------------------------------------------------------ what is refused


def special(path: Path, kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        home = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(home)
    elif kind == "device":
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    else:
        path.symlink_to({"link": "/etc/passwd", "broken": "nowhere", "loop": path.name, "folder": "/etc"}[kind])


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link", "broken", "loop", "folder"])
def test_what_is_no_file_is_refused_and_never_opened(rig, kind):
    source = rig.open()
    try:
        special(rig.path / "page.png", kind)
    except PermissionError:
        pytest.skip("only root can make a device")
    assert rig.offered() == []
    rig.clock.wait(GIVE_UP_S)
    (capture,) = drained(source, rig)
    with pytest.raises(FrameError, match=r"^page\.png: a .* and not a file$") as caught:
        capture.load(AMPLE)
    assert caught.value.reason == "special"
    rig.open()
    (again,) = drained(rig.source, rig) or rig.offered() or (rig.clock.wait(GIVE_UP_S), *drained(rig.source, rig))[1:]
    assert again.key == capture.key
    place = rig.source.done(again, caught.value)
    assert os.path.lexists(place)
    assert Path(place + ".reason.txt").read_text().startswith("special: page.png: a ")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("empty.png", b"", "empty"),
        ("letter.txt", b"Dear Sir or Madam, " * 20, "type"),
        ("letter.pdf", b"%PDF-1.4\n%%EOF\n", "damaged"),
        ("text.jpg", b"no picture at all", "type"),
        ("one-byte.png", b"\x89", "type"),
        ("zero.png", bad.png_header(0, 5) + bad.png_chunk(b"IDAT", b"") + bad.png_chunk(b"IEND", b""), "zero"),
        ("wide.png", bad.png_header(90_000, 5) + bad.png_chunk(b"IDAT", b"") + bad.png_chunk(b"IEND", b""), "huge"),
        ("noise.png", bad.png_header(9, 9) + bad.png_chunk(b"IDAT", b"?") + bad.png_chunk(b"IEND", b""), "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(rig, name, data, reason):
    source = rig.open()
    (rig.path / name).write_bytes(data)
    captures = rig.offered()
    rig.clock.wait(GIVE_UP_S)
    (capture,) = captures + drained(source, rig)
    with pytest.raises(FrameError) as caught:
        capture.load(AMPLE)
    assert caught.value.reason == reason
    source.done(capture, caught.value)
    assert rig.below("failed") == [name, f"{name}.reason.txt"]
    note = (rig.path / "failed" / f"{name}.reason.txt").read_text()
    assert note.startswith(f"{reason}: {name}: ")
    assert note.count("\n") == 1
    assert ".edge-ocr" not in note


def test_file_larger_than_any_picture_is_refused_unread(rig):
    source = rig.open()
    path = rig.put(1)
    os.truncate(path, 3 << 30)  # takes no space
    rig.offered()
    rig.clock.wait(GIVE_UP_S)
    began = time.process_time()
    (capture,) = drained(source, rig)
    with pytest.raises(FrameError, match="3072 MB") as caught:
        capture.load(AMPLE)
    assert caught.value.reason == "huge"
    assert time.process_time() - began < 1


@pytest.fixture
def nobody(tmp_path_factory):
    """A folder of a user without privileges, who runs the test."""
    if os.geteuid() != 0:
        yield tmp_path_factory.mktemp("nobody")
        return
    folder = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"edge-ocr-test-{os.getpid()}")
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_unreadable_file_is_refused(nobody):
    rig = FolderRig(nobody / "scans")
    source = rig.open()
    rig.put(1).chmod(0)
    assert rig.offered() == []
    rig.clock.wait(GIVE_UP_S)
    (capture,) = drained(source, rig)
    with pytest.raises(InputError, match="Permission denied") as caught:
        capture.load(AMPLE)
    rig.open()
    assert rig.offered() == []
    rig.clock.wait(GIVE_UP_S)
    (again,) = drained(rig.source, rig)
    assert again.key == capture.key
    rig.source.done(again, caught.value)
    assert rig.below("failed") == ["page-1.png", "page-1.png.reason.txt"]
    assert (rig.path / "failed/page-1.png.reason.txt").read_text() == "input: page-1.png: Permission denied\n"
    rig.source.close()


def test_file_that_cannot_be_claimed_is_said_once_and_holds_up_no_other(nobody, caplog):
    if os.getuid() != 0:
        pytest.skip("needs a file of another user")
    rig = FolderRig(nobody / "scans")
    source = rig.open()
    rig.path.chmod(0o1777)
    os.seteuid(0)
    os.chown(rig.path, 0, 0)
    foreign = rig.put(1, "foreign\n.png")
    os.seteuid(65534)
    rig.put(2)
    assert [capture.name for capture in rig.offered()] == ["page-2.png"]
    for _ in range(200):
        rig.clock.wait(POLL_S)
        assert drained(source, rig) == []
    assert [record.getMessage() for record in caplog.records] == [
        "scans: a file cannot be claimed: 'foreign\\n.png': Operation not permitted"
    ]
    os.seteuid(0)
    os.chown(foreign, 65534, 65534)
    os.seteuid(65534)
    rig.clock.wait(400)
    assert [capture.name for capture in rig.offered()] == ["foreign\n.png"]
    assert os.listdir(rig.path / ".edge-ocr/work") != []
    source.close()


def test_folder_that_becomes_read_only_is_said_once_and_not_for_each_file(nobody, caplog):
    rig = FolderRig(nobody / "scans")
    source = rig.open()
    for number in range(20):
        rig.put(number)
    rig.path.chmod(0o555)
    assert rig.offered() == rig.offered() == []
    assert len(caplog.records) == 1
    assert "this user must be able to write into it" in caplog.text
    rig.path.chmod(0o755)
    assert len(rig.offered()) == 20
    source.close()


HOSTILE = [
    b"two\nlines.png",
    b"caf\xe9-\xff.png",
    b"-rf",
    b"a\\b.png",
    "\u202egnp.exe".encode(),
    b"n" * 251 + b".png",
    "页".encode() * 85,
    b"x." + b"y" * 253,
    b"\xff" * 255,
    b"CON",
    b"%2e%2e%2fetc",
    b"a:b*c?|.png",
    b"+",
    b"#",
    b"done.",
    b"$(reboot).png",
    b" ",
]


@pytest.mark.parametrize("error", [None, DAMAGED], ids=["done", "failed"])
def test_names_are_data(rig, error):
    source = rig.open()
    for number, name in enumerate(HOSTILE):
        rig.put(number, os.fsdecode(name))
    captures = rig.offered()
    assert len(captures) == len(HOSTILE)
    for capture in captures:
        capture.name.encode()
        assert capture.load(AMPLE).width == 16
        place = source.done(capture, error)
        place.encode()
        assert Path(place).parent == rig.path / ("failed" if error else "done")
        if error:
            note = Path(place + ".reason.txt").read_bytes()
            assert note.endswith(b"\n") and note.count(b"\n") == 1
        assert source.reread(place)
        (again,) = drained(source, rig)
        source.done(again, error)
    assert len(rig.below("failed" if error else "done")) == len(HOSTILE) * (2 if error else 1)
    assert sorted(os.listdir(rig.path)) == [".edge-ocr", "done", "failed"]
    assert os.listdir(rig.path / ".edge-ocr/work") == []


@given(st.binary(min_size=1, max_size=255).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")))
def test_any_name_is_put_away_and_found_again(name):
    folder = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"edge-ocr-names-{os.getpid()}")
    tried = tree.Tree(str(folder))
    try:
        tried.open()
        for note in ("", "why\n"):
            for _ in range(3):
                (folder / os.fsdecode(name)).write_bytes(b"x")
                claim = tried.begin_claim()
                tried.claim(claim, os.fsdecode(name))
                place = tried.put_away(claim, os.fsdecode(name), "failed", note)
                assert Path(place).read_bytes() == b"x"
                assert len(os.fsencode(Path(place).name)) <= 255
                assert not note or Path(place + ".reason.txt").read_text() == note
        assert len(os.listdir(folder / "failed")) == 9
        assert tried.claims() == []
    finally:
        tried.close()
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------------ what changes


def test_file_that_vanishes_is_forgotten(rig, monkeypatch):
    source = rig.open()
    path = rig.put(1)
    rig.settle()
    path.unlink()
    assert drained(source, rig) == []

    path = rig.put(2)
    rig.settle()
    claim = tree.Tree.claim
    monkeypatch.setattr(tree.Tree, "claim", lambda *given, **more: (path.unlink(), claim(*given, **more)))
    assert drained(source, rig) == []
    assert os.listdir(rig.path / ".edge-ocr/work") == []


@pytest.mark.parametrize("first", ["file", "fifo"])
def test_file_that_takes_the_place_of_another_is_read_itself(rig, monkeypatch, first):
    source = rig.open()
    path = rig.path / "page-1.png"
    if first == "fifo":
        os.mkfifo(path)
        assert rig.offered() == []
        rig.clock.wait(GIVE_UP_S)
    else:
        rig.put(1)
        rig.settle()
    claim = tree.Tree.claim

    def replaced(*given, **more):
        os.utime(rig.put(2, "new.tmp"), (5, 5))
        (rig.path / "new.tmp").rename(path)
        claim(*given, **more)
        monkeypatch.undo()

    monkeypatch.setattr(tree.Tree, "claim", replaced)
    assert drained(source, rig) == []  # it may still be written to
    rig.clock.wait(STABLE_S + 0.25)
    (capture,) = drained(source, rig)
    assert capture.key == hashlib.sha256(numbered_png(2)).hexdigest()


def test_name_that_is_used_again_is_another_file(rig):
    source = rig.open()
    places = []
    captures = []
    for number in range(4):
        rig.put(number, "scan.png")
        captures += rig.offered()
    assert len({capture.key for capture in captures}) == 4
    for capture in captures[:3]:
        places.append(Path(source.done(capture)).name)
    places.append(Path(source.done(captures[3], DAMAGED)).name)
    assert places == ["scan.png", "scan (2).png", "scan (3).png", "scan.png"]


def test_file_that_is_written_to_while_it_is_read_is_read_again_when_it_is_whole(rig):
    source = rig.open()
    path = rig.put(1)
    with path.open("ab") as writer:
        (capture,) = rig.offered()
        writer.write(b"more")
        writer.flush()
        with pytest.raises(FrameError) as caught:
            capture.load(AMPLE)
        assert caught.value.reason == "changed"
        assert source.done(capture, caught.value) == ""
        assert drained(source, rig) == []
    rig.clock.wait(STABLE_S + 0.25)
    assert drained(source, rig) == []  # from now on it is watched where it lies
    rig.clock.wait(STABLE_S + 0.25)
    (again,) = drained(source, rig)
    assert again.key == hashlib.sha256(numbered_png(1) + b"more").hexdigest()
    again.load(AMPLE)


def test_file_that_is_written_to_while_its_key_is_made_waits(rig, monkeypatch):
    source = rig.open()
    path = rig.put(1)
    with path.open("ab") as writer, monkeypatch.context() as patched:
        whole = "agent.sources.folder.source.digest_of"
        patched.setattr(whole, lambda handle, progress: (writer.write(b"more"), writer.flush(), digest_of(handle))[2])
        assert rig.offered() == []
    rig.clock.wait(STABLE_S + 0.25)
    (capture,) = drained(source, rig)
    assert capture.path.read_bytes().startswith(numbered_png(1) + b"more")
    assert capture.key == hashlib.sha256(capture.path.read_bytes()).hexdigest()


def test_refusal_of_a_file_that_is_written_to_is_none(rig):
    rig.open()
    data = saved("JPEG")
    (rig.path / "page.jpg").write_bytes(data)
    with (rig.path / "page.jpg").open("r+b") as writer:
        (capture,) = rig.offered()
        writer.truncate(len(data) // 2)
        with pytest.raises(FrameError) as caught:
            capture.load(AMPLE)
        assert caught.value.reason == "changed"


def test_claimed_file_that_somebody_takes_is_gone(rig):
    source = rig.open()
    rig.put(1)
    (capture,) = rig.offered()
    capture.path.unlink()
    with pytest.raises(InputError):
        capture.load(AMPLE)
    assert source.done(capture, InputError("gone")) == ""
    assert os.listdir(rig.path / ".edge-ocr/work") == []
    assert rig.below("failed") == []


# ------------------------------------------------------------------------------------------------ identity


def test_key_is_that_of_the_content(rig):
    source = rig.open()
    keys = set()
    for name in ("a.png", "b.png", "a.png"):
        rig.put(1, name)
        (capture,) = rig.offered()
        keys.add(capture.key)
        source.done(capture)
    assert keys == {hashlib.sha256(numbered_png(1)).hexdigest()}


def film(path: Path, last: bytes, size: int = 500 << 20) -> None:
    """Write a large file of a type that is not read; what lies between its ends takes no room on the disk."""
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypmp42")
        file.truncate(size - len(last))
        file.seek(0, os.SEEK_END)
        file.write(last)


def test_film_is_refused_and_not_read_as_a_whole(rig, monkeypatch):
    monkeypatch.setattr("agent.sources.folder.identity.sha256_of_open", lambda handle: pytest.fail("read as a whole"))
    source = rig.open()
    film(rig.path / "film.mp4", b"end")
    rig.clock.wait(GIVE_UP_S)
    rig.settle()
    rig.clock.wait(GIVE_UP_S)
    (capture,) = drained(source, rig)
    with pytest.raises(FrameError) as caught:
        capture.load(AMPLE)
    assert caught.value.reason == "type"
    rig.open()
    rig.clock.wait(GIVE_UP_S)
    (again,) = drained(rig.source, rig)
    assert again.key == capture.key


def test_films_of_another_size_or_end_have_keys_of_their_own(tmp_path):
    digests = []
    for number, (last, size) in enumerate([(b"a", 9 << 20), (b"b", 9 << 20), (b"a", 10 << 20), (b"a", 9 << 20)]):
        film(tmp_path / f"{number}.mp4", last, size)
        with (tmp_path / f"{number}.mp4").open("rb") as handle:
            digests.append(digest_of(handle))
    assert len(set(digests)) == 3 and digests[0] == digests[3]


@pytest.mark.parametrize("start", [numbered_png(1), saved("JPEG"), saved("TIFF"), b"mail\n%PDF-1.7\n"])
def test_key_of_what_may_be_read_is_of_the_whole_content(tmp_path, start):
    data = start.ljust(5 * PART_BYTES, b"\0")
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as handle:
        assert digest_of(handle) == hashlib.sha256(data).hexdigest()


def test_every_arrival_has_a_key_where_the_same_is_to_be_read_again(rig):
    rig.open(again="read")
    keys = []
    for _ in range(3):
        rig.put(1)
        (capture,) = rig.offered()
        rig.open()
        (again,) = drained(rig.source, rig)
        assert again.key == capture.key
        keys.append(again.key)
        again.load(AMPLE)
        rig.source.done(again)
    digest = hashlib.sha256(numbered_png(1)).hexdigest()
    assert len(set(keys)) == 3
    assert all(key.startswith(f"{digest}:") for key in keys)


def test_claim_that_makes_a_key_is_on_the_disk_before_the_file_is_offered(rig, monkeypatch):
    rig.open(again="read")
    rig.put(1)
    said = synced(monkeypatch)
    (capture,) = rig.offered()
    assert said[-4:] == ["rename", capture.path.parent.name, "work", rig.path.name]


def test_claim_that_cannot_be_brought_to_the_disk_loses_no_file(rig, monkeypatch):
    source = rig.open(again="read")
    rig.put(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails(errno.EIO))
        assert rig.offered() == []
    (capture,) = rig.offered()
    assert source.done(capture)
    assert os.listdir(rig.path / ".edge-ocr/work") == []


# ------------------------------------------------------------------------------------------------ restarts


def test_claimed_files_come_first_after_a_restart(rig):
    rig.open()
    rig.put(1, "claimed.png")
    assert len(rig.offered()) == 1
    os.utime(rig.put(2, "older.png"), (1, 1))
    source = rig.open()
    (first,) = drained(source, rig)
    assert first.name == "claimed.png"
    assert [capture.name for capture in rig.offered()] == ["older.png"]


def test_file_that_nothing_was_decided_about_comes_before_older_ones(rig):
    source = rig.open()
    rig.put(1, "newer.png")
    (capture,) = rig.offered()
    os.utime(rig.put(2, "older.png"), (1, 1))
    rig.settle()
    source.retry(capture)
    rig.clock.wait(2)
    assert [capture.name for capture in drained(source, rig)] == ["newer.png", "older.png"]


def test_claimed_file_without_its_end_is_given_time_after_a_restart_too(rig):
    source = rig.open()
    (rig.path / "page.png").write_bytes(numbered_png(1)[:-9])
    rig.offered()
    rig.clock.wait(GIVE_UP_S)
    (capture,) = drained(source, rig)
    source = rig.open()
    assert drained(source, rig) == []
    capture.path.write_bytes(numbered_png(1))
    (again,) = rig.offered() or rig.offered()
    assert again.key == hashlib.sha256(numbered_png(1)).hexdigest()


def test_what_a_crash_left_is_tidied_up(rig):
    rig.open()
    work = rig.path / ".edge-ocr/work"
    (work / "0123").mkdir()
    (work / "stray").write_bytes(b"x")
    (rig.path / ".edge-ocr-trial").write_bytes(b"")
    source = rig.open()
    assert os.listdir(work) == ["stray"]
    assert rig.below(".") == [".edge-ocr", "done", "failed"]
    assert drained(source, rig) == []


class Killed(BaseException):
    """The end of the process, as far as the code that runs can tell."""


STEPS = ("mkdir", "rename", "rmdir", "unlink", "fsync", "open")


def tripped(monkeypatch, at: int, after: bool) -> list[str]:
    """End the process at its n-th change to the disk, before or after it is made; return the changes met."""
    met: list[str] = []

    def watched(name, call):
        def step(*given, **more):
            if name == "open" and not given[1] & os.O_CREAT:
                return call(*given, **more)
            met.append(name)
            if len(met) == at and not after:
                raise Killed
            result = call(*given, **more)
            if len(met) == at:
                if name == "open":
                    os.close(result)
                raise Killed
            return result

        return step

    for name in STEPS:
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    return met


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("way", ["done", "failed", "delete", "reread"])
def test_end_at_any_step_leaves_one_verdict(tmp_path, monkeypatch, way, after):
    error, settings = (DAMAGED if way == "failed" else None), {"when_done": "delete" if way == "delete" else "keep"}
    for at in range(1, 100):
        rig = FolderRig(tmp_path / f"{way}-{after}-{at}", again="read", **settings)
        source = rig.open()
        rig.put(1)
        place = str(rig.verdict()) if way == "reread" else ""
        keys = set()
        with monkeypatch.context() as patched:
            met = tripped(patched, at, after)
            try:
                if place:
                    source.reread(place)
                for capture in rig.offered():
                    keys.add(capture.key)
                    source.done(capture, error)
                ended = False
            except Killed:
                ended = True
        source = rig.open()
        for capture in rig.offered():
            keys.add(capture.key)
            source.done(capture, error)
        assert len(keys) == 1 or (way == "reread" and ended and not keys)
        assert os.listdir(rig.path / ".edge-ocr/work") == []
        kept = {"failed": ["page-1.png", "page-1.png.reason.txt"], "delete": []}.get(way, ["page-1.png"])
        assert rig.below("failed") + rig.below("done") == kept
        source.close()
        if not ended:
            assert len(met) > 3
            return
    raise AssertionError("it never got to the end")


@pytest.mark.parametrize(("again", "when_done"), [("skip", "keep"), ("read", "delete")])
def test_killed_at_random_each_file_has_one_verdict(tmp_path, again, when_done):
    command = (sys.executable, "-m", "tests.folder_programs", "kills", "11", "40", "120", again, when_done)
    ran = run((*command, tmp_path / "scans"))
    assert ran.status == 0, ran.err
    (told,) = ran.rows
    assert told["kills"] == 40
    assert (told["lost"], told["doubled"], told["unexpected"], told["left"]) == (0, 0, 0, 0), told


# ------------------------------------------------------------------------------------------------ putting away


def test_nothing_is_overwritten(rig):
    rig.open()
    for room in ("done", "failed"):
        (rig.path / room / "page-1.png").write_bytes(b"somebody's")
        (rig.path / room / "page-1 (2).png.reason.txt").write_bytes(b"somebody's")
    rig.put(1)
    assert rig.verdict() == rig.path / "done/page-1 (2).png"
    rig.put(1)
    assert rig.verdict(DAMAGED) == rig.path / "failed/page-1 (3).png"
    assert (rig.path / "failed/page-1.png").read_bytes() == b"somebody's"
    assert (rig.path / "failed/page-1 (2).png.reason.txt").read_bytes() == b"somebody's"


def test_many_files_of_one_name_are_told_apart_quickly(rig, monkeypatch):
    rig.open()
    for number in range(2, 1000):
        (rig.path / f"done/scan ({number}).png").touch()
    (rig.path / "done/scan.png").touch()
    rig.put(1, "scan.png")
    looks = []
    exists = tree.exists
    monkeypatch.setattr(tree, "exists", lambda *given: (looks.append(given), exists(*given))[1])
    assert rig.verdict() == rig.path / "done/scan (1000).png"
    assert len(looks) < 50


def test_read_files_are_deleted_where_that_is_wished_and_refused_ones_kept(rig):
    source = rig.open(when_done="delete")
    rig.put(1)
    (capture,) = rig.offered()
    assert source.done(capture) == ""
    rig.put(2)
    rig.verdict(DAMAGED)
    assert rig.below("done") == []
    assert rig.below("failed") == ["page-2.png", "page-2.png.reason.txt"]
    assert os.listdir(rig.path / ".edge-ocr/work") == []


def test_note_says_why_in_one_line(rig):
    rig.open()
    rig.put(1, "two\nlines.png")
    place = rig.verdict(FrameError("damaged", "two\nlines.png: what a \udcff decoder said"))
    assert Path(f"{place}.reason.txt").read_text() == "damaged: two\\nlines.png: what a \\udcff decoder said\n"


def synced(monkeypatch) -> list[str]:
    """Note renaming and what is brought to the disk, from now on."""
    said = []
    rename, fsync = os.rename, os.fsync

    def sync(descriptor):
        said.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "rename", lambda *given, **more: (said.append("rename"), rename(*given, **more)))
    monkeypatch.setattr(os, "fsync", sync)
    return said


def test_verdict_is_on_the_disk_before_it_is_told(rig, monkeypatch):
    source = rig.open()
    rig.put(1)
    (capture,) = rig.offered()
    said = synced(monkeypatch)
    source.done(capture, DAMAGED)
    assert said == ["page-1.png.reason.txt", "rename", "failed", "work"]


def test_file_that_cannot_be_put_away_is_offered_again(rig, monkeypatch):
    source = rig.open()
    rig.put(1)
    (capture,) = rig.offered()
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fails(errno.ENOSPC))
        with pytest.raises(OSError, match="No space left"):
            source.done(capture)
    assert drained(source, rig) == []
    rig.clock.wait(400)
    (again,) = drained(source, rig)
    assert again.key == capture.key
    assert source.done(again)


def test_only_what_was_put_away_here_is_read_again(rig):
    source = rig.open()
    rig.put(1)
    place = rig.verdict()
    (rig.path / "outside.tmp").write_bytes(b"x")
    (rig.path / "done/folder").mkdir()
    for other in ("outside.tmp", "done/../outside.tmp", "done", "done/", "done/..", "done/none.png", ".edge-ocr/lock"):
        assert not source.reread(f"{rig.path}/{other}")
    assert not source.reread("done/page-1.png")
    assert source.reread(str(place))
    assert os.listdir(rig.path / "done") == ["folder"]


# ------------------------------------------------------------------------------------------------ the folder


def fails(number: int):
    def call(*given, **more):
        raise OSError(number, os.strerror(number))

    return call


def refusal(rig) -> str:
    with pytest.raises(ConfigError) as caught:
        rig.open()
    assert str(caught.value).startswith(str(rig.path))
    return str(caught.value)


def test_missing_folder_is_made_when_its_parent_is_there(rig):
    rig.open()
    assert rig.path.is_dir()
    lost = FolderRig(rig.path / "a/b")
    assert "make the folder it is to be in" in refusal(lost)


def test_relative_folder_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rig = FolderRig(Path("scans"))
    source = rig.open()
    rig.path = tmp_path / "scans"
    monkeypatch.chdir("/")
    rig.put(1)
    assert rig.verdict() == tmp_path / "scans/done/page-1.png"
    source.close()


def test_file_in_place_of_a_folder_is_named(rig, tmp_path):
    rig.path.write_bytes(b"")
    assert "must be a folder" in refusal(rig)
    rig.path.unlink()
    rig.path.mkdir()
    (rig.path / "done").write_bytes(b"")
    assert "must be folders and not links" in refusal(rig)
    (rig.path / "done").unlink()
    for name in ("done", "failed", ".edge-ocr"):
        shutil.rmtree(rig.path)
        rig.path.mkdir()
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (rig.path / name).symlink_to(tmp_path / "elsewhere")
        assert "must be folders and not links" in refusal(rig)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_link_put_in_the_way_leads_nowhere(rig, tmp_path):
    source = rig.open()
    rig.put(1)
    (capture,) = rig.offered()
    (tmp_path / "elsewhere").mkdir()
    shutil.rmtree(rig.path / "done")
    (rig.path / "done").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        source.done(capture)
    assert os.listdir(tmp_path / "elsewhere") == []


def test_folder_that_cannot_be_written_is_named(nobody):
    rig = FolderRig(nobody / "scans")
    rig.path.mkdir()
    rig.path.chmod(0o555)
    assert "this user must be able to write into it" in refusal(rig)
    rig.path.chmod(0o755)
    assert "this user must be able to write into it" in refusal(FolderRig(Path("/edge-ocr-scans")))


@pytest.mark.parametrize(("number", "advice"), [(errno.EXDEV, "in the file system of"), (errno.EROFS, "writable")])
def test_other_file_system_is_named(rig, monkeypatch, number, advice):
    monkeypatch.setattr(os, "rename", fails(number))
    assert advice in refusal(rig)
    assert rig.below(".") == [".edge-ocr", "done", "failed"]


def test_folder_is_taken_from_by_one_agent(rig):
    rig.open()
    assert "another edge-ocr" in refusal(FolderRig(rig.path))
    rig.open()


def test_share_without_locks_is_no_matter(rig, monkeypatch):
    monkeypatch.setattr("fcntl.flock", fails(errno.ENOLCK))
    rig.open()
    rig.put(1)
    assert rig.verdict()


def test_full_disk_is_waited_for_and_said_once(rig, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", fails(errno.ENOSPC))
        rig.path.parent.mkdir(exist_ok=True)
        source = rig.open()
        for _ in range(5):
            assert rig.look() == []
            assert 0 < source.next_s() <= POLL_S
    rig.settle()
    rig.put(1)
    assert len(rig.offered()) == 1
    rig.put(2)
    rig.settle()
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", fails(errno.ENOSPC))
        for _ in range(5):
            assert rig.look() == []
    assert len(rig.offered()) == 1
    full, back = f"scans: no files are taken: {rig.path}: No space left on device", "are taken from"
    said = [record.getMessage() for record in caplog.records]
    assert [full in line or back in line for line in said] == [True] * 4
    assert [full in line for line in said] == [True, False, True, False]


def test_folder_that_goes_away_and_comes_back_is_taken_from_again(rig, caplog):
    caplog.set_level(logging.INFO)
    source = rig.open()
    for number in range(2):
        rig.put(number)
    captures = rig.offered()
    rig.put(5)
    away = rig.path.with_name("away")
    rig.path.rename(away)
    rig.path.parent.chmod(0o700)
    rig.path.write_bytes(b"")  # so that it is not made anew
    for _ in range(4):
        assert rig.look() == []
    with pytest.raises(InputError):
        captures[0].load(AMPLE)
    with pytest.raises(OSError, match="the folder is away"):
        source.done(captures[0], InputError("gone"))
    rig.path.unlink()
    away.rename(rig.path)
    names = sorted(capture.name for capture in rig.offered())
    assert names == ["page-0.png", "page-5.png"]
    assert Path(source.done(captures[1])).exists()
    assert len(caplog.records) == 2


def test_empty_mount_point_is_not_taken_for_the_folder(rig):
    source = rig.open()
    rig.put(1)
    rig.settle()
    away = rig.path.with_name("away")
    rig.path.rename(away)
    rig.path.mkdir()
    assert rig.offered() == []
    shutil.rmtree(rig.path)
    away.rename(rig.path)
    assert len(rig.offered()) == 1
    assert source.filenos()


def test_rooms_that_people_delete_are_made_again(rig):
    source = rig.open()
    rig.put(1)
    (capture,) = rig.offered()
    shutil.rmtree(rig.path / "done")
    assert Path(source.done(capture)).exists()
    shutil.rmtree(rig.path / ".edge-ocr")
    rig.put(2)
    assert rig.verdict().exists()


# ------------------------------------------------------------------------------------------------ being told


def is_readable(source) -> bool:
    return bool(select.select(source.filenos(), [], [], 0)[0])


def test_system_tells_of_a_closed_and_of_a_moved_file(rig):
    source = rig.open()
    source.poll()
    assert not is_readable(source)
    with (rig.path / "page.png").open("wb") as file:
        file.write(numbered_png(1))
        file.flush()
        assert not is_readable(source)
    assert is_readable(source)
    assert source.poll() is None
    assert not is_readable(source)
    assert STABLE_S - 0.25 <= source.next_s() <= STABLE_S + 0.25
    rig.clock.wait(STABLE_S + 0.25)
    capture = source.poll()
    source.done(capture)
    assert not is_readable(source)
    hidden = rig.put(2, "page.tmp")
    source.poll()
    assert not is_readable(source)
    hidden.rename(rig.path / "page-2.png")
    assert is_readable(source)


def test_flood_of_reports_is_emptied(rig):
    source = rig.open()
    source.poll()
    for number in range(300):
        (rig.path / f"{number:0200}.tmp").touch()
    assert is_readable(source)
    source.poll()
    assert not is_readable(source)


def test_without_reports_the_folder_is_listed_and_that_is_said_once(rig, monkeypatch, caplog):
    monkeypatch.setattr("inotify_simple.INotify", fails(errno.EMFILE))
    source = rig.open()
    assert source.filenos() == ()
    source.poll()
    rig.put(1)
    assert source.poll() is None
    assert len(rig.offered()) == 1
    rig.source._watch.begin(str(rig.path))
    assert [record.getMessage() for record in caplog.records] == [
        f"{rig.path}: the system reports no changes ([Errno 24] Too many open files); it is listed at intervals only"
    ]


# ------------------------------------------------------------------------------------------------ many files


@pytest.fixture
def memory():
    """A folder without a disk behind it, for tests that sync thousands of times."""
    folder = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp", f"edge-ocr-many-{os.getpid()}")
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_ten_thousand_files_at_once(memory, monkeypatch):
    rig = FolderRig(memory / "scans")
    source = rig.open()
    for number in range(10_000):
        rig.put(number)
    looks = []
    look = inbox.Inbox.look
    monkeypatch.setattr(inbox.Inbox, "look", lambda *given: (looks.append(1), look(*given)))
    rig.settle()
    keys, names = set(), []
    while capture := source.poll():
        rig.clock.wait(0.01)
        keys.add(capture.key)
        names.append(capture.name)
        assert source.done(capture)
    assert len(keys) == len(names) == 10_000
    assert len(looks) < 50
    assert len(rig.below("done")) == 10_000
    assert rig.below(".") == [".edge-ocr", "done", "failed"]
    source.close()


def test_more_files_than_are_looked_at_together_are_all_taken(rig, monkeypatch):
    monkeypatch.setattr(inbox, "MAX_WAITING", 10)
    source = rig.open()
    for number in range(35):
        rig.put(number)
    taken = 0
    for _ in range(10):
        captures = rig.offered()
        assert len(captures) <= 20
        for capture in captures:
            source.done(capture)
            taken += 1
    assert taken == 35


def test_files_that_wait_for_their_end_hold_up_no_poll(rig, monkeypatch):
    source = rig.open()
    for number in range(500):
        (rig.path / f"{number}.txt").write_bytes(b"text")
    rig.put(1)
    rig.settle()
    opened = []
    look = is_complete
    monkeypatch.setattr("agent.sources.folder.source.is_complete", lambda *given: (opened.append(1), look(*given))[1])
    for _ in range(5):
        capture = source.poll()
        assert 0 < len(opened) <= 101
        opened.clear()
        assert capture or source.next_s() == 0
    capture = capture or source.poll()
    assert capture.name == "page-1.png"


# ------------------------------------------------------------------------------------------------ writers


@pytest.mark.slow
def test_whoever_writes_and_however_files_are_read_whole_and_once(memory):
    command = (sys.executable, "-m", "tests.folder_programs", "writers", "23", "1000", memory / "scans")
    ran = run(command)
    assert ran.status == 0, ran.err + ran.out
    (told,) = ran.rows
    assert told["written"] >= 1000
    assert (told["partial"], told["missed"], told["doubled"], told["left"]) == (0, 0, 0, 0), told


@pytest.mark.slow
def test_writers_are_hard_on_a_source_that_asks_for_no_end(memory):
    ran = run((sys.executable, "-m", "tests.folder_programs", "careless", "23", "100", memory / "scans"))
    (told,) = ran.rows
    assert ran.status == 1
    assert told["partial"] + told["unexpected"] > 5


# ------------------------------------------------------------------------------------------------ keeping


def handle(rig, count: int, error: FrameError | None = None, size: int = 0, first: int = 0) -> None:
    for number in range(first, first + count):
        (rig.path / f"page-{number}.png").write_bytes(numbered_png(number, padding=size))
        rig.verdict(error)
        time.sleep(0.01)  # their order is told by the file system's clock, and that is coarse


def days(rig, count: float, *, step: float = 0.25) -> None:
    """Let days go by on a running machine."""
    for _ in range(round(count / step)):
        rig.clock.wait(step * DAY_S)
        rig.source.tidy()


def test_handled_files_are_deleted_when_they_are_old(rig):
    rig.open(keep_days=10)
    handle(rig, 2)
    handle(rig, 1, DAMAGED, first=5)
    (rig.path / "done/folder").mkdir()
    days(rig, 9.5)
    assert rig.below("done") == ["folder", "page-0.png", "page-1.png"]
    days(rig, 1)
    assert rig.below("done") == ["folder"]
    assert rig.below("failed") == []


def test_time_of_writing_is_no_matter_for_keeping(rig):
    rig.open(keep_days=10)
    os.utime(rig.put(1), (FIRST_DAY_S + 9, FIRST_DAY_S + 9))
    rig.verdict()
    days(rig, 1)
    assert rig.below("done") == ["page-1.png"]


def test_oldest_go_when_there_are_too_many(rig):
    rig.open(keep_mb=1)
    handle(rig, 2, DAMAGED, size=300_000)
    handle(rig, 3, size=300_000, first=2)
    rig.source.tidy()
    assert rig.below("failed") == []
    assert rig.below("done") == ["page-2.png", "page-3.png", "page-4.png"]


def test_note_goes_with_its_file_and_not_before_it(rig):
    rig.open(keep_mb=1)
    handle(rig, 2, DAMAGED, size=(1 << 20) - len(numbered_png(0, padding=1)) - 10)
    handle(rig, 1, DAMAGED, first=7)
    rig.source.tidy()
    kept = rig.below("failed")
    assert kept == ["page-7.png", "page-7.png.reason.txt"]


def test_deleting_goes_step_by_step(rig):
    rig.open(keep_days=1)
    for number in range(STEP + 50):
        (rig.path / f"done/{number}").touch()
    rig.source.tidy()
    rig.clock.wait(2 * DAY_S)
    rig.source.tidy()
    assert len(rig.below("done")) == 50
    rig.clock.wait(60)
    rig.source.tidy()
    assert rig.below("done") == []
    for number in range(STEP - 1):  # a note goes with its file and does not count
        (rig.path / f"failed/{number}").touch()
        (rig.path / f"failed/{number}.reason.txt").touch()
    rig.clock.wait(2 * DAY_S)
    rig.source.tidy()
    assert rig.below("failed") == []


def test_files_that_people_take_away_meanwhile_are_no_matter(rig, monkeypatch):
    rig.open(keep_days=1)
    handle(rig, 3)
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda name, **more: (unlink(name, **more), unlink(name, **more)))
    days(rig, 2)
    assert rig.below("done") == []


def test_note_without_its_file_is_deleted_too(rig):
    rig.open(keep_days=1)
    handle(rig, 1, DAMAGED)
    (rig.path / "failed/page-0.png").unlink()
    days(rig, 2)
    assert rig.below("failed") == []


@pytest.mark.parametrize("restart", [False, True])
def test_jump_of_the_clock_deletes_nothing_at_once(rig, restart):
    rig.open(keep_days=30)
    handle(rig, 3)
    days(rig, 1)
    rig.clock.wall_s += 365 * DAY_S
    if restart:
        rig.open()
    rig.source.tidy()
    days(rig, 29 / SPEED - 1)
    assert len(rig.below("done")) == 3
    days(rig, 2)
    assert rig.below("done") == []


def test_clock_that_goes_back_deletes_nothing(rig):
    rig.open(keep_days=30)
    handle(rig, 2)
    rig.source.tidy()
    rig.clock.wall_s -= 10 * 365 * DAY_S
    days(rig, 40)
    assert len(rig.below("done")) == 2
    rig.clock.wall_s = 5.0
    rig.open()
    days(rig, 40)
    assert len(rig.below("done")) == 2


def test_files_handled_while_the_clock_is_behind_are_not_old(rig):
    rig.clock.wall_s += 100 * DAY_S
    rig.open(keep_days=30)
    rig.source.tidy()
    rig.clock.wall_s -= 100 * DAY_S
    handle(rig, 1)
    days(rig, 1)
    assert rig.below("done") == ["page-0.png"]


def test_files_of_a_time_before_the_clock_was_set_are_not_old(rig, monkeypatch):
    rig.open(keep_days=1)
    handle(rig, 1)
    monkeypatch.setattr("agent.sources.folder.retention.FIRST_DAY_S", time.time() + 10 * DAY_S)
    days(rig, 5)
    assert rig.below("done") == ["page-0.png"]
    assert time.time() > FIRST_DAY_S


def test_large_file_tells_of_progress_while_it_is_read_to_know_it_again(rig):
    """From a slow share that takes longer than the watchdog waits."""
    told: list[int] = []
    rig.path.mkdir(exist_ok=True)
    source = FolderSource(FolderConfig(name="scans", path=str(rig.path)), rig.clock, progress=lambda: told.append(1))
    pixels = np.random.default_rng(1).integers(0, 256, (1500, 1500, 3), np.uint8)
    assert cv2.imwrite(str(rig.path / "page.bmp"), pixels)
    rig.source = source
    rig.settle()
    assert source.poll() is not None
    assert len(told) == 7  # MB
