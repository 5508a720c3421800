"""Imports point up one list of layers only, and starting costs no more than it must."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import EDGE_OCR, ROOT, run, run_python

LAYERS = (
    ("errors",),
    ("page",),
    ("bundle", "header", "memory"),
    ("image", "detect", "orient", "recognize", "engines"),
    ("models", "trial"),
    ("mate",),
    ("reader",),
    ("batch",),
    ("__main__",),
)
"""A module imports from the rows above its own only: siblings never import each other."""

CONVERTERS_MAY_IMPORT = {"errors", "page", "bundle", "image", "engines", "reader", "memory"}
RUNTIMES = {"paddle", "paddlelite", "onnxruntime"}
ONLY_IN = {
    "cv2": {"image", "detect"},
    "psutil": {"memory", "mate"},
    "click": {"__main__"},
    "tomli": set(),
    "paddle": {"engines"},
    "paddlelite": {"engines"},
    "onnxruntime": {"engines"},
    "paddleslim": set(),
    "PIL": set(),
    "paho": set(),
    "requests": set(),
    "socket": set(),
    "urllib": set(),
    "http": set(),
}
"""Where the agent may import what, lazily or not; what reads pictures has no network."""

AGENT = {path.stem: path for path in sorted((ROOT / "agent").rglob("*.py")) if path.stem != "__init__"}
CONVERTERS = {path.stem: path for path in sorted((ROOT / "converters").rglob("*.py")) if path.stem != "__init__"}
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}


def imported(path: Path, nodes: Iterator[ast.AST] | None = None) -> set[str]:
    """Return the dotted names a file imports anywhere; `from a import b` gives `a` and `a.b`."""
    found: set[str] = set()
    for node in nodes or ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules_of(package: str, names: set[str]) -> set[str]:
    """Return which modules of a package are among imported names."""
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")} & {*AGENT, *CONVERTERS}


def test_every_module_has_its_layer():
    assert set(AGENT) == set(RANK), "give a new module its place in LAYERS"


@pytest.mark.parametrize("name", AGENT)
def test_module_imports_only_from_layers_above_its_own(name):
    wrong = {other for other in modules_of("agent", imported(AGENT[name])) if RANK[other] >= RANK[name]}
    assert not wrong


@pytest.mark.parametrize("name", AGENT)
def test_agent_never_imports_the_converters(name):
    tree = ast.parse(AGENT[name].read_text(encoding="utf-8"))
    assert not [module for module in imported(AGENT[name]) if module.split(".")[0] == "converters"]
    named = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if name != "__main__":  # which finds them by name when their commands are asked for
        assert not [text for text in named if text.startswith("converters.")]


@pytest.mark.parametrize("name", CONVERTERS)
def test_converters_import_only_the_agents_contract(name):
    assert modules_of("agent", imported(CONVERTERS[name])) <= CONVERTERS_MAY_IMPORT


@pytest.mark.parametrize("name", AGENT)
def test_foreign_packages_are_imported_only_where_they_belong(name):
    packages = {module.split(".")[0] for module in imported(AGENT[name])}
    assert not {package for package in packages & ONLY_IN.keys() if name not in ONLY_IN[package]}


@pytest.mark.parametrize("name", AGENT)
def test_no_runtime_is_imported_at_the_top_of_a_file(name):
    tree = ast.parse(AGENT[name].read_text(encoding="utf-8"))
    assert not RUNTIMES & {module.split(".")[0] for module in imported(AGENT[name], iter(tree.body))}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has after a statement."""
    ran = run_python(f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})")
    assert ran.status == 0, ran.err
    return set(ran.out.split())


def test_command_line_starts_without_vision_network_or_runtime():
    heavy = {"cv2", "numpy", "paddle", "paddlelite", "onnxruntime", "paho", "psutil", "PIL", "google"}
    assert not heavy & loaded_by("import agent.__main__")


def test_version_costs_nothing():
    assert loaded_by("import agent") - loaded_by("pass") == {"agent"}


def test_second_process_starts_without_vision():
    assert not {"cv2", "PIL", *RUNTIMES} & loaded_by("import agent.mate")


def test_whole_agent_imports_without_a_runtime():
    every = ", ".join(f"agent.{name}" for name in AGENT)
    assert not {*RUNTIMES, "paddleslim", "PIL", "paho"} & loaded_by(f"import {every}")


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("read", "--help"), ("--version",)])
def test_help_and_version_are_shown(arguments):
    ran = run((*EDGE_OCR, *arguments))
    assert (ran.status, ran.err) == (0, "")
    assert "edge-ocr" in ran.out


def test_help_names_every_command():
    shown = run((*EDGE_OCR, "--help")).out
    assert all(f"\n  {command} " in shown for command in ("read", "convert", "bench", "evaluate"))


def test_installed_command_is_the_same():
    command = Path(sys.executable).with_name("edge-ocr")
    assert run((command, "--help")).out == run((*EDGE_OCR, "--help")).out


def test_lazy_imports_are_seen_too(tmp_path):
    source = "import os\n\ndef late():\n    import cv2.dnn\n    from agent import reader\n"
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imported(path) == {"os", "cv2.dnn", "agent", "agent.reader"}
    assert modules_of("agent", imported(path)) == {"reader"}
