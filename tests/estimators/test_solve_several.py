"""Several right-hand sides, first guesses and preconditioners, compared with dense solutions."""

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.sparse.linalg as sla
import torch
from estimators.spectra import rotated
from torch import nn

import hvpspec
from hvpspec.errors import InputError

N = 120
RNG = np.random.default_rng(0)
DEFINITE = rotated(np.concatenate([np.geomspace(50, 5000, 8), np.linspace(0.5, 2, N - 8)]))
INDEFINITE = rotated(np.concatenate([np.geomspace(50, 500, 8), -np.linspace(0.5, 2, 50), np.linspace(0.5, 2, N - 58)]))
SCALES = np.geomspace(1, 1e3, N)  # of the rows: what a diagonal preconditioner undoes
GRADED = np.sqrt(SCALES)[:, None] * rotated(np.linspace(1, 3, N)) * np.sqrt(SCALES)
GRADED_INDEFINITE = np.sqrt(SCALES)[:, None] * rotated(np.r_[-np.linspace(1, 3, 20), np.linspace(1, 3, N - 20)])
GRADED_INDEFINITE = GRADED_INDEFINITE * np.sqrt(SCALES)
B = RNG.standard_normal((N, 4)) * [1, 1e-3, 1e6, 1]


class Counted(sla.LinearOperator):
    """A, which counts its products and the calls for them."""

    def __init__(self, A):
        super().__init__(float, A.shape)
        self.A, self.products, self.calls = A, 0, 0

    def _matmat(self, X):
        self.products += X.shape[1]
        self.calls += 1
        return self.A @ X

    def _matvec(self, x):
        return self._matmat(x.reshape(-1, 1))


@pytest.mark.parametrize(("A", "method"), [(DEFINITE, "cg"), (DEFINITE, "minres"), (INDEFINITE, "minres")])
@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_each_column_is_solved_as_if_it_were_alone(A, method, damping):
    operator, dense = Counted(A), A + damping * np.eye(N)
    found = hvpspec.solve(operator, B, damping=damping, method=method, rtol=1e-8)
    assert found.converged
    assert found.reached.tolist() == [True] * 4
    assert found.x.shape == B.shape
    exact = np.linalg.solve(dense, B)
    assert (np.linalg.norm(found.x - exact, axis=0) <= 1e-4 * np.linalg.norm(exact, axis=0)).all()
    np.testing.assert_allclose(found.residual, np.linalg.norm(B - dense @ found.x, axis=0), rtol=1e-3)
    np.testing.assert_allclose(found.relative_residual, found.residual / np.linalg.norm(B, axis=0))
    assert found.hvps == operator.products
    alone = [hvpspec.solve(A, b, damping=damping, method=method, rtol=1e-8) for b in B.T]
    assert sum(one.hvps for one in alone) == pytest.approx(found.hvps, rel=0.15)  # by when true residuals are computed
    assert operator.calls <= 1.15 * max(one.hvps for one in alone)  # and they are made together
    np.testing.assert_allclose(found.iterations, [one.iterations for one in alone], rtol=0.15)


def test_columns_end_one_by_one():
    """An eigenvector takes one iteration and zero none, whatever the others take."""
    vectors = np.linalg.eigh(INDEFINITE)[1]
    b = np.stack([vectors[:, 0], np.zeros(N), RNG.standard_normal(N)], 1)
    found = hvpspec.solve(INDEFINITE, b)
    assert found.converged
    assert found.iterations[0] <= 3
    assert found.iterations[1] == 0
    assert found.iterations[2] > 20
    assert found.residual[1] == 0
    assert found.hvps <= found.iterations.sum() + 15


