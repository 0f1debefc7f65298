"""What is asked of a run: each option declared once, with its help. No torch and no NumPy: --help needs none.

The choices, defaults and checks of a run are those of `hvpspec.options.SpectrumOptions`; here they get their flags.
"""

from __future__ import annotations

import dataclasses
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from hvpspec.cli.options.flags import ACCURACY, ENGINE, OUTPUT, SOURCE, WANTED, alternatives, flag, flag_name, option
from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.options import (
    DEFAULT_MAX_BATCHES,
    DEFAULT_MAX_HVPS,
    ENGINES,
    HVPS_PER_BATCH,
    QUANTITIES,
    BatchOptions,
    BatchWhich,
    Engine,
    MatrixChoice,
    Place,
    Reduction,
    SpectrumOptions,
    Which,
)
from hvpspec.validation import check_count, check_seed

if TYPE_CHECKING:
    QuantityName = str
else:  # Typer takes a list of choices as an enum only
    QuantityName = StrEnum("QuantityName", {name: name for name in QUANTITIES})

_OF_DIAGONAL = ("diagonal", "diagonal_rtol", "diagonal_hvps")
_OF_OPERATOR = (  # what HessianOperator takes
    "parameters", "engine", "memory_limit", "dtype", "device", "noise_seed", "reduction", "train_mode",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for: each field is an option of the command line, with its default and its help."""

    parameters: Annotated[
        list[str] | None,
        option(
            SOURCE,
            'Only these parameters: a module such as fc, or a pattern such as "*.weight"; may be repeated.',
            metavar="NAME",
        ),
    ] = None
    reduction: Annotated[
        Reduction | None,
        option(
            SOURCE,
            "What the loss is over the data, mean or sum; by default the mean, and the sum for a criterion of torch "
            'with reduction="sum".',
        ),
    ] = None
    train_mode: Annotated[
        bool,
        flag(
            SOURCE,
            "Evaluate the model in training mode, for losses that exist only there: batch normalization uses the "
            "statistics of each batch, and dropout needs --noise-seed.",
            "--train-mode",
        ),
    ] = False
    k: Annotated[int, option(WANTED, "How many eigenvalues.", "-k")] = SpectrumOptions.k
    matrix: Annotated[
        str,
        option(
            WANTED,
            "Which matrix of the loss: hessian; ggn, its Gauss-Newton part; residual, the rest of it; "
            "empirical-fisher, the second moment of the samples' gradients; fisher, the same as ggn for likelihoods. "
            "Several, such as hessian,ggn, are computed one after the other and compared.",
            metavar="MATRIX",
        ),
    ] = "hessian"
    which: Annotated[
        Which,
        option(
            WANTED,
            "Which eigenvalues: LM, the largest in magnitude; LA, the largest; SA, the smallest (most negative); "
            "BE, half from each end.",
        ),
    ] = SpectrumOptions.which
    only: Annotated[
        list[QuantityName] | None,
        option(
            WANTED, f"Estimate only this: {alternatives(QUANTITIES)}; may be repeated.", "--only", metavar="QUANTITY"
        ),
    ] = None
    blocks: Annotated[
        list[str] | None,
        option(
            WANTED,
            'Trace, norm and λ_max of diagonal blocks as well, such as "layer*": one block for each module that '
            "matches; may be repeated.",
            "--blocks",
            metavar="PATTERN",
        ),
    ] = None
    block_density: Annotated[
        bool,
        flag(
            WANTED,
            "λ_min and the density of each block of --blocks, with products of their own.",
            "--block-density",
        ),
    ] = SpectrumOptions.block_density
    per_batch: Annotated[
        bool,
        flag(
            WANTED,
            "λ_max of every mini-batch's own matrix as well, as a histogram with that of all data marked; with --which "
            f"SA λ_min, with BE both. Of more than {DEFAULT_MAX_BATCHES:,} batches, so many are drawn at random.",
            "--per-batch",
        ),
    ] = False
    damping: Annotated[float, option(WANTED, "δ ≥ 0: show the conditioning of H + δI as well.")] = (
        SpectrumOptions.damping
    )
    refine: Annotated[
        bool,
        flag(WANTED, "Search for the eigenvalue of H + δI nearest to 0, with products of its own.", "--refine"),
    ] = SpectrumOptions.refine
    no_gradient: Annotated[
        bool,
        flag(
            WANTED,
            "Leave out where the gradient lies in the spectrum, which takes one gradient and one product.",
            "--no-gradient",
        ),
    ] = False
    diagonal: Annotated[
        bool,
        flag(
            WANTED,
            "Estimate the diagonal as well, with products of its own, and show its mean for each parameter, or for "
            "each block of --blocks.",
            "--diagonal",
        ),
    ] = SpectrumOptions.diagonal
    rtol: Annotated[
        float,
        option(ACCURACY, "Relative half-width that the intervals of trace and norm should have."),
    ] = SpectrumOptions.rtol
    tol: Annotated[
        float,
        option(ACCURACY, "Relative residual ‖Hv − λv‖ / |λ| that the eigenpairs should reach."),
    ] = SpectrumOptions.tol
    confidence: Annotated[float, option(ACCURACY, "Probability that an interval holds the true value.")] = (
        SpectrumOptions.confidence
    )
    max_hvps: Annotated[
        int,
        option(ACCURACY, "Budget: at most this many Hessian-vector products (HVPs) in all.", "--max-hvps"),
    ] = DEFAULT_MAX_HVPS
    time_limit: Annotated[
        str | None,
        option(
            ACCURACY,
            "Budget of time for the whole command, loading and checks included, such as 30s, 5min or 1h: figures are "
            "as precise as they are known by then. The same command goes on from there.",
            "--time-limit",
            metavar="TIME",
        ),
    ] = None
    refine_hvps: Annotated[
        int,
        option(ACCURACY, "Budget of --refine, in addition to --max-hvps.", "--refine-hvps"),
    ] = SpectrumOptions.refine_hvps
    block_hvps: Annotated[
        int,
        option(ACCURACY, "Budget of --block-density, in addition to --max-hvps.", "--block-hvps"),
    ] = SpectrumOptions.block_hvps
    batch_hvps: Annotated[
        int | None,
        option(
            ACCURACY,
            "Budget of --per-batch, in addition to --max-hvps: products with one batch each; by default "
            f"{HVPS_PER_BATCH} for each batch.",
            "--batch-hvps",
        ),
    ] = None
    diagonal_rtol: Annotated[
        float,
        option(ACCURACY, "Relative error that the diagonal, as a vector, should have.", "--diagonal-rtol"),
    ] = SpectrumOptions.diagonal_rtol
    diagonal_hvps: Annotated[
        int,
        option(ACCURACY, "Budget of --diagonal, in addition to --max-hvps.", "--diagonal-hvps"),
    ] = SpectrumOptions.diagonal_hvps
    verify: Annotated[
        bool,
        flag(ACCURACY, "Measure the residuals at the end, with k more products.", "--verify"),
    ] = SpectrumOptions.verify
    block_size: Annotated[
        int,
        option(
            ACCURACY,
            "Number of random start vectors: b of them show up to b copies of an eigenvalue, at a higher cost.",
            "--block-size",
        ),
    ] = SpectrumOptions.block_size
    seed: Annotated[int, option(ACCURACY, "Seed of all random vectors.")] = SpectrumOptions.seed
    noise_seed: Annotated[
        int | None,
        option(
            ACCURACY,
            "Fix the random numbers that model and loss draw: the same for every product. Without it, a random loss is "
            "refused.",
            "--noise-seed",
        ),
    ] = None
    engine: Annotated[
        Engine,
        option(ENGINE, f"How a product is computed: {alternatives(ENGINES)}.", metavar="ENGINE"),
    ] = "auto"
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        option(ENGINE, "Precision of the products; by default the model's own."),
    ] = None
    device: Annotated[
        str | None,
        option(ENGINE, "cpu, cuda, cuda:1 and so on; by default the model's own."),
    ] = None
    memory_limit: Annotated[
        str | None,
        option(
            ENGINE,
            "Memory limit for what is saved between products, such as 2GiB; by default 40 % of what is free.",
            "--memory-limit",
            metavar="SIZE",
        ),
    ] = None
    basis_memory: Annotated[
        str | None,
        option(ENGINE, "Memory limit for long vectors, such as 2GiB.", "--basis-memory", metavar="SIZE"),
    ] = None
    basis_on: Annotated[Place, option(ENGINE, "Where the long vectors are kept.", "--basis-on")] = (
        SpectrumOptions.basis_on
    )
    out: Annotated[Path, option(OUTPUT, "Folder for the files.", "--out", metavar="DIR")] = Path()
    no_paths: Annotated[
        bool,
        flag(OUTPUT, "Leave folders out of the files: of every path, only the last name is written.", "--no-paths"),
    ] = False

    def __post_init__(self) -> None:
        check_size("--memory-limit", self.memory_limit)
        self._check_matrices()
        if self.noise_seed is not None:
            check_seed(self.noise_seed, "--noise-seed")
        if self.batch_hvps is not None:
            check_count("--batch-hvps", self.batch_hvps)
        try:
            self.spectrum()
        except InputError as error:
            raise InputError(_with_flags(str(error))) from None

    def _check_matrices(self) -> None:
        names = self.matrix.split(",")
        for name in names:
            if name not in get_args(MatrixChoice):
                raise InputError(
                    f"--matrix: no matrix is named '{name}'; choose {alternatives(get_args(MatrixChoice))}."
                )
        if len(set(names)) < len(names):
            raise InputError(f"--matrix {self.matrix}: name each matrix once.")
        if names != ["hessian"] and self.engine == "finite-difference":
            raise InputError(
                f"--engine finite-difference is for the Hessian; --matrix {self.matrix} needs another one."
            )

    @property
    def gradient(self) -> bool:
        """Whether the gradient is looked at: wherever there are eigenvalues, unless that is declined."""
        return not self.no_gradient and (self.only is None or "eigenvalues" in self.only)

    @property
    def one_matrix(self) -> MatrixChoice:
        """The matrix, where there can be only one. Raises InputError."""
        if "," in self.matrix:
            raise InputError(f"--matrix {self.matrix}: this command takes one matrix at a time.")
        return cast(MatrixChoice, self.matrix)

    def by_matrix(self) -> list[Options]:
        """The options for each matrix: several go to folders of their own, and each has its part of the time."""
        names, seconds = self.matrix.split(","), self.spectrum().seconds
        if len(names) == 1:
            return [self]
        ends = [None if seconds is None else f"{seconds * (i + 1) / len(names)}s" for i in range(len(names))]
        return [
            dataclasses.replace(self, matrix=name, out=self.out / name, time_limit=end)
            for name, end in zip(names, ends, strict=True)
        ]

    def spectrum(self) -> SpectrumOptions:
        """The options of the run itself, as the forecast is given them."""
        names = (field.name for field in dataclasses.fields(SpectrumOptions))
        return SpectrumOptions(**{name: getattr(self, name) for name in names})

    def estimators(self) -> dict[str, Any]:
        """The same as keywords, as `hvpspec.spectrum` is given them."""
        return dict(vars(self.spectrum()))

    def batches(self) -> BatchOptions:
        """What is asked of the matrices of single batches."""
        which = cast(BatchWhich, {"LM": "LA"}.get(self.which, self.which))
        return BatchOptions(which=which, confidence=self.confidence, seed=self.seed, max_hvps=self.batch_hvps)

    def described(self) -> dict[str, Any]:
        """The options that the results depend on, for the provenance."""
        run = self.spectrum().to_dict()
        names = (
            "k", "which", "rtol", "tol", "confidence", "seed", "max_hvps", "only", "verify", "block_size", "damping",
            "refine", "refine_hvps", "blocks",
        )  # fmt: skip
        described = {"parameters": self.parameters, **{name: run[name] for name in names}}
        of = "ggn" if self.matrix == "fisher" else self.matrix
        more = {
            "matrix": None if of == "hessian" else of,
            "gradient": None if self.gradient else False,
            "noise_seed": self.noise_seed,
            "reduction": self.reduction,
            "train_mode": self.train_mode or None,
            "time_limit": run["time_limit"],
            "block_density": True if self.block_density else None,
            "block_hvps": self.block_hvps if self.block_density else None,
            "per_batch": True if self.per_batch else None,
            "batch_hvps": self.batch_hvps if self.per_batch else None,
            **({name: run[name] for name in _OF_DIAGONAL} if self.diagonal else {}),
        }
        return {**described, **{name: value for name, value in more.items() if value is not None}}

    def operator(self) -> dict[str, Any]:
        """What `HessianOperator` is given."""
        return {name: getattr(self, name) for name in _OF_OPERATOR}


def _with_flags(message: str) -> str:
    """A message of SpectrumOptions, which calls options by their names in Python, with the command line's names."""
    names = {field.name for field in dataclasses.fields(SpectrumOptions)}

    def renamed(match: re.Match[str]) -> str:
        return flag_name(match[0]) if match[0] in names else match[0]

    return re.sub(r"^\w+|(?<=\()\w+(?=\))", renamed, message)  # the first word, and one alone in parentheses
