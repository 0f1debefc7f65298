"""A profile of Lanczos steps: launches, waits, and how much of the time is the estimator's and not the products'."""

from __future__ import annotations

from collections.abc import Iterator

from large_models import gpt_11m

import hvpspec
from gpu_sections.counting import counted
from gpu_sections.internals import watched
from gpu_sections.setting import Setting, Wrong
from gpu_sections.timing import seconds

STEPS = 20
_MOST_LAUNCHES, _MOST_WAITS = 60, 2  # per step besides the product; per product


def measure(setting: Setting) -> Iterator[str]:
    problem = setting.on_device(lambda: gpt_11m(1, setting.tiny))
    n = sum(p.numel() for p in problem.model.parameters())
    yield f"`eigsh(H, 3, max_hvps={STEPS})` on a GPT of {n:,} parameters, one batch, per step."
    yield ""
    yield (
        "| engine | ms | of which the product | the estimator's share | launches besides | waits besides | launches in "
        "the product | waits in the product |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    most = 0.0
    for engine in ("autograd", "linearized", "cudagraph") if setting.on_gpu else ("autograd", "linearized"):
        H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine=engine)
        for _ in range(2):
            H @ setting.vector(n)
        product = watched(H)
        found = None

        def work(H: hvpspec.HessianOperator = H) -> None:
            nonlocal found
            found = hvpspec.eigsh(H, 3, tol=1e-12, max_hvps=STEPS)

        seconds(work, setting.device)  # what is done once
        product.timed, product.seconds = True, 0.0
        total = seconds(work, setting.device)
        inside = product.seconds
        product.timed = False
        counts = counted(work, setting.device)
        steps = found.hvps
        every = {"launches": counts.launches, "waits": counts.waits}
        besides = [(count - counts.inside[what]) / steps for what, count in every.items()]
        most = max(most, besides[0])
        cells = [
            f"{1e3 * total / steps:.2f}", f"{1e3 * inside / steps:.2f}", f"{1 - inside / total:.0%}",
            *(f"{count:.1f}" for count in besides),
            *(f"{count / steps:.1f}" for count in counts.inside.values()),
        ]  # fmt: skip
        yield f"| {engine} | {' | '.join(cells)} |"
    yield ""
    yield (
        f"Bars: at most {_MOST_LAUNCHES} launches a step besides the product, and {_MOST_WAITS} waits a product. "
        "Products include, once, the one in float64 that measures how products are rounded, which waits for each copy."
    )
    if setting.on_gpu and most > _MOST_LAUNCHES:
        raise Wrong(f"{most:.0f} launches per step besides the product")
