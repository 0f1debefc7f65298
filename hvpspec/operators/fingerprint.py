"""What the products of an objective depend on, as short texts that can be compared in another process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.objective.batches import mapped
from hvpspec.objective.live_model import named_tensors
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import Objective

_DIGEST_BYTES = 16
_CONSTANTS = (bool, int, float, complex, str, bytes)


def fingerprint(objective: Objective, loss: LossValue) -> dict[str, Any]:
    """The model's values, the chosen parameters, the batches and the loss on them, by names that a message can give.

    On a GPU sums may be rounded in another way at each time: there the loss is compared to six digits.
    """
    exact = objective.device.type == "cpu"
    return {
        "values of the model": digest_of_model(objective),
        "parameters chosen": _digest([repr(objective.space.names)]),
        "batches": digest_of_data(objective.data),
        "loss on the data": repr(loss.value) if exact else f"{loss.value:.6g}",
        "weight of the data": loss.weight,
        "noise seed": objective.noise_seed,
        "mode of the model": "training" if objective.train_mode else "eval",
        "reduction of the loss": objective.reduction,
    }


def digest_of_model(objective: Objective) -> str:
    """Of the model's values, by name."""
    return _digest(_of_model(objective))


def digest_of_data(data: Iterable[Any]) -> str:
    """Of the batches, in their order."""
    return _digest(_of_data(data))


def _of_model(objective: Objective) -> Iterator[str | Tensor]:
    for name, tensor in named_tensors(objective.model):
        yield name
        yield tensor.detach()


def _of_data(data: Iterable[Any]) -> Iterator[str | Tensor]:
    """All tensors, arrays and plain values of the batches, in order, and the forms of what holds them."""
    for batch in data:
        found: list[str | Tensor] = []

        def leaf(value: Any, found: list[str | Tensor] = found) -> Any:
            if isinstance(value, Tensor):
                found.append(value.detach())
            elif isinstance(value, np.ndarray):
                numeric = value.dtype.kind in "fiubc"
                found.append(torch.from_numpy(np.ascontiguousarray(value)) if numeric else repr(value.tolist()))
            elif isinstance(value, _CONSTANTS):
                found.append(repr(value))
            return value

        mapped(batch, leaf)
        yield "batch"
        yield from found


def _digest(parts: Iterable[str | Tensor]) -> str:
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        if isinstance(part, str):
            state.update(f"{len(part)}:{part}".encode(errors="surrogatepass"))
            continue
        state.update(f"{part.dtype}{tuple(part.shape)}".encode())
        state.update(content(part))
    return state.hexdigest()


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's values, whatever its layout and its device."""
    whole = tensor.dequantize() if tensor.is_quantized else tensor
    dense = whole.to_dense() if whole.layout != torch.strided else whole
    plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")
