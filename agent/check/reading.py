"""What can be said of the models, in a process of its own: `python -m agent.check.reading SETTINGS FOLDER`.

They are loaded as the worker does, and read a page whose text is known. Here they cannot end the check, hang it or
change what is measured. Each finding is a line of JSON on standard output.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec

from agent import cgroup, memory
from agent.bundle import ModelBundle
from agent.check import golden
from agent.check.finding import Finding
from agent.config import AgentConfig, ReaderConfig, load
from agent.engines import choose_engine
from agent.errors import AgentError, ExitCode
from agent.image import load_frame
from agent.lite import binding, place
from agent.openers import PageReader, open_reader
from agent.source_config import CameraConfig, ScannerConfig, SourceConfig
from agent.sources.camera import device as camera_device
from agent.sources.scanner import options as scan_options

_PACKAGES = {"paddlelite": "paddlelite", "onnxruntime": "onnxruntime", "paddle": "paddlepaddle"}
_COPY = "copy the bundle here again, or convert it: `edge-ocr convert`"
_AGAIN = "build it again, `edge-ocr lite build`, or switch it off: EDGE_OCR_LITE=off"
_LESS = (
    "a package by `edge-ocr pack --lite-lib ARCHIVE` with Paddle Lite's library, or `edge-ocr lite build --lib ARCHIVE`"
    " here where a C++ compiler is, and a bundle of --target aarch64, take half of it"
)


def look(config: AgentConfig) -> Iterator[Finding]:
    """Load the models within the limit, and have them read."""
    try:
        bundle = ModelBundle.load(Path(config.reader.bundle))
    except AgentError as error:
        yield Finding("fail", "models", str(error), _COPY)
        return
    manifest = bundle.manifest
    said = f"{bundle.label}, threads {config.reader.threads}; sha256 of {len(manifest.files)} files as it says"
    yield Finding("ok", "models", said)
    needs = sum(_need_mb(source) for source in config.source)
    limit = cgroup.look().limit_bytes // memory.MB or config.memory.limit_mb
    yield from _of_group(config, limit)
    try:
        reader = _open(config, min(limit, config.memory.limit_mb) - needs)
    except AgentError as error:
        yield _refused(error, needs)
        return
    resident = memory.resident_bytes() + reader.beside_bytes
    yield _engine(bundle, config, resident)
    yield _memory(reader, min(limit, config.memory.limit_mb), resident, needs)
    yield _trial(reader, bundle)
    reader.close()


def _open(config: AgentConfig, limit_mb: int) -> PageReader:
    """Return the reader, with the score that lines must have by default."""
    within = msgspec.structs.replace(config.memory, limit_mb=limit_mb)
    plain = msgspec.structs.replace(config.reader, min_score=ReaderConfig().min_score)
    return open_reader(msgspec.structs.replace(config, memory=within, reader=plain))[0]


def _need_mb(source: SourceConfig) -> int:
    """Return what the programs of a source take."""
    if isinstance(source, CameraConfig):
        return camera_device.needs_mb(source)
    return scan_options.needs_mb(source) if isinstance(source, ScannerConfig) else 0


def _of_group(config: AgentConfig, limit: int) -> Iterator[Finding]:
    if limit < config.memory.limit_mb:
        said = f"the system allows {limit} MB here, and memory.limit_mb is {config.memory.limit_mb}"
        yield Finding("warn", "memory", said, "the lower counts: lower the one, or raise the other")


def _refused(error: AgentError, needs: int) -> Finding:
    if error.code is ExitCode.TEMPORARY:
        return Finding(
            "fail", "memory", str(error), f"beside {needs} MB for sources" if needs else "raise memory.limit_mb"
        )
    return Finding("fail", "engine" if error.code is ExitCode.UNAVAILABLE else "models", str(error), _COPY)


def _engine(bundle: ModelBundle, config: AgentConfig, resident: int) -> Finding:
    name = choose_engine(bundle, config.reader.engine)
    version, refusal = _version(name)
    said = f"{name} {version}, {resident // memory.MB} MB with the models loaded"
    if refusal:
        return Finding("warn", "engine", f"{said}; the native binding is not used: {refusal}", _AGAIN)
    if name != "onnxruntime" or platform.machine() != "aarch64":
        return Finding("ok", "engine", said)
    return Finding("ok", "engine", f"{said}; on this processor Paddle Lite takes half the memory for models", _LESS)


def _version(name: str) -> tuple[str, str]:
    """Return an engine's version with where it comes from, and why that is not the native binding although built."""
    refusal = ""
    if name == "paddlelite" and place.chosen() is not None:
        try:
            return f"{binding.open_library().version}, by the native binding", ""
        except AgentError as error:
            refusal = str(error)
    with suppress(importlib.metadata.PackageNotFoundError):
        return f"{importlib.metadata.version(_PACKAGES[name])}, by its package", refusal
    return "of unknown version", refusal


def _memory(reader: PageReader, limit: int, resident: int, needs: int) -> Finding:
    budget = reader.budget
    least = memory.Budget.least_mb(resident, budget.processes) + needs
    said = (
        f"limit {limit} MB, {least} are needed at least: {needs} for sources, {resident // memory.MB} with the models"
        f" loaded; pictures are read at up to {budget.frame_bytes / 3e6:.0f} Mpx in colour, larger ones reduced"
    )
    return Finding("ok", "memory", said)


def _trial(reader: PageReader, bundle: ModelBundle) -> Finding:
    """Have the models read the page that is known."""
    wanted = golden.expected(bundle.characters)
    if not wanted:
        return Finding("ok", "trial read", "not done: the page's text is not in the bundle's characters")
    page = reader.read(load_frame(golden.PAGE, "golden", reader.budget))
    alike = golden.likeness(wanted, (line.text for line in page.lines))
    said = f"{alike:.0%} of a known page are as expected"
    if alike >= golden.GOOD:
        return Finding("ok", "trial read", f"{said}, {page.seconds:.1f} s")
    bad = "the models load and do not read: " + _COPY
    few = "other models may read it so; compare with `edge-ocr evaluate`"
    return (
        Finding("warn", "trial read", said, few) if alike >= golden.USABLE else Finding("fail", "trial read", said, bad)
    )


def main(settings: str, folder: str) -> None:
    """Print findings."""
    with suppress(OSError):  # rather this program than the agent's, where memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.chdir(folder)  # paths in settings may be relative to where the user is
    for finding in look(load(Path(settings), AgentConfig, check_files=False)):
        sys.stdout.buffer.write(msgspec.json.encode(finding) + b"\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
