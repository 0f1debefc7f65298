"""What one Hessian-vector product costs on networks as people train them: hvpspec, its peers, and one gradient."""

from __future__ import annotations

import functools
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import large_models
import models
import torch
from arithmetic import arithmetic
from bench_oracle import GivenUp, patience, peak
from contestants import CONTESTANTS, contestants, gradient
from torch import Tensor

import hvpspec
from gpu_sections.internals import is_out_of_memory
from gpu_sections.running import Measure
from gpu_sections.setting import Setting, Wrong, relative
from gpu_sections.timing import median, medians

COLUMNS = 8
_MOST_SAMPLES = 32  # of a network whose samples take memory
_LARGEST_ERROR = 1e-3  # of hvpspec's products
_BYTES_OF_LARGE = 60 * 2**30  # free on the device, for the larger of two numbers of samples

# In the order in which they are measured: what takes minutes to compile comes last.
_ORDER = (
    "hvpspec, linearized",
    "hvpspec, CUDA graph",
    "hvpspec, linearized, nothing kept",
    "hvpspec, autograd, graphs kept",
    "hvpspec, autograd",
    "one gradient, TF32",
    "hessian-eigenthings 1.0.0a5",
    "hessian-eigenthings 1.0.0a5, TF32",
    "JAX, jit(jvp(grad))",
    "hvpspec, compiled",
    "curvlinops' jvp(grad), compiled",
    "hvpspec, compiled, nothing kept",
    "curvlinops' jvp(grad), compiled, TF32",
    "curvlinops 3.0.1",
)
_WHERE_TINY = ("hvpspec, linearized", "hvpspec, autograd", "hessian-eigenthings 1.0.0a5", "JAX, jit(jvp(grad))")


@dataclass(frozen=True)
class _Network:
    """make: from the number of samples; samples: with much memory, and with little."""

    make: Callable[[int, bool], models.Problem]
    samples: tuple[int, int]
    unit: str


_NETWORKS = {
    "gpt": _Network(large_models.gpt_124m, (4, 1), "sequences of 1,024 tokens"),
    "resnet": _Network(large_models.resnet_50, (32, 8), "images"),
    "vit": _Network(large_models.vit_b, (16, 4), "images"),
    "resnet20": _Network(lambda n, tiny: models.mlp(1, 8) if tiny else models.resnet(), (64, 64), "images"),
    "small gpt": _Network(lambda n, tiny: models.mlp(1, 8) if tiny else models.gpt(), (8, 8), "sequences"),
}


@dataclass(frozen=True)
class _Case:
    """What all contestants are given and compared with. of_gradient: bytes of its peak."""

    problem: models.Problem
    v: Tensor
    expected: Tensor
    of_gradient: float
    setting: Setting


def of(name: str) -> Measure:
    """The section on a network."""
    return functools.partial(_measure, name)


def _measure(name: str, setting: Setting) -> Iterator[str]:
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # "ready in" is what it takes the first time
    network = _NETWORKS[name]
    samples = setting.pick(network.samples[setting.free() < _BYTES_OF_LARGE], 2)
    problem = setting.on_device(lambda: network.make(samples, setting.tiny))
    n = sum(p.numel() for p in problem.model.parameters())
    v = setting.vector(n)
    with arithmetic(tf32=False):
        expected = _exact(problem, v)
        base = gradient(problem, setting.device.type)
        took = median(lambda: base(v), setting)
        memory = peak(base, v)
        size = f"{n:,} parameters, {samples} {network.unit}"
        yield f"{size}. One gradient: {1e3 * took:.2f} ms, {memory / 2**20:,.0f} MiB."
        yield ""
        yield (
            "Memory: the peak of a product, with what is held between products, as multiples of the gradient's peak, "
            f"both beyond the model and the data. {COLUMNS} vectors: together, each ÷ gradient. Error: relative, "
            "compared with autograd in float64. hvpspec records a network once: its later rows are ready sooner."
        )
        yield ""
        yield f"| one HVP | ÷ gradient | ms | ready in | memory ÷ gradient's | of it held | {COLUMNS} vectors | error |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        rows, wrong = _rows(setting), []
        for number, row in enumerate(rows):
            compiled_later = sum("compiled" in other for other in rows[number + 1 :])
            seconds = (setting.left - 2) / (1 + compiled_later * ("compiled" in row))
            line, good = _row(row, _Case(problem, v, expected, memory, setting), seconds)
            yield line
            wrong += [] if good else [row]
    if wrong:
        raise Wrong("; ".join(wrong))


