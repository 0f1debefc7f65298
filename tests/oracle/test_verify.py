"""The first product is checked once: a loss that is random, of another model, or wrongly differentiated is refused."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.rough_models import MODELS, Single, images, net
from oracle.rough_models import mlp as network
from torch import nn
from zoo import CASES

import hvpspec
from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.oracle.checks.verify import verify
from hvpspec.oracle.finite_difference import compared
from hvpspec.results.preflight import agree

DATA = [(torch.randn(6, 4), torch.randn(6, 3)), (torch.randn(4, 4), torch.randn(4, 3))]


def mlp(activation=nn.Tanh):
    return nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3))


class Detached(torch.autograd.Function):
    """x³ whose backward cannot be differentiated: it forgets what it saved."""

    @staticmethod
    def forward(ctx, x):
        ctx.saved = x.detach()
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3 * ctx.saved**2


class Rounded(torch.autograd.Function):
    """A straight-through estimator: no function has this gradient."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(4 * x) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def wrong(model, batch):
    return F.mse_loss(Detached.apply(model(batch[0])), batch[1])


def slightly_wrong(model, batch):
    outputs = model(batch[0])
    return F.mse_loss(outputs + 1e-3 * Detached.apply(outputs), batch[1])


def straight_through(model, batch):
    return F.mse_loss(Rounded.apply(torch.tanh(model(batch[0]))), batch[1])


def stopped(model, batch):
    outputs = model(batch[0])
    return (outputs * outputs.detach()).square().mean()


@pytest.mark.parametrize("loss", [wrong, slightly_wrong, straight_through, stopped])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["autograd", "linearized", "auto"])
def test_a_wrong_second_derivative_is_refused(loss, dtype, engine):
    H = hvpspec.HessianOperator(mlp(), loss, DATA, dtype=dtype, engine=engine)
    with pytest.raises(InputError, match="differences of its gradient"):
        H @ np.ones(H.shape[0])
    assert np.isfinite(
        hvpspec.HessianOperator(mlp(), loss, DATA, dtype=dtype, verify=False) @ np.ones(H.shape[0])
    ).all()


class Off(torch.autograd.Function):
    """x³, whose second derivative is off by a share."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.save_for_backward(x)
        ctx.share = share
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        slope = 3 * ctx.saved_tensors[0] ** 2
        return gradient * (slope + ctx.share * (slope.detach() - slope)), None


class OffAtOnce(torch.autograd.Function):
    """tanh, whose first derivative is off by a share: no function has this gradient."""

    @staticmethod
    def forward(ctx, x, share):
        ctx.save_for_backward(x)
        ctx.share = share
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 + ctx.share) * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2), None


class SavedOutput(torch.autograd.Function):
    """Softmax that keeps its output as a constant, as some implementations of entmax do."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = torch.softmax(x, -1)
        return ctx.kept.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.kept * (gradient - (gradient * ctx.kept).sum(-1, keepdim=True))


class FusedNorm(torch.autograd.Function):
    """Weight normalisation whose norm is a constant in the backward, as in torch's fused kernel."""

    @staticmethod
    def forward(ctx, v, g):
        ctx.save_for_backward(v, g)
        ctx.norm = v.norm(dim=1, keepdim=True)
        return v * (g / ctx.norm)

    @staticmethod
    def backward(ctx, gradient):
        v, g = ctx.saved_tensors
        along = (gradient * v).sum(1, keepdim=True)
        return gradient * (g / ctx.norm) - v * (g / ctx.norm**3) * along, along / ctx.norm


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.rand(3, 1) + 0.5)

    def forward(self, x):
        return x @ FusedNorm.apply(self.v, self.g).T


class Apply(nn.Module):
    def __init__(self, function, *args):
        super().__init__()
        self.function, self.args = function, args

    def forward(self, x):
        return self.function(x, *self.args)


def between(middle):
    return net(nn.Linear(4, 8), middle, nn.Linear(8, 3))


