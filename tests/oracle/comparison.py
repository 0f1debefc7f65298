"""Operators with the engines that are compared, what they are tried on, and how far their products are apart."""

import shutil
from dataclasses import replace

import pytest
import torch

import hvpspec
from hvpspec.oracle import autograd
from hvpspec.oracle.choice import prices

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")


def relative(found, expected):
    return float(torch.linalg.norm(torch.as_tensor(found) - torch.as_tensor(expected))) / float(
        torch.linalg.norm(torch.as_tensor(expected))
    )


def operators(case, **options):
    reference = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd")
    return reference, hvpspec.HessianOperator(case.model, case.loss, case.data, engine="linearized", **options)


def kept(case, products=2, **options):
    """An operator whose graphs are kept, and vectors."""
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", **options)
    V = torch.randn(H.shape[0], 3, dtype=H.torch_dtype)
    for _ in range(products):
        H @ V
    return H, V


def share(H):
    return H._product._plain.share


def fresh(H, V):
    return autograd.hvp(H.objective, V)


class Shuffled:
    """The same samples in another order on each pass."""

    def __init__(self, x, y, size):
        self.x, self.y, self.size, self.passes = x, y, size, 0

    def __iter__(self):
        self.passes += 1
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(self.passes))
        yield from zip(self.x[order].split(self.size), self.y[order].split(self.size), strict=True)


class Square(torch.autograd.Function):
    """Differentiable twice, written by hand."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * x * g


def free_to_compile():
    """Prices of a CPU on which compiling takes no time."""
    return replace(
        prices.COSTS["cpu"], compiled_in_graphs=0.0, seconds_to_compile=0.0, seconds_to_compile_an_operation=0.0
    )
