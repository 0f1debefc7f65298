"""Quantities of the diagonal blocks of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hvpspec.results.codec import decode, encode
from hvpspec.results.estimate import Bracket, Estimate


@dataclass(frozen=True)
class Block:
    """One parameter group b: its diagonal block H_bb, of `parameters` rows. largest: λ_max(H_bb), the lower end being
    certain. A figure that was not asked for, or not reached, is None."""

    name: str
    parameters: int
    trace: Estimate | None
    frobenius_norm: Estimate | None
    largest: Bracket | None = None

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Block:
        """Reads what `to_dict` gives."""
        return decode(cls, data)


@dataclass(frozen=True)
class Blocks:
    """Figures of each parameter group. probe_hvps: products that traces and norms share among them (and with the other
    figures of a spectrum); largest_hvps: products that the λ_max of the groups cost on their own."""

    blocks: tuple[Block, ...]
    probe_hvps: int
    largest_hvps: int

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Blocks:
        """Reads what `to_dict` gives."""
        return decode(cls, data)
