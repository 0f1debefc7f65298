"""Losses that differentiate inside: third derivatives of what models are made of, and products of such losses."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from kernels.derivatives_table import FUNCTIONS, linear_algebra, normalisations
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import hvpspec
from hvpspec.errors import InputError
from hvpspec.kernels.inner_derivatives import InnerDerivatives
from hvpspec.kernels.torch_kernels import twice_differentiable

CPU = torch.device("cpu")


# --- each function, at each order -----------------------------------------------------------------------------------


def scalar(f):
    """A sum of the function's values, each with its own weight, and bent so that nothing vanishes."""

    def weighted(*xs):
        y = f(*xs).reshape(-1)
        return (torch.linspace(0.5, 1.5, len(y), dtype=y.dtype) * (y + 0.3 * torch.sin(y))).sum()

    return weighted


def along(f, xs, directions):
    """The derivative of f along each of the directions in turn, by autograd."""
    value = f(*xs)
    for direction in directions:
        gradients = torch.autograd.grad(value, xs, create_graph=True, materialize_grads=True)
        value = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        if not value.requires_grad:
            return value + sum(0 * x.sum() for x in xs)
    return value


def along_forward(f, xs, directions):
    """The same in forward mode, which is one more function of the inputs."""
    if not directions:
        return f(*xs)
    first, *others = directions
    return torch.func.jvp(lambda *ys: along_forward(f, ys, others), tuple(xs), tuple(first))[1]


def difference(f, step=4e-3):
    """f'(0) by central differences, with two steps of Richardson's extrapolation; and a guess at their error."""
    first = [(f(h) - f(-h)) / (2 * h) for h in (step, step / 2, step / 4)]
    second = [(4 * fine - coarse) / 3 for coarse, fine in itertools.pairwise(first)]
    found = (16 * second[1] - second[0]) / 15
    return found, abs(found - second[1])


def wrong_orders(f, inputs, derivative, orders=3):
    """The orders of derivatives that differ from differences of those of the order below."""
    f = scalar(f)
    torch.manual_seed(0)
    *directions, last = [[torch.randn_like(x) for x in inputs] for _ in range(orders)]
    wrong = []
    for order in range(1, orders + 1):
        chosen = directions[: order - 1]

        def below(xs, chosen=chosen):
            inner = InnerDerivatives()
            with twice_differentiable(CPU, inner):
                return inner.evaluate(lambda: derivative(f, xs, chosen))

        xs = [x.clone().requires_grad_() for x in inputs]
        gradients = torch.autograd.grad(below(xs), xs, allow_unused=True, materialize_grads=True)
        exact = sum(float((g * d).sum()) for g, d in zip(gradients, last, strict=True))
        size = sum(float(g.norm() * d.norm()) for g, d in zip(gradients, last, strict=True))

        def moved(t, below=below):
            return float(below([(x + t * d).requires_grad_() for x, d in zip(inputs, last, strict=True)]).detach())

        expected, error = difference(moved)
        if abs(exact - expected) > 10 * error + 1e-7 * max(size, abs(expected)):
            wrong.append(order)
    return wrong


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_derivatives_are_right(name):
    assert wrong_orders(*FUNCTIONS[name], along) == []


# Of a norm's derivative in forward mode torch refuses the second derivative, in reverse mode.
BY_NORMS = {"normalize", "cosine_similarity", "weight_norm", "weight_norm parametrization", "weight_norm old"}


@pytest.mark.parametrize("name", sorted({*normalisations(), *linear_algebra()} - BY_NORMS))
def test_three_derivatives_are_right_where_the_first_ones_are_in_forward_mode(name):
    assert wrong_orders(*FUNCTIONS[name], along_forward) == []


@pytest.mark.parametrize(
    "name", ["layer_norm", "batch_norm train", "torch.batch_norm", "instance_norm", "encoder layer"]
)
def test_torch_has_the_third_wrong(name, monkeypatch):
    """So that the test above would see it; if this one fails, torch has corrected it."""
    monkeypatch.setattr(InnerDerivatives, "instead", lambda self, function: function)
    assert wrong_orders(*FUNCTIONS[name], along) == [3]


