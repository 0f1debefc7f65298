"""The eigenvalues nearest to a point, compared with dense ones."""

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import SEEDS, rotated

import hvpspec
from hvpspec.bounds.eigenvalues import Exclusion
from hvpspec.bounds.missed import PROBABILITY_OF_MISS, none_nearer
from hvpspec.errors import InputError
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

GAP = np.concatenate([[0.003, -0.01, 0.05], np.linspace(0.5, 3, 97), -np.linspace(0.6, 2, 60)])
CLUSTERS = np.concatenate([0.3 + 1e-4 * np.arange(4), [0.2, 0.45], np.linspace(1, 3, 50), -np.linspace(1, 2, 50)])


def nearest(values, sigma, k):
    return values[np.argsort(np.abs(values - sigma), kind="stable")][:k]


def holds(found, values):
    return (np.abs(found.values[:, None] - values).min(1) <= found.error).all()


@pytest.mark.parametrize("options", [{"which": "SM"}, {"sigma": 0.0}, {"sigma": 0.021}, {"sigma": -0.55}])
@pytest.mark.parametrize("k", [1, 3])
def test_they_come_nearest_first_with_their_errors(options, k):
    A, sigma = rotated(GAP), options.get("sigma", 0.0)
    found = hvpspec.eigsh(A, k, **options)
    assert found.converged
    assert found.reached.all()
    assert not found.at_rounding.any()
    np.testing.assert_allclose(found.values, nearest(GAP, sigma, k), atol=found.error.max())
    assert holds(found, GAP)
    assert (found.residuals <= 1e-3 * np.abs(found.values - sigma)).all()
    true = np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true, atol=1e-12)
    assert found.hvps < 0.95 * len(GAP)
    assert found.largest.lower <= 3 <= found.largest.upper
    assert found.smallest.lower <= -2 <= found.smallest.upper


@pytest.mark.parametrize("sigma", [0.02, 3.3, -9.0])
def test_as_scipy_has_them(sigma):
    A = rotated(GAP)
    expected = sla.eigsh(A, 3, sigma=sigma, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(hvpspec.eigsh(A, 3, sigma=sigma, tol=1e-6).values), np.sort(expected), atol=1e-9)


@pytest.mark.parametrize("sigma", [3.0, 3.5, 100.0])
def test_a_point_outside_asks_for_an_end(sigma):
    found = hvpspec.eigsh(rotated(GAP), 2, sigma=sigma, tol=1e-6)
    assert found.converged
    np.testing.assert_allclose(found.values, nearest(GAP, sigma, 2), atol=1e-7)


@pytest.mark.parametrize("value", [0.003, 0.5, 3.0])
def test_a_point_that_is_an_eigenvalue(value):
    found = hvpspec.eigsh(rotated(GAP), 1, sigma=value)
    assert found.converged
    assert abs(found.values[0] - value) <= found.error[0] < 1e-9
    assert found.at_rounding.all()


@pytest.mark.parametrize("sigma", [0.3, 0.30012, 0.32])
def test_clusters_at_the_point(sigma):
    """They are resolved to twice the tolerance at least, relative to their distance from it."""
    found = hvpspec.eigsh(rotated(CLUSTERS), 5, sigma=sigma, tol=1e-4)
    assert found.converged
    assert holds(found, CLUSTERS)
    np.testing.assert_allclose(found.values, nearest(CLUSTERS, sigma, 5), atol=1e-4 * 0.1)


