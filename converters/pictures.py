"""The pictures that compression looks at: drawn, and of the user's own where there are some, which need no labels.

The lines on the user's pictures are those that the float bundle reads there. Drawing and reading are jobs in processes
of their own (`native`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from agent.bundle import ModelBundle, sha256_of
from agent.errors import InputError
from agent.page import Quad
from converters import child, native
from converters.model import Model, digest_of
from converters.recipe import ClassifierSection, Compression
from converters.stages import Stages

if TYPE_CHECKING:
    from converters.dataset import Dataset

TIMEOUT_S = 3600.0
CHECKED = 6
"""Pictures on which layers, and the built model, are looked at."""

FIRST_CHECKED = 500_000_000
"""Index of the first of them, beyond those that teach."""

_NAMED = 10  # bad files, in one message
_READER_MB = 1000
_READER_THREADS = 2


class Own(msgspec.Struct, frozen=True):
    """The user's own pictures, looked at: what a job and a stage's inputs need of them.

    Attributes:
        file: lists them with their lines, for `open_dataset`; "" where there are none.
        digest: of what they are and of what has read them.
        count: how many.
    """

    file: str = ""
    digest: str = ""
    count: int = 0


class OwnFolder:
    """A folder of the user's, to be looked at in two steps: the first needs no models."""

    def __init__(self, folder: Path, work: Path, stages: Stages) -> None:
        """List the pictures.

        Raises:
            InputError: no such folder, or no picture in it.
        """
        from converters.dataset import find_user_images  # imports OpenCV: not for those who have no folder

        self._folder, self._stages = folder, stages
        self._good, self._lines = work / "own-pictures.json", work / "own-lines.json"
        self._digest = _digest_of(find_user_images(folder))

    def check(self, say: Callable[[str], None]) -> None:
        """Open every picture once, and say which are left out.

        Raises:
            InputError: none can be read.
        """
        arguments: dict[str, Any] = {"folder": self._folder, "out": self._good}

        def action() -> Any:
            self._good.parent.mkdir(parents=True, exist_ok=True)
            return native.run("pictures.check", timeout_s=TIMEOUT_S, progress=self._stages.progress, **arguments)

        inputs = [self._digest, digest_of([_code("dataset.py")])]
        told = "{0[0]} pictures".format
        _, problems = self._stages.run("own pictures", inputs, [self._good], action, told)
        if problems:
            say(f"--images {self._folder}: {problems}")

    def find_lines(self, bundle: ModelBundle) -> Own:
        """Read the pictures with a bundle that runs here."""
        arguments: dict[str, Any] = {"pictures": self._good, "bundle": bundle.path, "out": self._lines}
        inputs = [self._digest, bundle.digest, digest_of([self._good, _code("dataset.py")])]
        counts = self._stages.run(
            "own lines",
            inputs,
            [self._lines],
            lambda: native.run("pictures.find_lines", timeout_s=TIMEOUT_S, progress=self._stages.progress, **arguments),
            lambda counts: f"{counts[1]} lines on {counts[0]} pictures",
        )
        digest = hashlib.sha256(repr([self._digest, digest_of([self._lines])]).encode()).hexdigest()
        return Own(str(self._lines), digest, counts[0])


