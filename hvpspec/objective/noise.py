"""Random numbers that a model or a loss draws: the same at each evaluation, or none at all."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from hvpspec.errors import InputError
from hvpspec.objective.batches import named_leaves
from hvpspec.objective.losses.conventions import returned
from hvpspec.wording import listed

_SEEDS = 2**63
_SEED_STEP = 1_000_003  # between the seeds of two batches

Place = Callable[[torch.dtype, bool, bool], AbstractContextManager[Callable[[int, Any], Any]]]
"""Evaluates losses, as `hvpspec.objective.weights.Place` does."""


@contextlib.contextmanager
def fixed_noise(seed: int | None, index: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch, NumPy and Python start from `seed` and the number of the batch, and are as they
    were when it ends. None leaves them alone.

    A generator that the model or the loss holds itself is not reached. A thread that draws from these meanwhile gets
    other numbers than it would have got.
    """
    if seed is None:
        yield
        return
    start = (seed + _SEED_STEP * index) % _SEEDS
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global generator is meant
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(start)
        np.random.seed(start % 2**32)  # noqa: NPY002
        random.seed(start)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class RandomLoss(InputError):
    """The refusal of a loss that is no function."""


def is_random(value: float, again: float) -> RandomLoss:
    """What to raise where one batch gives two losses."""
    return RandomLoss(
        f"the loss is random: one batch gives {value:.9g}, then {again:.9g}; make model and loss deterministic, or fix "
        "their noise with noise_seed=0 (--noise-seed 0). A generator of the program's own must be seeded again in each "
        "call."
    )


@contextlib.contextmanager
def blaming_changes(model: nn.Module, data: Iterable[Any], place: Place, dtype: torch.dtype) -> Iterator[None]:
    """Says so where a loss seems to be random because it changes the model's parameters."""
    try:
        yield
    except RandomLoss:
        if changed := _changed(model, data, place, dtype):
            raise InputError(
                f"the loss changes the model's parameters ({listed(changed, 3)}), so that each evaluation gives "
                "another value; take the optimizer's step, or whatever else writes to them, out of the loss."
            ) from None
        raise


def _changed(model: nn.Module, data: Iterable[Any], place: Place, dtype: torch.dtype) -> list[str]:
    """The names of the parameters that an evaluation of the first batch writes to."""
    for batch, gradients in itertools.product(itertools.islice(data, 1), (False, True)):
        with place(dtype, False, gradients) as evaluate:
            before = [(name, p, p.detach().clone()) for name, p in model.named_parameters()]
            with contextlib.suppress(InputError):
                evaluate(0, batch)
            if changed := [name for name, p, copy in before if not torch.equal(p.detach(), copy)]:
                return changed
    return []


def unaltered(index: int, batch: Any, evaluate: Callable[[Any], Any], given: Any) -> Any:
    """What a loss returns for a batch. Raises InputError where it writes to the batch, so that it returns something
    else the next time.

    given: the batch as the data have it. A copy, in another dtype or on another device, is another one each time.
    """
    before = [(name, tensor, _version(tensor)) for name, tensor in named_leaves(batch)]
    result = evaluate(batch)
    written = [(name, tensor) for name, tensor, version in before if _version(tensor) != version]
    own = {id(tensor) for _, tensor in named_leaves(given)} if written else set()
    changed = [name for name, tensor in written if id(tensor) in own]
    if not changed:
        return result
    again = evaluate(batch)
    if torch.allclose(returned(index, result)[0].detach(), returned(index, again)[0].detach(), 0, 0, equal_nan=True):
        return again  # such as labels that are set to -100 again; the first graph may need what is overwritten
    raise InputError(
        f"batch {index}: the loss changes {listed(changed, 3)} in place, so that each evaluation gives another value; "
        "let it work on a copy, as by x = x - mean in place of x -= mean."
    )


def _version(tensor: Tensor) -> int:
    """How often it was written to in place, as far as torch has noticed."""
    return -1 if tensor.is_inference() else tensor._version


class ConstantNoise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every random number that torch draws is one and the same, whatever the seed and the shape.

    A loss with noise is then the same function of each sample wherever in a batch the sample is, so that batches can be
    cut and joined.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return result
        lowest = args[0] if func.overloadpacket._qualified_op_name == "aten::randint" and "low" in func.name() else 0
        return tree_map_only(Tensor, lambda drawn: _settled(func.name(), drawn, lowest), result)


def _settled(name: str, drawn: Tensor, lowest: int) -> Tensor:
    """Filled in place, as the operation may have been (`normal_`)."""
    if "randperm" in name:
        return drawn.copy_(torch.arange(len(drawn)))
    if drawn.is_floating_point() or drawn.is_complex():
        return drawn.fill_(1.0 if "bernoulli" in name or "dropout" in name else 0.3)
    return drawn.fill_(True) if drawn.dtype == torch.bool else drawn.fill_(lowest)
