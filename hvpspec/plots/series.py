"""The picture of a series of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hvpspec.plots.style import FAINT, INK, RUN_COLOURS, STYLE, points, sign_handles, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LAMBDA_MAX, _LAMBDA_MIN, _TRACE, _NORM, _OVERLAP = RUN_COLOURS[:5]


def plot_series(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws a series with Matplotlib: λ_max and λ_min with the edge of stability, trace and norm, and the overlap.

    Parameters
    ----------
    rows : sequence of mappings
        The checkpoints, in order, as track.json has them.

    Returns
    -------
    matplotlib.figure.Figure
        One picture above the other, over the step where every checkpoint has a step of its own.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    by_step = None not in steps and len(set(steps)) == len(steps)
    at = steps if by_step else list(range(1, len(rows) + 1))
    count = 3 if len(rows) > 1 else 2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 2.6 * count), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(count, 1, sharex=True)
        _line(axes[0], at, rows, "lambda_max", "λ_max", _LAMBDA_MAX)
        _line(axes[0], at, rows, "lambda_min", "λ_min", _LAMBDA_MIN)
        _edge(axes[0], at, rows)
        _line(axes[1], at, rows, "trace", "trace", _TRACE)
        _line(axes[1], at, rows, "frobenius_norm", "Frobenius norm", _NORM)
        titles = ["Largest and smallest eigenvalue", "Trace and Frobenius norm", "Overlap with the subspace before"]
        if count == 3:
            _line(axes[2], at, rows, "overlap", "overlap", _OVERLAP)
            axes[2].set_ylim(0, 1.05)
        for axis, title in zip(axes, titles, strict=False):
            handles, labels = axis.get_legend_handles_labels()
            axis.set_title(title)
            if any(y < 0 for line in axis.lines for y in line.get_ydata()):
                axis.axhline(0, color=FAINT, linewidth=0.8, linestyle=":", zorder=0)
                handles += sign_handles()
                labels += [handle.get_label() for handle in sign_handles()]
            if len(handles) > 1:
                axis.legend(handles, labels, loc="center left", bbox_to_anchor=(1, 0.5))
        axes[-1].set_xlabel("step" if by_step else "checkpoint")
        whole_numbers(axes[-1].xaxis)
    return figure


def _edge(axes: Axes, at: Sequence[float], rows: Sequence[Mapping[str, Any]]) -> None:
    """The edge of stability, which an optimizer's learning rate and step may move from checkpoint to checkpoint."""
    known = [(x, row["edge"]) for x, row in zip(at, rows, strict=True) if row["edge"] is not None]
    style: dict[str, Any] = {"color": INK, "linestyle": "--", "linewidth": 1, "label": "edge of stability"}
    if len({edge for _, edge in known}) == 1:
        axes.axhline(known[0][1], **style)
    elif known:
        axes.plot(*zip(*known, strict=True), **style)


def _line(
    axes: Axes, at: Sequence[float], rows: Sequence[Mapping[str, Any]], name: str, label: str, colour: str
) -> None:
    """A line through the known values, and their error bars where they have any."""
    known = [(x, row[name], row.get(f"{name}_error")) for x, row in zip(at, rows, strict=True) if row[name] is not None]
    if not known:
        return
    x, y, errors = zip(*known, strict=True)
    axes.plot(x, y, color=colour, linewidth=1.2, label=label)
    sizes = [math.nan if error is None else error for error in errors]
    points(axes, x, y, sizes, signs=y, colour=colour, markersize=3.5, capsize=2)
