"""Batches of any kind of object reach the precision of the run, are of the type that they were, and are not changed."""

import collections
import copy
import dataclasses
import types
import weakref
from collections.abc import MutableMapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from transformers import BatchEncoding
from transformers.modeling_outputs import BaseModelOutput

import hvpspec
from hvpspec.objective.batches import move

CPU = torch.device("cpu")


def x():
    return torch.randn(3, 2)


def ids():
    return torch.arange(3)


class AttributeDict(dict):
    """Entries are attributes."""

    def __init__(self, **entries):
        super().__init__(entries)
        self.__dict__ = self


class OwnMapping(MutableMapping):
    def __init__(self, **entries):
        self._entries = entries

    def __getitem__(self, key):
        return self._entries[key]

    def __setitem__(self, key, value):
        self._entries[key] = value

    def __delitem__(self, key):
        del self._entries[key]

    def __iter__(self):
        return iter(self._entries)

    def __len__(self):
        return len(self._entries)


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    count: int = 3
    twice: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "twice", 2 * self.x)


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    x: torch.Tensor
    array: np.ndarray


class Private:
    __slots__ = ("__x", "more")

    def __init__(self, x):
        self.__x, self.more = x, [x]

    @property
    def x(self):
        return self.__x


class Inherited(Private):
    __slots__ = ("y",)

    def __init__(self, x):
        super().__init__(x)
        self.y = x + 1


class Moves:
    """Its own method knows of devices only, and changes it in place."""

    def __init__(self):
        self.x, self.ids, self.array = x(), ids(), np.ones(3, np.float32)

    def to(self, device):
        self.x = self.x.to(device)
        return self


class NotCopied(Moves):
    def __copy__(self):
        raise RuntimeError("no copies")


class Store(MutableMapping):
    """As graph libraries keep their tensors: entries that know their graph."""

    def __init__(self, graph):
        self.__dict__["_mapping"], self.__dict__["_graph"], self.__dict__["_key"] = {}, weakref.ref(graph), None

    _key = property(lambda self: self.__dict__["_key"])
    __getitem__ = lambda self, key: self._mapping[key]  # noqa: E731
    __setitem__ = lambda self, key, value: self._mapping.__setitem__(key, value)  # noqa: E731
    __delitem__ = lambda self, key: self._mapping.__delitem__(key)  # noqa: E731
    __iter__ = lambda self: iter(self._mapping)  # noqa: E731
    __len__ = lambda self: len(self._mapping)  # noqa: E731


class Graph:
    def __init__(self, **entries):
        self.__dict__["_store"] = Store(self)
        self._store.update(entries)

    def __getattr__(self, name):
        if name.startswith("_") or name not in self._store:
            raise AttributeError(name)
        return self._store[name]


class Numbered(list):
    def __init__(self, inside, number):
        super().__init__(inside)
        self.number, self.extra = number, x()


class Twice(collections.namedtuple("Pair", "a b")):
    __slots__ = ()

    def __new__(cls, a):
        return super().__new__(cls, a, a)


def cycle():
    found = [x()]
    found.append(found)
    return found


