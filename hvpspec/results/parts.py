"""Quantities of the parts of a matrix: of its diagonal blocks, and of the matrix of each batch of the data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from hvpspec.entries import Count, Size
from hvpspec.results.codec import LEFT_OUT, Stored
from hvpspec.results.density import Density
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.wording import abridged, counted, listed

BRACKET_WIDTH = 0.01  # that a block's λ_max is brought to, relative to it, where the budget allows; λ_min, to its norm

End = Literal["largest", "smallest"]
ENDS: tuple[End, End] = ("largest", "smallest")


@dataclass(frozen=True)
class Block(Stored):
    """One diagonal block H_bb of the matrix: that of a group of parameters.

    A quantity that was not asked for, or not reached, is None.

    Attributes
    ----------
    name : str
        The group's name.
    parameters : int
        Rows of the block.
    trace, frobenius_norm : Estimate or None
        Of H_bb.
    largest : Bracket or None
        λ_max(H_bb); its lower end is certain.
    smallest : Bracket or None
        λ_min(H_bb); its upper end is certain.
    density : Density or None
        The distribution of all eigenvalues of H_bb.
    """

    name: str
    parameters: Count
    trace: Estimate | None
    frobenius_norm: Estimate | None
    largest: Bracket | None = None
    smallest: Annotated[Bracket | None, LEFT_OUT] = None
    density: Annotated[Density | None, LEFT_OUT] = None

    @property
    def lambda_max(self) -> Bracket | None:
        """λ_max(H_bb): another name of `largest`."""
        return self.largest

    @property
    def lambda_min(self) -> Bracket | None:
        """λ_min(H_bb): another name of `smallest`."""
        return self.smallest


@dataclass(frozen=True, repr=False)
class Blocks(Stored, Mapping[str, Block]):
    """Quantities of each diagonal block: a mapping from names to `Block`.

    Attributes
    ----------
    blocks : tuple of Block
        In the order asked for.
    probe_hvps : int
        Products that traces and norms share, among the blocks and with the other quantities of a spectrum.
    largest_hvps : int
        Products of the λ_max of the blocks, which share none.
    density_hvps : int
        Further products of their densities and of λ_min.

    Examples
    --------
    >>> import hvpspec, numpy as np
    >>> A = np.diag([5.0, 2.0, -1.0, 0.5])
    >>> found = hvpspec.spectrum(A, k=2, blocks={"first": slice(0, 2), "last": slice(2, 4)}).blocks
    >>> list(found)
    ['first', 'last']
    >>> round(found["last"].trace.value, 9)
    -0.5
    """

    blocks: tuple[Block, ...]
    probe_hvps: Count
    largest_hvps: Count
    density_hvps: Count = 0

    @cached_property
    def _by_name(self) -> dict[str, Block]:
        return {block.name: block for block in self.blocks}

    def __getitem__(self, name: str) -> Block:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __repr__(self) -> str:
        return f"<Blocks: {counted(len(self), 'block')}: {listed(self, 4)}>"


@dataclass(frozen=True)
class Batch(Stored):
    """The matrix of one batch of the data, as if that were all of them.

    Attributes
    ----------
    number : int
        Of the batch, from 0.
    weight : float
        Of the batch: what its mean loss is taken over, such as samples.
    largest, smallest : Estimate or None
        λ_max and λ_min; None where that was not asked for. The value is that of a vector which was found, so that λ_max
        is certainly not below it, nor λ_min above it, but for rounding; the other end of the interval holds at
        `confidence`.
    """

    number: Count
    weight: Size
    largest: Estimate | None = None
    smallest: Estimate | None = None


@dataclass(frozen=True, repr=False)
class Batches(Stored):
    """λ_max of the matrix of every mini-batch.

    The whole matrix is the mean of these by their weights. λ_max is convex, so that the mean of the λ_max of all
    batches is at least that of the whole matrix.

    Attributes
    ----------
    batches : tuple of Batch
        In the order of the data. Batches without weight are left out.
    whole : Batch or None
        The same of the whole matrix, with the number of all batches.
    of : int
        How many batches the data have.
    asked : int
        How many of them were asked for; where these are fewer, they were drawn at random.
    hvps : int
        Products that `batches` took, each with the matrix of one batch only.
    whole_hvps : int
        Products that `whole` took, beyond those of a spectrum.
    out_of_time : bool
        Whether a time limit has ended the run.

    Examples
    --------
    >>> import hvpspec, torch
    >>> X, y = torch.eye(4), torch.zeros(4, 1)
    >>> data = [(X[:1], y[:1]), (2 * X[1:], y[1:])]
    >>> H = hvpspec.HessianOperator(torch.nn.Linear(4, 1, bias=False), "mse", data, dtype="float64")
    >>> found = hvpspec.per_batch(H)
    >>> found.values().round(6), round(found.whole.largest.value, 6)
    (array([2.      , 2.666667]), 2.0)
    """

    batches: tuple[Batch, ...]
    whole: Batch | None
    of: Count
    asked: Count
    hvps: Count
    whole_hvps: Count = 0
    out_of_time: bool = False

    def contradiction(self) -> tuple[str, str] | None:
        """See `hvpspec.results.codec`."""
        numbers = [batch.number for batch in self.batches]
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= self.of):
            return "batches", f"expected rising numbers below {self.of:,}"
        return None

    @property
    def ends(self) -> tuple[End, ...]:
        """Which of "largest" and "smallest" are known."""
        return tuple(end for end in ENDS if any(getattr(batch, end) is not None for batch in self.batches))

    def estimates(self, end: End = "largest") -> tuple[Estimate, ...]:
        """The estimates of all batches that have one.

        Parameters
        ----------
        end : {"largest", "smallest"}
            Of λ_max or λ_min.

        Returns
        -------
        tuple of Estimate
            In the order of the data.
        """
        found = (getattr(batch, end) for batch in self.batches)
        return tuple(estimate for estimate in found if estimate is not None)

    def values(self, end: End = "largest") -> NDArray[np.float64]:
        """The values of all batches that have one.

        Parameters
        ----------
        end : {"largest", "smallest"}
            Of λ_max or λ_min.

        Returns
        -------
        ndarray of float64
            In the order of the data.
        """
        return np.array([estimate.value for estimate in self.estimates(end)], float)

    def mean(self, end: End = "largest") -> float:
        """The mean over the batches, by their weights; of λ_max of all batches, at least that of the whole matrix.

        Parameters
        ----------
        end : {"largest", "smallest"}
            Of λ_max or λ_min.

        Returns
        -------
        float
            NaN where no batch has a value.
        """
        return self._averaged(self.values(end), end)

    def deviation(self, end: End = "largest") -> float:
        """The standard deviation over the batches, by their weights.

        Parameters
        ----------
        end : {"largest", "smallest"}
            Of λ_max or λ_min.

        Returns
        -------
        float
            NaN where no batch has a value.
        """
        return math.sqrt(self._averaged((self.values(end) - self.mean(end)) ** 2, end))

    def _averaged(self, numbers: NDArray[np.float64], end: End) -> float:
        weights = [batch.weight for batch in self.batches if getattr(batch, end) is not None]
        return float(np.average(numbers, weights=weights)) if weights else math.nan

    def __repr__(self) -> str:
        known = counted(len(self.batches), "batch", "batches")
        lines = [f"<Batches: {known} of {self.of:,}, {counted(self.hvps, 'product')}"]
        for end in self.ends:
            name = "lambda_max" if end == "largest" else "lambda_min"
            whole = None if self.whole is None else getattr(self.whole, end)
            lines.append(f"  {name:<11} {abridged(self.values(end).tolist())}")
            lines += [] if whole is None else [f"    all data  {whole}"]
        return "\n".join(lines) + ">"
