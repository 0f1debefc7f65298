"""Calls that ranks and one process make alike: the gradient, single batches, what is saved."""

import torch

import hvpspec
from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator, PreconditionedOperator
from tests.distributed.programs import classifier, of_gradient


def optimizer(model, data):
    """Adam with a weight decay in its gradient, after a few steps."""
    adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    for inputs, targets in data[:3]:
        adam.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        adam.step()
    return hvpspec.adam_preconditioner(adam, model)


def summed(model, batch):
    """Without a weight, so that batches count by themselves."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def gradients(batches):
    """Of several matrices, with eigenpairs or without, and of a sample of the batches."""
    model, data = classifier(batches)
    by, of = optimizer(model, data), (model, "cross_entropy", data)
    H, G = HessianOperator(*of), GGNOperator(*of)
    pairs = hvpspec.eigsh(H, 3, tol=1e-9)
    P = PreconditionedOperator(H, by)
    sampled = HessianOperator(model, "cross_entropy", hvpspec.sample_batches(data, batches - 1, seed=1))
    trace = hvpspec.trace(EmpiricalFisherOperator(*of), rtol=0.2)
    found = {
        "pairs": hvpspec.gradient(H, pairs),
        "whole pairs": hvpspec.gradient(H, pairs.gather(), preconditioner=by),
        "preconditioned": hvpspec.gradient(P, hvpspec.eigsh(P, 2, tol=1e-9)),
        "in a spectrum": hvpspec.spectrum(P, 2, rtol=0.2, max_hvps=40, seed=3, gradient=True).gradient,
        "ggn": hvpspec.gradient(G, fisher_trace=trace),
        "sum": hvpspec.gradient(HessianOperator(model, summed, data, reduction="sum")),
        "sampled": hvpspec.gradient(sampled),
    }
    figures = {(case, name): figure for case, each in found.items() for name, figure in of_gradient(each).items()}
    return figures, {case: dict(each.reasons) for case, each in found.items()}
