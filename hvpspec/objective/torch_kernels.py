"""Which of torch's kernels may run while an HVP is made: only those that are exact and rightly differentiable twice."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.stateless import _reparametrize_module
from torch.overrides import TorchFunctionMode

ATTENTION_BACKEND = "math"
"""The only scaled-dot-product attention kernel that has a second derivative."""


@dataclass(frozen=True)
class Replaced:
    """Names of what was replaced, and rows of parameters that are constants: (tensor, number of the row)."""

    names: set[str]
    constant_rows: list[tuple[torch.Tensor, int]]


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_ATTENTION = (torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.multi_head_attention_forward)
_REPLACED: ContextVar[Replaced | None] = ContextVar("replaced", default=None)
_SWAPPED: ContextVar[tuple[nn.Module, dict[str, torch.Tensor]] | None] = ContextVar("swapped", default=None)


@contextlib.contextmanager
def twice_differentiable(device: torch.device) -> Iterator[None]:
    """Gradients on, whatever surrounds the call; no autocast, no TF32, no kernel that derives wrongly or only once.

    What torch.compile has made of modules and functions is passed by: its backward has no derivative.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(exact_arithmetic(device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_without_fast_path())
        stack.enter_context(_uncompiled())
        stack.enter_context(_without_reentrant_checkpoints())
        stack.enter_context(_Replacements())
        # TorchScript's optimiser derives some fused programs wrongly (batch norm, tanh, dropout in a row; torch 2.13).
        stack.enter_context(torch.jit.optimized_execution(False))
        yield


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """What a traced graph needs of the above: it holds its operations already, but not their precision."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(_without_tf32())
        yield


@contextlib.contextmanager
def noting_replacements() -> Iterator[Replaced]:
    """What is replaced meanwhile: "attention", "weight_norm", "padding", "reentrant_checkpoint", "cudnn_rnn".

    And what nothing replaces: "batch_statistics" where a batch is normalised by its own; "training_norm" besides where
    that is a layer with running statistics, which the model's forward has set to train.
    """
    replaced = Replaced(set(), [])
    token = _REPLACED.set(replaced)
    try:
        yield replaced
    finally:
        _REPLACED.reset(token)


def _note(name: str) -> None:
    replaced = _REPLACED.get()
    if replaced is not None:
        replaced.names.add(name)


class _Replacements(TorchFunctionMode):
    """Looks at each call of a torch function.

    Weight normalisation is written out as v · (g / ‖v‖): torch's fused kernel takes ‖v‖ for a constant in its second
    derivative, so that the Hessian of a weight-normalised layer comes out wrong, and not even symmetric (seen in torch
    2.13). The padding row of an embedding, which gets no gradient, is a constant: torch forgets that in the second
    derivative. Sparse gradients, and such that are scaled by frequency, are made plain. Recurrent layers run without
    cuDNN, whose backward has no derivative. Attention takes the MATH backend at each call: a model that chooses a
    backend itself does so inside of what chose it for the model.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._weight_norm:
            _note("weight_norm")
            return _weight_norm(*args, **kwargs)
        if func is torch.nn.functional.embedding:
            return _embedding(*args, **kwargs)
        if func in _RECURRENT and any(tensor.is_cuda for tensor in args if isinstance(tensor, torch.Tensor)):
            _note("cudnn_rnn")
            with _without_cudnn():
                return func(*args, **kwargs)
        if func in _ATTENTION:
            if func is torch.nn.functional.scaled_dot_product_attention:
                _note("attention")
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        if func is torch.nn.functional.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            _note("batch_statistics")
            if (args[1] if len(args) > 1 else kwargs.get("running_mean")) is not None:
                _note("training_norm")
        return func(*args, **kwargs)


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _embedding(
    ids: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    found = torch.nn.functional.embedding(ids, weight, None, max_norm, norm_type)
    if padding_idx is None:
        return found
    _note("padding")
    if (replaced := _REPLACED.get()) is not None:
        replaced.constant_rows.append((weight, padding_idx % len(weight)))
    return torch.where((ids == padding_idx % len(weight))[..., None], found.detach(), found)


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """The fused kernels that nn.MultiheadAttention and nn.TransformerEncoder take in eval mode have no derivative."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch.compile has made runs as it was written, and can be traced."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextlib.contextmanager
def recomputing_with(module: nn.Module, values: dict[str, torch.Tensor]) -> Iterator[None]:
    """What activation checkpointing computes again on the way back is computed with these values in the module.

    torch.func.functional_call swaps them in for the way forward alone.
    """
    token = _SWAPPED.set((module, values))
    try:
        yield
    finally:
        _SWAPPED.reset(token)


def _swapping(function: Callable[..., Any]) -> Callable[..., Any]:
    swapped = _SWAPPED.get()
    if swapped is None:
        return function

    def run(*args: Any, **kwargs: Any) -> Any:
        with _reparametrize_module(*swapped):
            return function(*args, **kwargs)

    return run


class _NonReentrant:
    """Stands for torch.utils.checkpoint.CheckpointFunction, whose backward cannot be differentiated."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        _note("reentrant_checkpoint")
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


@contextlib.contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    module: Any = torch.utils.checkpoint
    reentrant, other = module.CheckpointFunction, module._checkpoint_without_reentrant_generator

    def generator(function: Any, *args: Any, **kwargs: Any) -> Any:
        return other(_swapping(function), *args, **kwargs)

    module.CheckpointFunction, module._checkpoint_without_reentrant_generator = _NonReentrant, generator
    try:
        yield
    finally:
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = reentrant, other


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    """The one switch: torch.backends.cudnn.flags also reads TF32's old switch, an error where the new ones are set."""
    cudnn: Any = torch.backends.cudnn
    enabled = cudnn.enabled
    cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = enabled


def tf32_is_on() -> bool:
    """Whether any of the kernels of the model may take TF32, outside of products."""
    cudnn: Any = torch.backends.cudnn
    switches: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    return any(switch.fp32_precision == "tf32" for switch in switches)


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
