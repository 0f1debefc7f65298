"""No run makes more products than a basis of the whole space takes, and 16 more."""

import numpy as np
import pytest
import torch
from estimators.spectra import rotated
from torch import nn

import hvpspec
from hvpspec.krylov.operator_view import as_symmetric


def ranks_and_copies(n):
    for rank in sorted({0, 1, 2, n // 3, n // 2, n - 2, n - 1, n} & set(range(n + 1))):
        for copies in sorted({1, 2, max(rank // 2, 1), max(rank, 1)}):
            yield np.r_[np.repeat(np.arange(1.0, rank + 1), copies)[:rank], np.zeros(n - rank)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 13, 20, 29, 40])
def test_it_holds_for_every_rank_and_multiplicity(n):
    for number, values in enumerate(ranks_and_copies(n)):
        dtype = (np.float64, np.float32)[number % 2]
        A, k, seed = rotated(values, number).astype(dtype), (1, 5)[number % 3 > 0], number % 7
        found = hvpspec.spectrum(A, k, seed=seed)
        assert found.hvps <= n + 16, (values, k, seed, dtype)
        assert found.trace.converged
        assert abs(found.trace.value - values.sum()) <= 1.5 * found.trace.error + 1e-4 * n


@pytest.mark.parametrize("seed", [1, 3, 5, 8])
@pytest.mark.parametrize("copies", [2, 3, 9])
def test_it_holds_for_copies_over_a_null_space(seed, copies):
    """The search for missed copies once outgrew the probes that are kept, and went on for thousands of products."""
    for A in (rotated(np.r_[np.ones(copies), np.zeros(20 - copies)]), np.diag(np.r_[np.ones(copies), np.zeros(17)])):
        assert hvpspec.spectrum(A, 1, seed=seed).hvps <= len(A) + 16


def test_it_holds_for_an_embedding_at_zero_weights():
    torch.manual_seed(0)
    model = nn.Embedding(50, 3)
    nn.init.zeros_(model.weight)
    data = [(torch.randint(0, 50, (200,)), torch.randint(0, 3, (200,)))]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, dtype="float64")
    for seed in range(3):
        assert hvpspec.spectrum(H, seed=seed).hvps <= 166


@pytest.mark.parametrize(("rank", "k"), [(1, 5), (3, 10), (9, 10)])
def test_pairs_beyond_the_rank_are_not_searched_for(rank, k):
    """The eigenvalues of the rest are rounding errors, which the search took for missed ones."""
    values = np.r_[np.geomspace(1, 3, rank), np.zeros(300 - rank)]
    for seed in range(3):
        found = hvpspec.spectrum(rotated(values), k, seed=seed)
        assert found.hvps <= max(rank + 1, k) + 11
        assert found.eigenpairs.converged
        assert found.eigenpairs.values[:rank] == pytest.approx(np.geomspace(1, 3, rank)[::-1])


def test_products_beyond_the_limit_are_refused():
    operator = as_symmetric(np.eye(4))
    operator.limit = 3
    X = torch.eye(4, dtype=torch.float64)
    assert (operator @ X[:, :3]).shape == (4, 3)
    with pytest.raises(RuntimeError, match="ceiling leaves 0"):
        operator @ X[:, :1]
    assert operator.hvps == 3
    found = hvpspec.spectrum(np.eye(4), 1, blocks={"a": [0, 1]}, refine=True, damping=1.0)
    assert found.blocks.blocks[0].largest.lower == pytest.approx(1)