def test_a_column_that_has_no_solution_leaves_the_others_alone():
    A = np.diag([0.0, 1, 2, 3])
    found = hvpspec.solve(A, np.array([[1.0, 0], [1, 1], [1, 2], [1, 3]]))
    assert found.reached.tolist() == [False, True]
    assert not found.converged
    np.testing.assert_allclose(found.x[:, 1], [0, 1, 1, 1], atol=1e-9)
    assert found.residual[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("budget", [1, 2, 5, 9, 30, 77])
@pytest.mark.parametrize("start", [False, True])
def test_the_budget_is_kept_and_residuals_are_true(budget, start):
    operator = Counted(INDEFINITE)
    found = hvpspec.solve(operator, B, max_hvps=budget, rtol=1e-9, x0=1e-3 * B if start else None)
    assert found.hvps == operator.products <= budget
    assert not found.converged
    np.testing.assert_allclose(found.residual, np.linalg.norm(B - INDEFINITE @ found.x, axis=0), rtol=1e-9)
    assert (found.relative_residual < 1).any() or budget < 9 or start


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_a_guess_near_the_solution_saves_products(method):
    exact = np.linalg.solve(DEFINITE, B)
    near = exact * (1 + 1e-5 * RNG.standard_normal(exact.shape))
    plain = hvpspec.solve(DEFINITE, B, method=method)
    found = hvpspec.solve(DEFINITE, B, method=method, x0=near)
    assert plain.converged
    assert found.converged
    assert found.hvps < 0.8 * plain.hvps
    exactly = hvpspec.solve(DEFINITE, B, method=method, x0=exact)
    assert exactly.hvps == 4
    assert exactly.iterations.sum() == 0


def test_a_bad_guess_costs_little_and_a_kernel_keeps_its_part():
    A = rotated(np.r_[np.zeros(3), np.linspace(1, 3, 57)])
    kernel = np.linalg.eigh(A)[1][:, :3]
    b = A @ RNG.standard_normal(60)
    guess = 100 * RNG.standard_normal(60)
    found = hvpspec.solve(A, b, x0=guess)
    assert found.converged
    np.testing.assert_allclose(kernel.T @ found.x, kernel.T @ guess, atol=1e-6)  # as in SciPy
    theirs = sla.minres(A, b, x0=guess, rtol=1e-12)[0]
    np.testing.assert_allclose(found.x, theirs, atol=1e-3)


def _as(kind, diagonal):
    M = np.diag(diagonal)
    return {
        "array": M,
        "tensor": torch.from_numpy(M),
        "sparse": sp.diags(diagonal),
        "operator": sla.aslinearoperator(M),
        "function": lambda v: diagonal * v,
        "float32": M.astype(np.float32),
    }[kind]


@pytest.mark.parametrize("kind", ["array", "tensor", "sparse", "operator", "function", "float32"])
@pytest.mark.parametrize(("A", "method"), [(GRADED, "cg"), (GRADED, "minres"), (GRADED_INDEFINITE, "minres")])
def test_a_preconditioner_saves_products(A, method, kind):
    plain = hvpspec.solve(A, B, method=method, rtol=1e-8)
    found = hvpspec.solve(A, B, method=method, rtol=1e-8, M=_as(kind, 1 / SCALES))
    assert plain.converged
    assert found.converged
    assert found.hvps < 0.7 * plain.hvps
    exact = np.linalg.solve(A, B)
    assert (np.linalg.norm(found.x - exact, axis=0) <= 1e-4 * np.linalg.norm(exact, axis=0)).all()


@pytest.mark.parametrize(("A", "solver"), [(GRADED, "cg"), (GRADED_INDEFINITE, "minres")])
def test_as_many_iterations_as_scipy(A, solver):
    theirs = 0

    def count(x):
        nonlocal theirs
        theirs += 1

    M = np.diag(1 / SCALES)
    x, _ = getattr(sla, solver)(A, B[:, 0], M=M, rtol=1e-7, callback=count)
    reached = np.linalg.norm(B[:, 0] - A @ x) / np.linalg.norm(B[:, 0])
    found = hvpspec.solve(A, B[:, 0], M=M, method=solver, rtol=float(reached))
    assert found.converged
    assert found.iterations <= theirs + 8


def test_the_exact_inverse_is_the_best_preconditioner():
    found = hvpspec.solve(DEFINITE, B, M=np.linalg.inv(DEFINITE), method="cg")
    assert found.converged
    assert found.iterations.max() <= 2
    absolute = np.linalg.eigh(INDEFINITE)
    M = (absolute[1] / np.abs(absolute[0])) @ absolute[1].T
    assert hvpspec.solve(INDEFINITE, B, M=(M + M.T) / 2).iterations.max() <= 3  # eigenvalues of 1 and −1


@pytest.mark.parametrize(("A", "method"), [(GRADED, "cg"), (GRADED, "minres"), (GRADED_INDEFINITE, "minres")])
def test_with_known_eigenvectors_and_a_preconditioner(A, method):
    pairs = hvpspec.eigsh(A, 8)
    found = hvpspec.solve(A, B, method=method, pairs=pairs, M=np.diag(1 / np.abs(np.diag(A))))
    assert found.converged
    assert (np.linalg.norm(A @ found.x - B, axis=0) <= 1.1e-6 * np.linalg.norm(B, axis=0)).all()


def test_the_error_holds_where_it_is_known():
    pairs = hvpspec.eigsh(DEFINITE, 2, which="SA")
    for options in ({"pairs": pairs}, {"damping": 3000.0}):
        dense = DEFINITE + options.get("damping", 0) * np.eye(N)
        found = hvpspec.solve(DEFINITE, B, rtol=1e-4, **options)
        exact = np.linalg.solve(dense, B)
        true = np.linalg.norm(found.x - exact, axis=0)
        assert (true <= found.error).all()
        assert (found.error <= 1e-3 * np.linalg.norm(B, axis=0)).all()
    assert hvpspec.solve(INDEFINITE, B[:, 0]).error == np.inf
    assert hvpspec.solve(INDEFINITE, np.zeros(N)).error == 0


@pytest.mark.parametrize(
    ("M", "message"),
    [
        (np.diag(-1 / SCALES), "not positive definite"),
        (np.diag(np.r_[-1.0, np.ones(N - 1)]) * 1e3, "not positive definite"),
        (np.zeros((N, N)), "not positive definite"),
        (lambda v: -v, "not positive definite"),
        (lambda v: 0 * v, "not positive definite"),
        (lambda v: np.roll(v, 1), "not symmetric|not positive definite"),
        (lambda v: v + 0.8 * np.roll(v, 1), "not symmetric"),
        (sla.aslinearoperator(np.eye(N) + np.triu(RNG.standard_normal((N, N))) / 20), "not symmetric"),
        (np.eye(N) + np.triu(np.ones((N, N)), 1), "M: the matrix is not symmetric"),
        (lambda v: np.full(N, np.nan), "M returned a product with NaN"),
        (lambda v: v[:3], r"M must return 120 real numbers"),
        (lambda v: 1j * v, r"M must return 120 real numbers"),
        (lambda v: None, r"M must return"),
        (np.eye(3), r"M must have the shape of A, \(120, 120\); got \(3, 3\)"),
        (np.ones(N), "M: expected a square matrix"),
        ("jacobi", "M: expected a HessianOperator"),
        (np.eye(N) * 1j, "M: .*complex"),
    ],
)
@pytest.mark.parametrize("method", ["cg", "minres"])
def test_what_cannot_be_a_preconditioner(M, message, method):
    b = B[:, 0] + 10 * np.eye(N)[0]
    with pytest.raises(InputError, match=message):
        hvpspec.solve(DEFINITE, b, M=M, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x0": np.ones(3)}, "x0 must hold 120 real numbers"),
        ({"x0": B[:, 0]}, "x0 must have the shape of b"),
        ({"x0": np.full_like(B, np.nan)}, "x0 has NaN"),
        ({"x0": 1j * B}, "x0 must hold"),
        ({"x0": "zeros"}, "x0 must hold"),
        ({"time_limit": -1}, "time_limit"),
        ({"b": {"weight": torch.ones(N)}}, "b is given as tensors of parameters"),
        ({"b": [torch.ones(N)]}, "b is given as tensors of parameters"),
    ],
)
def test_what_cannot_be_solved(options, message):
    with pytest.raises(InputError, match=message):
        hvpspec.solve(DEFINITE, **{"b": B, **options})


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    data = [(torch.randn(20, 5).double(), torch.randint(0, 3, (20,))) for _ in range(3)]
    return model, data


