"""Measurements before a run: does the loss repeat, are the products right, and what does one cost?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import torch
from torch import Tensor

from hvpspec.bounds.rounding import asymmetry, symmetric_in_float64
from hvpspec.errors import InputError, NotTwiceDifferentiable
from hvpspec.kernels.random_vectors import probes
from hvpspec.kernels.torch_kernels import noting_replacements
from hvpspec.krylov.vectors import column_inner
from hvpspec.memory import peak_memory, resident
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.objective import REPEATED, Objective
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.preconditioned import Measured, PreconditionedOverData
from hvpspec.options import PILOT_PROBES, SpectrumOptions
from hvpspec.oracle.autograd import refused_derivative
from hvpspec.oracle.checks.samples import refuse_mixed_samples
from hvpspec.oracle.checks.verify import verify
from hvpspec.preflight.differences import (
    compare_with_differences,
    refuse_asymmetric,
    refuse_once_differentiable,
)
from hvpspec.preflight.forecast import (
    Moments,
    check_room,
    forecast,
    norm_rank,
    read_moments,
    with_forecast,
)
from hvpspec.preflight.inspect_loss import captured, loss_findings, other_in_training
from hvpspec.preflight.inspect_model import MAX_LISTED_NAMES, replacement_findings
from hvpspec.preflight.precision import computed_with_fewer_digits
from hvpspec.preflight.within_time import affordable_part, for_all_data, made_on_part, within_share
from hvpspec.results.preflight import Finding, Preflight
from hvpspec.system.device_clock import time_when_done
from hvpspec.system.out_of_memory import release_cache
from hvpspec.wording import dtype_name, listed, two_digits_percent

_ZERO = Finding(
    "zero",
    "products with random vectors are exactly zero: the loss is linear in the parameters here, or piecewise linear",
    "the Hessian is zero, and so are all results; if it should be curved, look for a criterion or a nonlinearity that "
    "was left out",
    "note",
)
_MAX_PRODUCT_CHANGE = 1e-4  # relative difference between two evaluations of a product; two engines differ by less
_MAX_ASYMMETRY = 1e-3  # relative
_PRODUCTS, _SAMPLED_PRODUCTS = 2, 3  # with random vectors; of the latter kind where trace or norm are asked for
_FIRST_PROBE = 1 << 32  # the number of the first one here; a run begins with 0 and does not come so far
_SHARE_OF_RUN = 0.05  # of its products, that may be spent on knowing better how many these are
_MAX_FURTHER_PRODUCTS = 8


def loss_tolerance(dtype: torch.dtype) -> float:
    """How far apart two evaluations of the same loss may be, relative to the mean of its batches' magnitudes."""
    return REPEATED[dtype]


def expected_loss(given: str) -> tuple[float, float]:
    """`--expect-loss 0.043` as a number and its tolerance: half a unit of the last digit.

    1e2 means 100 ± 0.5: a positive exponent is a way to write a number and says nothing of its precision.
    """
    try:
        number = Decimal(given)
        if not math.isfinite(float(number)):
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
    preconditioned: PreconditionedOverData | None = None,
) -> Preflight:
    """Inspects an operator before a run, and predicts what the run will take.

    findings: those that are already known. loss: the loss on the data, where it is known. expect: what the loss must
    be, as text. measure: False evaluates the loss and nothing more. options: those of the run (None: the defaults).
    preconditioned: what the run is of, where that is not the operator itself: its spectrum and its rounding are others.

    Costs one gradient (and a forward pass where the loss is not known), 4 or 5 HVPs, 4 to 12 gradients of the first
    batch in float64, and two HVPs of that batch where a model computes a part with fewer digits than the run. Where
    many probes are expected, it makes as many further HVPs as a twentieth of those of the run, 8 at most, to know
    better how many these are. A measurement is None where something was refused before it. Raises InputError when the
    loss or the data cannot be used at all, and when there is too little room for a basis.
    With a time limit it takes a third of that at most, on fewer batches where need be.
    """
    chosen = options or SpectrumOptions()
    check_room(H, chosen)

    def inspected(so_far: list[Preflight]) -> Preflight:
        try:
            return _inspected(H, so_far, loss, expect, chosen, measure=measure, by=preconditioned)
        finally:
            release_cache(
                H.device
            )  # what its products have left in torch's cache would be missing where budgets are set

    return within_share(inspected, Preflight(tuple(findings), loss=None if loss is None else loss.value))


