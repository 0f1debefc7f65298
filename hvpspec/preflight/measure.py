"""What a few products tell before the many: does the loss repeat, is the derivative right, what does a product cost."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.memory import peak_memory, resident
from hvpspec.objective.objective import LossValue, Objective
from hvpspec.objective.torch_kernels import noting_replacements
from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import SpectrumOptions
from hvpspec.preflight.differences import compared, first_batch, refused_asymmetric, refused_once
from hvpspec.preflight.forecast import Moments, read_moments, with_forecast
from hvpspec.preflight.inspect_model import LISTED, used
from hvpspec.results.preflight import Finding, Preflight
from hvpspec.wording import listed

_STEADY = {torch.float32: 1e-5, torch.float64: 1e-10}  # of a loss, relative: sums in another order differ by less
_REPEATS = 1e-4  # of a product, relative: two engines differ by less
_SYMMETRIC = 1e-3


def steady(dtype: torch.dtype) -> float:
    """What the same loss, computed again, may differ by: relative to its batches' losses without their signs."""
    return _STEADY[dtype]


def expected_loss(given: str) -> tuple[float, float]:
    """`--expect-loss 0.043` as the figure and what it may be off by: half a unit of its last digit.

    1e2 is taken for 100 to the unit: a positive exponent is a way to write a number, and tells no precision.
    """
    try:
        number = Decimal(given)
        if not number.is_finite():
            raise ValueError
    except (ArithmeticError, ValueError):
        raise InputError(f"--expect-loss {given}: give the loss as a number, such as 0.043.") from None
    return float(number), 0.5 * 10.0 ** min(int(number.as_tuple().exponent), 0)


def inspect_operator(
    H: HessianOperator,
    findings: Sequence[Finding] = (),
    *,
    loss: LossValue | None = None,
    expect: str | None = None,
    measure: bool = True,
    options: SpectrumOptions | None = None,
) -> Preflight:
    """The findings and figures of a Preflight; findings: those that are known already.

    loss: the loss on the data, where it is known. expect: what that must be, as text. measure: False does nothing more.
    options: what the run is to be asked for (None: the defaults).
    Costs one gradient (and a forward pass, where the loss is not known), 3 or 4 HVPs, and 4 to 12 gradients of the
    first batch in float64. What cannot be measured, because something is refused, is None. Raises InputError when loss
    or data cannot be used at all.
    """
    options = options or SpectrumOptions()
    known = Preflight(tuple(findings))

    def found(*more: Finding) -> Preflight:
        return replace(known, findings=(*known.findings, *more))

    first = loss or H.loss()
    known = replace(known, loss=first.value)
    if expect is not None:
        value, off = expected_loss(expect)
        if abs(first.value - value) > off + _STEADY[H.torch_dtype] * max(first.size, abs(value)):
            refused = f"the loss on the data is {first.value:.6g}, not {expect}"
            return found(
                Finding("loss", refused, "check checkpoint, data and loss: they are not what gave that loss", "refused")
            )
    if not measure:
        return known
    with noting_replacements() as replaced:
        again, unused = _with_gradient(H.objective)
    if "training_norm" in replaced.names:  # what would have been in eval mode is not
        known = replace(known, findings=tuple(finding for finding in known.findings if finding.kind != "batch_norm"))
    kinds = {finding.kind for finding in known.findings}
    known = found(*(finding for finding in used(replaced.names) if finding.kind not in kinds))
    if abs(again - first.value) > _STEADY[H.torch_dtype] * max(first.size, abs(again)):
        what = f"two passes over the data give different losses ({first.value:.9g}, {again:.9g})"
        return found(_unsteady(H.objective, what))
    known = found(*unused)
    try:
        known, moments = _products(H, known, options.seed, 3 if options.sampled else 2)
    except InputError as error:
        if "differentiated twice" not in str(error):
            raise
        return refused_once(H, known, str(error))
    held = _held(H)
    if not known.refused:
        known = compared(H, known)
    return known if known.refused else with_forecast(H, known, moments, held, options)


def _unsteady(objective: Objective, found: str) -> Finding:
    """Whether it is model and loss that change, or the data: the loss of one and the same batch tells."""
    alone = first_batch(objective)
    values = [alone.value().value for _ in range(3)]
    if max(values) - min(values) > _STEADY[objective.dtype] * max(map(abs, values)):
        return Finding(
            "random", f"{found}, even on one and the same batch", "make model and loss deterministic", "refused"
        )
    return Finding(
        "data", found, "--freeze-data keeps the first pass, or turn shuffling and augmentation off", "refused"
    )


def _with_gradient(objective: Objective) -> tuple[float, list[Finding]]:
    """The loss once more, and the parameters that no batch's loss depends on. Costs one gradient."""
    unused = set(objective.space.names)
    total = weights = 0.0
    with objective.evaluating():
        snapshot = objective.snapshot()
        for _, loss, weight in objective.losses(snapshot):
            total, weights = total + weight * float(loss.detach()), weights + weight
            if not loss.requires_grad:
                continue
            try:
                gradients = torch.autograd.grad(loss, snapshot.parameters, allow_unused=True)
            except RuntimeError as error:
                raise InputError(f"the loss cannot be differentiated: {error}") from error
            unused -= {name for name, g in zip(objective.space.names, gradients, strict=True) if g is not None}
    if not unused or len(unused) == len(objective.space.names):  # none at all is an error of its own
        return total / weights, []
    shown = listed((name for name in objective.space.names if name in unused), LISTED)
    finding = Finding("unused", f"parameters that the loss does not depend on: {shown}", "rows of zeros in H", "note")
    return total / weights, [finding]


def _products(H: HessianOperator, known: Preflight, seed: int, count: int) -> tuple[Preflight, Moments | None]:
    """Symmetry, repeatability, what one product takes, and what `count` of them tell of the spectrum."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(H.shape[0], count, generator=generator, dtype=torch.float64).to(H.device, H.torch_dtype)
    before = H.hvps
    with peak_memory(H.device) as peak:
        HX = _timed(H, X)[0]
    (x, y), (Hx, Hy) = X.T[:2].double(), HX.T[:2].double()
    one, seconds = _timed(H, X[:, :1])
    scale = math.sqrt(float(Hx.norm() * Hy.norm()))  # as large as xᵀHy is: for such x, both are about ‖H‖_F
    symmetry = float(abs(x @ Hy - y @ Hx)) / scale if scale else 0.0
    size = float(Hx.norm())
    repeats = float((one[:, 0].double() - Hx).norm()) / size if size else 0.0
    known = replace(
        known, symmetry=symmetry, repeatability=repeats, seconds=seconds, memory=peak(), hvps=H.hvps - before
    )
    if repeats > max(_REPEATS, 2 * H.noise):
        finding = _unsteady(H.objective, f"the same product, made twice, differs by {repeats:.1%}")
        known = replace(known, findings=(*known.findings, finding))
    elif symmetry > max(_SYMMETRIC, 2 * H.noise):
        known = refused_asymmetric(H, known, symmetry)
    return known, read_moments(X, HX)


def _held(H: HessianOperator) -> int | None:
    return resident() if H.device.type == "cpu" else torch.cuda.memory_allocated(H.device)


def _timed(H: HessianOperator, block: Tensor) -> tuple[Tensor, float]:
    start = time.perf_counter()
    product = H @ block
    if H.device.type == "cuda":
        torch.cuda.synchronize(H.device)
    return product, (time.perf_counter() - start) / block.shape[1]
