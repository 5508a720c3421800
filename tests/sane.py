"""SANE with its own scanner for tests: set up in a folder, so that nothing of the machine's scanners is met."""

from __future__ import annotations

from pathlib import Path

import pytest

DEVICE = "test:0"
SLOW = ("--read-delay=yes", "--read-delay-duration=200000")
"""Options that make a page of `PAGE_SIZE` at 50 dpi take a fifth of a second."""
PAGE_SIZE = "100x100"


def set_up(folder: Path, monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
    """Have SANE find so many scanners, each of A4, with a feeder that always has ten pages."""
    folder.mkdir(exist_ok=True)
    (folder / "dll.conf").write_text("test\n")
    (folder / "test.conf").write_text(
        f"number_of_devices {devices}\ngeometry_min 0\ngeometry_max 300\ngeometry_quant 1\n"
        "resolution_min 1\nresolution_max 1200\nresolution_quant 1\nresolution 50\nsource Flatbed\n"
    )
    monkeypatch.setenv("SANE_CONFIG_DIR", str(folder))


def tear_out(folder: Path) -> None:
    """Have SANE find no scanner any more."""
    (folder / "dll.conf").write_text("\n")
    (folder / "test.conf").write_text("number_of_devices 0\n")
