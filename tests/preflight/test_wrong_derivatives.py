"""Second derivatives that are wrong are refused; kinks, which only look like that, are not."""

import numpy as np
import pytest
import torch
from preflight.problems import kinds, problem
from torch import nn

from hvpspec.preflight import differences, inspect_operator, measure
from hvpspec.report.terminal import measured_lines


def test_a_wrong_second_derivative_is_refused():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x.detach() ** 2 * gradient  # forgets that it depends on x

    class Model(nn.Linear):
        def forward(self, x):
            return Wrong.apply(super().forward(x))

    found = inspect_operator(problem(model=Model(4, 3), dtype="float64"))
    assert kinds(found, "refused") == {"differences"}
    assert found.difference > 0.1
    assert found.difference_bound < 1e-6
    assert any("differ by" in line for line in measured_lines(found))
    instead = inspect_operator(problem(model=Model(4, 3), dtype="float64", engine="finite-difference"))
    assert not instead.refused
    assert "autograd and finite differences differ by" in instead.findings[0].found


class Forgets(torch.autograd.Function):
    """a · b, whose derivative in a forgets, by a share, that b varies."""

    @staticmethod
    def forward(ctx, a, b, share):
        ctx.save_for_backward(a, b)
        ctx.share = share
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * ((1 - ctx.share) * b + ctx.share * b.detach()), gradient * a, None


class Crossed(nn.Module):
    def __init__(self, width, share):
        super().__init__()
        self.a, self.b, self.share = nn.Linear(4, width), nn.Linear(4, width), share

    def forward(self, x):
        return Forgets.apply(self.a(x), self.b(x), self.share)


def test_an_asymmetric_hessian_is_refused():
    assert kinds(inspect_operator(problem(model=Crossed(3, 1.0))), "refused") == {"asymmetric"}


def test_an_asymmetric_hessian_shows_however_many_parameters_there_are():
    class Model(Crossed):
        def forward(self, x):
            return super().forward(x).view(len(x), 3, -1).sum(-1) / 100

    H = problem(model=Model(30_000, 0.1))
    assert H.shape[0] == 300_000
    assert kinds(inspect_operator(H), "refused") == {"asymmetric"}


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its forward rounds, its backward does not know."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(100 * x) / 100

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)) + Rounded.apply(torch.tanh(self.first(x))) / 20)


@pytest.mark.parametrize("engine", ["auto", "finite-difference"])
def test_a_straight_through_estimator_has_no_hessian(engine):
    """Here it changes a product by less than 5 %, with either engine."""
    found = inspect_operator(problem(model=Quantised(), dtype="float64", engine=engine))
    assert kinds(found, "refused") == {"differences" if engine == "auto" else "asymmetric"}
    assert "no function has this gradient" in found.refused[0].done
    assert "--engine finite-difference" not in found.refused[0].done
    if engine == "auto":
        assert 10 * found.difference_bound < found.difference < 0.05


class TwoWays(torch.autograd.Function):
    """a · b, whose backward gives only one of the factors a gradient that varies."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * torch.round(b), gradient * a


def test_an_asymmetric_product_of_no_function_is_not_sent_to_finite_differences():
    class Model(Crossed):
        def forward(self, x):
            return TwoWays.apply(self.a(x), self.b(x))

    (finding,) = inspect_operator(problem(model=Model(3, 1.0), dtype="float64")).refused
    assert finding.kind == "asymmetric"
    assert "no function has this gradient" in finding.done


def test_a_small_difference_is_reported_where_its_bound_is_smaller():
    found = inspect_operator(problem(model=Crossed(3, 1e-4), dtype="float64"))
    assert kinds(found, "refused") == {"differences"}
    assert found.difference_bound < 1e-8 < found.difference < 1e-3
    assert "--engine finite-difference" in found.refused[0].done


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinks_are_stepped_around(dtype):
    """Wide layers of ReLU, which steps of a usual size would cross by the hundred."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))
    found = inspect_operator(problem(model=model, dtype=dtype))
    assert found.findings == ()
    assert found.difference <= 1e-6


def test_a_kink_right_at_the_checkpoint_is_noted_not_refused():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    found = inspect_operator(problem(model=model, dtype="float64"))
    assert not found.refused
    assert kinds(found) == {"differences"}
    assert np.isfinite(found.difference)


def test_a_comparison_that_does_not_fit_in_memory_is_said(monkeypatch):
    def compared(objective):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(differences, "compared", compared)
    found = inspect_operator(problem())
    (finding,) = found.findings
    assert (finding.kind, finding.severity, found.difference) == ("not_compared", "note", None)
    assert "too little memory to compare a product" in finding.found
    assert found.hvps > 0


def test_the_cache_is_empty_when_the_preflight_ends(monkeypatch):
    """What its products leave there would be missing where budgets are set; also where it ends early."""
    released = []
    monkeypatch.setattr(measure, "release_cache", lambda device: released.append(1))
    inspect_operator(problem())
    assert released == [1]
    inspect_operator(problem(), expect="77")
    assert released == [1, 1]
