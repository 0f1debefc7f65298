"""The quantities of diagonal blocks as text, for terminal and page, and which are less precise than aimed at."""

from __future__ import annotations

import math

from hvpspec.report.numbers import rounded, with_error
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import BRACKET_WIDTH, Block, Blocks
from hvpspec.wording import counted, percent

HEADINGS = {"trace": "trace", "frobenius_norm": "norm", "largest": "λ_max"}
MARK = "†"
MARK_NOTE = f"{MARK} less precise than aimed at: --rtol for trace and norm, {BRACKET_WIDTH:.0%} for λ_max"


def columns_of(found: Blocks) -> list[str]:
    """The quantities that some block has."""
    return [name for name in HEADINGS if any(getattr(block, name) is not None for block in found.blocks)]


def shown(quantity: Estimate | Bracket | None) -> tuple[str, str]:
    """Value and error, the error with a mark where it is wider than the tolerance. ("–", "") for none."""
    if quantity is None:
        return "–", ""
    mark = "" if reached(quantity) else MARK
    if isinstance(quantity, Estimate):
        value, error = with_error(quantity.value, quantity.error)
        return value, error + mark
    if math.isinf(quantity.upper):
        return f"≥ {rounded(quantity.lower, 4)}{mark}", ""
    half = max((quantity.upper - quantity.lower) / 2, 1e-4 * abs(quantity.upper))  # more digits are of no use
    value, error = with_error((quantity.lower + quantity.upper) / 2, half)
    return value, error + mark


def reached(quantity: Estimate | Bracket) -> bool:
    """Whether it is as precise as the run aimed at."""
    if isinstance(quantity, Estimate):
        return quantity.converged
    size = max(abs(quantity.lower), abs(quantity.upper))
    return math.isfinite(size) and quantity.upper - quantity.lower <= BRACKET_WIDTH * size


def marked(found: Blocks) -> bool:
    """Whether any quantity of any block has the mark."""
    return any(not all(reached(quantity) for quantity in _quantities(block)) for block in found.blocks)


def block_shortfalls(found: Blocks, *, rtol: float | None, narrowed: bool, largest: bool) -> list[str]:
    """narrowed: whether trace and norm of the whole matrix reached the tolerance, at which their probes stop.
    largest: whether λ_max was asked for."""
    many, blocks = len(found.blocks), found.blocks
    notes = []
    wide = sum(not all(reached(each) for each in _quantities(block) if isinstance(each, Estimate)) for block in blocks)
    if wide:
        remedy = "A smaller --rtol" if narrowed else "More products (--max-hvps)"
        of = f"{wide} of {counted(many, 'block')}"
        aim = "within its tolerance" if rtol is None else f"known to ±{rtol:.2%}"
        notes.append(f"Trace or norm of {of} is not {aim}. {remedy} would narrow it.")
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


def _quantities(block: Block) -> list[Estimate | Bracket]:
    found = (block.trace, block.frobenius_norm, block.largest)
    return [quantity for quantity in found if quantity is not None]


def blocks_notes(found: Blocks) -> list[str]:
    """What the errors and the mark mean, and what λ_max has cost."""
    notes = []
    if confidences := {quantity.confidence for block in found.blocks for quantity in _quantities(block)}:
        notes.append(f"± error: half-width of an interval that holds with {percent(min(confidences))} probability")
    if marked(found):
        notes.append(MARK_NOTE)
    if found.largest_hvps:
        notes.append(f"{found.largest_hvps:,} of the HVPs were spent on λ_max of the blocks")
    return notes
