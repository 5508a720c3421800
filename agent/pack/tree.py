"""Puts a release together: Python packages, models, units, settings, sample page, installer and manifest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from agent import __version__
from agent.bundle import MANIFEST as BUNDLE
from agent.bundle import sha256_of
from agent.errors import PackageError
from agent.install.package import MANIFEST, FileEntry, Package, encode
from agent.lite import library
from agent.pack import wheels
from agent.pack.plan import NAMES, Plan

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).with_name("sample.png")
"""Ten lines: enough to tell, and read in seconds on a slow board. `scripts/draw_samples.py` draws it."""
EPOCH = 1_767_225_600
"""The time of all files where SOURCE_DATE_EPOCH says none: 2026-01-01."""
COMPILE_TIMEOUT_S = 1200
LAUNCHER = """#!/opt/edge-ocr/current/venv/bin/python
from agent.__main__ import main

main()
"""
"""The command of a release: it belongs to whichever release is the current one."""


def epoch() -> int:
    """Return the time of all files in a package, Unix seconds.

    Raises:
        PackageError: SOURCE_DATE_EPOCH is no time.
    """
    said = os.environ.get("SOURCE_DATE_EPOCH", "")
    if said and not said.isdecimal():
        raise PackageError(f"SOURCE_DATE_EPOCH is {said!r}, and not a number of seconds")
    return min(int(said), int(time.time())) if said else EPOCH


def build(plan: Plan, tree: Path, work: Path) -> Package:
    """Put a release together in an empty folder and return its manifest, which is in it too.

    Raises:
        AgentError: something that it needs is missing.
    """
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise PackageError("packages are made in a checkout of the sources: run `edge-ocr pack` there")
    _environment(plan, tree / "venv", work)
    _models(plan, tree / "bundle")
    shutil.copytree(CHECKOUT / "systemd", tree / "systemd")
    shutil.copyfile(plan.order.config or CHECKOUT / "systemd" / "agent.toml", tree / "agent.toml")
    shutil.copyfile(SAMPLE, tree / "sample.png")
    shutil.copyfile(CHECKOUT / "agent" / "pack" / "entry.py", tree / "install.py")
    shutil.copyfile(CHECKOUT / "README.md", tree / "README.md")
    package = describe(plan, tree)
    (tree / MANIFEST).write_bytes(encode(package))
    return package


def describe(plan: Plan, tree: Path) -> Package:
    """Return the manifest of what is in a folder."""
    files, links = {}, {}
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.is_file():
            executable = name.startswith("venv/bin/")
            files[name] = FileEntry(sha256_of(path), path.stat().st_size, executable)
    about = (__version__, plan.order.target, plan.order.python, NAMES[plan.engine], plan.bundle.label)
    return Package(*about, epoch(), _sample_lines(), files, links)


def _environment(plan: Plan, venv: Path, work: Path) -> None:
    """Make a virtual environment for the box: its Python is there already."""
    site = venv / "lib" / f"python{plan.order.python}" / "site-packages"
    site.mkdir(parents=True)
    wheels.install(plan, CHECKOUT, site, work)
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to(f"/usr/bin/python{plan.order.python}")
    (venv / "bin" / "python3").symlink_to("python")
    (venv / "bin" / "edge-ocr").write_text(LAUNCHER)
    settings = ("home = /usr/bin", "include-system-site-packages = false", f"version = {plan.order.python}")
    (venv / "pyvenv.cfg").write_text("".join(f"{line}\n" for line in settings))
    if plan.engine == "binding":
        _binding(plan, venv / "share" / "edge-ocr" / "lite", work)


def _binding(plan: Plan, folder: Path, work: Path) -> None:
    """Compile the native binding beside its library, in a process of its own: the user's own choice stays.

    Raises:
        PackageError: it cannot be compiled, or does not work.
    """
    lib = plan.order.lite_lib or _x86_library()
    options = ("--lib", lib.resolve(), "--target", plan.order.target, "--output", folder)
    environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
    ran = subprocess.run(
        (sys.executable, "-m", "agent", "lite", "build", *options),
        cwd=CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMPILE_TIMEOUT_S,
    )
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise PackageError(lines[-1].removeprefix("edge-ocr: "))


def _x86_library() -> Path:
    found = library.installed()
    return found.path if found is not None else library.fetch()


def _models(plan: Plan, folder: Path) -> None:
    """Copy a bundle's files; what else lies beside them stays behind."""
    folder.mkdir()
    for name in (BUNDLE, *plan.bundle.manifest.files):
        shutil.copyfile(plan.bundle.path / name, folder / name)


def _sample_lines() -> tuple[str, ...]:
    """Return what is printed on the sample page."""
    return tuple(SAMPLE.with_suffix(".txt").read_text(encoding="utf-8").splitlines())
