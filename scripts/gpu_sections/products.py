"""What a product costs in each engine, with and without comparing the model's values, and with the model on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import models
from contestants import gradient
from large_models import resnet_50

import hvpspec
from gpu_sections.internals import without_comparison
from gpu_sections.setting import Setting, relative
from gpu_sections.timing import median

_ENGINES: dict[str, dict[str, Any]] = {
    "autograd": {"engine": "autograd"},
    "autograd, nothing kept": {"engine": "autograd", "memory_limit": 1},
    "linearized": {"engine": "linearized"},
    "linearized, nothing kept": {"engine": "linearized", "memory_limit": 1},
    "CUDA graph": {"engine": "cudagraph"},
    "compiled": {"engine": "compiled"},
}
_SECONDS_TO_COMPILE = 40.0  # without which it is not begun


def measure(setting: Setting) -> Iterator[str]:
    full = {"GPT 0.94 M, one batch": models.gpt, "ResNet-20 0.27 M, one batch": models.resnet}
    for name, make in setting.pick(full, {"a tiny ResNet": lambda: resnet_50(2, True)}).items():
        yield from _table(setting, name, make)
        yield ""


def _table(setting: Setting, name: str, make: Any) -> Iterator[str]:
    problem = setting.on_device(make)
    n = sum(p.numel() for p in problem.model.parameters())
    v = setting.vector(n)
    run = gradient(problem, str(setting.device))
    base = median(lambda: run(v), setting)
    tensors = len(list(problem.model.parameters()))
    yield f"{name}: {n:,} parameters in {tensors} tensors; a gradient takes {1e3 * base:.2f} ms."
    yield ""
    yield "| engine | ms | ÷ gradient | ms without the comparison | ms with the model on the CPU | off | plan |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
    expected, left_on_cpu = None, make()  # for all engines, so that it is recorded once
    for engine, options in _ENGINES.items():
        if engine == "CUDA graph" and not setting.on_gpu:
            continue
        if engine == "compiled" and (setting.tiny or not setting.has(_SECONDS_TO_COMPILE)):
            yield f"| {engine} | not measured: {'--tiny' if setting.tiny else 'no time left'} | | | | | |"
            continue
        H = _ready(problem, setting, options)
        found = H @ v
        expected = found if expected is None else expected
        with_it = median(lambda H=H: H @ v, setting)
        with without_comparison():
            without = median(lambda H=H: H @ v, setting)
        plan = H.plan
        del H
        from_cpu = "" if engine == "compiled" else _from_cpu(setting, left_on_cpu, options, v)
        cells = [f"{1e3 * with_it:.2f}", f"{with_it / base:.2f}", f"{1e3 * without:.2f}", from_cpu]
        yield f"| {engine} | {' | '.join(cells)} | {relative(found, expected):.0e} | {plan} |"


def _ready(problem: models.Problem, setting: Setting, options: dict[str, Any]) -> hvpspec.HessianOperator:
    H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, device=setting.device, **options)
    H.expect(1000)
    for _ in range(3):  # recorded, compiled, kept
        H @ setting.vector(H.shape[0])
    return H


def _from_cpu(setting: Setting, problem: models.Problem, options: dict[str, Any], v: Any) -> str:
    """Milliseconds where the model and its data are left on the CPU."""
    if not setting.on_gpu:
        return "the same"
    H = _ready(problem, setting, options)
    return f"{1e3 * median(lambda: H @ v, setting):.2f}"
