"""Every kind of recurrent layer: values and derivatives are those of torch's own kernels."""

import pytest
import torch
from kernels.recurrent.variants import SEQUENCES, VARIANTS, Operators, along, layers, relative, value
from torch import nn

from hvpspec.kernels.torch_kernels import twice_differentiable

CPU = torch.device("cpu")


def both(variant, directions, chosen=slice(None), inputs=None):
    """What `along` finds by the functions under test, and by torch's."""
    inputs = variant.inputs if inputs is None else inputs
    with twice_differentiable(CPU), Operators() as operators:
        found = along(value(variant.call()[chosen]), inputs, directions)
    assert any(name.startswith("hvpspec::") for name in operators.names)
    return found, along(value(variant.call()[chosen]), inputs, directions)


def directions_of(inputs, count):
    return [[torch.randn_like(one) for one in inputs] for _ in range(count)]


@pytest.mark.parametrize("name", VARIANTS)
def test_value_gradient_and_product(name):
    variant = VARIANTS[name]()
    for found, expected in zip(*both(variant, directions_of(variant.inputs, 1)), strict=True):
        assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith(("one", "packed, both directions"))])
def test_derivatives_of_order_three_and_four(name):
    variant = VARIANTS[name]()
    for found, expected in zip(*both(variant, directions_of(variant.inputs, 3)), strict=True):
        assert relative(found, expected) < 1e-12


@pytest.mark.parametrize("output", [0, 1, 2])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_one_output_alone(cls, packed, output):
    """y, h_n or c_n."""
    if cls is nn.GRU and output == 2:
        return
    variant = layers(cls, packed=packed, num_layers=2)
    found, expected = both(variant, directions_of(variant.inputs, 1), chosen=slice(output, output + 1))
    assert max(map(relative, found, expected)) < 1e-12


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_products_of_some_of_the_inputs(name, packed):
    """Each alone, the others being constants: of weights, biases, the sequences and the initial states."""
    variant = layers(getattr(nn, name), packed=packed)
    for one in variant.inputs:
        for other in variant.inputs:
            other.requires_grad_(other is one)
        found, expected = both(variant, directions_of([one], 1), inputs=[one])
        assert max(map(relative, found, expected)) < 1e-12


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_explicit_hessian(cls):
    variant = layers(cls)
    size = sum(one.numel() for one in variant.inputs)
    with twice_differentiable(CPU):
        gradient = along(value(variant.call()), variant.inputs, [])[1]
        rows = [
            torch.autograd.grad(gradient, variant.inputs, row, retain_graph=True) for row in torch.eye(size).double()
        ]
    found = torch.stack([torch.cat([one.reshape(-1) for one in row]) for row in rows])
    gradient = along(value(variant.call()), variant.inputs, [])[1]
    rows = [torch.autograd.grad(entry, variant.inputs, retain_graph=True) for entry in gradient]
    expected = torch.stack([torch.cat([one.reshape(-1) for one in row]) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, found.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_dropout_between_layers_draws_the_numbers_that_torch_draws(cls):
    module, x = cls(3, 4, 3, dropout=0.5), torch.randn(6, 5, 3)

    def drawn():
        torch.manual_seed(3)
        return module(x)[0]

    expected = drawn()
    with twice_differentiable(CPU):
        found = drawn()
        assert not torch.equal(found, module(x)[0])
        repeated = module.eval()(x)[0]
        assert torch.equal(repeated, module(x)[0])
    torch.testing.assert_close(found, expected)


def test_sequences_of_one_length_in_a_packed_form():
    x, module = torch.randn(6, 5, 3).double(), nn.LSTM(3, 4, bidirectional=True).double()
    packed = nn.utils.rnn.pack_sequence(list(x.transpose(0, 1)))
    with twice_differentiable(CPU):
        torch.testing.assert_close(module(packed)[0].data.view(6, 5, 8), module(x)[0], rtol=1e-12, atol=1e-12)


# --- what torch has to see to ---------------------------------------------------------------------------------------


def _of_torch(call):
    """Whether torch's own function ran, and what it returned or raised."""
    with twice_differentiable(CPU), Operators() as operators:
        try:
            found = call()
        except (RuntimeError, ValueError, IndexError) as error:
            found = str(error)
    return not any(name.startswith("hvpspec::") for name in operators.names), found


def _weights(module):
    return [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0, module.bias_hh_l0]


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x, h: torch.gru(x, h, _weights(m)[:3], True, 1, 0.0, False, False, False),
        lambda m, x, h: torch.gru(x, h[:, :2], _weights(m), True, 1, 0.0, False, False, False),
        lambda m, x, h: torch.gru(x[..., :2], h, _weights(m), True, 1, 0.0, False, False, False),
        lambda m, x, h: torch.gru(x.double(), h, _weights(m), True, 1, 0.0, False, False, False),
        lambda m, x, h: torch.gru(x[0], h, _weights(m), True, 1, 0.0, False, False, False),
        lambda m, x, h: m(x[:0]),
        lambda m, x, h: m.bfloat16()(x.bfloat16())[0].float(),
    ],
)
def test_what_does_not_fit_goes_to_torch(call):
    """With torch's result or message."""
    module, x, h = nn.GRU(3, 4), torch.randn(5, SEQUENCES, 3), torch.zeros(1, SEQUENCES, 4)
    is_torch, found = _of_torch(lambda: call(module, x, h))
    try:
        expected = call(module, x, h)
    except (RuntimeError, ValueError, IndexError) as error:
        expected = str(error)
    assert is_torch
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert str(found).splitlines()[0] == str(expected).splitlines()[0]


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_transforms_of_torch_func_and_forward_mode(cls):
    module = cls(3, 4).double()
    x = torch.randn(2, SEQUENCES, 3).double()

    def loss(x):
        return value([module(x)[0]])

    def twice(x):
        return torch.func.jacrev(torch.func.grad(loss))(x), torch.func.jvp(loss, (x,), (torch.ones_like(x),))[1]

    with twice_differentiable(CPU):
        found = twice(x)
    torch.testing.assert_close(found, twice(x), rtol=1e-12, atol=1e-12)
