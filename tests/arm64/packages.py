"""Packages to install: as `edge-ocr pack` makes them, and such that do not work."""

from __future__ import annotations

from pathlib import Path

from agent.bundle import sha256_of
from agent.install import package as packages
from tests.arm64.box import PYTHON
from tests.command import EDGE_OCR, ROOT, environment, run
from tests.pack_kit import Release

LIMIT_MB = 512
"""Emulated, the process has 192 MB with the models loaded, and 101 MB of them are the program's own: the rest is the
emulator, with the code that it has translated. So the default limit does on a board, and does not here."""


def settings(folder: Path) -> Path:
    """Return the sample's settings with a memory limit that the emulator fits in."""
    file = folder / "agent.toml"
    text = (ROOT / "systemd" / "agent.toml").read_text(encoding="utf-8")
    assert "#limit_mb = 256 " in text
    file.write_text(text.replace("#limit_mb = 256 ", f"limit_mb = {LIMIT_MB} "), encoding="utf-8")
    return file


def pack(folder: Path, bundle: Path, *more: str | Path, python: str = PYTHON) -> Path:
    """Make a package for the box; quickly, not small."""
    output = folder / "edge-ocr-aarch64.run"
    what = ("--target", "aarch64", "--python", python, "--bundle", bundle, "--config", settings(folder), "--level", "0")
    ran = run((*EDGE_OCR, "pack", *what, *more, "-o", output), environment(folder / "cache"))
    assert ran.status == 0, ran.err
    return output


def unpacked(package: Path, folder: Path) -> Release:
    """Unpack a package with its own script."""
    ran = run(("sh", package, "--extract", folder))
    assert ran.status == 0, ran.err
    return Release(folder, packages.read(folder))


def cut_short(release: Release, model: str) -> dict[str, str | bytes | None]:
    """Return a model without its end, and a bundle's manifest that takes it for whole: what a bad conversion leaves."""
    file, manifest = release.folder / "bundle" / model, release.folder / "bundle" / "bundle.toml"
    content, spoilt = file.read_bytes()[:-100_000], release.folder.with_name("spoilt")
    spoilt.write_bytes(content)
    text = manifest.read_text(encoding="utf-8").replace(sha256_of(file), sha256_of(spoilt))
    text = text.replace(str(file.stat().st_size), str(len(content)))
    return {f"bundle/{model}": content, "bundle/bundle.toml": text}
