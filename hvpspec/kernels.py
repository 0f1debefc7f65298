"""Which of torch's kernels may run while an HVP is made: only those that are exact and rightly differentiable twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

ATTENTION_BACKEND = "math"
"""The only scaled-dot-product attention kernel that has a second derivative."""


@contextlib.contextmanager
def twice_differentiable(device: torch.device) -> Iterator[None]:
    """Gradients on, whatever surrounds the call; no autocast, no TF32, no kernel that derives wrongly."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_PlainWeightNorm())
        if device.type == "cuda":
            stack.enter_context(_without_tf32())
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Writes weight normalisation out as v · (g / ‖v‖).

    torch's fused kernel takes ‖v‖ for a constant in its second derivative, so that the Hessian of a weight-normalised
    layer comes out wrong, and not even symmetric (seen in torch 2.13).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """TF32 keeps 10 bits of mantissa: an HVP through it is off by 1e-3."""
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    saved = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, precision in zip(switches, saved, strict=True):
            switch.fp32_precision = precision
