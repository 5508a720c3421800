"""Accuracy of read pages against labelled ones.

Text is compared after NFKC folding, lower-casing and removal of white space: full-width forms, case and spacing do
not count.
"""

from __future__ import annotations

import statistics
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from agent.errors import ConfigError, InputError
from converters.boxes import Box, count_matches, lies_in


class Line(msgspec.Struct, frozen=True):
    """One line of text.

    Attributes:
        text: as labelled or as read.
        box: corners (x, y) in pixels of the picture, when labelled.
        quad: corners (x, y) in pixels of the picture, when read.
    """

    text: str
    box: Box | None = None
    quad: Box | None = None


class Page(msgspec.Struct, frozen=True):
    """One picture with its lines, as labelled or as read.

    Attributes:
        image: path of the picture, from the folder of its labels.
        lines: its text.
        seconds: the time it took to read.
        error: why it was not read.
    """

    image: str
    lines: tuple[Line, ...] = ()
    seconds: float | None = None
    error: str | None = None


class Scores(msgspec.Struct, frozen=True):
    """Figures over a set of pictures.

    Attributes:
        images: labelled pictures.
        missing: those that were not read.
        char_f1: F1 of the multiset of characters of each page, summed over pages; order does not count.
        line_recall: share of labelled lines whose text occurs inside one line that was read.
        car: 1 - edit distance / length, of each labelled box's text against the lines whose centre lies in the box,
            left to right; None without labelled boxes.
        hmean: of precision and recall of the boxes of lines (`_hmean`); None without pages whose every line has a box.
        p50_s: seconds per picture, median.
        p95_s: seconds per picture, 95th percentile.
        total_s: seconds of all pictures.
    """

    images: int
    missing: int
    char_f1: float
    line_recall: float
    car: float | None
    hmean: float | None
    p50_s: float | None
    p95_s: float | None
    total_s: float


def score(labels: Sequence[Page], read: Mapping[str, Page]) -> Scores:
    """Return the figures of pages that were read, keyed by the labels' `image`."""
    pairs = [(label, read.get(label.image, Page(label.image))) for label in labels]
    seconds = sorted(page.seconds for _, page in pairs if page.seconds is not None)
    return Scores(
        images=len(labels),
        missing=sum(label.image not in read for label in labels),
        char_f1=_char_f1(pairs),
        line_recall=_line_recall(pairs),
        car=_character_accuracy(pairs),
        hmean=_hmean(pairs),
        p50_s=_at(seconds, 0.50),
        p95_s=_at(seconds, 0.95),
        total_s=sum(seconds),
    )


def fold(text: str) -> str:
    """Return text as it is compared."""
    return "".join(unicodedata.normalize("NFKC", text).lower().split())


def edits(a: str, b: str) -> int:
    """Return the Levenshtein distance of two strings."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


Pairs = Sequence[tuple[Page, Page]]


def _char_f1(pairs: Pairs) -> float:
    same = total = 0
    for label, page in pairs:
        wanted, found = (Counter("".join(fold(line.text) for line in side.lines)) for side in (label, page))
        same += (wanted & found).total()
        total += wanted.total() + found.total()
    return 2 * same / max(1, total)


def _line_recall(pairs: Pairs) -> float:
    hits = []
    for label, page in pairs:
        texts = [fold(line.text) for line in page.lines]
        hits += [any(wanted in text for text in texts) for wanted in map(fold, _texts(label)) if wanted]
    return sum(hits) / max(1, len(hits))


def _texts(page: Page) -> Iterable[str]:
    return (line.text for line in page.lines)


def _character_accuracy(pairs: Pairs) -> float | None:
    wrong = length = 0
    for label, page in pairs:
        placed = [(*_centre(line.quad), fold(line.text)) for line in page.lines if line.quad]
        for line in label.lines:
            wanted = fold(line.text)
            if wanted and line.box:
                length += len(wanted)
                wrong += min(len(wanted), edits(wanted, _text_in(line.box, placed)))
    return 1 - wrong / length if length else None


def _text_in(box: Box, placed: Iterable[tuple[float, float, str]]) -> str:
    """Return the texts whose centres lie in a box's upright bounds, left to right."""
    left, right = min(x for x, _ in box), max(x for x, _ in box)
    top, bottom = min(y for _, y in box), max(y for _, y in box)
    inside = sorted((x, text) for x, y, text in placed if left <= x <= right and top <= y <= bottom)
    return "".join(text for _, text in inside)


def _centre(quad: Box) -> tuple[float, float]:
    return statistics.fmean(x for x, _ in quad), statistics.fmean(y for _, y in quad)


def _hmean(pairs: Pairs) -> float | None:
    """Return the harmonic mean of precision and recall of boxes, by ICDAR 2015's rule for words, here for lines.

    Labels may hold words or blocks where the detector finds lines, and lines whose text was not read are not given: the
    figure compares bundles on one set, and is only as good as the labels share our notion of a line. Pages with a
    labelled line that has no box are left out: what is read there would count as found for nothing.
    """
    hits = total = wanted = 0
    for label, page in pairs:
        lines = [line for line in label.lines if fold(line.text)]
        boxes = [line.box for line in lines if line.box]
        if boxes and len(boxes) == len(lines):
            unread = [line.box for line in label.lines if line.box and not fold(line.text)]
            found = [line.quad for line in page.lines if line.quad and not lies_in(line.quad, unread)]
            hits += count_matches(boxes, found)
            total, wanted = total + len(boxes) + len(found), wanted + len(boxes)
    return 2 * hits / total if wanted else None


def _at(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def load_labels(path: Path) -> list[Page]:
    """Read labelled pages, one JSON object per line.

    Raises:
        InputError: the file cannot be read.
        ConfigError: a line is not a labelled page; the message has its number.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    pages = [_label(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not pages:
        raise ConfigError(f"{path}: holds no labelled page")
    return pages


def _label(line: bytes, where: str) -> Page:
    try:
        return msgspec.json.decode(line, type=Page)
    except msgspec.MsgspecError as error:
        raise ConfigError(f'{where}: not {{"image": ..., "lines": [{{"text": ..., "box": ...}}]}}: {error}') from error
