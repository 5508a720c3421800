"""What a scanner can be told. Backends have words of their own for the same thing; they are found for the settings."""

from __future__ import annotations

import re
from collections.abc import Mapping

from agent.source_config import ScannerConfig
from agent.sources.scanner.scanimage import PROGRAM, REFUSED, Fault, said_by

PROGRAM_MB = 12

_OPTION = re.compile(r"^    (?:--([a-z0-9-]+)|-([xylt]))(?:\[=\((.*)\)\]| (.*?)) \[(?!inactive)")

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "gray": ("gray", "grey"),
    "color": ("color", "colour"),
    "lineart": ("lineart", "black", "binary", "mono"),
    "flatbed": ("flatbed", "platen", "glass", "table", "normal"),
    "adf": ("adf front", "adf simplex", "adf", "feeder"),
    "adf-duplex": ("duplex", "both"),
}
"""Parts of the words that backends have for a setting, those that fit better first."""

_SIZES_MM: Mapping[str, tuple[int, int]] = {
    "a3": (297, 420),
    "a4": (210, 297),
    "a5": (148, 210),
    "a6": (105, 148),
    "letter": (216, 279),
    "legal": (216, 356),
}


def options_in(lines: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the options that can be set now, with their choices, in what `scanimage -A` prints.

    A range of numbers, "1..1200dpi", is one choice.
    """
    found = {}
    for line in lines:
        if option := _OPTION.match(line):
            found[option[1] or option[2]] = tuple((option[3] or option[4]).split("|"))
    return found


def word_for(wanted: str, choices: tuple[str, ...]) -> str | None:
    """Return the backend's own word for a setting, or None.

    Args:
        wanted: one of the common words, or the backend's own.
        choices: that the backend has.
    """
    same = [choice for choice in choices if choice.lower() == wanted.lower()]
    if same or wanted not in _SYNONYMS:
        return same[0] if same else None
    for part in _SYNONYMS[wanted]:
        near = [choice for choice in choices if part in choice.lower() and _is_meant(wanted, choice.lower())]
        if near:
            return min(near, key=len)  # "Gray" and not "Gray[Error Diffusion]"
    return None


def _is_meant(wanted: str, choice: str) -> bool:
    """Tell whether a choice is not another one that has the same part."""
    return wanted != "adf" or not any(part in choice for part in ("duplex", "both", "back"))


def needs_mb(config: ScannerConfig) -> int:
    """Return the memory that scanimage may take, in MB: its own, and where both sides are scanned at once one of them.

    It writes pages as they come; 6 MB were measured at any size (DECISIONS), and backends take more than SANE's own.
    """
    width, height = size_mm(config.page_size)
    dots = width * height / 25.4**2 * config.resolution_dpi**2
    kept = dots * (1 if config.mode in ("gray", "lineart") else 3) if config.feeder == "adf-duplex" else 0
    return PROGRAM_MB + round(kept / (1 << 20))


def size_mm(page_size: str) -> tuple[int, int]:
    """Return the width and height of a setting `page_size`."""
    if page_size in _SIZES_MM:
        return _SIZES_MM[page_size]
    width, height = map(int, page_size.split("x"))
    return width, height


def has_feeder(arguments: tuple[str, ...]) -> bool:
    """Return whether arguments of `settings` take paper from a feeder, whose end the scanner tells."""
    chosen = next((value.lower() for value in arguments if value.startswith("--source=")), "")
    return any(part in chosen for part in ("adf", "feed", "duplex", "both", "simplex"))


def _tells_its_end(arguments: tuple[str, ...]) -> bool:
    """Tell whether a choice was made, and not that of the glass."""
    return bool(arguments) and not any(part in arguments[0].lower() for part in _SYNONYMS["flatbed"])


def settings(config: ScannerConfig, options: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | Fault:
    """Return scanimage's arguments for the configured settings, or which of them the scanner does not have.

    Args:
        config: the settings.
        options: what the scanner has, from `options_in`.
    """
    source = _source(config.feeder, options)
    mode = _mode(config.mode, options)
    for name, given, found in (("feeder", config.feeder, source), ("mode", config.mode, mode)):
        if found is None:
            has = ", ".join(options.get("source" if name == "feeder" else "mode", ())) or "no choice"
            return Fault(REFUSED, f'{name} = "{given}": this scanner has no such; it has: {has}', 60.0)
    if config.trigger == "feeder" and not _tells_its_end(source or ()):
        advice = 'nothing tells when this is empty, and it would be scanned for ever: set trigger = "order"'
        return Fault(REFUSED, advice, 60.0)
    resolution = (f"--resolution={config.resolution_dpi}",) if "resolution" in options else ()
    return (*(source or ()), *(mode or ()), *resolution, *_area(config.page_size, options), *config.options)


def _source(feeder: str, options: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    choices = options.get("source", ())
    if word := word_for(feeder, choices):
        return (f"--source={word}",)
    if feeder in ("adf", "flatbed") and not choices:
        return ()  # the only place it can take paper from
    if feeder != "adf-duplex":
        return None
    # Some backends have one feeder and say elsewhere whether both sides are wanted.
    one_side = _source("adf", options)
    both = word_for("adf-duplex", options.get("adf-mode", ()))
    more = (f"--adf-mode={both}",) if both else ("--duplex=yes",) if "duplex" in options else None
    return None if one_side is None or more is None else (*one_side, *more)


def _mode(mode: str, options: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    choices, depths = options.get("mode", ()), options.get("depth", ())
    if not choices:
        return ()
    word, bits = word_for(mode, choices), "8"
    if word is None and mode == "lineart":
        word, bits = word_for("gray", choices) if "1" in depths else None, "1"
    if word is None:
        return None
    deep = mode in _SYNONYMS and bits in depths and not (mode == "lineart" and bits == "8")
    return (f"--mode={word}", *((f"--depth={bits}",) if deep else ()))


def _area(page_size: str, options: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the arguments for a page's size in mm; SANE cuts what is more than the scanner can."""
    width, height = size_mm(page_size)
    paper = [f"--{name}={mm}" for name, mm in (("page-width", width), ("page-height", height)) if name in options]
    area = [("-l", 0), ("-t", 0), ("-x", width), ("-y", height)]
    return (*paper, *(part for flag, mm in area if flag[1:] in options for part in (flag, str(mm))))


def ask_options(device: str, options: tuple[str, ...], timeout_s: float) -> dict[str, tuple[str, ...]] | Fault:
    """Return what a scanner can, as `options_in` does, waiting for it.

    Args:
        device: SANE's name.
        options: set before, as they may change what else can be set.
        timeout_s: no longer than this.
    """
    said = said_by((PROGRAM, f"--device-name={device}", *options, "-A"), timeout_s)
    return said if isinstance(said, Fault) else options_in(said)
