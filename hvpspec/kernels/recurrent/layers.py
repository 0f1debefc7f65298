"""What torch.lstm, torch.gru, torch.rnn_tanh and torch.rnn_relu compute, by the loops of this folder.

Their cells stay torch's own: a step at a time, its elementary operations are faster, and exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hvpspec.kernels.recurrent.gru import gru
from hvpspec.kernels.recurrent.lstm import lstm
from hvpspec.kernels.recurrent.rnn import rnn
from hvpspec.kernels.recurrent.steps import Steps, packed

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_DTYPES = (torch.float32, torch.float64)
States = tuple[Tensor, ...]
"""(h,), or (h, c) of an LSTM."""


def instead_of(function: Any, args: Sequence[Any]) -> Any:
    """What the function of torch returns for these arguments; None where torch itself has to see to it.

    It can be differentiated to any order, but not in forward mode, nor by torch.func.
    """
    if len(args) != 9:
        return None
    kind = function.__name__
    if isinstance(args[3], (list, tuple)):
        data, batch_sizes, hx, *rest = args
        return _of_packed(_Network(kind, *rest), data, batch_sizes, _states(kind, hx))
    input, hx, *rest, batch_first = args
    return _of_padded(_Network(kind, *rest), input, _states(kind, hx), batch_first)


def _states(kind: str, hx: Any) -> States:
    return tuple(hx) if kind == "lstm" else (hx,)


@dataclass(frozen=True)
class _Network:
    """Layers upon layers, with the arguments that torch's functions have in common."""

    kind: str
    params: Sequence[Tensor]
    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool

    def fits(self, x: Tensor, ndim: int, initial: States) -> bool:
        """Whether all is of the shapes and dtypes that the functions here assume."""
        count = 2 if self.kind == "lstm" else 1
        if len(initial) != count or not _plain(x, *initial, *self.params) or x.ndim != ndim or x.numel() == 0:
            return False
        directions = 1 + self.bidirectional
        leading = (self.num_layers * directions, initial[0].shape[1])
        if any(state.ndim != 3 or state.shape[:2] != leading for state in initial):
            return False
        hidden, width = initial[0].shape[2], initial[-1].shape[2]
        rows, expected = _GATES[self.kind] * width, []
        projected = self.kind == "lstm" and len(self.params) == leading[0] * (5 if self.has_biases else 3)
        for layer in range(self.num_layers):
            inputs = x.shape[-1] if layer == 0 else hidden * directions
            biases = [(rows,), (rows,)] if self.has_biases else []
            one = [(rows, inputs), (rows, hidden), *biases, *([(hidden, width)] if projected else [])]
            expected += one * directions
        return (projected or hidden == width) and [tuple(one.shape) for one in self.params] == expected

    def __call__(self, x: Tensor, initial: States, steps: Steps) -> States:
        """The rows of the last layer, and the last states of all layers and directions."""
        directions = 1 + self.bidirectional
        each = len(self.params) // (self.num_layers * directions)
        ends: list[States] = []
        for layer in range(self.num_layers):
            found = []
            for direction in range(directions):
                number = len(ends)
                weights = self.params[number * each : (number + 1) * each]
                own = tuple(state[number] for state in initial)
                rows = steps.reversed(x) if direction else x
                states = _layer(self.kind, rows, own, weights, self.has_biases, steps)
                ends.append(tuple(steps.last(state) for state in states))
                found.append(steps.reversed(states[0]) if direction else states[0])
            x = torch.cat(found, 1) if self.bidirectional else found[0]
            if layer + 1 < self.num_layers and self.train and self.dropout > 0:
                x = torch.dropout(x, self.dropout, True)
        return x, *(torch.stack(states) for states in zip(*ends, strict=True))


def _plain(*tensors: Any) -> bool:
    """Whether all are ordinary tensors of one dtype on one device."""
    first = tensors[0]
    return all(
        type(tensor) in (Tensor, torch.nn.Parameter, FakeTensor)
        and tensor.layout == torch.strided
        and tensor.dtype in _DTYPES
        and (tensor.dtype, tensor.device) == (first.dtype, first.device)
        for tensor in tensors
    )


def _of_padded(network: _Network, input: Tensor, initial: States, batch_first: bool) -> Any:
    x = input.transpose(0, 1) if batch_first and input.ndim == 3 else input
    if not network.fits(x, 3, initial) or x.shape[1] != initial[0].shape[1]:
        return None
    length, sequences = x.shape[:2]
    rows, *ends = network(x.flatten(0, 1), initial, Steps([sequences]))
    y = rows.view(length, sequences, -1)
    return (y.transpose(0, 1) if batch_first else y), *ends


def _of_packed(network: _Network, data: Tensor, batch_sizes: Tensor, initial: States) -> Any:
    if not network.fits(data, 2, initial):
        return None
    sizes = batch_sizes.tolist()
    if sizes[0] != initial[0].shape[1] or sum(sizes) != len(data):
        return None
    return network(data, initial, packed(sizes, data.device))


def _layer(kind: str, x: Tensor, initial: States, weights: Sequence[Tensor], has_biases: bool, steps: Steps) -> States:
    """All rows of one layer in one direction. weights: w_ih, w_hh, perhaps b_ih, b_hh, and of an LSTM perhaps w_hr."""
    w_ih, w_hh, *others = weights
    b_ih, b_hh = others[:2] if has_biases else (None, None)
    if kind == "gru":
        return (gru(F.linear(x, w_ih, b_ih), w_hh, b_hh, initial[0], steps),)
    a = F.linear(x, w_ih, None if b_ih is None or b_hh is None else b_ih + b_hh)
    if kind != "lstm":
        return (rnn(a, w_hh, initial[0], kind == "rnn_relu", steps),)
    h0, c0 = initial
    if len(others) == 2 * has_biases:
        return lstm(a, w_hh, c0, h0, steps)
    # Projected: h = w_hr ĥ, so that ĥ recurs with the weight w_hh w_hr. h₀ is no such product, and enters with a.
    w_hr, size = others[-1], len(h0)
    a = torch.cat([a[:size] + F.linear(h0, w_hh), a[size:]])
    h, c = lstm(a, w_hh @ w_hr, c0, torch.zeros_like(c0), steps)
    return F.linear(h, w_hr), c
