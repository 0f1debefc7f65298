"""The figures as a table for the terminal."""

from __future__ import annotations

import math

from hvpspec.report.numbers import QUANTITY_NAMES, rounded
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted


def spectrum_notes(spectrum: Spectrum) -> list[str]:
    """What the table has no column for: bounds on the whole spectrum, the density, what the errors mean."""
    notes = []
    pairs = spectrum.eigenpairs
    if pairs is not None and pairs.largest is not None and pairs.smallest is not None:
        low, high = pairs.smallest, pairs.largest
        notes.append(
            f"all eigenvalues lie in [{_outward(low, -1)}, {_outward(high, 1)}] ({100 * high.confidence:g} % each end)"
        )
    if spectrum.density is not None:
        notes.append(_density_note(spectrum.density))
    trace = spectrum.trace
    if trace is not None and trace.relative_to == "frobenius_norm":
        notes.append("trace: small beside the norm (parts cancel); its tolerance is relative to that")
    if _has_data_error(pairs, trace, spectrum.frobenius_norm):
        notes.append("± data: standard error, if the batches are a random sample of a population")
    return notes


def shortfalls(spectrum: Spectrum, *, rtol: float, tol: float) -> list[str]:
    """What is not within the tolerance asked for, and which option of the command line would bring it there."""
    from hvpspec.report.block_rows import block_shortfalls  # it builds upon this file

    notes = []
    pairs = spectrum.eigenpairs
    if "eigenvalues" in spectrum.asked and (pairs is None or not pairs.converged):
        notes.append(f"Not every eigenpair reached a relative residual of {tol:g}: their errors say how far each is.")
    figures = {"trace": spectrum.trace, "frobenius_norm": spectrum.frobenius_norm}
    asked = {name: estimate for name, estimate in figures.items() if name in spectrum.asked}
    for name, estimate in asked.items():
        if estimate is None:
            notes.append(f"The {QUANTITY_NAMES[name]} was not reached.")
        elif not estimate.converged:
            scale, unit = abs(estimate.value), ""
            if estimate.relative_to == "frobenius_norm" and spectrum.frobenius_norm is not None:
                scale, unit = spectrum.frobenius_norm.value, " of the norm"
            relative = estimate.error / scale if scale else math.inf
            notes.append(
                f"The {QUANTITY_NAMES[name]} is known to ±{relative:.2%}{unit}, not to the ±{rtol:.2%} asked for."
            )
    density = spectrum.density
    if "density" in spectrum.asked and (density is None or not density.converged):
        notes.append("The density is coarser than asked for." if density else "The density was not reached.")
    notes = [f"{note} More products (--max-hvps) would narrow it." for note in notes]
    notes += _refinement(spectrum.condition)
    if spectrum.blocks is not None:
        narrowed = all(estimate is not None and estimate.converged for estimate in asked.values())
        largest = "eigenvalues" in spectrum.asked
        notes += block_shortfalls(spectrum.blocks, rtol=rtol, narrowed=narrowed, largest=largest)
    return notes


def _refinement(condition: Condition | None) -> list[str]:
    remedy = "More products (--refine-hvps) would narrow it."
    if condition is not None and condition.refined is not None and not condition.refined.converged:
        return [f"The eigenvalue nearest to zero did not converge: its error says how far it is known. {remedy}"]
    if condition is not None and "refined" in condition.reasons:
        return [f"The eigenvalue nearest to zero was not reached. {remedy.replace('narrow', 'find')}"]
    return []


def _outward(bracket: Bracket, side: int) -> str:
    """The outer bound, rounded outwards to as many digits as the bracket is wide."""
    bound = bracket.upper if side > 0 else bracket.lower
    if not math.isfinite(bound):
        return "∞" if side > 0 else "−∞"
    width = bracket.upper - bracket.lower
    if bound == 0 or width <= 0:
        return f"{bound:.6g}"
    decimals = min(max(1 - math.floor(math.log10(width)), 0), 8 - math.floor(math.log10(abs(bound))))
    step = 10.0**-decimals
    return f"{side * math.ceil(side * bound / step) * step:.{max(decimals, 0)}f}"


def _density_note(density: Density) -> str:
    width = density.support[1] - density.support[0]
    share = (
        f" ± {rounded(100 * density.error / width, 1)}% of the spectrum's width (Wasserstein distance)"
        if width > 0
        else ""
    )
    return f"density: {counted(len(density.nodes), 'node')}{share}"


def _has_data_error(*figures: Eigenpairs | Estimate | None) -> bool:
    return any(figure is not None and figure.data_error is not None for figure in figures)
