import numpy as np
import pytest
import torch

from hvpspec.estimators import vectors
from hvpspec.estimators.vectors import column_inner, gaussian, inner, rademacher

OPTIONS = {"dtype": torch.float64, "device": torch.device("cpu")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inner_products_accumulate_in_float64(monkeypatch, dtype):
    monkeypatch.setattr(vectors, "CHUNK", 7)  # several chunks, the last ragged
    A, B = torch.randn(40, 3).to(dtype), torch.randn(40, 2).to(dtype)
    A[0, 0] = 1e8  # swamps the rest in float32
    B[0, 0] = 1
    expected = A.double().T @ B.double()
    assert inner(A, B).dtype == torch.float64
    torch.testing.assert_close(inner(A, B), expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(column_inner(A[:, :2], B), (expected[:2].diagonal()), rtol=1e-14, atol=0)


def test_probes_are_signs_and_depend_on_seed_and_number_only():
    n = 2 * vectors.CHUNK + 77
    W = rademacher(n, [0, 1, 5], seed=3, **OPTIONS)
    assert W.shape == (n, 3)
    assert set(W.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(rademacher(n, [5], seed=3, **OPTIONS)[:, 0], W[:, 2])
    assert torch.equal(
        rademacher(n, [5], seed=3, dtype=torch.float32, device=OPTIONS["device"])[:, 0].double(), W[:, 2]
    )
    # a shorter vector is the beginning of a longer one: entries are keyed by position
    assert torch.equal(rademacher(100, [1], seed=3, **OPTIONS)[:, 0], W[:100, 1])
    assert not torch.equal(rademacher(n, [0], seed=4, **OPTIONS)[:, 0], W[:, 0])


def test_probes_are_uncorrelated_and_unbiased():
    n, m = 20_000, 64
    W = rademacher(n, range(m), seed=0, **OPTIONS).numpy()
    gram = W.T @ W / np.sqrt(n)
    off = gram[~np.eye(m, dtype=bool)]
    assert abs(off.std() - 1) < 0.05
    assert np.abs(W.sum(0)).max() / np.sqrt(n) < 4.5
    assert np.abs(W.sum(1)).max() / np.sqrt(m) < 5.5


def test_gaussians():
    n = vectors.CHUNK + 1000
    g = gaussian(n, 0, seed=1, **OPTIONS)[:, 0].numpy()
    assert abs(g.mean()) < 4 / np.sqrt(n)
    assert abs((g**2).mean() - 1) < 4 * np.sqrt(2 / n)
    assert abs((g**4).mean() - 3) < 4 * np.sqrt(96 / n)
    other = gaussian(n, 1, seed=1, **OPTIONS)[:, 0].numpy()
    assert abs(g @ other) / np.sqrt(n) < 4
    assert np.abs(np.corrcoef(g[:1000], g[-1000:])[0, 1]) < 0.15  # chunks do not repeat