def test_what_is_written_out_has_the_same_values():
    for name, (f, inputs) in {**normalisations(), **linear_algebra()}.items():
        inner = InnerDerivatives()
        inner._written_out = True
        with twice_differentiable(CPU, inner):
            found = inner.evaluate(lambda f=f, inputs=inputs: f(*inputs))
            forward = torch.func.jvp(f, tuple(inputs), tuple(map(torch.zeros_like, inputs)))[0]
        for value in (found, forward):
            torch.testing.assert_close(value, f(*inputs), rtol=1e-12, atol=1e-12, msg=name)


def test_running_statistics_are_those_of_torch():
    x, inner = torch.randn(6, 3, 4), InnerDerivatives()
    inner._written_out = True
    for cls in (nn.BatchNorm1d, nn.InstanceNorm1d):
        found, expected = (cls(3, track_running_stats=True) for _ in range(2))
        with twice_differentiable(CPU, inner):
            found(x)
        expected(x)
        torch.testing.assert_close(dict(found.named_buffers()), dict(expected.named_buffers()))


def test_half_precision_is_normalised_in_float32():
    x, inner = (100 + torch.randn(4, 64)).bfloat16(), InnerDerivatives()
    inner._written_out = True
    with twice_differentiable(CPU, inner):
        found = nn.functional.layer_norm(x, (64,))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, nn.functional.layer_norm(x, (64,)), rtol=0.02, atol=0.02)


# --- losses that differentiate --------------------------------------------------------------------------------------


class PlainNorm(nn.Module):
    """Layer norm as in the textbook."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias


class PlainBatchNorm(PlainNorm):
    def forward(self, x):
        centred = x - x.mean(0)
        return centred / (centred.square().mean(0) + 1e-5).sqrt() * self.weight + self.bias


class AlwaysTraining(nn.BatchNorm1d):
    """As in programs that adapt to a batch: eval mode does not reach it."""

    def forward(self, x):
        self.train()
        return super().forward(x)


NORMS = {
    "LayerNorm": (lambda: nn.LayerNorm(5), PlainNorm),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(5, track_running_stats=False), PlainBatchNorm),
    "BatchNorm1d in training": (lambda: AlwaysTraining(5), PlainBatchNorm),
}


def network(norm):
    return nn.Sequential(nn.Linear(2, 5), norm, nn.Tanh(), nn.Linear(5, 1)).double()


def penalty(slopes):
    return (slopes.square().sum(1) - 1).square().mean()


def by_grad(model, batch):
    x = batch[0].clone().requires_grad_()
    return penalty(*torch.autograd.grad(model(x).sum(), x, create_graph=True))


def by_backward(model, batch):
    x = batch[0].clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model(x).sum().backward(create_graph=True)
    return penalty(x.grad)


def by_jacobian(model, batch):
    return penalty(torch.autograd.functional.jacobian(lambda x: model(x).sum(0), batch[0], create_graph=True)[0])


def by_func_grad(model, batch):
    return penalty(torch.func.grad(lambda x: model(x).sum())(batch[0]))


def by_func_jacrev(model, batch):
    return penalty(torch.func.jacrev(lambda x: model(x).sum(0))(batch[0])[0])


def by_func_jacfwd(model, batch):
    return penalty(torch.func.jacfwd(lambda x: model(x).sum(0))(batch[0])[0])


def in_a_checkpoint(model, batch):
    x = batch[0].clone().requires_grad_()
    return penalty(*torch.autograd.grad(checkpoint(model, x, use_reentrant=False).sum(), x, create_graph=True))


def laplacian(model, batch):
    x = batch[0].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    second = [torch.autograd.grad(slopes[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    return (sum(second) - 1).square().mean()


def laplacian_by_func(model, batch):
    tensor = torch.func.hessian(lambda x: model(x).sum())(batch[0])  # (sample, entry, sample, entry)
    return (torch.einsum("aiai->a", tensor) - 1).square().mean()


# {loss: what it is, computed by reverse mode alone}
LOSSES = {
    **dict.fromkeys(
        (by_grad, by_backward, by_jacobian, by_func_grad, by_func_jacrev, by_func_jacfwd, in_a_checkpoint), by_grad
    ),
    laplacian: laplacian,
}


def explicit_hessian(model, loss, data):
    parameters = list(model.parameters())
    total = sum(loss(model, batch) * len(batch[0]) for batch in data) / sum(len(batch[0]) for batch in data)

    def flat(value):
        options = {"create_graph": True, "materialize_grads": True, "allow_unused": True}
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters, **options)])

    return torch.stack([flat(entry) for entry in flat(total)]).detach()


def twins(norm):
    """A network with torch's normalisation, one with that written out, and data."""
    torch.manual_seed(0)
    made, plain = NORMS[norm]
    model, reference = network(made()), network(plain(5))
    with torch.no_grad():
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            q.copy_(p.add_(0.3 * torch.randn_like(p)))
    return model, reference, [(torch.randn(4, 2).double(),), (torch.randn(4, 2).double(),)]


