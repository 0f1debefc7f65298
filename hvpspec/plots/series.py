"""The picture of a tracked series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvpspec.atomic_files import replacing


def plot(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """track.svg and track.png: sharpness with its edge, trace and norm, overlap."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [entry["step"] for entry in rows]
    by_step = None not in steps and len(set(steps)) == len(steps)
    at = steps if by_step else list(range(1, len(rows) + 1))
    panels = 3 if len(rows) > 1 else 2
    figure = Figure(figsize=(7, 2.6 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, sharex=True)

    def line(axis: Any, name: str, label: str, colour: str, error: str | None = None) -> None:
        points = [(x, entry[name], entry[error] if error else 0) for x, entry in zip(at, rows, strict=True)]
        known = [(x, y, e or 0) for x, y, e in points if y is not None]
        if known:
            x, y, e = zip(*known, strict=True)
            axis.errorbar(
                x, y, yerr=e if error else None, label=label, color=colour, marker="o", ms=3, lw=1.2, capsize=2
            )

    line(axes[0], "lambda_max", "λ_max", "#0072b2", "lambda_max_error")
    line(axes[0], "lambda_min", "λ_min", "#d55e00", "lambda_min_error")
    if rows[0]["edge"] is not None:
        axes[0].axhline(rows[0]["edge"], color="black", ls="--", lw=1, label="2/lr")
    line(axes[1], "trace", "trace", "#009e73", "trace_error")
    line(axes[1], "frobenius_norm", "Frobenius norm", "#cc79a7", "frobenius_norm_error")
    if panels == 3:
        line(axes[2], "overlap", "overlap with the subspace before", "#56a0d3")
        axes[2].set_ylim(0, 1.05)
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("step" if by_step else "checkpoint")
    paths = [folder / "track.svg", folder / "track.png"]
    for path in paths:
        with replacing(path) as file:
            kind = path.suffix[1:]
            figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return paths
