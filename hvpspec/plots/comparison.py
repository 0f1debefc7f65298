"""Runs side by side, in one picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from hvpspec.plots.style import STYLE, bars, signed_ticks
from hvpspec.results.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a")  # Okabe and Ito's
_MARKERS = "ovsD^P*"
_WIDE = 100.0  # beyond this ratio of the largest to the smallest, an axis is logarithmic


def plot_comparison(comparison: Comparison) -> Figure:
    """The eigenvalues of all runs by rank, and trace and norm beside them, all with error bars."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs = comparison.runs
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.8 + 0.2 * math.ceil(len(runs) / 4)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(1, 3, width_ratios=(2.2, 1, 1))
        scree, trace, norm = (figure.add_subplot(grid[0, i]) for i in range(3))
        values: list[float] = []
        for i, run in enumerate(runs):
            look: dict[str, Any] = {"color": _COLOURS[i % 7], "fmt": _MARKERS[i % 7], "markersize": 4.5}
            look |= {"capsize": 2.5, "elinewidth": 1}
            pairs = run.spectrum.eigenpairs
            if pairs is not None and len(pairs.values):
                shift = 0.5 * (i - (len(runs) - 1) / 2) / len(runs)
                ranks = np.arange(1, len(pairs.values) + 1) + shift
                scree.errorbar(ranks, pairs.values, yerr=bars(pairs.error), **look)
                values += pairs.values[pairs.values != 0].tolist()
            for axes, estimate in ((trace, run.spectrum.trace), (norm, run.spectrum.frobenius_norm)):
                if estimate is not None:
                    axes.errorbar(i, estimate.value, yerr=bars(np.array([estimate.error])), **look)
            scree.errorbar([], [], label=run.label.replace("$", r"\$"), **look)
        scree.axhline(0, color="#8a8a8a", linewidth=0.8, linestyle=":")
        least = min(map(abs, values), default=1.0)
        if values and max(map(abs, values)) / least > _WIDE:
            low, high = (1.6 * end for end in (min(*values, 0.0), max(*values, 0.0)))
            scree.set_yscale("asinh", linear_width=least)
            scree.set_ylim(low or -least, high or least)
            signed_ticks(scree.yaxis, least, *scree.get_ylim())
        scree.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        scree.set_title("Eigenvalues, by magnitude")
        scree.set_xlabel("rank")
        scree.grid(axis="y", color="#dddddd", linewidth=0.6)
        for axes, name in ((trace, "Trace"), (norm, "Frobenius norm")):
            axes.set_title(name)
            axes.set_xticks([])
            axes.set_xlim(-0.6, len(runs) - 0.4)
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=min(len(runs), 4))
    return figure
