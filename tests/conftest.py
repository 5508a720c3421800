"""What many tests share: the converted bundles, and the command line run for real."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from agent.bundle import ModelBundle
from tests.command import EDGE_OCR, environment, run

# Tests name the build of the native binding that they mean: none is taken from the developer's cache.
os.environ["EDGE_OCR_LITE"] = "off"

BUILD = Path(__file__).parent.parent / "models" / "build"
LONGEST = (
    "test_endurance.py",
    "test_compression.py",
    "test_packages.py",
    "test_torture.py",
    "test_one_cycle.py",
    "test_installer.py",
    "test_outbox_syscalls.py",
    "test_debian_package.py",
    "test_uplink_faults.py",
    "test_provision.py",
)
"""Below tests/system, the longest first."""

# In the background of a shell this process ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples must not depend on the day's luck, and a busy machine is no failure. For luck: --hypothesis-profile=deep
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=2000)
settings.load_profile("suite")


def built(name: str) -> Path:
    """Return a converted bundle's directory; without it nothing can be tested."""
    path = BUILD / name
    if not (path / "bundle.toml").is_file():
        target = name.split("-")[2]
        pytest.fail(f"{path} is missing: .venv/bin/edge-ocr convert models/ppocr-v4.toml --target {target}")
    return path


@pytest.fixture(scope="session")
def bundle_path() -> Path:
    return built("ppocr-v4-x86_64-fp32")


@pytest.fixture(scope="session")
def portable_path() -> Path:
    return built("ppocr-v4-portable-fp32")


@pytest.fixture(scope="session")
def lite_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the native binding, built on the x86 wheel's library."""
    folder = tmp_path_factory.mktemp("lite")
    ran = run((*EDGE_OCR, "lite", "build", "--output", folder / "build"), environment(folder / "cache"))
    assert ran.status == 0, ran.err
    return folder / "build"


@pytest.fixture(scope="session")
def bundle(bundle_path: Path) -> ModelBundle:
    return ModelBundle.load(bundle_path)


@pytest.fixture(scope="session")
def portable(portable_path: Path) -> ModelBundle:
    return ModelBundle.load(portable_path)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory of this run: no test relies on, or leaves, anything in the user's."""
    return tmp_path_factory.mktemp("cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests below tests/system, and run them last: they take minutes, and a failure elsewhere is seen first.

    The simulator of power cuts also makes this process large, and a child's peak memory begins at its parent's size.
    """
    for item in items:
        if "system" in item.path.relative_to(Path(__file__).parent).parts:
            item.add_marker("system")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))
    # The longest first, so that no process is left with one of them at the end.
    longest = {name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            longest.get(item.path.name, len(LONGEST)) + 1 if item.get_closest_marker("system") is not None else 0
        )
    )


@pytest.fixture
def rng(monkeypatch: pytest.MonkeyPatch) -> np.random.Generator:
    """Random numbers, those of small graphs too, that do not depend on the tests before."""
    from tests import small_graphs

    own = np.random.default_rng(1)
    monkeypatch.setattr(small_graphs, "RNG", own)
    return own
