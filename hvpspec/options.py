"""The options of a run, checked before any product is made, and how many products such a run is expected to take.

They are one frozen dataclass for the estimators, the forecast, the command line and the provenance. Neither torch nor
NumPy is imported here, so that `hvpspec --help` is fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.validation import (
    Tolerance,
    check_budget,
    check_choice,
    check_count,
    check_damping,
    check_duration,
    check_flag,
    check_seed,
    check_tol,
)

Quantity = Literal["eigenvalues", "trace", "frobenius_norm", "density"]
SampledQuantity = Literal["trace", "frobenius_norm"]
Which = Literal["LM", "LA", "SA", "BE"]
AnyWhich = Literal["LM", "LA", "SA", "BE", "SM"]
BatchWhich = Literal["LA", "SA", "BE"]
Place = Literal["device", "cpu", "disk"]
Reduction = Literal["mean", "sum"]
Matrix = Literal["hessian", "ggn", "empirical-fisher", "residual"]
MatrixChoice = Literal["hessian", "ggn", "fisher", "empirical-fisher", "residual"]
Engine = Literal["auto", "autograd", "linearized", "compiled", "cudagraph", "finite-difference"]

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
SAMPLED_QUANTITIES: tuple[SampledQuantity, ...] = get_args(SampledQuantity)  # those that random probes estimate
MATRIX_NAMES: dict[Matrix, str] = {
    "hessian": "Hessian",
    "ggn": "Gauss-Newton matrix",
    "empirical-fisher": "empirical Fisher matrix",
    "residual": "Hessian without its Gauss-Newton part",
}
ENGINES: tuple[Engine, ...] = get_args(Engine)
# The functions are in hvpspec/objective/losses/named.py, which needs torch.
LOSS_NAMES = ("cross_entropy", "mse", "bce_with_logits", "causal_lm", "model", "cosine_similarity")

SERIES_QUANTITIES: tuple[Quantity, ...] = ("eigenvalues", "trace", "frobenius_norm")  # the density allows no warm start
EIGENVALUE_KINDS: dict[Which, str] = {
    "LM": "eigenvalues of largest magnitude",
    "LA": "largest eigenvalues",
    "SA": "smallest eigenvalues",
    "BE": "outermost eigenvalues",
}
DEFAULT_MAX_HVPS = 1000  # of a call without a budget that might otherwise not end
DEFAULT_REFINE_HVPS = 500
DEFAULT_BLOCK_HVPS = 500
DEFAULT_MAX_BATCHES = 1000  # of which λ_max is found, each by itself
HVPS_PER_BATCH = 20  # of the default budget for these
DEFAULT_DIAGONAL_HVPS = 200
SMALLEST_PLANNED_RTOL = 1e-9  # plans for smaller tolerances are those for this one
_SMALLEST_PLANNED_TOL = 1e-9
LEAST_HVPS_TO_CHECK = 10  # a smaller budget has no product to spare for checking the others
VECTORS_SUFFIX = ".safetensors"  # of files that vectors are written to
PILOT_PROBES = 8  # the fewest probes that an interval is computed from
# What is done once before an operator's first product is part of planned seconds, and of no number of products.
VERIFICATION_PRODUCTS = 2  # of the first batch: a product, two gradients and a forward pass to verify it
WEIGHING_PRODUCTS = 0.5  # of all data: three forward passes that measure what a user's loss is a mean over

# As measured on trained networks of many kinds: Lanczos steps for k outliers. They are proportional to the logarithm of
# what is to be gained: 1 / tol, and what a random start lacks.
_STEPS_FOR_OUTLIERS = 4.8
_STEPS_PER_OUTLIER = 2.1
_LOG_OF_START = 8.7
_USUAL_TOL = 1e-3
_STEPS_TO_OTHER_END = 4.0  # times as many, where the smallest eigenvalues are at the edge of the bulk
_STEPS_FOR_DENSITY = 25  # planned Lanczos steps if no eigenvalues are asked for
_PROBES_FOR_BULK = 46.0  # for 1 % of the trace, once the outliers are in the basis, as measured
RANK_OF_BULK = 60.0  # steps that reduce what is left then by a factor of e
_HVPS_PER_BLOCK = 15  # planned for the largest eigenvalue of one block
_HVPS_PER_BLOCK_DENSITY = 25  # and beyond that for its density
_PROBES_FOR_DIAGONAL = 90.0  # for a relative error of 10 %, once the outliers are in the basis, as measured


@dataclass(frozen=True, kw_only=True)
class SpectrumOptions:
    """The options of a spectrum, checked when they are given.

    Parameters
    ----------
    k : int, default 10
        How many eigenpairs.
    which : {"LM", "LA", "SA", "BE"}, default "LM"
        Which ones: of largest magnitude, largest, smallest, or half from each end.
    rtol : float, default 0.01
        Relative half-width of the intervals of trace and norm.
    confidence : float, default 0.95
        The probability that an interval contains the true value.
    tol : float, default 1e-3
        Relative residual of the eigenpairs.
    seed : int, default 0
        Of all random vectors.
    max_hvps : int, optional
        Budget of products, except those of a refinement; None for no budget.
    time_limit : float or str, optional
        Budget of time; stored in seconds; None for no limit.
    only : str or iterable of str, optional
        The quantities asked for; stored as a tuple in the usual order.
    verify : bool, default False
        Whether to measure the residuals with k further products.
    block_size : int, default 1
        Number of random start vectors; b of them show up to b copies of an eigenvalue.
    damping : float, default 0
        δ of the conditioning, which is that of H + δI.
    refine : bool, default False
        Whether to search for the eigenvalue nearest to −`damping`.
    refine_hvps : int, default 500
        Budget of products for this search.
    blocks : str, iterable of str, or mapping, optional
        The diagonal blocks asked for; several globs are stored as a tuple.
    gradient : bool, default False
        Whether to look where the gradient of the loss lies in the spectrum.
    block_density : bool, default False
        Whether λ_min and the density of each block are asked for as well.
    block_hvps : int, default 500
        Budget of products for these, for all blocks together.
    diagonal : bool, default False
        Whether to estimate the diagonal as well.
    diagonal_rtol : float, default 0.1
        Of the diagonal as a vector.
    diagonal_hvps : int, default 200
        Budget of products for the diagonal, beyond `max_hvps`.
    basis_memory : int or str, optional
        Memory limit for long vectors; stored in bytes.
    basis_on : {"device", "cpu", "disk"}, default "device"
        Where the basis is kept.

    Raises
    ------
    InputError
        For an option that is out of range, for `refine` without the density, and for `block_density` without blocks.

    Notes
    -----
    The options are described in full in `hvpspec.spectrum`. No product is made.

    Examples
    --------
    >>> import hvpspec
    >>> options = hvpspec.SpectrumOptions(k=3, only=["trace", "eigenvalues"], basis_memory="2MiB")
    >>> options.only, options.basis_memory
    (('eigenvalues', 'trace'), 2097152)
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
    block_size: int = 1
    damping: float = 0.0
    refine: bool = False
    refine_hvps: int = DEFAULT_REFINE_HVPS
    blocks: str | Iterable[str] | Mapping[str, Any] | None = None
    diagonal: bool = False
    diagonal_rtol: float = 0.1
    diagonal_hvps: int = DEFAULT_DIAGONAL_HVPS
    basis_memory: int | str | None = None
    basis_on: Place = "device"
    time_limit: float | str | None = None
    gradient: bool = False
    block_density: bool = False
    block_hvps: int = DEFAULT_BLOCK_HVPS

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        put("k", check_count("k", self.k))
        check_choice("which", self.which, Which)
        tolerance = Tolerance(self.rtol, 0.0, self.confidence)
        put("rtol", float(tolerance.rtol))
        put("confidence", float(tolerance.confidence))
        put("tol", check_tol(self.tol))
        put("seed", check_seed(self.seed))
        put("max_hvps", check_budget(self.max_hvps))
        put("time_limit", check_duration("time_limit", self.time_limit))
        put("only", check_only(self.only))
        for name in ("verify", "refine", "gradient", "block_density", "diagonal"):
            put(name, check_flag(name, getattr(self, name)))
        put("block_size", check_count("block_size", self.block_size))
        put("damping", check_damping(self.damping))
        for name in ("refine_hvps", "block_hvps"):
            put(name, check_count(name, getattr(self, name)))
        put("blocks", _blocks(self.blocks))
        put("diagonal_rtol", check_tol(self.diagonal_rtol, "diagonal_rtol"))
        put("diagonal_hvps", check_count("diagonal_hvps", self.diagonal_hvps))
        put("basis_memory", check_size("basis_memory", self.basis_memory))
        check_choice("basis_on", self.basis_on, Place)
        if self.refine and "density" not in self.quantities:
            raise InputError(
                "refine sharpens the conditioning, which needs the density: add it to the quantities asked for (only)."
            )
        if self.block_density and self.blocks is None:
            raise InputError(
                'block_density is of diagonal blocks: name groups of parameters (blocks), such as "*" for each module.'
            )

    @property
    def quantities(self) -> tuple[Quantity, ...]:
        """Those asked for, in the usual order."""
        return check_only(self.only)

    @property
    def seconds(self) -> float | None:
        """The budget of time; None without one."""
        return check_duration("time_limit", self.time_limit)

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
        """JSON-ready, by name. Blocks that are given by positions are represented by their names only."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        blocks = None if self.blocks is None else list(self.blocks)
        return {**values, "blocks": blocks, "only": list(self.quantities)}


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """What is asked of the matrices of single batches, checked when it is given; see `hvpspec.per_batch`."""

    which: BatchWhich = "LA"
    rtol: float = 0.01
    confidence: float = 0.95
    seed: int = 0
    max_hvps: int | None = None
    max_batches: int = DEFAULT_MAX_BATCHES

    def __post_init__(self) -> None:
        check_choice("which", self.which, BatchWhich)
        tolerance = Tolerance(self.rtol, 0.0, self.confidence)
        if tolerance.rtol == 0:
            raise InputError("rtol must be > 0: λ_max of a batch is known to a tolerance.")
        check_seed(self.seed)
        check_budget(self.max_hvps)
        check_count("max_batches", self.max_batches)

    def budget(self, batches: int) -> int:
        """Products of one batch each, for so many batches together."""
        return HVPS_PER_BATCH * batches if self.max_hvps is None else self.max_hvps


def planned_hvps(options: SpectrumOptions, n: int, block_sizes: Sequence[int] = ()) -> int:
    """Products that a spectrum of an n × n matrix is expected to take if it has some outliers over a bulk.

    block_sizes: rows of each block that is asked for. The products of a refinement and of the blocks' densities are
    beyond the budget. What is done once before the first product is not counted.
    """
    within_budget = _planned_without_refinement(options, n, block_sizes)
    if options.max_hvps is not None:
        within_budget = min(within_budget, options.max_hvps)
    return within_budget + beyond_budget(options, n, block_sizes)


def beyond_budget(options: SpectrumOptions, n: int, block_sizes: Sequence[int] = ()) -> int:
    """Products that are planned beyond the budget of a run, each with a budget of its own."""
    return refinement_hvps(options) + planned_for_diagonal(options, n) + density_of_blocks_hvps(options, block_sizes)


def planned_for_diagonal(options: SpectrumOptions, n: int) -> int:
    """Products that are planned for the diagonal."""
    if not options.diagonal:
        return 0
    wanted = _PROBES_FOR_DIAGONAL * (0.1 / max(options.diagonal_rtol, SMALLEST_PLANNED_RTOL)) ** 2
    return int(min(wanted, options.diagonal_hvps, n + PILOT_PROBES))


def refinement_hvps(options: SpectrumOptions) -> int:
    """Products that are planned for a refinement: half of its budget with damping, where it is faster."""
    return options.refine_hvps // (2 if options.damping else 1) if options.refine else 0


def density_of_blocks_hvps(options: SpectrumOptions, block_sizes: Sequence[int]) -> int:
    """Products that are planned for the densities of blocks."""
    planned = sum(min(_HVPS_PER_BLOCK_DENSITY, size) for size in block_sizes)
    return min(planned, options.block_hvps) if options.block_density else 0


def planned_steps(options: SpectrumOptions, n: int) -> int:
    """Lanczos steps among the planned products."""
    if not options.pairs:
        return _STEPS_FOR_DENSITY if options.density else 0
    steps = _STEPS_FOR_OUTLIERS + _STEPS_PER_OUTLIER * min(options.k, n)
    if options.which in ("SA", "BE"):
        steps *= _STEPS_TO_OTHER_END
    gained = math.log(1 / max(options.tol, _SMALLEST_PLANNED_TOL)) + _LOG_OF_START
    return round(steps * gained / (math.log(1 / _USUAL_TOL) + _LOG_OF_START))


def planned_probes(options: SpectrumOptions) -> float:
    """Random probes among the planned products, and steps in place of probes where these are fewer."""
    if not options.sampled:
        return 0.0
    return max(PILOT_PROBES, fewest(probes_for_bulk(options.rtol), RANK_OF_BULK))


def probes_for_bulk(rtol: float) -> float:
    """Probes that the trace takes once the outliers are in the basis."""
    return _PROBES_FOR_BULK * (0.01 / max(rtol, SMALLEST_PLANNED_RTOL)) ** 2


def fewest(probes: float, rank: float) -> float:
    """The fewest probes and steps together, where a step removes one part in `rank` of what needs `probes` now.

    m steps leave N exp(−m/r) of N probes, and m + N exp(−m/r) is smallest at m = r ln(N/r).
    """
    return probes if probes <= rank else rank * (1 + math.log(probes / rank))


def checking_hvps(options: SpectrumOptions) -> int:
    """Products that are reserved for checking all others."""
    return int(options.max_hvps is None or options.max_hvps > LEAST_HVPS_TO_CHECK)


def gradient_hvps(options: SpectrumOptions) -> int:
    """Products that are reserved for the curvature along the gradient."""
    return int(options.gradient) * checking_hvps(options)


def verification_hvps(options: SpectrumOptions, n: int) -> int:
    """Products that are reserved for measuring the residuals at the end."""
    k = min(options.k, n)
    affordable = options.max_hvps is None or options.max_hvps > k + 1
    return k if options.verify and options.pairs and affordable else 0


def _planned_without_refinement(options: SpectrumOptions, n: int, block_sizes: Sequence[int]) -> int:
    pilots = PILOT_PROBES if options.sampled else 0
    shared = min(planned_steps(options, n) + planned_probes(options), n + pilots)  # n steps span the whole space
    last = verification_hvps(options, n) + gradient_hvps(options)
    return int(shared + last + planned_for_blocks(options, block_sizes))


def planned_for_blocks(options: SpectrumOptions, block_sizes: Sequence[int]) -> int:
    """Products among the planned ones for the largest eigenvalues of blocks."""
    return sum(min(_HVPS_PER_BLOCK, size) for size in block_sizes) if options.pairs else 0


def check_only(only: str | Iterable[str] | None) -> tuple[Quantity, ...]:
    """The quantities asked for, in the usual order; InputError if there are none, or unknown ones."""
    if only is None:
        return QUANTITIES
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [name for name in wanted if name not in QUANTITIES]
    if unknown or not wanted:
        names = ", ".join(f'"{name}"' for name in QUANTITIES)
        got = repr(unknown[0]) if unknown else "nothing"
        raise InputError(f"only must name quantities among {names}; got {got}.")
    return tuple(name for name in QUANTITIES if name in wanted)


def _blocks(blocks: Any) -> Any:
    """Globs as a tuple. Anything else than globs or a mapping is refused later, by `find_blocks`."""
    if blocks is None or isinstance(blocks, Mapping):
        return blocks
    if isinstance(blocks, str):
        return (blocks,)
    return tuple(blocks) if isinstance(blocks, Iterable) else blocks
