"""The figures of diagonal blocks as text, for terminal and page, and what is short of the tolerance among them."""

from __future__ import annotations

import math

from hvpspec.report.numbers import rounded, with_error
from hvpspec.results.blocks import BRACKET_WIDTH, Block, Blocks
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.wording import counted

HEADINGS = {"trace": "trace", "frobenius_norm": "norm", "largest": "λ_max"}
MARK = "†"
MARK_NOTE = f"{MARK} not within the tolerance asked for"


def columns_of(found: Blocks) -> list[str]:
    """Those figures that some block has."""
    return [name for name in HEADINGS if any(getattr(block, name) is not None for block in found.blocks)]


def shown(figure: Estimate | Bracket | None) -> tuple[str, str]:
    """Value and error, the error with a mark where the figure is short of the tolerance. ("–", "") for none."""
    if figure is None:
        return "–", ""
    mark = "" if reached(figure) else MARK
    if isinstance(figure, Estimate):
        value, error = with_error(figure.value, figure.error)
        return value, error + mark
    if math.isinf(figure.upper):
        return f"≥ {rounded(figure.lower, 4)}{mark}", ""
    half = max((figure.upper - figure.lower) / 2, 1e-4 * abs(figure.upper))  # more digits help nobody
    value, error = with_error((figure.lower + figure.upper) / 2, half)
    return value, error + mark


def reached(figure: Estimate | Bracket) -> bool:
    if isinstance(figure, Estimate):
        return figure.converged
    size = max(abs(figure.lower), abs(figure.upper))
    return math.isfinite(size) and figure.upper - figure.lower <= BRACKET_WIDTH * size


def marked(found: Blocks) -> bool:
    return any(not all(reached(figure) for figure in _figures(block)) for block in found.blocks)


def block_shortfalls(found: Blocks, *, rtol: float, narrowed: bool, largest: bool) -> list[str]:
    """narrowed: whether trace and norm of the whole reached the tolerance, at which their probes stop.
    largest: whether λ_max was asked for."""
    many, blocks = len(found.blocks), found.blocks
    notes = []
    wide = sum(not all(reached(f) for f in _figures(block) if isinstance(f, Estimate)) for block in blocks)
    if wide:
        remedy = "A smaller --rtol" if narrowed else "More products (--max-hvps)"
        of = f"{wide} of {counted(many, 'block')}"
        notes.append(f"Trace or norm of {of} is not known to ±{rtol:.2%}. {remedy} would narrow it.")
    missing = sum(block.largest is None for block in blocks) if largest else 0
    if missing == many:
        notes.append("λ_max of the blocks was not reached. More products (--max-hvps) would find it.")
    elif missing:
        notes.append(
            f"λ_max of {missing} of {counted(many, 'block')} was not reached. More products (--max-hvps) would find it."
        )
    loose = sum(block.largest is not None and not reached(block.largest) for block in blocks)
    if loose:
        said = f"λ_max of {loose} of {counted(many, 'block')} is not known to {BRACKET_WIDTH:.0%}."
        notes.append(f"{said} More products (--max-hvps) would narrow it.")
    return notes


def _figures(block: Block) -> list[Estimate | Bracket]:
    found = (block.trace, block.frobenius_norm, block.largest)
    return [figure for figure in found if figure is not None]


def blocks_notes(found: Blocks) -> list[str]:
    """What the mark means, and what λ_max has cost."""
    notes = [MARK_NOTE] if marked(found) else []
    if found.largest_hvps:
        notes.append(f"{found.largest_hvps:,} of the HVPs are for these λ_max alone")
    return notes
