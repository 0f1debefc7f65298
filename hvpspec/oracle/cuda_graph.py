"""A function of one vector, recorded as a CUDA graph and replayed: one launch instead of one for each operation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def capture(apply: Callable[..., Tensor], residuals: list[Tensor], vector: Tensor) -> Callable[..., Tensor]:
    """`apply(*residuals, v)` for these residuals, which must stay where they are, as a graph that is replayed.

    vector: one of the kind that it will be given. The product is a copy, valid after the next replay as well.
    """
    v = torch.zeros_like(vector)
    stream = torch.cuda.Stream(v.device)
    stream.wait_stream(torch.cuda.current_stream(v.device))
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries choose their kernels and workspaces on the first calls
            apply(*residuals, v)
    torch.cuda.current_stream(v.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        product = apply(*residuals, v)

    def replay(*arguments: Tensor) -> Tensor:
        v.copy_(arguments[-1])
        graph.replay()
        return product.clone()

    return replay
