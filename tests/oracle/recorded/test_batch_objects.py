"""Batches that are objects, and losses that write to them or move them: recorded, or the plan says why not."""

import collections
import copy
import dataclasses
import datetime
import enum
import pathlib
import threading
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle.comparison import relative
from torch import Tensor, nn

import hvpspec
from hvpspec.oracle.recorded.tracing import NotRecordable, shape_of

X, Y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Record:
    x: Tensor
    y: Tensor
    name: str = "a"


class Named(NamedTuple):
    x: Tensor
    y: Tensor


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


class Bag:
    """With a method `to`, as collate functions make them."""

    def __init__(self, x, y, **others):
        self.x, self.y = x, y
        vars(self).update(others)

    def to(self, *args):
        return Bag(self.x.to(*args), self.y.to(*args), **{k: v for k, v in vars(self).items() if k not in "xy"})


class Graph:
    """Its tensors are in a store, and attributes are looked up there, as in PyTorch Geometric."""

    def __init__(self, **store):
        self.__dict__["_store"] = store

    def __getattr__(self, name):
        store = self.__dict__.get("_store", {})
        if name not in store:
            raise AttributeError(name)
        return store[name]

    def to(self, device):
        return Graph(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in self._store.items()})


class Lookup(collections.abc.Mapping):
    def __init__(self, **entries):
        self._entries = entries

    def __getitem__(self, key):
        return self._entries[key]

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)


class Kind(enum.Enum):
    NODE = 1


def scale(x):
    return 2 * x


PLAIN = {
    "enum": Kind.NODE,
    "bytes": b"ab",
    "complex": 1j,
    "path": pathlib.Path("a"),
    "date": datetime.date(2020, 1, 1),
    "range": range(3),
    "slice": slice(0, 2),
    "NumPy number": np.float32(0.5),
    "array": np.arange(3.0),
    "array of words": np.array(["a", "b"]),
    "dtype": np.dtype("f8"),
    "ellipsis": ...,
    "memory format": torch.channels_last,
    "function": scale,
    "function of torch": F.relu,
    "class": nn.ReLU,
    "module": np,
    "object": SimpleNamespace(a=3, b=[1, {"x": "y"}], c={1, 2}),
    "mapping": MappingProxyType({"a": 1}),
    "size": torch.Size([2]),
    "nothing": None,
}
ATTRIBUTES = {
    "dataclass": Record(X, Y),
    "named tuple": Named(X, Y),
    "slots": Slots(X, Y),
    "with to": Bag(X, Y),
    "namespace": SimpleNamespace(x=X, y=Y),
    "graph": Graph(x=X, y=Y, num_nodes=6),
    "with much else": Bag(X, Y, others=PLAIN, **{name.replace(" ", "_"): value for name, value in PLAIN.items()}),
}
ENTRIES = {
    "ordered": collections.OrderedDict(x=X, y=Y),
    "user's": collections.UserDict(x=X, y=Y),
    "mapping": Lookup(x=X, y=Y),
    "proxy": MappingProxyType({"x": X, "y": Y}),
    "chain": collections.ChainMap({"x": X}, {"y": Y}),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def compared(loss, batch, model=None):
    """The operator, after its product has been compared with that of an explicit Hessian of the same loss."""
    model = network() if model is None else model
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(F.mse_loss(model(X), Y), parameters, create_graph=True)
    entries = torch.cat([g.flatten() for g in gradient])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in entries]
    matrix = torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])
    v = torch.randn(len(matrix), dtype=torch.float64)
    H = hvpspec.HessianOperator(model, loss, [batch], engine="linearized")
    assert relative(H @ v, matrix @ v) <= 1e-12
    return H


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes(name):
    H = compared(lambda model, batch: (F.mse_loss(model(batch.x), batch.y), len(batch.x)), ATTRIBUTES[name])
    assert H.engine == "linearized", H.plan


@pytest.mark.parametrize("name", ENTRIES)
def test_entries(name):
    H = compared(lambda model, batch: (F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])), ENTRIES[name])
    assert H.engine == "linearized", H.plan


def test_transformers_batches():
    transformers = pytest.importorskip("transformers")
    batch = transformers.BatchEncoding({"x": X, "y": Y})
    H = compared(lambda model, batch: (F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])), batch)
    assert H.engine == "linearized", H.plan


@pytest.mark.parametrize(
    ("other", "called"),
    [
        (object(), "object"),
        (torch.Generator(), "Generator"),
        (nn.Linear(1, 1), "Linear"),
        (lambda x: x, "function"),
        ([SimpleNamespace(f=lambda x: x)], "function"),
        (np.array([object()]), "ndarray"),
        (iter([1]), "list_iterator"),
    ],
)
def test_what_is_not_known_is_named(other, called):
    """A recording with it could be of another batch. It is a line in the plan, and the product is right."""
    loss = lambda model, batch: (F.mse_loss(model(batch.x), batch.y), len(batch.x))  # noqa: E731
    H = compared(loss, Bag(X, Y, other=other))
    assert H.plan.startswith(f"autograd (a batch holds a {called}, whose contents are unknown)")
    assert "\n" not in H.plan


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_contents_are_the_same_shape(name):
    """Made again with each pass, as by a DataLoader; and other contents are another shape."""
    value = PLAIN[name]
    again = value if callable(value) or name in ("module", "mapping", "memory format") else copy.deepcopy(value)
    key, _ = shape_of(Bag(X, Y, other=value))
    assert key == shape_of(Bag(X, Y, other=again))[0]
    others = [shape_of(Bag(X, Y, other=other))[0] for label, other in PLAIN.items() if label != name]
    assert key not in others


