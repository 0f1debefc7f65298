"""Which of torch's kernels may run while a product is computed: those that are exact and twice differentiable."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.utils.checkpoint
from torch.overrides import TorchFunctionMode

from hvpspec.kernels.autocast import autocast_to_float32
from hvpspec.kernels.float32_precision import exact_float32
from hvpspec.kernels.inner_derivatives import (
    WRONG_AT_HIGHER_ORDERS,
    InnerDerivatives,
    differentiated_by_torch_func,
)
from hvpspec.kernels.second_derivatives.table import SECOND_DERIVATIVES
from hvpspec.kernels.switches import by_math, math_attention, unoptimised, without_autocast, without_fast_path
from hvpspec.system.out_of_memory import as_torch_error
from hvpspec.system.undoing import scoped


@dataclass(frozen=True)
class Replaced:
    """Names of what was replaced."""

    names: set[str]


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_ATTENTION = (torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.multi_head_attention_forward)
_LOOKED_AT = frozenset(
    {torch._weight_norm, torch.nn.functional.embedding, torch.nn.functional.batch_norm}
    | {*_RECURRENT, *_ATTENTION, *WRONG_AT_HIGHER_ORDERS, *SECOND_DERIVATIVES}
)
PaddingRows = dict[tuple[int, int], tuple[torch.Tensor, int, torch.Tensor]]
"""By the weight's identity and the number of the row: the weight, that number, and the values."""
_PADDING_ROWS: ContextVar[PaddingRows | None] = ContextVar("padding_rows", default=None)
_REPLACED: ContextVar[Replaced | None] = ContextVar("replaced", default=None)
_EVALUATING: ContextVar[bool] = ContextVar("evaluating", default=False)  # in this thread

EXCLUSIVE = threading.RLock()
"""Held while anything is changed that a process has once: switches of torch, random generators, warning filters.

Two threads that compute products of two models take turns, so that each finds the switches as it has set them, and all
are restored in the end. What a thread that trains meanwhile calls is not replaced.
"""


@contextlib.contextmanager
def twice_differentiable(device: torch.device, inner: InnerDerivatives | None = None) -> Iterator[None]:
    """Gradients on, no autocast, no TF32, and no kernel whose second derivative is missing or wrong.

    Modules and functions compiled by torch.compile run uncompiled, since their backward has no derivative. inner: that
    of the loss, where losses are evaluated; if one differentiates inside, kernels are right at higher orders too.
    """
    with prepared_to_differentiate(device, inner) as replacing, replacing:
        yield


@contextlib.contextmanager
def prepared_to_differentiate(
    device: torch.device, inner: InnerDerivatives | None = None
) -> Iterator[TorchFunctionMode]:
    """The same, but for a mode that has to be entered wherever a loss is evaluated. It makes every call of torch
    slower, and backward functions enter it themselves."""
    inner = inner or InnerDerivatives()
    replacing = _Replacements(inner)
    with (
        EXCLUSIVE,
        _without_forgotten_modes(),
        exact_arithmetic(device),
        autocast_to_float32(_is_evaluating, _note),
        torch.enable_grad(),
        math_attention(),
        without_fast_path(),
        _uncompiled(),
        _without_reentrant_checkpoints(),
        _in_backward_too(replacing, inner),
        unoptimised(),
    ):
        yield replacing


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32 and no bfloat16: what a recorded graph needs, whose operations are fixed but not their
    precision."""
    turns = EXCLUSIVE if device.type == "cuda" else contextlib.nullcontext()
    with turns, torch.inference_mode(False), without_autocast(device.type), exact_float32(device, _is_evaluating):
        yield


@contextlib.contextmanager
def noting_replacements() -> Iterator[Replaced]:
    """Collects what is replaced meanwhile: "attention", "weight_norm", "padding", "reentrant_checkpoint", "cudnn_rnn",
    "autocast".

    Also collects what is not replaced: "batch_statistics" where a batch is normalised with its own statistics, and
    "training_norm" too where a layer with running statistics does that because the forward sets its training mode.
    """
    replaced = Replaced(set())
    with scoped(_REPLACED, replaced):
        yield replaced


@contextlib.contextmanager
def holding_padding_rows() -> Iterator[None]:
    """Padding rows of embeddings, which are constants, stay what they are at their first look-up meanwhile."""
    with scoped(_PADDING_ROWS, {}):
        yield


def _note(name: str) -> None:
    replaced = _REPLACED.get()
    if replaced is not None:
        replaced.names.add(name)


class _Replacements(TorchFunctionMode):
    """Replaces calls of torch functions whose second derivative is missing or wrong.

    Weight normalisation is computed as v · (g / ‖v‖): torch's fused kernel treats ‖v‖ as a constant in its second
    derivative, so that the Hessian of a weight-normalised layer would be wrong, and not even symmetric (torch 2.13).
    The padding row of an embedding, which gets no gradient, is a constant: torch omits that in the second derivative.
    Embeddings whose gradients are sparse or scaled by frequency get dense, unscaled gradients. Recurrent layers are
    computed by `recurrent`: the backward of cuDNN's kernels has no derivative, and that of the others an expensive one.
    Attention uses the MATH backend. That is set at each call, because a model may choose a backend inside its own
    forward. Distances, CTC and others are computed by `second_derivatives`. `inner` replaces what is wrong at higher
    orders.
    """

    def __init__(self, inner: InnerDerivatives) -> None:
        super().__init__()
        self._inner = inner

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _LOOKED_AT:  # nearly every call, attributes of tensors included
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if func in SECOND_DERIVATIVES:
            return SECOND_DERIVATIVES[func](*args, **kwargs)
        if func is torch._weight_norm:
            _note("weight_norm")
            return _weight_norm(*args, **kwargs)
        if func is torch.nn.functional.embedding:
            return _embedding(*args, **kwargs)
        if func in _RECURRENT:
            return _recurrent(func, args, kwargs)
        if func in _ATTENTION:
            if func is torch.nn.functional.scaled_dot_product_attention:
                _note("attention")
            return by_math(func, args, kwargs)
        if func is torch.nn.functional.batch_norm and (args[5] if len(args) > 5 else kwargs.get("training", False)):
            _note("batch_statistics")
            if (args[1] if len(args) > 1 else kwargs.get("running_mean")) is not None:
                _note("training_norm")
        return self._inner.instead(func)(*args, **kwargs)


@contextlib.contextmanager
def _in_backward_too(replacements: _Replacements, inner: InnerDerivatives) -> Iterator[None]:
    """Replacements in backward functions, where checkpoints recompute; `inner` is told when autograd runs.

    torch.autograd.grad is a torch function itself, and what it calls would run without the mode that has seen it.
    """
    autograd: Any = torch.autograd
    run = autograd._engine_run_backward

    def run_with_replacements(
        outputs: Any, grad_outputs: Any, retain: bool, create: bool, *args: Any, **kw: Any
    ) -> Any:
        if not _is_evaluating():
            return run(outputs, grad_outputs, retain, create, *args, **kw)
        inner.differentiates(bool(create))
        with contextlib.nullcontext() if replacements in _active_modes() else replacements, as_torch_error():
            return run(outputs, grad_outputs, retain, create, *args, **kw)

    try:
        autograd._engine_run_backward = run_with_replacements
        with scoped(_EVALUATING, True):
            yield
    finally:
        autograd._engine_run_backward = run


def vector_jacobian_product(
    outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    """Σ_i vectors[i]ᵀ ∂outputs[i]/∂inputs, whose graph is kept; None for inputs that no output depends on.

    torch.autograd.grad would import SymPy to compare shapes, which takes as long as a small model's spectrum.
    """
    autograd: Any = torch.autograd
    found = autograd._engine_run_backward(
        tuple(outputs), tuple(vectors), True, False, tuple(inputs), True, accumulate_grad=False
    )
    return found  # type: ignore[no-any-return]


def _is_evaluating() -> bool:
    """Whether this thread evaluates losses here, or is one of autograd's own, which works for a thread that does."""
    if _EVALUATING.get():
        return True
    return any(isinstance(mode, _Replacements) for mode in _active_modes())


