"""What eigenpairs claim: residuals, error bounds, brackets of the whole spectrum, measured residuals."""

import numpy as np
import pytest
import torch
from estimators.spectra import NAMES, SEEDS, eigenvalues, matrix, rotated
from scipy.sparse.linalg import LinearOperator

import hvpspec
from hvpspec.bounds.eigenvalues import Exclusion, bracket
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

ROUNDING = 1e-13  # of the matrices themselves


def steps(A, count, *, seed, block=1):
    krylov = start(as_symmetric(A), seed=seed, block=block)
    while krylov.m < count:
        extend(krylov, as_symmetric(A).__matmul__)
    return krylov


@SEEDS
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_brackets_hold_at_their_rate(name, block, seeds):
    """λ_max and λ_min lie inside in at least 95 % of the runs, however early they stop, and the bounds are useful."""
    A, values = torch.from_numpy(matrix(name, 300)), eigenvalues(name, 300)
    for count in (3, 12):
        missed, widths = np.zeros(2), []
        for seed in seeds:
            krylov = steps(A, count, seed=seed, block=block)
            ritz, exclusion = krylov.ritz(), Exclusion.of(krylov)
            for i, (side, truth) in enumerate(((1, values.max()), (-1, values.min()))):
                found = bracket(ritz, exclusion, side, 0.95)
                missed[i] += not found.lower - ROUNDING <= truth <= found.upper + ROUNDING
                widths.append(found.upper - found.lower)
        assert (missed <= {25: 4, 75: 8}[len(seeds)]).all(), (
            count,
            missed,
        )  # 5 % and more than two deviations
        if count == 12:
            assert np.median(widths) < 0.5 * np.ptp(values)


def test_a_bracket_is_not_wider_than_it_must_be():
    """At 50 % the bound fails now and then: one that never fails would be too wide."""
    A, held = torch.from_numpy(matrix("rank one", 300)), 0
    for seed in range(200):
        krylov = steps(A, 1, seed=seed)
        held += bracket(krylov.ritz(), Exclusion.of(krylov), 1, 0.5).upper >= 1
    assert 100 - 21 <= held <= 100 + 21


def test_overlap_is_a_bound_on_what_the_start_has_of_an_eigenvector():
    """Against the eigenvectors themselves, for single vectors and blocks."""
    A = matrix("indefinite with outliers", 200)
    values, vectors = np.linalg.eigh(A)
    for block in (1, 2, 4):
        krylov = steps(torch.from_numpy(A), 20, seed=3, block=block)
        starts = krylov.basis.matrix[:, :block].numpy()
        part = np.linalg.norm(starts.T @ vectors, axis=0)
        bound = Exclusion.of(krylov).overlap(values)
        assert (part <= bound * (1 + 1e-6) + 1e-12).all()
        if block == 1:  # tight for outliers, which the space has nearly met
            assert (part / bound)[np.abs(values) > 4].min() > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_errors_bound_the_distance_to_an_eigenvalue(name):
    A, values = matrix(name, 200), eigenvalues(name, 200)
    smaller = {"one start": 0, "two starts": 0, "probes": 0}
    for seed in range(3):
        for tol in (0.3, 1e-2, 1e-4):
            for how, found in (
                ("one start", hvpspec.eigsh(A, 5, tol=tol, seed=seed)),
                ("two starts", hvpspec.eigsh(A, 5, tol=tol, seed=seed, block_size=2)),
                ("probes", hvpspec.spectrum(A, 5, tol=tol, rtol=0.1, seed=seed, max_hvps=60).eigenpairs),
            ):
                distance = np.abs(values[:, None] - found.values).min(0)
                assert (distance <= found.error + ROUNDING).all()
                smaller[how] += (found.error < 0.1 * found.residuals).sum()
    assert smaller["one start"] == 0  # it cannot show that a value is single
    if name in ("polynomial", "exponential, slow", "indefinite with outliers"):
        assert smaller["two starts"] > 5  # ‖r‖²/gap is at work where values are isolated
        assert smaller["probes"] > 5


@pytest.mark.parametrize("split", [0.0, 1e-8, 1e-7, 1e-6, 1e-4])
def test_errors_hold_next_to_a_pair_that_is_not_resolved(split):
    """The value in between is as far from both as its residual says, however wide the gap around the two is."""
    values = np.r_[100, 100 * (1 + split), 50, -20, np.linspace(-1, 1, 116)]
    missed = np.zeros(3, int)
    for seed in range(10):
        for i, found in enumerate(
            (
                hvpspec.eigsh(np.diag(values), 2, seed=seed),
                hvpspec.eigsh(np.diag(values), 2, seed=seed, block_size=2),
                hvpspec.spectrum(np.diag(values), 1 + seed % 2, seed=seed, rtol=0.1).eigenpairs,
            )
        ):
            missed[i] += (np.abs(values[:, None] - found.values).min(0) > found.error).any()
    assert (missed == 0).all(), missed


