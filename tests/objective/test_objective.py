import dataclasses
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import Language, explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective

SAMPLES, CLASSES = 9, 3


def dense(model, loss, data, **options):
    H = hvpspec.HessianOperator(model, loss, data, **options)
    return H @ np.eye(H.shape[0], dtype=H.dtype)


@st.composite
def partitions(draw):
    """The samples in any order, cut into batches of any sizes."""
    order = draw(st.permutations(range(SAMPLES)))
    cuts = sorted(draw(st.sets(st.integers(1, SAMPLES - 1))))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, SAMPLES], strict=True)]


def own_loss(model, batch):
    """A user's loss without a weight: a mean over samples."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def own_weighted_loss(model, batch):
    x, y = batch
    weight = torch.tensor([0.2, 1.0, 3.0], dtype=x.dtype)
    return F.cross_entropy(model(x), y, weight), weight[y].sum()


class TestPartition:
    """The same data in other batches give the same Hessian beyond rounding."""

    @pytest.mark.parametrize(
        ("loss", "ignored"),
        [
            (own_loss, False),
            (own_weighted_loss, False),
            ("cross_entropy", True),
            (nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), ignore_index=-7, label_smoothing=0.1), True),
        ],
        ids=["own", "own, class weights", "ignore_index", "class weights and ignore_index"],
    )
    @settings(max_examples=15, deadline=None)
    @given(partition=partitions())
    def test_classes(self, loss, ignored, partition):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, 4, generator=generator).double()
        y = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
        if ignored:
            y[[0, 4, 5]] = getattr(loss, "ignore_index", -100)
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, CLASSES)).double()
        whole = dense(model, loss, [(x, y)])
        split = dense(model, loss, [(x[part], y[part]) for part in partition])
        np.testing.assert_allclose(split, whole, rtol=0, atol=1e-14 * np.abs(whole).max() * 10)

    @settings(max_examples=15, deadline=None)
    @given(partition=partitions())
    def test_token_masks(self, partition):
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, 5, (SAMPLES, 4), generator=generator)
        lengths = torch.tensor([4, 1, 2, 4, 3, 1, 2, 2, 4])  # those of one token have nothing to predict
        mask = (torch.arange(4) < lengths[:, None]).long()
        torch.manual_seed(2)
        model = Language(tied=True, vocabulary=5, width=2).double()
        whole = dense(model, "causal_lm", [{"input_ids": ids, "attention_mask": mask}])
        parts = [{"input_ids": ids[part], "attention_mask": mask[part]} for part in partition]
        split = dense(model, "causal_lm", parts)
        np.testing.assert_allclose(split, whole, rtol=0, atol=1e-13 * np.abs(whole).max())


class Everything(nn.Module):
    """A model whose forward writes to whatever it can: buffers, and (through max_norm) a parameter."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3, max_norm=0.5)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.head = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at = None

    def forward(self, x):
        self.calls += 1
        if self.fail_at is not None and self.calls >= self.fail_at:
            raise RuntimeError("the forward has had enough")
        return self.head(torch.tanh(self.frozen(self.norm(self.embedding(x)))))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails):
    model = Everything()
    model.train()
    model.norm.eval()  # a part in another mode than the whole
    for p in model.head.parameters():
        p.grad = torch.full_like(p, 7.0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    identities = {name: p.data_ptr() for name, p in model.named_parameters()}
    modes = [m.training for m in model.modules()]
    model.fail_at = 1 if fails else None

    data = [(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 0, 1]))]
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    if fails:
        with pytest.raises(
            InputError,
            match=r"batch 0: the model's forward raised .* enough \(.*, in Everything.forward\)",
        ):
            H @ torch.randn(H.shape[0])
    else:
        H @ torch.randn(H.shape[0], 3)
        H.loss()

    assert [m.training for m in model.modules()] == modes
    for name, p in model.named_parameters():
        assert p.requires_grad == requires[name]
        assert p.data_ptr() == identities[name]
        assert p.is_leaf
        if grads[name] is None:
            assert p.grad is None
        else:
            assert torch.equal(p.grad, grads[name])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_a_buffer_that_the_forward_writes_to_starts_afresh_for_each_batch():
    class Counter(nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
            self.register_buffer("calls", torch.ones(()))

        def forward(self, x):
            self.calls *= 2
            return super().forward(x) * self.calls

    model = Counter().double()
    x = torch.randn(6, 2).double()
    y = torch.randn(6, 1).double()
    whole = dense(model, "mse", [(x, y)])
    np.testing.assert_allclose(dense(model, "mse", [(x[:4], y[:4]), (x[4:], y[4:])]), whole, rtol=1e-13)


def test_a_model_that_trains_on_is_followed():
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    v = torch.randn(H.shape[0]).double()
    before = H @ v
    with torch.no_grad():
        for p in case.model.parameters():
            p += 0.3 * torch.randn_like(p)
    after = H @ v
    assert (after - before).norm() > 0.1 * before.norm()
    np.testing.assert_allclose(after.numpy(), explicit_hessian(case) @ v.numpy(), rtol=1e-10)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_it_works_under_any_grad_mode(context):
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    v = torch.randn(H.shape[0]).double()
    with context():
        found = H @ v
        value = H.loss().value
    np.testing.assert_allclose(found.numpy(), explicit_hessian(case) @ v.numpy(), rtol=1e-10)
    case.model.eval()
    assert value == pytest.approx(float(case.whole(case.model)), rel=1e-12)


def test_the_loss_over_the_data():
    case = mlp()
    value = hvpspec.HessianOperator(case.model, case.loss, case.data).loss()
    case.model.eval()
    assert value.value == pytest.approx(float(case.whole(case.model)), rel=1e-12)
    assert (value.weight, value.batches) == (23, 3)


Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    ("wrap", "pick"),
    [
        (lambda x, y: {"x": [x], "more": {"y": y}}, lambda b: (b["x"][0], b["more"]["y"])),
        (Pair, lambda b: (b.x, b.y)),
        (Sample, lambda b: (b.x, b.y)),
        (lambda x, y: (x.numpy(), y.numpy()), lambda b: b),
    ],
    ids=["dicts", "namedtuple", "dataclass", "arrays"],
)
def test_batches_may_be_nested_and_are_cast(wrap, pick):
    """float32 data and model, float64 operator: all floating-point tensors are cast, integers are not."""
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))

    def loss(model, batch):
        x, y = pick(batch)
        assert x.dtype == torch.float64
        assert y.dtype == torch.int64
        return F.cross_entropy(model(x), y)

    H = dense(model, loss, [wrap(x, y)], dtype="float64")
    np.testing.assert_allclose(H, dense(model.double(), "cross_entropy", [(x.double(), y)]), rtol=1e-12)


