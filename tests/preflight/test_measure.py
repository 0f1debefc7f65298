"""What the preflight measures of a sound problem, and which data, losses and models it refuses."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from preflight.problems import Shuffled, explicit, kinds, problem
from torch import nn

import hvpspec
from hvpspec import HessianOperator, PreconditionedOperator
from hvpspec.errors import InputError
from hvpspec.objective.batches import frozen
from hvpspec.options import SpectrumOptions
from hvpspec.preflight import Preflight, expected_loss, inspect_operator
from hvpspec.report.terminal import measured_lines


def test_a_sound_problem_is_measured():
    H = problem(dtype="float64")
    found = inspect_operator(H, options=SpectrumOptions(k=3, rtol=0.05))
    assert found.findings == ()
    assert found.loss == H.loss().value
    assert found.symmetry <= 1e-12
    assert found.repeatability <= 1e-12
    assert found.difference <= 1e-6
    assert found.difference <= 10 * found.difference_bound
    assert any("agree to" in line for line in measured_lines(found))
    assert found.seconds > 0
    assert 5 <= found.hvps <= 13
    assert 0 < found.expected_hvps <= found.most_hvps
    assert 0 < found.expected_seconds <= found.most_seconds
    assert 0 < found.expected_memory <= found.most_memory
    assert Preflight.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_data_that_change_are_refused_unless_frozen():
    found = inspect_operator(problem(data=Shuffled()))
    assert kinds(found, "refused") == {"data"}
    assert "--freeze-data" in str(found.refused[0])
    assert not inspect_operator(problem(data=frozen(Shuffled()))).refused


class Augmented:
    """The same batches with a little noise, other on each pass: over many samples the loss hardly shows it."""

    def __init__(self, dtype):
        self.generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(4000, 4, generator=self.generator, dtype=dtype), torch.arange(4000) % 3

    def __iter__(self):
        x = self.x + 0.005 * torch.randn(self.x.shape, generator=self.generator, dtype=self.x.dtype)
        return zip(x.split(1000), self.y.split(1000), strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_little_augmentation_of_many_samples_is_seen(dtype):
    found = inspect_operator(problem(data=Augmented(dtype), dtype=dtype))
    assert kinds(found, "refused") == {"data"}
    assert not inspect_operator(problem(data=frozen(Augmented(dtype)), dtype=dtype)).refused


def test_losses_that_cancel_are_not_taken_for_data_that_change():
    """float32 batches in another order, whose losses of ±1 leave a mean of next to nothing."""

    def loss(model, batch):
        x, sign = batch
        return (sign * (1 + 0.1 * model(x).tanh())).mean()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 4, generator=generator)
    sign = torch.tensor([1.0, -1.0]).repeat(256)[:, None]

    class Reordered:
        def __iter__(self):
            order = torch.randperm(512, generator=generator)
            return zip(x[order].split(32), sign[order].split(32), strict=True)

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    assert not inspect_operator(problem(model=model, loss=loss, data=Reordered())).refused


def test_frozen_data_are_copies():
    buffer = torch.zeros(2, 3)

    def batches():
        for value in (1.0, 2.0):
            yield {"x": buffer.fill_(value)}

    class Loader:
        def __iter__(self):
            return batches()

    assert [float(batch["x"][0, 0]) for batch in frozen(Loader())] == [1, 2]


def test_another_order_of_the_same_samples_is_no_change():
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    assert not inspect_operator(problem(data=loader)).refused


def test_a_random_forward_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5)

    found = inspect_operator(problem(model=Noisy(4, 3)))
    assert kinds(found, "refused") == {"random"}
    assert "one and the same batch" in found.refused[0].found


def test_frozen_data_have_the_hessian_of_their_first_pass():
    H = problem(data=frozen(Shuffled()), dtype="float64")
    exact = explicit(H.objective.model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), list(Shuffled()))
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), exact, atol=1e-12)


def test_the_loss_that_was_expected():
    value = problem().loss().value
    assert not inspect_operator(problem(), expect=f"{value:.3f}").refused
    assert kinds(inspect_operator(problem(), expect=f"{value + 0.01:.3f}"), "refused") == {"loss"}
    assert kinds(inspect_operator(problem(), expect=f"{value + 0.001:.3f}"), "refused") == {"loss"}
    for text in ("1e2", "1E+1", "100"):
        assert kinds(inspect_operator(problem(), expect=text), "refused") == {"loss"}
    assert not inspect_operator(problem(), expect=repr(value)).refused  # all digits: rounding is let pass
    assert expected_loss("0.043") == (0.043, pytest.approx(0.0005))
    assert expected_loss("1e-3") == (0.001, pytest.approx(0.0005))
    assert expected_loss("1.5e3") == (1500, 0.5)
    for text in ("", "abc", "nan", "inf"):
        with pytest.raises(hvpspec.InputError, match="--expect-loss"):
            expected_loss(text)


def test_it_can_be_left_out():
    H = problem()
    found = inspect_operator(H, measure=False)
    assert H.hvps == 0
    assert found.symmetry is None
    assert found.loss is not None


def test_a_loss_of_another_model_is_refused():
    model, other = nn.Linear(4, 3), nn.Linear(4, 3)
    H = hvpspec.HessianOperator(
        model, lambda m, b: F.mse_loss(other(b[0]), b[1]), [(torch.ones(5, 4), torch.ones(5, 3))]
    )
    with pytest.raises(InputError, match="with another model"):
        inspect_operator(H)


@pytest.mark.parametrize("given", ["1e400", "-1e400", "inf", "nan", "1e-1000000000000000000000"])
def test_an_expected_loss_is_a_number_that_a_loss_can_be(given):
    with pytest.raises(InputError, match="give the loss as a number"):
        expected_loss(given)


@pytest.mark.parametrize("loss", ["linear", "piecewise linear"])
def test_a_zero_hessian_is_said_to_be_one(loss):
    """In the preflight and in the notes of the result: it is right, and rarely what was meant."""
    given = {"linear": lambda model, batch: model(batch[0]).mean(), "piecewise linear": nn.L1Loss()}[loss]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    H = hvpspec.HessianOperator(nn.Linear(4, 3).double(), given, [(x, x[:, :3] + 7)])
    found = inspect_operator(H)
    assert kinds(found, "note") == {"zero"}
    assert not found.refused
    for only in (None, "eigenvalues", "trace", "frobenius_norm", "density"):
        result = hvpspec.spectrum(H, 2, only=only)
        assert ("all products are exactly zero" in result.summary()) == (only != "trace")
    assert "products are exactly zero" not in hvpspec.spectrum(np.diag([1.0, 0.0, 0.0]), 2).summary()


def test_of_a_preconditioned_matrix_its_own_spectrum_is_inspected():
    """Of a matrix with a few large eigenvalues that the preconditioner turns into the identity."""

    def least_squares(values):
        model = nn.Linear(len(values), 1, bias=False, dtype=torch.float64)
        data = [(torch.diag(values.sqrt()), torch.zeros(len(values), 1, dtype=torch.float64))]
        return HessianOperator(model, "mse", data, engine="autograd")

    values = torch.logspace(0, -6, 300, dtype=torch.float64)
    options = SpectrumOptions(k=3, rtol=0.01, only=("eigenvalues", "trace"))
    H, same = least_squares(values), least_squares(torch.ones(300, dtype=torch.float64))
    A = PreconditionedOperator(H, values.rsqrt())
    plain, found, expected = (
        inspect_operator(H, options=options),
        inspect_operator(H, options=options, preconditioned=A),
        inspect_operator(same, options=options),
    )
    counts = [(one.expected_hvps, one.most_hvps) for one in (plain, found, expected)]
    assert counts[1] == counts[2] != counts[0]
    assert not found.refused
    assert found.hvps == expected.hvps
