"""The settings of sources: one class for each kind, told apart by `type`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from agent.setting_types import Days, Megabytes, SourceName, Strict, Wait


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


SourceConfig = FolderConfig
"""Every kind of source, told apart by `type`."""
