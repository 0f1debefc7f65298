"""The options that several commands take, each declared once, with its help. No torch and no NumPy: --help needs none.

The choices, defaults and checks of a run are those of `hvpspec.options.SpectrumOptions`; here they get their flags.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from hvpspec.errors import InputError
from hvpspec.memory import check_size
from hvpspec.options import (
    DEFAULT_MAX_HVPS,
    ENGINES,
    LOSS_NAMES,
    QUANTITIES,
    Engine,
    MatrixChoice,
    Place,
    SpectrumOptions,
    Which,
)
from hvpspec.validation import check_count, check_seed

if TYPE_CHECKING:
    QuantityName = str
else:  # Typer takes a list of choices as an enum only
    QuantityName = StrEnum("QuantityName", {name: name for name in QUANTITIES})

SOURCE = "Checkpoint and data"
WANTED = "Quantities"
ACCURACY = "Accuracy and budget"
ENGINE = "Engine and memory"
OUTPUT = "Output"

_OF_OPERATOR = ("parameters", "engine", "memory_limit", "dtype", "device", "noise_seed")  # what HessianOperator takes


def option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    """An option of that panel of --help."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


def flag(panel: str, text: str, *names: str) -> Any:
    """An option without a value; --help shows no type for it."""
    return option(panel, text, *names, metavar="")


