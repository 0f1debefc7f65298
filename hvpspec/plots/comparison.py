"""Several runs in one picture: their densities laid over each other, and eigenvalues, trace and norm side by side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hvpspec.escaping import in_picture
from hvpspec.options import EIGENVALUE_KINDS
from hvpspec.plots.bins import LEAST_COUNT, binned_alike
from hvpspec.plots.style import (
    FAINT,
    GRID,
    LINE_STYLES,
    RUN_COLOURS,
    STYLE,
    points,
    sign_handles,
    signed_ticks,
    whole_numbers,
)
from hvpspec.results.runs.comparison import Comparison, Run
from hvpspec.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINEAR_RATIO = 100.0  # of the largest to the smallest eigenvalue, beyond which their axis is logarithmic
_WIDTH = 8.4  # inches
_MAX_LABEL = 60  # letters, of the legend
_LETTER, _HANDLE, _LINE = 0.09, 0.75, 0.22  # inches: a letter of the legend, its handle with the gaps, and a line


def plot_comparison(comparison: Comparison) -> Figure:
    """Draws the runs of a comparison with Matplotlib.

    Each run has a number and a colour. The densities of all runs are in the same bins, with the same smoothing.

    Parameters
    ----------
    comparison : Comparison
        As `hvpspec.runs.compare.compared` returns it.

    Returns
    -------
    matplotlib.figure.Figure
        The densities (where any run has one) above; below, the eigenvalues by rank, the trace and the norm, all with
        error bars.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = comparison.runs
    dense = any(run.spectrum.density is not None for run in runs)
    heights = [3.2, 3.6] if dense else [3.6]
    with matplotlib.rc_context(STYLE):
        handles = [_handle(number, run) for number, run in enumerate(runs)]
        longest = max(len(handle.get_label()) for handle in handles)
        columns = min(max(int(_WIDTH / (_HANDLE + _LETTER * longest)), 1), 4, len(runs))
        legend = 0.3 + _LINE * math.ceil(len(runs) / columns)
        figure = Figure(figsize=(_WIDTH, sum(heights) + legend), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(len(heights), 3, width_ratios=(2.2, 1, 1), height_ratios=heights)
        if dense:
            _draw_densities(figure.add_subplot(grid[0, :]), runs)
        _draw_eigenvalues(figure.add_subplot(grid[-1, 0]), runs)
        for place, name, title in ((1, "trace", "Trace"), (2, "frobenius_norm", "Frobenius norm")):
            _draw_estimates(figure.add_subplot(grid[-1, place]), runs, name, title)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def _draw_densities(axes: Axes, runs: tuple[Run, ...]) -> None:
    found = [(number, run.spectrum.density) for number, run in enumerate(runs) if run.spectrum.density is not None]
    all_bins = binned_alike([density for _, density in found])
    for (number, _), bins in zip(found, all_bins, strict=True):
        axes.stairs(
            np.where(bins.counts >= LEAST_COUNT / 3, bins.counts, np.nan), bins.edges, color=_colour(number),
            linestyle=_line(number), linewidth=1.4, baseline=None,
        )  # fmt: skip
    bins = all_bins[0]
    axes.set_xscale("asinh", linear_width=bins.scale)
    axes.set_yscale("log")
    axes.set_ylim(LEAST_COUNT / 3, 3 * max(float(bins.counts.max()) for bins in all_bins))
    axes.axvline(0, color=FAINT, linewidth=0.8, linestyle=":")
    signed_ticks(axes.xaxis, bins.scale, float(bins.edges[0]), float(bins.edges[-1]), most=20)
    axes.set_title("All eigenvalues, in the same bins for all runs")
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("eigenvalues per bin")


def _draw_eigenvalues(axes: Axes, runs: tuple[Run, ...]) -> None:
    shown: list[float] = []
    for number, run in enumerate(runs):
        pairs = run.spectrum.eigenpairs
        if pairs is not None and len(pairs.values):
            shift = 0.7 * (number - (len(runs) - 1) / 2) / len(runs)
            ranks = np.arange(1, len(pairs.values) + 1) + shift
            points(axes, ranks, pairs.values, pairs.error, signs=pairs.values, colour=_colour(number))
            shown += pairs.values[pairs.values != 0].tolist()
    axes.axhline(0, color=FAINT, linewidth=0.8, linestyle=":")
    least = min(map(abs, shown), default=1.0)
    if shown and max(map(abs, shown)) / least > _LINEAR_RATIO:
        low, high = (1.6 * end for end in (min(*shown, 0.0), max(*shown, 0.0)))
        axes.set_yscale("asinh", linear_width=least)
        axes.set_ylim(low or -least, high or least)
        signed_ticks(axes.yaxis, least, *axes.get_ylim())
    whole_numbers(axes.xaxis)
    kinds = {EIGENVALUE_KINDS[run.spectrum.which] for run in runs}
    title = kinds.pop() if len(kinds) == 1 else "eigenvalues"
    axes.set_title(title[0].upper() + title[1:])
    axes.set_xlabel("rank")
    axes.set_ylabel("eigenvalue ± error")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    if any(value < 0 for value in shown):
        axes.legend(handles=sign_handles(), loc="best")


def _draw_estimates(axes: Axes, runs: tuple[Run, ...], name: str, title: str) -> None:
    for number, run in enumerate(runs):
        estimate = getattr(run.spectrum, name)
        if estimate is not None:
            points(
                axes, number + 1, estimate.value, estimate.error, signs=estimate.value, colour=_colour(number)
            )  # fmt: skip
    axes.set_title(title)
    axes.set_xlabel("run")
    whole_numbers(axes.xaxis)
    axes.set_xlim(0.4, len(runs) + 0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.6)


def _handle(number: int, run: Run) -> Any:
    from matplotlib.lines import Line2D

    label = in_picture(f"{number + 1}: {shortened(run.label, _MAX_LABEL)}")
    return Line2D([], [], color=_colour(number), linestyle=_line(number), linewidth=2, label=label)


def _colour(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def _line(number: int) -> Any:
    return LINE_STYLES[number % len(LINE_STYLES)]
