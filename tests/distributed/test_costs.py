"""What ranks send and hold: a product's bytes by the formula of results/scaling.md, and a share of every basis."""

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.distributed.shard import sharded
from hvpspec.estimators.blocks import OwnSpace
from hvpspec.krylov.basis import Basis, Storage
from hvpspec.krylov.blocks import BlockRows
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.options import SpectrumOptions
from tests.distributed.ranks import on_ranks

BATCHES, STEPS = 4, 12


def costs(rank):
    """Of one rank: bytes sent for a product with whole batches and by folds, and those of the largest bases.

    The bases are that of the whole matrix, and that of a block whose rows the first ranks have.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 5))
    data = [(torch.randn(6, 40), torch.randint(0, 5, (6,))) for _ in range(BATCHES)]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd")
    largest, append = [0], Basis.append

    def watched(basis, X):
        append(basis, X)
        largest[-1] = max(largest[-1], basis.rows.nbytes)

    Basis.append = watched
    try:
        found = hvpspec.eigsh(H, 2, tol=1e-12, max_hvps=STEPS)
        largest.append(0)
        block = BlockRows("half", H.shape[0] // 2, (slice(0, H.shape[0] // 2),))
        options = SpectrumOptions(blocks={"half": block.positions[0]})
        A = as_symmetric(H)
        with sharded(A.shard):
            OwnSpace(A, block, options, Storage(), 0.0).largest(STEPS)
    finally:
        Basis.append = append
    sent = by_folds = 0
    if H.spread is not None:
        group, before = H.ranks.group, H.ranks.group.bytes_sent
        H.local(torch.ones(len(H.spread.shard.rows), 1))
        sent = group.bytes_sent - before
        before = group.bytes_sent
        H.spread.multiply_by_folds(torch.ones(len(H.spread.shard.rows), 1), BATCHES, lambda *fold: None)
        by_folds = group.bytes_sent - before
    return H.shape[0], sent, by_folds, largest, found.hvps


@pytest.mark.parametrize("size", [3])
def test_costs(size):
    n, _, _, whole_bases, hvps = costs(0)
    folds = [2, 1, 1]  # that ranks have of the batches
    for rank, (_, sent, by_folds, bases, own_hvps) in enumerate(on_ranks(costs, size)):
        each_way = 4 * n * (size - 1) / size  # bytes: n numbers in float32, but for this rank's own
        assert sent == pytest.approx(2 * each_way, rel=0.05)
        assert by_folds == pytest.approx((1 + folds[rank]) * each_way, rel=0.05)
        for basis, whole_basis in zip(bases, whole_bases, strict=True):
            assert 0 < basis <= 1.1 * whole_basis / size
        assert own_hvps == hvps