def test_vectors_in_the_form_of_the_parameters():
    model, data = network()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    loss = sum(nn.functional.cross_entropy(model(x), y) for x, y in data) / 3
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    named = dict(zip(H.parameters.names, gradients, strict=True))
    plain = hvpspec.solve(H, H.parameters.flatten(named), damping=0.5)
    by_name = hvpspec.solve(H, named, damping=0.5)
    assert by_name.x["0.weight"].shape == (8, 5)
    torch.testing.assert_close(H.parameters.flatten(by_name.x), plain.x)
    in_order = hvpspec.solve(H, gradients, damping=0.5, x0=by_name.x)
    assert in_order.iterations == 0
    assert [x.shape for x in in_order.x] == [p.shape for p in model.parameters()]
    dense = H @ torch.eye(H.shape[0], dtype=torch.float64)
    exact = torch.linalg.solve(dense + 0.5 * torch.eye(len(dense)), H.parameters.flatten(gradients))
    torch.testing.assert_close(plain.x, exact, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match=r"b: .*missing"):
        hvpspec.solve(H, {"0.weight": gradients[0]})
    with pytest.raises(InputError, match=r"b: .*shape"):
        hvpspec.solve(H, [gradients[0].T, *gradients[1:]])


def test_preconditioners_of_this_package():
    """Adam's D⁻¹ and the diagonal, where inputs of very different size are what makes the system hard."""
    torch.manual_seed(0)
    model = nn.Linear(40, 1).double()
    data = [(torch.randn(100, 40).double() * torch.logspace(0, 3, 40).double(), torch.randn(100, 1).double())]
    H = hvpspec.HessianOperator(model, "mse", data)
    b = torch.randn(41, 2, dtype=torch.float64)
    diagonal = hvpspec.diagonal(H, rtol=0.1)
    adam = torch.optim.Adam(model.parameters(), lr=0.0)
    nn.functional.mse_loss(model(data[0][0]), data[0][1]).backward()
    adam.step()
    preconditioner = hvpspec.adam_preconditioner(adam, model, lr=1e-3)
    scaled = H.parameters.flatten({name: scale**2 for name, scale in preconditioner.scale.items()})
    plain, jacobi, by_adam, by_hand = (
        hvpspec.solve(H, b, rtol=1e-8, method="cg", M=M) for M in (None, diagonal, preconditioner, lambda v: scaled * v)
    )
    exact = torch.linalg.solve(H @ torch.eye(41, dtype=torch.float64), b)
    for found in (jacobi, by_adam):
        assert found.converged
        torch.testing.assert_close(found.x, exact, rtol=1e-4, atol=1e-6)
        assert found.hvps < 0.7 * plain.hvps
    assert by_adam.iterations.tolist() == by_hand.iterations.tolist()
    torch.testing.assert_close(by_adam.x, by_hand.x)
    with pytest.raises(InputError, match="preconditioner by names"):
        hvpspec.solve(np.eye(41), b, M=preconditioner)
    with pytest.raises(InputError, match="diagonal of"):
        hvpspec.solve(np.eye(3), np.ones(3), M=diagonal)


