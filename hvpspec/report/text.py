"""The figures as a table for the terminal."""

from __future__ import annotations

import math

from rich.table import Table

from hvpspec.results import Estimate, Spectrum


def spectrum_table(spectrum: Spectrum) -> Table:
    """Eigenvalues, then trace and norm, each with its error bar."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("± error", justify="right")
    table.add_column("note")
    pairs = spectrum.eigenpairs
    if pairs is None:
        table.add_row("eigenvalues", "–", "", "not reached")
    else:
        for number, (value, error) in enumerate(zip(pairs.values, pairs.error, strict=True), start=1):
            digits, bar = with_error(float(value), float(error))
            table.add_row(f"λ{number}", digits, bar, "")
    for name, estimate in (("trace", spectrum.trace), ("Frobenius norm", spectrum.frobenius_norm)):
        if estimate is None:
            table.add_row(name, "–", "", "not reached")
        else:
            table.add_row(name, *with_error(estimate.value, estimate.error), _certainty(estimate))
    return table


def shortfalls(spectrum: Spectrum, *, rtol: float, tol: float) -> list[str]:
    """A sentence for each figure that is not within the tolerance asked for."""
    notes = []
    pairs = spectrum.eigenpairs
    if pairs is None or not pairs.converged:
        notes.append(f"Not every eigenpair reached a relative residual of {tol:g}: their errors say how far each is.")
    for name, estimate in (("trace", spectrum.trace), ("Frobenius norm", spectrum.frobenius_norm)):
        if estimate is None:
            notes.append(f"The {name} was not reached.")
        elif not estimate.converged:
            relative = estimate.error / abs(estimate.value) if estimate.value else math.inf
            notes.append(f"The {name} is known to ±{relative:.2%}, not to the ±{rtol:.2%} asked for.")
    return notes


def with_error(value: float, error: float) -> tuple[str, str]:
    """The value to the digits that its error leaves, and the error to two: ("12.3457", "0.00051")."""
    if not math.isfinite(error):
        return f"{value:.3g}", "unknown"
    if error <= 0 or value == 0:
        return f"{value:.8g}", f"{error:.2g}"
    digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(error)) + 2
    return f"{value:#.{min(max(digits, 1), 9)}g}".rstrip("."), f"{error:.2g}"


def _certainty(estimate: Estimate) -> str:
    if estimate.method == "exact":
        return "exact, up to rounding"
    note = f"{100 * estimate.confidence:g} %"
    return note if estimate.converged else f"{note}, tolerance not reached"
