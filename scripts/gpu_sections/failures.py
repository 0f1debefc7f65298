"""What becomes of a product whose graph cannot be captured, or whose memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from large_models import gpt_11m
from torch import Tensor

import hvpspec
from gpu_sections.internals import failing_capture, is_out_of_memory, out_of_memory_at, release_memory
from gpu_sections.setting import Setting, Wrong, relative

_LARGEST_DIFFERENCE = 1e-5  # relative, from the product by plain double backward
_OPERATIONS = (5, 100, 400)  # numbers of those that fail


def measure(setting: Setting) -> Iterator[str]:
    problem = setting.on_device(lambda: gpt_11m(2, setting.tiny))

    def operator(engine: str) -> hvpspec.HessianOperator:
        return hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine=engine)

    exact = operator("autograd") @ setting.vector(sum(p.numel() for p in problem.model.parameters()))
    yield "Each product is compared with plain double backward."
    yield ""
    yield "| what fails | engine | the product | afterwards |"
    yield "| --- | --- | --- | --- |"
    wrong = []
    for what, engine, said, after in _cases(setting, operator, exact):
        yield f"| {what} | {engine} | {said} | {after} |"
        wrong += [f"{what}, {engine}"] * ("wrong" in f"{said} {after}")
    if wrong:
        raise Wrong("; ".join(wrong))


def _cases(
    setting: Setting, operator: Callable[[str], hvpspec.HessianOperator], exact: Tensor
) -> Iterator[tuple[str, str, str, str]]:
    v = setting.vector(len(exact))
    with failing_capture():
        failing = operator("cudagraph")
        said = _tried(lambda: failing @ v, exact)
        yield "capture of a CUDA graph", "cudagraph", said, f"{failing.plan}; {_generator(setting)}"
    after = operator("cudagraph")
    yield "nothing, after that", "cudagraph", _tried(lambda: after @ v, exact), after.plan
    for engine in ("autograd", "linearized"):
        for times in setting.pick((1, 2, 3), (1, 3)):
            for number in setting.pick(_OPERATIONS, (20,)):
                yield from _without_memory(operator(engine), v, exact, number, times)
    if setting.on_gpu:
        yield from _short_of_memory(setting, operator, exact)


def _without_memory(
    H: hvpspec.HessianOperator, v: Tensor, exact: Tensor, number: int, times: int
) -> Iterator[tuple[str, str, str, str]]:
    """The third product finds no memory; nothing where it has fewer operations than that."""
    for _ in range(2):
        H @ v
    engine = H.engine
    with out_of_memory_at(number, times) as forced:
        said = _tried(lambda: H @ v, exact)
    again = _tried(lambda: H @ v, exact)
    if failures := times - forced.left:
        yield f"memory, {failures} ×, operation {number}", engine, said, f"{again}; {H.plan}"


def _tried(work: Callable[[], Tensor], exact: Tensor) -> str:
    """How far off the product is; or that it was refused for lack of memory, as it may be."""
    try:
        off = relative(work(), exact)
    except Exception as error:
        kind = "refused" if is_out_of_memory(error) else "wrong, raised"
        return f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    return f"{'off by' if off <= _LARGEST_DIFFERENCE else 'wrong, off by'} {off:.0e}"


def _generator(setting: Setting) -> str:
    """Whether torch's random numbers on the device still work: a capture that is not ended keeps their generator."""
    try:
        torch.randn(1, device=setting.device)
        torch.manual_seed(0)
    except RuntimeError as error:
        return f"wrong: random numbers raise {str(error).splitlines()[0][:80]}"
    return "random numbers work"


def _short_of_memory(
    setting: Setting, operator: Callable[[str], hvpspec.HessianOperator], exact: Tensor
) -> Iterator[tuple[str, str, str, str]]:
    """Products in a process that may have so much of the device's memory and no more."""
    v = setting.vector(len(exact))
    for engine in ("autograd", "linearized", "cudagraph"):
        for extra in (4096, 1024, 512, 256, 64):
            release_memory()
            said, plan = _with_only(extra * 2**20, setting, operator(engine), v, exact)
            yield f"all memory beyond {extra:,} MiB", engine, said, plan


def _with_only(size: int, setting: Setting, H: hvpspec.HessianOperator, v: Tensor, exact: Tensor) -> tuple[str, str]:
    """The second product, and the plan, where so many bytes may be taken beyond what is held."""
    total = torch.cuda.get_device_properties(setting.device).total_memory
    allowed = (torch.cuda.memory_reserved(setting.device) + size) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed), setting.device)
    try:
        return _tried(lambda: [H @ v for _ in range(2)][1], exact), H.plan
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
