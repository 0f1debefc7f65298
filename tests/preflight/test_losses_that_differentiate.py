"""Losses that differentiate inside: evaluated, inspected, by finite differences, and from the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hvpspec import HessianOperator
from hvpspec.preflight.measure import inspect_operator
from tests.cli_files import call


def residual(model, batch):
    """u'' = u of a physics-informed network."""
    x = batch[0].clone().requires_grad_()
    u = model(x)
    first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
    return (second - u).square().mean()


def forces(model, batch):
    x = batch[0].clone().requires_grad_()
    return (torch.autograd.grad(model(x).sum(), x, create_graph=True)[0] + batch[0]).square().mean()


def penalty(model, batch):
    x = batch[0].clone().requires_grad_()
    value = model(x)
    slope = torch.autograd.grad(value.sum(), x, create_graph=True)[0].norm(dim=1)
    return value.mean() + 10 * (slope - 1).square().mean()


def score_matching(model, batch):
    x = batch[0].clone().requires_grad_()
    score = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
    return (torch.autograd.grad(score.sum(), x, create_graph=True)[0] + score.square() / 2).mean()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def data():
    return [(torch.linspace(-1, 1, 4, dtype=torch.float64)[:, None],), (torch.full((2, 1), 0.3).double(),)]


def explicit(model, loss):
    """The mean over all samples at once, and its Hessian by rows."""
    parameters = list(model.parameters())
    value = loss(model, (torch.cat([x for (x,) in data()]),))

    def flat(of):
        found = torch.autograd.grad(of, parameters, create_graph=True, materialize_grads=True)
        return torch.cat([g.flatten() for g in found])

    return float(value.detach()), torch.stack([flat(entry) for entry in flat(value)]).detach()


@pytest.mark.parametrize("loss", [residual, forces, penalty, score_matching])
def test_they_can_be_evaluated_and_inspected(loss):
    model = network()
    value, expected = explicit(model, loss)
    H = HessianOperator(model, loss, data())
    with torch.no_grad():  # as a caller may have it
        assert H.loss().value == pytest.approx(value, rel=1e-12)
        assert not inspect_operator(H).refused
        np.testing.assert_allclose(H @ np.eye(13), expected, atol=1e-11 * float(expected.norm()))
    differences = HessianOperator(model, loss, data(), engine="finite-difference")
    np.testing.assert_allclose(differences @ np.eye(13), expected, atol=1e-5 * float(expected.norm()))
    assert inspect_operator(differences).loss == pytest.approx(value, rel=1e-12)


def test_from_the_command_line(tmp_path):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    source = """
        import torch
        from tests.preflight.test_losses_that_differentiate import data, network, residual
    """
    (tmp_path / "pinn.py").write_text("\n".join(line.strip() for line in source.splitlines()))
    arguments = ("model.pt", "--model", "pinn.py:network", "--data", "pinn.py:data", "--loss", "pinn.py:residual")
    found = call(tmp_path, "check", *arguments)
    assert found.returncode == 0, found.stderr
    assert f"{explicit(network(), residual)[0]:.4g}"[:5] in found.stdout, found.stdout
