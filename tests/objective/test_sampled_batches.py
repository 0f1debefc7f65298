"""A random sample of batches: the same in every pass, without loading the others, and with the right weights."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec.errors import InputError


class Noting(Dataset):
    """Samples by number; notes which were loaded."""

    def __init__(self, count=47):
        self.loaded, self.count = set(), count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.loaded.add(number)
        return torch.tensor([float(number)])


class Streamed(IterableDataset):
    def __iter__(self):
        return (torch.tensor([float(number)]) for number in range(47))


class Unsized:
    """Batches that can be read again and again, and have no length."""

    def __init__(self):
        self.read = 0

    def __iter__(self):
        for batch in torch.arange(47.0)[:, None].split(5):
            self.read += 1
            yield batch


def listed():
    return list(torch.arange(47.0)[:, None].split(5))


KINDS = {
    "list": listed, "tuple": lambda: tuple(listed()), "unsized": Unsized,
    "loader": lambda: DataLoader(Noting(), batch_size=5), "streamed": lambda: DataLoader(Streamed(), batch_size=5),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "seed"), [(1, 0), (3, 0), (3, 1), (9, 2), (10, 0)])
def test_the_sample_is_of_whole_batches_and_repeats(kind, count, seed):
    drawn = hvpspec.sample_batches(KINDS[kind](), count, seed=seed)
    assert (len(drawn), drawn.of) == (count, 10)
    first, second = (torch.cat([batch for batch in drawn]) for _ in range(2))
    assert torch.equal(first, second)
    expected = torch.cat([listed()[number] for number in drawn.numbers])
    assert torch.equal(first, expected)
    assert drawn.numbers == hvpspec.sample_batches(listed(), count, seed=seed).numbers
    assert len(set(drawn.numbers)) == count


def test_more_than_there_are_is_all():
    drawn = hvpspec.sample_batches(listed(), 60)
    assert drawn.numbers == tuple(range(10))


def test_seeds_draw_others_and_each_batch_as_often():
    counts = torch.zeros(10)
    for seed in range(400):
        counts[list(hvpspec.sample_batches(listed(), 3, seed=seed).numbers)] += 1
    assert ((counts - 120).abs() < 5 * (400 * 0.3 * 0.7) ** 0.5).all()


def test_other_samples_are_not_loaded():
    data = Noting()
    drawn = hvpspec.sample_batches(DataLoader(data, batch_size=5), 2, seed=3)
    assert data.loaded == set()
    list(drawn)
    assert data.loaded == {5 * number + i for number in drawn.numbers for i in range(5) if 5 * number + i < 47}


def test_a_shorter_last_batch_and_one_that_is_left_out():
    for drop_last, of in ((False, 10), (True, 9)):
        drawn = hvpspec.sample_batches(DataLoader(Noting(), batch_size=5, drop_last=drop_last), 60)
        assert drawn.of == of
        assert [len(batch) for batch in drawn] == [5] * 9 + [2] * (of - 9)


def test_a_pass_ends_with_the_last_batch_that_is_needed():
    data = Unsized()
    drawn = hvpspec.sample_batches(data, 2, seed=5)
    data.read = 0
    list(drawn)
    assert data.read == drawn.numbers[-1] + 1


def test_copies_of_one_pass():
    data = DataLoader(TensorDataset(torch.arange(47.0)), batch_size=5, shuffle=True)
    drawn = hvpspec.sample_batches(data, 4).frozen()
    assert (len(drawn), drawn.of) == (4, 10)
    first, second = (torch.cat([batch[0] for batch in drawn]) for _ in range(2))
    assert torch.equal(first, second)


def test_the_hessian_is_that_of_the_batches_drawn():
    """With unequal weights, as the last batch has fewer samples."""
    torch.manual_seed(0)
    x = torch.randn(47, 4, dtype=torch.float64)
    data = list(zip(x.split(5), x[:, :3].argmax(1).split(5), strict=True))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    seed = next(seed for seed in range(99) if 9 in hvpspec.sample_batches(data, 3, seed=seed).numbers)
    drawn = hvpspec.sample_batches(data, 3, seed=seed)
    inputs, targets = (torch.cat(parts) for parts in zip(*(data[number] for number in drawn.numbers), strict=True))
    whole = Case(model, "cross_entropy", [], lambda m: nn.functional.cross_entropy(m(inputs), targets))
    H = hvpspec.HessianOperator(model, "cross_entropy", drawn)
    product = H @ torch.eye(H.shape[0], dtype=torch.float64)
    assert torch.allclose(product, torch.as_tensor(explicit_hessian(whole)), rtol=0, atol=1e-12)
    assert H.batch_count() == 3


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "3", None])
def test_counts_that_are_none(count):
    with pytest.raises(InputError, match="count must be a whole number ≥ 1"):
        hvpspec.sample_batches(listed(), count)


def test_data_that_are_none():
    with pytest.raises(InputError, match="one-shot"):
        hvpspec.sample_batches(iter(listed()), 2)