def _rows(setting: Setting) -> list[str]:
    if setting.tiny:
        return list(_WHERE_TINY)
    return [row for row in _ORDER if row in contestants(setting.device.type)]


def _exact(problem: models.Problem, v: Tensor) -> Tensor:
    """The product by double backward in float64, a sample at a time: all together would take twice the memory."""
    (batch,) = problem.data
    samples: Any = [(x, y) for x, y in zip(batch[0].split(1), batch[1].chunk(len(batch[0])), strict=True)]
    if len(samples) > _MOST_SAMPLES:  # they are small
        samples = problem.data
    exact = hvpspec.HessianOperator(
        problem.model, problem.criterion, samples, engine="autograd", dtype="float64", memory_limit=1, verify=False
    )
    return exact @ v.double()


def _row(name: str, case: _Case, seconds: float) -> tuple[str, bool]:
    """A line of the table, and whether it is as it must be. The contestant is gone afterwards.

    seconds: in which it must be ready.
    """
    if seconds <= 0:
        return f"| {name} | no time left | | | | | | |", True
    failed, good = None, True
    try:
        cells = _cells(name, case, seconds)
        good = not (name.startswith("hvpspec") and float(cells[-1]) > _LARGEST_ERROR)
    except GivenUp:
        failed = f"not ready in {seconds:.0f} s"
    except ModuleNotFoundError as error:
        failed = f"not measured: {error.name} is not installed here, nor among the wheels of `scripts/gpu --pack`"
    except Exception as error:  # its row says what it was, and the others are measured
        failed = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        good = not name.startswith("hvpspec") or is_out_of_memory(error) or "not captured" in failed
    case.setting.free()  # outside of the handler, which holds what failed
    return f"| {name} | {failed} | | | | | | |" if failed else f"| {name} | {' | '.join(cells)} |", good


def _cells(name: str, case: _Case, seconds: float) -> list[str]:
    """What a row says. The contestant takes turns with the gradient."""
    problem, v, setting = case.problem, case.v, case.setting
    held_before = _held(setting, name)
    base = gradient(problem, setting.device.type)
    start = time.perf_counter()
    with patience(max(seconds, 0.1) / 60):
        run = CONTESTANTS[name](problem, setting.device.type)
        found = run(v)
    ready = time.perf_counter() - start
    off = f"{relative(found.detach(), case.expected):.0e}" if isinstance(found, Tensor) else ""
    del found
    taken = medians({"gradient": lambda: base(v), "product": lambda: run(v)}, setting)
    held = max(_held(setting, name) - held_before, 0)
    memory = "" if name.startswith("JAX") else f"{(held + peak(run, v)) / case.of_gradient:.2f}"
    return [
        f"{taken['product'] / taken['gradient']:.2f}", f"{1e3 * taken['product']:.2f}", f"{ready:.1f} s", memory,
        f"{held / case.of_gradient:.2f}" if memory and setting.on_gpu else "",
        _columns(name, problem, taken["gradient"], setting), off,
    ]  # fmt: skip


def _held(setting: Setting, name: str) -> int:
    """Bytes in use; where there are graphs, bytes reserved, among which theirs are."""
    gc.collect()
    if not setting.on_gpu:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved() if "CUDA" in name else torch.cuda.memory_allocated()


def _columns(name: str, problem: models.Problem, of_gradient: float, setting: Setting) -> str:
    """Of several vectors at once, which hvpspec alone takes as one call that measures how many to compute together."""
    if name != "hvpspec, linearized" or not setting.has(10 if setting.on_gpu else 1):
        return ""
    try:
        return _together(problem, of_gradient, setting)
    except torch.OutOfMemoryError:
        return "too little memory"


def _together(problem: models.Problem, of_gradient: float, setting: Setting) -> str:
    H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine="linearized")
    V: Any = setting.vector(H.shape[0], COLUMNS)
    H @ V
    took = median(lambda: H @ V, setting, rounds=3)
    return f"{took / COLUMNS / of_gradient:.2f}"
