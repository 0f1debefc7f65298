"""What the estimators return: frozen dataclasses that know their error and turn into plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from hvpspec.results.blocks import Blocks
from hvpspec.results.codec import Flattened, Key, decode, encode
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate

SCHEMA = "hvpspec/spectrum/1"
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
    eigenpairs: Annotated[Eigenpairs | None, Flattened("eigenvalues")]
    trace: Estimate | None
    frobenius_norm: Estimate | None
    hvps: int
    seconds: float
    complete: bool
    density: Density | None = None
    asked: tuple[str, ...] = FIGURES[:3]
    predicted: Annotated[int | None, Key("predicted_hvps")] = None
    condition: Condition | None = None
    blocks: Blocks | None = None

    json_order: ClassVar = (
        "schema", "complete", "converged", "parameters", "asked", "eigenpairs", "trace", "frobenius_norm", "density",
        "condition", "blocks", "hvps", "predicted", "seconds",
    )  # fmt: skip

    @property
    def schema(self) -> str:
        """The name of the format of spectrum.json."""
        return SCHEMA

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
        """As spectrum.json has it: infinite and undefined numbers become None."""
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spectrum:
        """Reads what `to_dict` gives, and spectrum.json, of this version or an older one."""
        return decode(cls, data)


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