def _alternatives(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


AsJson = Annotated[
    bool,
    flag(OUTPUT, "Print the document as JSON on stdout, and nothing else there.", "--json"),
]
Quiet = Annotated[bool, flag(OUTPUT, "Print nothing but errors.", "--quiet", "-q")]
Debug = Annotated[bool, flag(OUTPUT, "Show the traceback of an error.", "--debug")]
Explain = Annotated[bool, flag(OUTPUT, "Say in plain words what each quantity means.", "--explain")]

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, file or directory, in any of the usual formats.")]
NoPreflight = Annotated[
    bool,
    flag(ACCURACY, "Skip the checks that cost products (hvpspec check shows them).", "--no-preflight"),
]
LearningRate = Annotated[
    float | None,
    option(WANTED, "Learning rate: compare λ_max with the edge of stability, 2 / lr.", "--lr"),
]
Momentum = Annotated[
    float | None,
    option(WANTED, "Heavy-ball momentum β: the edge of stability is then (2 + 2β) / lr. Needs --lr.", "--momentum"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earlier:
    """What to do with what an earlier run has left in --out, and whether to leave a journal there."""

    restart: Annotated[
        bool, flag(OUTPUT, "Start over, rather than go on with an interrupted run in --out.", "--restart")
    ] = False
    force: Annotated[
        bool, flag(OUTPUT, "Replace what was made in --out with another checkpoint, data or options.", "--force")
    ] = False
    no_journal: Annotated[
        bool, flag(OUTPUT, "Keep no journal in --out, from which an interrupted run goes on.", "--no-journal")
    ] = False


def check_rate(lr: float | None, momentum: float | None = None) -> None:
    """Raises InputError for a learning rate or momentum that no optimizer can have."""
    if lr is not None and not 0 < lr < float("inf"):
        raise InputError(f"--lr must be a finite number > 0; got {lr:g}.")
    if momentum is not None and not 0 <= momentum < 1:
        raise InputError(f"--momentum must be a number ≥ 0 and < 1; got {momentum:g}.")
    if momentum is not None and lr is None:
        raise InputError("--momentum needs a learning rate as well: add --lr.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where model, data and loss come from."""

    model: Annotated[
        str | None,
        option(
            SOURCE,
            "Function that builds the nn.Module, such as train.py:build or package.module:build. Not needed for a "
            "checkpoint that holds the model (a Hugging Face directory, a TorchScript or torch.export archive).",
            metavar="FILE:FUNCTION",
        ),
    ] = None
    data: Annotated[
        str,
        option(
            SOURCE,
            "Function that returns the batches: a list or a DataLoader, read again for every product.",
            metavar="FILE:FUNCTION",
        ),
    ]
    loss: Annotated[
        str,
        option(
            SOURCE,
            f"{', '.join(LOSS_NAMES)}; or FILE:NAME, a function of (model, batch) or of (outputs, targets), or a "
            "criterion.",
            metavar="LOSS",
        ),
    ]
    key: Annotated[
        str | None,
        option(SOURCE, "Where in the checkpoint the state dict is nested, such as ema or ema.shadow."),
    ] = None
    allow_class: Annotated[
        list[str] | None,
        option(
            SOURCE,
            "A class whose objects the checkpoint may hold besides tensors, as package.module.Class; may be repeated.",
            "--allow-class",
            metavar="CLASS",
        ),
    ] = None
    trust_pickle: Annotated[
        bool,
        flag(SOURCE, "Last resort: read the checkpoint whatever it holds. This runs its code.", "--trust-pickle"),
    ] = False
    freeze_data: Annotated[
        bool,
        flag(
            SOURCE,
            "Keep the batches of the first pass in memory, for data that are shuffled or augmented.",
            "--freeze-data",
        ),
    ] = False
    batches: Annotated[
        int | None,
        option(
            SOURCE,
            "A quick look: only so many of the batches, drawn at random with --seed.",
            "--batches",
        ),
    ] = None
    expect_loss: Annotated[
        str | None,
        option(
            SOURCE,
            "The loss that the data should give; stop if it differs by more than half a unit of the last digit given.",
            "--expect-loss",
            metavar="LOSS",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.batches is not None:
            check_count("--batches", self.batches)
        if self.expect_loss is not None:
            from hvpspec.preflight import expected_loss  # here, as it needs torch

            expected_loss(self.expect_loss)


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
            WANTED, f"Estimate only this: {_alternatives(QUANTITIES)}; may be repeated.", "--only", metavar="QUANTITY"
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
    damping: Annotated[float, option(WANTED, "δ ≥ 0: show the conditioning of H + δI as well.")] = (
        SpectrumOptions.damping
    )
    refine: Annotated[
        bool,
        flag(WANTED, "Search for the eigenvalue of H + δI nearest to 0, with products of its own.", "--refine"),
    ] = SpectrumOptions.refine
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
        option(ENGINE, f"How a product is computed: {_alternatives(ENGINES)}.", metavar="ENGINE"),
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
        try:
            self.spectrum()
        except InputError as error:
            raise InputError(_with_flags(str(error))) from None

    def _check_matrices(self) -> None:
        names = self.matrix.split(",")
        for name in names:
            if name not in get_args(MatrixChoice):
                raise InputError(
                    f"--matrix: no matrix is named '{name}'; choose {_alternatives(get_args(MatrixChoice))}."
                )
        if len(set(names)) < len(names):
            raise InputError(f"--matrix {self.matrix}: name each matrix once.")
        if names != ["hessian"] and self.engine == "finite-difference":
            raise InputError(
                f"--engine finite-difference is for the Hessian; --matrix {self.matrix} needs another one."
            )

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
            "noise_seed": self.noise_seed,
            "time_limit": run["time_limit"],
        }
        return {**described, **{name: value for name, value in more.items() if value is not None}}

    def operator(self) -> dict[str, Any]:
        """What `HessianOperator` is given."""
        return {name: getattr(self, name) for name in _OF_OPERATOR}


def flag_name(name: str) -> str:
    """What the command line calls an option: "max_hvps" → "--max-hvps"."""
    return "-k" if name == "k" else f"--{name.replace('_', '-')}"


def _with_flags(message: str) -> str:
    """A message of SpectrumOptions, which calls options by their names in Python, with the command line's names."""
    names = {field.name for field in dataclasses.fields(SpectrumOptions)}

    def renamed(match: re.Match[str]) -> str:
        return flag_name(match[0]) if match[0] in names else match[0]

    return re.sub(r"^\w+|(?<=\()\w+(?=\))", renamed, message)  # the first word, and one alone in parentheses
