"""The box and the packages that these tests share."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.arm64.box import Box, Told, emulation, why_not
from tests.arm64.packages import pack
from tests.system import root, roots


class Installed(NamedTuple):
    """A box that a package is installed in.

    Attributes:
        box: to be copied, not to be written.
        package: the file.
        told: what its installer did.
    """

    box: Box
    package: Path
    told: Told


@pytest.fixture(scope="session")
def emulated() -> Iterator[None]:
    """Programs for arm64 run here."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as undo:
        try:
            undo.enter_context(emulation())
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"the kernel runs no programs for arm64: {error}")
        yield


@pytest.fixture(scope="session")
def bare(emulated: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A bare Debian 12 for arm64; to be copied."""
    try:
        archive = roots.with_python("arm64")
    except roots.NoRoot as error:
        pytest.skip(f"no Debian for arm64 can be made here, which needs a network: {error}")
    with root.unpacked(tmp_path_factory.mktemp("debian"), archive) as files:
        yield Box(tmp_path_factory.mktemp("bare"), (files,))


@pytest.fixture(scope="session")
def installed(bare: Box, portable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """A box with a package on ONNX Runtime."""
    work = tmp_path_factory.mktemp("installed")
    package = pack(work, portable_path)
    box = bare.copy(work / "box")
    return Installed(box, package, box.run("sh", box.give(package)))