def _inspected(
    H: HessianOperator,
    so_far: list[Preflight],
    loss: LossValue | None,
    expect: str | None,
    options: SpectrumOptions,
    *,
    measure: bool,
    by: PreconditionedOverData | None,
) -> Preflight:
    """The same without a limit. so_far: gets what is known after each step."""
    known = so_far[-1]

    def found(*more: Finding) -> Preflight:
        return replace(known, findings=(*known.findings, *more))

    first = loss or H.loss()
    known = replace(known, loss=first.value)
    tolerance = loss_tolerance(H.torch_dtype)
    if expect is not None:
        value, off = expected_loss(expect)
        if abs(first.value - value) > off + tolerance * max(first.size, abs(value)):
            refused = f"the loss on the data is {first.value:.6g}, not {expect}"
            return found(
                Finding("loss", refused, "check that checkpoint, data and loss are those that gave it", "refused")
            )
    known = found(*loss_findings(H.objective))
    if not measure:
        return known
    so_far.append(known)
    H.verified()  # what follows tells more
    refuse_mixed_samples(H.objective)
    part = affordable_part(H, lambda first: _with_gradient(first.objective))
    if part is not H:
        known, first = found(*made_on_part(H, part)), part.loss()
    with noting_replacements() as replaced:
        again, unused = _with_gradient(part.objective)
    if "training_norm" in replaced.names:  # the forward sets its own layers to training mode again
        known = replace(known, findings=tuple(finding for finding in known.findings if finding.kind != "batch_norm"))
    kinds = {finding.kind for finding in known.findings}
    of_kernels = replacement_findings(replaced.names, train_mode=H.objective.train_mode)
    known = found(*(finding for finding in of_kernels if finding.kind not in kinds))
    if abs(again - first.value) > tolerance * max(first.size, abs(again)):
        what = f"two passes over the data give different losses ({first.value:.9g}, {again:.9g})"
        return found(_not_repeatable(H.objective, what))
    single = H.objective.on_first_batch()
    known = found(*unused, *captured(single), *other_in_training(single), *computed_with_fewer_digits(single))
    try:
        so_far.append(known)
        of = part if by is None else PreconditionedOverData(part, by.scale, by.shift)
        known, moments = _products(part, of, known, options)
    except NotTwiceDifferentiable as error:
        return refuse_once_differentiable(H, known, error)
    held, in_float64 = _held(H), None
    if not known.refused:
        so_far.append(for_all_data(H, part, known))
    if not known.refused and _ZERO not in known.findings:  # whose difference would be relative to 0
        known, in_float64 = compare_with_differences(H, known)
    if known.refused:
        return known
    return for_all_data(H, part, with_forecast(part, known, moments, held, options, in_float64))


def _not_repeatable(objective: Objective, found: str) -> Finding:
    """Whether it is the model and the loss that change, or the data: the loss of one and the same batch shows which."""
    single = objective.on_first_batch()
    values = [single.value().value for _ in range(3)]
    if max(values) - min(values) > loss_tolerance(objective.dtype) * max(map(abs, values)):
        return Finding(
            "random",
            f"{found}, even on one and the same batch",
            "make model and loss deterministic, or fix their noise with --noise-seed 0",
            "refused",
        )
    return Finding(
        "data",
        found,
        "turn shuffling and augmentation off, or use --freeze-data, which keeps the batches of the first pass",
        "refused",
    )


def _with_gradient(objective: Objective) -> tuple[float, list[Finding]]:
    """The loss again, and a finding on parameters that no batch's loss depends on. Costs one gradient."""
    unused = set(objective.space.names)
    total = weights = 0.0
    with objective.evaluating() as parameters:
        for index, loss, weight in objective.losses():
            total, weights = total + weight * float(loss.detach()), weights + weight
            if not loss.requires_grad:
                continue
            try:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            except (InputError, torch.OutOfMemoryError, torch.AcceleratorError):
                raise
            except Exception as error:  # a Function of the user's own may raise anything in its backward
                raise refused_derivative(objective, index, error) from error
            unused -= {name for name, g in zip(objective.space.names, gradients, strict=True) if g is not None}
    if len(unused) == len(objective.space.names):
        verify(objective)  # refuses a loss of another model; a zero Hessian is an error of its own
        return total / weights, []
    if not unused:
        return total / weights, []
    shown = listed((name for name in objective.space.names if name in unused), MAX_LISTED_NAMES)
    finding = Finding(
        "unused",
        f"parameters that the loss does not depend on, or under no_grad only: {shown}",
        "their rows of the Hessian are zero",
        "note",
    )
    return total / weights, [finding]


