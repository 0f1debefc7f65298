"""Runs side by side: what differs between the first and each of the others, and by how much more than the errors.

*Combined error.* Two intervals of confidence c, from random vectors of their own, combine to the root of the sum of
their squares. Runs of one seed and size had the same random vectors: their errors may go either way together, and so
are added, which holds whatever they have in common. (A seed that is not known may be the same.) Bounds add up, too:
errors of eigenvalues, brackets, counts.
*Significant.* With m differences looked at, one in 1/(1 − c) sets would show a false one if each interval kept the
confidence c/m too little: so the intervals are first widened to the confidence 1 − (1 − c)/m (Bonferroni), as Student's
t with seven degrees of freedom tells (eight probes are the fewest that hvpspec takes an interval from; more would
widen less), and brackets as the bound behind them tells. All statements together then hold with probability ≥ c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvpspec.errors import InputError
from hvpspec.report.documents import read_document
from hvpspec.results.comparison import Comparison, Difference, Run, Value
from hvpspec.results.spectrum import Spectrum
from hvpspec.runs.compare_values import values_of


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """paths: spectrum.json files, or folders that hold one. Raises InputError when one cannot be read."""
    files = [path / "spectrum.json" if path.is_dir() else path for path in paths]
    documents = [read_document(file) for file in files]
    return [
        Run(label, str(file), document, Spectrum.from_dict(document))
        for label, file, document in zip(_labels(files), files, documents, strict=True)
    ]


def compared(runs: Sequence[Run], *, confidence: float = 0.95) -> Comparison:
    """Every figure that the first run shares with another. Raises InputError when there are fewer than two runs."""
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
    return Comparison(tuple(runs), tuple(differences), confidence, tuple(_warnings(runs)), shared)


def combined(a: Value, b: Value, confidence: float, *, shared: bool = False, upwards: bool | None = None) -> float:
    """The error of b − a at `confidence`: how far a may lie towards b, and b towards a. What is random is combined in
    quadrature (shared: added, as the random vectors were the same), and what is certain added to that.
    upwards: whether b is thought to be the larger; by default as their values are."""
    upwards = b.value >= a.value if upwards is None else upwards
    sides = [(a, a.side(upwards, confidence)), (b, b.side(not upwards, confidence))]
    random = [side for value, side in sides if value.sampled]
    rest = sum(side for value, side in sides if not value.sampled)
    return (sum(random) if shared else math.hypot(*random)) + rest


def share_vectors(first: Run, other: Run) -> bool:
    """Whether both runs may have had the same random vectors."""
    a, b = (_entry(run, ("seed",)) for run in (first, other))
    return first.spectrum.parameters == other.spectrum.parameters and (a == b or a is None or b is None)


def _warnings(runs: Sequence[Run]) -> list[str]:
    """Why the runs may not be comparable, the first against each of the others."""
    said = [
        f"{run.label}: interrupted; its figures are those known by then" for run in runs if not run.spectrum.complete
    ]
    for run in runs[1:]:
        for what, key in _ALIKE.items():
            a, b = (_entry(each, key) for each in (runs[0], run))
            if a != b and a is not None and b is not None:
                said.append(f"{run.label} and {runs[0].label} differ in {what}: {_short(b)}, not {_short(a)}")
        if run.spectrum.parameters != runs[0].spectrum.parameters:
            said.append(
                f"{run.label} has {run.spectrum.parameters:,} parameters, {runs[0].label} "
                f"{runs[0].spectrum.parameters:,}: the figures are of matrices of different size"
            )
    return said


_ALIKE = {
    "loss": ("loss",),
    "data": ("data", "source"),
    "number of batches": ("data", "batches"),
    "weight of the data": ("data", "weight"),
    "model": ("model",),
    "choice of parameters": ("options", "parameters"),
}


def _entry(run: Run, path: tuple[str, ...]) -> Any:
    entry: Any = run.document.get("provenance") or {}
    for key in path:
        entry = entry.get(key) if isinstance(entry, dict) else None
    if path == ("options", "parameters") and entry is None:
        return "all"
    return entry


def _short(entry: Any) -> str:
    if isinstance(entry, int | float):
        return f"{entry:,.10g}"
    return ", ".join(map(str, entry)) if isinstance(entry, list) else str(entry)


def _labels(files: Sequence[Path]) -> list[str]:
    """The shortest endings of the folders' paths that differ; the whole path where a file is given twice."""
    parts = [file.absolute().parent.parts if file.name == "spectrum.json" else file.absolute().parts for file in files]
    for length in range(1, max(map(len, parts), default=1) + 1):
        labels = ["/".join(part[-length:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{file} ({i})" for i, file in enumerate(files, start=1)]
