"""A series of operators, each started from the eigenvectors of the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from hvpspec.errors import InputError
from hvpspec.estimators.spectrum import spectrum
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.log.journaled import Where
from hvpspec.options import SERIES_QUANTITIES, check_only
from hvpspec.results.runs.tracked import Tracked
from hvpspec.results.spectrum import Progress


def check_series(only: str | Iterable[str] | None) -> None:
    """Raises InputError for unknown quantities, or if the eigenvalues are not among them."""
    if "eigenvalues" not in check_only(only):
        raise InputError("a series needs the eigenvalues: add them to the quantities asked for (only).")


def track(
    operators: Iterable[Any],
    k: int = 5,
    *,
    start: np.ndarray | None = None,
    measure_savings: bool = False,
    seed: int = 0,
    first: int = 0,
    journal: Where | Callable[[int], Journal | None] | None = None,
    **options: Any,
) -> Iterator[Tracked]:
    """Yield the spectrum of each operator in turn, started from the k eigenvectors of the one before (a warm start).

    Parameters
    ----------
    operators : iterable
        Anything that `hvpspec.spectrum` takes, all of the same shape (n, n). The same object may be yielded several
        times with a different matrix each time, such as a HessianOperator whose model is given new weights.
    k : int, default 5
        How many eigenpairs.
    start : array, shape (n, p), optional
        Eigenvectors to start the first operator from.
    measure_savings : bool, default False
        Compute each spectrum again from a purely random start and report what that costs (`cold_hvps`); this doubles
        the cost.
    seed : int, default 0
        Operator number i uses the seed `seed + i`: a warm start must not depend on the random vectors to come.
    first : int, default 0
        The number of the first operator, for a series that is continued.
    journal : path or callable, optional
        As for `hvpspec.spectrum`, for the operator at hand; or ``journal(number)``, which gives an open one. Where a
        series was interrupted, `first` and `start` must be those of the operator that was at hand.
    **options
        Those of `hvpspec.spectrum`. `only` is eigenvalues, trace and Frobenius norm by default. With the density there
        is no warm start, as its quadrature needs a random one.

    Yields
    ------
    Tracked
        ``spectrum``, and ``overlap`` with the eigenvectors before.

    Raises
    ------
    InputError
        As for `hvpspec.spectrum`, and if the eigenvalues are not asked for.

    Notes
    -----
    A warm start saves some of the products for the eigenpairs, and none for trace and norm.

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> matrices = [np.diag([5.0, 3.0, 1.0]), np.diag([6.0, 3.0, 1.0])]
    >>> [found.spectrum.eigenpairs.values.round(6).tolist() for found in hvpspec.track(matrices, k=2)]
    [[5.0, 3.0], [6.0, 3.0]]
    """
    options = {"only": SERIES_QUANTITIES, **options}
    check_series(options["only"])
    callback, eigenvalue_hvps = options.pop("callback", None), 0

    def watch(step: Progress) -> None:
        nonlocal eigenvalue_hvps
        eigenvalue_hvps = step.hvps if step.stage == "eigenvalues" else eigenvalue_hvps
        if callback is not None:
            callback(step)

    for number, A in enumerate(operators, start=first):
        eigenvalue_hvps = 0
        own = {**options, "seed": seed + number, "journal": journal(number) if callable(journal) else journal}
        found = spectrum(A, k, start=start, callback=watch, **own)
        cold = None
        if measure_savings:
            cold = found.hvps if start is None else spectrum(A, k, **own).hvps
        vectors = None if found.eigenpairs is None else found.eigenpairs.gather().vectors
        if vectors is None:  # a time limit has ended the run before its first product
            yield Tracked(found, None, cold, eigenvalue_hvps)
            continue
        yield Tracked(found, None if start is None else overlap(start, vectors), cold, eigenvalue_hvps)
        start = vectors


def overlap(U: np.ndarray, V: np.ndarray) -> float:
    """‖Uᵀ V‖_F² / min(p, q) for orthonormal U (n, p), V (n, q): 1 if one space contains the other."""
    inner = np.asarray(U, dtype=np.float64).T @ np.asarray(V, dtype=np.float64)
    return float((inner**2).sum() / min(inner.shape))
