"""Free, reserved and allocated memory around the preflight, and what CUDA graphs hold."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch
from large_models import gpt_11m

import hvpspec
from gpu_sections.internals import examine, free_memory, inspect_operator, release_memory
from gpu_sections.setting import Setting, Wrong, mib
from gpu_sections.timing import median, seconds

_LARGEST_LOSS = 0.1  # of what was free: by how much less may seem to be free after a preflight


def around_the_preflight(setting: Setting) -> Iterator[str]:
    yield "A GPT and four batches. MiB; hvpspec's free memory is what budgets are shares of."
    yield ""
    yield "| | free by CUDA | reserved by torch | allocated by torch | free by hvpspec |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    problem = setting.on_device(lambda: gpt_11m(4, setting.tiny))
    H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data)
    before = free_memory(setting.device)
    yield f"| before the preflight | {_state(setting)} |"
    took = seconds(lambda: inspect_operator(H, examine(problem.model, setting.device)), setting.device)
    after = free_memory(setting.device)
    yield f"| after it | {_state(setting)} |"
    release_memory()
    yield f"| after the cache was emptied | {_state(setting)} |"
    H.expect(1000)
    for _ in range(3):
        H @ setting.vector(H.shape[0])
    yield f"| after three products | {_state(setting)} |"
    yield ""
    yield f"The preflight took {took:.2f} s. Afterwards: {H.plan}."
    if setting.on_gpu and after < (1 - _LARGEST_LOSS) * before:
        raise Wrong(f"after the preflight {mib(after)} MiB seem to be free of {mib(before)} before it")


def _state(setting: Setting) -> str:
    if not setting.on_gpu:
        return f"– | – | – | {mib(free_memory(setting.device))}"
    free = torch.cuda.mem_get_info(setting.device)[0]
    held = torch.cuda.memory_reserved(setting.device), torch.cuda.memory_allocated(setting.device)
    return " | ".join(mib(size) for size in (free, *held, free_memory(setting.device)))


def of_graphs(setting: Setting) -> Iterator[str]:
    yield (
        "The same GPT. MiB beyond the model, the data and a vector, after products and an emptied "
        "cache; a graph's own memory is reserved and not allocated."
    )
    yield ""
    yield "| batches | engine | allocated | reserved | peak of a product above that | ms | plan |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | --- |"
    most = setting.pick(8, 2)
    problem = setting.on_device(lambda: gpt_11m(most, setting.tiny))
    v = setting.vector(sum(p.numel() for p in problem.model.parameters()))
    for batches in (1, most):
        data = problem.data[:batches]
        for engine in ("linearized", "cudagraph"):
            base = _held(setting)
            H = hvpspec.HessianOperator(problem.model, problem.criterion, data, engine=engine)
            for _ in range(2):
                H @ v
            held = _held(setting)
            peak = "–"
            if setting.on_gpu:
                torch.cuda.reset_peak_memory_stats()
                H @ v
                peak = mib(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())
            took = median(lambda H=H: H @ v, setting)
            cells = [*(mib(now - then) for now, then in zip(held, base, strict=True)), peak, f"{1e3 * took:.2f}"]
            yield f"| {batches} | {engine} | {' | '.join(cells)} | {H.plan} |"
            del H


def _held(setting: Setting) -> tuple[int, int]:
    """Bytes allocated and reserved."""
    gc.collect()
    if not setting.on_gpu:
        return 0, 0
    release_memory()
    return torch.cuda.memory_allocated(setting.device), torch.cuda.memory_reserved(setting.device)