@pytest.mark.parametrize("kind", ["list", "float32", "tensor"])
def test_x_is_of_the_kind_of_b(kind):
    given = {"list": B.tolist(), "float32": B.astype(np.float32), "tensor": torch.from_numpy(B).float()}[kind]
    found = hvpspec.solve(DEFINITE, given, x0=given)
    exact = np.linalg.solve(DEFINITE, np.asarray(given, dtype=float))
    assert (np.linalg.norm(np.asarray(found.x) - exact, axis=0) <= 1e-3 * np.linalg.norm(exact, axis=0)).all()
    assert isinstance(found.x, torch.Tensor) == (kind == "tensor")
    assert found.x.dtype == (torch.float32 if kind == "tensor" else np.float64)
    one = hvpspec.solve(DEFINITE, B[:, :1])
    assert one.x.shape == (N, 1)
    assert one.residual.shape == (1,)


def test_float32_products_of_several_columns():
    A = torch.from_numpy(INDEFINITE).float()
    found = hvpspec.solve(A, torch.from_numpy(B), M=torch.eye(N))
    dense = A.double().numpy()
    np.testing.assert_allclose(
        found.residual, np.linalg.norm(B - dense @ found.x.numpy(), axis=0), rtol=0.5,
        atol=float((0.2 * found.rounding * np.linalg.norm(B, axis=0)).max()),
    )  # fmt: skip
    assert found.converged
    assert (found.relative_residual <= np.maximum(1e-6, found.rounding)).all()


def test_a_time_limit_ends_it(monkeypatch):
    import time

    class Slow(Counted):
        def _matmat(self, X):
            time.sleep(0.01)
            return super()._matmat(X)

    operator = Slow(INDEFINITE)
    start = time.monotonic()
    found = hvpspec.solve(operator, B, rtol=1e-12, time_limit=0.4)
    assert time.monotonic() - start < 2
    assert not found.converged
    assert found.hvps == operator.products
    np.testing.assert_allclose(found.residual, np.linalg.norm(B - INDEFINITE @ found.x, axis=0), rtol=1e-9)
    assert hvpspec.solve(operator, B[:, 0], time_limit="1min").converged


@pytest.mark.parametrize("method", ["auto", "cg", "minres"])
def test_a_preconditioner_may_write_to_what_it_is_given(method):
    diagonal = np.linspace(1, 3, N)
    A, b = np.diag(diagonal) + 0.1 * DEFINITE / 5000, B[:, 0].copy()
    found = hvpspec.solve(A, b, M=lambda r: np.divide(r, diagonal, out=r), method=method)
    assert found.converged
    np.testing.assert_array_equal(b, B[:, 0])
    assert np.linalg.norm(b - A @ found.x) <= 1.01 * found.residual + 1e-12


def test_no_time_for_the_products_of_the_preconditioner():
    """Which are an operator's that looks at the time itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    data = [(torch.randn(50, 6).double(), torch.randint(0, 3, (50,)))]
    H, G = (of(model, "cross_entropy", data) for of in (hvpspec.HessianOperator, hvpspec.GGNOperator))
    b = torch.randn(H.shape[0], dtype=torch.float64)
    found = hvpspec.solve(H, b, damping=3, M=G, time_limit=0.05, rtol=1e-300)
    assert not found.converged
    assert torch.isfinite(found.x).all()
