"""Run a bundle's models once in a child process before they are trusted in this one.

A damaged or foreign `.nb` does not raise: it aborts the process inside the native library. A bundle that passed is
remembered by the hash of its manifest, which names the hashes of its files.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from agent import __version__
from agent.bundle import MODELS, ModelBundle
from agent.engines import EngineSettings, choose_engine, open_engine
from agent.errors import AgentError, BundleError
from agent.lite import place

TIMEOUT_S = 120


def ensure_tried(bundle: ModelBundle, settings: EngineSettings) -> None:
    """Make sure every model of a bundle has loaded and run on this machine, in a child process.

    Raises:
        BundleError: a model aborts the runtime, or does not have the shape the manifest says.
        EngineError: no runtime for this bundle.
    """
    engine = choose_engine(bundle, settings.engine)
    mark = _mark(bundle, engine)
    if os.path.exists(mark):
        return
    command = [sys.executable, "-m", "agent.trial", str(bundle.path.resolve()), engine]
    # -m looks in the working directory first, and the user's may hold an `agent` of its own.
    home = Path(__file__).resolve().parents[1]
    try:
        child = subprocess.run(command, cwd=home, capture_output=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"{bundle.path}: its models did not answer within {TIMEOUT_S} s on {engine}") from error
    if child.returncode != 0:
        last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
        raise BundleError(f"{bundle.path}: its models do not run on {engine} here ({how}: {last[0]})")
    place.remember(mark)


def _mark(bundle: ModelBundle, engine: str) -> Path:
    """Return the file that says this bundle has run on this engine's version, with this program's version."""
    what = f"{bundle.digest} {bundle.path.resolve()} {engine} {_installed(engine)} {__version__}"
    return place.mark(what)


def _installed(engine: str) -> str:
    """Return what changes when another version of a runtime is installed; asking for its version takes 12 ms."""
    found = importlib.util.find_spec(engine)
    origin = found.origin if found is not None else None
    package = f"{origin} {os.stat(origin).st_mtime_ns}" if origin and os.path.exists(origin) else "unknown"
    return f"{package} {place.stamp(place.chosen())}" if engine == "paddlelite" else package


def run_models(bundle: ModelBundle, engine: str) -> None:
    """Run every model on its smallest input and check the shape of what comes out.

    Raises:
        BundleError: an output has another shape than the manifest promises.
    """
    import numpy as np

    manifest = bundle.manifest
    small = manifest.det.multiple
    inputs = {"det": (small, small), "rec": (manifest.rec.height, 320)}
    wanted: dict[str, tuple[int, ...]] = {"det": (1, 1, small, small), "rec": (1, -1, manifest.rec.classes)}
    if manifest.cls is not None:
        inputs["cls"], wanted["cls"] = (manifest.cls.height, manifest.cls.width), (1, 2)
    for model in MODELS:
        if model not in inputs:
            continue
        loaded = open_engine(bundle, model, EngineSettings(engine=engine))
        shape = loaded.run(np.zeros((1, 3, *inputs[model]), np.float32)).shape
        loaded.close()
        if len(shape) != len(wanted[model]) or any(w not in (-1, s) for w, s in zip(wanted[model], shape, strict=True)):
            raise BundleError(f"{model}: gives {shape}, the manifest promises {wanted[model]}")


if __name__ == "__main__":
    try:
        run_models(ModelBundle.load(Path(sys.argv[1])), sys.argv[2])
    except AgentError as problem:
        sys.exit(str(problem))
