"""Vectors on their way between ranks: in any number of buckets, while others compute, and after an error."""

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hvpspec
from hvpspec import HessianOperator, InputError, sample_batches
from hvpspec.distributed import shard, wire
from hvpspec.distributed.group import group_of, shares
from tests.distributed.programs import classifier
from tests.distributed.ranks import on_ranks

SIZE = 3


def parts_of(n, columns, seed):
    """What each rank has; all of them know it."""
    torch.manual_seed(seed)
    return [torch.randn(n, columns, dtype=torch.float64) for _ in range(SIZE)]


def transfers(rank):
    """Whether what is found is right to the last bit, for buckets of several sizes and columns, and ragged parts."""
    of, right = group_of(None).wire, []
    for n, columns, rows in [(SIZE, 1, 1), (11, 2, 1), (11, 1, 2), (100, 3, 7), (100, 1, 1000)]:
        lengths = shares(n, SIZE)
        own = slice(sum(lengths[:rank]), sum(lengths[: rank + 1]))
        wire.BUCKET_BYTES = rows * columns * SIZE * 8
        terms = parts_of(n, columns, n)
        expected = terms[0] * 0.3 + terms[1] * 0.3 + terms[2] * 0.3
        begun = [of.gathered(terms[0][own], lengths), of.summed(terms[rank], 0.3, lengths)]
        into = [torch.ones(columns, lengths[rank], dtype=torch.float64), None]
        into = [into[0], into[1], torch.zeros_like(into[0])]
        last = of.spread(None if rank == 1 else terms[rank], lengths, into)
        time.sleep(0.02 * rank)
        of.advance()
        right += [torch.equal(of.finish(begun[0]), terms[0]), torch.equal(of.finish(begun[1]), expected[own])]
        of.finish(last)
        found = torch.zeros(columns, lengths[rank], dtype=torch.float64)  # as NCCL would, which adds in its own order
        of.finish(of._begin(found.T, of._adding(terms[rank], 0.3, lengths, found)))
        right.append(torch.allclose(found.T, expected[own], rtol=1e-14, atol=1e-14))
        right += [torch.equal(into[0].T, 1 + terms[0][own]), torch.equal(into[2].T, terms[2][own])]
    return right


def few_columns_at_a_time(rank):
    """H X in sets of two columns; the bytes that are sent, and when those of the next set are under way."""
    torch.manual_seed(0)
    model, data = classifier(5)
    seen = []

    def loss(model, batch):
        seen.append(H.ranks.group.bytes_sent if H.ranks else 0)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    H = HessianOperator(model, loss, data, engine="autograd", memory_limit=1)
    alone = HessianOperator(model, "cross_entropy", data, group=False, engine="autograd")
    X = torch.randn(H.shape[0], 5, dtype=torch.float64)
    rows = H.ranks.shard.rows
    own = X[rows.start : rows.stop]
    H.local(own)  # which also measures what the loss is a mean over
    shard.WHOLE_BYTES = 2 * 8 * H.shape[0]
    seen.clear()
    before = H.ranks.group.bytes_sent
    found = H.local(own)
    first, sent = seen[0] - before if seen else None, H.ranks.group.bytes_sent - before
    few = trace(alone, group=None)
    shard.WHOLE_BYTES = 1 << 30
    return rows, found, alone @ X, sent, first, (few, trace(alone, group=None), trace(alone, group=False))


def trace(A, group):
    """With the error due to the data, whose folds are reduced one set of columns after the other."""
    H = HessianOperator(A.objective.model, "cross_entropy", classifier(5)[1], engine="autograd", group=group)
    found = hvpspec.trace(H, rtol=0.2, max_hvps=14)
    return found.value, found.error, found.data_error


def of_folds(data, folds, **options):
    """What is received of each fold, with the weights, and the whole product."""
    model, _ = classifier(1)
    H = HessianOperator(model, "cross_entropy", data, engine="autograd", **options)
    X = torch.linspace(-1, 1, 2 * H.shape[0], dtype=torch.float64).reshape(-1, 2)
    received = {}

    def receive(fold, weight, product):
        received[fold] = weight, product.clone()

    if H.ranks is None:
        return H.multiply_by_folds(X, folds, receive), received
    rows, before = H.ranks.shard.rows, H.ranks.group.bytes_sent
    product = H.spread.multiply_by_folds(X[rows.start : rows.stop], folds, receive)
    return product, received, rows, H.ranks.group.bytes_sent - before


