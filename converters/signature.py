"""What a graph is, told by its inputs and outputs: a detector, a recogniser or a direction classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.bundle import MAX_CHARACTERS_BYTES, ModelName
from agent.errors import ConversionError, InputError
from converters.graph import Graph

_WANTED = "expected (N, 1, H, W) of a detector, (N, T, classes) of a recogniser or (N, 2) of a direction classifier"


class Signature(msgspec.Struct, frozen=True):
    """The declared ends of a graph; -1 where a length varies.

    Attributes:
        kind: which model it is.
        height: of the input, as declared.
        width: of the input, as declared.
        classes: length of the output's last axis for a recogniser or classifier, else -1.
    """

    kind: ModelName
    height: int
    width: int
    classes: int


def signature(graph: Graph, origin: str) -> Signature:
    """Return what a graph is.

    Args:
        graph: as loaded.
        origin: what to call it in an error.

    Raises:
        ConversionError: its inputs or outputs are not those of a PP-OCR model.
    """
    shape = _input_shape(graph, origin)
    outputs = graph.outputs()
    if len(outputs) != 1:
        raise ConversionError(f"{origin}: has {len(outputs)} outputs; a PP-OCR inference model has one")
    out = graph.shape(outputs[0])
    kind = _kind(out, origin)
    if kind == "rec" and out[-1] < 1:
        raise ConversionError(f"{origin}: output has shape {_said(out)}; a recogniser declares its number of classes")
    return Signature(kind, shape[2], shape[3], out[-1] if kind != "det" else -1)


def _input_shape(graph: Graph, origin: str) -> list[int]:
    inputs = graph.inputs()
    if len(inputs) != 1:
        raise ConversionError(f"{origin}: has {len(inputs)} inputs ({', '.join(inputs)}); one image is expected")
    shape = graph.shape(inputs[0])
    if len(shape) != 4 or shape[1] not in (-1, 3):
        raise ConversionError(f"{origin}: input {inputs[0]} has shape {_said(shape)}, expected (N, 3, H, W)")
    return shape


def _kind(out: Sequence[int], origin: str) -> ModelName:
    if len(out) == 4 and out[1] in (-1, 1):
        return "det"
    if len(out) == 3:
        return "rec"
    if len(out) == 2 and out[1] in (-1, 2):
        return "cls"
    raise ConversionError(f"{origin}: output has shape {_said(out)}; {_WANTED}")


def check_output(kind: ModelName, given: Sequence[int], out: Sequence[int], origin: str) -> None:
    """Check the shape a model really gave against what its kind promises.

    Raises:
        ConversionError: it is another; the message holds both shapes.
    """
    batch, _, height, width = given
    right = {
        "det": tuple(out) == (batch, 1, height, width),
        "rec": len(out) == 3 and out[0] == batch,
        "cls": tuple(out) == (batch, 2),
    }
    if not right[kind]:
        raise ConversionError(f"{origin}: input {_said(given)} gives output {_said(out)}; {_WANTED}")


def check_characters(path: Path, classes: int) -> None:
    """Check that a dictionary fits a recogniser: its classes are the CTC blank, the lines and perhaps a space.

    Raises:
        InputError: the file cannot be read.
        ConversionError: not UTF-8, too large, or of another length.
    """
    try:
        if path.stat().st_size > MAX_CHARACTERS_BYTES:
            raise ConversionError(f"{path}: larger than {MAX_CHARACTERS_BYTES} bytes; not a dictionary")
        lines = path.read_bytes().decode("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: not UTF-8; a dictionary holds one character per line") from error
    count = len(lines) - (not lines[-1])
    if count not in (classes - 1, classes - 2):
        raise ConversionError(
            f"{path}: {count} characters do not fit a recogniser of {classes} classes (blank, {classes - 2} "
            "characters, space): name its dictionary with --characters FILE"
        )


def _said(shape: Sequence[int]) -> str:
    return "(" + ", ".join("?" if n < 0 else str(n) for n in shape) + ")"