@pytest.mark.parametrize(("block", "all_copies"), [(1, False), (4, True)])
def test_repeated_eigenvalues(block, all_copies):
    """As at the ends: b start vectors show up to b copies, and one shows that there is one."""
    values = np.concatenate([[0.1, 0.1, -0.3], np.linspace(1, 2, 80), -np.linspace(1, 2, 60)])
    found = hvpspec.eigsh(rotated(values), 3, which="SM", block_size=block)
    assert found.converged
    assert holds(found, values)
    assert found.all_copies == all_copies
    assert {0.1, -0.3} <= {*found.values.round(6)}
    if all_copies:
        np.testing.assert_allclose(found.values, [0.1, 0.1, -0.3], atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("block", [1, 3])
def test_a_kernel_is_found_and_its_dimension_is_not_certified(dtype, block):
    values = np.concatenate([np.linspace(1, 5, 30), np.zeros(170)])
    found = hvpspec.eigsh(rotated(values).astype(dtype), 2, which="SM", block_size=block)
    assert found.converged
    assert not found.all_copies
    assert found.at_rounding[0]
    assert abs(found.values[0]) <= found.error[0]
    assert holds(found, values)
    assert found.hvps < 60


def test_what_is_below_the_rounding_of_the_products_is_flagged():
    values = np.concatenate([[1e-9, 0.2], np.linspace(1, 3, 60), -np.linspace(1, 2, 60)])
    A = torch.from_numpy(rotated(values)).float()
    found = hvpspec.eigsh(A, 2, which="SM")
    assert found.at_rounding.tolist() == [True, False]
    assert abs(found.values[0] - 1e-9) <= found.error[0] < 1e-4
    np.testing.assert_allclose(found.values[1], 0.2, atol=found.error[1])
    assert "1 of them at the rounding of the products" in repr(found)
    exact = hvpspec.eigsh(rotated(values), 2, which="SM")
    assert not exact.at_rounding.any()
    np.testing.assert_allclose(exact.values, [1e-9, 0.2], atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("k", [1, 6, 30])
def test_small_matrices_are_known_as_a_whole(n, k):
    values = np.linspace(-1, 2, n)
    found = hvpspec.eigsh(rotated(values), k, sigma=0.4)
    assert found.converged
    assert len(found.values) == min(n, k)
    np.testing.assert_allclose(found.values, nearest(values, 0.4, k), atol=1e-12)
    assert found.hvps <= n + 1


@pytest.mark.parametrize("matrix", [np.zeros((30, 30)), np.eye(30), -np.eye(30)])
def test_matrices_that_are_multiples_of_the_identity(matrix):
    found = hvpspec.eigsh(matrix, 3, which="SM")
    assert found.converged
    np.testing.assert_allclose(found.values, matrix[0, 0] * np.ones(3), atol=1e-14)


@pytest.mark.parametrize("budget", [1, 2, 10, 30, 60])
@pytest.mark.parametrize("memory", [None, 25 * 160 * 8])
def test_the_budget_is_kept(budget, memory):
    operator = as_symmetric(sla.aslinearoperator(rotated(GAP)))
    found = hvpspec.eigsh(operator, 2, which="SM", max_hvps=budget, basis_memory=memory)
    assert found.hvps == operator.hvps <= budget
    assert not found.converged
    assert holds(found, GAP)


def test_inverse_iteration_goes_on_where_memory_ends():
    """The values are as good; that none is missing, so few vectors do not show."""
    A = rotated(GAP)
    found = hvpspec.eigsh(A, 2, which="SM", basis_memory=30 * 160 * 8, max_hvps=2000)
    assert found.reached.all()
    assert found.verified
    assert not found.converged
    assert found.hvps > 160
    np.testing.assert_allclose(found.values, [0.003, -0.01], atol=found.error.max())
    assert found.error.max() < 1e-4
    true = np.linalg.norm(A @ found.vectors - found.vectors * found.values, axis=0)
    np.testing.assert_allclose(found.residuals, true, atol=1e-9)


def test_so_few_vectors_may_show_it_of_a_point_outside():
    values = np.concatenate([[5.0, 4.0], np.linspace(-1, 1, 158)])
    found = hvpspec.eigsh(rotated(values), 2, sigma=5.5, basis_memory=18 * 160 * 8, tol=1e-9)
    assert found.converged
    np.testing.assert_allclose(found.values, [5, 4], atol=1e-9)


@pytest.mark.parametrize("value", [0.05, 1.5])
def test_an_eigenvalue_that_the_start_hardly_sees_is_not_excluded(value):
    """Its eigenvector has twice the component of the start that one in a hundred has less of."""
    n, rng = 200, np.random.default_rng(0)
    values = np.concatenate([[value, 0.3], np.linspace(1, 2, 99), -np.linspace(1, 2, 99)])
    g = start(as_symmetric(np.eye(n)), seed=0).frontier.numpy()[:, 0]
    level = Exclusion(np.zeros(1), np.ones((1, 1)), np.ones((1, 1)), 1, n, 0.0).least_overlap(PROBABILITY_OF_MISS)
    w = rng.standard_normal(n)
    w -= g * (g @ w)
    u = 2 * level * g + np.sqrt(1 - 4 * level**2) * w / np.linalg.norm(w)
    Q = np.linalg.qr(np.column_stack([u, rng.standard_normal((n, n - 1))]))[0]
    A = as_symmetric((Q * values) @ Q.T)
    krylov, shown = start(A, seed=0), []
    for _ in range(60):
        extend(krylov, A.__matmul__)
        shown.append(none_nearer(Exclusion.of(krylov), krylov.ritz(), np.array([0.3]), 0.0, 1e-3))
    assert not shown[0]
    assert shown[-1] == (value > 0.3)  # that 0.3 is the nearest one to 0
    assert not any(shown) or value > 0.3


def test_verified_residuals_a_warm_start_and_callbacks():
    A, seen = rotated(GAP), []
    plain = hvpspec.eigsh(A, 2, which="SM", callback=seen.append)
    assert [pairs.hvps for pairs in seen] == sorted(pairs.hvps for pairs in seen)
    assert not any(pairs.converged for pairs in seen)
    verified = hvpspec.eigsh(A, 2, which="SM", verify=True)
    assert verified.verified
    assert verified.converged
    assert verified.hvps == plain.hvps + 2
    np.testing.assert_allclose(verified.values, plain.values, atol=1e-8)
    vectors = np.linalg.eigh(A)[1][:, np.argsort(np.abs(np.sort(GAP)))[:2]]
    warm = hvpspec.eigsh(A, 2, which="SM", start=vectors, seed=1)
    assert warm.converged
    np.testing.assert_allclose(warm.values, [0.003, -0.01], atol=1e-6)


def test_of_a_network_against_its_explicit_hessian():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
    data = [(torch.randn(25, 4).double(), torch.randint(0, 3, (25,))) for _ in range(4)]
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    exact = np.linalg.eigvalsh(H @ np.eye(H.shape[0]))
    found = hvpspec.eigsh(H, 4, sigma=0.02, tol=1e-6)
    assert found.converged
    np.testing.assert_allclose(found.values, nearest(exact, 0.02, 4), atol=1e-7)
    assert found.data_error.shape == (4,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": float("nan")}, "sigma must be a finite real number; got nan"),
        ({"sigma": float("inf")}, "sigma must be a finite real number"),
        ({"sigma": 1j}, "sigma must be a finite real number"),
        ({"sigma": "0"}, "sigma must be a finite real number"),
        ({"sigma": True}, "sigma must be a finite real number"),
        ({"sigma": np.zeros(2)}, "sigma must be a finite real number"),
        ({"sigma": 1.0, "which": "LA"}, 'which="LA" says nothing with sigma'),
        ({"sigma": 1.0, "which": "BE"}, 'which="BE" says nothing with sigma'),
        ({"sigma": 0.0, "which": "SM"}, "leave one of them out"),
        ({"which": "sm"}, 'which must be one of "LM", "LA", "SA", "BE", "SM"'),
        ({"which": "SM", "k": 0}, "k must be"),
        ({"which": "SM", "tol": -1}, "tol must be"),
        ({"which": "SM", "block_size": 2, "start": np.ones(3)}, "start needs block_size=1"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        hvpspec.eigsh(np.eye(3), **options)


def test_a_sigma_of_numpy_is_a_number():
    values = hvpspec.eigsh(np.diag([1.0, 2.0, 4.0]), 1, sigma=np.float32(3.9)).values
    np.testing.assert_allclose(values, [4])
    assert hvpspec.eigsh(np.diag([1.0, 2.0, 4.0]), 1, sigma=2).values == pytest.approx([2])


def drawn(rng, n):
    """A random spectrum of a random kind."""
    kind = rng.integers(0, 7)
    values = [
        lambda: rng.uniform(-1, 1, n),
        lambda: np.r_[rng.uniform(-0.1, 0.1, 3), rng.uniform(0.5, 2, n // 2), -rng.uniform(0.5, 2, n)],
        lambda: np.r_[0.3 + 1e-3 * rng.standard_normal(5), rng.uniform(-2, 2, n)],
        lambda: np.repeat(rng.uniform(-1, 1, n // 4 + 1), 4),
        lambda: 10.0 ** rng.uniform(-6, 0, n) * rng.choice([-1, 1], n),
        lambda: np.r_[rng.uniform(1, 3, n // 5), np.zeros(n)],
        lambda: np.r_[10 * rng.standard_normal(5), 0.1 * rng.standard_normal(n)],
    ][kind]()
    return values[:n]


@SEEDS
def test_calibration(seeds):
    """An eigenvalue lies within each error, and none is missing that is nearer than the farthest one found."""
    wrong = converged = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        n, k, tol = int(rng.integers(10, 120)), int(rng.integers(1, 6)), 10.0 ** rng.uniform(-7, -2)
        A = rotated(drawn(rng, n), seed).astype(np.float32 if seed % 4 == 0 else np.float64)
        values = np.linalg.eigvalsh(A.astype(float))
        sigma = float([0.0, rng.uniform(*values[[0, -1]]), values[rng.integers(n)], values[-1] + 0.5][seed % 4])
        memory = (35 + k) * n * A.itemsize if seed % 5 == 0 else None
        found = hvpspec.eigsh(
            A, k, sigma=sigma, tol=tol, seed=seed, block_size=1 + seed % 3, basis_memory=memory,
            max_hvps=30 if seed % 6 == 0 else None,
        )  # fmt: skip
        slack = 1e-14 * np.abs(values).max()
        assert (np.abs(found.values[:, None] - values).min(1) <= found.error + slack).all(), seed
        if found.converged:
            converged += 1
            distances = np.abs(found.values - sigma)
            apart = 2 * tol * distances + 3 * found.error.max()
            missed = [
                value for value in values[np.abs(values - sigma) < (distances - apart).max()]
                if (np.abs(found.values - value) > apart).all()
            ]  # fmt: skip
            wrong += len(missed) > 0
    assert converged > len(seeds) / 2
    assert wrong <= 0.01 * len(seeds)
