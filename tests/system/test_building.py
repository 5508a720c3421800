"""Making a package as docs/INSTALL.md says, from a fresh checkout: minutes, and the network for what is installed."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.command import ROOT
from tests.docs import shell


@pytest.mark.skipif(not os.environ.get("EVERY"), reason="installs, converts and packs anew: EVERY=1")
@pytest.mark.timeout(1800)
def test_package_is_made_as_the_document_says(tmp_path):
    clone = tmp_path / "checkout"
    subprocess.run(("git", "clone", "-q", ROOT, clone), check=True)
    environment = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    with (tmp_path / "log").open("w+b") as log:
        command = ("bash", "-ec", shell("docs/INSTALL.md", "build"))
        done = subprocess.run(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.seek(0)
        said = log.read().decode(errors="replace")
    assert done.returncode == 0, said[-4000:]
    assert "for aarch64, Python 3.11, ONNX Runtime" in said  # what --info tells
    (debian,) = (clone / "build").glob("edge-ocr_*_arm64.deb")
    fields = subprocess.run(("dpkg-deb", "--field", debian, "Architecture"), capture_output=True, check=True)
    assert fields.stdout == b"arm64\n"
