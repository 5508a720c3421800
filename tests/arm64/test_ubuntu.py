"""A package for Ubuntu 22.04 (JetPack 6), by what its files ask for.

No Debian has Python 3.10 for arm64 (11 has 3.9, 12 has 3.11), and so there is no root to run it in. What differs from
the package that does run are the wheels: that they are for this processor and Python, and ask for no newer libraries,
is seen here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.lite.elf import machine_of
from tests.arm64.packages import pack, unpacked

UBUNTU_22_04 = {"GLIBC": (2, 35), "GLIBCXX": (3, 4, 30), "CXXABI": (1, 3, 13)}
_WANTED = re.compile(rb"\0(GLIBC|GLIBCXX|CXXABI)_([0-9]+(?:\.[0-9]+)+)(?=\0)")

pytestmark = [pytest.mark.arm64, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def libraries(portable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every shared object of the package."""
    work = tmp_path_factory.mktemp("ubuntu")
    release = unpacked(pack(work, portable_path, python="3.10"), work / "tree")
    return sorted(path for path in release.folder.rglob("*") if re.search(r"\.so(\.|$)", path.name))


def test_package_for_python_3_10_is_for_this_processor_and_that_python(libraries):
    assert len(libraries) > 20
    assert {machine_of(path) for path in libraries} == {"aarch64"}
    tags = {tag.group(1) for path in libraries if (tag := re.search(r"\.cpython-(\d+)-", path.name))}
    assert tags == {"310"}


def test_package_for_python_3_10_asks_for_nothing_newer_than_ubuntu_has(libraries):
    found: dict[str, tuple[int, ...]] = {}
    for path in libraries:
        for name, version in _WANTED.findall(path.read_bytes()):
            number = tuple(map(int, version.decode().split(".")))
            found[name.decode()] = max(number, found.get(name.decode(), ()))
    assert found["GLIBC"] >= (2, 17), "nothing was found: the names are looked for in the wrong way"
    assert all(number <= UBUNTU_22_04[name] for name, number in found.items()), found
