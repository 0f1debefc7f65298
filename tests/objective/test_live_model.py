"""What is differentiated is the user's own module, and that is afterwards what it was before."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import hvpspec
from hvpspec.errors import InputError

ENGINES = ("autograd", "linearized", "finite-difference")


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def product_by_hand(model, loss, v):
    """Double backward on the module itself."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    pieces = v.split([p.numel() for p in parameters])
    gradients = torch.autograd.grad(loss(model), parameters, create_graph=True, allow_unused=True)
    total = sum((g * x.view_as(g)).sum() for g, x in zip(gradients, pieces, strict=True) if g is not None)
    found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([piece.reshape(-1) for piece in found])


def data(*split, inputs=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(split), inputs, generator=generator)
    y = torch.randint(0, classes, (sum(split),), generator=generator)
    return x, y, list(zip(x.split(split), y.split(split), strict=True))


def everything(model):
    """All that a model is: identities and values of its tensors, modes, and attributes of every module."""
    tensors = [(name, id(t), t.data_ptr(), t.requires_grad, t.clone()) for name, t in model.named_parameters()]
    tensors += [(name, id(t), t.data_ptr(), False, t.clone()) for name, t in model.named_buffers()]
    slots = [
        (name, key, id(tensor))
        for name, module in model.named_modules(remove_duplicate=False)
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]
    ]
    attributes = [
        (name, key, id(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules")
    ]
    return tensors, slots, attributes


def same(one, other):
    for (name, *a, x), (_, *b, y) in zip(one[0], other[0], strict=True):
        assert a == b, name
        assert torch.equal(x, y), name
    assert one[1:] == other[1:]


class Shared(nn.Module):
    """One block used twice, under two names, as in ALBERT and Siamese networks."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.layers = nn.ModuleList([block, block])
        self.twin = block[0]
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.twin(x))


class Merging(nn.Linear):
    """Adds B·A to its frozen weight in eval mode, and takes it off again in training mode, as loralib does."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.A, self.B = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.B @ self.A).data
            self.merged = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + (0 if self.merged else x @ self.A.T @ self.B.T)


class Caching(nn.Module):
    """Keeps, in eval mode, what it has computed from a parameter (as LeViT does), a mask, and a running state."""

    def __init__(self):
        super().__init__()
        self.bias, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 3)
        self.cache, self.mask, self.seen = {}, None, []
        self.state = torch.zeros(())

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x):
        if not self.training and "bias" not in self.cache:
            self.cache["bias"] = self.bias**2
        bias = self.bias**2 if self.training else self.cache["bias"]
        if self.mask is None:
            self.mask = torch.ones(4, device=x.device)
        self.seen.append(len(x))
        self.state.add_(1)
        return self.head(torch.tanh(x * bias * self.mask))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [Shared, Caching])
