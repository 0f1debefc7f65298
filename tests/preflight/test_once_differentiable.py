"""Operations that torch can differentiate only once: named, located, and finite differences suggested instead."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from preflight.problems import explicit, problem
from torch import nn

from hvpspec.errors import NotTwiceDifferentiable
from hvpspec.preflight import inspect_operator
from hvpspec.preflight.locate import once_differentiable


class Distances(nn.Module):
    def forward(self, x):
        return torch.ops.aten._cdist_forward(x, x[:3], 2.0, None)  # torch.cdist itself is replaced


class Once(nn.Module):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient

    def forward(self, x):
        return self.Function.apply(x)


def ctc(model, batch):
    x, _ = batch
    scores = F.log_softmax(model(x), -1)[:, None].expand(-1, 2, -1)
    losses, _ = torch._ctc_loss(scores, torch.tensor([[1, 2], [2, 1]]), [len(x)] * 2, [2, 2])
    return losses.mean() / 2, len(x)


@pytest.mark.parametrize(
    ("middle", "loss", "names"),
    [
        (Distances(), "cross_entropy", ["cdist", "in '1'"]),
        (Once(), "cross_entropy", ["once_differentiable", "in '1'"]),
        (nn.Tanh(), ctc, ["ctc_loss", "in 'the loss'"]),
    ],
)
def test_what_has_no_second_derivative_is_named_and_differences_are_suggested(middle, loss, names):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4 if not isinstance(middle, Distances) else 3, 3))
    (finding,) = inspect_operator(problem(model=model, loss=loss)).refused
    assert finding.kind == "once_differentiable"
    assert all(name in str(finding) for name in [*names, "--engine finite-difference"])

    H = problem(model=model, loss=loss, engine="finite-difference")
    found = inspect_operator(H)
    assert not found.refused
    (note,) = [finding for finding in found.findings if finding.kind == "finite_differences"]
    assert "can be differentiated twice" in note.found
    if loss != ctc:  # the last layer can, behind what cannot
        assert found.difference <= found.difference_bound <= 1e-4


class Bag(nn.Module):
    """The derivative that torch lacks goes by another name than the operation: that in the weights of the samples."""

    def __init__(self):
        super().__init__()
        self.weights, self.table = nn.Parameter(torch.rand(2)), torch.randn(5, 3)

    def forward(self, x):
        ids, weights = torch.zeros(2 * len(x), dtype=torch.long), self.weights.exp().repeat(len(x))
        return torch.embedding_bag(self.table, ids, torch.arange(0, len(ids), 2), False, 0, False, weights)[0]


def test_a_variant_of_an_operation_is_found_where_it_is():
    model = nn.Sequential(nn.Sequential(Bag()), nn.Linear(3, 3))
    (finding,) = inspect_operator(problem(model=model)).refused
    assert "_embedding_bag_per_sample_weights_backward" in finding.found
    assert "in '0.0'" in finding.found


def test_nothing_is_said_of_a_place_that_is_not_known():
    def not_implemented(name):
        return NotTwiceDifferentiable(0, name, f"derivative for {name} is not implemented")

    H = problem()
    for name in ("_fused_backward", "nll_loss_backward"):  # which can be differentiated twice here
        assert once_differentiable(H.objective, not_implemented(f"aten::{name}")) is None


@torch.library.custom_op("hvpspec_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


@torch.library.custom_op("hvpspec_tests::slope", mutates_args=())
def slope(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 3 * gradient * x**2


cube.register_autograd(
    lambda ctx, gradient: slope(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class ByNumpy(torch.autograd.Function):
    """a³ b, whose backward goes through NumPy: torch takes what comes back for a constant."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a**3 * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = (tensor.detach().numpy() for tensor in ctx.saved_tensors)
        return gradient * torch.from_numpy(3 * a**2 * b), gradient * ctx.saved_tensors[0] ** 3


class Cubes(nn.Module):
    """Cubes of what a layer gives, made by an operation of someone's own or plainly."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.other, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x):
        a, b = self.layer(x), self.other(x)
        return {"custom": lambda: cube(a) * b, "numpy": lambda: ByNumpy.apply(a, b), None: lambda: a**3 * b}[
            self.kind
        ]()


@pytest.mark.parametrize("kind", ["custom", "numpy"])
def test_a_custom_operation_is_named_and_differences_are_suggested_with_their_error(kind):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 4), Cubes(which), nn.Linear(4, 3)) for which in (kind, None)]
    models[1].load_state_dict(models[0].state_dict())
    found = inspect_operator(problem(model=models[0]))
    (finding,) = found.refused
    assert "--engine finite-difference, whose products have relative errors of up to" in finding.done
    if kind == "custom":
        assert finding.kind == "once_differentiable"
        assert "(in '1'" in finding.found
        assert (
            "of 8 parameters can be differentiated twice, and there autograd and finite differences agree to"
            in finding.done
        )
        assert found.difference <= found.difference_bound
    else:
        assert finding.kind == "asymmetric"
    H = problem(model=models[0], engine="finite-difference", dtype="float64")
    exact = problem(model=models[1], dtype="float64") @ np.eye(H.shape[0])
    assert not inspect_operator(H).refused
    off = np.linalg.norm(H @ np.eye(H.shape[0]) - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert off.max() <= H.noise <= 1e-4
    assert found.difference_bound <= 1e-4


def plain_ctc(model, batch):
    """CTC's forward recursion, which can be differentiated twice (Graves et al. 2006, equations 6 and 7)."""
    scores = F.log_softmax(model(batch[0]), -1)
    losses = []
    for target in ([1, 2], [2, 1]):
        labels = [0, target[0], 0, target[1], 0]
        alpha = [scores[0, 0], scores[0, labels[1]]] + [scores.new_tensor(-torch.inf)] * 3
        for row in scores[1:]:
            before = [
                alpha,
                [None, *alpha[:-1]],
                [None, None, None, alpha[1]],
            ]  # from a blank, labels may not be skipped
            alpha = [
                torch.logsumexp(
                    torch.stack([a[i] for a in before if i < len(a) and a[i] is not None and torch.isfinite(a[i])]), 0
                )
                + row[label]
                if any(i < len(a) and a[i] is not None and torch.isfinite(a[i]) for a in before)
                else row.new_tensor(-torch.inf)
                for i, label in enumerate(labels)
            ]
        losses.append(-torch.logsumexp(torch.stack(alpha[-2:]), 0) / 2)
    return torch.stack(losses).mean()


def test_differences_of_a_ctc_loss_are_its_hessian():
    H = problem(loss=ctc, engine="finite-difference", dtype="float64")
    batches = H.objective.data
    for batch in batches:
        torch.testing.assert_close(
            plain_ctc(H.objective.model, batch), ctc(H.objective.model, batch)[0]
        )  # the same loss
    exact = explicit(H.objective.model, plain_ctc, batches)
    off = np.linalg.norm(H @ np.eye(H.shape[0]) - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert off.max() <= H.noise <= 1e-4
