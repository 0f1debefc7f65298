"""Counts, on any device, what a GPU would have to launch and what would make the CPU wait for it."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Operations that launch nothing, besides views, which their schema tells.
_LAUNCH_NOTHING = {
    "aten::" + name
    for name in (
        "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "detach", "alias",
        "detach_", "lift", "lift_fresh", "_unsafe_view", "is_same_size", "sym_size", "sym_stride", "sym_numel",
        "sym_storage_offset", "is_contiguous", "_local_scalar_dense", "record_stream", "is_pinned",
    )
}  # fmt: skip
# Operations whose result, or its size, the CPU waits for.
_READ = {
    "aten::" + name
    for name in (
        "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique", "_unique2",
        "unique_consecutive", "unique_dim_consecutive",
    )
}  # fmt: skip
_COPIED_TO_CPU = {torch.Tensor.cpu, torch.Tensor.tolist}


@dataclass
class Counts:
    """kernels: operations that a GPU launches. reads: those whose result the CPU waits for. Both also by name."""

    by_name: Counter[str] = field(default_factory=Counter)
    reads_by_name: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        return sum(self.by_name.values())

    @property
    def reads(self) -> int:
        return sum(self.reads_by_name.values())


class _Operations(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in _READ or (name.startswith("aten::index") and _has_mask(args)):
            self._counts.reads_by_name[name] += 1
        if name.startswith("prim::"):  # what fake tensors ask one another
            return func(*args, **(kwargs or {}))
        if not func.is_view and name not in _LAUNCH_NOTHING:
            self._counts.by_name[name] += 1
        return func(*args, **(kwargs or {}))


class _Copies(TorchFunctionMode):
    """Copies to the CPU, which are not dispatched where the tensor is there already."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to_cpu = func is torch.Tensor.to and ("cpu" in args[1:2] or kwargs.get("device") == "cpu")
        if func in _COPIED_TO_CPU or to_cpu:
            self._counts.reads_by_name[f"Tensor.{func.__name__}"] += 1
        return func(*args, **kwargs)


def _has_mask(args):
    """Whether positions are given as a mask: how many there are is then read first."""
    chosen = args[1] if len(args) > 1 else ()
    return isinstance(chosen, list | tuple) and any(
        isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in chosen
    )


@contextlib.contextmanager
def counted():
    """Yields the Counts of what runs meanwhile in this thread, and in autograd's where they work for it.

    A kernel that PyTorch launches as two counts once. `.cpu()`, `.tolist()`, `.item()`, `bool(…)` and their like are
    reads, also of tensors that are on the CPU; `.to(device)` is not, unless the device is written "cpu".
    """
    counts = Counts()
    with _Copies(counts), _Operations(counts):
        yield counts
