"""What is saved of a recorded product, at each level: the same products, as many bytes as said, no work twice."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from oracle.comparison import relative
from torch import fx, nn
from zoo import CASES

import hvpspec
from hvpspec.oracle.recorded import operation_costs, splitting
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.splitting import choices, parts, split

aten = torch.ops.aten


def recorded(model, loss, data):
    """A recording of the first batch; the inputs of `prepare`; and a vector and its product by plain autograd."""
    reference = hvpspec.HessianOperator(model, loss, data[:1], engine="autograd")
    engine, snapshot = Linearized(reference.objective), reference.objective.snapshot()
    recording = engine._recording(data[0], snapshot)
    _, tensors = engine._program(data[0], snapshot, 0)
    values = [p.detach() for p in snapshot.parameters], list(snapshot.constants.values()), tensors
    v = torch.randn(reference.shape[0], dtype=torch.float64)
    return recording, [tensor for part in values for tensor in part], v, reference @ v


def choices_at(recording, monkeypatch, rate):
    """The choice at one exchange rate, which may be none of the levels."""
    monkeypatch.setattr(splitting, "_EXCHANGE_RATES", (rate,))
    graph = recording.whole.graph
    return choices(graph, parts(graph))[0]


def check(recording, inputs, v, expected, monkeypatch, *, columns=True):
    """All of what must hold at every level, and at rates between them. Returns the sizes."""
    graph = recording.whole.graph
    assert [level.size for level in recording.levels] == sorted({c.size for c in recording.levels}, reverse=True)
    first = None
    found = []
    rates = [choices_at(recording, monkeypatch, rate) for rate in (1e9, 0.2, 0.05, 0.0)]
    for choice in (*recording.levels, *rates):
        for views_again in (False, True):
            prepare, apply = split(recording.whole, recording.parts, choice, views_again=views_again)
            with torch.no_grad():
                activations, _, _ = prepare(*inputs)
                product = apply(*activations, v)
                if columns:
                    both = torch.func.vmap(lambda v: apply(*activations, v))(torch.stack([v, 2 * v]))  # noqa: B023
                    assert relative(both[1], 2 * expected) <= 1e-12
            assert relative(product, expected) <= 1e-12
            first = product if first is None else first
            assert torch.equal(product, first)  # to the bit
            known = {t.untyped_storage().data_ptr() for t in (*inputs, *recording.constants())}
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in activations}
            assert sum(size for at, size in storages.items() if at not in known) == choice.size
            nothing_expensive_twice(graph, prepare.graph, apply.graph)
        repeated_where_first_used(recording, choice)
        found.append(choice.size)
    assert found[len(recording.levels)] == max(found)
    assert found[-1] == min(found)
    return found


def nothing_expensive_twice(whole, *halves):
    def expensive(graph):
        nodes = (node for node in graph.nodes if node.op == "call_function")
        return Counter(
            str(n.target) for n in nodes if not operation_costs.is_repeatable(n) and not operation_costs.is_view(n, {})
        )

    of_halves = sum((expensive(half) for half in halves), Counter())
    assert of_halves <= expensive(whole)


def repeated_where_first_used(recording, choice):
    """Between a repeated operation and the first one that uses it there are only such that this one needs as well."""
    order = splitting._scheduled(recording.parts, choice.repeated)
    place = {node: index for index, node in enumerate(order)}
    for node in order:
        assert all(place.get(parent, -1) < place[node] for parent in node.all_input_nodes)
        if node in choice.repeated:
            first = min(place[user] for user in node.users if user in place)
            assert all(other in choice.repeated for other in order[place[node] : first])


@pytest.mark.parametrize("name", ["mlp", "cnn with batchnorm", "language model", "tied weights", "lstm"])
def test_every_level_of_the_test_models(name, monkeypatch):
    case = CASES[name]()
    check(*recorded(case.model, case.loss, case.data), monkeypatch, columns=name in ("mlp", "cnn with batchnorm"))


def weights(*shape):
    return nn.ParameterList([nn.Parameter(torch.randn(*shape, dtype=torch.float64))])


def written_to(w, x):
    y = x * w.exp()
    y[:, 0] = (x[:, 1] * w[0]).sin()
    y.add_(w.cos())
    return y.pow(3).mean()


def several_outputs(w, x):
    a, b, c = F.layer_norm(x * w.sin(), (6,)).split(2, dim=1)
    largest, _ = (a.exp() * b).max(dim=1)
    low, high = torch.unbind(c.tanh(), 1)
    return (largest * low * high.exp()).mean()


def views_of_views(w, x):
    y = (x @ w.exp().diag()).tanh().t().reshape(3, -1).unsqueeze(0).transpose(1, 2)[0, 1:]
    return (y.t().flatten().view(-1, 1).expand(-1, 3) * w[:3].cos()).sin().sum(0).prod()


def on_a_part(w, x):
    """Of a large value only a small part is used, which is a view of it."""
    return (x.repeat(50, 1) * w.exp())[7].pow(2).sum() + (w[None] * x).sin()[:, ::2].prod(1).sum()


KINDS = {
    "everything is cheap": lambda w, x: ((w * x).sin().exp() * (w + x).tanh()).sigmoid().mean(),
    "nothing but constants to save": lambda w, x: w.square().sum() + x.sum(),
    "written in place": written_to,
    "several outputs": several_outputs,
    "views of views": views_of_views,
    "a part of a large value": on_a_part,
    "constants": lambda w, x: (
        (torch.linspace(0, 1, 6, dtype=w.dtype) * w * x + torch.eye(6, dtype=w.dtype)).sin().sum()
    ),
    "scalars": lambda w, x: (w.sum().exp() * x.mean()).sin(),
    "sorted and cumulated": lambda w, x: ((w * x).sort(1)[0].cumsum(1).tanh() @ w).exp().mean(),
    "empty": lambda w, x: (w.exp() * x).sin().mean() + (w * x[:0]).exp().sum(),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_level_of_graphs_of_all_kinds(name, monkeypatch):
    data = [(torch.randn(6, 6, dtype=torch.float64),)]
    function = KINDS[name]
    found = check(*recorded(weights(6), lambda model, batch: function(model[0], batch[0]), data), monkeypatch)
    if name in ("everything is cheap", "nothing but constants to save"):
        assert min(found) == 0  # all of it can be computed again from weights and data


def test_of_an_activation_function_and_its_derivatives_one_tensor_can_do(monkeypatch):
    torch.manual_seed(0)
    layers = [layer for _ in range(3) for layer in (nn.Linear(200, 200), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(200, 3)).double()
    data = [(torch.randn(250, 200, dtype=torch.float64), torch.randint(0, 3, (250,)))]
    recording, *_ = recorded(model, "cross_entropy", data)
    one = 250 * 200 * 8
    assert recording.levels[0].extra <= splitting._FREE
    assert recording.levels[0].size > 11 * one
    # Of each layer what enters the activation function, and the gradient that comes back to what leaves it, which are
    # made by products of matrices; and what the loss needs.
    assert choices_at(recording, monkeypatch, 0.0).size < 6.1 * one


def test_views_of_what_is_saved_are_handed_over():
    case = CASES["mlp"]()
    recording, *_ = recorded(case.model, case.loss, case.data)
    for for_compiler in (False, True):
        _, apply = recording.halves(0, for_compiler=for_compiler)
        of_inputs = [node for node in apply.graph.nodes if node.target is aten.t.default]
        of_inputs = [node for node in of_inputs if node.args[0].op == "placeholder" and node.args[0].users]
        assert bool(of_inputs) == for_compiler


@torch.library.custom_op("hvpspec_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_what_is_never_repeated():
    graph = fx.Graph()
    x = graph.placeholder("x")
    norm = (x, None, None, x, x)
    cheap = [
        (aten.mul.Tensor, (x, x)), (aten._softmax.default, (x, 1, False)), (aten.sum.default, (x,)),
        (aten.native_batch_norm.default, (*norm, False, 0.1, 1e-5)),
        (aten.native_batch_norm.default, (x, None, None, None, None, True, 0.1, 1e-5)),
    ]  # fmt: skip
    never = [
        (aten.mm.default, (x, x)), (aten.convolution_backward.default, (x,)), (aten.linalg_inv_ex.default, (x,)),
        (aten.rand_like.default, (x,)), (aten.add_.Tensor, (x, x)), (torch.ops.hvpspec_tests.twice.default, (x,)),
        (aten.native_batch_norm.default, (*norm, True, 0.1, 1e-5)),  # writes to the running mean
    ]  # fmt: skip
    for calls, expected in ((cheap, True), (never, False)):
        for target, arguments in calls:
            assert operation_costs.is_repeatable(graph.call_function(target, arguments)) == expected, target
