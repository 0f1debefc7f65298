"""Pictures of the groups of parameters: bars of trace and norm, each below the name of its group; and densities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hvpspec.escaping import in_picture
from hvpspec.plots.bins import LEAST_COUNT, Bins, binned_alike
from hvpspec.plots.style import FAINT, INK, NEGATIVE, POSITIVE, Panel, points, signed_ticks
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Block, Blocks
from hvpspec.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BLOCKS = 24  # as many as can be read in one picture
MAX_DENSITIES = 12
_COLUMNS, _GAP = 2, 0.06  # of small pictures side by side, and the room between them, as a share of the width
_ROW_HEIGHT = 1.5  # inches
_QUANTITIES = (("trace", "trace", POSITIVE), ("frobenius_norm", "Frobenius norm", FAINT))


def blocks_panel(found: Blocks) -> Panel | None:
    """The picture of the largest groups; None where no group has a trace or a norm."""
    known = [block for block in found.blocks if block.frobenius_norm is not None or block.trace is not None]
    if not known:
        return None
    shown = sorted(known, key=_size, reverse=True)[:MAX_BLOCKS]
    rest = len(known) - len(shown)
    title = "Groups of parameters" + (f" (the {MAX_BLOCKS} largest; {rest:,} more)" if rest else "")
    alt = f"Trace and Frobenius norm of {len(shown)} groups of parameters, with error bars; the same in the table."

    def piece(part: Sequence[Block], rows: int, halves: tuple[Panel, ...] = ()) -> Panel:
        height = 1.3 + 0.46 * rows  # inches
        return Panel(
            "blocks", title, alt, lambda axes: _draw(axes, part, shown, rows), height, wide=True, halves=halves
        )  # fmt: skip

    if len(shown) == 1:
        return piece(shown, 1)
    middle = (len(shown) + 1) // 2
    return piece(shown, len(shown), (piece(shown[:middle], middle), piece(shown[middle:], middle)))


def densities_panel(found: Blocks) -> Panel | None:
    """The densities of the largest groups as small multiples on the same axes; None where no group has one."""
    known = [block for block in found.blocks if block.density is not None]
    if not known:
        return None
    shown = sorted(known, key=_spread, reverse=True)[:MAX_DENSITIES]
    rest = len(known) - len(shown)
    title = "Eigenvalues of groups of parameters" + (f" (the {MAX_DENSITIES} largest; {rest:,} more)" if rest else "")
    alt = f"How the eigenvalues of the diagonal blocks of {len(shown)} groups are distributed, on the same axes."
    bins = dict(zip(shown, binned_alike([block.density for block in shown if block.density is not None]), strict=True))

    def piece(part: Sequence[Block], rows: int, halves: tuple[Panel, ...] = ()) -> Panel:
        drawing = partial(_draw_densities, part=part, rows=rows, bins=bins)
        return Panel("block-densities", title, alt, drawing, 0.6 + _ROW_HEIGHT * rows, wide=True, halves=halves)

    def rows_of(part: Sequence[Block]) -> int:
        return -(-len(part) // _COLUMNS)

    if len(shown) <= _COLUMNS:
        return piece(shown, 1)
    middle = _COLUMNS * (-(-rows_of(shown) // 2))
    rows = rows_of(shown[:middle])
    return piece(shown, rows_of(shown), (piece(shown[:middle], rows), piece(shown[middle:], rows)))


def _draw_densities(axes: Axes, *, part: Sequence[Block], rows: int, bins: Mapping[Block, Bins]) -> None:
    """A small picture for each block; rows: how many rows of them there is height for."""
    most = 4 * max(float(found.counts.max()) for found in bins.values())
    axes.set_axis_off()
    width, height = (1 - _GAP * (_COLUMNS - 1)) / _COLUMNS, 1 / rows
    for number, block in enumerate(part):
        row, column = divmod(number, _COLUMNS)
        box = (column * (width + _GAP), 1 - (row + 0.86) * height, width, 0.66 * height)
        small, found = axes.inset_axes(box), bins[block]
        small.set_xscale("asinh", linear_width=found.scale)
        middles = found.edges[:-1] + found.edges[1:]
        for side, colour in ((1, POSITIVE), (-1, NEGATIVE)):
            mine = (np.sign(middles) == side) & (found.counts >= LEAST_COUNT)
            small.bar(
                found.edges[:-1][mine], found.counts[mine], np.diff(found.edges)[mine], align="edge", color=colour,
                alpha=0.55, linewidth=0,
            )  # fmt: skip
        for end in (block.largest, block.smallest):
            if end is not None and math.isfinite(end.value) and end.value:
                points(small, end.value, 2 * LEAST_COUNT, end.error, signs=end.value, sideways=True, markersize=3)
        small.set_yscale("log")
        small.set_ylim(LEAST_COUNT, most)
        small.set_xlim(float(found.edges[0]), float(found.edges[-1]))
        small.axvline(0, color=FAINT, linewidth=0.8, linestyle=":")
        signed_ticks(small.xaxis, found.scale, float(found.edges[0]), float(found.edges[-1]), most=5)
        small.tick_params(labelsize=8.5, labelleft=column == 0, labelbottom=number + _COLUMNS >= len(part))
        name = in_picture(shortened(block.name, 24))
        small.set_title(f"{name} ({block.parameters:,})", fontsize=9.5)
    axes.figure.supxlabel("eigenvalue", fontsize=10)
    axes.figure.supylabel("eigenvalues per bar", fontsize=10)


def _spread(block: Block) -> float:
    """The largest magnitude among the nodes of the density."""
    return 0.0 if block.density is None else float(np.abs(block.density.nodes).max())


def _draw(axes: Axes, part: Sequence[Block], among: Sequence[Block], rows: int) -> None:
    """among: the groups that the axis has room for. rows: how many groups there is height for."""
    from matplotlib.patches import Patch

    places = np.arange(len(part), dtype=float)
    handles = []
    for (name, label, colour), shift in zip(_QUANTITIES, (0.04, 0.3), strict=True):
        values, errors = (np.array(column) for column in zip(*(_bar(block, name) for block in part), strict=True))
        sides = [NEGATIVE if value < 0 else colour for value in values]
        axes.barh(places + shift, values, 0.24, xerr=errors, color=sides, ecolor=INK, capsize=1.5)
        handles.append(Patch(color=colour, label=label))
        if any(value < 0 for value, _ in (_bar(block, name) for block in among)):
            handles.append(Patch(color=NEGATIVE, label=f"{label}, negative"))
    spans = [span for block in among for name, *_ in _QUANTITIES if math.isfinite((span := _bar(block, name))[0])]
    low = min([0.0, *(value - error for value, error in spans)])
    high = max([0.0, *(value + error for value, error in spans)])
    room = 0.03 * (high - low) or 1.0
    axes.set_xlim(low - room if low < 0 else 0.0, high + room if high > 0 else 0.0)
    axes.set_ylim(rows - 0.45, -0.55)
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # names are read over the line at zero
    for place, block in zip(places, part, strict=True):
        name = in_picture(shortened(block.name, 50))
        axes.text(
            0.01, place - 0.13, name, transform=axes.get_yaxis_transform(), fontsize=9.5, va="bottom", bbox=behind
        )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("of the group's diagonal block, ± error")
    axes.locator_params(axis="x", nbins=6)
    axes.figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _bar(block: Block, name: str) -> tuple[float, float]:
    """Value and error; a value that is not known is NaN, an error that is not known has no bar."""
    estimate: Estimate | None = getattr(block, name)
    if estimate is None:
        return math.nan, 0.0
    return estimate.value, estimate.error if math.isfinite(estimate.error) else 0.0


def _size(block: Block) -> float:
    estimate = block.frobenius_norm or block.trace
    assert estimate is not None
    return abs(estimate.value) if math.isfinite(estimate.value) else 0.0
