"""What ranks send and hold: a product's bytes by the formula of results/scaling.md, and a share of the basis."""

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.krylov.basis import Basis
from tests.distributed.ranks import on_ranks

BATCHES, STEPS = 4, 12


def costs(rank):
    """Of one rank: bytes sent for a product with whole batches and by folds, and those of the largest basis."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5))
    data = [(torch.randn(6, 40), torch.randint(0, 5, (6,))) for _ in range(BATCHES)]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd")
    largest, append = [0], Basis.append

    def watched(basis, X):
        append(basis, X)
        largest[0] = max(largest[0], basis.rows.nbytes)

    Basis.append = watched
    try:
        found = hvpspec.eigsh(H, 2, tol=1e-12, max_hvps=STEPS)
    finally:
        Basis.append = append
    sent = 0
    if H.spread is not None:
        group, before = H.ranks.group, H.ranks.group.bytes_sent
        H.local(torch.ones(len(H.spread.shard.rows), 1))
        sent = group.bytes_sent - before
        before = group.bytes_sent
        H.spread.multiply_by_folds(torch.ones(len(H.spread.shard.rows), 1), BATCHES, lambda *fold: None)
        return H.shape[0], sent, group.bytes_sent - before, largest[0], found.hvps
    return H.shape[0], 0, 0, largest[0], found.hvps


@pytest.mark.parametrize("size", [3])
def test_costs(size):
    n, _, _, whole_basis, hvps = costs(0)
    for _, sent, by_folds, basis, own_hvps in on_ranks(costs, size):
        each_way = 4 * n * (size - 1) / size  # bytes: n numbers in float32, but for this rank's own
        assert sent == pytest.approx(2 * each_way, rel=0.05)
        assert by_folds == pytest.approx((1 + BATCHES) * each_way, rel=0.05)
        assert basis <= 1.1 * whole_basis / size
        assert own_hvps == hvps
