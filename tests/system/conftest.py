"""Bare boxes to install packages in, and small releases to install."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pack_kit import Release, changed, light
from tests.system import root, roots
from tests.system.installed import NEW
from tests.system.root import Root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bare Debian 12, unpacked."""
    if reason := root.why_not():
        pytest.skip(reason)
    with root.unpacked(tmp_path_factory.mktemp("debian"), roots.with_python()) as folder:
        yield folder


@pytest.fixture
def bare(files: Path, tmp_path: Path) -> Iterator[Root]:
    """A box with nothing of ours."""
    with Root(tmp_path / "box", files) as box:
        yield box


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for package files."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release with a stub for the agent."""
    return light(tmp_path_factory.mktemp("old") / "tree")


@pytest.fixture(scope="module")
def first(old: Release, shelf: Path) -> Path:
    """Its package."""
    return old.run_file(shelf)


@pytest.fixture(scope="module")
def new_release(old: Release, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The one after it."""
    return changed(old, tmp_path_factory.mktemp("new") / "tree", NEW, {})


@pytest.fixture(scope="module")
def new(new_release: Release, shelf: Path) -> Path:
    """Its package."""
    return new_release.run_file(shelf)
