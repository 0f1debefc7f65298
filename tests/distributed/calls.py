"""Calls that ranks and one process make alike: the gradient, single batches, what is saved."""

import tempfile

import torch

import hvpspec
from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator, PreconditionedOperator
from tests.distributed.programs import classifier, of_gradient


def optimizer(model):
    """Of Adam with a weight decay in its gradient, as training saves it: to make one would import a compiler."""
    torch.manual_seed(5)
    group = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "amsgrad": False, "maximize": False}
    state = {
        number: {"step": torch.tensor(7.0), "exp_avg": 0.1 * torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for number, p in enumerate(model.parameters())
    }
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/adam.pt"
        torch.save({"state": state, "param_groups": [{**group, "params": list(state)}]}, path)
        return hvpspec.adam_preconditioner(path, model, kind="adam")


def summed(model, batch):
    """Without a weight, so that batches count by themselves."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")


def gradients(batches):
    """Of several matrices, with eigenpairs or without, and of a sample of the batches."""
    model, data = classifier(batches)
    by, of = optimizer(model), (model, "cross_entropy", data)
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


def of_batches(found):
    """The figures of `per_batch`; `hvps` as programs.same compares them."""
    each = [*found.batches, found.whole]
    ends = [[batch.number, batch.weight, *end(batch.largest), *end(batch.smallest)] for batch in each]
    return {"ends": ends, "hvps": found.hvps, "whole": found.whole_hvps, "count": [found.of, found.asked]}


def end(estimate):
    return [float("nan")] * 4 if estimate is None else [estimate.value, *estimate.interval, estimate.converged]


def single_batches(batches):
    """Of several matrices, of some of the batches, and of batches of which one has no weight."""
    model, data = classifier(batches)
    H, P = HessianOperator(model, "cross_entropy", data), optimizer(model)
    pairs = hvpspec.eigsh(H, 3, tol=1e-6)
    ignored = [*data[:-1], (data[-1][0], torch.full_like(data[-1][1], -100))]
    drawn = hvpspec.sample_batches(data, batches - 1, seed=1)
    return {
        "both ends": of_batches(hvpspec.per_batch(H, which="BE", rtol=1e-3, max_hvps=3000)),
        "pairs": of_batches(hvpspec.per_batch(H, pairs=pairs)),
        "some": of_batches(hvpspec.per_batch(H, pairs=pairs, max_batches=batches - 2, seed=4)),
        "preconditioned": of_batches(hvpspec.per_batch(PreconditionedOperator(H, P), rtol=0.05)),
        "sum": of_batches(hvpspec.per_batch(HessianOperator(model, "cross_entropy", data, reduction="sum"))),
        "no weight": of_batches(hvpspec.per_batch(HessianOperator(model, "cross_entropy", ignored))),
        "sampled": of_batches(hvpspec.per_batch(HessianOperator(model, "cross_entropy", drawn))),
        "noise": of_batches(hvpspec.per_batch(HessianOperator(*noisy(data), noise_seed=3))),
    }  # fmt: skip


def noisy(data):
    """A loss that draws random numbers: those of a batch depend on its number."""
    model, _ = classifier(1)

    def loss(model, batch):
        inputs = batch[0] + 0.1 * torch.randn_like(batch[0])
        return torch.nn.functional.cross_entropy(model(inputs), batch[1]), len(inputs)

    return model, loss, hvpspec.sample_batches(data, len(data) - 2, seed=2)


def short_budget(batches):
    """Fewer products than the batches need: how many are made, and whether a failing callback ends all."""
    model, data = classifier(batches)
    H = HessianOperator(model, "cross_entropy", data)
    found = hvpspec.per_batch(H, rtol=1e-9, max_hvps=11, pairs=hvpspec.eigsh(H, 2))
    seen = []

    def stop(known):
        seen.append(known)
        if known.hvps > 16 and (H.ranks is None or H.ranks.group.rank == 1):
            raise KeyboardInterrupt

    ended = False
    try:
        hvpspec.per_batch(H, callback=stop)
    except KeyboardInterrupt:
        ended = True
    return found, seen[-1], ended, of_batches(hvpspec.per_batch(H))


def saved(batches, folder):
    """Eigenvectors of which each rank writes its part; the whole ones."""
    model, data = classifier(batches)
    H = HessianOperator(model, "cross_entropy", data)
    pairs = hvpspec.eigsh(H, 3, tol=1e-9)
    pairs.save(f"{folder}/whole")
    pairs.save(f"{folder}/named", H.parameters, metadata={"by": "ranks"})
    pairs.save(f"{folder}/named", H.parameters)  # in place of the other one
    pairs.save(f"{folder}/named.safetensors", H.parameters)
    return pairs.values, pairs.gather().vectors


def loaded(batches, folder):
    """What was saved: values, rows of this rank, whole vectors; and products of a warm start from the rows."""
    model, data = classifier(batches)
    H = HessianOperator(model, "cross_entropy", data)
    found = []
    for name in ("whole", "named", "named.safetensors"):
        pairs = hvpspec.load_eigenvectors(f"{folder}/{name}")
        warm = hvpspec.eigsh(H, 3, tol=1e-9, start=pairs.vectors)
        found.append((pairs.values, len(pairs.vectors), pairs.gather().vectors, warm.values, warm.hvps))
    return found
