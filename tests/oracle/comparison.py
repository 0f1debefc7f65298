"""Operators with the engines that are compared, and how far their products are apart."""

import shutil

import pytest
import torch

import hvpspec
from hvpspec.oracle import autograd

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
