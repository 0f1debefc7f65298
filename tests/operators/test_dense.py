import math

import numpy as np
import pytest
import torch

import hvpspec
from hvpspec.errors import InputError


def example(x, y):
    return x**2 + 2 * x * y + 3 * y**2 + 4 * x + 5 * y + 6


class TestHessian:
    @pytest.mark.parametrize(
        "inputs", [(1.0, 2.0), (1, 2), (torch.tensor(1.0), torch.tensor([2.0]).double()), [0.0, torch.tensor(3)]]
    )
    def test_quadratic_of_two_scalars(self, inputs):
        H = hvpspec.hessian(example, inputs)
        assert H.dtype == torch.float64
        assert H.tolist() == [[2, 2], [2, 6]]

    def test_one_tensor_and_one_number(self):
        x = torch.randn(2, 3).double()
        A = torch.randn(6, 6).double()
        H = hvpspec.hessian(lambda x: x.reshape(-1) @ A @ x.reshape(-1), x)
        torch.testing.assert_close(H, A + A.T)
        assert hvpspec.hessian(lambda x: x**3, 2.0).tolist() == [[12]]

    def test_several_tensors_are_assembled_in_order(self):
        x, y = torch.randn(2).double(), torch.randn(2, 2).double()
        H = hvpspec.hessian(lambda x, y: (x @ y @ x) + y.pow(3).sum(), (x, y))
        expected = torch.autograd.functional.hessian(
            lambda z: z[:2] @ z[2:].view(2, 2) @ z[:2] + z[2:].pow(3).sum(), torch.cat([x, y.reshape(-1)])
        )
        torch.testing.assert_close(H, expected)

    def test_inputs_it_does_not_depend_on_give_zeros(self):
        x, y, z = torch.randn(2), torch.randn(3), torch.randn(1)
        H = hvpspec.hessian(lambda x, y, z: y[1] ** 2 + 5 * z.sum() + x[0] * y[0], (x, y, z))
        expected = torch.zeros(6, 6)
        expected[3, 3] = 2
        expected[0, 2] = expected[2, 0] = 1
        assert torch.equal(H, expected)

    @pytest.mark.parametrize("fn", [lambda x: 7.0, lambda x: x.sum() * 3 + 1, lambda x: torch.tensor(2.0)])
    def test_no_curvature(self, fn):
        assert torch.equal(hvpspec.hessian(fn, torch.ones(3)), torch.zeros(3, 3))

    def test_inputs_come_back_untouched(self):
        x = torch.ones(3, requires_grad=True)
        with torch.no_grad():
            H = hvpspec.hessian(lambda x: x.mul(2).pow(2).sum(), x)
        assert torch.equal(H, 8 * torch.eye(3))
        assert x.grad is None
        assert not H.requires_grad

    @pytest.mark.parametrize(
        ("fn", "inputs", "message"),
        [
            (lambda x: x, torch.ones(2), r"one real number; it returned shape \(2,\)"),
            (lambda x: None, torch.ones(2), "it returned NoneType"),
            (lambda x: x.log().sum(), torch.zeros(2), "the function is -inf at these inputs"),
            (lambda x: x, "a", "tensors or numbers; got str"),
            (lambda: 0, (), "inputs is empty"),
            (lambda x: x, torch.ones(1, dtype=torch.complex64), "complex"),
        ],
    )
    def test_errors(self, fn, inputs, message):
        with pytest.raises(InputError, match=message):
            hvpspec.hessian(fn, inputs)