def agrees(norm, loss, **options):
    model, reference, data = twins(norm)
    expected = explicit_hessian(reference, LOSSES.get(loss, laplacian), data)
    assert expected.norm() > 1e-2
    H = hvpspec.HessianOperator(model, loss, data, **options)
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), expected, atol=1e-12 * float(expected.norm()))


@pytest.mark.parametrize("loss", [*LOSSES, laplacian_by_func])
def test_products_are_right(loss):
    agrees("LayerNorm", loss)


@pytest.mark.parametrize("loss", [by_grad, by_backward, laplacian, by_func_jacfwd])
def test_recorded_products_are_right(loss):
    agrees("LayerNorm", loss, engine="linearized")


@pytest.mark.parametrize("norm", ["BatchNorm1d", "BatchNorm1d in training"])
@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_products_through_the_statistics_of_a_batch_are_right(norm, engine):
    agrees(norm, by_grad, engine=engine, verify=False)


def test_what_torch_functions_do_not_show_is_refused():
    """TorchScript computes its layer norm itself."""
    model, _, data = twins("LayerNorm")
    H = hvpspec.HessianOperator(torch.jit.script(model), by_grad, data)
    with pytest.raises(InputError, match="differences of its gradient"):
        H @ np.ones(H.shape[0])


# --- other losses ---------------------------------------------------------------------------------------------------


class Kernels(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def constant_gradient(model, batch):
    """Inputs moved along a gradient that is a constant: no third derivative is needed."""
    x = batch[0].clone().requires_grad_()
    (slopes,) = torch.autograd.grad(model(x).sum(), x)
    return model(batch[0] + 0.1 * slopes.sign()).square().mean()


@pytest.mark.parametrize("loss", [lambda model, batch: model(batch[0]).square().mean(), constant_gradient])
def test_a_loss_that_needs_two_derivatives_keeps_the_fast_kernels(loss):
    model, _, data = twins("LayerNorm")
    calls = 0

    def counted(model, batch):
        nonlocal calls
        calls += 1
        return loss(model, batch)

    H = hvpspec.HessianOperator(model, counted, data, engine="autograd", verify=False)
    H.loss()  # from now on it is known what the loss is a mean over
    calls = 0
    with Kernels() as kernels:
        H @ np.ones(H.shape[0])
    assert "aten::native_layer_norm" in kernels.names
    assert "aten::rsqrt" not in kernels.names
    assert calls == len(data)


def test_a_loss_that_differentiates_is_evaluated_once_more_in_all():
    model, _, data = twins("LayerNorm")
    inner, calls = InnerDerivatives(), 0

    def counted():
        nonlocal calls
        calls += 1
        return by_grad(model, data[0])

    with twice_differentiable(CPU, inner):
        for expected in (2, 3, 4):
            inner.evaluate(counted)
            assert calls == expected


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_replaced_layers_in_a_checkpoint(engine):
    """What a checkpoint computes again in the backward is what it computed in the forward."""

    class Model(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.checkpointed = checkpointed
            self.table = nn.Embedding(5, 4, padding_idx=0)
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.head = nn.Linear(4, 1)

        def body(self, ids):
            return torch.tanh(self.normed(self.table(ids)))

        def forward(self, ids):
            hidden = checkpoint(self.body, ids, use_reentrant=False) if self.checkpointed else self.body(ids)
            return self.head(hidden).sum(1)

    torch.manual_seed(0)
    plain, checkpointed = Model(False).double(), Model(True).double()
    checkpointed.load_state_dict(plain.state_dict())
    data = [(torch.tensor([[0, 1, 2], [3, 0, 1]]), torch.randn(2, 1).double())]
    H = hvpspec.HessianOperator(checkpointed, "mse", data, engine=engine)
    expected = hvpspec.HessianOperator(plain, "mse", data, engine="autograd") @ np.eye(H.shape[0])
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), expected, atol=1e-13)