def folds(rank):
    """Of several numbers of batches and folds: what one process finds, what ranks find, and bytes of a whole vector."""
    _, most = classifier(7)
    inputs, targets = torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % 3
    found = {}
    for batches, count in [(7, 4), (7, 7), (5, 2), (2, 2), (3, 2)]:
        found[batches, count] = of_folds(most[:batches], count, group=False), of_folds(most[:batches], count)
    drawn = sample_batches(most, 5, seed=1)
    found["a sample"] = of_folds(drawn, 3, group=False), of_folds(drawn, 3)
    torch.manual_seed(5)
    data = TensorDataset(inputs, targets)
    loader = DataLoader(data, 2, sampler=DistributedSampler(data, SIZE, rank, shuffle=False))
    order = [[inputs[start + each :: SIZE][:2] for each in range(SIZE)] for start in (0, 2 * SIZE)]
    labels = [[targets[start + each :: SIZE][:2] for each in range(SIZE)] for start in (0, 2 * SIZE)]
    interleaved = [pair for both in zip(order, labels, strict=True) for pair in zip(*both, strict=True)]
    found["given"] = of_folds(interleaved, 3, group=False), of_folds(loader, 3)
    return found


def after_an_error(rank):
    """What ranks are told where one fails after its first fold was sent, and whether the next product is right."""
    model, data = classifier(6)
    count = 0

    def loss(model, batch):
        nonlocal count
        count += 1
        if fails and rank == 1 and count > 1:
            raise ValueError("after a fold")
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    fails = False
    H = HessianOperator(model, loss, data, engine="autograd", memory_limit=1)
    x = torch.ones(len(H.ranks.shard.rows), 1, dtype=torch.float64)
    expected, words = H.local(x), ""
    fails, count = True, 0
    try:
        H.spread.multiply_by_folds(x, 6, lambda *fold: None)
    except InputError as error:
        words = str(error)
    fails = False
    again = H.spread.multiply_by_folds(x, 6, lambda *fold: None)
    return words, torch.allclose(again, expected, rtol=1e-12, atol=1e-14)


def everything(rank):
    found = {
        "transfers": transfers(rank), "columns": few_columns_at_a_time(rank), "folds": folds(rank),
        "error": after_an_error(rank),
    }  # fmt: skip
    dist.barrier()
    return found


@pytest.fixture(scope="module")
def found():
    return on_ranks(everything, SIZE)


def test_all_that_is_sent_arrives_where_it_belongs(found):
    for each in found:
        assert all(each["transfers"]), each["transfers"]


def test_few_columns_are_whole_at_a_time(found):
    for rows, product, expected, sent, first, (few, many, alone) in (each["columns"] for each in found):
        assert few == pytest.approx(alone, rel=1e-10)
        assert many == pytest.approx(alone, rel=1e-10)
        torch.testing.assert_close(product, expected[rows.start : rows.stop], rtol=1e-12, atol=1e-14)
        each_way = 8 * len(expected) * (SIZE - 1) / SIZE  # bytes of a column
        assert sent == pytest.approx(5 * 2 * each_way, rel=0.05)
        if first is not None:
            assert first == pytest.approx(4 * each_way, rel=0.05)  # the next set is under way when the first begins


def test_folds(found):
    for each in found:
        for name, ((whole, expected), (product, received, rows, _)) in each["folds"].items():
            own = slice(rows.start, rows.stop)
            torch.testing.assert_close(product, whole[own], rtol=1e-12, atol=1e-14, msg=str(name))
            assert received.keys() == expected.keys(), name
            for fold, (weight, of_fold) in expected.items():
                assert received[fold][0] == pytest.approx(weight, rel=1e-14)
                torch.testing.assert_close(received[fold][1], of_fold[own], rtol=1e-12, atol=1e-14, msg=str(name))


def test_a_rank_sends_only_the_folds_that_it_has(found):
    """Of seven batches, ranks have three, two and two; four folds have two each, but for the last."""
    of_ranks = {(7, 4): (2, 2, 2), (7, 7): (3, 2, 2), (2, 2): (1, 1, 0), "given": (2, 2, 2)}
    for name, counts in of_ranks.items():
        for each, count in zip(found, counts, strict=True):
            (whole, _), (_, _, _, sent) = each["folds"][name]
            each_way = 2 * 8 * len(whole) * (SIZE - 1) / SIZE
            assert sent == pytest.approx((1 + count) * each_way, rel=0.05), name


def test_an_error_after_a_fold_was_sent(found):
    for rank, each in enumerate(found):
        words, right = each["error"]
        assert "after a fold" in words
        assert words.startswith("rank 1: ") or rank == 1
        assert right