SHARES = (1.0, 1e-3, 1e-4)
WRONG = {
    **{f"off by {s}": lambda s=s: between(Apply(Off.apply, s)) for s in SHARES},
    **{f"off by {s}, ReLU": lambda s=s: between(nn.Sequential(nn.ReLU(), Apply(Off.apply, s))) for s in SHARES},
    "saved output": lambda: between(Apply(SavedOutput.apply)),
    "fused weight norm": lambda: net(Normed()),
}  # fmt: skip
NO_FUNCTION = {
    **{f"off at once by {s}": lambda s=s: between(Apply(OffAtOnce.apply, s)) for s in SHARES},
    "straight through": lambda: between(nn.Sequential(nn.Tanh(), Apply(Rounded.apply))),
    "stop-gradient": lambda: between(Apply(lambda x: torch.tanh(x) * x.detach())),
    "stop-gradient in float32": lambda: between(Single(Apply(lambda x: torch.tanh(x) * x.detach()))),
}


@pytest.mark.parametrize("name", [*WRONG, *NO_FUNCTION])
def test_a_product_that_is_slightly_wrong_is_refused_and_the_reason_told(name):
    for seed in range(3):
        torch.manual_seed(seed)
        made = {**WRONG, **NO_FUNCTION}[name]()
        with pytest.raises(InputError, match="differences of its gradient") as refused:
            verify(Objective(made.model, made.loss, [made.batch]))
        assert ("no function has this gradient" in str(refused.value).lower()) == (name in NO_FUNCTION)


@pytest.mark.parametrize("name", MODELS)
def test_no_right_one_is_that_is_hard_to_difference(name):
    for seed in range(2):
        torch.manual_seed(seed)
        made = MODELS[name]()
        verify(Objective(made.model, made.loss, [made.batch]))
        found = compared(Objective(made.model, made.loss, [made.batch]))
        assert agree(found.off, found.bound)


KINKS = {
    "ReLU": lambda: network(nn.ReLU(), 100, samples=100),
    "hard tanh": lambda: network(nn.Hardtanh(-0.3, 0.3), 40, samples=100),
    "max pooling": lambda: images(nn.MaxPool2d(2), nn.ReLU()),
    "abs": lambda: net(nn.Linear(4, 40), Apply(torch.abs), nn.Linear(40, 3), samples=60),
    "ReLU in float32": lambda: net(nn.Linear(4, 32), Single(nn.ReLU()), nn.Linear(32, 3), samples=60),
}


@pytest.mark.parametrize("name", KINKS)
def test_no_seed_of_kinks_is_a_contradiction(name):
    for seed in range(8):
        torch.manual_seed(seed)
        made = KINKS[name]()
        verify(Objective(made.model, made.loss, [made.batch]))


def test_a_flat_point_of_a_quartic_is_no_contradiction():
    """The gradient is odd there, so that one difference has no error to show, and is not the product."""
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    verify(Objective(model, lambda m, batch: m(batch[0]).pow(4).sum(), [(torch.randn(5, 3),)]))


def test_it_costs_two_gradients_and_a_forward_pass():
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        return F.mse_loss(model(batch[0]), batch[1])

    objective = Objective(mlp(), loss, DATA, measure=False)
    objective.settle()
    assert calls == 1
    verify(objective)
    assert calls == 1 + 4  # for the product, once more, and on either side


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_right_one_is(case, dtype):
    made = CASES[case]()
    H = hvpspec.HessianOperator(made.model, made.loss, made.data, dtype=dtype)
    H @ torch.randn(H.shape[0], dtype=dtype)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.GELU, nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinks_are_no_contradiction(activation, dtype):
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 3))
        H = hvpspec.HessianOperator(model, "mse", DATA, dtype=dtype)
        H @ np.ones(H.shape[0], dtype)


def test_a_random_loss_is_refused():
    def loss(model, batch):
        return F.mse_loss(model(batch[0] + 0.5 * torch.randn_like(batch[0])), batch[1])

    for engine in ("autograd", "linearized", "auto"):
        H = hvpspec.HessianOperator(mlp(), loss, DATA, engine=engine)
        with pytest.raises(InputError, match="the loss is random"):
            hvpspec.spectrum(H, 1, rtol=0.5)


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_noise_of_a_generator_that_is_seeded_in_the_loss_stays_the_same(engine):
    """A recording would go on drawing from the generator that it holds."""

    def loss(model, batch):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(batch[0].shape, generator=generator, dtype=batch[0].dtype)
        return F.mse_loss(model(batch[0] + noise), batch[1])

    model = mlp()
    H = hvpspec.HessianOperator(model, loss, DATA, dtype="float64", engine=engine)
    plain = hvpspec.HessianOperator(model, loss, DATA, dtype="float64", engine="autograd")
    v = np.ones(H.shape[0])
    for _ in range(3):
        np.testing.assert_allclose(H @ v, plain @ v, rtol=1e-12)


