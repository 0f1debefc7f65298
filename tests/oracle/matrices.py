"""Explicit Gauss-Newton and empirical Fisher matrices, from Jacobians row by row, without hvpspec."""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

_MEANS = {
    "cross_entropy": F.cross_entropy,
    "mse": F.mse_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "causal_lm": F.cross_entropy,
}


def _rows(values, parameters):
    """The Jacobian of a tensor, a row for each of its entries."""
    found = []
    for value in values.reshape(-1):
        pieces = torch.autograd.grad(value, parameters, retain_graph=True, materialize_grads=True)
        found.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return torch.stack(found)


def outputs_and_targets(case):
    """For each batch: what the loss depends on, a row for each of the terms of its mean; and their targets."""
    for batch in case.data:
        if case.loss == "causal_lm":
            logits, ids = case.model(batch["input_ids"])[:, :-1], batch["input_ids"][:, 1:]
            kept = batch["attention_mask"][:, 1:].bool()
            yield [logits[i][kept[i]] for i in range(len(ids))], [ids[i][kept[i]] for i in range(len(ids))]
        else:
            x, y = batch
            yield list(case.model(x).split(1)), list(y.split(1))


def _evaluated(function):
    def evaluate(case):
        modes = [(module, module.training) for module in case.model.modules()]
        case.model.eval()
        with sdpa_kernel(SDPBackend.MATH):
            found = function(case, [p for p in case.model.parameters() if p.requires_grad])
        for module, mode in modes:
            module.training = mode
        return found

    return evaluate


@_evaluated
def gauss_newton(case, parameters):
    samples = [pair for batch in outputs_and_targets(case) for pair in zip(*batch, strict=True)]
    outputs, targets = torch.cat([z for z, _ in samples]), torch.cat([y for _, y in samples])
    J = _rows(outputs, parameters)
    curvature = torch.func.hessian(lambda z: _MEANS[case.loss](z, targets))(outputs.detach())
    return J.T @ curvature.reshape(len(J), len(J)) @ J


@_evaluated
def empirical_fisher(case, parameters):
    total = weights = 0.0
    for outputs, targets in outputs_and_targets(case):
        for z, y in zip(outputs, targets, strict=True):
            weight = len(y) if case.loss == "causal_lm" else y.numel()
            gradient = _rows(_MEANS[case.loss](z, y), parameters)[0]
            total, weights = total + weight * torch.outer(gradient, gradient), weights + weight
    return total / weights
