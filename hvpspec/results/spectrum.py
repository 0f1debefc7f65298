"""What the estimators return: frozen dataclasses that know their error and turn into plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate

if TYPE_CHECKING:
    from hvpspec.results.blocks import Blocks
    from hvpspec.results.condition import Condition

FIGURES = ("eigenvalues", "trace", "frobenius_norm", "density")


@dataclass(frozen=True, eq=False)
class Spectrum:
    """All figures of one operator.

    parameters: n. eigenpairs: largest magnitude first. complete: False while under way or after an interruption; a
    figure not reached by then, or not asked for, is None. hvps, seconds: what it cost in all. asked: the figures asked
    for. predicted: the products that were foreseen before the first one was made (None: not known). condition: what the
    same products tell of the conditioning. blocks: the figures of each group of parameters, where they were asked for.
    """

    parameters: int
    eigenpairs: Eigenpairs | None
    trace: Estimate | None
    frobenius_norm: Estimate | None
    hvps: int
    seconds: float
    complete: bool
    density: Density | None = None
    asked: tuple[str, ...] = FIGURES[:3]
    predicted: int | None = None
    condition: Condition | None = None
    blocks: Blocks | None = None

    @property
    def converged(self) -> bool:
        """Whether every figure asked for is there and within its tolerance, the refinement near zero among them.

        The figures of blocks come along as far as they will, each with a flag of its own.
        """
        refined = self.condition is None or (
            "refined" not in self.condition.reasons
            and (self.condition.refined is None or self.condition.refined.converged)
        )
        figures = self._figures().values()
        return self.complete and refined and all(figure is not None and figure.converged for figure in figures)

    def _figures(self) -> dict[str, Eigenpairs | Estimate | Density | None]:
        figures = (self.eigenpairs, self.trace, self.frobenius_norm, self.density)
        return {name: figure for name, figure in zip(FIGURES, figures, strict=True) if name in self.asked}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the figures as spectrum.json has them."""
        pairs = {} if self.eigenpairs is None else self.eigenpairs.to_dict()
        return {
            "complete": self.complete,
            "converged": self.converged,
            "parameters": self.parameters,
            "asked": list(self.asked),
            "eigenvalues": pairs.pop("eigenvalues", []),
            **{f"eigenvalues_{name}": entry for name, entry in pairs.items()},
            "trace": None if self.trace is None else self.trace.to_dict(),
            "frobenius_norm": None if self.frobenius_norm is None else self.frobenius_norm.to_dict(),
            "density": None if self.density is None else self.density.to_dict(),
            "condition": None if self.condition is None else self.condition.to_dict(),
            "blocks": None if self.blocks is None else self.blocks.to_dict(),
            "hvps": self.hvps,
            "predicted_hvps": self.predicted,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Spectrum:
        """Reads what `to_dict` gives, and spectrum.json, of this version or an older one."""
        from hvpspec.results.blocks import Blocks
        from hvpspec.results.condition import Condition

        pairs = None
        if data["eigenvalues"]:
            rest = {name.removeprefix("eigenvalues_"): entry for name, entry in data.items()}
            pairs = Eigenpairs.from_dict(
                {**rest, "converged": data["eigenvalues_converged"], "hvps": data["eigenvalues_hvps"]}
            )
        return cls(
            parameters=data["parameters"],
            eigenpairs=pairs,
            trace=None if data["trace"] is None else Estimate.from_dict(data["trace"]),
            frobenius_norm=None if data["frobenius_norm"] is None else Estimate.from_dict(data["frobenius_norm"]),
            hvps=data["hvps"],
            seconds=data["seconds"],
            complete=data["complete"],
            density=None if data.get("density") is None else Density.from_dict(data["density"]),
            asked=tuple(data.get("asked", FIGURES[:3])),
            predicted=data.get("predicted_hvps"),
            condition=None if data.get("condition") is None else Condition.from_dict(data["condition"]),
            blocks=None if data.get("blocks") is None else Blocks.from_dict(data["blocks"]),
        )


@dataclass(frozen=True)
class Progress:
    """What a callback is told while `spectrum` works.

    stage: what is being done. hvps: products made so far. expected: products that the whole run will have made, as far
    as can be foreseen; the first Progress, before any product, has the prediction. spectrum: what is known so far.
    """

    stage: str
    hvps: int
    expected: int | None
    spectrum: Spectrum
