"""Finite differences compared with exact Hessians, and with their own estimate of the error."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.rough_models import MODELS, vectors
from torch import nn
from zoo import CASES, Case, explicit_hessian

import hvpspec
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.finite_difference import FiniteDifference
from hvpspec.preflight import inspect_operator


class Radial(nn.Module):
    """Distances to centres by torch's operator, which can be differentiated only once, or by their formula."""

    def __init__(self, plain=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.centres = nn.Parameter(torch.randn(5, 6))
        self.head = nn.Linear(5, 3)
        self.plain = plain

    def forward(self, x):
        h = self.body(x)
        if self.plain:
            distances = (h[:, None] - self.centres).square().sum(-1).sqrt()
        else:
            distances = torch.ops.aten._cdist_forward(h, self.centres, 2.0, None)
        return self.head(torch.exp(-distances))


@pytest.fixture(scope="module")
def radial():
    torch.manual_seed(0)
    model, plain = Radial(), Radial(plain=True).double()
    plain.load_state_dict(model.state_dict())
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    data = list(zip(x.split(16), y.split(16), strict=True))
    exact = explicit_hessian(Case(plain, "cross_entropy", data, lambda m: F.cross_entropy(m(x.double()), y)))
    return model, data, exact


@pytest.mark.parametrize("name", CASES)
def test_products_are_within_the_noise(name):
    torch.manual_seed(1)
    case = CASES[name]()
    expected = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="finite-difference")
    V = np.random.default_rng(0).standard_normal((len(expected), 2))
    off = np.linalg.norm(H @ V - expected @ V, axis=0) / np.linalg.norm(expected @ V, axis=0)
    assert off.max() <= H.noise <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_figures_hold_their_error_bars(radial, dtype):
    model, data, exact = radial
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="finite-difference", dtype=dtype)
    values = np.linalg.eigvalsh(exact)
    top = values[np.argsort(-np.abs(values))][:4]
    found = hvpspec.spectrum(H, 4)
    assert (np.abs(found.eigenpairs.values - top) <= found.eigenpairs.error).all()
    assert (found.eigenpairs.error <= 1e-4).all()
    assert abs(found.trace.value - values.sum()) <= found.trace.error
    assert "finite differences of the gradient in float64" in H.plan


def test_shares_of_batches_add_up(radial):
    model, data, exact = radial
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="finite-difference", dtype="float64")
    X = torch.randn(len(exact), 2, dtype=torch.float64)
    shares = []
    product = H.multiply_by_folds(X, 3, lambda group, weight, share: shares.append(weight * share))
    torch.testing.assert_close(sum(shares) / 40, product)
    np.testing.assert_allclose(product.numpy(), exact @ X.numpy(), rtol=1e-6, atol=1e-8)


def test_a_product_passes_over_the_data_once_and_holds_one_graph_at_a_time(radial):
    """So a loader that shuffles gives each batch's gradients at all points from the same samples."""
    model, data, _ = radial
    passes, alive, most = 0, 0, 0

    class Data:
        def __iter__(self):
            nonlocal passes
            passes += 1
            return iter(data)

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            nonlocal alive
            alive -= 1
            return gradient

    def loss(model, batch):
        return Counted.apply(F.cross_entropy(model(batch[0]), batch[1]))

    H = hvpspec.HessianOperator(model, loss, Data(), engine="finite-difference", verify=False)
    H.noise  # noqa: B018 - which finds the step
    passes = alive = most = 0
    H @ torch.randn(H.shape[0], 3)
    assert passes == 1
    assert most == 1


def test_validation_on_what_autograd_can_differentiate_twice(radial):
    model, data, _ = radial
    checked = FiniteDifference(hvpspec.HessianOperator(model, "cross_entropy", data).objective).validate()
    assert checked.names == ("head.weight", "head.bias")
    assert checked.tried == 5
    assert checked.difference <= checked.bound <= 1e-6
    body = hvpspec.HessianOperator(model, "cross_entropy", data, parameters="centres").objective
    assert FiniteDifference(body).validate().names == ()


