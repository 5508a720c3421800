"""The values that pass between the parts: Frame, TextLine, PageResult; and their JSON, both ways."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from agent.errors import FrameError

SCHEMA = 1

Pixels = npt.NDArray[np.uint8]
Point = tuple[float, float]
Quad = tuple[Point, Point, Point, Point]
"""Four corners (x, y) in frame pixels: top left, top right, bottom right, bottom left of the text as it is read."""

Score = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


def page_key(document: str, page: int) -> str:
    """Return the key of a page, numbered from 1, of the document with a key."""
    return f"{document}:p{page}"


def document_keys(key: str, pages: int) -> tuple[str, ...]:
    """Return the keys of all pages of the document that a page belongs to; of a picture (no pages) its own."""
    document = key.rpartition(":p")[0]
    return tuple(page_key(document, page) for page in range(1, pages + 1)) or (key,)


class Frame(msgspec.Struct, frozen=True):
    """One picture to read.

    Attributes:
        key: stable identity, such as a content hash.
        source: configured name of the source, or the path as given.
        pixels: uint8 (rows, columns, 3) BGR, or (rows, columns) grey; may be a reduced copy of the picture.
        width: width of the picture in its own pixels, upright as EXIF says.
        height: height of the picture in its own pixels.
        taken_at: Unix seconds, UTC.
    """

    key: str
    source: str
    pixels: Pixels
    width: int
    height: int
    taken_at: float = 0.0


class TextLine(msgspec.Struct, frozen=True):
    """One line of text.

    Attributes:
        text: what was read, Unicode as the dictionary has it.
        score: mean probability of its characters, 0..1.
        quad: corners in frame pixels, in reading direction.
        box_score: mean text probability inside the detected box, 0..1.
    """

    text: str
    score: Score
    quad: Quad
    box_score: Score = 0.0


class PageResult(msgspec.Struct, frozen=True):
    """What was read on one page. A blank page has no lines; a page that failed has an `error`.

    Results of the agent also have `key`, the stable identity of the page, `source`, the configured name of where it
    came from, and `taken_at`, Unix seconds, UTC. Pages of a document have `page`, from 1, and `pages`.
    """

    image: str
    width: int
    height: int
    lines: tuple[TextLine, ...] = ()
    seconds: float = 0.0
    timings_ms: dict[str, float] = {}
    bundle: str = ""
    direction: int = 0
    error: str | None = None
    reason: str | None = None
    key: str = ""
    source: str = ""
    taken_at: float = 0.0
    page: int = 0
    pages: int = 0
    schema: int = SCHEMA

    def with_decoding(self, seconds: float) -> PageResult:
        """Return this result with the time it took to decode the picture counted in."""
        timings = {"decode": round(seconds * 1000, 2), **self.timings_ms}
        return msgspec.structs.replace(self, seconds=round(self.seconds + seconds, 4), timings_ms=timings)


class _Head(msgspec.Struct):
    schema: int = SCHEMA


_head_decoder = msgspec.json.Decoder(_Head)
_decoder = msgspec.json.Decoder(PageResult)


def to_json(page: PageResult) -> bytes:
    """Return a page as one line of JSON, schema number first."""
    fields = {"schema": page.schema, **{f: getattr(page, f) for f in page.__struct_fields__ if f != "schema"}}
    if page.error is None:
        del fields["error"], fields["reason"]
    if not page.key:  # read by hand
        del fields["key"], fields["source"], fields["taken_at"]
    if not page.pages:
        del fields["page"], fields["pages"]
    return msgspec.json.encode(fields)


def from_json(line: bytes) -> PageResult:
    """Return the page in one line of JSON.

    Raises:
        FrameError: not JSON of this form, or of a newer schema.
    """
    try:
        schema = _head_decoder.decode(line).schema  # first: a newer form may differ in anything else
        if schema > SCHEMA:
            raise FrameError("schema", f"page result has schema {schema}; this version reads up to {SCHEMA}")
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError("json", f"not a page result: {error}") from error
