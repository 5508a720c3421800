"""A release's Python packages: resolved and unpacked for the box's processor and Python by uv, then thinned out.

pip takes the markers of requirements from the machine that it runs on; uv takes those of the target.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.errors import PackageError
from agent.pack.plan import Plan

GLIBC = "manylinux_2_35"
"""Wheels that run with glibc 2.35 (Ubuntu 22.04), and so with 2.36 (Debian 12)."""
TIMEOUT_S = 1800
OWN = ("agent", "converters")

UNUSED = {
    "pip",  # of sqlite-utils, for its plug-ins
    *("coloredlogs", "flatbuffers", "humanfriendly", "mpmath", "packaging", "protobuf", "sympy"),  # onnxruntime's tools
    "tzdata",  # the system has its own
}
"""Packages that others ask for and that nothing on the box imports (DECISIONS, "What a package leaves out")."""
_FOLDERS = {"__pycache__", "include", "tests"}
_PLACES = (
    *("bin", "share", "cv2/data", "numpy/array_api", "numpy/core/lib", "numpy/distutils", "numpy/doc", "numpy/f2py"),
    *("numpy/random/lib", "onnxruntime/datasets", "onnxruntime/quantization", "onnxruntime/tools"),
    *("onnxruntime/transformers", "pypdfium2_cli"),
)
_SUFFIXES = {".a", ".h", ".hpp", ".pxd", ".pyc", ".pyi", ".pyx"}
_NOTES = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"}
"""What installers write about themselves, paths and times among it."""


def install(plan: Plan, checkout: Path, site: Path, work: Path) -> None:
    """Fill a site-packages folder for the plan's processor and Python.

    Args:
        plan: what the package will be.
        checkout: where this program's sources are.
        site: the folder to fill.
        work: a folder for what is needed meanwhile.

    Raises:
        PackageError: uv is missing, or finds no wheels.
    """
    wheel = _own_wheel(checkout, work)
    needed = _resolve(plan, checkout, work)
    listed = work / "requirements.txt"
    listed.write_text("".join(f"{line}\n" for line in needed))
    more = [plan.order.wheel] if plan.order.wheel is not None else []
    _uv(("pip", "install", "--no-deps", "--link-mode", "copy", "--target", site, *_for(plan), "-r", listed, *more))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    thin_out(site)


def _own_wheel(checkout: Path, work: Path) -> Path:
    """Build this program's wheel; the same sources give the same bytes."""
    limits = ("--build-constraints", checkout / "constraints.txt")
    _uv(("build", "--wheel", "--out-dir", work / "wheel", "--python", sys.executable, *limits, checkout))
    return next((work / "wheel").glob("*.whl"))


def _resolve(plan: Plan, checkout: Path, work: Path) -> list[str]:
    """Return the exact versions that the box needs, one "name==version" each."""
    output = work / "resolved.txt"
    extra = ("--extra", "onnx") if plan.engine == "onnxruntime" else ()
    limits = ("-c", checkout / "constraints.txt", "--no-header", "--no-annotate", "--output-file", output)
    _uv(("pip", "compile", checkout / "pyproject.toml", *extra, *limits, *_for(plan)))
    lines = output.read_text(encoding="utf-8").split("\n")
    unused = UNUSED if plan.engine == "paddlelite" and plan.order.wheel is None else {*UNUSED, "paddlelite"}
    return [line for line in lines if line and not line.startswith("#") and line.split("==")[0] not in unused]


def _for(plan: Plan) -> tuple[str, ...]:
    platform = ("--python-platform", f"{plan.order.target}-{GLIBC}")
    return (*platform, "--python-version", plan.order.python, "--only-binary", ":all:", "--python", sys.executable)


def _uv(command: Sequence[str | Path]) -> None:
    """Run uv.

    Raises:
        PackageError: it is missing, fails, or takes too long.
    """
    words = (_find_uv(), *command, "--no-config", "--system-certs", "--quiet", "--color", "never")
    try:
        ran = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PackageError(f"uv: {error}") from error
    if ran.returncode:
        said = " ".join(ran.stderr.decode(errors="replace").split()) or f"status {ran.returncode}"
        raise PackageError(f"uv {' '.join(map(str, command[:2]))} fails: {re.sub('[×╰─▶├]+ ', '', said)}")


def _find_uv() -> str:
    """Return where uv is: in this environment, or on the path."""
    beside = Path(sys.executable).with_name("uv")
    if importlib.util.find_spec("uv") is not None and beside.exists():
        return str(beside)
    found = shutil.which("uv")
    if found is None:
        raise PackageError("uv is missing: pip install 'edge-ocr-agent[pack]'")
    return found


def thin_out(site: Path) -> None:
    """Take away what a box never uses: tests, headers, stubs, tools; of installers' notes all, licences stay."""
    for place in _PLACES:
        shutil.rmtree(site / place, ignore_errors=True)
    for unused in (site / "onnxruntime" / "capi").glob(
        "libonnxruntime.so*"
    ):  # for programs in C; Python's part has its own
        unused.unlink()
    if (site / "cv2").is_dir():  # imported by name, with cascades for faces in it
        (site / "cv2" / "data").mkdir()
        (site / "cv2" / "data" / "__init__.py").write_text("")
    for top in sorted(site.iterdir()):
        if top.name not in OWN:
            _thin_out(top)


def _thin_out(top: Path) -> None:
    for folder, names, files in os.walk(top, topdown=True):
        for name in _FOLDERS & set(names):
            shutil.rmtree(os.path.join(folder, name))
        names[:] = [name for name in names if name not in _FOLDERS]
        for name in _unused(files, in_notes=folder.endswith(".dist-info")):
            os.unlink(os.path.join(folder, name))


def _unused(files: Iterable[str], *, in_notes: bool) -> list[str]:
    return [name for name in files if os.path.splitext(name)[1] in _SUFFIXES or (in_notes and name in _NOTES)]
