"""The picture of the groups of parameters: bars of trace and norm, with the name of each group above its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hvpspec.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BLOCKS = 24
_FIGURES = (("trace", "trace"), ("frobenius_norm", "Frobenius norm"))


def chosen(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest, as many as can be read."""
    return sorted(entries, key=_size, reverse=True)[:MOST_BLOCKS]


def title(entries: list[dict[str, Any]]) -> str:
    rest = len(entries) - MOST_BLOCKS
    return "Groups of parameters" + (f" (the {MOST_BLOCKS} largest; {rest:,} more)" if rest > 0 else "")


def height(count: int) -> float:
    return 1.3 + 0.46 * count


def draw_blocks(
    axes: Axes, entries: list[dict[str, Any]], among: list[dict[str, Any]], rows: int,
    colours: tuple[str, str, str, str],
) -> None:  # fmt: skip
    """among: the groups whose figures the axis has room for. rows: groups that there is height for. colours: positive,
    negative, of the norm, of lines."""
    positive, negative, faint, ink = colours
    places = np.arange(len(entries), dtype=float)
    for (key, name), colour, shift in zip(_FIGURES, (positive, faint), (0.04, 0.3), strict=True):
        values = np.array([_figure(entry, key)[0] for entry in entries])
        errors = np.array([_figure(entry, key)[1] for entry in entries])
        sides = [negative if value < 0 else colour for value in values]
        axes.barh(places + shift, values, 0.24, xerr=errors, color=sides, ecolor=ink, capsize=1.5)
        axes.bar(0, 0, 0, color=colour, label=name)  # for the legend
    spans = [_figure(entry, key) for entry in among for key, _ in _FIGURES]
    low = min([0.0, *(value - error for value, error in spans if math.isfinite(value))])
    high = max([0.0, *(value + error for value, error in spans if math.isfinite(value))])
    room = 0.03 * (high - low) or 1.0
    axes.set_xlim(low - room if low < 0 else 0.0, high + room if high > 0 else 0.0)
    axes.set_ylim(rows - 0.45, -0.55)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # names are read over the line at zero
    for place, entry in zip(places, entries, strict=True):
        name = shortened(entry["name"], 50).replace("$", r"\$")  # no mathematics in it
        axes.text(
            0.01, place - 0.13, name, transform=axes.get_yaxis_transform(), fontsize=9.5, va="bottom", bbox=behind
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=ink, linewidth=0.8)
    axes.set_xlabel("of the group's diagonal block, ± error")
    axes.locator_params(axis="x", nbins=6)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def alt(entries: list[dict[str, Any]]) -> str:
    return f"Trace and Frobenius norm of {len(entries)} groups of parameters, with error bars; the same in the table."


def _figure(entry: dict[str, Any], key: str) -> tuple[float, float]:
    """Value and error; a value that is not known is NaN, an error that is not known has no bar."""
    figure = entry[key] or {}
    value = figure.get("value")
    return (math.nan if value is None else float(value)), float(figure.get("error") or 0.0)


def _size(entry: dict[str, Any]) -> float:
    figure = entry["frobenius_norm"] or entry["trace"]
    return abs(figure["value"] or 0.0)
