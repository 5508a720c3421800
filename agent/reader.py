"""Reader: one frame in, one page of text out, inside a memory budget."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec
import numpy as np

from agent import detect, image, memory, orient, recognize
from agent.bundle import ModelBundle, Recognizer
from agent.engines import EngineSettings
from agent.errors import BudgetError
from agent.mate import Crew
from agent.page import Frame, PageResult, Pixels, Quad, TextLine

_log = logging.getLogger(__name__)


class ReaderSettings(msgspec.Struct, frozen=True):
    """How to read.

    Attributes:
        memory_mb: what reading may have resident, all processes together.
        min_score: lines read with less are dropped; at PP-OCR's 0.5 a little more noise comes through.
        short_side_px: pictures are enlarged for the detector until their shorter side has this many pixels.
        long_side_px: and reduced until the longer one has at most this many.
        engine: which runtime, and its threads.
    """

    memory_mb: int = memory.DEFAULT_MB
    min_score: float = 0.55
    short_side_px: int = 480
    long_side_px: int = 1280
    engine: EngineSettings = EngineSettings()


# Lines read with this score are right way up: no other direction is tried.
SURE = 0.8
SAMPLE_LINES = 4

# The recogniser gives one answer for 8 pixels of width, and a repeated letter needs three: where a character has fewer
# pixels than this, letters and spaces go missing, and the line is read again this much wider.
NARROW_PX = 15.0
STRETCH = 1.4

# Boxes lower than this at the detector's scale are drawn too loosely to read well. Where one box in ten is, the page
# is looked at again at a scale that gives them FINE_BOX_PX.
SMALL_BOX_PX = 19.5
SMALL_SHARE = 0.1
FINE_BOX_PX = 32.0


ONE_TILE = 0.8
"""A picture may be looked at by so much smaller, if it then is one tile."""


class _Line(msgspec.Struct, frozen=True):
    """A detected line: its quad as detected, upright on the picture, in pixels of the frame's array."""

    quad: Quad
    box_score: float

    @property
    def height(self) -> float:
        return min(orient.size(self.quad))


class _Found(msgspec.Struct, frozen=True):
    line: _Line
    quarters: int
    text: str
    score: float


