"""Pictures: decode safely within a pixel limit, scale, tile, crop a quad.

Coordinates are (x, y) in pixels, x to the right, y down; a pixel's centre is at half coordinates.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import cv2
import msgspec
import numpy as np

from agent import jpeg
from agent.bundle import sha256_of_open
from agent.errors import FrameError, InputError
from agent.header import Header, is_complete, open_regular, parse_header
from agent.memory import MB, Budget
from agent.page import Frame, Pixels, Quad

_COLOUR_AT = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
_COLOUR_AT[8] = cv2.IMREAD_REDUCED_COLOR_8
_GREY_AT = {1: cv2.IMREAD_GRAYSCALE, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}
_GREY_AT[8] = cv2.IMREAD_REDUCED_GRAYSCALE_8

# What turns a picture of each EXIF orientation upright, in steps, so that no more than two copies exist.
_UPRIGHT: dict[int, tuple[Callable[[Pixels], Pixels], ...]] = {
    1: (),
    2: (partial(cv2.flip, flipCode=1),),
    3: (partial(cv2.rotate, rotateCode=cv2.ROTATE_180),),
    4: (partial(cv2.flip, flipCode=0),),
    5: (cv2.transpose,),
    6: (partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),),
    7: (cv2.transpose, partial(cv2.rotate, rotateCode=cv2.ROTATE_180)),
    8: (partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),),
}

# OpenCV's own pool would use every core at --threads 1.
cv2.setNumThreads(1)


class _Way(msgspec.Struct, frozen=True):
    """A way to decode a picture.

    Attributes:
        flags: OpenCV's.
        shape: of the result, (rows, columns) or (rows, columns, 3); None where it cannot be told before.
        bytes: size of the result.
        copies: how often OpenCV holds it.
    """

    flags: int
    shape: tuple[int, ...] | None
    bytes: int
    copies: int = 1


def load_frame(path: Path, source: str, budget: Budget) -> Frame:
    """Read a picture file upright, at most `budget.frame_bytes` large, transparent parts white, grey ones as grey.

    Where the picture does not fit in colour, a JPEG is read at a reduced scale, any other in grey.

    Args:
        path: the file.
        source: the name to report, usually the path as given.
        budget: what decoding may take, and what the picture may keep.

    Raises:
        InputError: missing, not a regular file, or not readable.
        FrameError: not a picture that can be read, or not within the budget.
    """
    with open_regular(path) as handle:
        header = parse_header(handle, path)
        try:
            pixels = decode(handle, header, path, budget)
            key, taken_at = sha256_of_open(handle), os.fstat(handle.fileno()).st_mtime
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from error
    return Frame(key, source, pixels, *upright_size(header), taken_at=taken_at)


def decode(handle: BinaryIO, header: Header, path: Path, budget: Budget) -> Pixels:
    """Return an open picture's pixels as `load_frame` does, read-only.

    Raises:
        FrameError: they cannot be read, or not within the budget.
        OSError: the file system fails.
    """
    way = _choose(header, path, budget)
    _check_complete(handle, header, path)
    pixels = _reduce(_as_bytes(_decode(handle, way, header, path)), budget.frame_bytes)
    for turn in _turns(header):
        pixels = turn(pixels)
    pixels.flags.writeable = False
    return pixels


def upright_size(header: Header) -> tuple[int, int]:
    """Return width and height of a picture in its own pixels, turned as its orientation says."""
    sideways = header.orientation >= 5
    return (header.height, header.width) if sideways else (header.width, header.height)


def _turns(header: Header) -> tuple[Callable[[Pixels], Pixels], ...]:
    # OpenCV turns TIFFs itself, whatever its flags say.
    return () if header.kind == "tiff" else _UPRIGHT[header.orientation]


def _choose(header: Header, path: Path, budget: Budget) -> _Way:
    """Return the best way to decode that fits the budget.

    No model has buffers while a picture is decoded, so decoding may take all that is spare.
    """
    spare, need = budget.decode_bytes, 0
    best: _Way | None = None
    for way in _ways(header):
        need = header.beside_bytes + _held_bytes(header, way, budget.frame_bytes)
        if need <= spare:
            best = way
            # A JPEG at half its scale is decoded faster than one that is averaged down to that afterwards.
            if header.kind != "jpeg" or way.bytes <= 2 * budget.frame_bytes:
                break
    if best is not None:
        return best
    raise FrameError(
        "memory",
        f"{path}: a {header.width}x{header.height} {header.kind.upper()} needs {need // MB + 1} MB to decode, "
        f"{max(0, spare) // MB} MB are free for it: raise --memory-mb or memory.limit_mb by {(need - spare) // MB + 1}",
    )


def _held_bytes(header: Header, way: _Way, frame_bytes: int) -> int:
    """Return the largest size of the copies of a picture while it is decoded, reduced or turned upright."""
    kept = min(way.bytes, frame_bytes)
    reduced = way.bytes + (kept if way.bytes > frame_bytes else 0)
    return max(way.bytes * way.copies, reduced, 2 * kept if _turns(header) else 0)


def _ways(header: Header) -> Iterator[_Way]:
    """Yield ways to decode a picture, best first: in colour, then a JPEG at fractions of its scale, others in grey."""
    size = header.width * header.height
    if header.alpha:
        yield _Way(cv2.IMREAD_UNCHANGED, None, size * 4 * (2 if header.bits > 8 else 1), copies=2)
    # OpenCV turns a TIFF of these into a second array.
    copies = 2 if header.kind == "tiff" and header.orientation >= 5 else 1
    for factor in (1, 2, 4, 8) if header.kind == "jpeg" else (1,):
        shape = (-(-header.height // factor), -(-header.width // factor))
        if header.channels > 1:
            yield _Way(_COLOUR_AT[factor], (*shape, 3), math.prod(shape) * 3, copies)
        if header.channels == 1 or header.kind != "jpeg":
            yield _Way(_GREY_AT[factor], shape, math.prod(shape), copies)


@cache  # OpenCV's imread keeps the name it is given for ever: it gets the same one each time
def _name(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _decode(handle: BinaryIO, way: _Way, header: Header, path: Path) -> Pixels:
    # By descriptor: the file that was checked is the file decoded, whatever bytes its name has.
    name = _name(handle.fileno())
    try:
        with _quiet():
            pixels = _imread(name if os.path.exists(name) else os.fsdecode(path), way, header)
    except cv2.error as error:
        raise FrameError("damaged", f"{path}: the decoder refused it ({' '.join(error.err.split())})") from error
    if pixels is None or pixels.size == 0:
        raise FrameError("damaged", f"{path}: damaged, or a kind of {header.kind.upper()} that cannot be decoded")
    decoded: Pixels = np.asarray(pixels)
    return decoded


def _imread(name: str, way: _Way, header: Header) -> Pixels | None:
    """Return a decoded picture, not turned by its orientation (TIFFs are), or None.

    It is decoded into an array made here: otherwise `imread` holds it twice (OpenCV 4.11). When it cannot make out the
    header it leaves such an array as it is and says nothing, so the array starts with random bytes.
    """
    flags = way.flags if way.flags == cv2.IMREAD_UNCHANGED else way.flags | cv2.IMREAD_IGNORE_ORIENTATION
    if header.kind == "tiff" and (header.part or header.orientation >= 5):
        # `imread` takes the first page only, and refuses these orientations (4.11: "Internal imread issue").
        read, pages = cv2.imreadmulti(name, start=header.part, count=1, flags=flags)
        return pages[0] if read else None
    if way.shape is None or way.bytes < 64:
        return cv2.imread(name, flags)
    mark, target = os.urandom(64), np.empty(way.shape, np.uint8)
    target.reshape(-1)[:64] = np.frombuffer(mark, np.uint8)
    decoded: Pixels | None = cv2.imread(name, target, flags)
    if decoded is not None and decoded.reshape(-1)[:64].tobytes() == mark:
        return None
    return decoded


_DECODING = threading.Lock()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep descriptor 2 shut while a picture is decoded, one thread at a time.

    libpng and libjpeg write there themselves ("libpng error: IDAT: CRC error"), past every switch of OpenCV; a bad file
    is worth one line, and that comes from the caller. It costs five system calls.
    """
    if sys.__stderr__ is None:  # started with it shut: the descriptor may be the picture's own
        yield
        return
    with _DECODING:
        shown, shut = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(shut, 2)
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            os.close(shut)


