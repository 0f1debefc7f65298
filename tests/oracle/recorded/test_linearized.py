"""The recorded engines against the reference: every test model, other batches, changed values, changed data."""

from functools import cache

import numpy as np
import pytest
import torch
from oracle.comparison import Shuffled, needs_compiler, operators, relative
from torch import nn
from zoo import CASES, mlp

import hvpspec
from hvpspec.memory import readable
from hvpspec.oracle.recorded import linearized
from hvpspec.oracle.recorded.tracing import NotRecordable, shape_of


@cache
def same(name):
    """The same model for all that do not change it, so that it is recorded once."""
    return CASES[name]()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("limit", [None, 1, "20 kB"], ids=["all kept", "none kept", "some kept"])
def test_agreement(name, limit):
    """One vector and several, with activations saved, recomputed, or some of each; with ragged last batches."""
    reference, fast = operators(same(name), memory_limit=limit)
    V = torch.randn(fast.shape[0], 11, dtype=torch.float64)
    expected = reference @ V
    for _ in range(2):
        assert relative(fast @ V, expected) <= 1e-12
        assert relative(fast @ V[:, 3], expected[:, 3]) <= 1e-12
    assert fast.engine == "linearized", fast.plan
    assert "linearized, eager" in fast.plan
    if limit == 1:
        assert "activations of 0 of" in fast.plan


@pytest.mark.parametrize("name", CASES)
def test_vectors_computed_together(name, monkeypatch):
    """As many as are asked for, when a vector gets cheaper each time: the measurement is made to say so."""
    reference, fast = operators(same(name))
    costs = iter(2.0**-power for power in range(20))
    monkeypatch.setattr(linearized, "_fastest", lambda work, device: next(costs))
    V = torch.randn(fast.shape[0], 11, dtype=torch.float64)
    assert relative(fast @ V, reference @ V) <= 1e-12
    if name not in ("embedding", "language model"):  # torch has no batching rule for an embedding's gradient
        assert "8 vectors together" in fast.plan


@needs_compiler
@pytest.mark.parametrize("name", ["mlp", pytest.param("tied weights", marks=pytest.mark.slow)])
def test_compiled(name):
    case = CASES[name]()
    reference, _ = operators(case)
    fast = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="compiled")
    V = torch.randn(fast.shape[0], 3, dtype=torch.float64)
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert "compiled" in fast.plan


def test_float32_is_judged_by_float64():
    """ReLU's kinks amplify rounding in the primal: the difference may be large, and is no error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    data = [(torch.randn(200, 20), torch.randint(0, 3, (200,)))]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized")
    v = torch.randn(H.shape[0])
    exact = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd", dtype="float64") @ v.double()
    assert relative((H @ v).double(), exact) < 1e-5
    assert H.engine == "linearized"


def test_nothing_of_the_data_is_baked_in():
    """The first batch is recorded; others have other classes, ignored tokens, class weights and lengths of words."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 5), nn.Tanh(), nn.Linear(5, 4)).double()

    def loss(model, batch):
        tokens, targets, scale = batch
        logits = model(tokens).transpose(1, 2)
        per_token = nn.functional.cross_entropy(logits, targets, ignore_index=0, reduction="none")
        weight = (targets != 0).sum()
        return scale.mean() * per_token.sum() / weight + (tokens.double().var() * per_token).mean(), weight

    data = []
    for size in range(1, 5):
        tokens, targets = torch.randint(0, 9, (6, 7)), torch.randint(0, 4, (6, 7))
        targets[:, size:] = 0
        data.append((tokens, targets, torch.full((3,), float(size)).double()))
    reference = hvpspec.HessianOperator(model, loss, data, engine="autograd")
    fast = hvpspec.HessianOperator(model, loss, data, engine="linearized")
    V = torch.randn(fast.shape[0], 3, dtype=torch.float64)
    assert relative(fast @ V, reference @ V) <= 1e-12
    assert fast.engine == "linearized"
    assert len(fast._product._fast._programs) == 1  # one shape, one recording


@pytest.mark.parametrize("limit", [None, 1])
def test_it_follows_a_model_that_trains_on(limit):
    """However the values are changed: a step, a write through .data, a new tensor, a buffer."""
    case = CASES["cnn with batchnorm"]()
    reference, fast = operators(case, memory_limit=limit)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    assert relative(fast @ v, reference @ v) <= 1e-12

    def step(p):
        with torch.no_grad():
            p.add_(0.1)

    def through_data(p):
        p.data.mul_(1.3)

    def replaced(p):
        p.data = p.data + 0.2

    first = next(case.model.parameters())
    for change in (step, through_data, replaced):
        before = fast @ v
        change(first)
        assert relative(fast @ v, reference @ v) <= 1e-12
        assert relative(fast @ v, before) > 1e-6
    next(b for b in case.model.buffers() if b.is_floating_point()).mul_(2.0)
    assert relative(fast @ v, reference @ v) <= 1e-12


def test_data_in_another_order_are_not_mixed():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(40, 3).double(), torch.randint(0, 2, (40,))
    expected = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)]) @ torch.eye(32, dtype=torch.float64)
    for limit in (None, 1, 3000):
        H = hvpspec.HessianOperator(model, "cross_entropy", Shuffled(x, y, 8), engine="linearized", memory_limit=limit)
        found = [H @ torch.eye(32, dtype=torch.float64) for _ in range(3)]
        assert max(relative(product, expected) for product in found) <= 1e-12, H.plan


