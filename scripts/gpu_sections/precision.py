"""Whether the estimators' own arithmetic is exact where a user has switched TF32 on ("high")."""

from __future__ import annotations

from collections.abc import Iterator

import models
import torch
from arithmetic import arithmetic

import hvpspec
from gpu_sections.setting import Setting, Wrong

_K = 5
_LARGEST_DEFECT = 1e-5  # of VᵀV − I, in float32


def measure(setting: Setting) -> Iterator[str]:
    problem = setting.on_device(lambda: models.mlp(2, setting.pick(256, 8)))

    def operator(dtype: str) -> hvpspec.HessianOperator:
        return hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, dtype=dtype)

    budget = setting.pick(120, 40)
    exact = hvpspec.spectrum(operator("float64"), _K, max_hvps=budget)
    values = exact.eigenpairs.values
    yield f"An MLP, the {_K} eigenpairs of largest magnitude, trace and norm, compared with those in float64."
    yield ""
    yield "| | λ off, of λ1 | claimed | VᵀV − I | trace off | claimed | norm off | claimed | converged |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    wrong = []
    for name, tf32 in (("without TF32", False), ("TF32, high", True)):
        with arithmetic(tf32=tf32):
            found = hvpspec.spectrum(operator("float32"), _K, max_hvps=budget)
        pairs = found.eigenpairs
        scale = abs(values[0])
        off, claimed = max(abs(pairs.values - values)) / scale, max(pairs.error) / scale
        V = torch.as_tensor(pairs.vectors).cpu().double()
        defect = float((V.T @ V - torch.eye(_K, dtype=torch.float64)).abs().max())
        cells = [f"{off:.1e}", f"{claimed:.1e}", f"{defect:.1e}"]
        for estimate, true in ((found.trace, exact.trace), (found.frobenius_norm, exact.frobenius_norm)):
            cells += [f"{abs(estimate.value / true.value - 1):.1e}", f"{estimate.error / abs(true.value):.1e}"]
            if abs(estimate.value - true.value) > estimate.error + true.error:
                wrong.append(f"trace or norm, {name}")
        if off > 2 * claimed + 1e-6 or defect > _LARGEST_DEFECT:
            wrong.append(f"eigenpairs, {name}")
        yield f"| {name} | {' | '.join(cells)} | {found.converged} |"
    if wrong:
        raise Wrong("; ".join(wrong) + ": off by more than claimed")
