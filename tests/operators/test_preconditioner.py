"""What adam_preconditioner says against torch.optim itself: its updates, and where its steps begin to diverge."""

import copy
import math

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.errors import InputError

T = 4  # steps that the optimizers of the tests have made: few, so that bias corrections matter


def trained(make, *, dtype=torch.float64, steps=T, model=None):
    """A small model after some steps of an optimizer, and that."""
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).to(dtype)
    X, y = torch.randn(8, 3, dtype=dtype), torch.randn(8, 1, dtype=dtype)
    optimizer = make(model)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), y).backward()
        before = copy.deepcopy(dict(model.named_parameters()))
        optimizer.step()
    if steps:
        optimizer.change = {name: p.detach() - before[name].detach() for name, p in model.named_parameters()}
    return model, optimizer


def of(name, **options):
    """A function that makes the optimizer; with lr=None for groups by their own."""
    return lambda model: getattr(torch.optim, name)(model.parameters(), **{"lr": 0.05, **options})


# --- the scale, against the updates of torch.optim -------------------------------------------------------------------

ADAM = {
    "Adam": of("Adam", betas=(0.8, 0.97)),
    "large eps": of("Adam", eps=0.1),
    "amsgrad": of("Adam", amsgrad=True),
    "AdamW": of("AdamW", weight_decay=0.0),
    "foreach": of("Adam", foreach=True),
    "fused": of("Adam", fused=True),
    "lr as a tensor": of("Adam", lr=torch.tensor(0.02, dtype=torch.float64)),
}


@pytest.mark.parametrize("make", ADAM.values(), ids=ADAM)
def test_adams_update_is_that_of_its_scale(make):
    model, optimizer = trained(make)
    found = hvpspec.adam_preconditioner(optimizer, model)
    for name, parameter in model.named_parameters():
        mean = optimizer.state[parameter]["exp_avg"] / (1 - found.betas[0] ** T)
        torch.testing.assert_close(
            optimizer.change[name], -found.lr * mean * found.scale[name] ** 2, rtol=1e-12, atol=1e-14
        )
    assert (found.step, found.shift, found.decay) == (T, 0, 0)


def test_adams_update_in_float32():
    model, optimizer = trained(ADAM["Adam"], dtype=torch.float32)
    found = hvpspec.adam_preconditioner(optimizer, model)
    for name, parameter in model.named_parameters():
        mean = optimizer.state[parameter]["exp_avg"] / (1 - found.betas[0] ** T)
        torch.testing.assert_close(
            optimizer.change[name], -found.lr * mean * found.scale[name] ** 2, rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(
    ("make", "rate"),
    [
        (of("RMSprop"), 0.05),
        (of("RMSprop", centered=True, eps=1e-3), 0.05),
        (of("Adagrad", lr_decay=0.5), 0.05 / (1 + 0.5 * (T - 1))),
        (of("Adagrad", initial_accumulator_value=0.3), 0.05),
        (of("SGD"), 0.05),
    ],
)
def test_updates_without_momentum(make, rate):
    model, optimizer = trained(make)
    found = hvpspec.adam_preconditioner(optimizer, model)
    assert found.threshold == pytest.approx(2 / rate, rel=1e-14)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            optimizer.change[name], -rate * parameter.grad * found.scale[name] ** 2, rtol=1e-12, atol=1e-14
        )


# --- the threshold, against one linearised step of torch.optim --------------------------------------------------------

MOMENTUM = {"Adam": "exp_avg", "AdamW": "exp_avg", "RMSprop": "momentum_buffer", "SGD": "momentum_buffer"}


def frozen_step(optimizer, model, H, x, momentum):
    """One real step on ½ xᵀHx from x and this momentum, with second moments that are the same after it.

    They are set to what the step turns into those of `optimizer`, and so is the count of steps.
    """
    model, optimizer = copy.deepcopy((model, optimizer))
    sizes = [p.numel() for p in model.parameters()]
    gradients = (H @ x).split(sizes)
    parts = zip(model.parameters(), x.split(sizes), gradients, momentum.split(sizes), strict=True)
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for p, value, gradient, m in parts:
        group, state = options[id(p)], optimizer.state[p]
        p.data.copy_(value.view_as(p))
        p.grad = gradient.view_as(p).clone()
        seen = p.grad if group.get("decoupled_weight_decay") else p.grad + group["weight_decay"] * p.data
        keep = group["betas"][1] if "betas" in group else group.get("alpha", 1.0)
        for entry, power in (("exp_avg_sq", 2), ("square_avg", 2), ("grad_avg", 1)):
            if entry in state:
                state[entry] = (state[entry] - (1 - keep) * seen**power) / keep
        if "sum" in state:
            state["sum"] = state["sum"] - seen**2
        if "step" in state:
            state["step"] = state["step"] - 1
        if (name := MOMENTUM.get(type(optimizer).__name__)) in state:
            state[name] = m.view_as(p).clone()
    optimizer.step()
    after = [optimizer.state[p].get(MOMENTUM.get(type(optimizer).__name__)) for p in model.parameters()]
    moved = [torch.zeros(n, dtype=x.dtype) if m is None else m.reshape(-1) for m, n in zip(after, sizes, strict=True)]
    return torch.cat([*(p.detach().reshape(-1) for p in model.parameters()), *moved])


