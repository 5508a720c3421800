"""A package's content: its manifest, and unpacking it so that nothing is used that is not as the manifest says."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from agent.errors import PackageError

MANIFEST = "package.json"
SCHEMA = 1
MAX_MANIFEST_BYTES = 4 << 20
_DAMAGED = "copy the package again"


class FileEntry(NamedTuple):
    """What a file of a package must be."""

    sha256: str
    bytes: int
    executable: bool = False


class Package(NamedTuple):
    """The content of `package.json`.

    Attributes:
        version: of the agent.
        target: processor, as `platform.machine()` names it.
        python: "3.10" or "3.11".
        engine: what runs the models, for people.
        bundle: label of the model bundle.
        epoch: time of all files, Unix seconds.
        sample: lines that are printed on the sample page, top to bottom.
        files: by path below the release.
        links: targets of links by path.
        digest: sha256 of `package.json` itself.
    """

    version: str
    target: str
    python: str
    engine: str
    bundle: str
    epoch: int
    sample: tuple[str, ...]
    files: dict[str, FileEntry]
    links: dict[str, str]
    digest: str = ""

    @property
    def bytes(self) -> int:
        """What its files take, unpacked."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def interpreter(self) -> str:
        """Where the Python must be that it runs on."""
        return f"/usr/bin/python{self.python}"

    @property
    def about(self) -> str:
        """What it is, in a line."""
        return f"edge-ocr {self.version} for {self.target}, Python {self.python}, {self.engine}, models {self.bundle}"


def encode(package: Package) -> bytes:
    """Return the content of `package.json`: the same package gives the same bytes."""
    record: dict[str, Any] = {"schema": SCHEMA, **package._asdict()}
    del record["digest"]
    record["files"] = {path: entry._asdict() for path, entry in sorted(package.files.items())}
    record["links"] = dict(sorted(package.links.items()))
    return json.dumps(record, ensure_ascii=False, indent=1).encode() + b"\n"


def decode(raw: bytes) -> Package:
    """Return the package that `package.json` describes.

    Raises:
        PackageError: it is damaged, of a newer format, or names files outside of the release.
    """
    try:
        record = json.loads(raw)
        schema = record.pop("schema")
        if schema > SCHEMA:
            raise PackageError(f"package format {schema} is newer than this installer knows: use the package's own")
        record["files"] = {_inside(path): FileEntry(**entry) for path, entry in record["files"].items()}
        record["links"] = {_inside(path): str(target) for path, target in record["links"].items()}
        record["sample"] = tuple(record["sample"])
        return Package(**record, digest=hashlib.sha256(raw).hexdigest())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{MANIFEST}: damaged ({error}): {_DAMAGED}") from error


def read(folder: Path) -> Package:
    """Return the package that was unpacked into a folder.

    Raises:
        PackageError: there is none, or its manifest is damaged.
    """
    try:
        with (folder / MANIFEST).open("rb") as file:
            return decode(file.read(MAX_MANIFEST_BYTES))
    except OSError as error:
        raise PackageError(f"{folder / MANIFEST}: {error.strerror}: no complete release is there") from error


def verify(folder: Path) -> Package:
    """Return the package in a folder after looking at every byte of it.

    Raises:
        PackageError: a file is missing or another than its manifest says.
    """
    package = read(folder)
    for path, entry in package.files.items():
        try:
            with (folder / path).open("rb") as file:
                found = _digest(file)
        except OSError as error:
            raise PackageError(f"{folder / path}: {error.strerror}") from error
        if found != entry.sha256:
            raise PackageError(f"{folder / path}: damaged (sha256 differs from {MANIFEST})")
    for path, target in package.links.items():
        if not os.path.islink(folder / path) or os.readlink(folder / path) != target:
            raise PackageError(f"{folder / path}: is not the link that {MANIFEST} names")
    return package


def unpack(stream: IO[bytes], folder: Path | None, tell: Callable[[float], None] = lambda share: None) -> Package:
    """Unpack a package, or only look whether it could be.

    Args:
        stream: the compressed archive, from its beginning.
        folder: an empty one; None to write nothing.
        tell: is called with the share that is done, 0 to 1.

    Raises:
        PackageError: anything in it is not as its manifest says.
        OSError: it cannot be written.
    """
    try:
        with lzma.open(stream) as content, tarfile.open(fileobj=content, mode="r|") as archive:
            return _unpack(archive, folder, tell)
    except (tarfile.TarError, lzma.LZMAError, EOFError, UnicodeDecodeError) as error:
        raise PackageError(f"the package is damaged ({error}): {_DAMAGED}") from error


def _unpack(archive: tarfile.TarFile, folder: Path | None, tell: Callable[[float], None]) -> Package:
    first = archive.next()
    raw = _content(archive, first).read(MAX_MANIFEST_BYTES) if first is not None and first.name == MANIFEST else b""
    package = decode(raw)
    waiting: dict[str, FileEntry | str] = {**package.files, **package.links}
    done = 0
    if folder is not None:
        _write(folder / MANIFEST, io.BytesIO(raw), package.epoch, executable=False)
    while (member := archive.next()) is not None:
        expected = waiting.pop(member.name, None)
        if expected is None:
            raise PackageError(f"{member.name}: is in the package and not in its manifest: {_DAMAGED}")
        done += member.size
        _take(archive, member, expected, folder, package.epoch)
        tell(done / max(package.bytes, 1))
    if waiting:
        raise PackageError(f"{min(waiting)}: is missing from the package: {_DAMAGED}")
    return package


def _take(
    archive: tarfile.TarFile, member: tarfile.TarInfo, expected: FileEntry | str, folder: Path | None, epoch: int
) -> None:
    """Take one member, if it is what is expected."""
    if isinstance(expected, str):
        if not member.issym() or member.linkname != expected:
            raise PackageError(f"{member.name}: is not the link that {MANIFEST} names: {_DAMAGED}")
        if folder is not None:
            (folder / member.name).parent.mkdir(parents=True, exist_ok=True)
            os.symlink(expected, folder / member.name)
        return
    content = _content(archive, member)
    if folder is None:
        found = _digest(content)
    else:
        found = _write(folder / member.name, content, epoch, executable=expected.executable)
    if found != expected.sha256:
        raise PackageError(f"{member.name}: damaged (sha256 differs from {MANIFEST}): {_DAMAGED}")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member) if member.isfile() else None
    if content is None:
        raise PackageError(f"{member.name}: is not a file: {_DAMAGED}")
    return content


def _write(path: Path, content: IO[bytes], epoch: int, *, executable: bool) -> str:
    """Write a file and return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        found = _digest(content, file)
        os.fchmod(file.fileno(), 0o755 if executable else 0o644)
    os.utime(path, (epoch, epoch))
    return found


def _digest(content: IO[bytes], copy: IO[bytes] | None = None) -> str:
    digest = hashlib.sha256()
    while piece := content.read(1 << 20):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return digest.hexdigest()


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path in (".", MANIFEST):
        raise ValueError(f"{path!r} leaves the package")
    return path


def remove(folder: Path) -> None:
    """Remove a folder that no link leads to; one that is not there is no error."""
    shutil.rmtree(folder, ignore_errors=True)