def test_batches_that_are_written_to_are_prepared_again():
    case = mlp()
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 1, dtype=torch.float64)
    before = fast @ v
    case.data[1][0].mul_(1.5)
    assert relative(fast @ v, reference @ v) <= 1e-12
    assert relative(fast @ v, before) > 1e-6


def test_folds_of_the_batches_have_their_own_products():
    case = mlp()
    reference, fast = operators(case)
    v = torch.randn(fast.shape[0], 2, dtype=torch.float64)
    for operator in (reference, fast):
        operator.seen = []
        operator.multiply_by_folds(v, 3, lambda g, w, product, seen=operator.seen: seen.append((g, w, product)))
    for (g, w, product), (g2, w2, product2) in zip(reference.seen, fast.seen, strict=True):
        assert (g, w) == (g2, w2)
        assert relative(product2, product) <= 1e-12
    a, b = hvpspec.spectrum(reference, 3, rtol=0.1), hvpspec.spectrum(fast, 3, rtol=0.1)
    np.testing.assert_allclose(a.eigenpairs.data_error, b.eigenpairs.data_error, rtol=1e-6)


def test_what_a_batch_may_hold():
    x = torch.randn(3, 2)
    key, tensors = shape_of({"x": x, "n": 3, "name": "a"})
    assert [t is x for t in tensors] == [True]
    assert key != shape_of({"x": x, "n": 4, "name": "a"})[0]
    assert key != shape_of({"x": torch.randn(4, 2), "n": 3, "name": "a"})[0]
    with pytest.raises(NotRecordable, match="holds a object"):
        shape_of((x, object()))
    with pytest.raises(NotRecordable, match="layout"):
        shape_of((x.to_sparse(),))


def held_by(saved):
    """Bytes of the storages of saved activations, each once, and of the batches' entries."""
    there = {
        t.untyped_storage().data_ptr()
        for t in (
            *saved.snapshot.parameters,
            *saved.snapshot.constants.values(),
            *(t for batch in saved.batches.values() for t in batch.tensors),
        )
    }
    storages = {t.untyped_storage().data_ptr(): t for batch in saved.batches.values() for t in batch.activations}
    of_activations = sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in there)
    return of_activations + sum(t.nbytes for batch in saved.batches.values() for t in batch.tensors)


def test_saved_activations_stay_within_the_limit():
    """Measured on the storages themselves; what is cheap to recompute is given up before whole batches are."""
    layers = [layer for _ in range(2) for layer in (nn.Linear(200, 200), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(200, 3)).double()
    data = [(torch.randn(200, 200, dtype=torch.float64), torch.randint(0, 3, (200,))) for _ in range(5)]
    reference = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd")
    v = torch.randn(reference.shape[0], dtype=torch.float64)
    expected = reference @ v

    def with_limit(limit):
        fast = hvpspec.HessianOperator(
            model, "cross_entropy", data, engine="linearized", memory_limit=limit, verify=False
        )
        for _ in range(2):
            assert relative(fast @ v, expected) <= 1e-12
        saved = fast._product._fast._saved
        assert saved.size == held_by(saved)
        return fast, saved

    fast, saved = with_limit(10**9)
    (recording,) = fast._product._fast._recordings
    sizes = [level.size + sum(t.nbytes for t in data[0]) for level in recording.levels]
    assert len(sizes) > 1
    assert saved.size == 5 * sizes[0]
    assert "saved (" in fast.plan
    assert "in part" not in fast.plan
    most = 5 * sizes[0]
    for limit in (most - 1, (most + 5 * sizes[-1]) // 2, 5 * sizes[-1]):  # all batches fit, at lower levels
        fast, saved = with_limit(limit)
        assert saved.complete, fast.plan
        assert saved.size <= limit
        levels = [saved.batches[index].program.level for index in range(5)]
        assert levels == sorted(levels)
        assert levels[-1] - levels[0] <= 1  # a mixture of two that follow each other
        one_more = sizes[levels[-1] - 1] - sizes[levels[-1]]
        assert levels[-1] == 0 or saved.size + one_more > limit  # not one of them would fit at a higher level
        lower = sum(level > 0 for level in levels)
        assert f"batches saved ({readable(saved.size)}; of {lower} of them only in part)" in fast.plan
    limit = 5 * sizes[-1] - 1  # not all of them fit: there is room for one that is not saved, while it is in use
    fast, saved = with_limit(limit)
    assert 0 < len(saved.batches) < 5
    assert saved.size + sizes[0] <= limit
    _, saved = with_limit(sizes[-1])
    assert not saved.batches


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("engine", ["linearized", "compiled", "cudagraph"])
def test_on_a_gpu(engine):
    case = mlp()
    reference = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", device="cuda")
    fast = hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine, device="cuda")
    V = torch.randn(fast.shape[0], 9, dtype=torch.float64, device="cuda")
    for _ in range(2):
        assert relative(fast @ V, reference @ V) <= 1e-12
    assert fast.engine == "linearized", fast.plan
