"""Writing a bundle: beside its place first, checked there, then swapped in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Literal

import msgspec

import agent
from agent import bundle as bundles
from agent.bundle import MANIFEST, Measured, ModelBundle, Target, file_entry, write_manifest
from agent.errors import ConfigError
from converters.model import Model
from converters.stages import tool_versions

CHARACTERS = "characters.txt"

Precision = Literal["fp32", "int8"]


class Content(msgspec.Struct, frozen=True):
    """What goes into a bundle.

    Attributes:
        name: of the bundle.
        version: of the recipe.
        target: the machines it is for.
        precision: of the weights.
        engine: the runtime it is for.
        models: with their built files.
        characters: the recogniser's dictionary.
        measured: rows of the table.
    """

    name: str
    version: str
    target: Target
    precision: Precision
    engine: str
    models: tuple[Model, ...]
    characters: Path
    measured: tuple[Measured, ...]

    @property
    def machine(self) -> str | None:
        """The processor it must be checked for, None for any."""
        return self.target if self.target in ("x86_64", "aarch64") else None


def check_place(output: Path) -> None:
    """Check that a bundle may be written at a path.

    Raises:
        ConfigError: something else is there.
    """
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists() and not (output / MANIFEST).is_file():
        raise ConfigError(f"--output {output}: exists and is not a bundle; it is not replaced")


def write_bundle(content: Content, output: Path) -> ModelBundle:
    """Write a bundle, replace an older one at the same place, and return it as loaded.

    Raises:
        ConfigError: the place cannot be written.
        BundleError: what was written does not pass the reader's own checks.
    """
    partial = output.with_name(f".{output.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _fill(partial, content)
        ModelBundle.load(partial, machine=content.machine)
        swap(partial, output)
    except OSError as error:
        raise ConfigError(f"--output {output}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return ModelBundle.load(output, machine=content.machine)


def swap(new: Path, place: Path) -> None:
    """Move a directory to its place; what was there stays until the new one can take it."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        os.rename(place, old)
    try:
        os.rename(new, place)
    except OSError:
        if old.exists():
            os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fill(directory: Path, content: Content) -> None:
    for model in content.models:
        for file in model.built:
            shutil.copyfile(file, directory / file.name)
    shutil.copyfile(content.characters, directory / CHARACTERS)
    write_manifest(directory, _manifest(directory, content))


def _manifest(directory: Path, content: Content) -> bundles.Manifest:
    tools = ", ".join(f"{name} {version}" for name, version in tool_versions().items())
    models: dict[str, Any] = {model.name: _entry(model, content.engine) for model in content.models}
    return bundles.Manifest(
        schema=bundles.SCHEMA,
        name=content.name,
        version=content.version,
        target=content.target,
        precision=content.precision,
        made_by=f"edge-ocr {agent.__version__} ({tools})",
        files={file.name: file_entry(file) for file in sorted(directory.iterdir())},
        measured=content.measured,
        **models,
    )


def _entry(model: Model, engine: str) -> object:
    """Return a model's section of the manifest: the recipe's numbers, and what the graph says itself."""
    kinds = {"det": bundles.Detector, "rec": bundles.Recognizer, "cls": bundles.Classifier}
    kind: Any = kinds[model.name]
    values = {name: getattr(model.section, name) for name in kind.__struct_fields__ if hasattr(model.section, name)}
    values["files"] = {engine: tuple(file.name for file in model.built)}
    values["source"] = bundles.Source(model.source.name, model.sha256)
    if model.name == "rec":
        values.update(characters=CHARACTERS, classes=model.signature.classes)
    if model.name != "det" and model.signature.height > 0:
        values["height"] = model.signature.height
    return kind(**values)