def _check_complete(handle: BinaryIO, header: Header, path: Path) -> None:
    """Refuse a JPEG or PNG without its end marker: decoders fill the missing part with grey and say nothing.

    A JPEG of endless scans is refused too.
    """
    if header.kind in ("jpeg", "png") and not is_complete(handle, header):
        raise FrameError("truncated", f"{path}: truncated, its end is missing")
    if header.kind == "jpeg" and header.beside_bytes:  # of any other a decoder takes no second scan
        jpeg.check_scans(handle, header.data_at, header.width * header.height, path)


def _as_bytes(pixels: Pixels) -> Pixels:
    """Return uint8 (H, W, 3), or (H, W) for grey, from whatever the decoder gave; transparent parts become white."""
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=1 / 257)
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
    rows = max(1, 100_000 // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):  # in strips: the sums need 16 bits
        strip = pixels[top : top + rows]
        opaque = strip[:, :, 3:].astype(np.uint16)
        blended[top : top + rows] = (strip[:, :, :3] * opaque + 255 * (255 - opaque)) // 255
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


def tile(width: int, height: int, *, max_px: int, multiple: int, overlap: int = 64) -> tuple[Tile, ...]:
    """Cover a page with windows of one size, sides multiples of `multiple`, at most `max_px` large where that can be.

    Windows span the whole width where that leaves a useful height, because lines run across and a seam through them
    costs some; then the grid with the fewest pixels in total is taken. Neighbours overlap and meet in the middle of
    the overlap; the kept parts cover the page exactly once.
    """
    columns = _divisions(width, multiple, overlap)
    rows = _divisions(height, multiple, overlap)
    grids = [(nx, span, ny, rise) for nx, span in columns for ny, rise in rows]
    fitting = [g for g in grids if g[1] * g[3] <= max_px] or [grids[-1]]
    useful = [g for g in fitting if g[3] >= min(height, 8 * multiple)] or fitting
    nx, span, ny, rise = min(useful, key=lambda g: (g[0], g[0] * g[1] * g[2] * g[3]))
    return tuple(
        Tile(left, top, span, rise, keep_left, keep_top, keep_right, keep_bottom)
        for top, keep_top, keep_bottom in _cuts(height, rise, ny)
        for left, keep_left, keep_right in _cuts(width, span, nx)
    )


def _divisions(length: int, multiple: int, overlap: int) -> list[tuple[int, int]]:
    """Return (count, side) of the windows that share a length evenly, for every useful count."""
    divisions, count = [], 1
    while True:
        side = math.ceil((length + (count - 1) * overlap) / count / multiple) * multiple
        divisions.append((count, side))
        if side <= 2 * overlap + multiple or count > 64:
            return divisions
        count += 1


def _cuts(length: int, side: int, count: int) -> list[tuple[int, int, int]]:
    """Return (start, keep from, keep to) of `count` windows along one axis."""
    if count == 1:
        return [(0, 0, length)]
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
