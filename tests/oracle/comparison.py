"""An operator with the reference engine and one with the linearized engine, and how far their products are apart."""

import shutil

import pytest
import torch

import hvpspec

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")


def relative(found, expected):
    return float(torch.linalg.norm(torch.as_tensor(found) - torch.as_tensor(expected))) / float(
        torch.linalg.norm(torch.as_tensor(expected))
    )


def operators(case, **options):
    reference = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd")
    return reference, hvpspec.HessianOperator(case.model, case.loss, case.data, engine="linearized", **options)
