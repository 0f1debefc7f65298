"""The histogram of λ_max of every mini-batch's own matrix, with that of all data marked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hvpspec.plots.style import INK, NEGATIVE, POSITIVE, Panel, whole_numbers
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Batches, End

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_BINS, _MOST_BINS = 8, 40
_LEAST_RATIO_OF_LOG = 30.0  # of the largest value to the smallest: from here on, the axis is logarithmic
_NAMES: dict[End, str] = {"largest": "λ_max", "smallest": "λ_min"}


def batches_panels(found: Batches) -> list[Panel]:
    """A histogram for each end that is known of two batches or more."""
    return [_panel(found, end) for end in found.ends if len(found.estimates(end)) > 1]


def _panel(found: Batches, end: End) -> Panel:
    name, values = _NAMES[end], found.values(end)
    whole: Estimate | None = None if found.whole is None else getattr(found.whole, end)
    of_all = "" if whole is None else f"; that of all data is {whole.value:.3g}"
    alt = f"How {name} of {len(values)} mini-batches is distributed: {values.min():.3g} to {values.max():.3g}{of_all}."
    title = f"{name} of each mini-batch"
    mean = found.mean(end)
    return Panel(f"batches-{end}", title, alt, partial(_draw, name=name, values=values, mean=mean, whole=whole))


def _draw(axes: Axes, *, name: str, values: np.ndarray, mean: float, whole: Estimate | None) -> None:
    edges = bin_edges(values)
    counts, _ = np.histogram(values, edges)
    middles = (edges[:-1] + edges[1:]) / 2
    colours = [NEGATIVE if middle < 0 else POSITIVE for middle in middles]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, alpha=0.55, edgecolor="white")
    shown = [edges[0], edges[-1]]
    if whole is not None:
        low, high = whole.interval
        if np.isfinite([low, high]).all():
            axes.axvspan(low, high, color=INK, alpha=0.15, linewidth=0)
        axes.axvline(whole.value, color=INK, linewidth=1.5, label="all data")
        shown.append(whole.value)
    axes.axvline(mean, color=INK, linewidth=1.2, linestyle="--", label="mean of the batches")
    if _is_wide(np.append(values, shown[2:])):
        axes.set_xscale("log")
        axes.set_xlim(min(shown) / 1.15, max(shown) * 1.15)
    else:
        room = 0.04 * (max(shown) - min(shown))
        axes.set_xlim(min(shown) - room, max(shown) + room)
    axes.set_ylim(0, 1.25 * counts.max())  # room for the legend
    whole_numbers(axes.yaxis)
    axes.set_xlabel(f"{name} of the mini-batch's own matrix")
    axes.set_ylabel(f"mini-batches, of {len(values):,}")
    axes.legend(loc="upper right", ncols=2)


def bin_edges(values: np.ndarray) -> np.ndarray:
    """Of bins of one width, on a logarithmic axis where the values are far apart (Freedman and Diaconis)."""
    on_axis = np.log10(values) if _is_wide(values) else values
    low, high = float(on_axis.min()), float(on_axis.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = 0.05 * max(abs(low), 1e-12)
        low, high = low - half, high + half
    ideal = len(np.histogram_bin_edges(on_axis, "fd", (low, high))) - 1
    edges = np.linspace(low, high, int(np.clip(ideal, _LEAST_BINS, _MOST_BINS)) + 1)
    found = 10.0**edges if _is_wide(values) else edges
    found[0], found[-1] = min(found[0], values.min()), max(found[-1], values.max())
    return found


def _is_wide(values: np.ndarray) -> bool:
    return bool(values.min() > 0 and values.max() > _LEAST_RATIO_OF_LOG * values.min())
