"""--train-mode and --reduction: what is differentiated, and that check, spectrum, track and verify agree on it."""

import json

import numpy as np
import pytest
import torch
from cli_files import call
from zoo import Case, explicit_hessian

TRAIN = '''
import torch
from torch import nn

class Detector(nn.Module):
    """Returns its losses in training mode, and predictions in eval mode."""
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    def forward(self, x, y):
        z = self.body(x)
        return {"boxes": (z - y).square().mean()} if self.training else [z]

def build(): return Detector()
def dropping():
    model = Detector()
    model.body[2] = nn.Dropout(0.25)
    return model
def batches():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    return [(x[:, :3], x[:, 3:])]
def loss(model, batch): return sum(model(*batch).values())

def plain(): return nn.Linear(3, 2)
def two_batches(): return [tuple(part[rows] for part in batches()[0]) for rows in (slice(5), slice(5, 12))]
def sum_of(z, y): return (z - y).square().sum()
of_torch = nn.MSELoss(reduction="sum")
'''
DETECTOR = ("--data", "train.py:batches", "--loss", "train.py:loss")
PLAIN = ("plain.pt", "--model", "train.py:plain", "--data", "train.py:two_batches", "--dtype", "float64", "--out", ".")
SHORT = ("-k", "3", "--only", "eigenvalues", "--tol", "1e-6")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place, space = tmp_path_factory.mktemp("modes"), {}
    (place / "train.py").write_text(TRAIN)
    exec(TRAIN, space)
    for name, build in (("model", "build"), ("dropping", "dropping"), ("plain", "plain")):
        torch.manual_seed(0)
        torch.save(space[build]().state_dict(), place / f"{name}.pt")
    return place


def exact(place):
    """Eigenvalues of the detector's Hessian in training mode, of largest magnitude first."""
    space = {}
    exec(TRAIN, space)
    model = space["build"]()
    model.load_state_dict(torch.load(place / "model.pt", weights_only=True))
    x, y = (part.double() for part in space["batches"]()[0])
    case = Case(model.double().train(), "", [], lambda m: (m.train().body(x) - y).square().mean())
    values = np.linalg.eigvalsh(explicit_hessian(case))
    return values[np.argsort(-abs(values))]


def test_a_loss_of_training_mode_alone(place):
    usual = ("model.pt", "--model", "train.py:build", *DETECTOR, "--dtype", "float64", *SHORT, "--out", ".")
    for command in ("spectrum", "check"):
        done = call(place, command, *usual)
        assert done.returncode == 2
        assert "the loss raised AttributeError: 'list' object has no attribute 'values' (train.py:" in done.stderr
        assert "; the model is in eval mode; " in done.stderr
        assert "or --train-mode." in done.stderr
    done = call(place, "spectrum", *usual, "--train-mode")
    assert done.returncode == 0, done.stderr
    assert "training mode, 1 batch" in done.stdout
    found = json.loads((place / "spectrum.json").read_text())
    values = [entry["value"] for entry in found["eigenvalues"]]
    assert np.allclose(sorted(values, key=lambda value: -abs(value)), exact(place)[:3], rtol=1e-6)
    assert found["provenance"]["options"]["train_mode"] is True
    kinds = {finding["kind"]: finding for finding in found["preflight"]["findings"]}
    assert "batch_norm" not in kinds
    assert kinds["batch_statistics"]["found"] == "normalisation with the statistics of each batch"
    assert "train_mode" in kinds
    assert call(place, "verify", ".").returncode == 0
    done = call(place, "check", *usual, "--train-mode")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "check.json").read_text())["provenance"]["options"]["train_mode"] is True
    done = call(place, "track", *usual[:-1], "series", "--train-mode")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((place / "series/track.json").read_text())["checkpoints"]
    assert row["lambda_max"] == pytest.approx(exact(place).max(), rel=1e-5)


def test_dropout_is_named_or_fixed(place):
    usual = ("dropping.pt", "--model", "train.py:dropping", *DETECTOR, *SHORT, "--train-mode", "--out", "dropping")
    done = call(place, "spectrum", *usual)
    assert done.returncode == 2
    assert "the loss is random: dropout in body.2; fix its random numbers with noise_seed=0 (--noise-seed 0)" in (
        done.stderr
    )
    assert call(place, "spectrum", *usual, "--noise-seed", "0").returncode == 0
    assert call(place, "verify", "dropping").returncode == 0


@pytest.mark.parametrize(
    ("options", "sums"),
    [
        (("--loss", "mse", "--reduction", "sum"), True),
        (("--loss", "train.py:sum_of", "--reduction", "sum"), True),
        (("--loss", "train.py:of_torch"), True),
        (("--loss", "train.py:of_torch", "--reduction", "mean"), False),
        (("--loss", "mse"), False),
    ],
)
def test_the_sum_and_the_mean(place, options, sums):
    """Squares of a linear model: 2 XᵀX, for each of two outputs; the mean is taken over 24 numbers."""
    done = call(place, "spectrum", *PLAIN, *options, *SHORT, "-k", "1", "--force")
    assert done.returncode == 0, done.stderr
    space = {}
    exec(TRAIN, space)
    X = torch.cat([torch.cat([x, torch.ones(len(x), 1)], 1) for x, _ in space["two_batches"]()]).double()
    expected = 2 * torch.linalg.eigvalsh(X.T @ X)[-1] / (1 if sums else 24)
    found = json.loads((place / "spectrum.json").read_text())
    assert found["eigenvalues"][0]["value"] == pytest.approx(float(expected), rel=1e-6)
    assert (found["provenance"]["options"].get("reduction") == "sum") == sums
    assert any(finding["kind"] == "sum" for finding in found["preflight"]["findings"]) == sums
    assert call(place, "verify", ".").returncode == 0


def test_what_is_asked_for_is_compared(place):
    for out, more in (("mean", ()), ("sum", ("--reduction", "sum"))):
        assert call(place, "spectrum", *PLAIN[:-1], out, "--loss", "mse", *SHORT, "-k", "1", *more).returncode == 0
    assert "differ in reduction: sum, not mean" in call(place, "compare", "mean", "sum").stderr
    done = call(place, "spectrum", *PLAIN[:-1], "sum", "--loss", "mse", *SHORT, "-k", "1")
    assert done.returncode == 2
    assert "--force" in done.stderr


def test_a_sum_or_a_mean_that_the_loss_is_not(place):
    done = call(place, "spectrum", *PLAIN, "--loss", "train.py:sum_of", "--force")
    assert done.returncode == 2
    assert 'reduction="sum" (--reduction sum)' in done.stderr
    done = call(place, "spectrum", *PLAIN, "--loss", "mse", "--reduction", "total")
    assert "'total' is not one of 'mean', 'sum'." in done.stderr
