"""hvpspec.gradient against explicit gradients, Hessians and eigenvectors, and against steps of torch.optim."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from zoo import cnn, explicit_hessian, mlp

import hvpspec
from hvpspec import InputError


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


def whole_gradient(case, parameters):
    """By one backward pass over all the data."""
    parts = torch.autograd.grad(case.whole(case.model.eval()), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts]).numpy()


def problem(make=mlp, **options):
    torch.manual_seed(0)
    case = make()
    case.model.double()
    case.data = [tuple(t.double() if t.is_floating_point() else t for t in batch) for batch in case.data]
    return case, hvpspec.HessianOperator(case.model, case.loss, case.data, **options)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_length_curvature_and_shares_are_those_of_the_explicit_matrix(make):
    case, H = problem(make, dtype="float64")
    g, D = whole_gradient(case, list(case.model.parameters())), explicit_hessian(case)
    pairs = hvpspec.spectrum(H, 5, tol=1e-7).eigenpairs
    before = H.hvps
    found = hvpspec.gradient(H, pairs)
    assert H.hvps - before == found.hvps == 1
    curvature = g @ D @ g / (g @ g)
    assert found.norm.value == pytest.approx(np.linalg.norm(g), rel=1e-12)
    assert found.curvature.value == pytest.approx(curvature, rel=1e-9)
    assert found.step == pytest.approx(1 / curvature, rel=1e-9)
    assert found.decrease == pytest.approx((g @ g) ** 2 / (g @ D @ g) / 2, rel=1e-9)
    values, vectors = np.linalg.eigh(D)
    order = np.argsort(-np.abs(values))[:5]
    parts = (vectors[:, order].T @ g) ** 2 / (g @ g)
    np.testing.assert_allclose(found.eigenvalues, values[order], rtol=1e-6)
    assert (np.abs(found.parts - parts) <= found.parts_error + 1e-12).all()
    low, high = found.share.interval
    assert low - 1e-12 <= parts.sum() <= high + 1e-12
    assert high - low < 1e-3
    # The data error is the standard error over the batches, along this gradient.
    folds = []
    for batch in case.data:
        one = hvpspec.HessianOperator(case.model, case.loss, [batch], dtype="float64") @ g
        folds.append((len(batch[0]), g @ one / (g @ g)))
    weights, each = np.array(folds).T
    share = weights / weights.sum()
    error = math.sqrt(len(each) / (len(each) - 1) * (share**2 @ (each - share @ each) ** 2))
    assert found.curvature.data_error == pytest.approx(error, rel=1e-9)


def test_other_matrices_have_the_same_gradient():
    case, _ = problem(dtype="float64")
    g = torch.from_numpy(whole_gradient(case, list(case.model.parameters())))
    unit = (g / g.norm()).numpy()
    for kind in (hvpspec.GGNOperator, hvpspec.EmpiricalFisherOperator, hvpspec.ResidualOperator):
        A = kind(case.model, case.loss, case.data, dtype="float64")
        found = hvpspec.gradient(A)
        assert found.norm.value == pytest.approx(float(g.norm()), rel=1e-12)
        assert found.curvature.value == pytest.approx(unit @ (A @ unit), rel=1e-9)
        assert (found.share, found.reasons["share"]) == (None, "there are no eigenvectors")
    fisher = hvpspec.gradient(A := hvpspec.EmpiricalFisherOperator(case.model, case.loss, case.data, dtype="float64"))
    by_trace = hvpspec.gradient(A, fisher_trace=hvpspec.trace(A, rtol=1e-6)).noise_scale
    low, high = fisher.noise_scale.interval
    assert low <= by_trace.value <= high
    in_spectrum = hvpspec.spectrum(A, 3, rtol=1e-6, gradient=True).gradient
    assert in_spectrum.noise_scale.value == pytest.approx(by_trace.value, rel=1e-4)


def test_some_of_the_parameters_and_a_sum_and_complex_ones():
    case, H = problem(dtype="float64", parameters="0.weight")
    g = whole_gradient(case, [case.model[0].weight])
    assert hvpspec.gradient(H).norm.value == pytest.approx(np.linalg.norm(g), rel=1e-12)
    total = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float64", reduction="sum")
    mean, summed = hvpspec.gradient(problem(dtype="float64")[1]), hvpspec.gradient(total)
    assert summed.norm.value == pytest.approx(23 * mean.norm.value, rel=1e-12)
    assert summed.noise_scale.value == pytest.approx(mean.noise_scale.value, rel=1e-9)
    torch.manual_seed(0)
    model, x, y = Complex(), torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    H = hvpspec.HessianOperator(model, "mse", [(x, y)])
    (part,) = torch.autograd.grad(nn.functional.mse_loss(model(x), y), [model.weight])
    flat = torch.view_as_real(part).reshape(-1).numpy()
    found = hvpspec.gradient(H)
    assert found.norm.value == pytest.approx(np.linalg.norm(flat), rel=1e-12)
    assert found.curvature.value == pytest.approx(flat @ (H @ flat) / (flat @ flat), rel=1e-9)


def test_float32_is_within_its_errors():
    case, exact = problem(cnn, dtype="float64")
    single = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float32")
    known = hvpspec.gradient(exact)
    for pairs in (None, hvpspec.spectrum(single, 3).eigenpairs):
        found = hvpspec.gradient(single, pairs)
        for name in ("norm", "curvature"):
            off = abs(getattr(found, name).value - getattr(known, name).value)
            assert off <= getattr(found, name).error < 1e-3 * getattr(known, name).value


# --- the optimizer's next update -------------------------------------------------------------------------------------


def of(name, **options):
    return lambda model: getattr(torch.optim, name)(model.parameters(), **{"lr": 0.01, **options})


OPTIMIZERS = {
    "Adam": of("Adam", betas=(0.8, 0.97)), "L2": of("Adam", weight_decay=0.3), "amsgrad": of("Adam", amsgrad=True),
    "AdamW": of("AdamW", weight_decay=0.5), "RMSprop": of("RMSprop", weight_decay=0.1),
    "RMSprop, all": of("RMSprop", momentum=0.5, centered=True), "Adagrad": of("Adagrad", lr_decay=0.1),
    "SGD": of("SGD"), "momentum": of("SGD", momentum=0.9, dampening=0.2, weight_decay=0.1),
    "Nesterov": of("SGD", momentum=0.9, nesterov=True),
}  # fmt: skip


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_next_update_is_that_of_a_real_step(make, steps):
    case, H = problem(dtype="float64")
    optimizer = make(case.model)

    def step():
        optimizer.zero_grad()
        case.whole(case.model.eval()).backward()
        optimizer.step()

    for _ in range(steps):
        step()
    if steps == 0 and type(optimizer).__name__ != "SGD":
        with pytest.raises(InputError):
            hvpspec.adam_preconditioner(optimizer, case.model)
        return
    by = hvpspec.adam_preconditioner(optimizer, case.model)
    found = hvpspec.gradient(H, preconditioner=by).update
    P = hvpspec.PreconditionedOperator(H, by)
    same = hvpspec.gradient(P).update
    g, D, loss = whole_gradient(case, list(case.model.parameters())), explicit_hessian(case), H.loss().value
    before = torch.cat([p.detach().reshape(-1) for p in case.model.parameters()])
    step()
    u = (torch.cat([p.detach().reshape(-1) for p in case.model.parameters()]) - before).numpy()
    for update in (found, same):
        assert update.length == pytest.approx(np.linalg.norm(u), rel=1e-7)
        assert update.slope == pytest.approx(g @ u, rel=1e-7)
        assert update.curvature.value == pytest.approx(u @ D @ u / (u @ u), rel=1e-6)
        assert update.change.value == pytest.approx(g @ u + u @ D @ u / 2, rel=1e-6)
    change = H.loss().value - loss
    assert abs(found.change.value - change) < 0.1 * abs(change) + 1e-6  # up to third order


def test_later_steps_of_a_live_optimizer_change_nothing():
    case, H = problem(dtype="float64")
    optimizer = torch.optim.Adam(case.model.parameters(), lr=0.0001)
    case.whole(case.model.eval()).backward()
    optimizer.step()
    by = hvpspec.adam_preconditioner(optimizer, case.model)
    then = copy.deepcopy(case.model.state_dict())
    first = hvpspec.gradient(H, preconditioner=by).update.slope
    for _ in range(3):
        optimizer.step()
    case.model.load_state_dict(then)
    assert hvpspec.gradient(H, preconditioner=by).update.slope == first


def test_a_preconditioned_gradient_is_in_its_own_coordinates():
    case, H = problem(dtype="float64")
    scale = torch.exp(torch.randn(H.shape[0], dtype=torch.float64))
    g = scale.numpy() * (
        whole_gradient(case, list(case.model.parameters())) + 0.2 * H.values().numpy()
    )  # of the loss with its weight decay
    P = hvpspec.PreconditionedOperator(H, scale, 0.2)
    D = P @ np.eye(len(g))
    found = hvpspec.gradient(P)
    assert found.norm.value == pytest.approx(np.linalg.norm(g), rel=1e-12)
    assert found.curvature.value == pytest.approx(g @ D @ g / (g @ g), rel=1e-9)
    assert found.update is None
    assert hvpspec.spectrum(P, 3, gradient=True).gradient.norm.value == pytest.approx(found.norm.value)


# --- in a spectrum, and what cannot be had ----------------------------------------------------------------------------


def test_it_is_part_of_a_spectrum_within_its_budget(tmp_path):
    _, H = problem(dtype="float64")
    plain, found = hvpspec.spectrum(H, 4), hvpspec.spectrum(H, 4, gradient=True)
    assert found.hvps == plain.hvps + 1
    assert found.gradient.share.value == pytest.approx(hvpspec.gradient(H, found.eigenpairs).share.value, rel=1e-12)
    for budget in (3, 11, 14):
        few = hvpspec.spectrum(H, 4, gradient=True, max_hvps=budget)
        assert few.hvps <= budget
        assert (few.gradient is None) == (budget <= 10)
    document = json.loads(json.dumps(found.to_dict()))
    again = hvpspec.Spectrum.from_dict(document)
    assert again.gradient.to_dict() == found.gradient.to_dict()
    assert "gradient" in repr(found)
    assert "curvature along g" in found.summary()
    assert "gradient" not in plain.to_dict()


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    _, H = problem(dtype="float64")

    def stop(step):
        if step.stage == "gradient":
            raise KeyboardInterrupt

    options = {"k": 3, "gradient": True, "only": ["eigenvalues"]}
    whole = hvpspec.spectrum(H, **options)
    with pytest.raises(KeyboardInterrupt):
        hvpspec.spectrum(problem(dtype="float64")[1], journal=tmp_path / "log", callback=stop, **options)
    resumed = hvpspec.spectrum(problem(dtype="float64")[1], journal=tmp_path / "log", **options)
    assert resumed.gradient.to_dict() == whole.gradient.to_dict()


def test_a_negative_curvature_has_no_best_step():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    H = hvpspec.HessianOperator(
        model, lambda model, x: (model(x) ** 2 - model(x) ** 4).mean(), [torch.ones(3, 1).double()]
    )
    found = hvpspec.gradient(H)
    assert found.curvature.value == pytest.approx(2 - 12 * 0.25)
    assert (found.step, found.decrease) == (None, None)
    assert "unbounded" in repr(found)


def test_a_zero_gradient_has_no_direction():
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    H = hvpspec.HessianOperator(model, "mse", [(torch.ones(3, 2).double(), torch.zeros(3, 1).double())])
    found = hvpspec.gradient(H, hvpspec.eigsh(H, 1))
    assert (found.norm.value, found.curvature, found.share, found.noise_scale, found.hvps) == (0, None, None, None, 0)
    assert "zero" in found.reasons["share"]
    assert "zero" in found.summary()


def test_what_is_refused():
    _, H = problem(dtype="float64")
    pairs = hvpspec.eigsh(H, 2)
    for arguments, said in (
        ((np.eye(3),), "needs an operator of a loss"),
        ((H, pairs.values), "must be Eigenpairs"),
        ((H, hvpspec.Eigenpairs.from_dict(pairs.to_dict())), "no vectors"),
        ((H, hvpspec.eigsh(np.eye(3), 1)), "the eigenvectors have 3 entries"),
    ):
        with pytest.raises(InputError, match=said):
            hvpspec.gradient(*arguments)
    with pytest.raises(InputError, match="needs an operator of a loss"):
        hvpspec.spectrum(np.eye(3), gradient=True)
    for options, said in (
        ({"preconditioner": 0.1}, "what hvpspec.adam_preconditioner returns"),
        ({"fisher_trace": 3.0}, "must be an Estimate"),
        ({"confidence": 2}, "confidence"),
    ):
        with pytest.raises(InputError, match=said):
            hvpspec.gradient(H, **options)
    nan = hvpspec.HessianOperator(
        nn.Linear(1, 1), lambda m, x: (m(x) * 0).sqrt().mean(), [torch.ones(2, 1)], verify=False
    )
    with pytest.raises(InputError, match="batch 0: the gradient is not finite"):
        hvpspec.gradient(nan)


def test_a_missing_moment_leaves_out_the_update_alone():
    case, H = problem(dtype="float64")
    optimizer = torch.optim.Adam(case.model.parameters())
    case.whole(case.model.eval()).backward()
    optimizer.step()
    state = optimizer.state_dict()
    for entry in state["state"].values():
        del entry["exp_avg"]
    by = hvpspec.adam_preconditioner(state, case.model)
    with pytest.raises(InputError, match="has no exp_avg"):
        hvpspec.gradient(H, preconditioner=by)
    found = hvpspec.gradient(hvpspec.PreconditionedOperator(H, by))
    assert found.update is None
    assert "has no exp_avg" in found.reasons["update"]