def test_changed_contents_are_seen():
    """Numbers that the loss reads from an object that holds no tensor."""
    options = SimpleNamespace(scale=1.0, more=[{"factor": 0.5}])

    def loss(model, batch):
        x, y, options = batch
        return options.scale * options.more[0]["factor"] * F.mse_loss(model(x), y), len(x)

    model, v = network(), torch.randn(37, dtype=torch.float64)
    H = hvpspec.HessianOperator(model, loss, [(X, Y, options)], engine="linearized")
    first = H @ v[: H.shape[0]]
    assert H.engine == "linearized", H.plan
    for change in (lambda: setattr(options, "scale", 3.0), lambda: options.more[0].update(factor=2.0)):
        before = shape_of((X, Y, options))[0]
        change()
        assert shape_of((X, Y, options))[0] != before
    again = hvpspec.HessianOperator(model, loss, [(X, Y, options)], engine="linearized")
    assert relative(again @ v[: H.shape[0]], 12 * first) <= 1e-12


def test_an_object_that_holds_itself_or_a_lock():
    loop = SimpleNamespace(a=1)
    loop.self = loop
    assert shape_of((X, loop)) is not None
    with pytest.raises(NotRecordable, match="a batch holds a lock"):
        shape_of((X, SimpleNamespace(lock=threading.Lock())))


# --- losses that write, move and convert ---


def _pads(model, batch):
    batch["y"][batch["y"] > 100] = 0  # as labels are masked
    return F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])


def _writes_all(model, batch):
    batch["x"].mul_(1.0)
    batch["y"][:, 0] += 0
    return F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])


def _adds_an_entry(model, batch):
    batch["found"] = model(batch["x"])
    return F.mse_loss(batch["found"], batch["y"]), len(batch["x"])


def _moves(model, batch):
    batch = {key: value.to(next(model.parameters()).device, torch.float64) for key, value in batch.items()}
    return F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])


def _moves_the_model(model, batch):
    model.to("cpu").double().to(torch.float64)
    model[0].to(batch["x"].dtype)
    return F.mse_loss(model(batch["x"]), batch["y"]), len(batch["x"])


def _counts(model, batch):
    model.steps = getattr(model, "steps", 0) + 1
    model.last = model(batch["x"])
    return F.mse_loss(model.last, batch["y"]), len(batch["x"])


@pytest.mark.parametrize("loss", [_pads, _writes_all, _adds_an_entry, _moves, _moves_the_model, _counts])
def test_losses_that_change_things(loss):
    H = compared(loss, {"x": X.clone(), "y": Y.clone()})
    assert H.engine == "linearized", H.plan


class Router(nn.Module):
    """Moves its parts in its forward, as mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.classifier, self.out = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        self.classifier = self.classifier.to(x.dtype)
        return self.out(self.classifier(x).softmax(-1).to(x.dtype))


def test_modules_that_move_their_parts():
    torch.manual_seed(0)
    model = Router().double()
    apply = nn.Module._apply
    H = compared(lambda model, batch: (F.mse_loss(model(batch[0]), batch[1]), 6), (X, Y), model)
    assert H.engine == "linearized", H.plan
    assert nn.Module._apply is apply
    assert all(p.dtype == torch.float64 for p in model.float().double().parameters())


def test_a_loss_that_writes_to_parameters_is_not_recorded():
    def loss(model, batch):
        with torch.no_grad():
            model[0].weight.mul_(1.0)
        return F.mse_loss(model(batch[0]), batch[1]), 6

    H = hvpspec.HessianOperator(network(), loss, [(X, Y)], engine="linearized")
    H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert H.engine == "autograd"


class Slices(nn.Module):
    def forward(self, x):
        out = torch.zeros_like(x)
        for i in range(4):
            out[:, i] = x[:, i] * x[:, i - 1]
        return out


def test_nothing_is_printed_while_vectors_are_computed_together(capfd):
    """torch warns of operations without a batching rule, on stderr: once here, of the user's own vmap."""
    model = nn.Sequential(nn.Linear(4, 4), Slices()).double()
    H = hvpspec.HessianOperator(model, "mse", [(X, X)], engine="linearized")
    H @ torch.randn(H.shape[0], 8, dtype=torch.float64)
    assert H.engine == "linearized", H.plan
    assert "BatchedFallback" not in capfd.readouterr().err
    torch.func.vmap(lambda x: torch.ops.aten.copy(torch.zeros_like(x), x))(torch.ones(2, 3))
    assert capfd.readouterr().err.count("BatchedFallback") == 1
