"""What the products of an objective depend on, as short texts that can be compared in another process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.group import Group
from hvpspec.objective.batches import mapped
from hvpspec.objective.live_model import named_tensors
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import Objective
from hvpspec.objective.subsets.shares import Share

_DIGEST_BYTES = 16
_CONSTANTS = (bool, int, float, complex, str, bytes)


def fingerprint(objective: Objective, loss: LossValue, group: Group | None = None) -> dict[str, Any]:
    """The model's values, the chosen parameters, the batches and the loss on them, by names that a message can give.

    group: the ranks that share the batches, whose digest does not depend on how many there are. On a GPU sums may be
    rounded in another way at each time: there the loss is compared to six digits.
    """
    exact = objective.device.type == "cpu"
    return {
        "values of the model": digest_of_model(objective),
        "parameters chosen": _digest([repr(objective.space.names)]),
        "batches": _digest_of_batches(objective, group),
        "loss on the data": repr(loss.value) if exact else f"{loss.value:.6g}",
        "weight of the data": loss.weight,
        "noise seed": objective.noise_seed,
        "mode of the model": "training" if objective.train_mode else "eval",
        "reduction of the loss": objective.reduction,
    }


def digest_of_model(objective: Objective) -> str:
    """Of the model's values, by name."""
    return _digest(_of_model(objective))


def _digest_of_batches(objective: Objective, group: Group | None) -> str:
    """Of the batches of all ranks, in their order."""

    def own() -> list[str]:
        return [digest_of_data([batch]) for batch in objective.data]

    if group is None or not isinstance(share := objective.data, Share):
        return _digest(own())
    said = group.told(json.dumps([*zip(share.numbering, group.together(own), strict=False)]))
    return _digest(digest for _, digest in sorted(each for part in said for each in json.loads(part)))


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
