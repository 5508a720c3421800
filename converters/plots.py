"""The plots of a report, drawn from its `report.json`. Runs in a process of its own (`native`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from converters.anatomy import Part
from converters.report import Report, sizes

COLORS = {"float": "#4c72b0", "pruned": "#8c8c8c", "int8": "#dd8452"}
SHADES = ("#4c72b0", "#dd8452", "#55a868")


def draw(report: str, out: str) -> list[str]:
    """Write `pages.png`, `sizes.png` and, for each model, `errors-<model>.png`; returns their names.

    Args:
        report: the file.
        out: directory.
    """
    content = msgspec.json.decode(Path(report).read_bytes(), type=Report)
    with TemporaryDirectory() as cache:
        os.environ["MPLCONFIGDIR"] = cache  # it would write to the home directory, which may not let it
        figures = {"pages": _pages(content), "sizes": _sizes(content)}
        for model, rows in content.layers.items():
            figures[f"errors-{model}"] = _errors(model, rows, content.settings.float_share)
        for name, figure in figures.items():
            figure.savefig(Path(out, f"{name}.png"), dpi=110)
    return [f"{name}.png" for name in figures]


def _canvas(width: float, height: float) -> Any:
    """Return axes of a new figure, width and height in inches, without matplotlib's global state or a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _pages(report: Report) -> Any:
    """Return char_f1 of each set, variants side by side."""
    figures = {"float": [pair.before for pair in report.pages], "int8": [pair.after for pair in report.pages]}
    slims = [pair.slim for pair in report.pages if pair.slim]
    if slims:
        figures = {"float": figures["float"], "pruned": slims, "int8": figures["int8"]}
    axes, width = _canvas(2.5 + 1.6 * len(report.pages), 4.0), 0.8 / len(figures)
    for number, (variant, rows) in enumerate(figures.items()):
        places = [place + (number - (len(figures) - 1) / 2) * width for place in range(len(rows))]
        bars = axes.bar(places, [row.scores.char_f1 for row in rows], width, label=variant, color=COLORS[variant])
        axes.bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
    axes.set_xticks(range(len(report.pages)), [pair.name for pair in report.pages])
    axes.set(ylim=(0.0, 1.08), ylabel="char_f1")
    _add_legend(axes)
    return axes.figure


def _sizes(report: Report) -> Any:
    """Return the bytes of each variant, model on model."""
    known, axes = sizes(report.costs), _canvas(5.5, 4.0)
    bottom = [0.0] * len(known)
    for model, shade in zip(known["float"], SHADES, strict=False):
        heights = [rows[model] / 1e6 for rows in known.values()]
        axes.bar(range(len(known)), heights, 0.6, bottom, label=model, color=shade)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    labels = [f"{variant}\n{total:.2f} MB" for variant, total in zip(known, bottom, strict=True)]
    axes.set_xticks(range(len(known)), labels)
    axes.axhline(report.settings.gate.bytes / 1e6, color="black", linestyle="--", linewidth=1, label="most allowed")
    axes.set(ylabel="MB")
    _add_legend(axes)
    return axes.figure


def _errors(model: str, rows: Sequence[Part], float_share: float) -> Any:
    """Return the share of the error that each layer makes alone; numbers are those of the table of layers."""
    shown = [(number, row) for number, row in enumerate(rows, 1) if row.share is not None]
    axes = _canvas(max(6.0, 1.5 + 0.24 * len(shown)), 4.0)
    kinds = sorted({row.kind for _, row in shown})
    for kind, shade in zip(kinds, SHADES, strict=False):
        for int8 in (True, False):
            found = [(place, row.share) for place, (_, row) in enumerate(shown) if (row.kind, row.int8) == (kind, int8)]
            if found:
                label, hatch = f"{kind}, {'int8' if int8 else 'left in float'}", "" if int8 else "////"
                axes.bar(*zip(*found, strict=True), 0.8, label=label, color=shade, hatch=hatch, edgecolor="white")
    axes.axhline(float_share, color="black", linestyle="--", linewidth=1, label="float_share")
    axes.set_xticks(range(len(shown)), [str(number) for number, _ in shown], fontsize=7)
    axes.set(xlabel=f"layer of {model}, as numbered in the table", ylabel="share of all layers' errors")
    axes.margins(x=0.01)
    _add_legend(axes)
    return axes.figure


def _add_legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 1.14), ncols=5, frameon=False, fontsize=8)
