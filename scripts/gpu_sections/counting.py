"""How often the device is given work, and how often it is waited for: in all, and within Hessian-vector products.

On a GPU the profiler tells: launches of kernels and graphs, and calls that wait, copies to the CPU among them. On a CPU
the operations are counted that would be launches or waits there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_sections.timing import Work, wait

PRODUCT = "Hessian-vector product"  # the name of the range that a product is in
_WITHOUT_KERNEL = ("profiler::", "aten::_unsafe_view", "aten::empty", "aten::new_empty")  # besides views
_WAITING_OPERATIONS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::is_nonzero")


@dataclass
class Counts:
    """`inside`: those within products, which are counted in the others too."""

    launches: int = 0
    waits: int = 0
    inside: dict[str, int] = field(default_factory=lambda: {"launches": 0, "waits": 0})

    def add(self, launches: int, waits: int, inside: bool) -> None:
        self.launches += launches
        self.waits += waits
        if inside:
            self.inside["launches"] += launches
            self.inside["waits"] += waits


def counted(work: Work, device: torch.device) -> Counts:
    """What `work` takes."""
    if device.type != "cuda":
        mode = _Operations()
        with mode:
            work()
        return mode.counts
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        work()
        wait(device)
    return from_events(_calls(profiled.profiler.kineto_results.events()))  # parsed they would take many seconds


# --- on a GPU -------------------------------------------------------------------------------------------------------

Call = tuple[str, int, int]  # its name, when it began and when it ended


def _calls(events: Iterable[Any]) -> Iterator[Call]:
    """What the CPU did, without the kernels themselves."""
    for event in events:
        if event.device_type() == torch.autograd.DeviceType.CPU:
            yield event.name(), event.start_ns(), event.start_ns() + event.duration_ns()


def from_events(calls: Iterable[Call]) -> Counts:
    """Counts calls of CUDA's runtime and driver by their names."""
    every = list(calls)
    products = sorted((start, end) for name, start, end in every if name == PRODUCT)
    counts = Counts()
    for name, start, _ in every:
        launches = int("LaunchKernel" in name or "GraphLaunch" in name)
        waits = int(name.startswith(("cuda", "cu")) and "Synchronize" in name)
        if launches or waits:
            counts.add(launches, waits, any(begin <= start <= end for begin, end in products))
    return counts


# --- on a CPU -------------------------------------------------------------------------------------------------------


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        waits = int(name in _WAITING_OPERATIONS)
        launches = int(not waits and not func.is_view and not name.startswith(_WITHOUT_KERNEL))
        self.counts.add(launches, waits, Marked.depth > 0)
        return func(*args, **(kwargs or {}))


class Marked:
    """Marks a product, for both ways to count."""

    depth = 0

    def __enter__(self) -> None:
        self._range = record_function(PRODUCT)
        self._range.__enter__()
        Marked.depth += 1

    def __exit__(self, *error: Any) -> None:
        Marked.depth -= 1
        self._range.__exit__(*error)
