"""Switches of torch that products need otherwise than programs have them; each is put back wherever an alarm comes.

Where there is nothing to change, nothing is put back: a context that an alarm keeps from being entered ends when it is
forgotten, after the one around it.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from hvpspec.system.undoing import run_all

_SDP_KINDS = ("flash", "mem_efficient", "cudnn", "math", "overrideable")
ATTENTION_BACKEND = "math"
"""The only scaled-dot-product attention kernel that has a second derivative."""


@contextlib.contextmanager
def without_autocast(device: str) -> Iterator[None]:
    """Off; programs that ask are told float32."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    if not enabled and dtype == torch.float32:
        yield
        return
    undo = chain(map(torch.set_autocast_enabled, [device], [enabled]), map(torch.set_autocast_dtype, [device], [dtype]))
    try:
        torch.set_autocast_enabled(device, False)
        torch.set_autocast_dtype(device, torch.float32)
        yield
    finally:
        run_all(undo)


@contextlib.contextmanager
def math_attention() -> Iterator[None]:
    """torch's own context leaves its switches half way where an alarm goes off as it ends."""
    if _enabled() == [kind == ATTENTION_BACKEND for kind in _SDP_KINDS]:
        yield
        return
    undo = _attention_switches()
    try:
        run_all(_attention_switches(only=ATTENTION_BACKEND))
        yield
    finally:
        run_all(undo)


def by_math(func: Any, args: Any, kwargs: Any) -> Any:
    """The same within a model's forward, which may have chosen a kernel itself.

    No context: one that an alarm keeps from being entered ends when it is forgotten, after the one around it.
    """
    undo = _attention_switches()
    try:
        run_all(_attention_switches(only=ATTENTION_BACKEND))
        return func(*args, **kwargs)
    finally:
        run_all(undo)


def _attention_switches(only: str | None = None) -> Iterator[object]:
    """What sets them as they are, or so that there is only this kind."""
    setters = [getattr(torch._C, f"_set_sdp_use_{kind}") for kind in _SDP_KINDS]
    return map(operator.call, setters, [kind == only for kind in _SDP_KINDS] if only else _enabled())


def _enabled() -> list[bool]:
    return [getattr(torch._C, f"_get_{kind}_sdp_enabled")() for kind in _SDP_KINDS]


@contextlib.contextmanager
def without_fast_path() -> Iterator[None]:
    """Without the fused kernels of nn.MultiheadAttention and nn.TransformerEncoder in eval mode: not differentiable."""
    if not (enabled := torch.backends.mha.get_fastpath_enabled()):
        yield
        return
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        try:
            torch.backends.mha.set_fastpath_enabled(enabled)
        except BaseException:  # an alarm, perhaps before anything was done
            torch.backends.mha.set_fastpath_enabled(enabled)
            raise


@contextlib.contextmanager
def unoptimised() -> Iterator[None]:
    """Without TorchScript's optimiser, which gives some fused programs a wrong derivative (batch norm, tanh and dropout
    in a row; torch 2.13)."""
    undo = map(torch._C._set_graph_executor_optimize, [torch._C._get_graph_executor_optimize()])
    try:
        torch._C._set_graph_executor_optimize(False)
        yield
    finally:
        run_all(undo)
