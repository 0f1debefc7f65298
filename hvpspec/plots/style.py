"""What all pictures share: markers, colours, sizes, ticks, and how a picture becomes a file.

In every picture the shape of a marker says the sign of a number: a circle is positive, a triangle that points down is
negative. Where a picture shows one spectrum, colour says the same. Where it shows several runs or quantities, each has
a colour of its own from RUN_COLOURS, which has none of the two that stand for a sign.

Matplotlib (extra `cli`) is imported when a picture is made, and used without pyplot: nothing global is changed.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart; then lines and text, and the less
# important.
POSITIVE, NEGATIVE, INK, FAINT = "#0072B2", "#D55E00", "#1a1a1a", "#8a8a8a"
GRID, SPREAD = "#dddddd", "#bbbbbb"

# Paul Tol's muted scheme, in an order in which neighbours differ in lightness as well.
RUN_COLOURS = ("#332288", "#44AA99", "#AA4499", "#999933", "#882255", "#117733", "#CC6677")
LINE_STYLES = ("solid", "dashed", "dashdot", "dotted")  # of runs: not by colour only

POSITIVE_MARKER, NEGATIVE_MARKER = "o", "v"


STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "hvpspec",
}


WIDTH, HEIGHT = 4.8, 3.3  # of a panel in inches: at a phone's width the letters are 9 pixels high at least
LETTERS_PER_LINE = 46  # of a title, across one panel


@dataclass(frozen=True)
class Panel:
    """One picture. name: for files and ids. alt: what it shows, in words. height: in inches.

    wide: it takes a whole row. halves: the same in two pieces, which a wide page shows side by side.
    """

    name: str
    title: str
    alt: str
    draw: Callable[[Axes], None]
    height: float = HEIGHT
    wide: bool = False
    halves: tuple[Panel, ...] = ()


def drawn(shown: Sequence[Panel], *, columns: int = 1, titles: bool = True) -> Figure:
    """The pictures in one figure. Each row has its own margins, so that wide labels take no room from other rows."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: list[list[Panel]] = []
    for panel in shown:
        if rows and len(rows[-1]) < columns and not (panel.wide or rows[-1][0].wide):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    across = max(map(len, rows))
    heights = [max(panel.height for panel in row) for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * across, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, row in zip(parts, rows, strict=True):
            letters = LETTERS_PER_LINE * across / len(row)
            for axes, panel in zip(part.subplots(1, len(row), squeeze=False)[0], row, strict=True):
                if titles:
                    axes.set_title(textwrap.fill(panel.title, int(letters)))
                panel.draw(axes)
    return figure


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a file, "svg" or "png" (in a resolution for fine screens); the same bytes each time."""
    import matplotlib

    stream = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(STYLE):
        figure.savefig(stream, format=kind, dpi=72 if kind == "svg" else 160, metadata=nothing)
    return stream.getvalue()


def inline_svgs(panel: Panel) -> list[str]:
    """The picture as one or two <svg> elements for a web page, with ids of their own, as wide as there is room."""
    pieces = panel.halves or (panel,)
    return [_inline(piece, panel.name + (str(i) if i else "")) for i, piece in enumerate(pieces)]


def _inline(panel: Panel, name: str) -> str:
    text = to_bytes(drawn([panel], titles=False), "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # a page has one: see report.html.jinja
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', text, count=1)


def known_errors(errors: Any) -> np.ndarray:
    """Lengths of error bars: an error that is not known has no bar."""
    errors = np.asarray(errors, float)
    return np.where(np.isfinite(errors), errors, 0.0)


def points(
    axes: Axes,
    x: Any,
    y: Any,
    errors: Any,
    *,
    signs: Any,
    colour: str | None = None,
    sideways: bool = False,
    **look: Any,
) -> dict[int, Any]:
    """Points with error bars, their shape by `signs`; {sign: what was drawn}, for the signs that occur.

    colour: by the sign where none is given. sideways: the errors are those of x. look: further options of `errorbar`.
    """
    x, y, errors = (np.atleast_1d(np.asarray(values, float)) for values in (x, y, known_errors(errors)))
    negative = np.atleast_1d(np.asarray(signs)) < 0
    drawn_by_sign = {}
    for sign, mine in ((1, ~negative), (-1, negative)):
        if mine.any():
            marker, own = (POSITIVE_MARKER, POSITIVE) if sign > 0 else (NEGATIVE_MARKER, NEGATIVE)
            drawn_by_sign[sign] = axes.errorbar(
                x[mine], y[mine], **{"xerr" if sideways else "yerr": errors[mine]}, fmt=marker, color=colour or own,
                **{"markersize": 4.5, "capsize": 2.5, "elinewidth": 1.0} | look,
            )  # fmt: skip
    return drawn_by_sign


def sign_handles() -> list[Any]:
    """For a legend: which marker is of which sign, in no run's colour."""
    from matplotlib.lines import Line2D

    marks = (("positive", POSITIVE_MARKER), ("negative", NEGATIVE_MARKER))
    return [Line2D([], [], color=FAINT, marker=marker, linestyle="none", label=name) for name, marker in marks]


def signed_ticks(axis: Axis, scale: float, low: float, high: float, *, most: int = 11) -> None:
    """Powers of ten on both sides of zero for an asinh axis, about `most` of them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    largest = max(abs(low), abs(high))
    exponents = range(math.floor(math.log10(scale)), math.floor(math.log10(largest)) + 1)
    ticks = {0.0: "0"}
    room = (math.asinh(high / scale) - math.asinh(low / scale)) / most
    for side in (1, -1):
        last = 0.0
        for exponent in exponents:
            place = side * 10.0**exponent
            if low <= place <= high and math.asinh(10.0**exponent / scale) - last >= room:
                ticks[place] = _power(side, exponent)
                last = math.asinh(10.0**exponent / scale)
    places = sorted(ticks)
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([ticks[place] for place in places]))
    axis.set_minor_locator(NullLocator())


def _power(side: int, exponent: int) -> str:
    sign = "−" if side < 0 else ""
    if -3 <= exponent <= 3:
        return f"{sign}{10.0**exponent:g}"
    return f"${'-' if side < 0 else ''}10^{{{exponent}}}$"


def whole_numbers(axis: Axis) -> None:
    """Ticks at round whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))


def plain_log_ticks(axes: Axes) -> None:
    """0.2, 0.5, 1, 2 … where the axis spans little; powers of ten elsewhere."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if axes.get_yscale() == "log" and high / low < 300:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
