"""Recurrent layers of every kind, each as a function of tensors that require a gradient; derivatives by autograd."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

SEQUENCES, STEPS, INPUTS, WIDTH = 4, 5, 3, 3
LENGTHS = [3, 5, 1, 3]


@dataclass(frozen=True)
class Variant:
    """A function of no arguments that returns tensors, and what these depend on."""

    call: Callable[[], list[torch.Tensor]]
    inputs: list[torch.Tensor]


def of(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def layers(cls, *, packed=False, states=True, **options):
    """An nn.LSTM, nn.GRU or nn.RNN: y, h_n and c_n as far as there are such."""
    module = cls(INPUTS, WIDTH, **options).double()
    count, is_lstm = module.num_layers * (1 + module.bidirectional), cls is nn.LSTM
    x = of(SEQUENCES, STEPS, INPUTS) if module.batch_first else of(STEPS, SEQUENCES, INPUTS)
    h, c = of(count, SEQUENCES, module.proj_size or WIDTH), of(count, SEQUENCES, WIDTH)
    hx = ((h, c) if is_lstm else h) if states else None

    def call():
        given = x
        if packed:
            first = module.batch_first
            given = nn.utils.rnn.pack_padded_sequence(x, LENGTHS, batch_first=first, enforce_sorted=False)
        y, last = module(given, hx)
        return [y.data if packed else y, *(last if is_lstm else [last])]

    return Variant(call, [*module.parameters(), x, *([h, c][: 1 + is_lstm] if states else [])])


def _variants():
    options = {
        "one": {},
        "two layers": {"num_layers": 2},
        "three layers, batch first": {"num_layers": 3, "batch_first": True},
        "both directions": {"bidirectional": True},
        "two layers, both directions": {"num_layers": 2, "bidirectional": True},
        "without biases": {"bias": False, "num_layers": 2},
        "without initial states": {"states": False},
        "packed": {"packed": True, "num_layers": 2},
        "packed, both directions": {"packed": True, "num_layers": 2, "bidirectional": True, "batch_first": True},
    }
    kinds = {"LSTM": (nn.LSTM, {}), "GRU": (nn.GRU, {}), "RNN": (nn.RNN, {})}
    kinds["RNN relu"] = (nn.RNN, {"nonlinearity": "relu"})
    kinds["LSTM projected"] = (nn.LSTM, {"proj_size": 2})
    return {
        f"{kind}, {name}": (lambda cls=cls, own=own, more=more: layers(cls, **own, **more))
        for kind, (cls, own) in kinds.items()
        for name, more in options.items()
    }


VARIANTS = _variants()


def value(outputs):
    """A scalar in which every entry of every output has its own weight and curvature."""
    flat = torch.cat([output.reshape(-1) for output in outputs])
    return (torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype) * torch.sin(2 * flat + 0.3)).sum()


def along(loss, inputs, directions):
    """The loss, its gradient, and the derivative of that along each of the directions in turn."""
    found = [loss]
    gradient = torch.autograd.grad(loss, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
    for direction in directions:
        found.append(torch.cat([one.reshape(-1) for one in gradient]))
        moved = sum((one * part).sum() for one, part in zip(gradient, direction, strict=True))
        gradient = torch.autograd.grad(moved, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
    return [*found, torch.cat([one.reshape(-1) for one in gradient])]


def relative(found, expected):
    return float((found - expected).detach().norm() / expected.detach().norm())


class Operators(TorchDispatchMode):
    """Collects the names of operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))
