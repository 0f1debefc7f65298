"""Quantities of the diagonal blocks of a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hvpspec.results.estimate import Bracket, Estimate

BRACKET_WIDTH = 0.01  # that a block's λ_max is brought to, relative to it, where the budget allows


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
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Block:
        trace, norm, largest = data["trace"], data["frobenius_norm"], data["largest"]
        return cls(
            data["name"],
            data["parameters"],
            None if trace is None else Estimate.from_dict(trace),
            None if norm is None else Estimate.from_dict(norm),
            None if largest is None else Bracket.from_dict(largest),
        )


@dataclass(frozen=True)
class Blocks:
    """Figures of each parameter group. probe_hvps: products that traces and norms share among them (and with the other
    figures of a spectrum); largest_hvps: products that the λ_max of the groups cost on their own."""

    blocks: tuple[Block, ...]
    probe_hvps: int
    largest_hvps: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "blocks": [block.to_dict() for block in self.blocks],
            "probe_hvps": self.probe_hvps,
            "largest_hvps": self.largest_hvps,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Blocks:
        blocks = tuple(Block.from_dict(block) for block in data["blocks"])
        return cls(blocks, data["probe_hvps"], data["largest_hvps"])


def _plain(value: Any) -> Any:
    return value.to_dict() if hasattr(value, "to_dict") else dict(value) if isinstance(value, dict) else value
