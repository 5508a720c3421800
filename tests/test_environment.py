"""What is installed is what the repository asks for."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import agent

ROOT = Path(__file__).parent.parent


def test_version_is_the_installed_one():
    assert metadata.version("edge-ocr-agent") == agent.__version__


def test_headless_opencv_is_the_only_opencv():
    # The GUI build shares the folder cv2 with it, wants display libraries and comes along with careless packages.
    names = {(dist.metadata["Name"] or "").lower().replace("_", "-") for dist in metadata.distributions()}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}


@pytest.mark.skipif(sys.version_info[:2] != (3, 10), reason="the constraints are those of Python 3.10")
def test_installed_packages_are_the_pinned_ones():
    rows = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(row.split("==") for row in rows if not row.startswith("#"))
    found = {name: _version(name) for name in pins}
    assert {name: version for name, version in found.items() if version not in (None, pins[name])} == {}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None  # a group that is not installed, or the build backend


@pytest.mark.parametrize("name", ["Makefile", "pyproject.toml", "constraints.txt", "scripts/setup.sh"])
def test_setup_names_no_host(name):
    assert not re.search(r"https?://", (ROOT / name).read_text(encoding="utf-8"))
