"""Sums of losses against explicit Hessians of the sum, written out plainly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvpspec
from hvpspec import GGNOperator, HessianOperator, InputError
from hvpspec.objective.objective import Objective


def model_and_data() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Batches of 4, 4 and 2 samples, some of whose targets are left out, in one batch all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randint(0, 3, (12,))
    y[1], y[10:] = -100, -100
    return model, [(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:10], y[8:10]), (x[10:], y[10:])]


def explicit(model: nn.Module, whole) -> Tensor:
    """The Hessian of whole(model), row by row."""
    parameters = list(model.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(whole(model), parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in gradient]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def matrix(operator: HessianOperator) -> Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.torch_dtype)


def summed(model: nn.Module, data, weight: Tensor | None = None) -> Tensor:
    return sum(F.cross_entropy(model(x), y, weight, reduction="sum") for x, y in data)


SUM = nn.CrossEntropyLoss(reduction="sum")
WAYS = {
    "a criterion that says so": (SUM, None),
    "a name": ("cross_entropy", "sum"),
    "a mean criterion": (nn.CrossEntropyLoss(), "sum"),
    "a function": (lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum"), "sum"),
    "a mean with its weight": (
        lambda model, batch: (
            F.cross_entropy(model(batch[0]), batch[1]),
            (batch[1] != -100).sum(),
        ),
        "sum",
    ),
    "two functions": (hvpspec.SplitLoss(lambda model, b: model(b[0]), lambda z, b: SUM(z, b[1])), "sum"),
}


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_hessian_of_the_sum(way, engine):
    model, data = model_and_data()
    loss, reduction = WAYS[way]
    H = HessianOperator(model, loss, data, engine=engine, reduction=reduction)
    expected = explicit(model, lambda m: summed(m, data))
    assert torch.allclose(matrix(H), expected, rtol=1e-9, atol=1e-10)
    assert torch.allclose(matrix(H), expected, rtol=1e-9, atol=1e-10)  # of kept graphs
    assert H.loss().value == pytest.approx(float(summed(model, data).detach()), rel=1e-12)


def test_a_criterion_with_class_weights_and_smoothing():
    model, data = model_and_data()
    criterion = nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1, reduction="sum")
    H = HessianOperator(model, criterion, data)
    double = nn.CrossEntropyLoss(criterion.weight.double(), label_smoothing=0.1, reduction="sum")
    assert torch.allclose(matrix(H), explicit(model, lambda m: sum(double(m(x), y) for x, y in data)), rtol=1e-9)
    mean = HessianOperator(model, criterion, data, reduction="mean")
    total = mean.loss().weight
    assert torch.allclose(matrix(H), total * matrix(mean), rtol=1e-9)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.MSELoss(reduction="sum"), nn.HuberLoss(reduction="sum"), nn.PoissonNLLLoss(reduction="sum"),
        nn.SoftMarginLoss(reduction="sum"), nn.KLDivLoss(reduction="sum"),
    ],
)  # fmt: skip
def test_other_criteria_that_say_sum(criterion):
    model, batches = model_and_data()
    torch.manual_seed(1)
    data = [(x, torch.rand(len(x), 3, dtype=torch.float64)) for x, _ in batches]
    H = HessianOperator(model, criterion, data)
    expected = explicit(model, lambda m: sum(criterion(m(x), y) for x, y in data))
    assert torch.allclose(matrix(H), expected, rtol=1e-9, atol=1e-10)


def test_finite_differences_and_gauss_newton():
    model, data = model_and_data()
    found = matrix(HessianOperator(model, SUM, data, engine="finite-difference"))
    expected = explicit(model, lambda m: summed(m, data))
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.norm()))
    for engine in ("autograd", "linearized"):
        of_sum = matrix(GGNOperator(model, SUM, data, engine=engine))
        of_mean = GGNOperator(model, SUM, data, engine=engine, reduction="mean")
        assert torch.allclose(of_sum, 9 * matrix(of_mean), rtol=1e-9)


def test_folds_are_estimates_of_the_whole_sum():
    model, data = model_and_data()
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum")  # noqa: E731
    H = HessianOperator(model, loss, data, reduction="sum")
    found = []
    columns = torch.eye(H.shape[0], dtype=torch.float64)
    H.multiply_by_folds(columns, 4, lambda fold, weight, product: found.append((weight, product.clone())))
    assert [weight for weight, _ in found] == [1.0] * 4
    for (x, y), (_, product) in zip(data, found, strict=True):
        assert torch.allclose(product, 4 * explicit(model, lambda m, x=x, y=y: summed(m, [(x, y)])), atol=1e-9)


def test_eigenvalues_with_their_bounds_and_other_data():
    model, data = model_and_data()
    H = HessianOperator(model, SUM, data)
    expected = torch.linalg.eigvalsh(explicit(model, lambda m: summed(m, data)))
    found = hvpspec.eigsh(H, k=1, which="LA", tol=1e-8)
    assert found.values[0] == pytest.approx(float(expected[-1]), rel=1e-6)
    part = Objective(model, SUM, data).on_first_batch()
    assert part.value().value == pytest.approx(float(summed(model, data[:1]).detach()))


def test_a_sum_is_refused_by_default_and_the_option_is_named():
    model, data = model_and_data()
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="sum")  # noqa: E731
    with pytest.raises(InputError, match=r'is a sum over the batch.* by reduction="sum"'):
        HessianOperator(model, loss, data[:2]) @ torch.zeros(31, dtype=torch.float64)


def test_a_mean_is_no_sum():
    model, data = model_and_data()
    with pytest.raises(InputError, match=r"batch 0: the loss is a mean over .* already.*leave out"):
        HessianOperator(model, lambda z, y: F.cross_entropy(z, y), data[:2], reduction="sum").loss()


def test_what_is_no_reduction_and_has_none():
    model, data = model_and_data()
    with pytest.raises(InputError, match='reduction must be one of "mean", "sum"; got'):
        HessianOperator(model, SUM, data, reduction="total")
    with pytest.raises(InputError, match="empirical Fisher matrix is the mean"):
        hvpspec.EmpiricalFisherOperator(model, SUM, data)
    with pytest.raises(InputError, match='needs reduction="mean" or "sum"'):
        HessianOperator(model, nn.MSELoss(reduction="none"), data)


def test_operators_that_differ_in_it_share_no_recording():
    model, data = model_and_data()
    first = matrix(HessianOperator(model, SUM, data, engine="linearized", reduction="mean"))
    second = matrix(HessianOperator(model, SUM, data, engine="linearized"))
    third = matrix(HessianOperator(model, SUM, data[:1], engine="linearized"))
    assert torch.allclose(second, 9 * first, rtol=1e-9)
    assert torch.allclose(third, explicit(model, lambda m: summed(m, data[:1])), rtol=1e-9, atol=1e-12)
