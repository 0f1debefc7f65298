"""The gradient of a loss in the spectrum of its Hessian, for one gradient and one product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import over_ranks, part, rows_of, whole
from hvpspec.errors import InputError
from hvpspec.estimators.gradients.noise_scale import Batches, Noise, noise_of
from hvpspec.estimators.gradients.share import Rest, shares
from hvpspec.krylov.operator_view import ROUNDOFFS_PER_PRODUCT, Symmetric, as_symmetric
from hvpspec.krylov.vectors import column_inner, column_inner_of_part, inner, times
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.gradient import Gradient, Update
from hvpspec.results.spectrum import Spectrum
from hvpspec.validation import check_confidence

_CONFIDENCE_OF_GAPS = 0.99  # that no eigenvalue, and no copy of one, was missed: see `Eigenpairs`
_MARGIN = 2.0  # what products err, next to what one of them has shown


@runtime_checkable
class LossOperator(Protocol):
    """An operator of a loss, such as a HessianOperator. What its methods return: see hvpspec/operators/first_order.py.

    All of it is in the operator's coordinates, which a preconditioner changes. Of ranks, `columns` has this one's rows.
    """

    def loss_gradient(self, receive: Any) -> Any:
        """The gradient, `columns`, and what its spread over the batches needs; `receive` gets each batch's own."""

    def next_update(self, gradient: Tensor, preconditioner: Any = None) -> Any:
        """The update that an optimizer would make; None where none is known."""


@over_ranks
def gradient(
    H: Any,
    pairs: Eigenpairs | None = None,
    *,
    preconditioner: Any = None,
    fisher_trace: Estimate | None = None,
    confidence: float = 0.95,
) -> Gradient:
    """The gradient of the loss: how curved the loss is along it, in which eigenspaces it lies, and how noisy it is.

    Parameters
    ----------
    H : HessianOperator, GGNOperator, …, or PreconditionedOperator of one
        The matrix. The gradient is that of its loss in any case.
    pairs : Eigenpairs, optional
        Eigenpairs of H with their vectors, such as ``spectrum(H).eigenpairs``; for `share`.
    preconditioner : Preconditioner, optional
        What `adam_preconditioner` returns: `update` is then the next step of that optimizer. A PreconditionedOperator
        has its own.
    fisher_trace : Estimate, optional
        The trace of the EmpiricalFisherOperator of the same loss and data, as `hvpspec.trace` gives it: tr F − ‖g‖² is
        then the noise. By default the noise is estimated from the spread of the gradient over the batches, which costs
        nothing but has a wide interval where there are few.
    confidence : float, default 0.95
        Of the interval of `noise_scale`.

    Returns
    -------
    Gradient
        ``norm``, ``curvature`` and the best ``step`` along −g, ``share``, ``noise_scale`` and ``update``.

    Raises
    ------
    InputError
        For an operator without a loss, for eigenpairs of another matrix or without vectors, and for an optimizer that
        lacks moments of some parameters.

    Notes
    -----
    Costs one gradient and 1 HVP; 2 HVPs, in one pass over the data, where the optimizer is known. In float32, where
    rounding is not known from `pairs`, these are computed once more in float64.

    - `share` is of the eigenspaces themselves: its interval includes the angle between these and the vectors, at most
      arcsin(‖r‖ / gap) (Davis and Kahan, doi:10.1137/0707001). Where no gap to further eigenvalues is proven, or
      further copies of an eigenvalue are not excluded (``pairs.all_copies``), it is wider, and `reasons` says so.
    - `noise_scale` is that of the data as they are: the gradient of a larger population is shorter on average, by
      tr Σ / N in its square. If the interval reaches N, the number of samples, the gradient of these data is mostly
      noise of their choice. Batches must be a random division of the samples. (McCandlish et al., arXiv:1812.06162.)

    Examples
    --------
    >>> import torch, hvpspec
    >>> model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> H = hvpspec.HessianOperator(model, "mse", [(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1))])
    >>> found = hvpspec.gradient(H, hvpspec.spectrum(H, k=1).eigenpairs)
    >>> print(f"{found.norm.value:.4f}, {found.curvature.value:.4f}, {found.share.value:.4f}")
    4.1231, 3.8235, 0.9412
    """
    check_confidence(confidence)
    operator = as_symmetric(check_loss(H))
    _check_pairs(pairs, operator.n)
    return measured(H, operator, pairs, preconditioner=preconditioner, fisher_trace=fisher_trace, confidence=confidence)


