"""Quantities of the diagonal blocks of a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from hvpspec.entries import Count
from hvpspec.results.codec import Stored
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.wording import counted, listed

BRACKET_WIDTH = 0.01  # that a block's λ_max is brought to, relative to it, where the budget allows


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
    """

    name: str
    parameters: Count
    trace: Estimate | None
    frobenius_norm: Estimate | None
    largest: Bracket | None = None

    @property
    def lambda_max(self) -> Bracket | None:
        """λ_max(H_bb): another name of `largest`."""
        return self.largest


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