def test_a_loss_of_another_model_is_refused():
    other = mlp()
    H = hvpspec.HessianOperator(mlp(), lambda model, batch: F.mse_loss(other(batch[0]), batch[1]), DATA)
    with pytest.raises(InputError, match="is it computed with another model"):
        H @ np.ones(H.shape[0])


def test_a_teacher_is_a_constant():
    teacher, model = mlp(), mlp()

    def loss(m, batch):
        return F.mse_loss(m(batch[0]), teacher(batch[0]))

    v = torch.randn(sum(p.numel() for p in model.parameters()))
    fixed = [(x, teacher(x).detach()) for x, _ in DATA]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(
            hvpspec.HessianOperator(model, loss, DATA) @ v,
            hvpspec.HessianOperator(model, lambda m, batch: F.mse_loss(m(batch[0]), batch[1]), fixed) @ v,
        )


def test_it_is_looked_at_once():
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        return F.mse_loss(model(batch[0]), batch[1]), len(batch[0])

    H = hvpspec.HessianOperator(mlp(), loss, DATA, engine="autograd")
    H @ np.ones(H.shape[0])
    first, calls = calls, 0
    H @ np.ones(H.shape[0])
    assert calls == len(DATA)
    # Twice at the point and once on either side; two batches, their halves and two of these joined to know the weight.
    assert first <= len(DATA) + 4 + 9


def test_what_it_costs(monkeypatch):
    """A product (two backward passes) and two gradients of the first batch, which is evaluated at three points."""
    H = hvpspec.HessianOperator(mlp(), "mse", DATA)
    batches, passes, run = [], [], torch.autograd._engine_run_backward

    def counted(*args, **kwargs):
        passes.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", counted)
    H.objective.model.register_forward_hook(lambda module, args, result: batches.append(args[0]))
    verify(H.objective)
    assert len(passes) <= 4
    assert len(batches) <= 4
    assert all(len(x) == len(DATA[0][0]) for x in batches)


@pytest.fixture
def large_models(monkeypatch):
    """Every model counts as one."""
    monkeypatch.setattr("hvpspec.oracle.checks.verify._SAMPLES_TIMES_PARAMETERS", 0)


X, Y = torch.randn(40, 4), torch.randn(40, 3)
BATCHES = {
    "tensors": (X, Y),
    "dict": {"x": X, "y": Y},
    "time first": (X.expand(5, 40, 4), Y.expand(5, 40, 3)),
    "list of samples": list(zip(X, Y, strict=True)),
}


@pytest.mark.usefixtures("large_models")
@pytest.mark.parametrize("form", BATCHES)
def test_a_large_model_is_looked_at_on_a_few_samples(form):
    seen = []

    def loss(model, batch):
        if form == "list of samples":
            x, y = (torch.stack(parts) for parts in zip(*batch, strict=True))
        else:
            x, y = (batch["x"], batch["y"]) if form == "dict" else batch
        seen.append(x.shape[-2])
        return F.mse_loss(model(x), y)

    objective = Objective(mlp(), loss, [BATCHES[form]] * 2)
    objective.settle()
    seen.clear()
    verify(objective)
    # Any dimension that the loss is a mean over will do: the first one here has few entries.
    assert seen == [40 if form == "time first" else 16] * 4


@pytest.mark.usefixtures("large_models")
@pytest.mark.parametrize("loss", [wrong, slightly_wrong, straight_through])
def test_what_is_wrong_is_seen_there_as_well(loss):
    with pytest.raises(InputError, match="products of this loss are wrong"):
        verify(Objective(mlp(), loss, [(X, Y)]))


@pytest.mark.usefixtures("large_models")
def test_a_batch_that_must_stay_whole_is_looked_at_whole():
    def whole(model, batch):
        return F.mse_loss(model(batch[0]).reshape(40, 3), batch[1].reshape(40, 3))

    verify(Objective(mlp(), whole, [(X, Y)], measure=False))
    with pytest.raises(InputError, match="products of this loss are wrong"):
        verify(Objective(mlp(), lambda m, batch: whole(m, batch) + 0.1 * wrong(m, batch), [(X, Y)], measure=False))
