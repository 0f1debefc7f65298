"""What a spectrum's table has no column for, and what is less precise than was asked for, as sentences."""

from __future__ import annotations

import math

from hvpspec.report.numbers import DATA_HEADING, NOT_REACHED, QUANTITY_NAMES, error_heading, rounded, shared_confidence
from hvpspec.report.rows.blocks import block_shortfalls
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate, Rounding
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted, percent

ZERO_HESSIAN = (
    "all products are exactly zero: a loss with such a Hessian is linear in the parameters here, or piecewise linear; "
    "if it should be curved, look for a criterion or a nonlinearity that was left out"
)
_LARGE_ROUNDING = 1e-5  # relative to the norm: more than products in float32 usually err


def ending(spectrum: Spectrum) -> str:
    """How a run that is not complete has ended, after "the run was": "interrupted", "stopped by SIGTERM", …"""
    return spectrum.stopped or "interrupted"


def spectrum_notes(spectrum: Spectrum) -> list[str]:
    """Bounds on all eigenvalues, the density, and what the errors mean."""
    notes = [ZERO_HESSIAN] if _is_zero(spectrum) else []
    pairs, trace = spectrum.eigenpairs, spectrum.trace
    if pairs is not None and pairs.largest is not None and pairs.smallest is not None:
        low, high = _outward(pairs.smallest, -1), _outward(pairs.largest, 1)
        notes.append(
            f"all eigenvalues lie in [{low}, {high}] (each end holds with {percent(pairs.largest.confidence)} "
            "probability)"
        )
    if pairs is not None and pairs.converged and not pairs.all_copies:
        notes.append(
            "an eigenvalue that was found may have further copies: one start vector shows each eigenvalue once; with "
            "trace or Frobenius norm, copies are searched for, and --block-size 2 shows two"
        )
    if spectrum.semidefinite:
        notes.append(f"the {spectrum.matrix_name} of this loss is positive semidefinite: no eigenvalue is negative")
    if spectrum.density is not None:
        notes.append(_density_note(spectrum.density))
    if trace is not None and trace.relative_to == "frobenius_norm":
        notes.append(
            "trace: small compared with the Frobenius norm, as positive and negative eigenvalues cancel; its tolerance "
            "is relative to the norm"
        )
    if (meaning := _error_note(spectrum)) is not None:
        notes.append(meaning)
    if spectrum.rounding is not None:
        notes.append(_rounding_note(spectrum.rounding))
    if spectrum.rounding_reason is not None:
        notes.append(
            f"rounding: that of products in float32 is not known ({spectrum.rounding_reason}); errors include 50 "
            "roundoffs, which may be too few"
        )
    if has_data_error(spectrum):
        notes.append(
            f"{DATA_HEADING}: one standard error due to the choice of data, if the batches are a random sample of a "
            "larger population"
        )
    if pairs is not None and (population := _population_note(pairs)) is not None:
        notes.append(population)
    return notes


def _is_zero(spectrum: Spectrum) -> bool:
    """Whether every product was exactly zero, as far as the quantities asked for show it."""
    pairs, norm, density = spectrum.eigenpairs, spectrum.frobenius_norm, spectrum.density
    shown = [
        *([] if pairs is None or not len(pairs.values) else [bool((pairs.values == 0).all())]),
        *([] if norm is None or not math.isfinite(norm.error) else [norm.value == 0]),
        *([] if density is None else [density.support == (0.0, 0.0)]),
    ]
    return bool(shown) and all(shown)


def draw_notes(record: Record) -> list[str]:
    """What a random sample of the batches means for the errors due to the choice of data."""
    data = record.provenance.data
    if data is None or not data.drawn or not data.of or not has_data_error(record.spectrum):
        return []
    left = math.sqrt(1 - data.drawn / data.of)
    return [
        f"the figures are of {data.drawn:,} of {counted(data.of, 'batch', 'batches')}, drawn at random; as figures of "
        f"all {data.of:,}, they have {rounded(left, 2)} times the error '{DATA_HEADING}'"
    ]


def _rounding_note(rounding: Rounding) -> str:
    how = "in float64" if rounding.method == "float64" else "with everything rounded otherwise"
    products, show = counted(rounding.products, "product"), "shows" if rounding.products == 1 else "show"
    note = (
        f"rounding: products are off by up to {rounding.relative:.1g} of the norm, as {products} computed again {how} "
        f"{show}; every error includes it"
    )
    return f"{note}; --dtype float64 is more accurate" if rounding.relative > _LARGE_ROUNDING else note


def _population_note(pairs: Eigenpairs) -> str | None:
    """What the data say about λ_max of the population, or why they say nothing."""
    found = pairs.population
    if found is not None:
        return (
            f"λ_max of that population lies in [{rounded(found.lower, 3)}, {rounded(found.upper, 3)}] "
            f"({percent(found.confidence)}, on the same condition); that of a sample is larger on average"
        )
    if pairs.population_reason is not None:
        return f"λ_max of a larger population is left open: {pairs.population_reason}"
    return None


