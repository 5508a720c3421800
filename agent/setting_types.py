"""Types that settings share: names, secrets, durations, with what is accepted said in words."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from agent.protocol import DEVICE_PATTERN

DeviceName = Annotated[
    str,
    Meta(
        pattern=DEVICE_PATTERN,
        description="1 to 64 of A-Z a-z 0-9 _ . - in quotes, the first a letter or digit",
    ),
]
SourceName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z",
        description="1 to 32 of A-Z a-z 0-9 _ - in quotes, the first a letter or digit",
    ),
]
TopicPrefix = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+){0,7}\Z",
        max_length=200,
        description="1 to 8 parts of A-Z a-z 0-9 _ - with / between them, in quotes",
    ),
]
Host = Annotated[
    str,
    Meta(
        pattern=r"^[^\s/@]+\Z",
        max_length=253,
        description="a name or address in quotes, without mqtt:// before it",
    ),
]
Secret = Annotated[
    str,
    Meta(
        pattern=r"^(file|env|credential):[^\x00\n]+\Z",
        description='"file:PATH", "env:NAME" or "credential:NAME" (of systemd); the secret itself has no place here',
        extra={"secret": True},
    ),
]
"""Where a secret is. Never the secret itself."""
Store = Annotated[
    str,
    Meta(
        pattern=r"^(sqlite:[^\x00\n]+|postgresql://[^\x00\n]*)\Z",
        description='"sqlite:PATH" or "postgresql://USER@HOST/DATABASE", its password in store_password',
        extra={"secret": True},  # people write passwords into it
    ),
]
Group = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{0,64}\Z", description="up to 64 of A-Z a-z 0-9 _ - in quotes")]

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")

Megabytes = Annotated[int, Meta(ge=1, le=1 << 20)]
Days = Annotated[float, Meta(ge=0.0, le=3650.0)]
Wait = Annotated[float, Meta(ge=0.05, le=86_400.0)]  # seconds


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of settings; an unknown key in it is an error."""
