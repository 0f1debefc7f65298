"""How far a quadrature is from what its start vector has sampled, compared with the true distance."""

import numpy as np
import pytest
import torch
from estimators.adversarial import SPECTRA

from hvpspec.bounds.quadrature import _averaged, _gauss, read_density, wasserstein
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

STEPS = (8, 12, 20, 32, 50)


def spaces(values, seed):
    """Krylov spaces of diag(values) after some numbers of steps; the weights of their start on the values."""
    A = as_symmetric(torch.diag(torch.from_numpy(values)))
    krylov = start(A, seed=seed, place="device")
    weights = (krylov.frontier[:, 0] ** 2).numpy()
    for steps in STEPS:
        while krylov.m < steps and krylov.frontier.shape[1]:
            extend(krylov, A.__matmul__)
        if krylov.m < steps or len(krylov.of_start.segments) != 1:
            return
        yield krylov, weights


@pytest.mark.parametrize("kind", ["flat", "0.8ⁱ", "outliers of both signs", "three clusters", "geometric, both signs"])
def test_distance_is_bounded(kind):
    values, held, ratios = SPECTRA[kind], [], []
    for seed in range(6):
        for krylov, weights in spaces(values, seed):
            density = read_density([krylov], 0.95, krylov.m)
            true = wasserstein(*_gauss(krylov.of_start.T, 1), values, weights)
            held.append(true <= density.quadrature + 1e-6 * np.abs(values).max())
            ratios.append(density.quadrature / true)
    assert np.mean(held) >= 0.95
    if kind != "0.8ⁱ":  # whose distance falls faster than any power of the steps
        assert np.median(ratios) < 3.5  # no wider than need be


def test_averaged_quadrature_is_exact_two_degrees_further():
    """Gauss's of m − 1 steps is exact to degree 2m − 3, the average with its opposite to 2m − 1."""
    T = next(krylov for krylov, _ in spaces(np.linspace(-1, 2, 60), 0)).of_start.T
    nodes, weights = np.linalg.eigh(T)[0], np.linalg.eigh(T)[1][0] ** 2  # exact to degree 2m − 1
    averaged, shares = _averaged(T, 1)
    for degree in range(2 * len(T)):
        assert shares @ averaged**degree == pytest.approx(weights @ nodes**degree, rel=1e-9)
    assert shares @ averaged ** (2 * len(T) + 2) != pytest.approx(weights @ nodes ** (2 * len(T) + 2), rel=1e-9)
