"""Model: one model on its way through a conversion, and the files it leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.bundle import ModelName
from converters.graph import MODEL_FILE, PARAMS_FILE, Graph
from converters.recipe import Section
from converters.signature import Signature, signature
from converters.sources import SourceModel

Shape = tuple[int, int, int, int]


class Model(msgspec.Struct, frozen=True):
    """One model on its way through a conversion.

    Attributes:
        name: det, rec or cls.
        source: where it came from.
        sha256: of its two source files, one after the other.
        section: its part of the recipe.
        signature: its declared inputs and outputs.
        work: a directory of its own.
        suffixes: of the files that go into the bundle.
        stage: the name of its directory with the graph as the stages so far have left it.
    """

    name: ModelName
    source: SourceModel
    sha256: str
    section: Section
    signature: Signature
    work: Path
    suffixes: tuple[str, ...]
    stage: str = "folded"

    @property
    def source_files(self) -> list[Path]:
        """Program and parameters as they came."""
        return graph_files(self.source.directory)

    @property
    def folded(self) -> Path:
        """Directory of the rewritten graph."""
        return self.work / "folded"

    @property
    def current(self) -> Path:
        """Directory of the graph in float as the stages so far have left it."""
        return self.work / self.stage

    def digest(self, *files: Path) -> str:
        """Return one sha256 of that graph and of files that a stage reads besides."""
        return digest_of([*graph_files(self.current), *files])

    @property
    def scales(self) -> Path:
        """The file that says what 127 steps of each activation stand for."""
        return self.work / "scales.json"

    @property
    def numbers(self) -> dict[str, tuple[float, float, float]]:
        """What pixels become before the model sees them: `mean` and `std` of pixel / 255, per plane."""
        return {"mean": self.section.mean, "std": self.section.std}

    def ready(self, target: str) -> Path:
        """Return the directory of the int8 graph for a machine."""
        return self.work / "int8" / target

    @property
    def built(self) -> list[Path]:
        """The files that go into the bundle."""
        return [self.work / f"{self.name}{suffix}" for suffix in self.suffixes]

    def shapes(self) -> list[Shape]:
        """Return the input shapes to check, the measured one last; lengths that the graph fixes are kept."""
        return [self._fitted(shape) for shape in (*self.section.check_shapes, self.section.measure_shape)]

    def _fitted(self, shape: Shape) -> Shape:
        height, width = self.signature.height, self.signature.width
        return shape[0], shape[1], height if height > 0 else shape[2], width if width > 0 else shape[3]


def open_model(name: ModelName, source: SourceModel, section: Section, work: Path, suffixes: tuple[str, ...]) -> Model:
    """Return a source model with what its graph says of itself.

    Raises:
        ConversionError: its files cannot be read, or are not of a PP-OCR model.
    """
    files = graph_files(source.directory)
    told = signature(Graph.load(source.directory), str(source.directory))
    return Model(name, source, digest_of(files), section, told, work, suffixes)


def graph_files(directory: Path) -> list[Path]:
    """Return the paths of the two files of a Paddle inference model."""
    return [directory / MODEL_FILE, directory / PARAMS_FILE]


def digest_of(files: Sequence[Path]) -> str:
    """Return one sha256 of several files, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def size_of(files: Sequence[Path]) -> int:
    """Return the size of several files together, in bytes."""
    return sum(file.stat().st_size for file in files)