def has_data_error(spectrum: Spectrum) -> bool:
    """Whether any error due to the choice of data is known."""
    quantities = (spectrum.eigenpairs, spectrum.trace, spectrum.frobenius_norm)
    return any(quantity is not None and quantity.data_error is not None for quantity in quantities)


def spectrum_confidence(spectrum: Spectrum) -> float | None:
    """What the column of errors is headed with: the confidence that trace and norm share."""
    return shared_confidence([spectrum.trace, spectrum.frobenius_norm])


def _error_note(spectrum: Spectrum) -> str | None:
    confidence = spectrum_confidence(spectrum)
    of_eigenvalues = "for certain (up to rounding)"
    if confidence is None:
        return None if spectrum.eigenpairs is None else f"± error: the true value lies within it {of_eigenvalues}"
    note = f"{error_heading(confidence)}: the true value lies within it with {percent(confidence)} probability"
    return note if spectrum.eigenpairs is None else f"{note}; for eigenvalues, {of_eigenvalues}"


def _effect(note: str) -> str:
    return "show" if "not shown" in note else "find" if "not reached" in note else "narrow"


def shortfalls(spectrum: Spectrum, *, rtol: float | None = None, tol: float | None = None) -> list[str]:
    """What is not within the tolerance asked for, and which option of the command line would narrow it.

    rtol, tol: the tolerances, where they are known.
    """
    notes = []
    pairs = spectrum.eigenpairs
    if "eigenvalues" in spectrum.asked and pairs is None:
        notes.append("The first eigenvalue was not reached.")
    elif "eigenvalues" in spectrum.asked and pairs is not None and not pairs.converged:
        aim = "the tolerance" if tol is None else f"a relative residual of {tol:g}"
        if tol is not None and (pairs.residuals <= tol * abs(pairs.values)).all():
            notes.append("It is not shown that no eigenvalue is missing, such as a copy of one of those found.")
        else:
            notes.append(f"Not every eigenpair reached {aim}: the errors say how precisely each is known.")
    quantities = {"trace": spectrum.trace, "frobenius_norm": spectrum.frobenius_norm}
    asked = {name: estimate for name, estimate in quantities.items() if name in spectrum.asked}
    for name, estimate in asked.items():
        if estimate is None:
            notes.append(f"The {QUANTITY_NAMES[name]} was not reached.")
        elif not estimate.converged:
            notes.append(_too_wide(name, estimate, spectrum, rtol))
    density = spectrum.density
    if "density" in spectrum.asked and (density is None or not density.converged):
        notes.append("The density is coarser than asked for." if density else "The density was not reached.")
    more = "More products (--max-hvps)"
    if spectrum.out_of_time:
        more = "More time (--time-limit), or fewer of the batches (--batches),"
    notes = [f"{note} {more} would {_effect(note)} it." for note in notes]
    notes += _refinement(spectrum.condition)
    if spectrum.blocks is not None:
        narrowed = all(estimate is not None and estimate.converged for estimate in asked.values())
        largest = "eigenvalues" in spectrum.asked
        notes += block_shortfalls(spectrum.blocks, rtol=rtol, narrowed=narrowed, largest=largest)
    return notes


def _too_wide(name: str, estimate: Estimate, spectrum: Spectrum, rtol: float | None) -> str:
    scale, unit = abs(estimate.value), ""
    if estimate.relative_to == "frobenius_norm" and spectrum.frobenius_norm is not None:
        scale, unit = spectrum.frobenius_norm.value, " of the norm"
    relative = estimate.error / scale if scale else math.inf
    if not math.isfinite(relative):
        return f"The {QUANTITY_NAMES[name]} has no error yet: that takes a few more products."
    aim = "the tolerance" if rtol is None else f"the ±{rtol:.2%}"
    return f"The {QUANTITY_NAMES[name]} is known to ±{relative:.2%}{unit}, not to {aim} asked for."


def _refinement(condition: Condition | None) -> list[str]:
    remedy = "More products (--refine-hvps) would narrow it."
    if condition is not None and condition.refined is not None and not condition.refined.converged:
        return [
            f"The eigenvalue nearest to zero did not converge: its error says how precisely it is known. {remedy}"
        ]  # fmt: skip
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
    nodes = counted(density.weighted_nodes, "node")
    if not width > 0 or math.isinf(width):
        return f"density: {nodes}"
    share = rounded(100 * density.error / width, 1)
    return (
        f"density: {nodes}; off by at most {share} % of the spectrum's width (Wasserstein distance, "
        f"{percent(density.confidence)}){'' if density.converged else f'; {NOT_REACHED}'}"
    )
