"""Networks with recurrent layers in every engine, compared with double backward through torch's own kernels."""

import numpy as np
import pytest
import torch
from oracle.comparison import needs_compiler
from torch import nn
from torch.utils.checkpoint import checkpoint

import hvpspec

CELLS = {"LSTMCell": nn.LSTMCell, "GRUCell": nn.GRUCell, "RNNCell": nn.RNNCell}


class Network(nn.Module):
    """Tokens, an embedding, a recurrent layer and a head on its mean or on its last state."""

    def __init__(self, recurrent, width, *, of_end=False, checkpointed=False, lengths=None):
        super().__init__()
        self.table, self.recurrent, self.head = nn.Embedding(5, 3), recurrent, nn.Linear(width, 2)
        self.of_end, self.checkpointed, self.lengths = of_end, checkpointed, lengths

    def forward(self, tokens):
        x = self.table(tokens)
        if self.lengths is not None:
            x = nn.utils.rnn.pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        y, last = checkpoint(self.recurrent, x, use_reentrant=False) if self.checkpointed else self.recurrent(x)
        if self.of_end:
            return self.head(last[0][-1] if isinstance(last, tuple) else last[-1])
        if self.lengths is not None:
            y = nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0]
        return self.head(y.mean(1))


class OfCells(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.table, self.cell, self.head = nn.Embedding(5, 3), cell(3, 3), nn.Linear(3, 2)

    def forward(self, tokens):
        state, total = None, 0
        for x in self.table(tokens).unbind(1):
            state = self.cell(x, state)
            total = total + (state[0] if isinstance(state, tuple) else state)
        return self.head(total)


def network(name, *, steps=4, layers=2, **options):
    """A network in float64 and its data, by a name such as "LSTM"."""
    steps = 2 if name in CELLS else steps
    layer = {"width": 3}
    if name == "both directions":
        layer = {"recurrent": nn.GRU(3, 3, 2, bidirectional=True, batch_first=True), "width": 6}
    elif name == "projected":
        layer = {"recurrent": nn.LSTM(3, 3, proj_size=2, batch_first=True), "width": 2}
    elif name not in CELLS:
        layer["recurrent"] = getattr(nn, name)(3, 3, layers, batch_first=True)
    model = OfCells(CELLS[name]) if name in CELLS else Network(**layer, **options)
    data = [(torch.randint(0, 5, (b, steps)), torch.randint(0, 2, (b,))) for b in (3, 3)]
    return model.double(), data


def check(H, model, data, chosen="*", columns=2):
    """Compares products with double backward through torch's own kernels."""
    parameters = [p for name, p in model.named_parameters() if chosen.strip("*") in name]
    loss = sum(nn.functional.cross_entropy(model(x), y, reduction="sum") for x, y in data) / sum(
        len(y) for _, y in data
    )
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    vectors = torch.randn(columns, len(gradient)).double()
    rows = [torch.autograd.grad(gradient, parameters, v, retain_graph=True, materialize_grads=True) for v in vectors]
    expected = torch.stack([torch.cat([one.reshape(-1) for one in row]) for row in rows])
    np.testing.assert_allclose(H @ vectors.T.numpy(), expected.T.numpy(), rtol=1e-11, atol=1e-13)


NAMES = ["LSTM", "GRU", "RNN", "both directions", "projected", *CELLS]


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("name", NAMES)
def test_the_hessian(name, engine):
    model, data = network(name)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine, verify=False)
    check(H, model, data)
    assert H.plan.startswith(engine)


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize(
    "options", [{"of_end": True}, {"checkpointed": True}, {"chosen": "*weight_hh*"}, {"chosen": "*table*"}]
)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_last_states_checkpoints_and_chosen_parameters(name, options, engine):
    chosen = options.get("chosen", "*")
    model, data = network(name, **{key: value for key, value in options.items() if key != "chosen"})
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine, parameters=chosen, verify=False)
    check(H, model, data, chosen)
    assert H.plan.startswith(engine)


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("of_end", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_packed_sequences(name, of_end, engine):
    """Lengths are values of the data, so that a recording is of one batch."""
    model, data = network(name, of_end=of_end, steps=3, layers=1)
    model.lengths = [2, 3, 1]
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine)
    check(H, model, data)
    assert H.plan.startswith(engine)
    assert ("recorded batch by batch" in H.plan) == (engine == "linearized")


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "both directions"])
def test_several_vectors_together(name):
    model, data = network(name)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized", verify=False)
    columns = np.random.default_rng(0).standard_normal((H.shape[0], 4))
    expected = H @ columns
    H._product._fast.together = 4
    np.testing.assert_allclose(H @ columns, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_recording_does_not_grow_with_the_number_of_steps(name):
    sizes = []
    for steps in (3, 60):
        model, data = network(name, steps=steps)
        H = hvpspec.HessianOperator(model, "cross_entropy", data[:1], engine="linearized", verify=False)
        H @ np.ones(H.shape[0])
        sizes.append(H._product._fast.operations)
    assert sizes[0] == sizes[1] < 600


@needs_compiler
def test_compiled():
    model, data = network("projected")
    H = hvpspec.HessianOperator(model, "cross_entropy", data[:1], engine="compiled", verify=False)
    check(H, model, data[:1])
    assert H.plan.startswith("linearized, compiled")
