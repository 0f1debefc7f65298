"""The quantities of diagonal blocks as text, for terminal and page, and which are less precise than aimed at."""

from __future__ import annotations

import math

from hvpspec.report.numbers import rounded, with_error
from hvpspec.results.density import Density
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import BRACKET_WIDTH, Block, Blocks
from hvpspec.wording import counted, percent

HEADINGS = {
    "trace": "trace", "frobenius_norm": "norm", "largest": "λ_max", "smallest": "λ_min", "density": "density"
}  # fmt: skip
MARK = "†"
MARK_NOTE = f"{MARK} less precise than aimed at: --rtol for trace and norm, {BRACKET_WIDTH:.0%} for λ_max"
_ENDS_NOTE = f"{MARK_NOTE}, {BRACKET_WIDTH:.0%} of the block's norm for λ_min, --rtol for the density"


def columns_of(found: Blocks) -> list[str]:
    """The quantities that some block has."""
    return [name for name in HEADINGS if any(getattr(block, name) is not None for block in found.blocks)]


def shown(block: Block, name: str) -> tuple[str, str]:
    """Value and error, the error with a mark where it is wider than the tolerance. ("–", "") for none.

    Of a density, the number of its nodes and its Wasserstein distance.
    """
    quantity: Estimate | Bracket | Density | None = getattr(block, name)
    if quantity is None:
        return "–", ""
    mark = "" if reached(block, quantity) else MARK
    if isinstance(quantity, Density):
        return counted(quantity.weighted_nodes, "node"), rounded(quantity.error, 2) + mark
    if isinstance(quantity, Estimate):
        value, error = with_error(quantity.value, quantity.error)
        return value, error + mark
    if math.isinf(quantity.upper):
        return f"≥ {rounded(quantity.lower, 4)}{mark}", ""
    if math.isinf(quantity.lower):
        return f"≤ {rounded(quantity.upper, 4)}{mark}", ""
    half = max((quantity.upper - quantity.lower) / 2, 1e-4 * abs(quantity.upper))  # more digits are of no use
    value, error = with_error((quantity.lower + quantity.upper) / 2, half)
    return value, error + mark


def reached(block: Block, quantity: Estimate | Bracket | Density) -> bool:
    """Whether a block's quantity is as precise as the run aimed at."""
    if not isinstance(quantity, Bracket):
        return quantity.converged
    relative_to = [quantity, block.largest] if quantity is block.smallest and block.largest else [quantity]
    size = max(abs(end) for bounds in relative_to for end in (bounds.lower, bounds.upper))
    return math.isfinite(size) and quantity.upper - quantity.lower <= BRACKET_WIDTH * size


def marked(found: Blocks) -> bool:
    """Whether any quantity of any block has the mark."""
    return any(not all(reached(block, quantity) for quantity in _quantities(block)) for block in found.blocks)


def block_shortfalls(found: Blocks, *, rtol: float | None, narrowed: bool, largest: bool) -> list[str]:
    """narrowed: whether trace and norm of the whole matrix reached the tolerance, at which their probes stop.
    largest: whether λ_max was asked for."""
    many, blocks = len(found.blocks), found.blocks
    notes = []
    sampled = ([each for each in (block.trace, block.frobenius_norm) if each is not None] for block in blocks)
    wide = sum(not all(each.converged for each in quantities) for quantities in sampled)
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
    loose = sum(block.largest is not None and not reached(block, block.largest) for block in blocks)
    if loose:
        said = f"λ_max of {loose} of {counted(many, 'block')} is not known to {BRACKET_WIDTH:.0%}."
        notes.append(f"{said} More products (--max-hvps) would narrow it.")
    return [*notes, *_density_shortfalls(found)]


def _density_shortfalls(found: Blocks) -> list[str]:
    """Of the densities and λ_min, where there are any."""
    known = [block for block in found.blocks if block.density is not None]
    missing = len(found.blocks) - len(known)
    notes = []
    if known and missing:
        of = f"{missing} of {counted(len(found.blocks), 'block')}"
        notes.append(f"The density of {of} was not reached.")
    coarse = sum(
        not all(reached(block, each) for each in (block.smallest, block.density) if each is not None) for block in known
    )
    if coarse:
        of = f"{coarse} of {counted(len(found.blocks), 'block')}"
        notes.append(f"Density or λ_min of {of} is coarser than aimed at. More products (--block-hvps) would help.")
    return notes


def _quantities(block: Block) -> list[Estimate | Bracket | Density]:
    found = (block.trace, block.frobenius_norm, block.largest, block.smallest, block.density)
    return [quantity for quantity in found if quantity is not None]


def blocks_notes(found: Blocks) -> list[str]:
    """What the errors and the mark mean, and what λ_max has cost."""
    notes = []
    if confidences := {quantity.confidence for block in found.blocks for quantity in _quantities(block)}:
        notes.append(f"± error: half-width of an interval that holds with {percent(min(confidences))} probability")
    with_density = any(block.density is not None for block in found.blocks)
    if with_density:
        notes.append("density: its number of nodes ± its Wasserstein distance to the true one")
    if marked(found):
        notes.append(_ENDS_NOTE if with_density else MARK_NOTE)
    if found.largest_hvps:
        notes.append(f"{found.largest_hvps:,} of the HVPs were spent on λ_max of the blocks")
    if found.density_hvps:
        notes.append(f"{found.density_hvps:,} more on their densities and λ_min")
    return notes
