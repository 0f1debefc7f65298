"""Probes on the complement of a growing basis, and the directions that they show."""

import numpy as np
import pytest
import torch
from estimators.spectra import matrix, rotated

from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.probes import Pool


def pool_of(A, seed, steps, probes, *, capacity=100, together=1):
    """A pool with that many probes on the complement of that many steps, half of each made before the other half."""
    operator = as_symmetric(A)
    krylov = start(operator, seed=seed)
    pool = Pool(krylov, capacity, together)
    for _ in range(2):
        W = pool.draw(probes // 2)
        pool.add(W, operator @ W)
        for _ in range(steps // 2):
            pool.follow(extend(krylov, operator.__matmul__))
    return krylov, pool


def remainder_of(A, krylov):
    Q = krylov.basis.matrix.numpy()
    P = np.eye(len(A)) - Q @ Q.T
    return P @ A @ P


@pytest.mark.parametrize("together", [1, 3])
def test_probes_follow_the_basis(together):
    A = matrix("indefinite with outliers", 120)
    krylov, pool = pool_of(A, 0, steps=8, probes=6, together=together)
    B = remainder_of(A, krylov)
    W, Y = pool.probes.numpy(), pool.images.numpy()
    assert np.abs(krylov.basis.matrix.numpy().T @ W).max() < 1e-12
    np.testing.assert_allclose(Y, B @ W, atol=1e-12)
    (grams,) = pool.grams()
    np.testing.assert_allclose(grams.wy, W.T @ B @ W, atol=1e-12)
    assert grams.centre == pytest.approx(np.trace(W.T @ B @ W) / np.trace(W.T @ W))


def test_probes_that_do_not_fit_are_kept_as_inner_products():
    A = matrix("indefinite with outliers", 120)
    _, pool = pool_of(A, 0, steps=0, probes=12, capacity=7)
    _, ample = pool_of(A, 0, steps=0, probes=12)
    assert pool.frozen
    assert pool.count == ample.count == 12
    assert pool.probes.shape[1] == 0
    diagonals = np.concatenate([np.diag(grams.yy) for grams in pool.grams()])
    np.testing.assert_allclose(diagonals, np.diag(ample.grams()[0].yy), rtol=1e-12)


@pytest.mark.parametrize("centre", [0.0, 0.4])
def test_directions_are_principal_and_their_moments_unbiased(centre):
    """Two outliers of the complement: the strongest direction is near one, the next near the other."""
    values = np.r_[6.0, -3.0, 0.4 + 0.02 * np.linspace(-1, 1, 98)]
    A = rotated(values)
    errors = {0: [], 1: []}
    for seed in range(60):
        pool = pool_of(A, seed, steps=0, probes=16)[1]
        Y = pool.images.numpy() - centre * pool.probes.numpy()
        for number in errors:
            found = pool.direction(number, centre)
            w = found.vector.numpy()[:, 0]
            assert np.linalg.norm(w) == pytest.approx(1)
            others = np.linalg.svd(Y)[0][:, number]
            assert abs(w @ others) == pytest.approx(1)
            true = 1.0, w @ A @ w, np.linalg.norm(A @ w) ** 2
            errors[number].append(np.subtract((found.zeroth, found.first, found.second), true))
    for found in errors.values():
        found = np.array(found)
        assert (np.abs(found.mean(0)) < 4 * found.std(0) / np.sqrt(len(found)) + 0.05).all()


def test_no_direction_without_probes():
    A = matrix("indefinite with outliers", 120)
    assert pool_of(A, 0, steps=0, probes=0)[1].direction() is None
    assert pool_of(A, 0, steps=0, probes=2)[1].direction() is None
    assert pool_of(A, 0, steps=0, probes=4)[1].direction(3) is None
    assert pool_of(np.zeros((50, 50)), 0, steps=0, probes=8)[1].direction() is None
    assert pool_of(A, 0, steps=0, probes=12, capacity=7)[1].direction() is None
    assert isinstance(pool_of(A, 0, steps=0, probes=4)[1].direction().vector, torch.Tensor)


def test_the_memory_of_probes_is_taken_once_and_given_back():
    A = matrix("indefinite with outliers", 120)
    krylov, pool = pool_of(A, 0, steps=4, probes=4, capacity=9)
    place, size = pool.probes.data_ptr(), pool.probes.untyped_storage().nbytes()
    assert size == 2 * 9 * 120 * 8
    W = pool.draw(3)
    pool.add(W, as_symmetric(A) @ W)
    pool.follow(extend(krylov, as_symmetric(A).__matmul__))
    assert pool.probes.data_ptr() == place
    np.testing.assert_allclose(pool.images.numpy(), remainder_of(A, krylov) @ pool.probes.numpy(), atol=1e-12)
    W = pool.draw(3)
    pool.add(W, as_symmetric(A) @ W)  # one too many
    assert pool.frozen
    assert pool.count == 10
    assert pool.probes.untyped_storage().nbytes() == 0


def test_probes_that_were_made_before_rows_were_known_to_be_zero():
    A = matrix("indefinite with outliers", 120)
    A[7], A[:, 7] = 0, 0
    krylov, pool = pool_of(A, 0, steps=0, probes=4)
    krylov.zero = torch.from_numpy((A == 0).all(1))
    before = pool.probes.clone()
    pool.confine()
    assert not pool.probes[7].any()
    assert torch.equal(pool.probes[8:], before[8:])
    np.testing.assert_allclose(pool.grams()[0].ww, pool.probes.T @ pool.probes)
