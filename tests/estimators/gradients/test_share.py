"""The share of a vector in eigenspaces against dense ones: copies, clusters, indefinite matrices, budgets spent."""

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import nn

import hvpspec

N = 60
SPECTRA = {
    "outliers": [*(10 / np.arange(1, 9)), *np.linspace(-0.1, 0.2, 52)],
    "copies": [5, 5, 5, 3, 3, 2, *np.linspace(-0.1, 0.1, 54)],
    "nearly copies": [5, 5 - 5e-5, 3, 3 - 3e-4, 2, *np.linspace(-0.1, 0.1, 55)],
    "indefinite": [5, -5, 4, -4.5, 3, -2, *np.linspace(-0.3, 0.3, 54)],
    "dense": np.linspace(1, 2, N),
}


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.zeros(N, dtype=torch.float64))


def quadratic(A, g):
    """An operator with this Hessian and this gradient."""
    A, g = torch.from_numpy(A), torch.from_numpy(g)

    def loss(model, batch):
        return model.p @ (A @ model.p) / 2 + g @ model.p

    return hvpspec.HessianOperator(Point(), loss, [torch.zeros(1)], verify=False, engine="autograd")


def of_gradient(seed):
    """Its components along the eigenvectors."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(N) * np.where(rng.random(N) < 0.2, 5, 0.3)


def case(name, seed):
    """Matrix, gradient, and the share of each eigenvector: a few have most of it."""
    Q = ortho_group.rvs(N, random_state=seed)
    A = (Q * np.array(SPECTRA[name])) @ Q.T
    c = of_gradient(seed)
    return quadratic((A + A.T) / 2, Q @ c), c**2 / (c @ c)


@pytest.mark.parametrize("which", ["LM", "BE"])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_interval_holds(name, which):
    values, widths = np.array(SPECTRA[name]), []
    for seed in range(2):
        H, parts = case(name, seed)
        for pairs in (
            hvpspec.spectrum(H, 5, which=which, tol=1e-2, seed=seed, rtol=0.2, max_hvps=45).eigenpairs,
            hvpspec.eigsh(H, 5, which, tol=1e-2, seed=seed, max_hvps=30),
        ):
            found = hvpspec.gradient(H, pairs)
            near = np.abs(values - pairs.values[:, None]) <= pairs.error[:, None] + 1e-10
            low, high = found.share.interval
            assert low - 1e-10 <= parts[near.any(0)].sum() <= high + 1e-10
            for part, error, row in zip(found.parts, found.parts_error, near, strict=True):
                if row.sum() == 1:
                    assert abs(part - parts[row].sum()) <= error + 1e-10
            widths.append(high - low)
    assert min(widths) < 0.01 or name == "dense" or which == "BE"


@pytest.mark.parametrize("k", [1, 2, 4])
def test_where_k_leaves_copies_out_it_is_along_the_eigenvectors_found(k):
    """Of three eigenvalues 5, or of two 3, some are among the k."""
    values = np.array(SPECTRA["copies"])
    for seed in range(6):
        H, _ = case("copies", seed)
        pairs = hvpspec.spectrum(H, k, seed=seed, rtol=0.2).eigenpairs
        low, high = hvpspec.gradient(H, pairs).share.interval
        Q = ortho_group.rvs(N, random_state=seed)
        components = of_gradient(seed)
        exact = np.where(np.abs(values[:, None] - pairs.values) < 1e-3, Q.T @ pairs.vectors, 0.0)
        share = np.linalg.norm(np.linalg.qr(exact)[0].T @ components) ** 2 / (components @ components)
        assert low - 1e-10 <= share <= high + 1e-10


def test_without_a_gap_it_says_so():
    H, _ = case("dense", 0)
    found = hvpspec.gradient(H, hvpspec.eigsh(H, 5, max_hvps=12))
    low, high = found.share.interval
    assert (low, high - low > 0.3) == (pytest.approx(0, abs=1e-9), True)
    assert "not shown to be apart" in found.reasons["share"]


def test_a_gap_is_no_wider_than_it_is():
    for name in SPECTRA:
        values = np.array(SPECTRA[name])
        for seed in range(2):
            H, _ = case(name, seed)
            for pairs in (hvpspec.spectrum(H, 4, rtol=0.2, seed=seed).eigenpairs, hvpspec.eigsh(H, 4, seed=seed)):
                for value, error, (below, above) in zip(pairs.values, pairs.error, pairs.gaps, strict=True):
                    others = values[np.abs(values - value) > error + 1e-9]
                    assert below <= min(value - others[others < value], default=np.inf) + error + 1e-9
                    assert above <= min(others[others > value] - value, default=np.inf) + error + 1e-9


def test_all_of_a_gradient_is_in_the_whole_space():
    H, parts = case("outliers", 0)
    found = hvpspec.gradient(H, hvpspec.eigsh(H, N))
    assert found.share.value == pytest.approx(1, abs=1e-12)
    by_value = np.argsort(found.eigenvalues)
    np.testing.assert_allclose(found.parts[by_value], parts[np.argsort(SPECTRA["outliers"])], atol=1e-9)