# {kind: (a batch, what is in it, what that becomes)}
KINDS = {
    "BatchEncoding": (lambda: BatchEncoding({"x": x(), "ids": ids()}), lambda b: [b.x, b["x"], b.ids], "ffi"),
    "model output": (lambda: BaseModelOutput(x(), (x(),)), lambda b: [b.last_hidden_state, b[0], b[1][0]], "fff"),
    "attribute dict": (lambda: AttributeDict(x=x(), ids=ids()), lambda b: [b.x, b["x"], b.ids], "ffi"),
    "ordered dict": (lambda: collections.OrderedDict(x=x()), lambda b: [b["x"]], "f"),
    "own mapping": (lambda: OwnMapping(x=x(), inner=OwnMapping(y=x())), lambda b: [b["x"], b["inner"]["y"]], "ff"),
    "frozen dataclass": (lambda: Frozen(x()), lambda b: [b.x, b.twice], "ff"),
    "slots dataclass": (lambda: Slots(x(), np.ones(3, np.float32)), lambda b: [b.x, b.array], "ff"),
    "private slots": (lambda: Inherited(x()), lambda b: [b.x, b.y, b.more[0]], "fff"),
    "namespace": (
        lambda: types.SimpleNamespace(x=x(), inner=types.SimpleNamespace(ids=ids(), y=x())),
        lambda b: [b.x, b.inner.ids, b.inner.y],
        "fif",
    ),
    "moves": (Moves, lambda b: [b.x, b.ids, torch.from_numpy(b.array)], "fif"),
    "not copied": (NotCopied, lambda b: [b.x, b.ids], "fi"),
    "graph": (lambda: Graph(x=x(), edges=ids()), lambda b: [b.x, b.edges, b._store._graph().x], "fif"),
    "packed": (lambda: pack_sequence([x(), x()[:2]]), lambda b: [b.data, b.batch_sizes], "fi"),
    "packed ids": (lambda: pack_sequence([ids(), ids()[:2]]), lambda b: [b.data, b.batch_sizes], "ii"),
    "nested": (lambda: torch.nested.nested_tensor([x(), x()[:2]], layout=torch.jagged), lambda b: [b], "f"),
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda b: [b], "f"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), lambda b: [b], "f"),
    "others": (
        lambda: (torch.ones(2, dtype=torch.complex64), torch.ones(2) > 0, x().half(), ids().byte()),
        list,
        "cbfu",
    ),
    "arrays": (
        lambda: [np.ones(3, ">f4"), np.ones(3, np.longdouble), np.ones(3, np.complex64), np.arange(3.0)[::-1]],
        list,
        "ffcf",
    ),
    "set": (lambda: {x()}, list, "f"),
    "deque": (lambda: collections.deque([x()], maxlen=3), list, "f"),
    "namedtuple": (lambda: Twice(x()), lambda b: [b.a, b.b], "ff"),
    "torch.max": (lambda: torch.max(x(), 0), lambda b: [b.values, b.indices], "fi"),
    "own list": (lambda: Numbered([x()], 3), lambda b: [b[0], b.extra], "ff"),
    "cycle": (cycle, lambda b: [b[0], b[1][1][0]], "ff"),
}
DTYPES = {"f": torch.float64, "i": torch.int64, "c": torch.complex128, "b": torch.bool, "u": torch.uint8}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's, on sparse tensors
def test_what_is_inside_is_converted(kind):
    make, inside, dtypes = KINDS[kind]
    batch = make()
    before = [(t, copy.copy(t)) for t in inside(batch)]
    found = move(batch, CPU, torch.float64)
    assert type(found) is type(batch)
    assert [t.dtype for t in inside(found)] == [DTYPES[letter] for letter in dtypes]
    for now, (same, _) in zip(inside(batch), before, strict=True):
        assert isinstance(now, np.ndarray) or now.dtype == same.dtype
    if not isinstance(batch, torch.Tensor):
        assert found is not batch


def test_what_is_not_tensors_stays():
    class Other:
        pass

    other, function = Other(), len
    batch = {"none": None, "text": "a", "number": 2.5, "shape": torch.Size([2]), "other": other, "f": function}
    found = move(batch, CPU, torch.float64)
    assert found == batch
    assert found["other"] is other


def test_one_tensor_in_two_places_stays_one():
    shared = x()
    a, b = move((shared, {"again": shared}), CPU, torch.float64)
    assert a is b["again"]
    kept = AttributeDict(x=shared)
    moved = move(kept, CPU, torch.float64)
    moved.y = 1
    assert moved["y"] == 1
    assert "y" not in kept


def test_a_loss_may_change_its_batch():
    batch = {"x": x().double(), "labels": ids()}
    move(batch, CPU, torch.float64).pop("labels")
    assert "labels" in batch


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("make", [AttributeDict, types.SimpleNamespace, BatchEncoding, Graph, OwnMapping])
def test_products_in_float64_of_float32_batches(make, engine):
    model = nn.Linear(2, 2)
    entries = [{"inputs": torch.randn(5, 2), "targets": torch.arange(5) % 2} for _ in range(2)]
    data = [make(entry) if make is BatchEncoding else make(**entry) for entry in entries]

    def loss(model, batch):
        if make is OwnMapping:
            return F.cross_entropy(model(batch["inputs"]), batch["targets"]), len(batch["targets"])
        return F.cross_entropy(model(batch.inputs), batch.targets), len(batch.targets)

    H = hvpspec.HessianOperator(model, loss, data, dtype="float64", engine=engine)
    pairs = [(entry["inputs"].double(), entry["targets"]) for entry in entries]
    expected = hvpspec.HessianOperator(copy.deepcopy(model).double(), "cross_entropy", pairs, engine="autograd")
    v = np.arange(1.0, 1 + H.shape[0])
    np.testing.assert_allclose(H @ v, expected @ v, rtol=1e-12)
    assert H.engine == engine  # recorded as well
