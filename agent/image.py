"""Pictures: decode safely within a pixel limit, scale, tile, crop a quad.

Coordinates are (x, y) in pixels, x to the right, y down; a pixel's centre is at half coordinates.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import msgspec
import numpy as np

from agent.bundle import sha256_of
from agent.errors import FrameError, InputError
from agent.header import Header, open_regular, read_header
from agent.memory import MB, Budget
from agent.page import Frame, Pixels, Quad, TextLine

_JPEG_TAIL_BYTES = 1 << 20
_COLOUR_AT = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_COLOUR_AT[8] = cv2.IMREAD_REDUCED_COLOR_8
_GREY_AT = {1: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_GREY_AT[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8

# OpenCV's own pool would use every core at --threads 1.
cv2.setNumThreads(1)


def load_frame(path: Path, source: str, budget: Budget) -> Frame:
    """Read a picture file upright, at most `budget.frame_bytes` large, transparent parts white, grey ones as grey.

    JPEGs are decoded at a reduced scale; other formats in grey when colour would not fit, then reduced.

    Args:
        path: the file.
        source: the name to report, usually the path as given.
        budget: what decoding may take, and what the picture may keep.

    Raises:
        InputError: missing, not a regular file, or not readable.
        FrameError: not a picture that can be read, or not within the budget.
    """
    header = read_header(path)
    flags = _decoding(header, path, budget)
    _check_complete(path, header)
    pixels = _as_bytes(_decode(path, flags, header))
    height, width = pixels.shape[:2]
    turned = (width > height) != (header.width > header.height)  # EXIF rotation has swapped the sides
    full = (header.height, header.width) if turned else (header.width, header.height)
    pixels = _reduce(pixels, budget.frame_bytes)
    pixels.flags.writeable = False
    return Frame(sha256_of(path), source, pixels, *full, taken_at=path.stat().st_mtime)


def _decoding(header: Header, path: Path, budget: Budget) -> int:
    """Choose OpenCV's flags so that decoding fits the budget: in full, a JPEG at a fraction of its scale, or grey.

    No model has buffers while a picture is decoded, so decoding may take all that is spare.
    """
    size, spare = header.width * header.height, budget.decode_bytes
    if header.kind == "jpeg":
        grey = header.channels == 1
        held = (2 * size if grey else 3 * size) if header.progressive else 0  # 16-bit coefficients, 4:2:0
        for factor, flags in (_GREY_AT if grey else _COLOUR_AT).items():
            need = held + size // factor**2 * (1 if grey else 3)
            if need - held <= budget.frame_bytes * 1.1 and need <= spare:
                return flags
    else:
        # OpenCV's decoders of these hold a buffer of their own beside the result.
        depth = 2 if header.bits > 8 else 1
        for flags, samples in _choices(header):
            kept = min(size * samples, budget.frame_bytes)
            need = size * (samples + max(samples, header.channels)) * depth + (0 if kept == size * samples else kept)
            if need <= spare:
                return flags
    raise FrameError(
        "memory",
        f"{path}: a {header.width}x{header.height} {header.kind.upper()} needs {need // MB + 1} MB to decode, "
        f"{spare // MB} MB are free for it: raise --memory-mb by {(need - spare) // MB + 1}",
    )


def _choices(header: Header) -> list[tuple[int, int]]:
    """Return ways to decode, best first: OpenCV's flags and samples a pixel."""
    grey = (cv2.IMREAD_GRAYSCALE, 1)
    if header.alpha:
        return [(cv2.IMREAD_UNCHANGED, 4), (cv2.IMREAD_COLOR, 3), grey]
    return [grey] if header.channels == 1 else [(cv2.IMREAD_COLOR, 3), grey]


def _decode(path: Path, flags: int, header: Header) -> Pixels:
    with open_regular(path) as handle:
        # By descriptor: the file that was checked is the file decoded, whatever bytes its name has.
        name = f"/proc/self/fd/{handle.fileno()}"
        try:
            pixels = cv2.imread(name if os.path.exists(name) else str(path), flags)
        except cv2.error as error:
            raise FrameError("damaged", f"{path}: the decoder refused it ({error.err})") from error
    if pixels is None or pixels.size == 0:
        raise FrameError("damaged", f"{path}: damaged, or a kind of {header.kind.upper()} that cannot be decoded")
    decoded: Pixels = np.asarray(pixels)
    return decoded


