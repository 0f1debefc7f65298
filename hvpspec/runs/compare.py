"""Several runs compared: what differs between the first and each of the others, and whether the errors explain it.

*Combined error.* Two intervals of confidence c that come from independent random vectors combine to the root of the sum
of their squares. Runs with the same seed and size have used the same random vectors, so that their errors may be
correlated: they are added, which holds whatever the correlation. (A seed that is not known may be the same.) Bounds are
added, too: errors of eigenvalues, brackets, counts.

*Significant.* Where m differences are looked at, each interval is first widened to the confidence 1 − (1 − c)/m
(Bonferroni), so that all statements hold together with probability ≥ c. Intervals are widened by Student's t with seven
degrees of freedom: hvpspec takes no interval from fewer than eight probes, and more would widen less. Brackets are
widened by the bound that they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvpspec.errors import InputError
from hvpspec.report.documents import read_record
from hvpspec.report.notes import ending
from hvpspec.results.record import Provenance
from hvpspec.results.runs.comparison import Comparison, Difference, Run, Value
from hvpspec.runs.compare_values import values_of


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """paths: spectrum.json files, or folders that hold one. Raises InputError when one cannot be read."""
    files = [path / "spectrum.json" if path.is_dir() else path for path in paths]
    return [Run(label, str(file), read_record(file)) for label, file in zip(_labels(files), files, strict=True)]


def compared(runs: Sequence[Run], *, confidence: float = 0.95, expected: Sequence[str] = ()) -> Comparison:
    """Every quantity that the first run shares with another. Raises InputError when there are fewer than two runs.

    expected: settings that they differ in on purpose, of which nothing is said.
    """
    if len(runs) < 2:
        raise InputError("compare takes two spectrum.json files or more.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1; got {confidence:g}.")
    first = values_of(runs[0].spectrum)
    pairs = []
    for run in runs[1:]:
        others, shared = values_of(run.spectrum), share_vectors(runs[0], run)
        pairs += [(name, run.label, value, others[name], shared) for name, value in first.items() if name in others]
    many = max(len(pairs), 1)
    differences = [
        Difference(
            name, label, a, b, b.value - a.value,
            max(combined(a, b, confidence, shared=shared, upwards=side) for side in (True, False)),
            combined(a, b, 1 - (1 - confidence) / many, shared=shared),
        )
        for name, label, a, b, shared in pairs
    ]  # fmt: skip
    shared = any(share_vectors(runs[0], run) for run in runs[1:])
    return Comparison(tuple(runs), tuple(differences), confidence, tuple(_warnings(runs, expected)), shared)


def combined(a: Value, b: Value, confidence: float, *, shared: bool = False, upwards: bool | None = None) -> float:
    """The error of b − a at `confidence`: how far a may lie towards b, and b towards a.

    Random errors are combined in quadrature, or added where the random vectors were `shared`; bounds that are certain
    are added. upwards: whether b is taken to be the larger one; by default as the values are.
    """
    upwards = b.value >= a.value if upwards is None else upwards
    sides = [(a, a.side(upwards, confidence)), (b, b.side(not upwards, confidence))]
    random = [side for value, side in sides if value.sampled]
    rest = sum(side for value, side in sides if not value.sampled)
    return (sum(random) if shared else math.hypot(*random)) + rest


def share_vectors(first: Run, other: Run) -> bool:
    """Whether both runs may have used the same random vectors."""
    a, b = (run.record.provenance.seed for run in (first, other))
    return first.spectrum.parameters == other.spectrum.parameters and (a == b or a is None or b is None)


def _warnings(runs: Sequence[Run], expected: Sequence[str]) -> list[str]:
    """Why the runs may not be comparable, the first against each of the others."""
    said = [
        f"{run.label}: {ending(run.spectrum).partition(': ')[0]}; its figures are those known by then"
        for run in runs
        if not run.spectrum.complete
    ]
    first = _settings(runs[0].record.provenance)
    for run in runs[1:]:
        for what, b in _settings(run.record.provenance).items():
            a = first[what]
            if a != b and a is not None and b is not None and what not in expected:
                said.append(f"{run.label} and {runs[0].label} differ in {what}: {_short(b)}, not {_short(a)}")
        if run.spectrum.parameters != runs[0].spectrum.parameters:
            said.append(
                f"{run.label} has {run.spectrum.parameters:,} parameters, {runs[0].label} "
                f"{runs[0].spectrum.parameters:,}: the matrices are of different sizes"
            )
    return said


def _settings(provenance: Provenance) -> dict[str, Any]:
    """What has to be the same for two runs to be comparable; None where it is not known."""
    data = provenance.data
    return {
        "matrix": provenance.options.get("matrix", "hessian"),
        "preconditioner": provenance.options.get("precondition", "none"),
        "loss": provenance.loss,
        "reduction": provenance.options.get("reduction", "mean"),
        "mode of the model": "training" if provenance.options.get("train_mode") else "eval",
        "data": None if data is None else data.source,
        "number of batches": None if data is None else data.batches,
        "choice of batches": None if data is None else "all" if data.drawn is None else data.counted_batches,
        "weight of the data": None if data is None else data.weight,
        "model": provenance.model,
        "choice of parameters": provenance.options.get("parameters") or "all",
    }


def _short(entry: Any) -> str:
    if isinstance(entry, int | float):
        return f"{entry:,.10g}"
    return ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)


def _labels(files: Sequence[Path]) -> list[str]:
    """The shortest endings of the paths that are all different; numbered where a file is given twice."""
    parts = [file.absolute().parent.parts if file.name == "spectrum.json" else file.absolute().parts for file in files]
    for length in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{file} ({i})" for i, file in enumerate(files, start=1)]
