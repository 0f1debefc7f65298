"""A series of operators, each started from the eigenvectors of the one before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from hvpspec.errors import InputError
from hvpspec.estimators.spectrum import spectrum
from hvpspec.options import check_only
from hvpspec.results.spectrum import Progress
from hvpspec.results.tracked import Tracked

FIGURES = ("eigenvalues", "trace", "frobenius_norm")


def check_series(only: Iterable[str] | None) -> None:
    """Raises InputError where the figures asked for are not known, or the eigenvalues are not among them."""
    if "eigenvalues" not in check_only(only):
        raise InputError("a series needs the eigenvalues: add them to the figures asked for (--only eigenvalues).")


def track(
    operators: Iterable[Any],
    k: int = 5,
    *,
    start: np.ndarray | None = None,
    measure_savings: bool = False,
    seed: int = 0,
    first: int = 0,
    **options: Any,
) -> Iterator[Tracked]:
    """The spectrum of each operator in turn, each started from the k eigenvectors found before (a warm start).

    operators: anything that `hvpspec.spectrum` takes; one that gives a new matrix each time it is yielded will do.
    start: eigenvectors (n, p) to start the first from. measure_savings: do each again from a random start alone, which
    doubles the cost, and tell what that took. first: the number of the first, where a series goes on: number i draws
    with the seed `seed + i`, as a start must not know the random vectors to come. options: those of `hvpspec.spectrum`;
    `only` is eigenvalues, trace and norm unless given. (With the density, whose quadrature needs a random start, there
    is no warm one.)
    """
    options = {"only": FIGURES, **options}
    check_series(options["only"])
    callback, taken = options.pop("callback", None), 0

    def watch(step: Progress) -> None:
        nonlocal taken
        taken = step.hvps if step.stage == "eigenvalues" else taken
        if callback is not None:
            callback(step)

    for number, A in enumerate(operators, start=first):
        taken = 0
        found = spectrum(A, k, seed=seed + number, start=start, callback=watch, **options)
        cold = None
        if measure_savings:
            cold = found.hvps if start is None else spectrum(A, k, seed=seed + number, **options).hvps
        assert found.eigenpairs is not None
        vectors = found.eigenpairs.vectors
        assert vectors is not None
        yield Tracked(found, None if start is None else overlap(start, vectors), cold, taken)
        start = vectors


def overlap(U: np.ndarray, V: np.ndarray) -> float:
    """‖Uᵀ V‖_F² / min(p, q) for orthonormal U (n, p), V (n, q): 1 where one space holds the other."""
    inner = np.asarray(U, dtype=np.float64).T @ np.asarray(V, dtype=np.float64)
    return float((inner**2).sum() / min(inner.shape))