def radius(optimizer, model, H):
    """The spectral radius of the linear map that such a step is."""
    n = len(H)
    basis = torch.eye(2 * n, dtype=H.dtype) * 1e-3  # a step is linear; small, so that squares stay exact
    columns = [frozen_step(optimizer, model, H, column[:n], column[n:]) for column in basis]
    return float(torch.linalg.eigvals(torch.stack(columns, 1) / 1e-3).abs().max())


def groups(name, first, second, **common):
    """With weights in one group and biases in another."""

    def make(model):
        weights = [p for p in model.parameters() if p.ndim > 1]
        biases = [p for p in model.parameters() if p.ndim == 1]
        both = [{"params": weights, **first}, {"params": biases, **second}]
        return getattr(torch.optim, name)(both, **{"lr": 0.05, **common})

    return make


RULES = {
    "Adam": of("Adam"),
    "Adam with other betas": of("Adam", betas=(0.3, 0.9)),
    "Adam without momentum": of("Adam", betas=(0.0, 0.9)),
    "Adam with L2": of("Adam", weight_decay=0.4),
    "amsgrad with L2": of("Adam", amsgrad=True, weight_decay=0.4),
    "AdamW": of("AdamW", lr=0.2, weight_decay=0.8),
    "AdamW, decay and no decay": groups("AdamW", {"weight_decay": 0.9}, {"weight_decay": 0.0}, lr=0.4),
    "AdamW, several rates": groups("AdamW", {"lr": 0.3}, {"lr": 0.1}, weight_decay=0.5),
    "Adam, L2 in one group": groups("Adam", {"weight_decay": 0.9}, {"weight_decay": 0.0}),
    "Adam, several eps and β2": groups("Adam", {"eps": 0.1, "betas": (0.9, 0.9)}, {"eps": 1e-3, "betas": (0.9, 0.99)}),
    "fused AdamW": of("AdamW", fused=True, weight_decay=0.8, lr=0.2),
    "RMSprop": of("RMSprop"),
    "RMSprop with momentum": of("RMSprop", momentum=0.7, weight_decay=0.3),
    "RMSprop, centered": of("RMSprop", centered=True, momentum=0.5, eps=1e-2),
    "Adagrad": of("Adagrad", lr_decay=0.3, weight_decay=0.2),
    "SGD": of("SGD"),
    "SGD with momentum": of("SGD", momentum=0.9, weight_decay=0.1),
    "SGD with dampening": of("SGD", momentum=0.8, dampening=0.4),
    "Nesterov": of("SGD", momentum=0.9, nesterov=True),
    "SGD, several rates": groups("SGD", {"lr": 0.2}, {"lr": 0.03}, momentum=0.6),
}


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_steps_of_torch_diverge_from_the_threshold_on(make):
    model = nn.Linear(2, 1).double()
    optimizer = make(model)
    for _ in range(T):
        optimizer.zero_grad()
        (model(torch.randn(5, 2, dtype=torch.float64)) ** 2).mean().backward()
        optimizer.step()
    found = hvpspec.adam_preconditioner(optimizer, model)
    scale = torch.cat([found.scale[name].reshape(-1) for name, _ in model.named_parameters()])
    by_name = found.shift if isinstance(found.shift, dict) else dict.fromkeys(found.scale, found.shift)
    shift = torch.cat([torch.full((p.numel(),), by_name[name]).double() for name, p in model.named_parameters()])
    root = torch.randn(3, 3, dtype=torch.float64)
    S = root @ root.T + torch.eye(3)
    top = float(torch.linalg.eigvalsh(scale[:, None] * S * scale).max())
    for factor, stable in ((0.999, True), (1.001, False)):
        H = S * (factor * found.threshold / top) - torch.diag(shift)
        A = hvpspec.PreconditionedOperator(H, scale, shift)
        assert torch.linalg.eigvalsh(A @ torch.eye(3, dtype=torch.float64)).max() == pytest.approx(
            factor * found.threshold, rel=1e-12
        )
        assert (radius(optimizer, model, H) < 1) == stable


