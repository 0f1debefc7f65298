"""Pictures of a spectrum: how the eigenvalues are spread, which are the largest, and what each group of parameters has.

Matplotlib (extra `cli`) is imported when a picture is made, and used without pyplot: nothing global is changed.
Positive and negative parts differ in colour (Okabe and Ito's, told apart by colour-blind readers) and in shape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hvpspec.errors import InputError
from hvpspec.plots import blocks as plot_blocks
from hvpspec.plots.bins import binned
from hvpspec.plots.style import FAINT, INK, NEGATIVE, POSITIVE, Panel, _plain_log_ticks, bars, drawn, signed_ticks
from hvpspec.results.density import Density
from hvpspec.results.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(spectrum: Spectrum, blocks: dict[str, Any] | None = None) -> list[Panel]:
    """Those pictures for which the figures are there. blocks: the entry of spectrum.json, if any."""
    found = []
    if spectrum.density is not None:
        found.append(
            Panel("density", "All eigenvalues", _density_alt(spectrum), lambda axes: _draw_density(axes, spectrum))
        )
    if spectrum.eigenpairs is not None and len(spectrum.eigenpairs.values):
        title = "Eigenvalues of largest magnitude"
        found.append(Panel("scree", title, _scree_alt(spectrum), lambda axes: _draw_scree(axes, spectrum)))
    entries = [entry for entry in (blocks or {}).get("blocks", []) if entry["frobenius_norm"] or entry["trace"]]
    if entries:
        found.append(_blocks(entries))
    return found


def _blocks(entries: list[dict[str, Any]]) -> Panel:
    shown = plot_blocks.chosen(entries)
    colours = (POSITIVE, NEGATIVE, FAINT, INK)

    def piece(part: list[dict[str, Any]], rows: int, halves: tuple[Panel, ...] = ()) -> Panel:
        return Panel(
            "blocks", plot_blocks.title(entries), plot_blocks.alt(shown),
            lambda axes: plot_blocks.draw_blocks(axes, part, shown, rows, colours),
            plot_blocks.height(rows), wide=True, halves=halves,
        )  # fmt: skip

    if len(shown) == 1:
        return piece(shown, 1)
    middle = (len(shown) + 1) // 2
    return piece(shown, len(shown), (piece(shown[:middle], middle), piece(shown[middle:], middle)))


def plot(
    spectrum: Spectrum, ax: Axes | None = None, *, blocks: dict[str, Any] | None = None, columns: int = 1
) -> Figure | Axes:
    """All pictures in one Matplotlib figure; save it with `.savefig(path)`. See `Spectrum.plot`.

    ax: draws the first picture there instead. blocks: the entry of that name in spectrum.json, by default the
    spectrum's own. columns: pictures side by side.
    """
    if blocks is None and spectrum.blocks is not None:
        blocks = spectrum.blocks.to_dict()
    shown = panels(spectrum, blocks)
    if not shown:
        raise InputError("nothing to plot: the spectrum has neither density nor eigenvalues nor blocks.")
    if ax is not None:
        shown[0].draw(ax)
        return ax
    return drawn(shown, columns=columns)


def _draw_density(axes: Axes, spectrum: Spectrum) -> None:
    density = spectrum.density
    assert density is not None
    bins = binned(density)
    axes.set_xscale("asinh", linear_width=bins.scale)
    floor = 0.3
    for side, colour, name in ((1, POSITIVE, "positive"), (-1, NEGATIVE, "negative")):
        mine = (np.sign(bins.edges[:-1] + bins.edges[1:]) == side) & (bins.counts >= floor)
        if mine.any():
            axes.bar(
                bins.edges[:-1][mine], bins.counts[mine], np.diff(bins.edges)[mine], align="edge", color=colour,
                alpha=0.55, linewidth=0, label=name,
            )  # fmt: skip
    pairs = spectrum.eigenpairs
    if pairs is not None:
        errors = bars(pairs.error)
        for side, colour, marker in ((1, POSITIVE, "o"), (-1, NEGATIVE, "v")):
            mine = np.sign(pairs.values) == side
            if mine.any():
                axes.vlines(pairs.values[mine], floor, 1.0, colors=colour, linewidth=1.0)
                axes.errorbar(
                    pairs.values[mine], np.ones(mine.sum()), xerr=errors[mine], fmt=marker, color=colour, markersize=4,
                    capsize=2.5, markeredgecolor=INK, markeredgewidth=0.4, elinewidth=1.0,
                    label="eigenvalue ± error" if side > 0 or not (pairs.values > 0).any() else None,
                )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(floor, max(5.0, 6 * float(bins.counts.max(initial=1.0))))
    axes.axvline(0, color=FAINT, linewidth=0.8, linestyle=":")
    signed_ticks(axes.xaxis, bins.scale, float(bins.edges[0]), float(bins.edges[-1]))
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel(f"per bar, of {density.n:,}")
    axes.legend(loc="upper right")


def _draw_scree(axes: Axes, spectrum: Spectrum) -> None:
    pairs = spectrum.eigenpairs
    assert pairs is not None
    size = np.abs(pairs.values)
    known = np.isfinite(pairs.error)
    ranks = np.arange(1, len(size) + 1)
    if pairs.data_error is not None:
        spread = bars(pairs.data_error)
        axes.errorbar(
            ranks, size, yerr=spread, fmt="none", ecolor="#bbbbbb", elinewidth=5, label="± other data", zorder=1
        )  # fmt: skip
    for side, colour, marker, name in ((1, POSITIVE, "o", "positive"), (-1, NEGATIVE, "v", "negative")):
        mine = (np.sign(pairs.values) == side) & (size > 0)
        if mine.any():
            error = bars(pairs.error)[mine]
            axes.errorbar(
                ranks[mine], size[mine], yerr=error, fmt=marker, color=colour, markersize=5, capsize=3, elinewidth=1.2,
                label=name,
            )  # fmt: skip
    unknown = ~known & (size > 0)
    if unknown.any():
        axes.plot(ranks[unknown], size[unknown], "s", mfc="none", color=INK, markersize=9, label="error unknown")
    if (size > 0).any():
        axes.set_yscale("log")
        least, most = float(size[size > 0].min()), float(size.max())
        axes.set_ylim(least / 2, most * 2)
    _plain_log_ticks(axes)
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    axes.set_xlim(0.4, len(size) + 0.6)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("rank")
    axes.set_ylabel("|eigenvalue| ± error")
    axes.legend(loc="upper right")


def _density_alt(spectrum: Spectrum) -> str:
    density = spectrum.density
    assert density is not None
    low, high = float(density.nodes[0]), float(density.nodes[-1])
    return (
        f"How many of the {density.n:,} eigenvalues lie where, from {low:.3g} to {high:.3g}, counts on a logarithmic "
        f"axis; {_negative_share(density)}."
    )


def _negative_share(density: Density) -> str:
    share = float(density.weights[density.nodes < 0].sum())
    return f"about {share:.0%} are estimated to be negative" if share >= 0.005 else "next to none is negative"


def _scree_alt(spectrum: Spectrum) -> str:
    pairs = spectrum.eigenpairs
    assert pairs is not None
    values = ", ".join(f"{value:.3g}" for value in pairs.values[:5])
    rest = ", and so on" if len(pairs.values) > 5 else ""
    return f"The magnitudes of the {len(pairs.values)} largest eigenvalues with error bars: {values}{rest}."
