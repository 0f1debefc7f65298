"""Loops over the steps of sequences as operators of torch, which a recording or a compiler takes as a whole.

A recorded graph then holds one node for a loop, however many steps it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Maybe = Tensor | None

_LIBRARY: Any = torch.library.Library("hvpspec", "DEF")  # type: ignore[no-untyped-call]


def operator(
    name: str, schema: str, loop: Callable[..., Any], shapes: Callable[..., Any], linear_from: int | None = None
) -> Callable[..., Any]:
    """A new operator of torch that calls `loop`. It has no derivative: an autograd Function has to call it.

    schema: as in `torch.library.define`, without the name.
    shapes: called in place of `loop` where only the shapes of the results are needed.
    linear_from: the number of the first argument in which the operator is linear, as it is in all that follow. These
        are matrices, and may have a dimension more, the second, of several vectors that share the other arguments; the
        results, of which there are several, then have it too.
    """
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, _plainly(loop), "CompositeExplicitAutograd")
    full_name = f"hvpspec::{name}"
    torch.library.register_fake(full_name, shapes, lib=_LIBRARY)
    function: Callable[..., Any] = getattr(torch.ops.hvpspec, name).default

    def vectorised(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        shared = len(args) if linear_from is None else linear_from
        linear = list(zip(args[shared:], in_dims[shared:], strict=True))
        is_taken = any(arg is not None and arg.ndim - (dim is not None) > 2 for arg, dim in linear)
        if is_taken or any(isinstance(dim, int) for dim in in_dims[:shared]):
            return _one_by_one(function, info.batch_size, in_dims, args)
        together = [None if arg is None else _second(arg, dim, info.batch_size) for arg, dim in linear]
        results = function(*args[:shared], *together)
        return results, (1,) * len(results)

    torch.library.register_vmap(full_name, vectorised, lib=_LIBRARY)
    return function


def _plainly(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Without asking modes about each of a loop's thousands of calls."""

    def call(*args: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return loop(*args)

    return call


def _second(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """With the dimension of the vectors as the second; the same for each of them where it has none."""
    if dim is None:
        return tensor.unsqueeze(1).expand(-1, size, -1)
    return tensor.movedim(dim, 1)


def _one_by_one(
    function: Callable[..., Any], size: int, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[Any, Any]:
    calls = [
        function(*(arg.select(dim, k) if isinstance(dim, int) else arg for arg, dim in zip(args, in_dims, strict=True)))
        for k in range(size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    results = tuple(torch.stack(result) for result in zip(*calls, strict=True))
    return results, (0,) * len(results)


# --- for loops of linear operators ----------------------------------------------------------------------------------


def vectors_of(*matrices: Maybe) -> tuple[int, ...]:
    """(k,) where the matrices are of k vectors, () where they are of one without a dimension of its own."""
    return next((tuple(matrix.shape[1:-1]) for matrix in matrices if matrix is not None), ())


def filled(like: Tensor, shape: tuple[int, ...], values: Maybe) -> Tensor:
    """New memory of that shape with these values, or with zeros."""
    return like.new_zeros(shape) if values is None else like.new_empty(shape).copy_(values.reshape(shape))


def every_size(sizes: Sequence[int], rows: Tensor) -> list[int]:
    """The rows of every step: the sizes, repeated until there are as many rows."""
    return list(sizes) * (len(rows) // sum(sizes))


def each_step(sizes: Sequence[int], *matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each step, of all matrices."""
    return zip(*(matrix.split_with_sizes(sizes) for matrix in matrices), strict=True)


def flat_steps(sizes: Sequence[int], matrix: Tensor) -> Sequence[Tensor]:
    """The rows of each step for all vectors, one below the other, as a matrix multiplies them."""
    n, k = matrix.shape[:2]
    return matrix.view(n * k, -1).split_with_sizes([size * k for size in sizes])


def steps_before(sizes: Sequence[int], matrix: Tensor, initial: Tensor) -> list[Tensor]:
    """For each step the rows of the step before that go on; of the initial state for the first."""
    steps = (initial, *matrix.split_with_sizes(sizes)[:-1])
    return [before if len(before) == size else before[:size] for before, size in zip(steps, sizes, strict=True)]


def needed(ctx: Any, *derivatives: Maybe) -> tuple[Maybe, ...]:
    """What the backward of a Function may return: nothing for inputs that are not tensors or need no derivative."""
    return tuple(one if need else None for one, need in zip(derivatives, ctx.needs_input_grad, strict=True))


def once(ctx: Any, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a backward computes from saved tensors alone. Where it has run with create_graph, the values are known.

    They are held without the graph, which holds `ctx`.
    """
    if torch.is_grad_enabled():
        found = compute()
        ctx.known = tuple(one.detach() for one in found)
        return found
    return compute() if ctx.known is None else ctx.known