def test_thresholds_by_hand():
    model, optimizer = trained(of("AdamW", lr=0.1, weight_decay=0.3))
    found = hvpspec.adam_preconditioner(optimizer, model)
    assert found.threshold == pytest.approx((2 - 0.03) * 1.9 / (0.1 * 0.1) * (1 - 0.9**T), rel=1e-14)
    assert (found.kind, found.lr, found.betas, found.decay) == ("AdamW", 0.1, (0.9, 0.999), 0.3)
    found = hvpspec.adam_preconditioner(optimizer, model, lr=0.2, betas=(0.5, 0.999))
    assert found.threshold == pytest.approx((2 - 0.06) * 1.5 / (0.5 * 0.2) * (1 - 0.5**T), rel=1e-14)
    model, optimizer = trained(of("SGD", momentum=0.9, nesterov=True))
    assert hvpspec.adam_preconditioner(optimizer, model).threshold == pytest.approx(3.8 / (2.8 * 0.05), rel=1e-14)


def test_given_options_take_the_place_of_the_optimizers_own():
    model, optimizer = trained(of("Adam"))
    own, other = (hvpspec.adam_preconditioner(optimizer, model, eps=eps) for eps in (None, 0.5))
    for name in own.scale:
        torch.testing.assert_close(1 / other.scale[name] ** 2, 1 / own.scale[name] ** 2 - 1e-8 + 0.5)
    with pytest.raises(InputError, match="has no betas"):
        hvpspec.adam_preconditioner(trained(of("SGD"))[1], model, betas=(0.9, 0.99))


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(optimizer, entry, change):
    """The state dict with an entry of the first parameter's state changed."""
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0][entry] = change(saved["state"][0][entry])
    return saved


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("step", lambda step: step * 0, "no step with 0.weight yet"),
        ("step", lambda step: None, "does not say how many steps"),
        ("exp_avg_sq", lambda v: -v, "give no scale"),
        ("exp_avg_sq", lambda v: v * math.nan, "give no scale"),
        ("exp_avg_sq", lambda v: v.to_sparse(), "exp_avg_sq for 0.weight is sparse"),
        ("exp_avg_sq", lambda v: v.to(torch.uint8), "8-bit"),
        ("exp_avg_sq", lambda v: None, "has no exp_avg_sq"),
    ],
)
def test_moments_that_cannot_be_used(entry, change, message):
    model, optimizer = trained(of("Adam"))
    with pytest.raises(InputError, match=message):
        hvpspec.adam_preconditioner(changed(optimizer, entry, change), model)


def test_groups_that_have_no_common_edge():
    model, optimizer = trained(groups("Adam", {"betas": (0.9, 0.99)}, {"betas": (0.8, 0.99)}))
    with pytest.raises(InputError, match=r"differ in momentum.*or give betas"):
        hvpspec.adam_preconditioner(optimizer, model)
    assert hvpspec.adam_preconditioner(optimizer, model, betas=(0.9, 0.99)).betas == (0.9, 0.99)
    only = hvpspec.adam_preconditioner(optimizer, model, parameters="*.bias")
    assert only.betas == (0.8, 0.99)
    assert set(only.scale) == {"0.bias", "2.bias"}


def test_a_learning_rate_of_zero_needs_another_one():
    model, optimizer = trained(of("Adam"))
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.raises(InputError, match=r"learning rate of 0.weight.* is 0.*--lr"):
        hvpspec.adam_preconditioner(optimizer, model)
    assert hvpspec.adam_preconditioner(optimizer, model, lr=0.1).lr == 0.1


def test_an_optimizer_without_steps():
    model, optimizer = trained(of("Adam"), steps=0, model=nn.Linear(2, 1))
    with pytest.raises(InputError, match="no moments at all"):
        hvpspec.adam_preconditioner(optimizer, model)
    model, optimizer = trained(of("Adagrad"), steps=0, model=nn.Linear(2, 1))  # which has its state from the start
    with pytest.raises(InputError, match="no step with weight yet"):
        hvpspec.adam_preconditioner(optimizer, model)