def test_a_loss_without_float64_is_differenced_in_its_own():
    def loss(model, batch):
        x, y = batch
        if x.dtype == torch.float64:
            raise RuntimeError("no kernel for float64")
        return F.cross_entropy(model(x), y)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    H = hvpspec.HessianOperator(model, loss, [(x, y)], engine="finite-difference")
    exact = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64")
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    off = np.linalg.norm(H @ v - exact @ v) / np.linalg.norm(exact @ v)
    assert off <= H.noise <= 0.2
    assert "float32" in H.plan


class Stiff(nn.Module):
    """A paraboloid with ripples along one direction, for which a step that suits the others is too long."""

    def __init__(self, frequency):
        super().__init__()
        self.p = nn.Parameter(torch.randn(200) / 2)
        self.register_buffer("direction", torch.randn(200) / 200**0.5)
        self.frequency = frequency

    def forward(self, x):
        return self.p.square().sum() / 2 + torch.sin(self.frequency * (self.p @ self.direction) + 0.3) / 100 + 0 * x


@pytest.mark.parametrize(("frequency", "seed"), [(10, 0), (300, 0), (1000, 6), (2000, 0), (2000, 6)])
def test_error_bars_hold_along_a_direction_that_curves_more_than_the_rest(frequency, seed):
    torch.manual_seed(seed)
    model = Stiff(frequency).double()
    data = [torch.ones(1).double()]
    exact = hvpspec.HessianOperator(model, lambda m, x: m(x).mean(), data) @ np.eye(200)
    values = np.linalg.eigvalsh(exact)
    top = values[np.argmax(np.abs(values))]
    H = hvpspec.HessianOperator(model, lambda m, x: m(x).mean(), data, engine="finite-difference")
    found = hvpspec.eigsh(H, 1)
    assert abs(found.values[0] - top) <= found.error[0] <= 0.02 * abs(top)
    trace = hvpspec.trace(H)
    assert abs(trace.value - np.trace(exact)) <= trace.error


@pytest.mark.parametrize("name", MODELS)
def test_no_product_is_further_off_than_is_claimed_of_it_alone(name):
    """Vectors of all kinds in turn; scripts/calibrate_differences.py does this for 200 of them."""
    torch.manual_seed(0)
    made = MODELS[name]()
    hessian = made.hessian()
    engine = FiniteDifference(Objective(made.model, made.loss, [made.batch]))
    engine.noise  # noqa: B018 - which finds the step
    largest = 0.0
    for v in vectors(hessian, 10).T:
        engine._noise = 0.0  # the largest claim so far
        product = engine(torch.tensor(v, dtype=made.dtype)[:, None])[:, 0].double().numpy()
        claimed, off = engine.noise, np.linalg.norm(product - hessian @ v)
        largest = max(largest, np.linalg.norm(hessian @ v) / np.linalg.norm(v))
        if claimed < 1 and np.linalg.norm(hessian @ v) > 1e-13 * largest * np.linalg.norm(v):
            assert off <= claimed * np.linalg.norm(hessian @ v)


def test_the_step_does_not_drift_along_a_steep_direction_in_single_precision():
    torch.manual_seed(0)
    made = MODELS["quadratic in float32 inside"]()
    hessian = made.hessian()
    top = torch.from_numpy(np.linalg.eigh(hessian)[1][:, -1:])
    engine = FiniteDifference(Objective(made.model, made.loss, [made.batch]))
    for _ in range(10):
        product = engine(top).numpy()
        assert np.linalg.norm(product[:, 0] - hessian @ top[:, 0].numpy()) <= 1e-3 * np.linalg.norm(product)
    assert engine.noise <= 1e-3


@pytest.mark.parametrize("seeded", [True, False])
def test_random_numbers_are_those_of_the_run(seeded):
    """Drawn in the dtype of the inputs, they are others in float64, whoever has set the seed."""

    def loss(model, batch):
        if not seeded:
            torch.manual_seed(0)
        return (model(batch + torch.randn_like(batch)) ** 4).mean()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    objective = Objective(model, loss, [torch.randn(12, 4)], noise_seed=3 if seeded else None)
    v = torch.randn(objective.space.n, 1)
    exact = autograd.hvp(objective, v)
    engine = FiniteDifference(objective)
    assert float((engine(v) - exact).norm() / exact.norm()) <= max(2 * engine.noise, 1e-3)


