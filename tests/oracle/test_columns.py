"""Vectors that backward passes take together, as on a GPU, against explicit matrices and one after the other."""

import pytest
import torch
from oracle.comparison import relative
from torch import nn
from zoo import CASES, explicit_hessian

import hvpspec
from hvpspec.operators.by_name import OPERATORS
from hvpspec.oracle import columns

VECTORS = 11  # a group, and a smaller one


@pytest.fixture(autouse=True)
def together(monkeypatch):
    monkeypatch.setattr(columns, "TOGETHER_ON", {"cpu"})


@pytest.fixture
def passes(monkeypatch):
    """Counts the products through a graph."""
    counted = []
    real = columns.vector_jacobian_product
    monkeypatch.setattr(columns, "vector_jacobian_product", lambda *of: counted.append(1) or real(*of))
    return counted


def operator_and_vectors(model, loss, data, of="hessian"):
    A = OPERATORS[of](model, loss, data, engine="autograd")
    return A, torch.randn(A.shape[0], VECTORS, dtype=A.torch_dtype, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CASES)
def test_they_are_those_of_the_explicit_hessian(name):
    case = CASES[name]()
    H, V = operator_and_vectors(case.model, case.loss, case.data)
    expected = torch.as_tensor(explicit_hessian(case)) @ V
    for _ in range(2):  # by graphs that are made, and by those that are kept
        assert relative(H @ V, expected) < 1e-12
    assert (case.model in columns._one_by_one) == (name == "lstm")  # a loop that vmap cannot take


@pytest.mark.parametrize("of", ["ggn", "empirical-fisher", "residual"])
def test_other_matrices(of):
    case = CASES["mlp"]()
    A, V = operator_and_vectors(case.model, case.loss, case.data, of)
    found = A @ V
    assert case.model not in columns._one_by_one
    assert relative(found, torch.stack([A @ v for v in V.T], 1)) < 1e-12


def test_complex_parameters():
    class Rotated(nn.Module):
        def __init__(self):
            super().__init__()
            self.turn, self.scale = (
                nn.Parameter(torch.randn(3, dtype=torch.complex128)),
                nn.Parameter(torch.ones(3).double()),
            )

        def forward(self, x):
            return ((x * self.turn).abs() ** 2 * self.scale).sum(1, keepdim=True)

    model = Rotated()
    A, V = operator_and_vectors(model, "mse", [(torch.randn(5, 3).double(), torch.randn(5, 1).double())])
    found = A @ V
    assert model not in columns._one_by_one
    assert relative(found, torch.stack([A @ v for v in V.T], 1)) < 1e-12


def test_a_pass_for_each_group(passes):
    case = CASES["mlp"]()
    H, V = operator_and_vectors(case.model, case.loss, case.data)
    H @ V
    passes.clear()
    H @ V
    assert len(passes) == 2 * len(case.data)  # 8 vectors, and 3
    passes.clear()
    H @ V[:, :1]
    assert len(passes) == len(case.data)


def test_a_function_that_looks_at_values_takes_them_in_turn(passes):
    class Looking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, slope):
            (x,) = ctx.saved_tensors
            return Twice.apply(x, slope)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, slope):
            ctx.save_for_backward(x, slope)
            return 3 * x**2 * slope

        @staticmethod
        def backward(ctx, v):
            x, slope = ctx.saved_tensors
            assert float(v.sum()) == float(v.sum())  # no number while vmap takes several
            return 6 * x * slope * v, 3 * x**2 * v

    model = nn.Linear(3, 1).double()
    data = [(torch.randn(5, 3).double(), torch.randn(5, 1).double())]
    H, V = operator_and_vectors(model, lambda m, b: ((Looking.apply(m(b[0])) - b[1]) ** 2).mean(), data)
    found = H @ V
    assert model in columns._one_by_one
    cubed = hvpspec.HessianOperator(model, lambda m, b: ((m(b[0]) ** 3 - b[1]) ** 2).mean(), data)
    assert relative(found, cubed @ V) < 1e-12
    passes.clear()
    H @ V
    assert len(passes) == VECTORS  # it is not tried again


def test_where_both_ways_differ_they_are_taken_in_turn(monkeypatch):
    case = CASES["mlp"]()
    H, V = operator_and_vectors(case.model, case.loss, case.data)
    expected = torch.stack([H @ v for v in V.T], 1)
    real = columns._together
    monkeypatch.setattr(columns, "_together", lambda *of: 1.001 * real(*of))
    assert relative(H @ V, expected) < 1e-12
    assert case.model in columns._one_by_one


def test_half_of_them_where_memory_lacks(monkeypatch):
    case = CASES["mlp"]()
    H, V = operator_and_vectors(case.model, case.loss, case.data)
    real, sizes = columns._together, []

    def lacking(objective, links, rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(objective, links, rows)

    monkeypatch.setattr(columns, "_together", lacking)
    assert relative(H @ V, torch.stack([H @ v for v in V.T], 1)) < 1e-12
    assert case.model not in columns._one_by_one
    assert sizes[:5] == [8, 4, 2, 2, 4]


def test_another_matrix_of_the_model_is_compared_again(passes):
    case = CASES["mlp"]()
    for of in ("hessian", "ggn"):
        A, V = operator_and_vectors(case.model, case.loss, case.data, of)
        A @ V
        assert len(columns._compared[case.model]) == (1 if of == "hessian" else 2)


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, passes):
    monkeypatch.setattr(columns, "TOGETHER_ON", {"cuda"})
    case = CASES["mlp"]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", device="cuda")
    V = torch.randn(H.shape[0], 8, dtype=torch.float64, device="cuda")
    expected = torch.stack([H @ v for v in V.T], 1)
    H @ V
    passes.clear()
    assert relative((H @ V).cpu(), expected.cpu()) < 1e-12
    assert len(passes) == len(case.data)