class TestDerivative:
    @pytest.mark.parametrize("order", range(9))
    def test_closed_forms(self, order):
        x, v = 0.7, -1.5

        def check(fn, expected, **options):
            found = hvpspec.derivative(fn, x, v, order)
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)

        check(torch.exp, math.exp(0.7) * (-1.5) ** order)
        check(torch.sin, math.sin(0.7 + order * math.pi / 2) * (-1.5) ** order)
        check(lambda x: 1 / x, (-1) ** order * math.factorial(order) / 0.7 ** (order + 1) * (-1.5) ** order)
        falling = math.perm(5, order) if order <= 5 else 0
        check(lambda x: x**5, falling * 0.7 ** max(5 - order, 0) * (-1.5) ** order)

    def test_several_inputs(self):
        # f(x + t u, y + t w) = (x + t u)² (y + t w): third derivative 6 u² w
        found = [hvpspec.derivative(lambda x, y: x**2 * y, (2.0, 3.0), (5.0, 7.0), k) for k in range(5)]
        assert [float(d) for d in found] == [12, 2 * 2 * 3 * 5 + 4 * 7, 2 * 25 * 3 + 4 * 2 * 5 * 7, 6 * 25 * 7, 0]

    def test_second_order_is_the_hessian_along_the_direction(self):
        x, v = torch.randn(4).double(), torch.randn(4).double()

        def fn(x):
            return x.cumsum(0).tanh().prod()

        torch.testing.assert_close(hvpspec.derivative(fn, x, v, 2), v @ hvpspec.hessian(fn, x) @ v)

    @pytest.mark.parametrize(
        ("direction", "order", "message"),
        [
            (torch.ones(3), 1, r"shaped like inputs: \[\(2,\)\]; got \[\(3,\)\]"),
            (torch.ones(2), -1, "order must be a whole number"),
            (torch.ones(2), 1.5, "order must be a whole number"),
            (torch.ones(2), True, "order must be a whole number"),
        ],
    )
    def test_errors(self, direction, order, message):
        with pytest.raises(InputError, match=message):
            hvpspec.derivative(lambda x: x.sum(), torch.ones(2), direction, order)


def test_where_finite_differences_fail():
    """Rosenbrock's valley, condition number 1e13: the small curvature by autograd and by central differences.

    At the textbook step ε^¼ they are off by a factor of thousands; at the best step, which nobody can know without
    the answer, still a hundred times worse than autograd.

    The README quotes this; `python tests/operators/test_dense.py` prints the figures.
    """
    condition, ours, theirs = rosenbrock_errors()
    assert condition > 1e13
    assert ours < 0.002
    assert theirs[1e-4] > 1000
    assert min(theirs.values()) > 100 * ours


def rosenbrock_errors(a=1e10, x=3.0, angle=0.5):
    """The condition number, and the relative error of λ_min by autograd and by central differences of each step.

    The function is (1 − x)² + a (y − x²)² on the valley's floor y = x², in coordinates turned by `angle`, which
    leaves the eigenvalues as they are; there det H = 4a and tr H = 2 + 8 a x² + 2a.
    """
    cos, sin = math.cos(angle), math.sin(angle)

    def f(u, v):
        x, y = cos * u - sin * v, sin * u + cos * v
        return (1 - x) ** 2 + a * (y - x**2) ** 2

    y = x**2
    point = (cos * x + sin * y, -sin * x + cos * y)
    total, determinant = 2 + 8 * a * x**2 + 2 * a, 4 * a
    largest = (total + math.sqrt(total**2 - 4 * determinant)) / 2
    smallest = determinant / largest

    def error(H):
        return abs(np.linalg.eigvalsh(np.asarray(H, dtype=float))[0] / smallest - 1)

    def central(h):
        def value(i, j):
            return f(point[0] + i * h, point[1] + j * h)

        uu = (value(1, 0) - 2 * value(0, 0) + value(-1, 0)) / h**2
        vv = (value(0, 1) - 2 * value(0, 0) + value(0, -1)) / h**2
        uv = (value(1, 1) - value(1, -1) - value(-1, 1) + value(-1, -1)) / (4 * h**2)
        return [[uu, uv], [uv, vv]]

    steps = [10 ** (-quarter / 4) for quarter in range(4, 33)]
    return largest / smallest, error(hvpspec.hessian(f, point)), {h: error(central(h)) for h in steps}


if __name__ == "__main__":
    condition, ours, theirs = rosenbrock_errors()
    best = min(theirs, key=theirs.get)
    print(f"condition number {condition:.1e}; relative error of the smallest eigenvalue:")
    print(f"  hvpspec.hessian                              {ours:.1e}")
    print(f"  central differences, best step ({best:.0e})       {theirs[best]:.1e}")
    print(f"  central differences, textbook step (1e-04)   {theirs[1e-4]:.1e}")
