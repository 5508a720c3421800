"""What the tests of the native binding share: libraries made from the stub, and builds on them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from agent.bundle import ModelBundle
from tests.command import EDGE_OCR, ROOT, Ran, environment, run

STUB = ROOT / "tests" / "lite_stub"
LIBRARY = "libpaddle_light_api_shared.so"


def both(bundle: ModelBundle) -> ModelBundle:
    """Return a bundle whose detector is for two engines."""
    files = {"onnxruntime": ("det.onnx",), "paddlelite": ("det.nb",)}
    det = msgspec.structs.replace(bundle.manifest.det, files=files)
    return ModelBundle(bundle.path, msgspec.structs.replace(bundle.manifest, det=det), bundle.characters, bundle.digest)


def stub_library(folder: Path, *macros: str, compiler: str = "g++") -> Path:
    """Compile the stub of Paddle Lite's library and return where it is."""
    library = folder / "cxx" / "lib" / LIBRARY
    library.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-std=c++14", "-fPIC", "-shared", "-O1", *macros, str(STUB / "stub.cpp"), "-o", str(library)]
    subprocess.run([*command, f"-Wl,-soname,{LIBRARY}"], check=True, stdin=subprocess.DEVNULL)
    return library


def lite(cache: Path, *arguments: str | Path, **more: str) -> Ran:
    """Run `edge-ocr lite` with a cache of its own, and no build chosen by the environment."""
    return run((*EDGE_OCR, "lite", *arguments), environment(cache, EDGE_OCR_LITE="", **more))


def refusal(ran: Ran) -> str:
    """Return the one line with which a command has refused what it cannot do."""
    assert (ran.status, ran.out, ran.err.count("\n")) == (69, "", 1), ran
    return ran.err
