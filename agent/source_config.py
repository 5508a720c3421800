"""The settings of sources: one class for each kind, told apart by `type`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from agent.setting_types import Days, Megabytes, Secret, SourceName, Strict, Wait

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Percent = Annotated[float, Meta(ge=0.0, le=100.0)]
GreyLevels = Annotated[float, Meta(ge=0.0, le=255.0)]


class FolderConfig(Strict, frozen=True, tag_field="type", tag="folder"):
    """A folder that scanners or people put pictures into.

    Attributes:
        name: of the source, in results.
        path: the folder; handled files go into `done` and `failed` below it.
        stable_s: a file is taken when its size and time have not changed for so long.
        give_up_s: a file that has not changed for so long and still lacks its end is refused.
        poll_s: the folder is listed this often, besides what the system reports at once.
        when_done: "keep" moves files that were read to `done`, "delete" deletes them; refused ones go to `failed`.
        keep_days: handled files older than this are deleted.
        keep_mb: and the oldest of them when they are larger than this together.
        again: what happens with a picture that was read before: "skip" it or "read" it once more.
    """

    name: SourceName
    path: Annotated[str, Meta(min_length=1)]
    stable_s: Wait = 2.0
    give_up_s: Wait = 60.0
    poll_s: Wait = 5.0
    when_done: Literal["keep", "delete"] = "keep"
    keep_days: Days = 30.0
    keep_mb: Megabytes = 2048
    again: Literal["skip", "read"] = "skip"


ScannerWord = Annotated[
    str,
    Meta(pattern=r"^[^\x00-\x1f]{1,64}\Z", description="a word of `scanimage -A` in quotes"),
]
PageSize = Annotated[
    str,
    Meta(
        pattern=r"^(a3|a4|a5|a6|letter|legal|[1-9][0-9]{1,2}x[1-9][0-9]{1,2})\Z",
        description='"a3", "a4", "a5", "a6", "letter", "legal", or width and height in mm such as "210x297"',
    ),
]
ScanOption = Annotated[
    str,
    Meta(
        pattern=r"^--(?!batch|format|output|device|progress|help|list|dont|test\Z|all|version|verbose)"
        r"[a-z0-9-]+(=[^\x00-\x1f]*)?\Z",
        description='options of the scanner as `scanimage -A` lists them, such as ["--swdeskew=yes"]',
    ),
]


class ScannerConfig(Strict, frozen=True, tag_field="type", tag="scanner"):
    """A scanner of this machine, through SANE's program `scanimage`.

    Attributes:
        name: of the source, in results.
        device: SANE's name of the scanner, from `edge-ocr check`; empty where there is only one.
        feeder: where paper is: "flatbed", "adf", "adf-duplex" (both sides), or the scanner's own word for it.
        trigger: "feeder" scans whatever is put into the feeder; "order" scans when `edge-ocr scan` says so.
        poll_s: the feeder is looked into this often.
        resolution_dpi: 300 is enough for print.
        mode: "gray", "color", "lineart", or the scanner's own word for it.
        page_size: of the paper; more than the scanner can is cut to what it can.
        options: more options of the scanner.
        timeout_s: a scan that makes no progress for so long is ended.
        max_waiting: no paper is fed while so many pages wait to be read.
        when_done: "keep" keeps pages that were read, "delete" deletes them; refused ones are kept.
        keep_days: pages that were read or refused and are older than this are deleted.
        keep_mb: and the oldest of them when they are larger than this together.
    """

    name: SourceName
    device: Annotated[str, Meta(pattern=r"^[^\x00-\x1f]{0,200}\Z", description="a name in quotes")] = ""
    feeder: ScannerWord = "adf"
    trigger: Literal["feeder", "order"] = "feeder"
    poll_s: Wait = 10.0
    resolution_dpi: Annotated[int, Meta(ge=50, le=1200)] = 300
    mode: ScannerWord = "gray"
    page_size: PageSize = "a4"
    options: tuple[ScanOption, ...] = ()
    timeout_s: Annotated[float, Meta(ge=1.0, le=3600.0)] = 120.0
    max_waiting: Annotated[int, Meta(ge=1, le=1000)] = 20
    when_done: Literal["keep", "delete"] = "keep"
    keep_days: Days = 30.0
    keep_mb: Megabytes = 2048


class DocumentsConfig(Strict, frozen=True):
    """How files of several pages are read: PDF and TIFF.

    Attributes:
        max_pages: a document with more is refused.
        pdf_dpi: resolution at which a page of a PDF is drawn that is no scan.
    """

    max_pages: Annotated[int, Meta(ge=1, le=4096)] = 200
    pdf_dpi: Annotated[float, Meta(ge=72.0, le=600.0)] = 200.0


class CameraConfig(Strict, frozen=True, tag_field="type", tag="camera"):
    """A camera that pages are held under: each is taken once, when it lies still.

    Attributes:
        name: of the source, in results.
        device: path of a V4L2 device, best the one below /dev/v4l/by-id; an address that begins with rtsp:// or
            http://; a named pipe, or a video file, which is played once.
        username: at the address, or empty.
        password: where the password for it is.
        width: asked of a V4L2 device, in pixels; it takes the nearest that it has.
        height: likewise.
        left: edge of what is looked at, as a share of the picture's width.
        top: likewise, of its height.
        right: likewise, of its width.
        bottom: likewise, of its height.
        preset: limits for a "document-camera" above a table, or a "stream" from farther away.
        still_s: a page is taken when it has not moved for so long. This and the next four: None has the preset's.
        max_motion: what may change meanwhile, in percent of the picture.
        min_sharpness: edges at least so steep, in grey levels a pixel.
        min_change: so much of the writing is not as on the page taken last, in percent.
        min_text: so much stands out like writing, in percent of the picture; less is an empty table.
        max_black: a picture no brighter than this on average is black, in grey levels.
        frozen_s: a device that repeats the same picture bit for bit for so long hangs; 0: it may.
        when_done: "keep" moves pages that were read to `done`, "delete" deletes them; refused ones go to `failed`.
        keep_days: handled pages older than this are deleted.
        keep_mb: and the oldest of them when they are larger than this together.
    """

    name: SourceName
    device: Annotated[str, Meta(min_length=1, max_length=4096)]
    username: Annotated[str, Meta(max_length=256)] = ""
    password: Secret | None = None
    width: Annotated[int, Meta(ge=160, le=16_384)] = 1920
    height: Annotated[int, Meta(ge=120, le=16_384)] = 1080
    left: Share = 0.0
    top: Share = 0.0
    right: Share = 1.0
    bottom: Share = 1.0
    preset: Literal["document-camera", "stream"] = "document-camera"
    still_s: Annotated[float, Meta(ge=0.05, le=60.0)] | None = None
    max_motion: Percent | None = None
    min_sharpness: GreyLevels | None = None
    min_change: Percent | None = None
    min_text: Percent | None = None
    max_black: GreyLevels = 10.0
    frozen_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 3.0
    when_done: Literal["keep", "delete"] = "keep"
    keep_days: Days = 30.0
    keep_mb: Megabytes = 2048


class UploadConfig(Strict, frozen=True, tag_field="type", tag="upload"):
    """Files that programs on this machine send over HTTP, and wait for what is read on them.

    Attributes:
        name: of the source, in results.
        listen: where: an address of this machine, a unix socket, or a socket that systemd passes.
        token: where the token is that requests must bear.
        anyone: requests need no token; on a unix socket its rights say who may ask.
        masked: answers are masked as results are; false gives the whole text to who asked, results stay masked.
        max_mb: of a file.
        timeout_s: a request waits for its answer so long; the file is read all the same.
        max_waiting: files that wait; more are refused for now.
        max_connections: at the same time.
        max_per_minute: requests of one address.
        repeat_s: an answer can be had again under its Idempotency-Key for so long without reading again.
        when_done: "keep" moves files that were read to `done`, "delete" deletes them; refused ones go to `failed`.
        keep_days: handled files older than this are deleted.
        keep_mb: and the oldest of them when they are larger than this together.
    """

    name: SourceName
    listen: Annotated[
        str,
        Meta(
            pattern=r"^([^\s\x00]+:[0-9]{1,5}|unix:/[^\x00\n]{1,100}|systemd)\Z",
            description='"127.0.0.1:PORT", "[::1]:PORT", "unix:/PATH" or "systemd"',
        ),
    ]
    token: Secret | None = None
    anyone: bool = False
    masked: bool = True
    max_mb: Annotated[int, Meta(ge=1, le=1024)] = 25
    timeout_s: Wait = 30.0
    max_waiting: Annotated[int, Meta(ge=1, le=1000)] = 20
    max_connections: Annotated[int, Meta(ge=1, le=100)] = 32
    max_per_minute: Annotated[int, Meta(ge=1, le=100_000)] = 600
    repeat_s: Annotated[float, Meta(ge=0.0, le=604_800.0)] = 86_400.0
    when_done: Literal["keep", "delete"] = "delete"
    keep_days: Days = 30.0
    keep_mb: Megabytes = 2048


def spool_config(config: CameraConfig | ScannerConfig | UploadConfig, path: Path) -> FolderConfig:
    """Return the settings of the folder that a source keeps its own files in; they come whole, none is waited for."""
    return FolderConfig(
        name=config.name,
        path=str(path),
        stable_s=0.0,
        when_done=config.when_done,
        keep_days=config.keep_days,
        keep_mb=config.keep_mb,
    )


_LOOPBACK = re.compile(r"(127(?:\.[0-9]{1,3}){3}|localhost|\[::1\]):([0-9]{1,5})\Z")


def loopback(listen: str) -> tuple[str, int] | None:
    """Return address and port of this machine in `listen`; None when others could reach it, or it is none."""
    found = _LOOPBACK.match(listen)
    if found is None or not 1 <= int(found[2]) <= 65_535:
        return None
    return found[1].strip("[]").replace("localhost", "127.0.0.1"), int(found[2])


SourceConfig = FolderConfig | ScannerConfig | CameraConfig | UploadConfig
"""Every kind of source, told apart by `type`; without it a source is a folder."""
