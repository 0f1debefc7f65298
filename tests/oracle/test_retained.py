"""Graphs that are kept between products: the same bits as without, within the memory limit, for every kind of loss.

Fresh products are those of `autograd.hvp`, which test_autograd.py compares with explicit Hessians.
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from oracle.comparison import Square, fresh, kept, share
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo import CASES, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.memory import readable
from hvpspec.oracle import autograd, retained
from hvpspec.oracle.graph_memory import held_by


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_kept_graphs_give_the_same_bits(name, dtype):
    H, V = kept(CASES[name](), dtype=dtype)
    assert share(H) == 1
    count = H.batch_count()
    assert (
        H.plan == f"autograd, gradient graphs of {count} of {count} batches kept ({readable(H._product._plain._size)})"
    )
    for columns in (V, V[:, :1], -V):
        assert torch.equal(H @ columns, fresh(H, columns))


def test_the_first_product_keeps_nothing_unless_more_are_expected():
    H, V = kept(mlp(), products=1)
    assert H.plan == "autograd"
    H, V = kept(mlp(), products=0)
    H.expect(10)
    H @ V
    assert share(H) == 1


def test_the_loss_is_not_evaluated_again():
    case, calls = mlp(), []
    inner = case.model.forward
    case.model.forward = lambda x: calls.append(1) or inner(x)
    H, V = kept(case)
    made = len(calls)
    H @ V
    assert len(calls) == made


def test_folds_have_their_own_products():
    H, V = kept(mlp())
    found, expected = [], []
    H.multiply_by_folds(V, 3, lambda *fold: found.append((*fold[:2], fold[2].clone())))
    autograd.hvp(H.objective, V, lambda index, weight, product: expected.append((index, weight, product.clone())))
    for (fold, weight, product), (index, w, expected_product) in zip(found, expected, strict=True):
        assert (fold, weight) == (index, w)
        assert torch.allclose(product, expected_product, rtol=1e-14, atol=0)


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_in_another_precision(dtype):
    """Its values are converted in place for each product, which gives its parameters new places in the graph."""
    case = mlp()
    case.model.to(dtype)
    H, V = kept(case, dtype="float64" if dtype == torch.float32 else None)
    found = H @ V
    assert share(H) == 1
    assert torch.equal(found, fresh(H, V))
    assert float(found.norm()) > 0
    assert next(case.model.parameters()).dtype == dtype
    next(case.model.parameters()).data.mul_(1.3)
    assert torch.equal(H @ V, fresh(H, V))


def test_products_in_float64_between_products_change_nothing():
    H, V = kept(mlp(), dtype="float32")
    H.recompute(V)
    assert share(H) == 1
    assert torch.equal(H @ V, fresh(H, V))


# --- memory ---


def test_bytes_are_counted_once_each_and_without_the_model():
    """Of a matrix product and a square: closed form."""
    x = torch.randn(50, 20, dtype=torch.float64)
    w = nn.Parameter(torch.randn(20, 30, dtype=torch.float64))
    hidden = x @ w
    (g,) = torch.autograd.grad(hidden.pow(2).sum(), [w], create_graph=True)
    held = held_by([g])
    assert not held.runs_python
    sizes = sorted(size for size in held.storages.values() if size > 64)
    assert sizes.count(x.nbytes) == 1
    assert sizes.count(hidden.nbytes) >= 1
    assert sum(sizes) <= x.nbytes + w.nbytes + 4 * hidden.nbytes


def test_the_memory_limit_is_honoured():
    case = CASES["transformer layer"]()
    H, V = kept(case)
    plain = H._product._plain
    each = [batch.size for batch in plain._kept.values()]
    values = 2 * sum(t.nbytes for t in case.model.state_dict().values())
    H, V = kept(case, memory_limit=values + each[0] + each[1] + each[2] - 1)  # without room for the one in use
    plain = H._product._plain
    assert 0 < len(plain._kept) < 3
    assert plain._size + max(each) <= values + sum(each)
    assert torch.equal(H @ V, fresh(H, V))
    H, V = kept(case, memory_limit=1)
    assert share(H) == 0
    assert H.plan == "autograd"


def test_the_most_expensive_by_byte_are_kept():
    case = mlp()
    H, V = kept(case)
    sizes = {index: batch.size for index, batch in H._product._plain._kept.items()}
    values = 2 * sum(p.nbytes for p in case.model.parameters())
    plain = retained.RetainedGraphs(H.objective, values + sizes[0] + sizes[1])
    plain.keep = True
    real = plain._keep

    def keep(graph, form, tensors, written, seconds, limit):
        real(graph, form, tensors, written, [1.0, 5.0, 3.0][graph.index], limit)

    plain._keep = keep
    plain(V)
    assert list(plain._kept) == [1]
    assert torch.equal(plain(V), fresh(H, V))


def test_without_memory_graphs_are_given_up_first(monkeypatch):
    H, V = kept(CASES["transformer layer"]())
    plain, made = H._product._plain, []
    real = autograd.hvp

    def tight(objective, columns, on_batch=None, graphs=autograd.fresh_graphs):
        made.append(len(plain._kept))
        if len(made) <= 2:
            raise torch.OutOfMemoryError("out of memory")
        return real(objective, columns, on_batch, graphs)

    monkeypatch.setattr(autograd, "hvp", tight)
    assert torch.equal(H @ V, real(H.objective, V))
    assert made[0] == 3
    assert made[1:] == [0, 0]
    assert plain._limit is not None


# --- losses whose graphs run Python, or refer to what changes ---


class Once(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def loss_of(function):
    return lambda model, batch: function(model(batch[0])).pow(2).mean()


def test_functions_in_python_are_compared_once():
    case = mlp()
    case.loss = loss_of(Square.apply)
    H, V = kept(case, products=3)
    plain = H._product._plain
    assert plain._runs_python
    assert plain._compared
    assert share(H) == 1
    assert torch.equal(H @ V, fresh(H, V))


def test_a_function_that_differs_from_time_to_time_is_not_kept(monkeypatch):
    case = mlp()
    case.loss = loss_of(Square.apply)
    H, V = kept(case)
    real = autograd.hvp

    def other(objective, columns, on_batch=None, graphs=autograd.fresh_graphs):
        changed = graphs is not autograd.fresh_graphs and share(H) > 0
        return real(objective, columns, on_batch, graphs) * (1 + 1e-15 if changed else 1)

    monkeypatch.setattr(autograd, "hvp", other)
    assert torch.equal(H @ V, real(H.objective, V))
    assert share(H) == 0
    assert torch.equal(H @ V, real(H.objective, V))


def test_a_function_that_is_differentiable_once_is_refused():
    case = mlp()
    case.loss = loss_of(Once.apply)
    H, V = kept(case, products=0, verify=False)
    for _ in range(3):
        with pytest.raises(InputError, match="'Once' is marked @once_differentiable"):
            H @ V


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_models(reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(checkpoint(lambda h: self.first(h).tanh().sin(), x, use_reentrant=reentrant))

    case = mlp()
    case.model = Model().double()
    H, V = kept(case, products=4)
    assert H._product._plain._runs_python
    assert share(H) == 1
    assert torch.equal(H @ V, fresh(H, V))
    next(case.model.parameters()).data.mul_(1.3)
    assert torch.equal(H @ V, fresh(H, V))


class Noisy(nn.Module):
    def __init__(self, checkpointed):
        super().__init__()
        self.inside, self.checkpointed = nn.Linear(4, 3), checkpointed

    def drop(self, x):
        return nn.functional.dropout(self.inside(x).tanh(), 0.5)

    def forward(self, x):
        return checkpoint(self.drop, x, use_reentrant=False) if self.checkpointed else self.drop(x)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_noise_that_a_backward_could_draw_again_is_not_kept(checkpointed):
    case = mlp()
    case.model = Noisy(checkpointed).double()
    H, V = kept(case, products=3, noise_seed=0)
    assert share(H) == (0 if checkpointed else 1)
    assert torch.equal(H @ V, fresh(H, V))


class Writing(nn.Module):
    """Keeps what depends on the batch in a tensor of its own, which the loss depends on."""

    def __init__(self, buffer):
        super().__init__()
        self.inside = nn.Linear(4, 3)
        if buffer:
            self.register_buffer("_scale", torch.ones(1))
        else:
            self._scale = torch.ones(1, dtype=torch.float64)

    def forward(self, x):
        self.write(x.detach().abs().mean())
        return self.inside(x).tanh().pow(2) * self._scale

    def write(self, value):
        self._scale.copy_(value)


class WritingThroughData(Writing):
    def write(self, value):
        self._scale.data.fill_(float(value))


@pytest.mark.parametrize("make", [Writing, WritingThroughData])
@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
@pytest.mark.parametrize("batches", [1, 3])
def test_forward_passes_that_write(make, buffer, batches):
    case = mlp()
    case.model, case.data = make(buffer).double(), case.data[:batches]
    H, V = kept(case, products=0)
    for _ in range(5):
        assert torch.equal(H @ V, fresh(H, V))


def test_a_hook_on_a_parameter():
    case = mlp()
    first = next(case.model.parameters())
    first.register_hook(lambda g: 2 * g)
    H, V = kept(case, products=3, verify=False)
    assert torch.equal(H @ V, fresh(H, V))


def test_a_vector_that_is_not_finite_is_refused_as_before():
    H, V = kept(mlp(), products=3)
    with pytest.raises(InputError, match="vector to multiply has NaN"):
        H @ (V * float("nan"))


def test_a_copy_has_no_graphs():
    case = mlp()
    H, V = kept(case, products=3)
    for again in (copy.deepcopy(H), pickle.loads(pickle.dumps(H))):
        assert share(again) == 0
        assert torch.equal(again @ V, H @ V)
        again @ V
        assert share(again) == 1


def test_a_figure_of_several_products_is_the_same_to_the_last_bit():
    case = CASES["cnn with batchnorm"]()
    with_graphs, without = (
        hvpspec.spectrum(
            hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", memory_limit=limit), 3
        )
        for limit in (None, 1)
    )
    np.testing.assert_array_equal(with_graphs.eigenpairs.values, without.eigenpairs.values)
    assert with_graphs.trace == without.trace
