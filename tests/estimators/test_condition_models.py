"""Conditioning and blocks of trained models, compared with explicit Hessians and a Hessian by finite differences."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hvpspec
from hvpspec import demo

TRUE = {
    "largest": lambda v, c: v.max(),
    "smallest": lambda v, c: v.min(),
    "norm": lambda v, c: np.abs(v).max(),
    "negative": lambda v, c: (v < -c.zero).sum(),
    "negative_mass": lambda v, c: -v[v < 0].sum(),
    "rank": lambda v, c: (np.abs(v) > c.rank_threshold).sum(),
    "stable_rank": lambda v, c: (v**2).sum() / (v**2).max(),
    "participation_ratio": lambda v, c: v.sum() ** 2 / (v**2).sum(),
    "bulk_mean": lambda v, c: bulk(v, c).mean(),
    "bulk_spread": lambda v, c: bulk(v, c).std(),
    "flatness": lambda v, c: bulk(v, c).std() / np.abs(v).max(),
    "kappa": lambda v, c: np.abs(v + c.damping).max() / np.abs(v + c.damping).min(),
    "digits_lost": lambda v, c: math.log10(np.abs(v + c.damping).max() / np.abs(v + c.damping).min()),
    "nearest_range": lambda v, c: np.abs(v + c.damping).min(),
    "step": lambda v, c: 2 / (v.max() + c.damping),
    "effective_dimension": lambda v, c: (v / (v + c.damping)).sum(),
    "log_determinant": lambda v, c: np.log(v + c.damping).sum(),
}


A_THIRD = [(images[::3], labels[::3]) for images, labels in demo.batches()]


def bulk(values, found):
    return values[np.argsort(np.abs(values), kind="stable")][: found.bulk_count]


@pytest.fixture(scope="module")
def digits():
    """The explicit Hessian, some columns of which are compared with plain autograd, and its eigenvalues."""
    model = hvpspec.load_checkpoint(demo.CHECKPOINT, demo.build())
    images, labels = map(torch.cat, zip(*A_THIRD, strict=True))
    operator = hvpspec.HessianOperator(model, "cross_entropy", [(images, labels)], dtype="float64")
    H = operator @ np.eye(operator.shape[0])
    parameters = list(model.double().parameters())
    pieces = torch.autograd.grad(F.cross_entropy(model(images.double()), labels), parameters, create_graph=True)
    gradient = torch.cat([piece.reshape(-1) for piece in pieces])
    for i in range(0, len(gradient), 173):
        products = torch.autograd.grad(gradient[i], parameters, retain_graph=True)
        column = torch.cat([product.reshape(-1) for product in products]).numpy()
        np.testing.assert_allclose(H[:, i], column, rtol=1e-9, atol=1e-12)
    H = (H + H.T) / 2
    return H, np.linalg.eigvalsh(H)


def test_every_figure_of_the_digits_checkpoint(digits):
    """At 95 % each, one or two of some thirty may be outside their intervals, but not by much."""
    dense, values = digits
    model = hvpspec.load_checkpoint(demo.CHECKPOINT, demo.build())
    H = hvpspec.HessianOperator(model, "cross_entropy", A_THIRD, dtype="float64")
    found = hvpspec.spectrum(H, damping=0.1, blocks="*")
    outside = []
    for name, true in TRUE.items():
        figure, value = getattr(found.condition, name), true(values, found.condition)
        low, high = figure.interval if isinstance(figure, hvpspec.Estimate) else (figure.lower, figure.upper)
        slack = 1e-9 * (1 + abs(value))
        if not low - slack <= value <= high + slack:
            outside.append(name)
        assert low - (high - low) - slack <= value <= high + (high - low) + slack, name
    assert found.condition.definite == "positive"
    assert found.condition.negative_at_least <= (values < 0).sum()
    assert found.condition.rank_at_least <= (np.abs(values) > found.condition.rank_threshold).sum()
    assert found.condition.log_determinant.error < 10  # of 7921
    assert found.condition.effective_dimension.error < 10  # of 36
    starts = np.cumsum([0, *(p.numel() for p in model.parameters())])
    assert sum(block.parameters for block in found.blocks.blocks) == len(values)
    ends = starts if len(found.blocks.blocks) == 6 else starts[::2]  # a tensor each, or a layer
    for block, first, last in zip(found.blocks.blocks, ends[:-1], ends[1:], strict=True):
        own = np.linalg.eigvalsh(dense[first:last, first:last])
        assert block.parameters == len(own)
        for name, figure, value in (
            ("trace", block.trace, own.sum()),
            ("frobenius_norm", block.frobenius_norm, np.linalg.norm(own)),
        ):
            if abs(figure.value - value) > figure.error:
                outside.append(f"{block.name} {name}")
            assert abs(figure.value - value) <= 2 * figure.error
        assert block.largest.lower - 1e-9 <= own.max() <= block.largest.upper
    assert len(outside) <= 1, outside


# --- a Hessian by differences ---------------------------------------------------------------------------------------


def network(kind):
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    labels = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    return {
        "classifier": (torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.Tanh(), torch.nn.Linear(12, 5)),
                       "cross_entropy", x, labels),
        "regression": (torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 3)),
                       "mse", x, torch.randn(200, 3)),
        "stretched": (torch.nn.Linear(8, 3), "mse", x * torch.logspace(-2, 2, 8), torch.randn(200, 3)),
    }[kind]  # fmt: skip


def by_differences(model, loss, x, y, dtype):
    """Central differences of the gradient at the textbook step ε^⅓ max(1, |p|), symmetrised."""
    parameters = list(model.to(dtype).parameters())
    function = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}[loss]
    x, y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
    at = torch.nn.utils.parameters_to_vector(parameters).detach().clone()

    def gradient(point):
        torch.nn.utils.vector_to_parameters(point, parameters)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(function(model(x), y), parameters)])

    rows = []
    for i in range(len(at)):
        ahead, back = at.clone(), at.clone()
        step = torch.finfo(dtype).eps ** (1 / 3) * max(1.0, abs(float(at[i])))
        ahead[i] += step
        back[i] -= step
        rows.append(((gradient(ahead) - gradient(back)) / (ahead[i] - back[i])).double())
    torch.nn.utils.vector_to_parameters(at, parameters)
    H = torch.stack(rows).numpy()
    return (H + H.T) / 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["classifier", "regression", "stretched"])
def test_the_rule_for_finite_differences_is_the_right_order_of_magnitude(kind, dtype):
    model, loss, x, y = network(kind)
    differences = by_differences(model, loss, x, y, dtype)
    H = hvpspec.HessianOperator(model.double(), loss, [(x.double(), y.double() if y.is_floating_point() else y)])
    exact = H @ np.eye(H.shape[0])
    error = np.linalg.norm(differences - exact, 2)
    damping = 2 * np.abs(np.linalg.eigvalsh(exact)).max()  # where κ is known on both sides
    model.to(dtype)
    own = hvpspec.HessianOperator(
        model,
        loss,
        [(x.to(dtype), y.to(dtype) if y.is_floating_point() else y)],
        dtype=str(dtype).removeprefix("torch."),
    )
    found = hvpspec.condition(own, damping=damping, rtol=0.2)
    assert found.finite_difference.kind == "rule"
    assert found.finite_difference.confidence == 0
    nearest = np.abs(np.linalg.eigvalsh(exact) + damping).min()
    # ‖H + δI‖ is up to three times ‖H‖, which the differences are taken of
    assert 1 / 15 < found.finite_difference.value / (error / nearest) < 15 * 3