def _products(
    H: HessianOperator, A: Measured, known: Preflight, options: SpectrumOptions
) -> tuple[Preflight, Moments | None]:
    """Symmetry, repeatability, the cost of one product, and moments of the spectrum. A: H, or H preconditioned."""
    X = _normal(H, options.seed, 0, _SAMPLED_PRODUCTS if options.sampled else _PRODUCTS)
    before = H.hvps
    with peak_memory(H.device) as peak:
        HX = _timed(A, X)[0]
    Hx = HX[:, 0].double()
    one, seconds = _timed(A, X[:, :1])
    if not bool(HX.any()):
        known = replace(known, findings=(*known.findings, _ZERO))
    symmetry = asymmetry(X, HX)
    size = float(Hx.norm())
    repeats = float((one[:, 0].double() - Hx).norm()) / size if size else 0.0
    memory = None if (taken := peak()) is None else max(taken - HX[:, 1:].nbytes, 0)  # of one product
    known = replace(known, symmetry=symmetry, repeatability=repeats, seconds=seconds, memory=memory)
    most_change, most_asymmetry = max(_MAX_PRODUCT_CHANGE, 2 * A.noise), max(_MAX_ASYMMETRY, 2 * A.noise)
    doubtful = repeats > most_change or symmetry > most_asymmetry
    if doubtful and (finding := _too_few_digits(A, X[:, :2], symmetry, repeats)) is not None:
        known = replace(known, findings=(*known.findings, finding))
    elif repeats > most_change:
        finding = _not_repeatable(H.objective, f"the same product, computed twice, differs by {repeats:.1%}")
        known = replace(known, findings=(*known.findings, finding))
    elif symmetry > most_asymmetry:
        known = refuse_asymmetric(H, known, symmetry)
    moments = None
    if not known.refused and size:
        # That with the longest product: where an outlier dominates, it is the one in which that is seen best.
        Hx = HX[:, int(column_inner(HX, HX).argmax()), None]
        Hu, again = _timed(A, Hx / Hx.norm())
        moments, further = _more(A, options, X, HX, norm_rank(HX, Hu))
        # Those from now on: the first ones may have made what is kept for all. The mean, and not the fastest: a machine
        # that others use as well will be shared with them later, too.
        known = replace(known, seconds=statistics.fmean([again, *further]))
    return replace(known, hvps=H.hvps - before), moments


def _more(
    H: Measured, options: SpectrumOptions, X: Tensor, HX: Tensor, rank: float
) -> tuple[Moments | None, list[float]]:
    """The moments, from more products where the run will take so many that these hardly matter; the seconds of each."""
    moments = read_moments(X, HX, rank)
    if moments is None or not options.sampled:
        return moments, []
    expected = forecast(int(H.shape[0]), options, moments)
    count = min(int(_SHARE_OF_RUN * expected.hvps), _MAX_FURTHER_PRODUCTS) if expected.probes > PILOT_PROBES else 0
    if count == 0:
        return moments, []
    Y = _normal(H, options.seed, X.shape[1], count)
    HY, seconds = _timed(H, Y)
    return read_moments(torch.cat([X, Y], 1), torch.cat([HX, HY], 1), rank), count * [seconds]


def _normal(H: Measured, seed: int, first: int, count: int) -> Tensor:
    """Columns of standard normal entries, from number `first` of those of this seed."""
    numbers = range(_FIRST_PROBE + first, _FIRST_PROBE + first + count)
    return probes(int(H.shape[0]), numbers, seed=seed, dtype=H.torch_dtype, device=H.device)


def _too_few_digits(H: Measured, X: Tensor, symmetry: float, repeats: float) -> Finding | None:
    """Whether products are symmetric in float64, where in float32 they are not. Costs two products in float64."""
    off = symmetric_in_float64(H.recompute, X)
    if off is None:
        return None
    return Finding(
        "few_digits",
        f"{dtype_name(H.torch_dtype)} leaves too few digits of the Hessian: it is asymmetric by "
        f"{two_digits_percent(symmetry)}, a product repeats to {two_digits_percent(repeats)}, and in float64 it is "
        f"symmetric to {off:.0e}, as tried",
        "use --dtype float64",
        "refused",
    )


def _held(H: HessianOperator) -> int | None:
    """Bytes of memory in use; None where the system does not tell."""
    return resident() if H.device.type == "cpu" else torch.cuda.memory_allocated(H.device)


def _timed(H: Measured, columns: Tensor) -> tuple[Tensor, float]:
    """A product, and the seconds that it took for each column."""
    start = time_when_done(H.device)
    product = H @ columns
    return product, (time_when_done(H.device) - start) / columns.shape[1]
