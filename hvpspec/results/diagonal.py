"""What `diagonal` returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from hvpspec.results.estimate import Estimate


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The diagonal of a symmetric matrix.

    Attributes
    ----------
    values : ndarray, shape (n,)
        The entries, in the operator's dtype.
    error : float
        ‖values − diag(A)‖ is at most this share of ‖values‖, with probability `confidence`. Infinite where too few
        products were made to tell.
    confidence : float
        Between 0 and 1.
    converged : bool
        Whether the tolerance asked for was reached.
    hvps : int
        Matrix-vector products that it cost.
    standard_errors : ndarray, shape (n,)
        Of each entry.
    probes : int
        Random probes behind them; 0 where the diagonal is exact.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.diagonal(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> found.values.round(9), found.converged
    (array([2., 3.]), True)
    """

    values: np.ndarray = field(repr=False)
    error: float
    confidence: float
    converged: bool
    hvps: int
    standard_errors: np.ndarray = field(repr=False)
    probes: int

    def mean(self, entries: Any = slice(None)) -> Estimate:
        """The mean of some entries, such as those of one parameter: for a block's average curvature.

        Parameters
        ----------
        entries : slice or index array, optional
            Which entries; by default all.

        Returns
        -------
        Estimate
            With an interval of the same confidence. Errors of entries are correlated, by as much as their variances at
            most, which its width allows for.

        Examples
        --------
        >>> import hvpspec, numpy as np
        >>> found = hvpspec.diagonal(np.diag([1.0, 3.0, 5.0]))
        >>> print(f"{found.mean(slice(0, 2)).value:.6f}")
        2.000000
        """
        values, errors = self.values[entries].astype(float), self.standard_errors[entries].astype(float)
        if not len(values):
            return Estimate(math.nan, math.inf, self.confidence, converged=False, hvps=self.hvps)
        half = quantile(self.probes, self.confidence) * math.sqrt(2 * float(errors @ errors)) / len(values)
        return Estimate(
            float(values.mean()), half, self.confidence, converged=self.converged, hvps=self.hvps,
            method="krylov" if self.probes else "exact",
        )  # fmt: skip


def quantile(probes: int, confidence: float) -> float:
    """By how many standard errors, estimated from so many probes, a mean is off at most at this confidence."""
    if probes == 0:
        return 1.0
    return float(special.stdtrit(probes - 1, (1 + confidence) / 2)) if probes > 1 else math.inf
