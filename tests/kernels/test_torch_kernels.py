"""What takes the place of torch's own calls while products are computed."""

import torch
from torch import nn

from hvpspec.kernels import torch_kernels
from hvpspec.kernels.torch_kernels import prepared_to_differentiate, twice_differentiable, vector_jacobian_product

CPU = torch.device("cpu")


def test_a_vector_jacobian_product_is_that_of_torch():
    x, y, unused = (torch.randn(3, 2, requires_grad=True) for _ in range(3))
    outputs, vectors = [(x * y).sin(), x.sum(0) ** 3], [torch.randn(3, 2), torch.randn(2)]
    found = vector_jacobian_product(outputs, (x, y, unused), vectors)
    expected = torch.autograd.grad(outputs, (x, y, unused), vectors, allow_unused=True)
    assert found[2] is None
    assert expected[2] is None
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(one, other)


class Normed(torch.autograd.Function):
    """A backward that calls what is replaced."""

    @staticmethod
    def forward(ctx, v, g):
        ctx.save_for_backward(v, g)
        return v.clone()

    @staticmethod
    def backward(ctx, gradient):
        v, g = ctx.saved_tensors
        return gradient * torch._weight_norm(v, g, 0), None


def test_backward_functions_are_looked_at_once_whether_or_not_the_mode_is_entered(monkeypatch):
    calls, real = [], torch_kernels._weight_norm

    def noted(*args):
        calls.append(len(args))
        return real(*args)

    monkeypatch.setattr(torch_kernels, "_weight_norm", noted)
    v, g = torch.randn(3, 2, requires_grad=True), torch.ones(3, 1)
    with prepared_to_differentiate(CPU):
        torch.autograd.grad(Normed.apply(v, g).sum(), v)
    with twice_differentiable(CPU):
        torch.autograd.grad(Normed.apply(v, g).sum(), v)
        vector_jacobian_product([Normed.apply(v, g)], [v], [torch.ones(3, 2)])
    assert len(calls) == 3


def test_without_the_mode_a_loss_is_not_looked_at():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    x = torch.ones(1, 2)
    with torch_kernels.noting_replacements() as replaced, prepared_to_differentiate(CPU) as replacing:
        layer(x)
        assert not replaced.names
        with replacing:
            layer(x)
    assert replaced.names == {"weight_norm"}
