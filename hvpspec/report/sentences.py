"""What a spectrum says in plain sentences, the most important first.

Each holds at the confidence that it names, or for certain; nothing is said that the numbers leave open.
"""

from __future__ import annotations

import math

from hvpspec.bounds.stability import Stability, stability
from hvpspec.options import EIGENVALUE_KINDS
from hvpspec.report.notes import ending, shortfalls
from hvpspec.report.numbers import between, down, plus_minus, rounded, with_error
from hvpspec.report.rows.condition import edge_note, shifted_name
from hvpspec.results.condition import Condition
from hvpspec.results.estimate import Estimate
from hvpspec.results.preflight import Preflight
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Preconditioned, Spectrum
from hvpspec.wording import percent


def sentences(record: Record) -> list[str]:
    """The findings of a run."""
    spectrum, options = record.spectrum, record.provenance.options
    return [
        *_sharpest(spectrum),
        *_stability(stability(spectrum, options.get("lr"), options.get("momentum"))),
        *_negative(spectrum),
        *_trace_and_norm(spectrum),
        *_conditioning(spectrum.condition, spectrum.matrix_name),
        *_preflight(record.preflight),
        *_trust(spectrum),
    ]


def _sharpest(spectrum: Spectrum) -> list[str]:
    pairs = spectrum.eigenpairs
    bracket = None if pairs is None else pairs.largest
    if pairs is None or bracket is None or bracket.lower <= 0 or not math.isfinite(bracket.upper):
        return []
    top = float(pairs.values.max())
    error = float(pairs.error[int(pairs.values.argmax())])
    size = plus_minus(top, error) if top > 0 else f"at least {rounded(bracket.lower, 4)}"
    if spectrum.preconditioned is not None:
        return [f"The largest eigenvalue of the {spectrum.matrix_name} is {size}{_damped_step(spectrum)}."]
    return [
        f"The sharpest direction of the loss has curvature {size}: gradient descent is stable up to a learning rate of "
        f"{down(2 / bracket.upper, 3)} (2/λ_max, {percent(bracket.confidence)}){_damped_step(spectrum)}."
    ]


def _damped_step(spectrum: Spectrum) -> str:
    found = spectrum.condition
    if found is None or not found.damping or found.step is None:
        return ""
    return f"; on {shifted_name(found)}, up to {down(found.step.lower, 3)}"


def _stability(found: Stability | None) -> list[str]:
    if found is None or found.lr is None or found.ratio is None or found.edge is None:
        return []
    if found.optimizer is not None:
        return [_at_the_edge(found, found.optimizer)]
    edge = rounded(found.edge, 4)
    step = f"The learning rate {found.lr:g}" + (f" with momentum {found.momentum:g}" if found.momentum else "")
    share = f"λ_max is {between(found.ratio, 3)} times the edge of stability, {edge}"
    if found.stable is None:
        return [f"{step} may or may not be stable: {share}."]
    if found.stable:
        return [f"{step} is stable: {share} ({percent(found.lambda_max.confidence)})."]
    return [f"{step} is not stable: {share}."]


def _at_the_edge(found: Stability, by: Preconditioned) -> str:
    assert found.ratio is not None
    name, _, at = edge_note(by).partition(": ")
    chance = f", {percent(found.lambda_max.confidence)}" if found.stable else ""
    says = f"λ_max is at {between(found.ratio, 3)} of the edge of stability of {name} ({at}{chance})"
    if found.stable is None:
        return f"{says}: its steps may or may not be stable."
    return f"{says}: its steps are {'stable' if found.stable else 'not stable, as long as its preconditioner stays'}."