def check_loss(A: Any) -> LossOperator:
    """The operator itself. Raises InputError for one that is of no loss."""
    if not isinstance(A, LossOperator):
        raise InputError(
            f"the gradient needs an operator of a loss, such as a HessianOperator; got {type(A).__name__}."
        )
    return A


def in_spectrum(H: LossOperator, operator: Symmetric, known: Spectrum, confidence: float) -> Gradient:
    """The same among what a run has found."""
    pairs = known.eigenpairs
    fisher = known.trace if known.matrix == "empirical-fisher" and known.preconditioned is None else None
    return measured(
        H, operator, None if pairs is None or pairs.vectors is None else pairs, confidence=confidence,
        fisher_trace=fisher if fisher is not None and math.isfinite(fisher.error) else None,
    )  # fmt: skip


def _check_pairs(pairs: Any, n: int) -> None:
    if pairs is None:
        return
    if not isinstance(pairs, Eigenpairs):
        raise InputError(
            f"pairs must be Eigenpairs, such as those that hvpspec.eigsh returns; got {type(pairs).__name__}."
        )
    if pairs.vectors is None:
        raise InputError("the eigenpairs have no vectors (those from a file have none); compute them again.")
    if len(pairs.vectors) not in (n, len(rows_of(n))):
        raise InputError(f"the eigenvectors have {len(pairs.vectors):,} entries, and the matrix {n:,} rows.")


def measured(
    H: LossOperator,
    operator: Symmetric,
    pairs: Eigenpairs | None,
    *,
    preconditioner: Any = None,
    fisher_trace: Estimate | None = None,
    confidence: float,
) -> Gradient:
    """The same with the operator whose products are counted, and perhaps in a journal.

    The gradient itself is in no journal: a run that is resumed computes it again, and gets the same bits.
    """
    batches = Batches()
    found = H.loss_gradient(batches.receive)
    if operator.shard is not None:
        batches.gather(operator.batch_count, found.columns.device)
    g = found.columns[:, :1].contiguous()
    known = _Known(g, found, batches, operator, confidence)
    if known.norm == 0:
        return known.zero(pairs)
    reasons: dict[str, str] = {}
    update = None
    try:
        update = H.next_update(whole(g)[:, 0], preconditioner)
    except InputError as error:
        if preconditioner is not None:
            raise
        reasons["update"] = str(error)
    along = None if update is None else part(update.vector[:, None]).to(g)
    length = 0.0 if along is None else math.sqrt(float(column_inner(along, along)))
    units = [g / known.norm] if along is None or length == 0 else [g / known.norm, along / length]
    products = _Products(operator, torch.cat(units, 1), pairs)
    noise = known.noise if fisher_trace is None else known.noise_by(fisher_trace)
    if noise is None:
        reasons["noise_scale"] = known.spread.reason
    share, parts, errors = known.share(pairs, products, reasons)
    return Gradient(
        known.estimated_norm, known.curvature(products), share,
        np.zeros(0) if pairs is None else pairs.values, parts, errors, noise, len(batches.weights), known.samples,
        products.count, None if update is None else _update(update, g, length, products, known), reasons,
    )  # fmt: skip


