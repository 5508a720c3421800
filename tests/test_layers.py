"""Imports point up one list of layers only, and starting costs no more than it must."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import EDGE_OCR, ROOT, run, run_python

LAYERS = (
    (
        "errors",
        "clock",
        "durable",
        "heap",
        "check",
        "report",
        "lite",
        "documents",
        "sources.camera",
        "sources.folder",
        "sources.scanner",
        "sources.upload",
        "sources.upload.problems",
    ),
    ("page", "protocol", "strict", "notify", "heartbeat", "jpeg", "tiff", "documents.pdfium", "documents.search"),
    ("install", "install.places", "install.package", "pack"),
    ("install.system",),
    ("install.services", "install.release"),
    ("install.steps",),
    ("install.command",),
    ("pack.entry",),
    ("documents.press",),
    ("setting_types",),
    ("source_config",),
    ("config",),
    ("bundle", "header", "memory", "health", "mask", "lite.elf", "lite.nb", "lite.place", "lite.processor", "cgroup"),
    ("lite.attempt",),
    ("lite.binding", "lite.library", "ceiling", "hooks", "logbook", "documents.pdf"),
    (
        "image",
        "detect",
        "orient",
        "recognize",
        "engines",
        "sources.upload.connection",
        "sources.upload.answers",
        "sources.upload.tally",
    ),
    ("sources.upload.body", "sources.upload.listener", "sources.upload.metrics"),
    ("sources.upload.desk", "sources.upload.openapi"),
    ("sources.upload.front",),
    ("lite.build", "lite.measure", "pack.plan"),
    ("pack.archive", "pack.deb", "pack.wheels"),
    ("pack.tree",),
    ("pack.made",),
    ("pack.commands",),
    ("lite.commands",),
    ("documents.document",),
    (
        "models",
        "overlay",
        "trial",
        "sources",
        "sources.camera.glance",
        "sources.folder.identity",
        "sources.folder.inbox",
        "sources.folder.tree",
        "sources.folder.watch",
    ),
    ("sources.scanner.orders", "sources.scanner.scanimage"),
    (
        "mate",
        "sources.camera.feed",
        "sources.camera.gate",
        "sources.folder.pages",
        "sources.folder.retention",
        "sources.scanner.options",
    ),
    ("reader", "sources.camera.device", "sources.camera.eye", "sources.folder.source", "sources.scanner.spool"),
    ("sources.camera.source", "sources.scanner.source", "sources.upload.source"),
    ("sources.camera.adjust",),
    ("outbox.schema", "outbox.disk", "outbox.rows", "mqtt.tls", "collect.tables"),
    ("outbox.salvage", "outbox.retention", "outbox.life", "mqtt.connection", "collect.stores", "collect.inbox"),
    ("outbox.database", "mqtt.link"),
    ("outbox.verdicts", "outbox.backlog", "outbox.notes", "mqtt"),
    ("outbox.outbox", "collect.receipts"),
    ("outbox",),
    ("uplink.screen", "uplink.ledger", "collect.collector"),
    ("uplink.delivery", "uplink.orders", "uplink.presence", "collect"),
    ("uplink.post",),
    ("uplink.uplink",),
    ("uplink",),
    ("openers",),
    ("batch", "worker", "supervise", "status", "units", "alive"),
    ("check.finding", "check.golden", "scan"),
    (
        "check.credentials",
        "check.database",
        "check.disk",
        "check.heat",
        "check.machine",
        "check.models",
        "check.reading",
        "check.scanners",
        "check.services",
        "check.times",
        "check.together",
        "check.whose",
    ),
    ("check.broker", "check.certificates", "check.sources"),
    ("check.rights",),
    ("check.doctor", "report.masked", "report.scrub"),
    ("report.parts",),
    ("report.archive",),
    ("provision", "provision.folder", "provision.identity", "provision.papers", "provision.pem"),
    ("provision.box", "provision.keys"),
    ("provision.request",),
    ("provision.media",),
    ("provision.note",),
    ("provision.apply",),
    ("provision.commands",),
    ("service",),
    ("__main__",),
)
"""A module imports from the rows above its own only: siblings never import each other."""

CONVERTERS_MAY_IMPORT = {"errors", "page", "batch", "bundle", "image", "engines", "reader", "memory"}
RUNTIMES = {"paddle", "paddlelite", "onnxruntime"}
ONLY_IN = {
    "cv2": {"image", "detect", "overlay", "sources.camera.eye", "sources.camera.feed", "sources.camera.gate"},
    "psutil": set(),
    "click": {"__main__", "service", "lite.commands", "pack.commands", "provision.commands", "sources.camera.adjust"},
    "inotify_simple": {"sources.folder.watch"},
    "tomli": set(),
    "pypdfium2": set(),  # PDFium by ctypes, in a process of its own
    "paddle": {"engines"},
    "paddlelite": {"engines"},
    "onnxruntime": {"engines"},
    "paddleslim": set(),
    "PIL": set(),
    "paho": {"mqtt.connection"},
    "h11": {"sources.upload.connection"},
    "multipart": {"sources.upload.body"},
    "prometheus_client": {"sources.upload.metrics"},
    "psycopg": {"collect.stores"},
    "sqlite_utils": {"collect.stores"},
    "requests": set(),
    # The camera's is in a process of its own.
    "socket": {
        "check.broker",
        "mqtt.tls",
        "notify",
        "sources.camera.feed",
        "sources.upload.connection",
        "sources.upload.front",
        "sources.upload.listener",
    },
    "ssl": {"mqtt.link", "mqtt.tls", "provision.pem", "report.parts"},
    "urllib": {"sources.upload.front"},
    "http": set(),
}
"""Where the agent may import what, lazily or not; what reads pictures has no network."""


def files_of(package: str) -> dict[str, Path]:
    """Return the modules of a package by their dotted names below it; that of the package itself is left out."""
    home = ROOT / package
    names = {path: ".".join(path.relative_to(home).with_suffix("").parts) for path in sorted(home.rglob("*.py"))}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


AGENT = files_of("agent")
CONVERTERS = files_of("converters")
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
    """Return which modules of a package are among imported names; `from agent.outbox import rows` is the part alone."""
    known = {*AGENT, *CONVERTERS}
    below = {name.removeprefix(f"{package}.") for name in names if name.startswith(f"{package}.")}
    whole = {name for name in below if any(other.startswith(f"{name}.") for other in below)}  # told by its parts
    return {name if name in known else name.rpartition(".")[0] for name in below - whole} & known


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
    assert not {*RUNTIMES, "paddleslim", "PIL", "psycopg"} & loaded_by(f"import {every}")


def test_what_sees_pictures_has_no_network():
    # tests/system/test_privacy.py proves it of a running worker; this names the import that would break it. notify
    # opens an AF_UNIX socket where systemd asks for it: test_notify.py traces that it is the only one.
    assert not {"paho", "ssl", "socket", "psycopg", "h11", "multipart"} & loaded_by(
        "import agent.worker, agent.sources.folder.source, agent.sources.scanner.source, agent.reader"
    )


def test_what_has_the_network_sees_no_pictures():
    assert not {"cv2", "numpy", "PIL", "psutil", *RUNTIMES} & loaded_by("import agent.uplink")


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("read", "--help"), ("--version",)])
def test_help_and_version_are_shown(arguments):
    ran = run((*EDGE_OCR, *arguments))
    assert (ran.status, ran.err) == (0, "")
    assert "edge-ocr" in ran.out


def test_help_names_every_command():
    shown = run((*EDGE_OCR, "--help")).out
    assert all(
        f"\n  {command} " in shown
        for command in (
            "read",
            "run",
            "worker",
            "uplink",
            "collect",
            "camera",
            "status",
            "alive",
            "outbox",
            "check",
            "report",
            "scan",
            "units",
            "provision",
            "convert",
            "bench",
            "lite",
            "evaluate",
        )
    )


def test_installed_command_is_the_same():
    command = Path(sys.executable).with_name("edge-ocr")
    assert run((command, "--help")).out == run((*EDGE_OCR, "--help")).out


def test_lazy_imports_are_seen_too(tmp_path):
    source = "import os\n\ndef late():\n    import cv2.dnn\n    from agent import reader\n"
    path = tmp_path / "module.py"
    path.write_text(source)
    assert imported(path) == {"os", "cv2.dnn", "agent", "agent.reader"}
    assert modules_of("agent", imported(path)) == {"reader"}
