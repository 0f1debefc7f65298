"""Pictures of a spectrum: the density, the largest eigenvalues, and the groups of parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from hvpspec.errors import InputError
from hvpspec.options import EIGENVALUE_KINDS
from hvpspec.plots.batches import batches_panels
from hvpspec.plots.bins import LEAST_COUNT, binned
from hvpspec.plots.blocks import blocks_panel, densities_panel
from hvpspec.plots.style import (
    FAINT,
    GRID,
    INK,
    NEGATIVE,
    POSITIVE,
    SPREAD,
    Panel,
    drawn,
    known_errors,
    plain_log_ticks,
    points,
    signed_ticks,
    whole_numbers,
)
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(spectrum: Spectrum) -> list[Panel]:
    """The pictures that the spectrum has numbers for."""
    density, pairs, found = spectrum.density, spectrum.eigenpairs, []
    if density is not None:
        found.append(
            Panel("density", "All eigenvalues", _density_alt(density), lambda axes: _draw_density(axes, density, pairs))
        )
    if pairs is not None and len(pairs.values):
        kind = EIGENVALUE_KINDS[spectrum.which]
        title = kind[0].upper() + kind[1:]
        found.append(Panel("scree", title, _scree_alt(pairs, kind), lambda axes: _draw_scree(axes, pairs)))
    if spectrum.per_batch is not None:
        found += batches_panels(spectrum.per_batch)
    if spectrum.blocks is not None:
        found += [panel for panel in (blocks_panel(spectrum.blocks), densities_panel(spectrum.blocks)) if panel]
    return found


@overload
def plot(spectrum: Spectrum, ax: None = None, *, columns: int = 1) -> Figure: ...
@overload
def plot(spectrum: Spectrum, ax: Axes) -> Axes: ...
def plot(spectrum: Spectrum, ax: Axes | None = None, *, columns: int = 1) -> Axes | Figure:
    """Draws a spectrum with Matplotlib.

    Parameters
    ----------
    spectrum : Spectrum
        As `hvpspec.spectrum` returns it.
    ax : matplotlib.axes.Axes, optional
        Where to draw. It gets one picture: the density or, where there is none, the eigenvalues.
    columns : int, default 1
        How many pictures stand side by side in a figure of their own.

    Returns
    -------
    matplotlib.axes.Axes or matplotlib.figure.Figure
        `ax`, where it was given; otherwise a new figure with every picture that the spectrum has numbers for: the
        density, the largest eigenvalues with their error bars, the mini-batches, and the groups of parameters. Save it
        with ``.savefig(path)``.

    Raises
    ------
    InputError
        When there is nothing to draw: the spectrum has trace or norm only.
    """
    shown = panels(spectrum)
    if not shown:
        raise InputError("nothing to plot: the spectrum has neither density nor eigenvalues nor blocks.")
    if ax is None:
        return drawn(shown, columns=columns)
    shown[0].draw(ax)
    ax.set_title(shown[0].title)
    return ax


def _draw_density(axes: Axes, density: Density, pairs: Eigenpairs | None) -> None:
    bins = binned(density)
    axes.set_xscale("asinh", linear_width=bins.scale)
    for side, colour, name in ((1, POSITIVE, "positive"), (-1, NEGATIVE, "negative")):
        mine = (np.sign(bins.edges[:-1] + bins.edges[1:]) == side) & (bins.counts >= LEAST_COUNT)
        if mine.any():
            axes.bar(
                bins.edges[:-1][mine], bins.counts[mine], np.diff(bins.edges)[mine], align="edge", color=colour,
                alpha=0.55, linewidth=0, label=name,
            )  # fmt: skip
    if pairs is not None and (pairs.values != 0).any():
        mine = pairs.values != 0
        values, errors = pairs.values[mine], pairs.error[mine]
        for value in values:
            axes.vlines(value, LEAST_COUNT, 1.0, colors=POSITIVE if value > 0 else NEGATIVE, linewidth=1.0)
        marks = points(
            axes, values, np.ones(len(values)), errors, signs=values, sideways=True, markersize=4,
            markeredgecolor=INK, markeredgewidth=0.4,
        )  # fmt: skip
        next(iter(marks.values())).set_label("eigenvalue ± error")
    axes.set_yscale("log")
    axes.set_ylim(LEAST_COUNT, max(5.0, 6 * float(bins.counts.max(initial=1.0))))
    axes.axvline(0, color=FAINT, linewidth=0.8, linestyle=":")
    signed_ticks(axes.xaxis, bins.scale, float(bins.edges[0]), float(bins.edges[-1]))
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel(f"eigenvalues per bar, of {density.n:,}")
    axes.legend(loc="upper right")


def _draw_scree(axes: Axes, pairs: Eigenpairs) -> None:
    size = np.abs(pairs.values)
    ranks = np.arange(1, len(size) + 1)
    if pairs.data_error is not None:
        spread = known_errors(pairs.data_error)
        axes.errorbar(
            ranks, size, yerr=spread, fmt="none", ecolor=SPREAD, elinewidth=5, label="± other data (1 s.e.)", zorder=1
        )  # fmt: skip
    mine = size > 0
    marks = points(
        axes, ranks[mine], size[mine], pairs.error[mine], signs=pairs.values[mine], markersize=5, capsize=3,
        elinewidth=1.2,
    )  # fmt: skip
    for sign, mark in marks.items():
        mark.set_label("positive" if sign > 0 else "negative")
    unknown = ~np.isfinite(pairs.error) & mine
    if unknown.any():
        axes.plot(ranks[unknown], size[unknown], "s", mfc="none", color=INK, markersize=9, label="error unknown")
    if mine.any():
        axes.set_yscale("log")
        axes.set_ylim(float(size[mine].min()) / 2, float(size.max()) * 2)
    plain_log_ticks(axes)
    whole_numbers(axes.xaxis)
    axes.set_xlim(0.4, len(size) + 0.6)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("rank")
    axes.set_ylabel("|eigenvalue| ± error")
    if axes.get_legend_handles_labels()[0]:  # none where all are 0
        axes.legend(loc="upper right")


def _density_alt(density: Density) -> str:
    low, high = float(density.nodes[0]), float(density.nodes[-1])
    return (
        f"How many of the {density.n:,} eigenvalues lie where, from {low:.3g} to {high:.3g}, with counts on a "
        f"logarithmic axis; {_negative_share(density)}."
    )


def _negative_share(density: Density) -> str:
    share = float(density.weights[density.nodes < 0].sum())
    return f"about {share:.0%} are estimated to be negative" if share >= 0.005 else "hardly any are negative"


def _scree_alt(pairs: Eigenpairs, kind: str) -> str:
    values = ", ".join(f"{value:.3g}" for value in pairs.values[:5])
    rest = ", and so on" if len(pairs.values) > 5 else ""
    return f"The magnitudes of the {len(pairs.values)} {kind} with error bars: {values}{rest}."
