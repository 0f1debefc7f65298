"""Eigenvalues that the basis lacks: they are suspected where there are any, and no claim is wrong."""

import math

import numpy as np
import pytest
import torch
from estimators.spectra import rotated

from hvpspec.bounds.missed import interval_of_rest, proved, shows_outside, suspect
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.probes import Direction, Pool
from hvpspec.results.estimate import Bracket

SMALLEST, LARGEST = Bracket(-9.0, -8.0, 0.95), Bracket(10.0, 11.0, 0.95)


@pytest.mark.parametrize(
    ("which", "values", "expected"),
    [
        ("LM", [10, -8, 4], (-4.04, 4.04)),
        ("LA", [10, 7, 4], (-9, 4.04)),
        ("LA", [-1, -2], (-9, -1.98)),
        ("SA", [-8, -2], (-2.02, 11)),
        ("SA", [1, 2, 4], (3.96, 11)),
        ("BE", [10, 7, -2, -8], (-2.02, 7.07)),
        ("BE", [10, 7, -8], (-8.08, 7.07)),
        ("BE", [10], (-9, 10.1)),
    ],
)
def test_where_all_other_eigenvalues_lie(which, values, expected):
    found = interval_of_rest(np.array(values, float), which, 0.01, SMALLEST, LARGEST)
    np.testing.assert_allclose(found, expected)


def direction(values, weights):
    """The moments of a vector with these squared components in eigenvectors."""
    weights = weights / weights.sum()
    return Direction(torch.empty(0), 1.0, float(weights @ values), float(weights @ values**2))


def test_nothing_is_shown_that_is_not_there():
    """Whatever the vector, no eigenvalue outside is claimed if all are inside."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        low, high = sorted(rng.normal(size=2))
        values, weights = rng.uniform(low, high, 5), rng.exponential(size=5) ** 3
        found = direction(values, weights)
        assert not shows_outside(found, low - 1e-12, high + 1e-12)
        assert not shows_outside(found, -math.inf, high)
        assert not shows_outside(found, low, math.inf)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (-math.inf, 2.0), (-3.0, 2.0)])
def test_what_is_there_is_shown_by_its_eigenvector(low, high):
    rest = np.r_[2.2, np.linspace(max(low, -3.0), high, 20)]
    assert shows_outside(direction(rest, np.r_[1.0, np.full(20, 1e-4)]), low, high)
    assert shows_outside(direction(-rest, np.r_[1.0, np.full(20, 1e-4)]), -high, -low)
    assert not shows_outside(direction(rest, np.ones(21)), low, high)


COPIES = {  # which: the eigenvalues found, and those of the matrix, a copy of one of which is missing
    "LM": ([5.0, -4.0], [5.0, 5.0, -4.0]),
    "LA": ([5.0, 3.0], [5.0, 5.0, 3.0, -4.0]),
    "SA": ([-4.0, -2.0], [5.0, -4.0, -4.0, -2.0]),
    "BE": ([5.0, 3.0, -4.0], [5.0, 5.0, 3.0, -4.0]),
}


@pytest.mark.parametrize("which", COPIES)
@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_copy_is_suspected_and_proved(which, missing):
    found, others = COPIES[which]
    if not missing:
        others = sorted(set(others))
    A = rotated(np.r_[others, 0.05 * np.linspace(-1, 1, 200)])
    values = np.linalg.eigvalsh(A)
    ends = [Bracket(end - 0.01, end, 0.95) for end in (values[0], values[-1] + 0.01)]
    suspected = claimed = 0
    for seed in range(30):
        operator = as_symmetric(A)
        krylov = start(operator, seed=seed)
        pool = Pool(krylov, 100)
        for _ in range(6):  # with more, rounding would let the copy in
            extend(krylov, operator.__matmul__)
        W = pool.draw(8)
        pool.add(W, operator @ W)
        rest = interval_of_rest(np.array(found), which, 1e-3, *ends)
        what = suspect(pool, which, rest)
        suspected += what is not None
        made = operator.hvps
        claimed += what is not None and proved(operator, krylov, what, rest)
        assert operator.hvps == made + (what is not None)
    if missing:
        assert suspected >= 15  # eight probes estimate a square to about a half
        assert claimed >= suspected - 3
    else:
        assert claimed == 0