def generator():
    yield torch.zeros(1, 2), torch.zeros(1, 1)


class Once:
    """Looks re-iterable and is not."""

    def __init__(self):
        self.batches = generator()

    def __iter__(self):
        return self.batches


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (generator(), r"one-shot generator.*list\(data\)"),
        (iter([1]), "one-shot list_iterator"),
        (torch.zeros(3, 2), "got Tensor"),
        ({"x": 1}, "got dict"),
        (torch.utils.data.TensorDataset(torch.zeros(3, 2)), "wrap it in a DataLoader"),
        ([], "data has no batches"),
        ([torch.zeros(2, 2)], r"give data=\[\(inputs, targets\)\]"),
        ([(torch.full((1, 2), torch.inf), torch.zeros(1, 1))], "batch 0: the loss is nan"),
        ([(torch.zeros(0, 2), torch.zeros(0, 1))], "every batch has weight 0"),
    ],
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(InputError, match=message):
        Objective(nn.Linear(2, 1), "mse", data).value()


def test_data_that_change_between_passes_are_noticed():
    objective = Objective(nn.Linear(2, 1), "mse", Once())
    objective.value()
    with pytest.raises(InputError, match="gave no batches on a later pass"):
        objective.value()

    class Growing(list):
        def __iter__(self):
            self.append(self[0])
            return super().__iter__()

    objective = Objective(nn.Linear(2, 1), "mse", Growing([(torch.zeros(1, 2), torch.zeros(1, 1))]))
    objective.value()
    with pytest.raises(InputError, match="data changed between two passes"):
        objective.value()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: loss.expand(3), r"batch 1: the loss is of shape \(3,\)"),
        (lambda loss: float(loss), "batch 1: the loss is a float"),
        (lambda loss: loss * torch.nan, "batch 1: the loss is nan"),
        (lambda loss: loss.to(torch.complex64), "batch 1: the loss is complex"),
        (lambda loss: (loss, 1, 2), "batch 1: the loss returned 3 values"),
        (lambda loss: (loss, -1), "batch 1: the loss's weight is -1"),
        (lambda loss: 1 / 0, "batch 1: the loss raised ZeroDivisionError"),
    ],
)
def test_a_loss_that_cannot_be_used_names_the_batch(result, message):
    def loss(model, batch):
        value = model(batch["x"]).square().mean()
        return result(value) if batch["number"] == 1 else value

    data = [{"x": torch.ones(2, 2), "number": i} for i in range(3)]
    H = hvpspec.HessianOperator(nn.Linear(2, 1), loss, data)
    for use in (H.loss, lambda: H @ torch.ones(3)):
        with pytest.raises(InputError, match=message):
            use()