def _negative(spectrum: Spectrum) -> list[str]:
    pairs, condition = spectrum.eigenpairs, spectrum.condition
    if pairs is None:
        return []
    lowest = pairs.smallest
    if spectrum.semidefinite and (lowest is None or lowest.lower >= 0):
        return [f"No eigenvalue is negative, for certain: the {spectrum.matrix_name} of this loss has none."]
    surely = [float(value + error) for value, error in zip(pairs.values, pairs.error, strict=True) if value + error < 0]
    if (lowest is not None and lowest.upper < 0) or surely:
        least = min([*surely, *([lowest.upper] if lowest is not None else [])])
        many = ""
        if condition is not None and condition.negative_at_least:
            count = condition.negative_at_least
            many = f", and at least {count:,} eigenvalue{'s are' if count > 1 else ' is'} negative"
        return [
            "The checkpoint is not at a minimum: the loss curves downwards in some direction "
            f"(λ ≤ −{down(-least, 3)}{many})."
        ]
    if lowest is not None and lowest.lower > 0:
        return [
            f"Every eigenvalue is positive ({percent(lowest.confidence)}): the loss curves upwards in every direction."
        ]
    if lowest is not None and math.isfinite(lowest.lower):
        return [
            f"No eigenvalue lies below {lowest.lower:.3g} ({percent(lowest.confidence)}); whether any is negative is "
            "not known."
        ]
    return []


def _trace_and_norm(spectrum: Spectrum) -> list[str]:
    said = []
    trace, norm, pairs = spectrum.trace, spectrum.frobenius_norm, spectrum.eigenpairs
    if trace is not None:
        mean = with_error(trace.value / spectrum.parameters, trace.error / spectrum.parameters)
        said.append(
            f"The trace is {plus_minus(trace.value, trace.error)} ({_chance(trace)}): a mean "
            f"curvature of {mean[0]} over {spectrum.parameters:,} parameters."
        )
    if norm is not None and norm.value > 0 and pairs is not None and math.isfinite(norm.error):
        share = math.sqrt(float((pairs.values**2).sum())) / norm.value
        said.append(
            f"The {len(pairs.values)} {EIGENVALUE_KINDS[spectrum.which]} make up about {min(share**2, 1):.1%} of the "
            f"squared Frobenius norm; the norm is {plus_minus(norm.value, norm.error)}."
        )
    elif norm is not None:
        said.append(f"The Frobenius norm is {plus_minus(norm.value, norm.error)}.")
    return said


def _conditioning(condition: Condition | None, matrix: str) -> list[str]:
    if condition is None or not condition.kappa.lower > 0:
        return []
    what = f"the {matrix}" if not condition.damping else shifted_name(condition)
    size = between(condition.kappa, 3)
    size = (
        size.replace("≥", "at least") if "≥" in size else f"between {size.replace('…', 'and')}" if "…" in size else size
    )
    lost = condition.digits_lost.lower
    digits = ""
    if math.isfinite(lost) and condition.digits:
        digits = f", so that a solve loses {min(lost, condition.digits):.1f} or more of {condition.digits:.1f} digits"
    return [f"The condition number of {what} is {size}{digits}."]


def _preflight(preflight: Preflight | None) -> list[str]:
    if preflight is None:
        return []
    parts = [
        f"{count} {words[count > 1]}"
        for severity, words in (
            ("fixed", ("problem was fixed, exactly", "problems were fixed, exactly")),
            ("note", ("finding is worth knowing", "findings are worth knowing")),
            ("refused", ("finding makes the figures wrong", "findings make the figures wrong")),
        )
        if (count := len(preflight.of(severity)))
    ]
    return [f"Before the run, {', '.join(parts)}: see the preflight."] if parts else []


def _trust(spectrum: Spectrum) -> list[str]:
    if not spectrum.complete:
        return [
            f"The run was {ending(spectrum).rstrip('.')}. These are the figures known by then, with the errors that "
            "they had."
        ]
    if spectrum.converged and not shortfalls(spectrum):
        return [f"Every figure asked for is within its tolerance, after {spectrum.hvps:,} Hessian-vector products."]
    within = f"{spectrum.hvps:,} Hessian-vector products"
    if spectrum.out_of_time:
        within = f"the time limit, which was over after {within}"
    return [
        f"Not every figure reached its tolerance within {within}; the errors say how "
        "precisely each is known, and the notes below the figures say what would help."
    ]


def _chance(estimate: Estimate) -> str:
    return "exact, up to rounding" if estimate.method == "exact" else percent(estimate.confidence)
