"""What the figures say, in plain sentences, the most important first. Each holds at the confidence that it names, or
for certain; nothing is said that the figures leave open."""

from __future__ import annotations

import math
from typing import Any

from hvpspec.report.condition_rows import shifted_name
from hvpspec.report.notes import shortfalls
from hvpspec.report.numbers import down, plus_minus, rounded, with_error
from hvpspec.results.spectrum import Spectrum


def sentences(spectrum: Spectrum, document: dict[str, Any]) -> list[str]:
    """document: what spectrum.json holds (its `preflight` and `condition`, where there are any)."""
    said = [
        *_ends(spectrum),
        *_negative(spectrum, document.get("condition")),
        *_trace_and_norm(spectrum),
        *_conditioning(document.get("condition")),
        *_preflight(document.get("preflight")),
        *_trust(spectrum),
    ]
    return said or ["No figure was known when the run ended."]


def _ends(spectrum: Spectrum) -> list[str]:
    pairs = spectrum.eigenpairs
    if pairs is None:
        return []
    bracket, said = pairs.largest, []
    if bracket is not None and bracket.lower > 0 and math.isfinite(bracket.upper):
        top = float(pairs.values.max())
        error = float(pairs.error[int(pairs.values.argmax())])
        size = plus_minus(top, error) if top > 0 else f"at least {rounded(bracket.lower, 4)}"
        said.append(
            f"The sharpest direction of the loss has curvature {size}: gradient descent is stable up to a step of "
            f"{down(2 / bracket.upper, 3)} (2/λ_max, {100 * bracket.confidence:g} %){_damped_step(spectrum)}."
        )
    return said


def _damped_step(spectrum: Spectrum) -> str:
    found = spectrum.condition
    if found is None or not found.damping or found.step is None:
        return ""
    return f"; on {shifted_name(found)}, up to {down(found.step.lower, 3)}"


def _negative(spectrum: Spectrum, condition: dict[str, Any] | None) -> list[str]:
    pairs = spectrum.eigenpairs
    if pairs is None:
        return []
    lowest = pairs.smallest
    surely = [float(value + error) for value, error in zip(pairs.values, pairs.error, strict=True) if value + error < 0]
    if (lowest is not None and lowest.upper < 0) or surely:
        least = min([*surely, *([lowest.upper] if lowest is not None else [])])
        many = ""
        if condition and condition.get("negative_at_least"):
            count = condition["negative_at_least"]
            many = f", and at least {count:,} eigenvalue{'s are' if count > 1 else ' is'} negative"
        return [
            f"The checkpoint is no minimum: the loss curves downwards in some direction (λ ≤ −{down(-least, 3)}{many})."
        ]
    if lowest is not None and lowest.lower > 0:
        return [f"Every eigenvalue is positive ({100 * lowest.confidence:g} %): the checkpoint lies in a bowl."]
    if lowest is not None and math.isfinite(lowest.lower):
        return [
            f"No eigenvalue lies below {lowest.lower:.3g} ({100 * lowest.confidence:g} %); whether any is negative is "
            "left open."
        ]
    return []


def _trace_and_norm(spectrum: Spectrum) -> list[str]:
    said = []
    trace, norm, pairs = spectrum.trace, spectrum.frobenius_norm, spectrum.eigenpairs
    if trace is not None:
        mean = with_error(trace.value / spectrum.parameters, trace.error / spectrum.parameters)
        said.append(
            f"The trace is {plus_minus(trace.value, trace.error)} ({_chance(trace.confidence, trace.method)}): a mean "
            f"curvature of {mean[0]} over {spectrum.parameters:,} parameters."
        )
    if norm is not None and norm.value > 0 and pairs is not None and math.isfinite(norm.error):
        share = math.sqrt(float((pairs.values**2).sum())) / norm.value
        said.append(
            f"The {len(pairs.values)} largest eigenvalues make up about {min(share**2, 1):.1%} of the squared "
            f"Frobenius norm; the norm is {plus_minus(norm.value, norm.error)}."
        )
    elif norm is not None:
        said.append(f"The Frobenius norm is {plus_minus(norm.value, norm.error)}.")
    return said


def _conditioning(condition: dict[str, Any] | None) -> list[str]:
    kappa = (condition or {}).get("kappa")
    if not condition or not kappa or not kappa.get("lower"):
        return []
    what = f"H + {condition['damping']:g} I" if condition.get("damping") else "the Hessian"
    high = kappa.get("upper")
    low, top = rounded(kappa["lower"], 3), rounded(math.inf if high is None else high, 3)
    size = f"at least {low}" if high is None else low if low == top else f"between {low} and {top}"
    lost, digits = condition.get("digits_lost"), condition.get("digits")
    digits_text = ""
    if lost and digits and lost.get("lower") is not None:
        digits_text = f", so that a solve loses {min(lost['lower'], digits):.1f} or more of {digits:.1f} digits"
    return [f"The condition number of {what} is {size}{digits_text}."]


def _preflight(preflight: dict[str, Any] | None) -> list[str]:
    counts = {"refused": 0, "note": 0, "fixed": 0}
    for finding in (preflight or {}).get("findings", []):
        counts[finding["severity"]] = counts.get(finding["severity"], 0) + 1
    parts = [
        f"{count} {words[count > 1]}"
        for kind, words in (
            ("fixed", ("thing was mended exactly", "things were mended exactly")),
            ("note", ("is worth knowing", "are worth knowing")),
            ("refused", ("makes the figures wrong", "make the figures wrong")),
        )
        if (count := counts[kind])
    ]
    return [f"Before the run, {', '.join(parts)}: see the preflight."] if parts else []


def _trust(spectrum: Spectrum) -> list[str]:
    if not spectrum.complete:
        return ["The run was interrupted: these are the figures known by then, with the errors that they had."]
    if spectrum.converged and not shortfalls(spectrum, rtol=0.0, tol=0.0):
        return [f"Every figure asked for is within its tolerance, after {spectrum.hvps:,} Hessian-vector products."]
    return [
        f"Not every figure reached its tolerance within {spectrum.hvps:,} Hessian-vector products; the errors say how "
        "far each is known, and the notes below the figures what would help."
    ]


def _chance(confidence: float, method: str) -> str:
    return "exact, up to rounding" if method == "exact" else f"{100 * confidence:g} %"