def _digest_of(files: tuple[Path, ...]) -> str:
    """Return a sha256 of where pictures are and what is in them; a file that cannot be read counts by its name."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.resolve()}\n".encode(errors="surrogateescape"))
        with contextlib.suppress(OSError):  # `check` says so
            digest.update(sha256_of(file).encode() if file.is_file() else b"")  # a pipe would not end
    return digest.hexdigest()


class Pictures:
    """Draws what calibrates, and what a result is looked at on."""

    def __init__(self, settings: Compression, stages: Stages, own: Own) -> None:
        """Remember how many, and where stages are kept."""
        self._settings, self._stages, self._own = settings, stages, own

    def draw(self, model: Model) -> None:
        """Write `teaching(model)` and `checked(model)`."""
        count, size = self._count_and_size(model)
        self._draw(f"draw {model.name}", model, teaching(model), count=count, size=size, first=0)
        more = checked_count(model)
        self._draw(f"draw more {model.name}", model, checked(model), count=more, size=size, first=FIRST_CHECKED)

    def _draw(self, stage: str, model: Model, out: Path, **which: int) -> None:
        arguments = {"kind": model.name, "seed": self._settings.seed, **which}
        self._stages.run(
            stage,
            [arguments, drawing_code(), self._own.digest],
            [out],
            lambda: native.run(
                "pictures.draw",
                model.name,
                timeout_s=TIMEOUT_S,
                progress=self._stages.progress,
                out=out,
                own=self._own.file,
                **arguments,
            ),
            lambda drawn: f"{drawn} pictures",
        )

    def _count_and_size(self, model: Model) -> tuple[int, int]:
        settings = self._settings
        if model.name == "det":
            return settings.windows, settings.window_px
        width = model.section.width if isinstance(model.section, ClassifierSection) else settings.line_px
        return settings.lines, width


def teaching(model: Model) -> Path:
    """Return the file with the pictures that calibrate a model, uint8 (N, H, W, 3) BGR."""
    return model.work / "pictures.npy"


def checked(model: Model) -> Path:
    """Return the file with the pictures that its layers are looked at on, likewise."""
    return model.work / "checked.npy"


def checked_count(model: Model) -> int:
    """Return how many these are: four lines count as much as one window."""
    return CHECKED if model.name == "det" else 4 * CHECKED


def drawing_code() -> str:
    """Return a digest of all that decides what is drawn from a seed."""
    return digest_of([_code("dataset.py"), *sorted(_code("drawing").glob("*.*"))])


def _code(name: str) -> Path:
    return Path(__file__).with_name(name)


# ------------------------------------------------------------------------------------------------ in the child


def open_dataset(seed: int, own: str = "") -> Dataset:
    """Return inputs for models, drawn and of the user's pictures.

    Args:
        seed: of what is drawn.
        own: `Own.file`.

    Raises:
        EngineError: a script has no font.
    """
    from converters.dataset import Dataset, OwnPicture
    from converters.drawing import find_fonts

    rows = json.loads(Path(own).read_text(encoding="ascii")) if own else []
    images = tuple(OwnPicture(Path(path), msgspec.convert(quads, tuple[Quad, ...])) for path, quads in rows)
    return Dataset(seed, find_fonts(), images)


def draw(kind: str, seed: int, count: int, size: int, out: str, first: int = 0, own: str = "") -> int:
    """Draw inputs of the detector ("det") or of another model into a file, uint8 (N, H, W, 3) BGR; returns how many.

    Args:
        kind: of model.
        seed: of the dataset.
        count: how many.
        size: side of the detector's windows, or width of lines, in pixels.
        out: an `.npy` file.
        first: index of the first.
        own: `Own.file`.
    """
    from converters.dataset import LINE_HEIGHT_PX

    dataset = open_dataset(seed, own)
    take = dataset.det_input if kind == "det" else dataset.rec_input
    height = size if kind == "det" else LINE_HEIGHT_PX
    head = {"descr": "|u1", "fortran_order": False, "shape": (count, height, size, 3)}
    with Path(out).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        for index in child.counted(range(first, first + count)):
            file.write(take(index, size).tobytes())
    return count


def check(folder: str, out: str) -> tuple[int, str]:
    """Write which of a folder's pictures can be read; returns how many, and a line about the others.

    Raises:
        InputError: none can.
    """
    from converters.dataset import find_user_images, problem_of

    found = find_user_images(Path(folder))
    results = {path: problem_of(path) for path in child.counted(found)}
    problems = [problem for problem in results.values() if problem is not None]
    told = "; ".join(problems[:_NAMED] + ["and others"] * (len(problems) > _NAMED))
    told = told.encode("utf-8", "backslashreplace").decode()  # names of files need not be text
    good = [str(path) for path, problem in results.items() if problem is None]
    if not good:
        raise InputError(f"--images {folder}: holds no picture that can be read ({told})")
    Path(out).write_text(json.dumps(good), encoding="ascii")
    return len(good), f"{len(problems)} of {len(found)} files are left out: {told}" if problems else ""


def find_lines(pictures: str, bundle: str, out: str) -> tuple[int, int]:
    """Write the lines that a bundle reads on pictures; returns how many pictures and lines there are.

    Args:
        pictures: a file with their paths.
        bundle: a bundle's directory.
        out: a file, for `open_dataset`.
    """
    from agent.engines import EngineSettings
    from agent.page import Frame
    from agent.reader import Reader, ReaderSettings
    from converters.dataset import load_pixels

    settings = ReaderSettings(memory_mb=_READER_MB, engine=EngineSettings(threads=_READER_THREADS))
    reader, rows = Reader(ModelBundle.load(Path(bundle)), settings), []
    for path in child.counted(json.loads(Path(pictures).read_text(encoding="ascii"))):
        pixels = load_pixels(Path(path))
        page = reader.read(Frame("", "", pixels, width=pixels.shape[1], height=pixels.shape[0]))
        rows.append([path, [line.quad for line in page.lines]])
    reader.close()
    Path(out).write_text(json.dumps(rows), encoding="ascii")
    return len(rows), sum(len(quads) for _, quads in rows)
