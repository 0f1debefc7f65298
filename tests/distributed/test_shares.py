"""Each batch is on one rank, with its own number; only that rank loads it."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from hvpspec import InputError, sample_batches
from hvpspec.objective.batches import numbered
from hvpspec.objective.subsets.shares import Evidence, share_of


class Counted(TensorDataset):
    """Notes which samples are read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_each_batch_is_on_one_rank(size):
    data = list(range(7))
    shares = [share_of(data, rank, size) for rank in range(size)]
    assert sorted(pair for share in shares for pair in numbered(share)) == [(i, i) for i in data]
    assert {share.of for share in shares} == {7}
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_loader_reads_its_own_samples_only():
    data = Counted(torch.arange(10))
    share = share_of(DataLoader(data, batch_size=3), 1, 2)
    assert [batch.tolist() for (batch,) in share] == [[3, 4, 5], [9]]
    assert data.read == [3, 4, 5, 9]


def test_data_without_a_length_are_counted():
    class Stream:
        def __iter__(self):
            return iter("abcde")

    assert list(numbered(share_of(Stream(), 1, 2))) == [(1, "b"), (3, "d")]


def test_of_a_sample():
    drawn = sample_batches(list("abcdefgh"), 5, seed=0)
    parts = [batch for rank in range(2) for batch in share_of(drawn, rank, 2)]
    assert sorted(parts) == sorted(drawn)
    assert [number for number, _ in numbered(share_of(drawn, 1, 2))] == [1, 3]  # theirs in the sample


def test_what_shows_the_mean_begins_with_the_same_batches():
    evidence = [list(Evidence(share_of(list("abcdef"), rank, 3))) for rank in range(3)]
    assert [each[:2] for each in evidence] == [["a", "b"]] * 3
    assert evidence == [["a", "b", "d"], ["a", "b", "e"], ["a", "b", "c", "f"]]


def test_a_distributed_sampler_has_divided_the_data_already():
    data = TensorDataset(torch.arange(8))
    loaders = [
        DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, rank, shuffle=False)) for rank in range(2)
    ]
    shares = [share_of(loader, rank, 2) for rank, loader in enumerate(loaders)]
    assert [[batch.tolist() for (batch,) in share] for share in shares] == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    assert [[number for number, _ in numbered(share)] for share in shares] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("samples", "drop", "what"), [(7, False, "repeats 1 of 7"), (7, True, "leaves out 1 of 7")])
def test_a_distributed_sampler_that_changes_the_data_is_refused(samples, drop, what):
    data = TensorDataset(torch.arange(samples))
    sampler = DistributedSampler(data, 2, 0, shuffle=False, drop_last=drop)
    with pytest.raises(InputError, match=what):
        share_of(DataLoader(data, batch_size=2, sampler=sampler), 0, 2)


def test_the_sampler_of_another_rank_is_refused():
    data = TensorDataset(torch.arange(8))
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, 2, 1))
    with pytest.raises(InputError, match="that of rank 1 of 2, and this is rank 0 of 2"):
        share_of(loader, 0, 2)
