"""What `gradient` returns: the gradient of a loss, and the update that an optimizer would make, in the spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hvpspec.entries import AtLeast, Count, NonFinite, Size
from hvpspec.results.codec import LEFT_OUT, Column, Stored
from hvpspec.results.estimate import Estimate

_FACTS = 16  # columns, of a name in a repr


@dataclass(frozen=True)
class Update(Stored):
    """The next step of an optimizer, along which the loss changes by slope + ½ ‖u‖² · curvature.

    Attributes
    ----------
    optimizer : str
        Such as "AdamW".
    step : int or None
        How many steps it had made; None for one that does not count them.
    length : float
        ‖u‖, where u is what the step adds to the parameters.
    slope : float
        gᵀu.
    curvature : Estimate
        uᵀHu / ‖u‖².
    change : Estimate
        What the quadratic model of the loss predicts: gᵀu + ½ uᵀHu.
    """

    optimizer: str
    step: Count | None
    length: Size
    slope: float
    curvature: Estimate
    change: Estimate


@dataclass(frozen=True, eq=False, repr=False)
class Gradient(Stored):
    """The gradient g of a loss, in the spectrum of a symmetric matrix H.

    Of a preconditioned matrix, everything but `update` is in its own coordinates D^(1/2) p: g is D^(-1/2) times the
    gradient.

    Attributes
    ----------
    norm : Estimate
        ‖g‖.
    curvature : Estimate or None
        gᵀHg / ‖g‖²; None where the gradient is zero. Its `data_error` is along this g, held fixed.
    share : Estimate or None
        The part of ‖g‖² in the span of the k eigenvectors; None without eigenvectors. Where k leaves out copies of the
        last eigenvalue, any vector of its eigenspace is an eigenvector: it is along the ones that were found.
    eigenvalues : ndarray of float64, shape (k,)
        Theirs, in the order of the eigenpairs.
    parts : ndarray of float64, shape (k,)
        The part of ‖g‖² along each of them.
    parts_error : ndarray of float64, shape (k,)
        How far each of these may be off. Eigenvalues that are not shown to be apart share one eigenspace, in which a
        single vector means nothing: the error is then that of all of them together.
    noise_scale : Estimate or None
        tr Σ / ‖g‖², with the covariance Σ of the samples' gradients: of about so many samples the gradient is as much
        signal as noise.
    batches : int
        Of the data, as many as had a weight.
    samples : float
        What the data have of what `noise_scale` counts: samples, or else units of the weights (tokens, say).
    hvps : int
        Matrix-vector products that it cost.
    update : Update or None
        That of the optimizer, where its moments are known.
    reasons : mapping of str to str
        Why "share", "noise_scale" or "update" is None, or not better known.

    Examples
    --------
    >>> import torch, hvpspec
    >>> model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> data = [(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1)), (torch.tensor([[0.0, 2.0]]), torch.zeros(1, 1))]
    >>> found = hvpspec.gradient(hvpspec.HessianOperator(model, "mse", data))
    >>> print(f"{found.norm.value:.4f}, {found.curvature.value:.4f}, {found.noise_scale.value:.4f}")
    4.1231, 3.8235, 1.0000
    >>> print(f"{found.step:.4f}, {found.decrease:.4f}")
    0.2615, 2.2231
    """

    norm: Estimate
    curvature: Estimate | None
    share: Estimate | None
    eigenvalues: Annotated[NDArray[np.float64], Column("parts", "eigenvalue")]
    parts: Annotated[NDArray[np.float64], Column("parts", "share"), AtLeast(0)]
    parts_error: Annotated[NDArray[np.float64], Column("parts", "error"), NonFinite(1.0), AtLeast(0)]
    noise_scale: Estimate | None
    batches: Count
    samples: Size
    hvps: Count
    update: Annotated[Update | None, LEFT_OUT] = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    json_order: ClassVar = (
        "norm", "curvature", "step", "decrease", "share", "eigenvalues", "parts", "parts_error", "noise_scale",
        "update", "batches", "samples", "hvps", "reasons",
    )  # fmt: skip

    @property
    def step(self) -> Size | None:
        """‖g‖² / gᵀHg: the step along −g that minimises the quadratic model; None where there is no minimum, as the
        curvature is not shown to be positive."""
        found = self.curvature
        return None if found is None or found.interval[0] <= 0 else 1 / found.value

    @property
    def decrease(self) -> Size | None:
        """By how much that step reduces the model of the loss: ½ ‖g‖⁴ / gᵀHg."""
        return None if self.step is None else self.step * self.norm.value**2 / 2

    def __repr__(self) -> str:
        return "\n".join(["<Gradient:", *(f"  {line}" for line in self._lines())]) + ">"

    def _lines(self) -> list[str]:
        shown: dict[str, Any] = {"norm": self.norm, "curvature": self.curvature}
        if self.curvature is not None:
            best = "unbounded" if self.step is None else f"{self.step:.6g}, decreases the loss by {self.decrease:.6g}"
            shown["best step"] = best
        shown |= {"share": self.share, "noise scale": self.noise_scale}
        if self.update is not None:
            shown[f"update ({self.update.optimizer})"] = f"changes the loss by {self.update.change}"
        lines = []
        for name, value in shown.items():
            reason = self.reasons.get(name.replace(" ", "_"), "")
            lines.append(f"{name:<{_FACTS}} {reason or 'unknown' if value is None else _ranged(value)}")
        return lines

    def summary(self) -> str:
        """What is known, a line for each.

        Returns
        -------
        str
            Several lines, without a line break at the end.
        """
        return "\n".join(self._lines())


def _ranged(value: Any) -> str:
    """An estimate whose interval is lopsided with the ends of that."""
    if not isinstance(value, Estimate) or value.lower is None:
        return str(value)
    low, high = value.interval
    return f"{value.value:.6g}, from {low:.6g} to {high:.6g} ({value.confidence:.4g})"
