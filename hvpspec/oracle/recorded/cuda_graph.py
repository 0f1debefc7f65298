"""A function of one vector, recorded as a CUDA graph and replayed: one launch instead of one for each operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UPS = 3  # calls in which libraries choose their kernels and workspaces


def capture(apply: Callable[..., Tensor], activations: list[Tensor], vector: Tensor) -> Callable[..., Tensor]:
    """`apply(*activations, v)` for these activations, which must stay where they are, as a graph to be replayed.

    vector: one of the shape, dtype and device of those that it will be given. The product is a copy, which the next
    replay does not overwrite.
    """
    v = torch.zeros_like(vector)
    stream = torch.cuda.Stream(v.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(v.device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            apply(*activations, v)
    torch.cuda.current_stream(v.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product = apply(*activations, v)

    def replay(*arguments: Tensor) -> Tensor:
        v.copy_(arguments[-1])
        graph.replay()
        return product.clone()

    return replay
