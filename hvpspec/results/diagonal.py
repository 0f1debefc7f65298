"""The diagonal of a matrix, with the error of the whole vector, and the means of parts of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from scipy import special

from hvpspec.entries import AtLeast, Count, NonFinite, Share
from hvpspec.errors import InputError
from hvpspec.presentation import presented
from hvpspec.results.codec import Stored
from hvpspec.results.estimate import Estimate


@dataclass(frozen=True)
class DiagonalMean(Stored):
    """The mean of the diagonal over the entries of one parameter, or of one group of parameters.

    Attributes
    ----------
    name : str
        Of the parameter or group.
    parameters : int
        How many entries it has.
    mean : Estimate
        Of the diagonal over these.
    """

    name: str
    parameters: Count
    mean: Estimate


@dataclass(frozen=True, eq=False)
class Diagonal(Stored):
    """The diagonal of a symmetric matrix.

    Attributes
    ----------
    values : ndarray, shape (n,), or None
        The entries, in the operator's dtype; None when read from a file.
    error : float
        ‖values − diag(A)‖ is at most this share of ‖values‖, with probability `confidence`. Infinite where too few
        products were made to tell.
    confidence : float
        Between 0 and 1.
    converged : bool
        Whether the tolerance asked for was reached.
    hvps : int
        Matrix-vector products that it cost.
    standard_errors : ndarray, shape (n,), or None
        Of each entry; None when read from a file.
    probes : int
        Random probes behind them; 0 where the diagonal is exact.
    own_hvps : int
        Those of the products that a spectrum made for the diagonal alone; `hvps` includes what it shares.
    means : tuple of DiagonalMean
        Of the blocks that a spectrum was asked for, or else of each parameter by name.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> found = hvpspec.diagonal(np.array([[2.0, 1.0], [1.0, 3.0]]))
    >>> found.values.round(9), found.converged
    (array([2., 3.]), True)
    """

    values: np.ndarray | None = field(repr=False)
    error: Annotated[float, NonFinite(math.inf), AtLeast(0)]
    confidence: Share
    converged: bool
    hvps: Count
    standard_errors: np.ndarray | None = field(repr=False)
    probes: Count
    own_hvps: Count = 0
    means: tuple[DiagonalMean, ...] = field(default=(), repr=False)

    json_order: ClassVar = ("error", "confidence", "converged", "hvps", "own_hvps", "probes", "means")

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

        Raises
        ------
        InputError
            For a diagonal that was read from a file, which has no entries.

        Examples
        --------
        >>> import hvpspec, numpy as np
        >>> found = hvpspec.diagonal(np.diag([1.0, 3.0, 5.0]))
        >>> print(f"{found.mean(slice(0, 2)).value:.6f}")
        2.000000
        """
        if self.values is None or self.standard_errors is None:
            raise InputError("the entries of this diagonal are not known: a spectrum.json has its means only.")
        values, errors = self.values[entries].astype(float), self.standard_errors[entries].astype(float)
        if not len(values):
            return Estimate(math.nan, math.inf, self.confidence, converged=False, hvps=self.hvps)
        half = quantile(self.probes, self.confidence) * math.sqrt(2 * float(errors @ errors)) / len(values)
        return Estimate(
            float(values.mean()), half, self.confidence, converged=self.converged, hvps=self.hvps,
            method="krylov" if self.probes else "exact",
        )  # fmt: skip

    def save(
        self, path: str | os.PathLike[str], parameters: Any = None, *, metadata: Mapping[str, str] | None = None
    ) -> Path:
        """Writes the entries to a safetensors file.

        Parameters
        ----------
        path : path
            Whose name ends in ".safetensors". A file there is replaced, whole or not at all.
        parameters : ParameterSpace, optional
            ``H.parameters`` of the operator: the file then has a tensor for each parameter, with its name and shape,
            and with a last axis of length 2 (real and imaginary part) for a complex one. Without it, there is one
            tensor, "diagonal".
        metadata : mapping of str to str, optional
            What the header is to say besides error, confidence, products and version.

        Returns
        -------
        Path
            Of the file.

        Raises
        ------
        InputError
            For a path that cannot be written to, parameters of another operator, and where the entries are not known.

        Examples
        --------
        >>> import hvpspec, numpy as np, tempfile
        >>> from pathlib import Path
        >>> from safetensors.numpy import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = hvpspec.diagonal(np.diag([2.0, 3.0])).save(Path(folder) / "diagonal.safetensors")
        ...     saved = load_file(path)
        >>> saved["diagonal"].round(9)
        array([2., 3.])
        """
        written: Path = presented("save_diagonal", self, path, parameters, metadata=metadata)
        return written


def quantile(probes: int, confidence: float) -> float:
    """By how many standard errors, estimated from so many probes, a mean is off at most at this confidence."""
    if probes == 0:
        return 1.0
    return float(special.stdtrit(probes - 1, (1 + confidence) / 2)) if probes > 1 else math.inf
