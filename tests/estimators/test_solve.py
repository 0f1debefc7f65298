"""Linear systems, compared with dense solutions."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import rotated

import hvpspec
from hvpspec.errors import InputError

DEFINITE = np.concatenate([np.geomspace(50, 5000, 8), np.linspace(0.5, 2, 192)])
INDEFINITE = np.concatenate([np.geomspace(50, 5000, 8), -np.linspace(0.5, 2, 96), np.linspace(0.5, 2, 96)])


@pytest.mark.parametrize("values", [DEFINITE, INDEFINITE])
@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("deflated", [False, True])
def test_against_dense_solutions(values, damping, deflated):
    A, b = rotated(values), np.random.default_rng(0).standard_normal(200)
    shifted = A + damping * np.eye(200)
    pairs = hvpspec.eigsh(A, 8) if deflated else None
    found = hvpspec.solve(A, b, damping=damping, pairs=pairs, rtol=1e-9)
    assert found.converged
    assert found.residual == pytest.approx(np.linalg.norm(b - shifted @ found.x), rel=1e-3, abs=1e-12)
    assert found.relative_residual <= 1e-9
    exact = np.linalg.solve(shifted, b)
    assert np.linalg.norm(found.x - exact) <= 1e-7 * np.linalg.norm(exact)
    assert found.method == "minres" or values is DEFINITE


def test_cg_where_the_matrix_is_shown_to_be_definite():
    A, b = rotated(np.linspace(1, 3, 50)), np.ones(50)
    assert hvpspec.solve(A, b).method == "minres"
    assert hvpspec.solve(A, b, pairs=hvpspec.eigsh(A, 2)).method == "cg"
    assert hvpspec.solve(A - 4 * np.eye(50), b, pairs=hvpspec.eigsh(A - 4 * np.eye(50), 2), damping=3.5).method == "cg"


@pytest.mark.parametrize(("values", "method"), [(DEFINITE, "cg"), (DEFINITE, "minres"), (INDEFINITE, "minres")])
def test_known_eigenvectors_save_products(values, method):
    A, b = rotated(values), np.random.default_rng(1).standard_normal(200)
    plain = hvpspec.solve(A, b, method=method)
    deflated = hvpspec.solve(A, b, method=method, pairs=hvpspec.spectrum(A, 8, rtol=0.5))
    assert plain.converged
    assert deflated.converged
    assert deflated.hvps <= 0.7 * plain.hvps


def test_every_product_is_counted_and_the_budget_is_kept():
    A, b = rotated(INDEFINITE), np.random.default_rng(2).standard_normal(200)
    made = 0

    class Counting:
        shape, dtype = (200, 200), np.dtype(float)

        def matvec(self, x):
            nonlocal made
            made += 1
            return A @ x

    operator = sla.LinearOperator((200, 200), matvec=Counting().matvec, dtype=float)
    made = 0
    found = hvpspec.solve(operator, b, max_hvps=30)
    assert found.hvps == made <= 30
    assert not found.converged
    assert found.residual == pytest.approx(np.linalg.norm(b - A @ found.x))
    assert found.residual < np.linalg.norm(b)
    made = 0
    found = hvpspec.solve(operator, b)
    assert found.hvps == made


def test_rough_pairs_do_no_harm():
    A, b = rotated(DEFINITE), np.random.default_rng(3).standard_normal(200)
    rough = hvpspec.eigsh(A, 8, max_hvps=9)
    found = hvpspec.solve(A, b, pairs=rough)
    assert found.converged
    assert np.linalg.norm(A @ found.x - b) <= 1.1e-6 * np.linalg.norm(b)


def test_a_singular_system_is_not_called_solved():
    A = np.diag([0.0, 1, 2, 3])
    found = hvpspec.solve(A, np.ones(4))
    assert not found.converged
    assert 1 <= found.residual < 2  # 1 lies in the kernel
    assert hvpspec.solve(A, np.array([0.0, 1, 1, 1])).converged
    assert hvpspec.solve(A, np.zeros(4)).hvps == 0


@pytest.mark.parametrize("deflated", [False, True])
def test_an_inconsistent_system_ends_near_least_squares(deflated):
    """What lies in the kernel stays, and x is not lost in it, whatever the budget still allows."""
    values = np.concatenate([np.zeros(3), np.geomspace(1, 100, 10), -np.linspace(0.5, 2, 187)])
    A = rotated(values)
    kernel = np.linalg.svd(A)[2][-3:]
    b = np.random.default_rng(0).standard_normal(200)
    inside = np.linalg.norm(kernel @ b)
    found = hvpspec.solve(A, b, pairs=hvpspec.eigsh(A, 8) if deflated else None)
    assert not found.converged
    assert found.residual == pytest.approx(inside, rel=1e-3)
    assert found.hvps < 400
    assert hvpspec.solve(A, b - kernel.T @ (kernel @ b)).converged


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("size", [1e-300, 1e-60, 1e-30, 1e30, 1e150, 1e300])
def test_b_may_be_of_any_size(size, dtype):
    """Squares of its entries need not be within the range of the dtype."""
    A, b = rotated(np.linspace(1, 3, 50)).astype(dtype), np.random.default_rng(0).standard_normal(50)
    plain, scaled = hvpspec.solve(A, b), hvpspec.solve(A, size * b)
    assert scaled.converged
    assert scaled.residual == pytest.approx(size * plain.residual, rel=0.5)
    np.testing.assert_allclose(scaled.x / size, plain.x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int32", "bool", "float64", "list", "strided", "longdouble"])
def test_b_may_be_any_vector_of_real_numbers(kind):
    b = np.array([1.0, 0.0, 1.0])
    given = {"list": [1, 0, 1], "strided": np.repeat(b, 2)[::-2], "longdouble": b.astype(np.longdouble)}.get(kind)
    if given is None:
        given = torch.from_numpy(b).to(getattr(torch, kind))
    found = hvpspec.solve(np.diag([1.0, 2.0, 4.0]), given)
    np.testing.assert_allclose(np.asarray(torch.as_tensor(found.x).double()), [1, 0, 0.25], atol=1e-6)
    if isinstance(given, torch.Tensor):
        assert found.x.dtype == (given.dtype if given.is_floating_point() else torch.float64)
    else:
        assert found.x.dtype == np.float64


def test_pairs_of_very_different_sizes_leave_the_preconditioner_definite():
    """Vectors in float32 are of unit length to 1e-7, where the preconditioner would have an eigenvalue of 1e-9."""
    values = np.concatenate([[3e9], np.linspace(1, 3, 99)])
    A, vectors = rotated(values), np.linalg.eigh(rotated(values))[1]
    chosen = [99, 0, 50]
    exact = (vectors[:, chosen] * [1 + 3e-7, 1, 1 - 3e-7]).astype(np.float32)
    pairs = replace(
        hvpspec.eigsh(A, 3), values=np.diag(vectors.T @ A @ vectors)[chosen], vectors=exact, error=np.zeros(3)
    )
    b = np.random.default_rng(0).standard_normal(100)
    for method in ("cg", "minres"):
        found = hvpspec.solve(A, b, pairs=pairs, method=method, max_hvps=200)
        assert found.converged


def test_long_vectors_stay_where_they_are(monkeypatch):
    """On the operator's device: none is converted or copied to the CPU while the system is solved."""
    A = torch.from_numpy(rotated(INDEFINITE))
    pairs = hvpspec.eigsh(A, 4)
    pairs = replace(pairs, vectors=torch.from_numpy(pairs.vectors))  # the caller's, and on the CPU
    for name in ("cpu", "numpy", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refusing(getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch, "from_numpy", refusing(torch.from_numpy))
    for method in ("cg", "minres"):
        found = hvpspec.solve(A, torch.ones(200, dtype=torch.float64), damping=3.0, method=method, pairs=pairs)
        assert found.converged


def refusing(convert):
    def converted(vector, *args):
        assert vector.size < 200 if isinstance(vector, np.ndarray) else vector.numel() < 200
        return convert(vector, *args)

    return converted


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_systems_on_a_gpu(dtype):
    A = torch.from_numpy(rotated(INDEFINITE)).to("cuda", dtype)
    b = torch.from_numpy(np.random.default_rng(0).standard_normal(200)).cuda()
    for damping, method in ((3.0, "minres"), (10.0, "cg")):
        found = hvpspec.solve(A, b, damping=damping, pairs=hvpspec.eigsh(A, 8))
        assert found.converged
        assert found.method == method
        assert found.x.device.type == "cuda"
        residual = b - A.double() @ found.x - damping * found.x
        assert float(residual.norm()) <= (1e-6 + 2 * found.rounding) * float(b.norm())
        on_cpu = hvpspec.solve(A.cpu(), b.cpu(), damping=damping, pairs=hvpspec.eigsh(A.cpu(), 8))
        assert abs(on_cpu.hvps - found.hvps) <= 5


def test_a_hessian_in_single_precision_and_tensors():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    H = hvpspec.HessianOperator(model, "mse", [(torch.randn(30, 4), torch.randn(30, 3))])
    b = torch.randn(15)
    found = hvpspec.solve(H, b, damping=0.1)
    assert found.converged
    assert found.x.dtype == torch.float32
    dense = (H @ torch.eye(15)).double() + 0.1 * torch.eye(15, dtype=torch.float64)
    torch.testing.assert_close(found.x.double(), torch.linalg.solve(dense, b.double()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.05, 0.3])
def test_single_precision_stops_where_rounding_does(damping):
    """Not at a fixed number of roundoffs: what can be reached depends on ‖A‖ ‖x‖ / ‖b‖."""
    values = np.concatenate([np.geomspace(1, 10, 15), -np.geomspace(0.5, 6, 15), 0.05 * np.sin(np.arange(170.0))])
    A, b = torch.from_numpy(rotated(values)).float(), np.random.default_rng(0).standard_normal(200)
    found = hvpspec.solve(A, b, damping=damping)
    nearest = np.abs(values + damping).min()
    assert found.hvps < 1000 or nearest < 1e-4
    residual = np.linalg.norm(b - A.double().numpy() @ found.x - damping * found.x)
    assert residual == pytest.approx(found.residual, rel=0.5, abs=0.2 * found.rounding * np.linalg.norm(b))
    if nearest > 1e-3:
        assert found.converged
        assert found.at_rounding
        assert found.relative_residual <= max(1e-6, found.rounding) < 1e-3
    strict = hvpspec.solve(A, b, damping=damping, rtol=1e-9)
    assert not strict.converged  # what was asked for is not what was reached
    assert strict.at_rounding or nearest < 1e-3
    assert strict.hvps < 1000 or nearest < 1e-3


def test_damping_that_makes_it_definite_is_seen():
    A, b = rotated(INDEFINITE), np.ones(200)
    found = hvpspec.solve(A, b, damping=10.0)
    assert found.method == "cg"
    assert found.converged
    made = hvpspec.solve(A, b, damping=10.0, method="cg").hvps
    assert found.hvps <= made + 12
    assert hvpspec.solve(A, b, damping=0.1).method == "minres"


def test_tolerances_may_be_numpy_scalars():
    A, b = rotated(DEFINITE), np.ones(200)
    assert hvpspec.solve(A, b, rtol=np.float32(1e-3)).hvps < hvpspec.solve(A, b, rtol=np.float64(1e-8)).hvps
    with pytest.raises(InputError, match="between 0 and 1"):
        hvpspec.solve(A, b, rtol=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": np.ones(3)}, "200 real numbers"),
        ({"b": "x"}, "real numbers"),
        ({"b": np.full(200, np.nan)}, "NaN"),
        ({"b": torch.full((200,), torch.inf)}, "NaN"),
        ({"b": torch.ones(200, dtype=torch.complex64)}, "real numbers"),
        ({"b": torch.ones(200, 0)}, "200 real numbers"),
        ({"b": torch.ones(200, 1, 1)}, "200 real numbers"),
        ({"b": torch.ones(200).to_sparse()}, "200 real numbers"),
        ({"b": np.ones(200, dtype=complex)}, "real numbers"),
        ({"b": np.full(200, "1")}, "real numbers"),
        ({"method": "qr"}, "method must be"),
        ({"rtol": 2}, "between 0 and 1"),
        ({"damping": -1}, "damping"),
        ({"max_hvps": 0}, "max_hvps"),
    ],
)
def test_what_cannot_be_solved(options, message):
    options = {"b": np.ones(200), **options}
    with pytest.raises(InputError, match=message):
        hvpspec.solve(rotated(DEFINITE), **options)


@pytest.mark.parametrize("damping", [0.0, 3.0])
@pytest.mark.parametrize("n", [20, 400])
def test_an_asymmetric_operator_is_named_at_once(n, damping):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n, n)) / np.sqrt(n)
    made = 0

    def multiply(x):
        nonlocal made
        made += 1
        return A @ x

    with pytest.raises(InputError, match="not symmetric"):
        hvpspec.solve(sla.LinearOperator((n, n), matvec=multiply, dtype=float), rng.standard_normal(n), damping=damping)
    assert made <= 20
