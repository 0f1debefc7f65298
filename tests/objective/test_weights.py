"""What a loss is a mean over is measured: by cutting batches and joining neighbours."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import PROGRAMS
from programs.program import ENGINES, judge
from torch import nn
from user_programs import acceptable

import hvpspec
from hvpspec.errors import InputError
from hvpspec.objective.cutting import AXES, FIRST, CannotCut, cut, joined, length
from hvpspec.objective.noise import ConstantNoise, fixed_noise
from hvpspec.objective.objective import Objective

SLOW = {("finite-difference", "nn.LSTM"), ("finite-difference", "nn.TransformerEncoderLayer")}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_programs_as_people_write_them_are_right_or_refused(program, engine):
    outcome = judge(program, engine)
    assert acceptable(program, engine, outcome), outcome


# --- cutting ---


def test_parts_joined_are_the_whole():
    batch = {"x": torch.randn(5, 2), "names": ["a", "b", "c", "d", "e"], "more": (torch.arange(5), 3.0, None)}
    parts = [cut(batch, FIRST, 0, 2), cut(batch, FIRST, 2, 5)]
    assert [length(part, FIRST) for part in parts] == [2, 3]
    assert parts[0]["names"] == ["a", "b"]
    whole = joined(*parts, FIRST)
    assert torch.equal(whole["x"], batch["x"])
    assert torch.equal(whole["more"][0], batch["more"][0])
    assert whole["names"] == batch["names"]
    assert whole["more"][1:] == (3.0, None)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_what_cannot_be_cut_says_why(axis):
    with pytest.raises(CannotCut):
        length({"x": torch.ones(3), "y": torch.ones(4, 5)}, axis)
    with pytest.raises(CannotCut, match="no tensor" if not axis.itself else "is a dict"):
        length({"n": 3}, axis)


def test_batches_with_different_constants_cannot_be_joined():
    with pytest.raises(CannotCut, match="different float"):
        joined((torch.ones(2), 1.0), (torch.ones(2), 2.0), FIRST)
    with pytest.raises(CannotCut, match="shapes"):
        joined(torch.ones(2, 3), torch.ones(2, 4), FIRST)


# --- weights ---


def mean_under(mask, ignored_in_first):
    """Targets of which the first batch leaves none out: only later ones show what is counted."""
    x, y = torch.randn(12, 4).double(), torch.randint(0, 3, (12,))
    if ignored_in_first:
        y[1] = mask
    y[7] = y[9] = mask
    model = nn.Linear(4, 3).double()
    data = list(zip(x.split(4), y.split(4), strict=True))
    return model, (lambda m, b: F.cross_entropy(m(b[0]), b[1], ignore_index=mask)), data, (x, y)


@pytest.mark.parametrize("ignored_in_first", [True, False])
@pytest.mark.parametrize("mask", [-100, 255, 0])
def test_targets_that_are_left_out_are_not_counted(mask, ignored_in_first):
    model, loss, data, whole = mean_under(mask, ignored_in_first)
    objective = Objective(model, loss, data)
    assert objective.value().value == pytest.approx(float(loss(model, whole).detach()), rel=1e-14)
    assert objective.value().weight == sum(int((y != mask).sum()) for _, y in data)


def test_masks_equal_in_both_halves_show_when_neighbours_are_joined():
    """Each half of a batch has the same share of its targets: the batches alone do not show that these are counted."""
    x, y = torch.randn(8, 4).double(), torch.tensor([0, 1, 2, 1, -100, 1, -100, 2])
    model = nn.Linear(4, 3).double()
    value = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x[:4], y[:4]), (x[4:], y[4:])]).value()
    assert value.value == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-14)
    assert value.weight == 6


def test_equal_losses_do_not_hide_a_weight():
    """At zero every sample has the loss log 3, but samples have other second derivatives."""
    model, loss, data, whole = mean_under(-100, True)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    H = hvpspec.HessianOperator(model, loss, data)
    exact = hvpspec.HessianOperator(model, loss, [whole])
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    np.testing.assert_allclose(H @ v, exact @ v, rtol=1e-12)


def test_a_loss_without_a_mean_is_refused_only_where_the_weight_matters():
    x, y = torch.randn(8, 4), torch.randn(8, 1)

    def loss(m, batch):
        return F.mse_loss(m(batch[0]), batch[1]).sqrt()

    assert hvpspec.HessianOperator(nn.Linear(4, 1), loss, [(x, y)]).loss().batches == 1
    with pytest.raises(InputError, match=r"batch 0: the loss is no mean .* return \(mean loss, weight\)"):
        hvpspec.HessianOperator(nn.Linear(4, 1), loss, [(x, y), (x, y)]).loss()
    assert hvpspec.HessianOperator(nn.Linear(4, 1), loss, [(x, y), (x, y)], verify=False).loss().weight == 16


def test_a_sum_is_named():
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    data = [(x[:3], y[:3]), (x[3:], y[3:])]
    with pytest.raises(InputError, match=r"batch 0: the loss is a sum over the batch .* return the mean, or"):
        Objective(nn.Linear(4, 1), nn.MSELoss(reduction="none").forward and squares, data).value()
    alone = Objective(nn.Linear(4, 1), squares, [(x, y)])
    alone.value()
    assert alone.counting.is_sum


def squares(model, batch):
    return (model(batch[0]) - batch[1]).square().sum()


def test_a_loss_that_fails_on_halves_of_batches_is_trusted_where_all_batches_are_alike():
    def fixed(m, batch):
        return m(batch[0].reshape(4, 4)).square().mean()

    x = torch.randn(8, 4)
    assert Objective(nn.Linear(4, 1), fixed, [(x[:4],), (x[4:],)]).value().weight == 8

    def of_any(m, batch):
        if len(batch[0]) not in (3, 5):
            raise ValueError("other batches are not known")
        return m(batch[0]).square().mean()

    with pytest.raises(InputError, match="cannot be cut in two"):
        Objective(nn.Linear(4, 1), of_any, [(x[:3],), (x[3:],)]).value()


def test_single_samples_are_joined_with_their_neighbours():
    x, y = torch.randn(3, 5, 4).double(), torch.tensor([[0, 1, 2, 0, 1], [0, -100, -100, 1, 1], [2, 2, -100, 1, 0]])
    model = nn.Linear(4, 3).double()

    def loss(m, batch):
        return F.cross_entropy(m(batch[0]).flatten(0, 1), batch[1].flatten())

    value = Objective(model, loss, list(zip(x.split(1), y.split(1), strict=True))).value()
    assert value.value == pytest.approx(float(loss(model, (x, y)).detach()), rel=1e-14)


def test_the_models_own_loss_is_weighed_by_what_is_measured():
    """A model that leaves 255 out and does not shift, as segmentation models of Hugging Face."""

    class Segmenting(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, pixels, labels):
            logits = self.head(pixels)
            return SimpleNamespace(loss=F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=255))

    x, y = torch.randn(6, 7, 4), torch.randint(0, 3, (6, 7))
    y[torch.rand(6, 7) < 0.4] = 255
    model = Segmenting()
    data = [{"pixels": x[s], "labels": y[s]} for s in (slice(0, 2), slice(2, 6))]
    value = Objective(model, "model", data, dtype=torch.float64).value()
    assert value.weight == int((y != 255).sum())
    assert value.value == pytest.approx(float(model(x, y).loss.detach()), rel=1e-6)


def test_measuring_costs_three_forward_passes():
    calls = []

    def loss(m, batch):
        calls.append(len(batch[0]))
        return F.mse_loss(m(batch[0]), batch[1])

    data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(10)]
    objective = Objective(nn.Linear(4, 1), loss, data)
    objective.value()
    assert sum(calls) <= 80 * (1 + 3) + 3 * 8  # the loss itself, the measurement, and the first batch to begin with
    calls.clear()
    objective.value()
    objective.with_(dtype=torch.float64).value()
    assert sum(calls) == 160


def test_the_model_and_the_generators_are_as_before():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(8, 3)
    loss = lambda m, b: F.mse_loss(m(b[0]) + torch.randn(len(b[0]), 3), b[1])  # noqa: E731
    hvpspec.HessianOperator(model, loss, [(x[:3], y[:3]), (x[3:], y[3:])], noise_seed=1).loss()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


# --- noise ---


def test_fixed_noise_repeats_and_differs_between_batches():
    def drawn(seed, index):
        with fixed_noise(seed, index, torch.device("cpu")):
            return torch.randn(3).tolist(), np.random.rand(2).tolist()  # noqa: NPY002

    assert drawn(1, 0) == drawn(1, 0)
    assert drawn(1, 0)[0] != drawn(1, 1)[0]
    assert drawn(1, 0)[1] != drawn(2, 0)[1]


def test_constant_noise_keeps_to_what_each_operation_can_draw():
    with ConstantNoise():
        assert torch.randn(2).tolist() == torch.rand(3)[:2].tolist()
        assert torch.randint(5, 9, (3,)).tolist() == [5, 5, 5]
        assert torch.randint(9, (3,)).tolist() == [0, 0, 0]
        assert torch.randperm(4).tolist() == [0, 1, 2, 3]
        assert torch.bernoulli(torch.full((3,), 0.5)).tolist() == [1, 1, 1]


def test_a_noise_seed_that_is_none():
    with pytest.raises(InputError, match="noise_seed must be a whole number"):
        hvpspec.HessianOperator(nn.Linear(1, 1), "mse", [(torch.ones(1, 1), torch.ones(1, 1))], noise_seed=-1)


# --- conventions ---


def test_a_loss_that_is_neither_says_what_each_way_of_calling_it_raised():
    def loss(first, second):
        return first.nothing + second

    with pytest.raises(InputError, match=r"called as loss\(model, batch\).*'nothing'.*as loss\(outputs, targets\)"):
        Objective(nn.Linear(2, 1), loss, [(torch.ones(1, 2), torch.ones(1, 1))]).value()


def test_an_error_after_the_model_was_called_is_the_losss_own():
    def loss(model, batch):
        return model(batch[0]).sum() + undefined  # noqa: F821

    with pytest.raises(InputError, match="batch 0: the loss raised NameError"):
        Objective(nn.Linear(2, 1), loss, [(torch.ones(1, 2), torch.ones(1, 1))]).value()


def test_a_criterion_follows_its_own_values():
    """A recording holds the criterion's buffers as constants, and is made again when they change."""

    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("temperature", torch.tensor(2.0))

        def forward(self, outputs, targets):
            return F.cross_entropy(outputs / self.temperature, targets)

    criterion, model = Tempered(), nn.Linear(4, 3)
    data = [(torch.randn(6, 4), torch.randint(0, 3, (6,)))]
    H = hvpspec.HessianOperator(model, criterion, data, engine="linearized", dtype="float64")
    v = torch.randn(15).double()
    H @ v
    criterion.temperature.fill_(0.5)
    expected = hvpspec.HessianOperator(model, criterion, data, engine="autograd", dtype="float64") @ v
    torch.testing.assert_close(H @ v, expected, rtol=1e-12, atol=0)
    assert criterion.temperature.dtype == torch.float32