def test_the_product_is_that_of_the_module_which_stays_what_it_was(make, engine):
    model = make()
    x, y, batches = data(3, 5)
    v = torch.randn(sum(p.numel() for p in model.parameters()))
    expected = product_by_hand(copy.deepcopy(model).train(), lambda m: F.cross_entropy(m(x), y), v)
    before = everything(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    H = hvpspec.HessianOperator(model, "cross_entropy", batches, engine=engine)
    H.loss()
    for _ in range(3):
        torch.testing.assert_close(H @ v, expected, rtol=1e-6 if engine == "finite-difference" else 1e-12, atol=1e-9)
    same(before, everything(model))
    F.cross_entropy(model(x), y).backward()
    optimizer.step()  # which reaches the parameters as before
    assert not torch.equal(before[0][0][-1], next(model.parameters()))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_next_call_of_the_user_meets_no_stand_ins(engine):
    model = Caching()
    x, _, batches = data(3, 5)
    H = hvpspec.HessianOperator(model, "cross_entropy", batches, engine=engine)
    H @ torch.randn(H.shape[0])
    assert model.mask is None
    assert model.cache == {}
    assert model.seen == []
    assert float(model.state) == 0
    assert not isinstance(model(x), FakeTensor)


@pytest.mark.parametrize("make", [Shared, Caching])
def test_a_model_that_raises_is_put_back(make):
    model = make()
    before = everything(model)
    calls = 0

    def loss(m, batch):
        nonlocal calls
        calls += 1
        value = F.cross_entropy(m(batch[0]), batch[1])
        if calls == 2:
            raise RuntimeError("enough")
        return value

    H = hvpspec.HessianOperator(model, loss, data(3, 5)[2], verify=False)
    with pytest.raises(InputError, match="enough"):
        H @ np.ones(H.shape[0])
    same(before, everything(model))


def test_layers_that_merge_weights_are_named_and_left_alone():
    model = nn.Sequential(Merging(4, 5), nn.Tanh(), Merging(5, 3)).train()
    before = everything(model)
    H = hvpspec.HessianOperator(model, "cross_entropy", data(3, 5)[2])
    with pytest.raises(InputError, match=r"change the model's values \(0.weight, 2.weight\)"):
        H @ np.ones(H.shape[0])
    same(before, everything(model))
    assert not model[0].merged


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_parameters_that_a_loss_reaches_by_another_way(engine):
    """A closure over the model's parameters, and a list that a module keeps."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    own = list(model.parameters())
    x, y, batches = data(3, 5)

    def loss(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1]) + 0.1 * sum(p.pow(4).sum() for p in own)

    H = hvpspec.HessianOperator(model, loss, batches, engine=engine)
    v = torch.randn(H.shape[0])
    torch.testing.assert_close(H @ v, product_by_hand(model, lambda m: loss(m, (x, y)), v), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("limit", [None, "1B"])
def test_numbers_that_change_between_products_are_followed(engine, limit):
    """`model.temperature`, a variable of the loss's scope, and a tensor that is written to."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model.temperature = 1.0
    strength, centre = 0.1, torch.zeros(3)
    x, y, batches = data(3, 5)

    def loss(m, batch):
        outputs = m(batch[0]) / m.temperature
        return F.cross_entropy(outputs, batch[1]) + strength * (outputs - centre).pow(4).mean()

    H = hvpspec.HessianOperator(model, loss, batches, engine=engine, memory_limit=limit)
    v = torch.randn(H.shape[0])

    def check():
        torch.testing.assert_close(H @ v, product_by_hand(model, lambda m: loss(m, (x, y)), v), rtol=1e-11, atol=1e-12)

    check()
    model.temperature = 2.0
    check()
    strength = 0.7
    check()
    centre.add_(1)
    check()


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_pairs_of_numbers_may_be_viewed_as_complex_ones(engine):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = nn.Linear(4, 1, bias=True), nn.Parameter(torch.randn(3, 2))

        def forward(self, x):
            f = torch.fft.rfft(x * self.first(x)) * torch.view_as_complex(self.weight)
            return torch.fft.irfft(f, n=4)[:, :3]

    model = Spectral()
    x, y, batches = data(3, 5)
    H = hvpspec.HessianOperator(model, "cross_entropy", batches, engine=engine)
    V = torch.randn(H.shape[0], 3)
    expected = [product_by_hand(model, lambda m: F.cross_entropy(m(x), y), v) for v in V.T]
    torch.testing.assert_close(H @ V, torch.stack(expected, 1), rtol=1e-11, atol=1e-12)


def test_the_padding_row_of_an_embedding_that_is_tied_to_the_head():
    """As a look-up it is a constant, as a row of the head it is not: so it is for differences of the gradient too."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 4, padding_idx=0)
            self.embedding.weight.data[0] = torch.randn(4)

        def forward(self, ids):
            return torch.tanh(self.embedding(ids)) @ self.embedding.weight.T

    model = Tied()
    ids, targets = torch.randint(0, 6, (8,)), torch.randint(0, 6, (8,))
    ids[0] = 0
    v = torch.randn(24)
    exact, differences = (
        hvpspec.HessianOperator(model, "cross_entropy", [(ids, targets)], engine=engine)
        for engine in ("autograd", "finite-difference")
    )
    expected = exact @ v
    assert float(expected[:4].norm()) > 1e-3
    torch.testing.assert_close(differences @ v, expected, rtol=1e-6, atol=1e-8)
