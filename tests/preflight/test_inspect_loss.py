"""Notes on how a loss is evaluated and weighed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hvpspec
from hvpspec.preflight import inspect_operator

X, Y = torch.randn(8, 4), torch.randint(0, 3, (8,))
DATA = [(X[:3], Y[:3]), (X[3:], Y[3:])]


def notes(loss, model=None, data=DATA, **options):
    H = hvpspec.HessianOperator(model or nn.Linear(4, 3), loss, data, dtype="float64", **options)
    found = inspect_operator(H)
    assert not found.refused
    return {finding.kind: str(finding) for finding in found.findings}


def test_nothing_is_said_of_a_plain_loss():
    assert notes("cross_entropy") == {}
    assert notes(lambda outputs, targets: F.cross_entropy(outputs, targets)) == {}


def test_noise_that_a_seed_fixes():
    def loss(model, batch):
        return F.cross_entropy(model(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])

    assert "fixed by the seed 7" in notes(loss, noise_seed=7)["noise"]


def test_a_sum_over_the_only_batch():
    found = notes(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"), data=[(X, Y)])
    assert "is a sum over the batch" in found["sum"]


def test_what_a_mean_was_found_to_be_over():
    y = Y.clone()
    y[1] = y[6] = 255
    data = [(X[:3], y[:3]), (X[3:], y[3:])]
    found = notes(lambda m, b: F.cross_entropy(m(b[0]), b[1], ignore_index=255), data=data)
    assert "a mean over batch[1] != 255" in found["weights"]


def test_tensors_that_are_held_constant_are_named():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()))

        def forward(self, outputs, targets):
            return F.cross_entropy(outputs, targets) * self.log_scale.exp() - self.log_scale

    assert "loss.log_scale" in notes(Weighted())["captured"]
    teacher = nn.Linear(4, 3).double()
    found = notes(lambda m, b: F.mse_loss(m(b[0]), teacher(b[0])))
    assert "a tensor of shape (3, 4)" in found["captured"]
    teacher.requires_grad_(False)
    assert notes(lambda m, b: F.mse_loss(m(b[0]), teacher(b[0]))) == {}


def test_what_the_loss_holds_in_another_precision_is_hinted_at():
    teacher = nn.Linear(4, 3)
    H = hvpspec.HessianOperator(
        nn.Linear(4, 3), lambda m, b: F.mse_loss(m(b[0]), teacher(b[0]).detach()), DATA, dtype="float64"
    )
    with pytest.raises(hvpspec.InputError, match="in float64: what the loss holds itself"):
        H.loss()


def test_a_model_that_computes_something_else_in_eval_mode():
    """As an exact Gaussian process, which predicts in eval mode."""

    class Predicting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) if self.training else self.layer(x).softmax(1)

    model = Predicting().train()
    assert "the Hessian is that of the loss in eval mode" in notes("cross_entropy", model)["modes"]
    assert model.training
    assert "modes" not in notes("cross_entropy", nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train())


@pytest.mark.parametrize("kind", ["dropout", "noise"])
def test_random_losses_are_refused_with_what_to_do(kind):
    def loss(model, batch):
        x = F.dropout(batch[0], 0.5) if kind == "dropout" else batch[0] + torch.randn_like(batch[0])
        return F.cross_entropy(model(x), batch[1]), len(x)

    H = hvpspec.HessianOperator(nn.Linear(4, 3), loss, DATA)
    (finding,) = inspect_operator(H).refused
    assert "--noise-seed" in finding.done


def test_dropout_that_is_no_layer_is_no_other_loss():
    class Dropping(nn.Linear):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.5, self.training))

    assert "modes" not in notes("cross_entropy", Dropping(4, 3).train())
