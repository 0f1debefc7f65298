"""Programs that ranks and one process run alike, and the figures that are compared."""

import numpy as np
import torch
from torch import nn

import hvpspec
from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator, PreconditionedOperator


def classifier(batches):
    """A network in float64 and ragged batches, as many of these as asked for; one input is always 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    sizes = [7, 4, 9, 5, 3, 8, 2][:batches]
    data = [(torch.randn(size, 6).double(), torch.randint(0, 3, (size,))) for size in sizes]
    for inputs, _ in data:
        inputs[:, 2] = 0.0
    return model, data


class TiedGPT(nn.Module):
    """One block of attention; the output projection is the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], dtype=torch.float64)
        return self.block(self.embedding(tokens), src_mask=mask) @ self.embedding.weight.T


def language_model(batches):
    torch.manual_seed(1)
    model = TiedGPT().double()
    tokens = [torch.randint(0, 11, (2 + number, 5)) for number in range(batches)]
    return model, [(each[:, :-1], each[:, 1:].masked_fill(each[:, 1:] > 8, -100)) for each in tokens]


def next_token(outputs, targets):
    """Masked positions do not count."""
    count = (targets != -100).sum()
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    return loss / count, count


def convolutional(batches):
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)]
    data = [(torch.randn(3 + number % 2, 1, 6, 6).double(), torch.randint(0, 4, (3 + number % 2,)))
            for number in range(batches)]  # fmt: skip
    return nn.Sequential(*layers).double(), data


def of_gradient(found):
    """The figures of a gradient; NaN for those that are not known."""
    names = "norm", "curvature", "share", "noise_scale"
    estimates = [getattr(found, name) for name in names]
    if found.update is not None:
        estimates += [found.update.curvature, found.update.change]
    values = [np.nan if each is None else each.value for each in estimates]
    bounds = [[np.nan] * 2 if each is None else each.interval for each in estimates]
    return {
        "gradient": values, "parts": found.parts, "bounds": bounds, "bounds of parts": found.parts_error,
        "samples": found.samples,
        "curvature's data_error": found.curvature.data_error or np.nan, "of gradient": [found.batches, found.hvps],
    }  # fmt: skip


def of_pass(found):
    """The figures of a spectrum."""
    pairs, condition = found.eigenpairs, found.condition
    return {
        **({} if found.gradient is None else of_gradient(found.gradient)),
        "values": pairs.values, "error": pairs.error, "data_error": pairs.data_error, "hvps": found.hvps,
        "trace": [found.trace.value, found.trace.error, found.trace.data_error],
        "norm": [found.frobenius_norm.value, found.frobenius_norm.error],
        "density": [*found.density.nodes, *found.density.weights], "kappa": condition.kappa.lower,
        "zero rows": condition.zero_rows, "vectors": np.abs(pairs.gather().vectors),
    }  # fmt: skip


def spectra(program, loss, batches):
    """The spectrum of a program, whose last figure is a product with a whole vector."""
    model, data = program(batches)
    H = HessianOperator(model, loss, data)
    found = of_pass(hvpspec.spectrum(H, 3, rtol=0.05, max_hvps=60, seed=1, gradient=True))
    ones = torch.ones(H.shape[0], dtype=torch.float64)
    return {**found, "loss": H.loss().value, "weight": H.loss().weight, "product": (H @ ones).numpy()}


def others(batches):
    """The other calls, matrices and reductions, on the classifier."""
    model, data = classifier(batches)
    H = HessianOperator(model, "cross_entropy", data)
    n = H.shape[0]
    scale = torch.linspace(0.5, 2.0, n, dtype=torch.float64)
    found = {
        "eigsh": hvpspec.eigsh(H, 4, tol=1e-9, block_size=2).values,
        "trace": hvpspec.trace(H, rtol=0.2).value,
        "density": hvpspec.spectral_density(H, max_hvps=30).nodes,
        "condition": hvpspec.condition(H, damping=1.0, max_hvps=30).kappa.upper,
        "solve": hvpspec.solve(H, torch.ones(n, dtype=torch.float64), damping=1.0).x.numpy(),
        "diagonal": hvpspec.diagonal(H, rtol=0.3).values,
        "nearest": hvpspec.eigsh(H, 3, sigma=0.5).values,
    }
    right = torch.eye(n, 3, dtype=torch.float64) + 1
    inverses = {
        "diagonal": hvpspec.diagonal(H, rtol=0.3),
        "function": lambda v: v / scale,
        "operator": PreconditionedOperator(GGNOperator(model, "cross_entropy", data), np.ones(n), shift=1.0),
    }
    for name, M in inverses.items():
        solved = hvpspec.solve(H, right, x0=right / 2, damping=1.0, M=M, rtol=1e-5)
        found[f"solve with M, {name}"] = [*solved.x.numpy(), solved.iterations, solved.reached]
    blocks = hvpspec.spectrum(H, 2, rtol=0.2, max_hvps=80, blocks=["0", "2"], seed=2).blocks.blocks
    found["blocks"] = [[b.trace.value, b.frobenius_norm.value, b.lambda_max.lower] for b in blocks]
    chosen = {"first": slice(3, 40), "mixed": [n - 1, 3, 50, 7, 60, 21], "one": [5], "every other": slice(0, n, 2)}
    by_position = hvpspec.spectrum(H, 1, max_hvps=40, blocks=chosen, block_density=True, block_hvps=120, seed=2).blocks
    found["blocks by position"] = [
        [block.lambda_max.lower, block.smallest.upper, block.density.nodes.sum()] for block in by_position.blocks
    ]
    found["data error of a sample"] = hvpspec.eigsh(
        HessianOperator(model, "cross_entropy", hvpspec.sample_batches(data, batches - 1, seed=1)), 2
    ).data_error
    of = model, "cross_entropy", data
    named = {
        "ggn": GGNOperator(*of),
        "fisher": EmpiricalFisherOperator(*of),
        "preconditioned": PreconditionedOperator(H, scale),
        "sum": HessianOperator(*of, reduction="sum"),
        "linearized": HessianOperator(*of, engine="linearized"),
    }
    for name, operator in named.items():
        found[name] = of_pass(hvpspec.spectrum(operator, 2, rtol=0.2, max_hvps=40, seed=3))["values"]
    tracked = list(hvpspec.track([H, H], k=2, only=("eigenvalues",)))
    found["overlap"] = tracked[1].overlap
    return found
