"""The options of a run, checked before any product is made, and how many products a run with them is expected to take.

They are one frozen dataclass for the estimators, the forecast, the command line and the provenance. Neither torch nor
NumPy is imported here, so that `hvpspec --help` has them at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.validation import (
    Tolerance,
    check_budget,
    check_choice,
    check_count,
    check_damping,
    check_flag,
    check_seed,
    check_tol,
)

Quantity = Literal["eigenvalues", "trace", "frobenius_norm", "density"]
SampledQuantity = Literal["trace", "frobenius_norm"]
Which = Literal["LM", "LA", "SA", "BE"]
Place = Literal["device", "cpu", "disk"]
Engine = Literal["auto", "autograd", "linearized", "compiled", "cudagraph", "finite-difference"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
SAMPLED_QUANTITIES: tuple[SampledQuantity, ...] = get_args(SampledQuantity)  # those that random probes estimate
ENGINES: tuple[Engine, ...] = get_args(Engine)
# The functions are in hvpspec/objective/losses.py, which needs torch.
LOSS_NAMES = ("cross_entropy", "mse", "bce_with_logits", "causal_lm", "model", "cosine_similarity")

SERIES_QUANTITIES: tuple[Quantity, ...] = ("eigenvalues", "trace", "frobenius_norm")  # the density allows no warm start
DEFAULT_MAX_HVPS = 1000  # of a call that names no budget and has no other end
DEFAULT_REFINE_HVPS = 500
PILOT_PROBES = 8  # the fewest probes that an interval is taken from

_STEPS_FOR_DENSITY = 25  # Lanczos steps, where no eigenvalues are asked for
_HVPS_PER_BLOCK = 15  # for the largest eigenvalue of one block


@dataclass(frozen=True, kw_only=True)
class SpectrumOptions:
    """What is asked of `hvpspec.spectrum`; its parameters are described there.

    `only` comes out as a tuple in the usual order, `basis_memory` in bytes, `blocks` as a tuple of globs or a mapping.

    Raises
    ------
    InputError
        For an option that is out of range, and for `refine` without the density.
    """

    k: int = 10
    which: Which = "LM"
    rtol: float = 0.01
    confidence: float = 0.95
    tol: float = 1e-3
    seed: int = 0
    max_hvps: int | None = None
    only: str | Iterable[str] | None = None
    verify: bool = False
    damping: float = 0.0
    refine: bool = False
    refine_hvps: int = DEFAULT_REFINE_HVPS
    blocks: str | Iterable[str] | Mapping[str, Any] | None = None
    basis_memory: int | str | None = None
    basis_on: Place = "device"

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("k", check_count("k", self.k))
        check_choice("which", self.which, Which)
        Tolerance(self.rtol, 0.0, self.confidence)
        put("tol", check_tol(self.tol))
        put("seed", check_seed(self.seed))
        put("max_hvps", check_budget(self.max_hvps))
        put("only", check_only(self.only))
        for name in ("verify", "refine"):
            put(name, check_flag(name, getattr(self, name)))
        put("damping", check_damping(self.damping))
        put("refine_hvps", check_count("refine_hvps", self.refine_hvps))
        put("blocks", _blocks(self.blocks))
        put("basis_memory", check_size("basis_memory", self.basis_memory))
        check_choice("basis_on", self.basis_on, Place)
        if self.refine and "density" not in self.quantities:
            raise InputError(
                "refine sharpens the conditioning, which needs the density: add it to the quantities asked for (only)."
            )

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """Those asked for, in the usual order."""
        return check_only(self.only)

    @property
    def pairs(self) -> bool:
        """Whether eigenpairs are asked for."""
        return "eigenvalues" in self.quantities

    @property
    def density(self) -> bool:
        """Whether the density is asked for."""
        return "density" in self.quantities

    @property
    def sampled(self) -> tuple[SampledQuantity, ...]:
        """Those asked for that random probes estimate."""
        return tuple(name for name in SAMPLED_QUANTITIES if name in self.quantities)

    @property
    def tolerance(self) -> Tolerance:
        """Of trace and Frobenius norm."""
        return Tolerance(self.rtol, 0.0, self.confidence)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, by name. Positions of blocks are left out: their names stand for them."""
        values = {**asdict(self), "blocks": None, "only": list(self.quantities)}
        if self.blocks is not None:
            values["blocks"] = list(self.blocks)
        return values


def planned_hvps(options: SpectrumOptions, n: int, block_sizes: Sequence[int] = ()) -> int:
    """Products that a spectrum of an n × n matrix is expected to take, if it has some outliers over a bulk.

    block_sizes: rows of each block that is asked for. The products of a refinement are beyond the budget, and half as
    many where a damping keeps zero away.
    """
    return min(_within_budget(options, n, block_sizes), options.max_hvps or _MANY) + refinement_hvps(options)


_MANY = 1 << 62


def refinement_hvps(options: SpectrumOptions) -> int:
    """Products that are planned for a refinement."""
    return options.refine_hvps // (2 if options.damping else 1) if options.refine else 0


def planned_steps(options: SpectrumOptions, n: int) -> int:
    """Lanczos steps among the planned products."""
    if options.pairs:
        return 2 * min(options.k, n) + 10
    return _STEPS_FOR_DENSITY if options.density else 0


def planned_probes(options: SpectrumOptions) -> float:
    """Random probes among the planned products."""
    return PILOT_PROBES + 0.5 / max(options.rtol, 1e-9) if options.sampled else 0.0


def verification_hvps(options: SpectrumOptions, n: int) -> int:
    """Products that are kept for measuring the residuals at the end."""
    k = min(options.k, n)
    affordable = options.max_hvps is None or options.max_hvps > k + 1
    return k if options.verify and options.pairs and affordable else 0


def _within_budget(options: SpectrumOptions, n: int, block_sizes: Sequence[int]) -> int:
    pilots = PILOT_PROBES if options.sampled else 0
    shared = min(planned_steps(options, n) + planned_probes(options), n + pilots)  # n steps are the whole space
    blocks = sum(min(_HVPS_PER_BLOCK, size) for size in block_sizes) if options.pairs else 0
    return int(shared + verification_hvps(options, n) + blocks)


def check_only(only: str | Iterable[str] | None) -> tuple[Quantity, ...]:
    """The quantities asked for, in the usual order; InputError for others or none."""
    if only is None:
        return QUANTITIES
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [name for name in wanted if name not in QUANTITIES]
    if unknown or not wanted:
        names = ", ".join(f'"{name}"' for name in QUANTITIES)
        raise InputError(f"only must name quantities among {names}; got {unknown[0] if unknown else 'none'!r}.")
    return tuple(name for name in QUANTITIES if name in wanted)


def _blocks(blocks: Any) -> Any:
    """Globs as a tuple; what is no mapping and no globs is left for the operator's own check to refuse."""
    if blocks is None or isinstance(blocks, Mapping):
        return blocks
    if isinstance(blocks, str):
        return (blocks,)
    return tuple(blocks) if isinstance(blocks, Iterable) else blocks