class _Products:
    """The products H x with unit vectors, and what is known of their errors."""

    def __init__(self, A: Symmetric, X: Tensor, pairs: Eigenpairs | None) -> None:
        self.X, self.count = X, X.shape[1]
        self.spread: np.ndarray | None = None
        if A.multiply_by_folds is None:
            self.products = A @ X
        else:
            # Of ranks, each reduces its own rows; `by_folds` adds them.
            self.products, folds = A.by_folds(X, lambda product: (column_inner_of_part(X, product),))
            self.spread = _standard_errors(np.array([fold.weight for fold in folds]), [fold.parts[0] for fold in folds])
        self.along = column_inner(X, self.products).tolist()
        lengths = column_inner(self.products, self.products).sqrt().tolist()
        norm = max([*lengths, *(() if pairs is None else np.abs(pairs.values).tolist())])
        self.error = ROUNDOFFS_PER_PRODUCT * A.eps * norm
        if pairs is not None and pairs.rounding is not None:
            self.error = max(self.error, pairs.rounding.error)
        elif A.recompute is not None and (again := A.recompute(X)) is not None:
            off = self.products.double() - again[0].to(X.device)
            self.error = max(self.error, _MARGIN * float(column_inner(off, off).sqrt().max()))
        # How much the first curvature changes with the direction: H x − (xᵀHx) x.
        aside = self.products[:, :1] - self.along[0] * X[:, :1]
        self.aside = math.sqrt(float(column_inner(aside, aside)))

    def estimate(self, i: int, error: float, confidence: float) -> Estimate:
        """xᵀHx of a column."""
        data = None if self.spread is None else float(self.spread[i])
        return Estimate(self.along[i], error, confidence, converged=True, hvps=1, method="exact", data_error=data)


def _standard_errors(weights: np.ndarray, values: list[np.ndarray]) -> np.ndarray | None:
    """One of the weighted mean of the folds' values, for each column."""
    if len(values) < 2:
        return None
    share, each = weights / weights.sum(), np.array(values)
    errors: np.ndarray = np.sqrt(len(share) / (len(share) - 1) * (share**2 @ (each - share @ each) ** 2))
    return errors