def _active_modes() -> list[Any]:
    return torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call, no-any-return]


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _recurrent(function: Any, args: Any, kwargs: Any) -> Any:
    from hvpspec.kernels.recurrent.layers import instead_of  # here, as most models have no such layers

    if any(tensor.is_cuda for tensor in args if isinstance(tensor, torch.Tensor)):
        _note("cudnn_rnn")
    found = None if kwargs or differentiated_by_torch_func() else instead_of(function, args)
    if found is not None:
        return found
    with _without_cudnn():
        return function(*args, **kwargs)


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
    row = padding_idx % len(weight)
    constant = found.detach()
    if (rows := _PADDING_ROWS.get()) is not None:
        constant = rows.setdefault((id(weight), row), (weight, row, weight[row].detach().clone()))[2]
    return torch.where((ids == row)[..., None], constant, found)


@contextlib.contextmanager
def _without_forgotten_modes() -> Iterator[None]:
    """A mode that an alarm keeps from being left is not left to all calls of torch that follow."""
    if not _EVALUATING.get():  # those of a product that was interrupted
        _leave_modes(0)
    before = len(_active_modes())
    try:
        yield
    finally:
        _leave_modes(before)


def _leave_modes(count: int) -> None:
    """All of ours that were entered last, beyond so many."""
    while len(modes := _active_modes()) > count and isinstance(modes[-1], _Replacements):
        torch.overrides._pop_mode()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Runs compiled modules and functions without compilation, so that they can be recorded."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"), torch._dynamo.config.patch(error_on_nested_fx_trace=False):
        yield


@contextlib.contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    """Replaces torch.utils.checkpoint.CheckpointFunction, whose backward cannot be differentiated."""
    module: Any = torch.utils.checkpoint
    reentrant = module.CheckpointFunction
    try:
        module.CheckpointFunction = _not_reentrant(reentrant)
        yield
    finally:
        module.CheckpointFunction = reentrant


@cache
def _not_reentrant(reentrant: Any) -> type:
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        if not _is_evaluating():
            return reentrant.apply(function, preserve_rng_state, *args)
        _note("reentrant_checkpoint")
        checkpoint = torch.utils.checkpoint.checkpoint
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state)

    return type("CheckpointFunction", (reentrant,), {"apply": staticmethod(apply)})


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    """Sets one switch only: torch.backends.cudnn.flags reads TF32's old switch, an error where the new ones are set."""
    cudnn: Any = torch.backends.cudnn
    enabled = cudnn.enabled
    try:
        cudnn.enabled = False
        yield
    finally:
        cudnn.enabled = enabled