def _check_complete(path: Path, header: Header) -> None:
    """Refuse a JPEG or PNG without its end marker: decoders fill the missing part with grey and say nothing."""
    if header.kind not in ("jpeg", "png"):
        return
    with open_regular(path) as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(header.data_at, size - _JPEG_TAIL_BYTES))
        tail = handle.read()
    if (b"\xff\xd9" if header.kind == "jpeg" else b"IEND") not in tail:
        raise FrameError("truncated", f"{path}: truncated, its end is missing")


def _as_bytes(pixels: Pixels) -> Pixels:
    """Return uint8 (H, W, 3), or (H, W) for grey, from whatever the decoder gave; transparent parts become white."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        pixels = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return _over_white(pixels)
    return pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels


def _over_white(pixels: Pixels) -> Pixels:
    alpha = pixels[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[:, :, :3])
    blended = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, pixels.shape[0], 256):  # in strips: the sums need 16 bits
        strip = pixels[top : top + 256]
        opaque = strip[:, :, 3:].astype(np.uint16)
        blended[top : top + 256] = (strip[:, :, :3] * opaque + 255 * (255 - opaque)) // 255
    return blended


def _reduce(pixels: Pixels, max_bytes: int) -> Pixels:
    """Return the picture averaged down to at most `max_bytes`."""
    if pixels.nbytes <= max_bytes:
        return pixels
    height, width = pixels.shape[:2]
    factor = math.sqrt(max_bytes / pixels.nbytes)
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


class Tile(msgspec.Struct, frozen=True):
    """One detector input of a scaled page, and the part of its output that counts.

    Attributes:
        left, top, width, height: the window, in pixels of the scaled page; it may reach over the page's edge.
        keep_left, keep_top, keep_right, keep_bottom: the part of the page this tile answers for.
    """

    left: int
    top: int
    width: int
    height: int
    keep_left: int
    keep_top: int
    keep_right: int
    keep_bottom: int


def tile(width: int, height: int, *, max_px: int, multiple: int, overlap: int = 96) -> tuple[Tile, ...]:
    """Cover a page with windows of one size, sides multiples of `multiple`, at most about `max_px` large.

    Windows span the whole width where that leaves a useful height, because lines run across. Neighbours overlap and
    meet in the middle of the overlap; the kept parts cover the page exactly once.
    """
    span = _window(width, max(multiple * 10, max_px // (multiple * 10)), multiple, overlap)
    rise = _window(height, max(multiple * 5, max_px // span), multiple, overlap)
    columns, rows = _cuts(width, span, overlap), _cuts(height, rise, overlap)
    return tuple(
        Tile(left, top, span, rise, keep_left, keep_top, keep_right, keep_bottom)
        for top, keep_top, keep_bottom in rows
        for left, keep_left, keep_right in columns
    )


def _window(length: int, limit: int, multiple: int, overlap: int) -> int:
    """Return the window's side: the whole length if it fits, else so that the windows share the length evenly."""
    whole = math.ceil(length / multiple) * multiple
    limit = max(overlap + multiple, limit // multiple * multiple)
    if whole <= limit:
        return whole
    count = math.ceil((length - overlap) / (limit - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    return math.ceil(side / multiple) * multiple


def _cuts(length: int, side: int, overlap: int) -> list[tuple[int, int, int]]:
    """Return (start, keep from, keep to) of each window along one axis."""
    if side >= length:
        return [(0, 0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    meets = [0, *((a + side + b) // 2 for a, b in pairwise(starts)), length]
    return list(zip(starts, meets[:-1], meets[1:], strict=True))


def window(pixels: Pixels, piece: Tile) -> Pixels:
    """Return a tile's pixels; beyond the page's edge the page's last pixels are repeated."""
    part = pixels[piece.top : piece.top + piece.height, piece.left : piece.left + piece.width]
    below, right = piece.height - part.shape[0], piece.width - part.shape[1]
    return cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else part


def scaled(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return the picture at another size: averaged when smaller, linear when larger."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = width * height < pixels.shape[0] * pixels.shape[1]
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def side_lengths(quad: Quad) -> tuple[float, float]:
    """Return (width, height) of a quad: the longer of each pair of opposite sides, in pixels."""
    a, b, c, d = quad
    return max(math.dist(a, b), math.dist(d, c)), max(math.dist(a, d), math.dist(b, c))


def crop(pixels: Pixels, quad: Quad, height: int, max_width: int) -> Pixels:
    """Return a quad's content upright, uint8 (height, W, 3), W by its aspect and at most `max_width`.

    Args:
        pixels: uint8 (H, W, 3).
        quad: corners in pixels, from the top left of the text.
        height: height of the result.
        max_width: longest result; longer lines are squeezed.
    """
    across, down = side_lengths(quad)
    width = min(max_width, max(1, math.ceil(height * across / max(down, 1e-6))))
    part, local = _surroundings(pixels, quad, shrink=down / height)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(np.array(local, np.float32), corners)
    return cv2.warpPerspective(part, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _surroundings(pixels: Pixels, quad: Quad, shrink: float) -> tuple[Pixels, list[tuple[float, float]]]:
    """Return the picture around a quad and the quad in it, averaged down first when the crop will be much smaller."""
    xs, ys = [x for x, _ in quad], [y for _, y in quad]
    left, top = max(0, math.floor(min(xs)) - 2), max(0, math.floor(min(ys)) - 2)
    part = pixels[top : max(top + 1, math.ceil(max(ys)) + 3), left : max(left + 1, math.ceil(max(xs)) + 3)]
    if part.size == 0:
        part, left, top = pixels[-1:, -1:], pixels.shape[1] - 1, pixels.shape[0] - 1
    if shrink < 1.5:
        return part, [(x - left, y - top) for x, y in quad]
    width, height = max(1, round(part.shape[1] / shrink)), max(1, round(part.shape[0] / shrink))
    small = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    fx, fy = width / part.shape[1], height / part.shape[0]
    return small, [((x - left) * fx, (y - top) * fy) for x, y in quad]


def pad(line: Pixels, width: int) -> Pixels:
    """Return a line picture of exactly `width` pixels: squeezed if wider, else its last column repeated."""
    if line.shape[1] > width:
        return cv2.resize(line, (width, line.shape[0]), interpolation=cv2.INTER_AREA)
    missing = width - line.shape[1]
    return cv2.copyMakeBorder(line, 0, 0, 0, missing, cv2.BORDER_REPLICATE) if missing else line


OVERLAY_LONG_SIDE_PX = 1600


def write_overlay(frame: Frame, lines: Sequence[TextLine], path: Path) -> None:
    """Write a JPEG of a frame with the box and number of each line, the reading direction's start marked.

    Raises:
        InputError: the file cannot be written.
    """
    height, width = frame.pixels.shape[:2]
    factor = min(1.0, OVERLAY_LONG_SIDE_PX / max(width, height))
    canvas = scaled(frame.pixels, max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = cv2.cvtColor(canvas, cv2.COLOR_GRAY2BGR) if canvas.ndim == 2 else canvas.copy()
    fx, fy = canvas.shape[1] / frame.width, canvas.shape[0] / frame.height
    for number, line in enumerate(lines, 1):
        points = np.array([(x * fx, y * fy) for x, y in line.quad], np.int32)
        cv2.polylines(canvas, [points], isClosed=True, color=(0, 160, 0), thickness=2)
        start = (int(points[0][0]), int(points[0][1]))
        cv2.circle(canvas, start, 4, (0, 0, 220), -1)
        cv2.putText(canvas, str(number), (start[0], start[1] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 220), 1)
    written, data = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 85])
    try:
        path.write_bytes(data.tobytes() if written else b"")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