@dataclass
class _Known:
    """A gradient, and what follows from it and its batches alone."""

    g: Tensor
    found: Any
    batches: Batches
    A: Symmetric
    confidence: float

    def __post_init__(self) -> None:
        square = float(column_inner(self.g, self.g))
        across = float(inner(self.g, self.found.columns[:, 1:]))
        weight, samples = sum(self.batches.weights.values()), self.found.samples
        self.norm = math.sqrt(square)
        self.samples = weight if math.isnan(samples) else samples
        if self.found.by_samples:
            self.spread = noise_of(self.batches, square, across, self.samples, self.confidence)
        else:
            self.spread = Noise(
                reason="the loss is a sum over batches of several sizes, without weights; let it return (mean loss, "
                "weight)"
            )
        # Sums over samples err as their terms do, of which the gradient may be a small difference.
        scale = square + self.spread.trace if not self.spread.reason else max(square, self.batches.mean_square)
        self.error = ROUNDOFFS_PER_PRODUCT * self.A.unit_roundoff * math.sqrt(scale)

    @property
    def angle(self) -> float:
        """By how much rounding may turn the gradient."""
        return min(self.error / self.norm, 1.0) + 4 * self.A.unit_roundoff

    @property
    def estimated_norm(self) -> Estimate:
        return Estimate(self.norm, self.error, self.confidence, converged=True, hvps=0, method="exact")

    def curvature(self, products: _Products) -> Estimate:
        error = products.error + 2 * self.angle * (products.aside + self.angle * abs(products.along[0]))
        return products.estimate(0, error, self.confidence)

    @property
    def noise(self) -> Estimate | None:
        if self.spread.reason:
            return None
        square, off = self.norm**2, self._off
        low, high = self.spread.lower / square / off, self.spread.upper / square * off
        return Estimate.between(self.spread.trace / square, low, high, self.confidence, 0, "batches")

    def noise_by(self, trace: Estimate) -> Estimate:
        """From the trace of the empirical Fisher matrix."""
        if not isinstance(trace, Estimate):
            raise InputError(
                "fisher_trace must be an Estimate, as hvpspec.trace(EmpiricalFisherOperator(...)) returns it; got "
                f"{type(trace).__name__}."
            )
        square, off = self.norm**2, self._off
        low, high = (max(end / square * by - 1, 0.0) for end, by in zip(trace.interval, (1 / off, off), strict=True))
        return Estimate.between(
            max(trace.value / square - 1, 0.0), low, high, trace.confidence, trace.hvps, "empirical Fisher"
        )

    @property
    def _off(self) -> float:
        """By which factor ‖g‖² may be off."""
        return (1 + self.angle) ** 2

    def share(
        self, pairs: Eigenpairs | None, products: _Products, reasons: dict[str, str]
    ) -> tuple[Estimate | None, np.ndarray, np.ndarray]:
        """The whole, its parts and their errors. reasons: is told why it is not better known."""
        if pairs is None or not len(pairs.values):
            reasons["share"] = "there are no eigenvectors"
            return None, np.zeros(0), np.zeros(0)
        unit, image = products.X[:, :1], products.products[:, :1]
        assert pairs.vectors is not None
        V = torch.from_numpy(pairs.vectors)
        V = (V if len(V) == len(unit) else part(V)).to(unit)
        components = inner(V, unit)[:, 0].cpu().numpy()
        rest = unit - times(V, components[:, None])
        of_rest = image - times(V, (pairs.values * components)[:, None])
        off = float(np.abs(components) @ (pairs.residuals + pairs.error)) + products.error
        square, along, product = (
            float(column_inner(a, b)) for a, b in ((rest, rest), (rest, of_rest), (of_rest, of_rest))
        )
        found = shares(components, pairs, Rest(square, along, product, off), self.angle)
        if not found.apart:
            reasons["share"] = "some of the eigenvalues are not shown to be apart from further ones"
        elif not pairs.all_copies:
            reasons["share"] = "further copies of the eigenvalues are not excluded"
        whole = Estimate.between(found.whole, found.lower, found.upper, _CONFIDENCE_OF_GAPS, 0, "projection")
        return whole, found.parts, found.errors

    def zero(self, pairs: Eigenpairs | None) -> Gradient:
        """Of a gradient that is exactly zero, which has no direction."""
        values = np.zeros(0) if pairs is None else pairs.values
        unknown, why = np.zeros(len(values)), "the gradient is exactly zero"
        return Gradient(
            self.estimated_norm, None, None, values, unknown, unknown + 1.0, None, len(self.batches.weights),
            self.samples, 0, None, {"curvature": why, "share": why, "noise_scale": why},
        )  # fmt: skip


def _update(update: Any, g: Tensor, length: float, products: _Products, known: _Known) -> Update:
    """update: as the operator gives it. length: of its vector in the operator's coordinates."""
    slope = float(inner(g, part(update.vector[:, None]).to(g.device))) - update.decay_slope
    if products.count < 2:  # it is zero
        nothing = Estimate(0.0, 0.0, known.confidence, converged=True, hvps=0, method="exact")
        return Update(update.optimizer, update.step, 0.0, 0.0, nothing, nothing)
    stretch = (length / update.length) ** 2
    along = products.estimate(1, products.error, known.confidence)
    curvature = Estimate(
        along.value * stretch - update.decay_curvature / update.length**2, along.error * stretch, known.confidence,
        converged=True, hvps=1, method="exact",
        data_error=None if along.data_error is None else along.data_error * stretch,
    )  # fmt: skip
    change = slope + curvature.value * update.length**2 / 2
    off = known.error * length + curvature.error * update.length**2 / 2
    return Update(
        update.optimizer, update.step, update.length, slope, curvature,
        Estimate(change, off, known.confidence, converged=True, hvps=1, method="exact"),
    )  # fmt: skip
