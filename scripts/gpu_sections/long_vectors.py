"""What long vectors cost: a basis in the CPU's memory, random probes, and the iterations of a solver."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from large_models import gpt_11m

import hvpspec
from gpu_sections.internals import probes, watched
from gpu_sections.setting import Setting, Wrong, mib
from gpu_sections.timing import median, seconds

_STEPS = 20
_LARGEST_DIFFERENCE = 1e-4  # relative, between eigenvalues with the basis here and there


def _operator(setting: Setting) -> hvpspec.HessianOperator:
    problem = setting.on_device(lambda: gpt_11m(1, setting.tiny))
    H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine="linearized")
    for _ in range(2):
        H @ setting.vector(H.shape[0])
    return H


def basis(setting: Setting) -> Iterator[str]:
    H = _operator(setting)
    product = watched(H)
    product.timed = True
    yield f"`spectrum(H, 3, max_hvps={_STEPS + 20})`, n = {H.shape[0]:,}; per product, what is not the engine's."
    yield ""
    yield "| basis_on | ms besides the product | ms of the product | peak on the device, MiB | λ1 |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    values = []
    for place in ("device", "cpu", "disk"):
        found = None

        def work(place: str = place) -> None:
            nonlocal found
            found = hvpspec.spectrum(H, 3, max_hvps=_STEPS + 20, basis_on=place)

        product.seconds, base = 0.0, 0
        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            base = torch.cuda.memory_allocated()
        total = seconds(work, setting.device)
        peak = mib(torch.cuda.max_memory_allocated() - base) if setting.on_gpu else "–"
        values.append(found.eigenpairs.values[0])
        each = [1e3 * part / found.hvps for part in (total - product.seconds, product.seconds)]
        yield f"| {place} | {each[0]:.1f} | {each[1]:.1f} | {peak} | {values[-1]:.7g} |"
    if np.ptp(values) > _LARGEST_DIFFERENCE * abs(values[0]):
        raise Wrong(f"λ1 differs with the place of the basis: {', '.join(f'{value:.7g}' for value in values)}")


def probes_and_solve(setting: Setting) -> Iterator[str]:
    yield "| | n | ms each |"
    yield "| --- | ---: | ---: |"
    for n in setting.pick((11_000_000, 100_000_000), (50_000, 300_000)):
        options = {"seed": 0, "dtype": torch.float32, "device": setting.device}
        took = median(lambda n=n, options=options: probes(n, [0], **options), setting, rounds=3)
        yield f"| a random probe | {n:,} | {1e3 * took:.1f} |"
    H = _operator(setting)
    n, v = H.shape[0], setting.vector(H.shape[0])
    took = median(lambda: H @ v, setting)
    yield f"| a product | {n:,} | {1e3 * took:.2f} |"
    count = setting.pick(32, 16)
    for what, work in (
        (f"a probe of `trace(H, max_hvps={count})`, its product included", lambda: hvpspec.trace(H, max_hvps=count)),
        ("an iteration of `solve`, with its product, b on the device", lambda: _solved(H, v, count)),
        ("the same, b an array", lambda: _solved(H, v.cpu().numpy(), count)),
    ):
        before = H.hvps
        each = seconds(work, setting.device) / max(H.hvps - before, 1)
        yield f"| {what} | {n:,} | {1e3 * each:.2f} |"


def _solved(H: hvpspec.HessianOperator, b: object, count: int) -> object:
    return hvpspec.solve(H, b, damping=1.0, rtol=1e-7, max_hvps=count, method="minres")