class Raising(nn.Module):
    def forward(self, x):
        return self.helper(x)

    def helper(self, x):
        raise KeyError("nothing under that name")


def own_forward(model, batch):
    return model(batch, 3)


def own_method(model, batch):
    return Raising().helper(batch)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (
            nn.Linear(3, 1),
            lambda m, x: m(x).mean(),
            r"the model's forward raised RuntimeError: mat1 and mat2 [^']*in a lambda.*",
        ),
        (nn.Linear(2, 1), own_forward, r"the model's forward raised TypeError: .*3 were given.*"),
        (
            nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), Raising())),
            lambda m, x: m(x).mean(),
            r"the model's forward raised KeyError: .* \(in module '1\.1'; .*\.py:\d+, in Raising\.helper\); .*",
        ),
        (
            nn.Sequential(nn.Linear(2, 3), nn.Linear(4, 1)),
            "mse",
            r"the model's forward raised RuntimeError: mat1 and mat2 .* \(in module '1'\); the batch is .*",
        ),
        (nn.Linear(2, 1), lambda m, x: m(x) + torch.ones(7, 7), r"the loss raised RuntimeError: The size .*"),
        (nn.Linear(2, 1), lambda m, x: m.no_such_method(x), r"the loss raised AttributeError: .*no_such_method.*"),
        (nn.Linear(2, 1), own_method, r"the loss raised KeyError: .*"),
    ],
    ids=["model", "arguments", "submodule", "named loss", "loss", "attribute", "another module"],
)
def test_an_error_of_the_model_is_told_from_one_of_the_loss(model, loss, message):
    data = [(torch.ones(4, 2), torch.ones(4, 1))] if loss == "mse" else [torch.ones(4, 2)]
    H = hvpspec.HessianOperator(model, loss, data)
    for use in (H.loss, lambda: H @ torch.ones(H.shape[0])):
        with pytest.raises(InputError, match=rf"^batch 0: {message}$"):
            use()


def test_products_that_turn_nan_name_the_batch():
    """√ at 0 has a finite value and an infinite second derivative."""

    def loss(model, x):
        return model(x).abs().sqrt().mean()

    model = nn.Linear(2, 1, bias=False)
    H = hvpspec.HessianOperator(model, loss, [torch.ones(1, 2), torch.zeros(1, 2)])
    with pytest.raises(InputError, match="batch 1: the Hessian-vector product is not finite"):
        H @ torch.ones(2)
    with pytest.raises(InputError, match="the vector to multiply has NaN"):
        hvpspec.HessianOperator(model, loss, [torch.ones(1, 2)]) @ torch.tensor([1.0, torch.nan])


def test_how_many_samples_a_batch_has_is_never_guessed():
    def loss(model, batch):
        return model(batch[0]).square().mean()

    data = [(torch.randn(4, 2), torch.randn(3, 2)), (torch.randn(5, 2), torch.randn(3, 2))]
    with pytest.raises(InputError, match=r"return \(mean loss, weight\)"):
        Objective(nn.Linear(2, 1), loss, data).value()


def test_half_precision_is_worked_in_float32():
    model = nn.Linear(2, 1).bfloat16()
    H = hvpspec.HessianOperator(model, "mse", [(torch.ones(1, 2), torch.zeros(1, 1))])
    assert H.dtype == np.float32
    assert (H @ torch.ones(3)).tolist() == [6, 6, 6]
    assert model.weight.dtype == torch.bfloat16


def test_model_must_be_a_module():
    with pytest.raises(InputError, match="got function"):
        Objective(own_loss, "mse", [])