def test_rounding_copies_do_not_widen_what_is_known():
    """Twenty copies of an eigenvalue: rounding lets them into the space, with next to nothing of the start."""
    A = rotated(np.r_[np.full(20, 10.0), np.linspace(0, 1, 280)])
    for seed in (2, 3):
        for found in (hvpspec.eigsh(A, 60, seed=seed, max_hvps=250), hvpspec.eigsh(A, 60, seed=seed, block_size=2)):
            assert found.largest.upper < 10 + 1e-6
            assert found.smallest.lower > -1
        density = hvpspec.spectral_density(A, seed=seed)
        assert density.converged
        assert density.support[1] - density.support[0] < 11
        assert density.error < 0.02 * 10


def test_nothing_is_called_isolated_beside_a_cluster():
    """A pair of eigenvalues 1e-6 apart that a Krylov space of a few steps cannot separate: the error remains ‖r‖."""
    A = rotated(np.r_[2.0, 2.0 + 1e-6, np.linspace(-1, 1, 300)])
    for seed in range(20):
        found = hvpspec.eigsh(A, 1, tol=1e-3, seed=seed)
        assert min(abs(found.values[0] - v) for v in (2.0, 2.0 + 1e-6)) <= found.error[0]


def test_verified_residuals_are_measured():
    A = matrix("polynomial")
    for dtype in (torch.float64, torch.float32):
        operator = torch.from_numpy(A).to(dtype)
        plain = hvpspec.eigsh(operator, 4, tol=1e-5)
        found = hvpspec.eigsh(operator, 4, tol=1e-5, verify=True)
        assert found.verified
        assert not plain.verified
        assert found.hvps == plain.hvps + 4
        products = operator.double().numpy() @ found.vectors.astype(float)
        true = np.linalg.norm(products - found.vectors * found.values, axis=0)
        np.testing.assert_allclose(found.residuals, true, rtol=0.02, atol=10 * torch.finfo(dtype).eps)
        assert (np.abs(eigenvalues("polynomial")[:4] - found.values) <= found.error).all()
        assert found.converged


def test_noise_in_the_products_is_a_floor_of_the_error():
    """An operator with rounding errors like float16's: they show in the asymmetry and in verified residuals."""
    A, generator = matrix("polynomial", 300), np.random.default_rng(0)

    def product(x):
        exact = A @ x
        return exact + 1e-4 * np.linalg.norm(exact) * generator.standard_normal(exact.shape) / np.sqrt(300)

    noisy = LinearOperator(A.shape, matvec=product, dtype=float)
    for verify in (False, True):
        found = hvpspec.eigsh(noisy, 3, tol=1e-2, verify=verify)
        assert (found.error > 1e-6).all()
        assert (np.abs(eigenvalues("polynomial")[:3] - found.values) <= found.error).all()


def test_brackets_come_with_the_eigenpairs():
    A = matrix("indefinite with outliers")
    found = hvpspec.eigsh(A, 3, "LA")
    assert found.largest.lower <= 10 <= found.largest.upper + ROUNDING
    assert found.largest.upper - 10 < 0.01
    assert found.smallest.lower <= -6 <= found.smallest.upper  # whatever was asked for
    assert found.largest.confidence == 0.95
    closed = hvpspec.eigsh(np.diag([3.0, -1.0]), 2)
    assert closed.largest.upper - closed.largest.lower < 1e-12
    assert closed.smallest.upper == pytest.approx(-1)


def test_an_unlucky_start_proves_nothing():
    """A start with a tiny component in the top eigenvector would exclude everything beyond the Ritz value, wrongly."""
    values, A = eigenvalues("indefinite with outliers", 300), torch.from_numpy(matrix("indefinite with outliers", 300))
    operator, held = as_symmetric(A), 0
    for seed in range(100):
        krylov = start(operator, seed=seed)
        for _ in range(12):
            extend(krylov, operator.__matmul__)
            found = bracket(krylov.ritz(), Exclusion.of(krylov), 1, 0.95)
            if found.upper - found.lower < 0.01 * found.lower:
                break  # at a lucky moment
        held += values.max() <= found.upper + 1e-12
    assert held >= 99
