"""The picture of the groups of parameters: bars of trace and norm, with the name of each group above its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hvpspec.escaping import in_picture
from hvpspec.plots.style import FAINT, INK, NEGATIVE, POSITIVE, Panel
from hvpspec.results.estimate import Estimate
from hvpspec.results.parts import Block, Blocks
from hvpspec.wording import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_BLOCKS = 24  # as many as can be read in one picture
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