class Reader:
    """Reads frames with the models of a bundle. Not safe for use by several threads at once."""

    def __init__(
        self, bundle: ModelBundle, settings: ReaderSettings, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Load the models.

        Args:
            bundle: the models.
            settings: how to read.
            progress: called after each tile and line, for a watchdog: a page may take a minute.

        Raises:
            EngineError: no runtime for this bundle.
            BudgetError: the memory limit is too small for any page.
        """
        memory.keep_heap_small()
        self.bundle = bundle
        self.settings = settings
        self._crew = Crew(bundle, settings.engine, progress)
        try:
            self.budget = self._plan()
        except BudgetError:
            self.close()
            raise

    def _plan(self) -> memory.Budget:
        """Share out the memory; processes go where pictures would have to be kept smaller for their sake."""
        limit = self.settings.memory_mb
        alone = memory.Budget.plan(limit, memory.resident_bytes(), 1)
        while self._crew.size > 1:
            with suppress(BudgetError):
                budget = memory.Budget.plan(limit, self._crew.resident_bytes, self._crew.size)
                if budget.frame_bytes >= alone.frame_bytes:
                    return budget
            _log.warning(
                "a memory limit of %d MB is too small for %d processes without loss: reading with %d; give %d MB more",
                *(limit, self._crew.size, self._crew.size - 1, memory.DEFAULT_MB_PER_MATE),
            )
            self._crew.dismiss()
        return alone

    def close(self) -> None:
        """Give the models back."""
        self._crew.close()

    def rest(self) -> None:
        """Give the models back until the next page, which then takes a fraction of a second longer."""
        self._crew.rest()

    def rebuild(self) -> None:
        """Load the models anew: what they hold beside their weights is given back.

        Raises:
            EngineError: that does not work any more.
        """
        self._crew.rest()
        self._crew.wake()

    @property
    def beside_bytes(self) -> int:
        """Resident memory of the processes that read beside this one."""
        return self._crew.beside_bytes

    def read(self, frame: Frame) -> PageResult:
        """Return the text of a frame, in reading order."""
        began = time.perf_counter()
        timings: dict[str, float] = {}
        with _timed(timings, "det"):
            lines = self._detect(frame.pixels)
        with _timed(timings, "rec"):
            found = self._recognize(frame.pixels, lines)
            self._crew.release()
        kept = [f for f in found if f.score >= self.settings.min_score and f.text.strip()]
        fx, fy = frame.width / frame.pixels.shape[1], frame.height / frame.pixels.shape[0]
        text_lines = tuple(_text_line(f, fx, fy) for f in kept)
        order = orient.reading_order([line.quad for line in text_lines])
        return PageResult(
            image=frame.source,
            width=frame.width,
            height=frame.height,
            lines=tuple(text_lines[i] for i in order),
            seconds=round(time.perf_counter() - began, 4),
            timings_ms=timings,
            bundle=self.bundle.label,
            direction=90 * _main_direction(kept),
        )

    # ------------------------------------------------------------------------------------------- detection

    def _detect(self, pixels: Pixels) -> list[_Line]:
        """Find the lines of a picture, in its pixels; where the print is small, from nearer."""
        scale = self._scale(pixels)
        scale = self._one_tile(pixels, scale)
        lines = self._look(pixels, scale)
        finer = self._finer_scale(pixels, scale, [line.height * scale for line in lines])
        if finer <= scale:
            return lines
        nearer = self._look(pixels, finer)
        # Large print may fall to pieces from so near, or be lost at a tile's end.
        kept = [line for line in lines if line.height * scale >= 1.5 * SMALL_BOX_PX or _lost(line, nearer)]
        return kept + [line for line in nearer if not _covered(line, kept)]

    def _scale(self, pixels: Pixels) -> float:
        """Return the detector's scale of a picture at first sight."""
        short, long = min(pixels.shape[:2]), max(pixels.shape[:2])
        return min(max(1.0, self.settings.short_side_px / short), self.settings.long_side_px / long)

    def _one_tile(self, pixels: Pixels, scale: float) -> float:
        """Return a scale, a little smaller where the whole picture then is one tile: two cost as much again."""
        multiple = self.bundle.manifest.det.multiple
        height, width = pixels.shape[0] * scale, pixels.shape[1] * scale
        most = self.budget.tile_px(pixels.nbytes + _copy_bytes(pixels, scale))
        for side in range(math.ceil(width / multiple), 0, -1):
            share = min(1.0, side * multiple / width)
            if share < ONE_TILE:
                return scale
            if side * multiple * math.ceil(share * height / multiple) * multiple <= most:
                return scale * share
        return scale

    def _finer_scale(self, pixels: Pixels, scale: float, heights: Sequence[float]) -> float:
        """Return the scale for a second look; not above the first where none is needed or possible."""
        if not heights:
            return scale
        small = float(np.quantile(heights, SMALL_SHARE))
        if small >= SMALL_BOX_PX:
            return scale
        wanted = scale * FINE_BOX_PX / small
        # The copy at that scale must leave room for the models beside the picture.
        room = self.budget.spare_bytes - pixels.nbytes - memory.GOOD_TILE_PX * memory.DET_BYTES_PER_PX
        fitting = math.sqrt(max(1, room) / _copy_bytes(pixels, 1.0))
        return min(wanted, fitting, 1.0)

    def _look(self, pixels: Pixels, scale: float) -> list[_Line]:
        """Run the detector over a picture at a scale."""
        height, width = pixels.shape[:2]
        small = image.scaled(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
        spec = self.bundle.manifest.det
        text_map = self._text_map(small, self.budget.tile_px(pixels.nbytes + _copy_bytes(pixels, scale)))
        self._crew.release()
        boxes = detect.find_boxes(
            text_map,
            threshold=spec.threshold,
            box_threshold=spec.box_threshold,
            unclip_ratio=spec.unclip_ratio,
        )
        fx, fy = width / small.shape[1], height / small.shape[0]
        return [_Line(_clipped(_scaled(box.quad, fx, fy), width, height), box.score) for box in boxes]

    def _text_map(self, pixels: Pixels, tile_px: int) -> detect.ProbabilityMap:
        """Return the text probability of every pixel, uint8; tiles meet in the middle of their overlap."""
        height, width = pixels.shape[:2]
        tiles = image.tile(width, height, max_px=tile_px, multiple=self.bundle.manifest.det.multiple)
        whole = np.zeros((height, width), np.uint8)
        maps = self._crew.run("det", [image.window(pixels, piece) for piece in tiles], costs=[1] * len(tiles))
        for piece, part in zip(tiles, maps, strict=True):
            assert isinstance(part, np.ndarray)
            rows, columns = slice(piece.keep_top, piece.keep_bottom), slice(piece.keep_left, piece.keep_right)
            whole[rows, columns] = part[
                piece.keep_top - piece.top : piece.keep_bottom - piece.top,
                piece.keep_left - piece.left : piece.keep_right - piece.left,
            ]
        return whole

    # ----------------------------------------------------------------------------------------- recognition

    def _recognize(self, pixels: Pixels, lines: Sequence[_Line]) -> list[_Found]:
        """Read every line, in whichever direction reads best."""
        if not lines:
            return []
        base = 1 if orient.runs_down([line.quad for line in lines]) else 0
        by_length = sorted(lines, key=lambda line: -max(orient.size(line.quad)))
        sample, rest = by_length[:SAMPLE_LINES], by_length[SAMPLE_LINES:]
        tried = self._read_lines(pixels, [(line, base) for line in sample])
        if _mean_score(tried) < SURE:
            flipped = self._read_lines(pixels, [(line, base + 2) for line in sample])
            if _mean_score(flipped) > _mean_score(tried):
                base, tried = base + 2, flipped
        found = tried + self._read_lines(pixels, [(line, base) for line in rest])
        return self._retry(pixels, found, base)

    def _retry(self, pixels: Pixels, found: list[_Found], base: int) -> list[_Found]:
        """Read lines that came out badly in the other directions their shape allows; keep the best."""
        for turn in (2, 1, 3):
            poor = [f for f in found if f.score < SURE and _may_turn(f.line, base, turn)]
            if turn == 2:
                poor = self._upside_down(pixels, poor)
            again = self._read_lines(pixels, [(f.line, (base + turn) % 4) for f in poor])
            better = {
                id(old): new for old, new in zip(poor, again, strict=True) if new.score > max(old.score, SURE - 0.2)
            }
            found = [better.get(id(f), f) for f in found]
        return found

    def _upside_down(self, pixels: Pixels, found: Sequence[_Found]) -> list[_Found]:
        """Return the lines that the direction classifier, where there is one, does not hold for upright."""
        spec = self.bundle.manifest.cls
        if spec is None or not found:
            return list(found)
        strips = []
        for f in found:
            quad = orient.turned(f.line.quad, f.quarters)
            strips.append(image.pad(image.crop(pixels, quad, spec.height, spec.width), spec.width))
        turned = self._crew.run("cls", strips, costs=[1] * len(strips))
        asked = zip(found, turned, strict=True)
        return [f for f, share in asked if isinstance(share, float) and share > spec.threshold]

    def _read_lines(self, pixels: Pixels, wanted: Sequence[tuple[_Line, int]]) -> list[_Found]:
        """Read lines, each turned by so many quarters; those in narrow print or read badly once more, stretched."""
        spec = self.bundle.manifest.rec
        found = self._read_at(pixels, wanted, spec.squeeze)
        doubtful = [i for i, f in enumerate(found) if f.score < SURE or _is_narrow(f, spec)]
        again = self._read_at(pixels, [wanted[i] for i in doubtful], spec.squeeze * STRETCH)
        for i, f in zip(doubtful, again, strict=True):
            if f.score > found[i].score or _is_narrow(found[i], spec):
                found[i] = f
        return found

    def _read_at(self, pixels: Pixels, wanted: Sequence[tuple[_Line, int]], squeeze: float) -> list[_Found]:
        """Read lines fed at a share of their natural width."""
        spec = self.bundle.manifest.rec
        longest = min(spec.max_width, self.budget.line_px(pixels.nbytes + memory.SCALED_BYTES) // spec.height)
        quads = [orient.turned(line.quad, quarters) for line, quarters in wanted]
        natural = [_input_width(quad, spec, squeeze, longest) for quad in quads]
        widths = recognize.plan_widths(natural, spec.width_step)
        strips = [
            image.pad(image.crop(pixels, quad, spec.height, width), planned)
            for quad, width, planned in zip(quads, natural, widths, strict=True)
        ]
        found = []
        for (line, quarters), reading in zip(wanted, self._crew.run("rec", strips, costs=widths), strict=True):
            assert isinstance(reading, recognize.Reading)
            found.append(_Found(line, quarters, reading.text, reading.score))
        return found


def _copy_bytes(pixels: Pixels, scale: float) -> int:
    """Return what looking at a picture at a scale holds: the copy, and its map whole and in tiles."""
    return int((pixels.nbytes + 2 * pixels.shape[0] * pixels.shape[1]) * scale * scale)


def _input_width(quad: Quad, spec: Recognizer, squeeze: float, longest: int) -> int:
    """Return the recogniser's input width for a line, its quad in reading direction."""
    return recognize.bucket(math.ceil(_line_width(quad, spec, squeeze)), spec.width_step, longest)


def _line_width(quad: Quad, spec: Recognizer, squeeze: float) -> float:
    """Return the width in pixels of a line at the recogniser's height, its quad in reading direction."""
    across, down = image.side_lengths(quad)
    return squeeze * spec.height * across / max(down, 1e-6)


def _is_narrow(found: _Found, spec: Recognizer) -> bool:
    """Return whether a line was read with too few input pixels for its characters."""
    width = _line_width(orient.turned(found.line.quad, found.quarters), spec, spec.squeeze)
    return width < NARROW_PX * len(found.text)


def _may_turn(line: _Line, base: int, turn: int) -> bool:
    """Return whether a line may run `turn` quarters away from the page's direction: across needs a tall box."""
    width, height = orient.size(orient.turned(line.quad, base))
    return height >= orient.TALL * width if turn % 2 else width >= orient.TALL * height


def _covered(line: _Line, others: Sequence[_Line]) -> bool:
    """Return whether a line's centre lies within another's box."""
    x, y = sum(p[0] for p in line.quad) / 4, sum(p[1] for p in line.quad) / 4
    return any(orient.contains(other.quad, (x, y)) for other in others)


def _lost(line: _Line, others: Sequence[_Line]) -> bool:
    """Return whether most of a line lies in none of the others: of nine places along its middle."""
    a, b, c, d = line.quad
    (x0, y0), (x1, y1) = ((a[0] + d[0]) / 2, (a[1] + d[1]) / 2), ((b[0] + c[0]) / 2, (b[1] + c[1]) / 2)
    places = [(x0 + (x1 - x0) * i / 10, y0 + (y1 - y0) * i / 10) for i in range(1, 10)]
    found = sum(any(orient.contains(other.quad, place) for other in others) for place in places)
    return found < len(places) / 2


def _mean_score(found: Sequence[_Found]) -> float:
    total = sum(len(f.text) for f in found)
    return sum(f.score * len(f.text) for f in found) / total if total else 0.0


def _main_direction(found: Sequence[_Found]) -> int:
    """Return the quarter turns, clockwise, of most characters."""
    weight = [sum(len(f.text) for f in found if f.quarters % 4 == quarters) for quarters in range(4)]
    return weight.index(max(weight))


def _text_line(found: _Found, fx: float, fy: float) -> TextLine:
    quad = _scaled(orient.turned(found.line.quad, found.quarters), fx, fy)
    return TextLine(found.text, min(1.0, found.score), quad, min(1.0, found.line.box_score))


def _scaled(quad: Quad, fx: float, fy: float) -> Quad:
    a, b, c, d = ((round(x * fx, 2), round(y * fy, 2)) for x, y in quad)
    return a, b, c, d


def _clipped(quad: Quad, width: int, height: int) -> Quad:
    a, b, c, d = ((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in quad)
    return a, b, c, d


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[name] = round((time.perf_counter() - began) * 1000, 2)