def test_the_error_includes_casts_of_constants():
    """They are left out in the differences, and are part of the loss."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(4, 3).double()

        def forward(self, x):
            return torch.tanh(self.inside(x)) * (torch.arange(1, 4, dtype=torch.float64) / 3).float()

    torch.manual_seed(0)
    objective = Objective(Scaled(), lambda model, x: (model(x) ** 4).mean(), [torch.randn(9, 4).double()])
    v = torch.randn(objective.space.n, 1, dtype=torch.float64)
    exact = autograd.hvp(objective, v)
    engine = FiniteDifference(objective)
    off = float((engine(v) - exact).norm() / exact.norm())
    assert 1e-9 < off <= 2 * engine.noise < 1e-6


def test_a_product_takes_five_gradients():
    calls = 0

    def loss(model, batch):
        nonlocal calls
        calls += 1
        return F.cross_entropy(model(batch[0]), batch[1])

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    engine = FiniteDifference(Objective(model, loss, [(torch.randn(30, 4), torch.arange(30) % 3)]))
    engine.noise  # noqa: B018 - which finds the step
    found = calls
    assert found <= 7 + 4 + 1  # and the measurement of what the loss is a mean over
    engine(torch.randn(engine.objective.space.n, 3, dtype=torch.float64))
    assert calls == found + 4 * 3 + 1


class TiedBert(nn.Module):
    """A BERT whose embedding has a padding row and is tied to its head."""

    def __init__(self):
        super().__init__()
        transformers = pytest.importorskip("transformers")
        config = transformers.BertConfig(
            vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8, initializer_range=0.3,
        )  # fmt: skip
        self.bert = transformers.BertForMaskedLM(config)

    def forward(self, ids):
        return self.bert(input_ids=ids, labels=ids).loss


def test_the_padding_row_of_an_embedding_that_is_tied_to_the_head_moves_with_the_head():
    torch.manual_seed(0)
    model = TiedBert().double()
    data = [(torch.tensor([[1, 2, 0, 3], [4, 0, 0, 5]]),)]
    H, exact = (
        hvpspec.HessianOperator(model, lambda m, batch: m(*batch), data, engine=engine)
        for engine in ("finite-difference", "autograd")
    )
    row = np.zeros(H.shape[0])
    start = H.parameters.slice("bert.bert.embeddings.word_embeddings.weight").start
    row[start : start + 8] = 1
    for v in (row, np.random.default_rng(0).standard_normal(len(row))):
        assert np.linalg.norm(exact @ v) > 0.1
        assert np.linalg.norm(H @ v - exact @ v) <= 1e-8 * np.linalg.norm(exact @ v)
    found = inspect_operator(exact)
    assert "differences" not in {finding.kind for finding in found.findings}
    assert found.difference <= found.difference_bound <= 1e-7


class FrozenBelow(nn.Module):
    """A backbone that is used under no_grad, although its parameters require a gradient."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        with torch.no_grad():
            features = self.backbone(x).tanh()
        return self.head(features).tanh()


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
def test_parameters_that_no_gradient_reaches_are_constants(engine):
    torch.manual_seed(0)
    model = FrozenBelow().double()
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64))]
    v = torch.randn(26, dtype=torch.float64)
    product = hvpspec.HessianOperator(model, "mse", data, engine=engine) @ v
    alone = hvpspec.HessianOperator(model, "mse", data, parameters="head.*", engine="autograd") @ v[16:]
    assert not product[:16].any()
    assert torch.allclose(product[16:], alone, atol=1e-8)
    H = hvpspec.HessianOperator(model, "mse", data, engine=engine)
    found = inspect_operator(H)
    assert not found.refused
    (unused,) = (finding for finding in found.findings if finding.kind == "unused")
    assert "under no_grad only: backbone.weight, backbone.bias" in unused.found
