"""How often a product waits for what it has launched: at most twice, whatever the number of parameters and batches."""

import warnings

import pytest
import torch
from counting import counted
from oracle.comparison import Square
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.kernels.deferred import Deferred, Doubtful
from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd
from hvpspec.oracle.recorded import cuda_graph

MOST_READS = 2
ENGINES = [
    ("autograd", None), ("autograd", 1), ("linearized", None), ("linearized", 1), ("cudagraph", None),
    ("finite-difference", None),
]  # fmt: skip


class Deep(nn.Module):
    """Layers with parameters and statistics."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def batches(count):
    return [(torch.randn(3, 4), torch.randint(0, 4, (3,))) for _ in range(count)]


def mean_of_tokens(model, batch):
    """With a weight that is a tensor."""
    kept = batch[1] != 1
    losses = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return (losses * kept).sum() / kept.sum().clamp(min=1), kept.sum()


LOSSES = {
    "by name": "cross_entropy",
    "with weights of classes": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 1.5])),
    "ignoring a class": nn.CrossEntropyLoss(ignore_index=1),
    "that returns its weight": mean_of_tokens,
    "that is measured": lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, ignore_index=1),
    "of the squares": lambda model, batch: Square.apply(model(batch[0])).mean(),
}


def replayed(monkeypatch):
    def capture(work, device, pool):
        result = work()
        return cuda_graph.Replay(lambda: result.copy_(work()), result)

    monkeypatch.setattr(cuda_graph, "capture", capture)


def reads(H, V):
    with counted() as counts:
        H @ V
    return counts.reads


@pytest.mark.parametrize(("engine", "limit"), ENGINES)
def test_reads_of_a_product(engine, limit, monkeypatch):
    replayed(monkeypatch)
    for layers, count in ((1, 2), (3, 7)):
        H = hvpspec.HessianOperator(
            Deep(layers), "cross_entropy", batches(count), engine=engine, memory_limit=limit, dtype="float64"
        )
        V = torch.randn(H.shape[0], 2, dtype=torch.float64)
        for _ in range(3):
            H @ V
        assert {"cudagraph": "linearized"}.get(engine, engine) == H.engine
        assert reads(H, V) <= MOST_READS
        assert reads(H, V[:, :1]) <= MOST_READS


@pytest.mark.gpu
@pytest.mark.parametrize(("engine", "limit"), ENGINES)
@pytest.mark.parametrize("device", ["cpu", "cuda"], ids=["model on the CPU", "model on the GPU"])
def test_how_often_a_product_waits_on_a_gpu(engine, limit, device):
    """By what torch says of operations that wait."""
    data = [tuple(t.to(device) for t in batch) for batch in batches(7)]
    H = hvpspec.HessianOperator(
        Deep(3).to(device), "cross_entropy", data, engine=engine, memory_limit=limit, dtype="float64", device="cuda"
    )
    V = torch.randn(H.shape[0], 2, dtype=torch.float64, device="cuda")
    for _ in range(3):
        H @ V
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            H @ V
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
    assert len(waits) <= MOST_READS, waits


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("limit", [None, 1], ids=["kept", "not kept"])
def test_reads_with_any_loss(loss, limit):
    H = hvpspec.HessianOperator(Deep(2), loss, batches(6), engine="autograd", memory_limit=limit, dtype="float64")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    for _ in range(3):
        H @ v
    assert reads(H, v) <= MOST_READS
    H.expect(10)  # the loss is compared in the next product
    assert reads(H, v) <= MOST_READS


def test_a_number_more_that_is_read_is_seen():
    """The test above can fail: here the model reads one for each batch."""
    model, inner = Deep(1), Deep.forward
    model.forward = lambda x: inner(model, x) * (1 if float(x.sum()) < 1e9 else 2)
    H = hvpspec.HessianOperator(model, "cross_entropy", batches(3), engine="autograd", memory_limit=1)
    v = torch.randn(H.shape[0])
    H @ v
    H @ v
    assert reads(H, v) >= 3


def test_weights_that_change_between_passes():
    """Taken to be those of the pass before, until they are read."""
    model, data = Deep(1).double(), batches(3)
    data = [(x.double(), y) for x, y in data]
    weights = [torch.tensor(float(k + 1)) for k in range(3)]
    H = hvpspec.HessianOperator(
        model, lambda model, batch: (nn.functional.cross_entropy(model(batch[0]), batch[1]), batch[2]),
        [(*batch, weight) for batch, weight in zip(data, weights, strict=True)], engine="autograd", memory_limit=1,
    )  # fmt: skip
    v = torch.randn(H.shape[0], dtype=torch.float64)
    H @ v
    weights[0].fill_(2.0)
    weights[1].fill_(1.0)  # the total stays what it was
    parts = [Objective(model, "cross_entropy", [batch]) for batch in data]
    expected = sum(w * autograd.hvp(part, v[:, None])[:, 0] for w, part in zip((2, 1, 3), parts, strict=True)) / 6
    assert torch.allclose(H @ v, expected, rtol=1e-12)


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
@pytest.mark.parametrize("limit", [None, 1], ids=["kept", "not kept"])
def test_errors_are_as_exact_as_with_each_check_at_once(engine, limit):
    """Of the eighth batch, in a pass in which checks are deferred."""
    model, data = Deep(1).double(), [(x.double(), y) for x, y in batches(9)]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine, memory_limit=limit)
    v = torch.randn(H.shape[0], dtype=torch.float64)
    for _ in range(3):
        H @ v
    data[7][0][1, 2] = torch.nan
    with pytest.raises(InputError, match=r"^batch 7: the loss is nan; look at that batch"):
        H @ v
    data[7][0][1, 2] = 0.0
    assert torch.isfinite(H @ v).all()


# --- the checks themselves ---


def test_numbers_are_received_in_order_in_one_read():
    deferred, found = Deferred(), []
    for number in (torch.tensor(1.5), torch.tensor(3), torch.tensor(True), torch.tensor([2.5], dtype=torch.float64)):
        deferred.note(number, found.append)
    with counted() as counts:
        deferred.read()
    assert found == [1.5, 3.0, 1.0, 2.5]
    assert counts.reads == 1
    deferred.read()
    assert len(found) == 4
    deferred.forbid(torch.tensor(True))
    with pytest.raises(Doubtful):
        deferred.read()
    deferred.require(lambda: False)
    with pytest.raises(Doubtful):
        deferred.read()
