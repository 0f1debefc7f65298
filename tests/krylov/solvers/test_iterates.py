"""CG and MINRES, compared with SciPy's iterate by iterate, and with dense solutions."""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import rotated

from hvpspec.krylov.solvers.conjugate_gradients import cg
from hvpspec.krylov.solvers.iterate import iterates as all_iterates
from hvpspec.krylov.solvers.minimal_residuals import minres

N = 120
DEFINITE = np.concatenate([np.geomspace(3, 30, 8), np.linspace(0.5, 2, N - 8)])
SPECTRA = {
    "definite": DEFINITE,
    "indefinite": np.concatenate([DEFINITE[:60], -DEFINITE[60:]]),
    "negative": -DEFINITE,
    "clustered": np.repeat([1.0, 2.0, 5.0], N // 3),
    "large": 1e9 * DEFINITE,
    "small": 1e-9 * DEFINITE,
}
B = np.random.default_rng(0).standard_normal(N)
SCALE = np.geomspace(0.3, 3, N)


def column(values):
    return torch.from_numpy(values)[:, None]


def iterates(solver, A, b=B, scale=None):
    """The solver's iterates on the matrix, as copies; scale: a diagonal preconditioner."""
    matrix = torch.from_numpy(A)
    M = None if scale is None else column(scale).mul
    for now in all_iterates(solver(column(b), M), matrix.__matmul__):
        yield now._replace(x=now.x[:, 0].numpy().copy())


def by_scipy(solver, A, scale, **options):
    found = []
    M = None if scale is None else np.diag(scale)
    solver(A, B, M=M, callback=lambda x: found.append(x.copy()), **options)
    return found


@pytest.mark.parametrize("scale", [None, SCALE], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_iterates_are_those_of_scipy(name, scale):
    A = rotated(SPECTRA[name])
    for solver, theirs in [(minres, sla.minres), (cg, sla.cg)]:
        if solver is cg and name in ("indefinite", "negative"):
            continue
        expected = by_scipy(theirs, A, scale, maxiter=12, rtol=1e-12)  # rounding differs more and more
        for now, x in zip(iterates(solver, A, scale=scale), expected, strict=False):
            np.testing.assert_allclose(now.x, x, rtol=1e-5, atol=1e-5 * np.linalg.norm(x))
            assert now.residual == pytest.approx(np.linalg.norm(B - A @ x), rel=1e-4)


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
@pytest.mark.parametrize("name", SPECTRA)
def test_as_many_iterations_as_scipy(name, rtol):
    A = rotated(SPECTRA[name])
    if name not in ("indefinite", "negative"):
        left = [now.residual for now in islice(iterates(cg, A), 400)]
        made = next(i for i, residual in enumerate(left, 1) if residual <= rtol * np.linalg.norm(B))
        assert abs(made - len(by_scipy(sla.cg, A, None, rtol=rtol))) <= 1
    # SciPy adds ‖b‖² to ‖T‖_F² by mistake.
    size = np.linalg.norm(B)
    tests = [
        now.residual / (np.hypot(now.norm, size) * np.linalg.norm(now.x)) for now in islice(iterates(minres, A), 400)
    ]
    images = [now.image / np.hypot(now.norm, size) for now in islice(iterates(minres, A), 400)]
    made = next(i for i, both in enumerate(zip(tests, images, strict=True), 1) if min(both) <= rtol)
    assert abs(made - len(by_scipy(sla.minres, A, None, rtol=rtol))) <= 1


@pytest.mark.parametrize("scale", [None, SCALE], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("name", SPECTRA)
def test_they_end_in_the_solution(name, scale):
    A = rotated(SPECTRA[name])
    exact = np.linalg.solve(A, B)
    for solver in (minres, cg) if name in ("definite", "clustered", "large", "small") else (minres,):
        *_, last = islice(iterates(solver, A, scale=scale), 6 * N)
        np.testing.assert_allclose(last.x, exact, rtol=1e-6, atol=1e-6 * np.linalg.norm(exact))


@pytest.mark.parametrize("sign", [1, -1])
def test_what_minres_says_of_the_operator(sign):
    """‖A r‖ / ‖r‖ of the residual before, and a norm between that and ‖A‖_F."""
    A = sign * rotated(SPECTRA["indefinite"])
    r = B
    for now in islice(iterates(minres, A), 8):
        assert now.image == pytest.approx(np.linalg.norm(A @ r) / np.linalg.norm(r), rel=1e-6)
        assert now.image <= now.norm * (1 + 1e-12)
        assert now.norm <= np.linalg.norm(A)
        r = B - A @ now.x


@pytest.mark.parametrize("inside", [0.0, 0.5, 1.0])
def test_singular_systems_end_in_a_least_squares_solution(inside):
    """inside: how much of b lies in the kernel. The residual is then what lies there."""
    A = np.diag([1.0, -2, 3, 4, 0, 0])
    A[:4, :4] = rotated(np.diag(A)[:4])
    kernel = np.eye(6)[4:]
    b = np.r_[np.full(4, float(inside < 1)), np.full(2, inside)]
    seen = list(iterates(minres, A, b))
    x = seen[-1].x if seen else np.zeros(6)
    assert np.linalg.norm(kernel @ b) == pytest.approx(inside * np.sqrt(2), abs=1e-12)
    assert np.linalg.norm(b - A @ x) == pytest.approx(inside * np.sqrt(2), abs=1e-10)
    assert np.linalg.norm(x) < 1e3
    assert len(seen) <= 6


@pytest.mark.parametrize("solver", [cg, minres])
def test_nothing_is_asked_for_where_b_is_zero_or_mapped_to_zero(solver):
    assert list(iterates(solver, np.eye(3), np.zeros(3))) == []
    assert list(iterates(solver, np.zeros((3, 3)), np.ones(3))) == []


@pytest.mark.parametrize("solver", [cg, minres])
def test_vectors_that_are_given_are_left_alone(solver):
    """b, and a product that shares memory with what was multiplied is not written to."""
    b = torch.ones(5, 1, dtype=torch.float64)
    *_, last = all_iterates(solver(b), torch.clone)
    torch.testing.assert_close(last.x, b)
    assert bool((b == 1).all())


@pytest.mark.parametrize("solver", [cg, minres])
def test_iterates_are_in_the_dtype_of_b(solver):
    A, b = torch.from_numpy(rotated(DEFINITE)).float(), column(B).float()
    made = list(islice(all_iterates(solver(b, partial(torch.mul, 2)), A.__matmul__), 30))
    assert made[-1].x.dtype == torch.float32
    assert made[-1].residual < 0.1 * float(b.norm())
